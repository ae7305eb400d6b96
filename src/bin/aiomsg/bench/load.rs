//! Messages a second from one publisher to subscribers that are threads with engines of their own, over loopback TCP.
//! The time is from the first `send` until the last subscriber has the last message, so that nothing in flight counts.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use aiomsg_uring::{EngineInfo, Socket, SocketBuilder};
use anyhow::{Result, bail};

use super::{Common, PATIENCE, Progress, Row, beside, size_name};
use crate::endpoint::Endpoint;

/// Messages between two looks at the clock.
const BLOCK: u64 = 256;
/// In the place of a number: a repeat ends here.
const END: u64 = u64::MAX;

/// What a subscriber has of one repeat.
struct Got {
    messages: u64,
    /// Messages with another number than the next.
    wrong: u64,
    at: Instant,
}

pub(super) fn measure(
    common: &Common,
    subscribers: u32,
    bytes: usize,
    progress: &mut Progress,
    rows: &mut Vec<Row>,
) -> Result<EngineInfo> {
    let mut publisher = common.cores.open(common.drive, 0, settings())?;
    let address = publisher.bind("127.0.0.1:0".parse()?)?;
    let (sender, reports) = channel();
    for nth in 1..=subscribers as usize {
        let sender = sender.clone();
        beside(common, nth, address.clone(), settings, move |mut endpoint| subscribe(&mut endpoint, &sender))?;
    }
    if !publisher.wait_for_peers(subscribers as usize, PATIENCE) {
        bail!("{} of {subscribers} subscribers connected: try fewer", publisher.peers());
    }
    let name = match subscribers {
        1 => size_name(bytes),
        _ => format!("{subscribers} subscribers, {}", size_name(bytes)),
    };
    let mut per_s = Vec::new();
    for repeat in 0..common.repeats {
        progress.next(&name, repeat);
        per_s.push(publish(&mut publisher, &reports, subscribers, bytes, common.seconds)?);
    }
    rows.push(Row::Rate { name, bytes, subscribers, per_s });
    Ok(publisher.info().clone())
}

fn settings() -> SocketBuilder {
    // A subscriber that this machine does not run for a moment is not to be disconnected.
    Socket::builder().publish_stall_max(PATIENCE)
}

/// One repeat: messages a second.
fn publish(
    publisher: &mut Endpoint,
    reports: &Receiver<Got>,
    subscribers: u32,
    bytes: usize,
    duration: Duration,
) -> Result<f64> {
    let mut message: Vec<u8> = (0..bytes).map(|index| index as u8).collect();
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < duration {
        for _ in 0..BLOCK {
            message[..8].copy_from_slice(&sent.to_le_bytes());
            publisher.send(&message)?;
            sent += 1;
        }
    }
    publisher.send(&END.to_le_bytes())?;
    let deadline = Instant::now() + PATIENCE;
    let mut last = start;
    for _ in 0..subscribers {
        let got = loop {
            match reports.try_recv() {
                Ok(got) => break got,
                Err(TryRecvError::Disconnected) => bail!("a subscriber has failed"),
                Err(TryRecvError::Empty) if Instant::now() >= deadline => bail!("not all messages have arrived"),
                Err(TryRecvError::Empty) => publisher.idle_until(Instant::now() + Duration::from_millis(1))?,
            }
        };
        if got.messages != sent || got.wrong > 0 {
            bail!("a subscriber got {} of {sent} messages, {} of them out of order", got.messages, got.wrong);
        }
        last = last.max(got.at);
    }
    Ok(sent as f64 / (last - start).as_secs_f64())
}

/// Counts and checks, repeat after repeat.
fn subscribe(endpoint: &mut Endpoint, reports: &Sender<Got>) -> Result<()> {
    let (mut messages, mut wrong) = (0_u64, 0_u64);
    loop {
        for message in &endpoint.recv_batch()? {
            let number = super::latency::word(message, 0);
            if number != END {
                wrong += u64::from(number != messages);
                messages += 1;
                continue;
            }
            if reports.send(Got { messages, wrong, at: Instant::now() }).is_err() {
                return Ok(());
            }
            (messages, wrong) = (0, 0);
        }
    }
}
