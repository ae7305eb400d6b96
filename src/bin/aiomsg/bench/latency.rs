//! How long a message takes. Twice: there and back, the next one sent when the answer has come, which is the best that
//! can be had; and at a steady rate, each message sent when it is due and timed from then, so that a stall is counted
//! for every message that it delays and not only for one (no coordinated omission). The sender spins so as to be on time.
//!
//! The other end is a thread of this process, or any `aiomsg echo`. Only with the thread the two share a clock, and the
//! second measurement is of one way; else it is there and back as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use aiomsg_uring::{EngineInfo, Socket, SocketBuilder};
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;

use super::{LatencyOptions, PATIENCE, Progress, Row, beside, size_name};
use crate::echo;
use crate::endpoint::Endpoint;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The share of the time that goes by before anything is recorded: caches, clocks and connections warm up.
const WARM_UP_SHARE: u32 = 10;
/// Nearer than this to its time a sender spins and does not sleep.
const SPIN: Duration = Duration::from_micros(200);
/// In the place of a number: a repeat ends here.
const END: u64 = u64::MAX;

/// The word at a place of a message, 0 where it is too short.
pub(super) fn word(message: &[u8], index: usize) -> u64 {
    let bytes = message.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

pub(super) fn measure(options: &LatencyOptions, progress: &mut Progress, rows: &mut Vec<Row>) -> Result<EngineInfo> {
    let (common, epoch) = (&options.common, Instant::now());
    let mut endpoint = common.cores.open(common.drive, 0, settings())?;
    let stop = Arc::new(AtomicBool::new(false));
    match &options.connect {
        Some(place) => endpoint.connect(place.clone())?,
        None => {
            let (address, stop) = (endpoint.bind("127.0.0.1:0".parse()?)?, stop.clone());
            beside(common, 1, address, settings, move |other| echo_until(other, &stop))?;
        }
    }
    if !endpoint.wait_for_peers(1, PATIENCE) {
        bail!("nobody answers there: start `aiomsg echo` first");
    }
    let info = endpoint.info().clone();
    for &bytes in &options.size {
        let name = format!("there and back, {}", size_name(bytes));
        let mut times_ns = Vec::new();
        for repeat in 0..common.repeats {
            progress.next(&name, repeat);
            times_ns.push(there_and_back(&mut endpoint, bytes, common.seconds)?);
        }
        rows.push(Row::Times { name, bytes, times_ns });
    }
    if options.connect.is_some() {
        for &bytes in &options.size {
            let name = format!("{}/s and back, {}", options.rate, size_name(bytes));
            let mut times_ns = Vec::new();
            for repeat in 0..common.repeats {
                progress.next(&name, repeat);
                times_ns.push(paced_and_back(&mut endpoint, bytes, options.rate, common.seconds)?);
            }
            rows.push(Row::Times { name, bytes, times_ns });
        }
        return Ok(info);
    }
    // The echo is another peer of a publisher: this needs a socket of its own.
    stop.store(true, Relaxed);
    let (sender, reports) = channel();
    let mut endpoint = common.cores.open(common.drive, 0, settings())?;
    let address = endpoint.bind("127.0.0.1:0".parse()?)?;
    beside(common, 1, address, settings, move |other| note_arrivals(other, epoch, &sender))?;
    if !endpoint.wait_for_peers(1, PATIENCE) {
        bail!("the subscriber did not connect");
    }
    for &bytes in &options.size {
        let name = format!("one way at {}/s, {}", options.rate, size_name(bytes));
        let mut times_ns = Vec::new();
        for repeat in 0..common.repeats {
            progress.next(&name, repeat);
            times_ns.push(paced_one_way(&mut endpoint, epoch, bytes, options.rate, common.seconds, &reports)?);
        }
        rows.push(Row::Times { name, bytes, times_ns });
    }
    Ok(info)
}

fn settings() -> SocketBuilder {
    Socket::builder()
}

/// Up to a minute with three digits; memory does not grow with the number of samples.
fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).context("no histogram")
}

fn echo_until(mut endpoint: Endpoint, stop: &AtomicBool) -> Result<()> {
    let mut counts = echo::Counts::default();
    while !stop.load(Relaxed) {
        echo::answer(&mut endpoint, &mut counts, u64::MAX)?;
    }
    Ok(())
}

/// One at a time, for so long.
fn there_and_back(endpoint: &mut Endpoint, bytes: usize, duration: Duration) -> Result<Histogram<u64>> {
    let mut times_ns = histogram()?;
    let mut message = vec![1; bytes];
    let begin = Instant::now();
    let (warm, end) = (begin + duration / WARM_UP_SHARE, begin + duration);
    for number in 0_u64.. {
        message[..8].copy_from_slice(&number.to_le_bytes());
        let sent = Instant::now();
        endpoint.send(&message)?;
        endpoint.flush()?;
        let answer = endpoint.recv_batch_timeout(ANSWER_TIMEOUT)?.context("no answer within 10 s")?;
        let answered = Instant::now();
        if answer.iter().last() != Some(&message[..]) {
            bail!("what came back is not what was sent: is that an `aiomsg echo`?");
        }
        if sent >= warm {
            times_ns.saturating_record((answered - sent).as_nanos() as u64);
        }
        if answered >= end && !times_ns.is_empty() {
            break;
        }
    }
    Ok(times_ns)
}

