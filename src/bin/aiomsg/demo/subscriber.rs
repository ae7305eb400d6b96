//! One subscriber of the demo, a process of its own: connects, checks every message, tells its progress on standard
//! output, reports when it sees the end of the stream, and exits. It also exits when its standard input ends, which is
//! how it learns that the publisher was killed: it never outlives it.

use std::io::{Read, Write};
use std::process;
use std::time::{Duration, Instant};

use aiomsg_uring::{Address, Endpoint as Place};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;

use super::Options;
use super::report::{Line, Report, latency_histogram};
use super::sequence::SequenceCheck;
use super::tick::{Kind, Tick, system_time_ns};
use crate::endpoint::{Drive, Endpoint};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The options of `aiomsg demo-subscriber`, given by [`arguments`].
#[derive(Args, Debug)]
pub(crate) struct SubscriberOptions {
    /// Where the publisher listens
    #[arg(long)]
    connect: Place,
    #[command(flatten)]
    drive: Drive,
}

/// The command line of a subscriber of the publisher at `address`.
pub(crate) fn arguments(address: &Address, options: &Options) -> Vec<String> {
    vec![
        "demo-subscriber".into(),
        format!("--connect={address}"),
        format!("--engine={}", name(options.drive.engine)),
        format!("--backend={}", name(options.drive.backend)),
    ]
}

/// How the value is written on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Runs until the end of the stream.
pub(crate) fn run(options: &SubscriberOptions) -> Result<()> {
    exit_with_parent()?;
    let mut endpoint = Endpoint::new(options.drive, Duration::ZERO, super::socket())?;
    endpoint.connect(options.connect.clone())?;
    let mut tally = Tally::new();
    let mut told = Instant::now();
    loop {
        for message in &endpoint.recv_batch()? {
            if let Some(report) = tally.note(message) {
                return tell(&Line::Report(Box::new(report)));
            }
        }
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            tell(&Line::Progress(tally.check.delivered))?;
        }
    }
}

/// What has arrived so far.
struct Tally {
    check: SequenceCheck,
    delivered_before_last_phase: u64,
    corrupted: u64,
    latency_ns: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        let (check, latency_ns) = (SequenceCheck::default(), latency_histogram());
        Self { check, delivered_before_last_phase: 0, corrupted: 0, latency_ns }
    }

    /// Checks one message; the report when it ends the stream.
    fn note(&mut self, message: &[u8]) -> Option<Report> {
        let Some(tick) = Tick::decode(message) else {
            self.corrupted += 1;
            return None;
        };
        match tick.kind {
            Kind::Timed => {
                // A clock that was set back in between gives no latency below 0.
                self.latency_ns.saturating_record(system_time_ns().saturating_sub(tick.time_ns));
                self.check.note(tick.sequence);
            }
            Kind::Untimed => self.check.note(tick.sequence),
            Kind::PhaseEnd => self.delivered_before_last_phase = self.check.delivered,
            Kind::StreamEnd => return Some(self.report(tick.sequence)),
        }
        None
    }

    fn report(&self, sent: u64) -> Report {
        Report {
            delivered: self.check.delivered,
            delivered_before_last_phase: self.delivered_before_last_phase,
            lost: self.check.lost(sent),
            duplicated: self.check.duplicated,
            out_of_order: self.check.out_of_order,
            corrupted: self.corrupted,
            ended_ns: system_time_ns(),
            latency_ns: self.latency_ns.clone(),
        }
    }
}

fn tell(line: &Line) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", line.to_json()).and_then(|()| stdout.flush()).context("the publisher is gone")
}

fn exit_with_parent() -> Result<()> {
    let watch = || {
        // Nothing is ever written there: the read returns when the publisher has ended, however it did.
        let _ = std::io::stdin().lock().read(&mut [0]);
        process::exit(1);
    };
    std::thread::Builder::new().name("parent-watch".into()).spawn(watch).context("cannot start a thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: Kind, sequence: u64) -> Vec<u8> {
        let mut message = vec![0; 40];
        Tick { sequence, time_ns: system_time_ns(), kind }.encode(&mut message);
        message
    }

    #[test]
    fn a_stream_with_every_fault_is_told_as_it_was() {
        let mut tally = Tally::new();
        for sequence in [0, 1, 1, 2] {
            assert!(tally.note(&message(Kind::Timed, sequence)).is_none());
        }
        assert!(tally.note(&message(Kind::PhaseEnd, 3)).is_none());
        for sequence in [3, 5, 4, 7] {
            assert!(tally.note(&message(Kind::Untimed, sequence)).is_none());
        }
        assert!(tally.note(b"no tick").is_none());
        let report = tally.note(&message(Kind::StreamEnd, 9)).unwrap();
        assert_eq!((report.delivered, report.delivered_before_last_phase), (7, 3));
        assert_eq!((report.lost, report.duplicated, report.out_of_order, report.corrupted), (2, 1, 1, 1));
        assert_eq!(report.latency_ns.len(), 4);
    }
}
