//! `aiomsg pub`: records of a stream become messages. At the end of the input, or at Ctrl-C, what was accepted is sent
//! for as long as `--linger` lasts, and what reached nobody decides the exit code.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use aiomsg_uring::{
    DeliveryGuarantee, DropCause, Identity, SendError, SendMode, Socket, SocketBuilder, Stats, blocking,
};
use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use crate::connection::{Common, Places, guarantee, mode, seconds, wait_for};
use crate::exit::{self, Exit};
use crate::framing::{Framing, Input, Record};
use crate::publishing::{Publishing, tell_rest};
use crate::terminal::{self, grouped, note};
use crate::work::Work;

/// A sender that is later than this does not catch up: it goes on at its rate.
const LATE_MAX: Duration = Duration::from_secs(1);

/// The options of `aiomsg pub`.
#[derive(Args, Clone, Debug)]
#[command(after_help = exit::HELP, after_long_help = LONG_HELP)]
pub(crate) struct Options {
    #[command(flatten)]
    places: Places,
    /// Read messages from this file and not from standard input
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Send this text, --count times (once by default), and read nothing
    #[arg(long, short, value_name = "TEXT", conflicts_with_all = ["input", "framing"])]
    data: Option<String>,
    /// How messages follow one another in the input
    #[arg(long, value_enum, default_value = "lines", default_value_if("json", "true", "json"))]
    framing: Framing,
    /// Read one JSON object a line: {"text": ...} or {"base64": ...}, with "to" for one peer or "key"; report as JSON on standard error. With --framing, the report alone
    #[arg(long)]
    json: bool,
    /// To every peer, or to one after the other [default: publish; roundrobin with --guarantee at-least-once]
    #[arg(long, value_parser = mode())]
    mode: Option<SendMode>,
    /// Whether messages are kept until they are acknowledged
    #[arg(long, value_parser = guarantee(), default_value = "at-most-once")]
    guarantee: DeliveryGuarantee,
    /// Send to this peer alone; waits for it to connect
    #[arg(long, value_name = "HEX", conflicts_with = "key")]
    to: Option<Identity>,
    /// Send this many messages a second, evenly, and not as fast as they come
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Stop after this many messages
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    /// Begin when this many peers are connected; else the first to come gets what was sent before
    #[arg(long, value_name = "N", default_value_t = 0)]
    wait_peers: usize,
    /// How long to wait for --wait-peers and --to
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    timeout: Duration,
    #[command(flatten)]
    publishing: Publishing,
    /// How long to wait at the end for messages to be sent (at-least-once: to be acknowledged)
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    linger: Duration,
    /// The name that peers know the socket by: 32 hexadecimal digits; random by default
    #[arg(long, value_name = "HEX")]
    identity: Option<Identity>,
    #[command(flatten)]
    common: Common,
}

const LONG_HELP: &str = "Examples:
  seq 10 | aiomsg pub --bind 127.0.0.1:25000 --wait-peers 1
  aiomsg pub --connect host:25000 --mode roundrobin --guarantee at-least-once --input jobs.txt
  aiomsg pub --bind unix:/run/feed.sock --data tick --count 100 --rate 10
  quotes | aiomsg pub --bind '*:25000' --key word --replay snapshot --slow-peers conflate
  aiomsg sub --connect a:1 --json | aiomsg pub --bind '*:2' --json

Exit codes:
  0    done
  1    failed; the reason is on standard error
  2    wrong usage
  3    some messages did not reach their peers: dropped, expired, or undelivered at the end
  4    --wait-peers or --to did not come true within --timeout
  130  ended by Ctrl-C or SIGTERM before the input ended (what was accepted is sent first)";

/// Runs until the input ends.
pub(crate) fn run(options: &Options) -> Result<Exit> {
    let keyed = options.framing == Framing::Json && options.data.is_none();
    if let Err(wrong) = options.publishing.check(keyed) {
        note(wrong);
        return Ok(Exit::Usage);
    }
    let source = Source::open(options)?;
    let mode = options.mode.unwrap_or(match options.guarantee {
        DeliveryGuarantee::AtLeastOnce => SendMode::RoundRobin,
        DeliveryGuarantee::AtMostOnce => SendMode::Publish,
    });
    let work = Work::new()?;
    let engine = options.common.engine()?;
    let settings = Socket::builder().send_mode(mode).delivery_guarantee(options.guarantee).linger(options.linger);
    let settings = options.publishing.apply(settings);
    let settings = options.identity.into_iter().fold(settings, SocketBuilder::identity);
    let socket = options.common.open(&engine, &options.places, settings, "")?;
    let _served = options.common.serve_metrics(&engine, &[("pub", &socket)])?;
    let started = Instant::now();
    let end = {
        let (socket, options) = (socket.clone(), options.clone());
        work.spawn(move || feed(&socket, &options, source))?;
        work.wait()
    };
    if end.is_none() && !options.common.quiet {
        tell_rest(&socket.stats(), options.linger);
    }
    let undelivered = socket.close().undelivered;
    report(options, &socket.stats(), undelivered, started.elapsed());
    let stats = socket.stats();
    match end.transpose()? {
        Some(Exit::Done) if stats.messages_dropped + stats.messages_expired + undelivered > 0 => Ok(Exit::Undelivered),
        Some(exit) => Ok(exit),
        None => Ok(Exit::Interrupted),
    }
}