/// Times of messages at a steady rate.
struct Schedule {
    begin: Instant,
    warm: Instant,
    end: Instant,
    rate: u64,
    count: u64,
}

impl Schedule {
    fn new(rate: u64, duration: Duration) -> Self {
        let begin = Instant::now() + SPIN;
        // At least one message is due after the warm-up.
        let duration = duration.max(Duration::from_secs(2) / rate as u32);
        Self { begin, warm: begin + duration / WARM_UP_SHARE, end: begin + duration, rate, count: 0 }
    }

    /// When the next message is due, until the end.
    fn due(&self) -> Option<Instant> {
        let offset_ns = u128::from(self.count) * 1_000_000_000 / u128::from(self.rate);
        Some(self.begin + Duration::from_nanos(offset_ns as u64)).filter(|due| *due < self.end)
    }
}

/// To somebody who sends it back, from the time that it was due.
fn paced_and_back(endpoint: &mut Endpoint, bytes: usize, rate: u64, duration: Duration) -> Result<Histogram<u64>> {
    let mut times_ns = histogram()?;
    let mut message = vec![1; bytes];
    let mut schedule = Schedule::new(rate, duration);
    let mut answered = 0_u64;
    let mut heard = Instant::now();
    loop {
        let now = Instant::now();
        let due = schedule.due();
        if let Some(due) = due
            && now >= due
        {
            message[..8].copy_from_slice(&schedule.count.to_le_bytes());
            message[8..16].copy_from_slice(&((due - schedule.begin).as_nanos() as u64).to_le_bytes());
            endpoint.send(&message)?;
            endpoint.flush()?;
            schedule.count += 1;
            continue;
        }
        let wait = match due {
            Some(due) => (due - now).saturating_sub(SPIN),
            None if answered == schedule.count => return Ok(times_ns),
            None => SPIN,
        };
        let Some(batch) = endpoint.recv_batch_timeout(wait)? else {
            if now - heard > ANSWER_TIMEOUT && answered < schedule.count {
                bail!("{} of {} messages did not come back", schedule.count - answered, schedule.count);
            }
            continue;
        };
        heard = Instant::now();
        for answer in &batch {
            if word(answer, 0) != answered {
                bail!("message {answered} did not come back in its turn");
            }
            answered += 1;
            let due = schedule.begin + Duration::from_nanos(word(answer, 1));
            if due >= schedule.warm {
                times_ns.saturating_record((heard - due).as_nanos() as u64);
            }
        }
    }
}

/// To the subscriber thread, which notes when it has it.
fn paced_one_way(
    endpoint: &mut Endpoint,
    epoch: Instant,
    bytes: usize,
    rate: u64,
    duration: Duration,
    reports: &Receiver<Result<Histogram<u64>>>,
) -> Result<Histogram<u64>> {
    let mut message = vec![1; bytes];
    let mut schedule = Schedule::new(rate, duration);
    while let Some(due) = schedule.due() {
        let mut now = Instant::now();
        while now < due {
            endpoint.idle_until(due - SPIN.min(due - now))?;
            now = Instant::now();
        }
        // Those of the warm-up have no time.
        let time_ns = if due < schedule.warm { 0 } else { (due - epoch).as_nanos() as u64 };
        message[..8].copy_from_slice(&schedule.count.to_le_bytes());
        message[8..16].copy_from_slice(&time_ns.to_le_bytes());
        endpoint.send(&message)?;
        endpoint.flush()?;
        schedule.count += 1;
    }
    let mut end = [0; 16];
    end[..8].copy_from_slice(&END.to_le_bytes());
    end[8..].copy_from_slice(&schedule.count.to_le_bytes());
    endpoint.send(&end)?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        endpoint.idle_until(Instant::now() + Duration::from_millis(1))?;
        match reports.try_recv() {
            Ok(times_ns) => return times_ns,
            Err(_) if Instant::now() >= deadline => bail!("not all messages have arrived"),
            Err(_) => {}
        }
    }
}

/// The subscriber: one distribution a repeat.
fn note_arrivals(mut endpoint: Endpoint, epoch: Instant, reports: &Sender<Result<Histogram<u64>>>) -> Result<()> {
    let mut times_ns = histogram()?;
    let mut messages = 0_u64;
    loop {
        let batch = endpoint.recv_batch()?;
        let now_ns = epoch.elapsed().as_nanos() as u64;
        for message in &batch {
            let (number, time_ns) = (word(message, 0), word(message, 1));
            if number == END {
                let whole = std::mem::replace(&mut times_ns, histogram()?);
                let complete = messages == time_ns;
                let report =
                    if complete { Ok(whole) } else { Err(anyhow::anyhow!("{messages} of {time_ns} messages")) };
                if reports.send(report).is_err() {
                    return Ok(());
                }
                messages = 0;
                continue;
            }
            messages += 1;
            if time_ns > 0 {
                times_ns.saturating_record(now_ns.saturating_sub(time_ns));
            }
        }
    }
}
