//! `aiomsg demo`: a publisher (this process) and its subscribers (processes of their own, this program once more)
//! over loopback TCP. Ticks carry their own sequence number, time and checksum, so that loss, duplication, order and
//! damage are checked by every subscriber and not assumed from what the engine says of itself.
//!
//! Two phases: first at a paced rate, where latency is measured, then at full speed, where deliveries are counted. With
//! `--input` the ticks of a recording are replayed instead, in one phase.
//!
//! This file: the options, and the order of a run. Called by `main`.

mod children;
mod progress;
mod publisher;
mod replay;
mod report;
mod sequence;
mod subscriber;
mod table;
mod tick;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aiomsg_uring::{Socket, SocketBuilder};
use anyhow::{Context, Result, bail};
use clap::Args;

use children::Children;
use progress::Progress;
use publisher::Publisher;
pub(crate) use subscriber::{SubscriberOptions, run as run_subscriber};
use table::Outcome;

use crate::endpoint::{Drive, Endpoint};
use crate::metrics::{At, Board};

/// Any free port of this machine's own.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// How long the subscriber processes may take to start and to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the subscribers may take, after the last message was sent, to receive it and to report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);
/// A subscriber that the machine does not run for a while (nine processes may share two cores) is no slow subscriber:
/// the demo waits for it for longer than the library's default of 1 s.
const PUBLISH_STALL_MAX: Duration = Duration::from_secs(10);
/// The largest message that `--size` accepts, in bytes.
const SIZE_MAX: usize = 1 << 20;

/// The options of `aiomsg demo`.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Subscribers, each a process of its own
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    subscribers: u32,
    /// How long to publish: a third of it paced, the rest at full speed
    #[arg(long, value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Bytes of each message, 32 of which are the tick's own header
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = parse_size)]
    size: usize,
    /// Messages per second of the paced phase, where latency is measured
    #[arg(long, value_name = "PER_SECOND", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: u64,
    #[command(flatten)]
    drive: Drive,
    /// Serve the counters as Prometheus text at unix:PATH or HOST:PORT, for `aiomsg top`, Prometheus and curl
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<At>,
    /// Print one JSON object on standard output instead of the table
    #[arg(long)]
    json: bool,
    /// Replay a recording instead: a CSV file with a header line, one message a line, nanoseconds in the first column
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seconds", "size", "rate"])]
    input: Option<PathBuf>,
    /// Divide the recording's time by this
    #[arg(long, value_name = "X", default_value_t = 1.0, requires = "input", value_parser = parse_speed)]
    speed: f64,
}

/// The socket of publisher and subscribers alike.
fn socket() -> SocketBuilder {
    Socket::builder().publish_stall_max(PUBLISH_STALL_MAX)
}

/// Runs the whole demo and prints its outcome. An error when anything was lost, duplicated, out of order or damaged.
pub(crate) fn run(options: &Options) -> Result<()> {
    // Before any process is started: a file that cannot be read is the likeliest mistake.
    let recording = options.input.as_deref().map(replay::Recording::open).transpose()?;
    let mut endpoint = Endpoint::new(options.drive, Duration::ZERO, socket())?;
    let address = endpoint.bind(LOOPBACK.into()).context("cannot listen on a loopback port")?;
    let mut children = Children::spawn(options.subscribers, &subscriber::arguments(&address, options))?;
    wait_for_subscribers(&mut endpoint, &mut children)?;

    let info = endpoint.info().clone();
    let board = match &options.metrics {
        Some(at) => Some(Board::open(at, false, &endpoint.metrics("demo"))?),
        None => None,
    };
    let mut publisher = Publisher::new(endpoint, children, Progress::new(), board);
    let paced = Duration::from_secs(options.seconds) / 3;
    match recording {
        Some(recording) => publisher.replay(recording, options.speed)?,
        None => {
            publisher.paced(options.size, options.rate, paced)?;
            publisher.full_speed(options.size, Duration::from_secs(options.seconds) - paced)?;
        }
    }
    let reports = publisher.finish(REPORT_TIMEOUT)?;

    let outcome = Outcome::new(options, &info, reports)?;
    if options.json {
        println!("{}", outcome.json());
    } else {
        print!("{}", outcome.table());
    }
    outcome.verdict()
}

fn wait_for_subscribers(endpoint: &mut Endpoint, children: &mut Children) -> Result<()> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    // In slices, so that a subscriber that cannot start is told at once and not after the whole timeout.
    while !endpoint.wait_for_peers(children.len(), Duration::from_millis(100)) {
        children.observe()?;
        if Instant::now() >= deadline {
            let seconds = CONNECT_TIMEOUT.as_secs();
            bail!(
                "{} of {} subscribers connected within {seconds} s: try fewer --subscribers, or see RUST_LOG=info",
                endpoint.peers(),
                children.len()
            );
        }
    }
    Ok(())
}

fn parse_size(text: &str) -> Result<usize, String> {
    let size: usize = text.parse().map_err(|_| "not a number of bytes".to_string())?;
    if (tick::HEADER_BYTES..=SIZE_MAX).contains(&size) {
        return Ok(size);
    }
    Err(format!(
        "a tick needs {} bytes for its sequence number, time, checksum and kind, and the demo sends at most {SIZE_MAX}",
        tick::HEADER_BYTES
    ))
}

fn parse_speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 => Ok(speed),
        _ => Err("a number greater than 0 is needed: 1 is the recording's own speed, 100 a hundred times it".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_below_the_header_are_refused_with_the_reason() {
        assert_eq!(parse_size("32"), Ok(32));
        assert!(parse_size("31").unwrap_err().contains("32 bytes"));
        assert!(parse_size("x").is_err());
        assert!(parse_size("2000000").is_err());
    }

    #[test]
    fn speeds_are_positive_and_finite() {
        assert_eq!(parse_speed("0.5"), Ok(0.5));
        for bad in ["0", "-1", "inf", "NaN", "fast"] {
            assert!(parse_speed(bad).is_err(), "{bad}");
        }
    }
}