/// Where messages come from.
enum Source {
    Stream(Box<Input>),
    /// The same text so many times.
    Text(String, u64),
}

impl Source {
    fn open(options: &Options) -> Result<Self> {
        if let Some(text) = &options.data {
            return Ok(Self::Text(text.clone(), options.count.unwrap_or(1)));
        }
        Ok(Self::Stream(Box::new(Input::open(options.input.as_deref(), options.framing)?)))
    }

    fn next(&mut self) -> Result<Option<Record<'_>>> {
        match self {
            Self::Stream(input) => input.next(),
            Self::Text(_, 0) => Ok(None),
            Self::Text(text, left) => {
                *left -= 1;
                Ok(Some(Record { payload: text.as_bytes(), to: None, key: None }))
            }
        }
    }
}

fn feed(socket: &blocking::Socket, options: &Options, mut source: Source) -> Result<Exit> {
    let seconds = options.timeout.as_secs_f64();
    if options.wait_peers > 0
        && let Err(error) = socket.wait_for_peers(options.wait_peers, options.timeout)
    {
        note(format!("{error} ({seconds} s)"));
        return Ok(Exit::TimedOut);
    }
    if let Some(peer) = options.to
        && !wait_for(socket, peer, options.timeout)
    {
        note(format!("peer {peer} did not connect within {seconds} s"));
        return Ok(Exit::TimedOut);
    }
    let mut pace = options.rate.map(Pace::new);
    let mut left = options.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(record) = source.next()? else { break };
        if let Some(pace) = &mut pace {
            pace.wait();
        }
        let key = record.key.or_else(|| options.publishing.key_of(record.payload));
        let sent = match (record.to.or(options.to), key) {
            (Some(peer), _) => socket.send_to(peer, record.payload),
            (None, Some(key)) => socket.send_keyed(key, record.payload),
            (None, None) => socket.send(record.payload),
        };
        match sent {
            Ok(()) => left -= 1,
            Err(error @ (SendError::PeerGone(_) | SendError::UnknownPeer(_))) => {
                note(error);
                return Ok(Exit::Undelivered);
            }
            // Ctrl-C has closed the socket: the main thread tells the rest.
            Err(SendError::Closed) => break,
            Err(error) => return Err(error).context("cannot send"),
        }
    }
    Ok(Exit::Done)
}

/// Even times.
struct Pace {
    start: Instant,
    interval: Duration,
    /// Messages since `start`.
    count: u32,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { start: Instant::now(), interval: Duration::from_secs(1) / rate as u32, count: 0 }
    }

    /// Waits until the next message is due.
    fn wait(&mut self) {
        let due = self.start + self.interval * self.count;
        let now = Instant::now();
        if let Some(early) = due.checked_duration_since(now) {
            std::thread::sleep(early);
        }
        if self.count == u32::MAX || now.saturating_duration_since(due) > LATE_MAX {
            (self.start, self.count) = (now, 0);
        }
        self.count += 1;
    }
}

fn report(options: &Options, stats: &Stats, undelivered: u64, elapsed: Duration) {
    // What is left at the end is told as undelivered.
    let dropped = stats.messages_dropped - stats.drops.of(DropCause::Closed);
    let expired = stats.messages_expired;
    if options.json {
        terminal::report(json!({
            "sent": stats.messages_sent,
            "delivered": stats.messages_delivered,
            "dropped": dropped,
            "conflated": stats.messages_conflated,
            "expired": expired,
            "undelivered": undelivered,
            "seconds": elapsed.as_secs_f64(),
        }));
    } else if !options.common.quiet {
        let mut text = format!(
            "{} messages sent, {} deliveries to {} peers in {:.1} s",
            grouped(stats.messages_sent),
            grouped(stats.messages_delivered),
            stats.connects,
            elapsed.as_secs_f64()
        );
        for (count, what) in [
            (dropped, "dropped"),
            (stats.messages_conflated, "replaced by newer ones"),
            (expired, "expired"),
            (undelivered, "undelivered"),
        ] {
            if count > 0 {
                text += &format!(", {} {what}", grouped(count));
            }
        }
        note(text);
    }
}
