//! The outcome of a run: reckoned from the reports, shown as a table or as one JSON object, and judged.

use std::fmt::Write as _;

use aiomsg_uring::{EngineInfo, Stats};
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::Options;
use super::publisher::Reports;
use super::report::latency_histogram;
use crate::terminal::grouped;

/// What came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    backend: String,
    reason: String,
    engine: &'static str,
    subscribers: usize,
    /// Whether a recording was replayed: one phase, timed as a whole.
    replay: bool,
    /// Messages published.
    sent: u64,
    /// Deliveries: each message counts once per subscriber that got it.
    delivered: u64,
    lost: u64,
    duplicated: u64,
    out_of_order: u64,
    corrupted: u64,
    /// From the first message until the last subscriber had everything.
    seconds: f64,
    /// Deliveries per second in the last phase.
    deliveries_per_s: f64,
    /// Publish to receive, nanoseconds, all subscribers together.
    latency_ns: Histogram<u64>,
    /// What the publishing socket counted, marks of the demo's phases included.
    stats: Stats,
}

impl Outcome {
    /// Adds the subscribers' reports up.
    pub(crate) fn new(options: &Options, info: &EngineInfo, reports: Reports) -> Result<Self> {
        let Reports { sent, started_ns, phase_started_ns, subscribers, stats } = reports;
        let sum = |field: fn(&super::report::Report) -> u64| subscribers.iter().map(field).sum::<u64>();
        let mut latency_ns = latency_histogram();
        for report in &subscribers {
            latency_ns.add(&report.latency_ns).context("cannot merge latencies")?;
        }
        let ended_ns = subscribers.iter().map(|report| report.ended_ns).max().unwrap_or(started_ns);
        // A nanosecond at least: a clock that was set back must not make a rate infinite.
        let seconds_since = |start_ns: u64| ended_ns.saturating_sub(start_ns).max(1) as f64 / 1e9;
        let last_phase = sum(|report| report.delivered - report.delivered_before_last_phase);
        Ok(Self {
            backend: info.backend.to_string(),
            reason: info.reason.clone(),
            engine: if info.inline { "inline" } else { "sharded" },
            subscribers: subscribers.len(),
            replay: options.input.is_some(),
            sent,
            delivered: sum(|report| report.delivered),
            lost: sum(|report| report.lost),
            duplicated: sum(|report| report.duplicated),
            out_of_order: sum(|report| report.out_of_order),
            corrupted: sum(|report| report.corrupted),
            seconds: seconds_since(started_ns),
            deliveries_per_s: last_phase as f64 / seconds_since(phase_started_ns),
            latency_ns,
            stats,
        })
    }

    /// The outcome for people.
    pub(crate) fn table(&self) -> String {
        let phases = if self.replay { ["replay", "replay"] } else { ["full speed", "paced"] };
        let [p50, p99, p999] = self.percentiles_us();
        let rows = [
            ("backend", format!("{} ({})", self.backend, self.reason)),
            ("engine", self.engine.to_string()),
            ("subscribers", format!("{}, each a process, over loopback TCP", self.subscribers)),
            ("messages", format!("{} sent in {:.1} s", grouped(self.sent), self.seconds)),
            ("deliveries", grouped(self.delivered)),
            ("deliveries/s", format!("{} ({})", grouped(self.deliveries_per_s as u64), phases[0])),
            ("latency", format!("p50 {p50:.0} us, p99 {p99:.0} us, p99.9 {p999:.0} us ({})", phases[1])),
            ("lost", grouped(self.lost)),
            ("duplicated", grouped(self.duplicated)),
            ("out of order", grouped(self.out_of_order)),
            ("corrupted", grouped(self.corrupted)),
            ("accounts", accounts(&self.stats)),
        ];
        let mut table = String::new();
        for (name, value) in rows {
            // Writing to a String does not fail.
            let _ = writeln!(table, "{name:<13} {value}");
        }
        table
    }

    /// The outcome for programs.
    pub(crate) fn json(&self) -> Value {
        let [p50, p99, p999] = self.percentiles_us();
        json!({
            "backend": self.backend,
            "reason": self.reason,
            "engine": self.engine,
            "subscribers": self.subscribers,
            "sent": self.sent,
            "delivered": self.delivered,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "out_of_order": self.out_of_order,
            "corrupted": self.corrupted,
            "seconds": self.seconds,
            "deliveries_per_s": self.deliveries_per_s,
            "p50_us": p50,
            "p99_us": p99,
            "p999_us": p999,
            "accounts": {
                "addressed": self.stats.messages_addressed,
                "delivered": self.stats.messages_delivered,
                "dropped": self.stats.messages_dropped,
                "conflated": self.stats.messages_conflated,
                "queued": self.stats.messages_queued,
                "pending": self.stats.messages_pending,
                "expired": self.stats.messages_expired,
            },
        })
    }

    /// An error unless every message arrived everywhere exactly once, in order and undamaged.
    pub(crate) fn verdict(&self) -> Result<()> {
        let Self { lost, duplicated, out_of_order, corrupted, .. } = self;
        if [lost, duplicated, out_of_order, corrupted].into_iter().any(|count| *count > 0) {
            bail!("{lost} lost, {duplicated} duplicated, {out_of_order} out of order, {corrupted} corrupted");
        }
        if !self.stats.is_balanced() {
            bail!("the counters do not add up: {}", accounts(&self.stats));
        }
        Ok(())
    }

    /// p50, p99 and p99.9 of the latency in microseconds.
    fn percentiles_us(&self) -> [f64; 3] {
        [0.5, 0.99, 0.999].map(|quantile| self.latency_ns.value_at_quantile(quantile) as f64 / 1e3)
    }
}

/// What became of the messages for peers, as a sum; what there was none of is left out.
fn accounts(stats: &Stats) -> String {
    let parts = [
        (stats.messages_delivered, "delivered"),
        (stats.messages_dropped, "dropped"),
        (stats.messages_conflated, "conflated"),
        (stats.messages_queued, "queued"),
        (stats.messages_pending, "pending"),
        (stats.messages_expired, "expired"),
    ];
    let parts = parts.into_iter().enumerate().filter(|(at, (messages, _))| *at < 2 || *messages > 0);
    let sum: Vec<String> = parts.map(|(_, (messages, name))| format!("{} {name}", grouped(messages))).collect();
    format!("{} for peers = {}", grouped(stats.messages_addressed), sum.join(" + "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        let mut latency_ns = latency_histogram();
        (1..=1000).for_each(|us| latency_ns.saturating_record(us * 1000));
        Outcome {
            backend: "uring".into(),
            reason: "the self-test passed".into(),
            engine: "inline",
            subscribers: 8,
            replay: false,
            sent: 1_000_000,
            delivered: 8_000_000,
            lost: 0,
            duplicated: 0,
            out_of_order: 0,
            corrupted: 0,
            seconds: 2.0,
            deliveries_per_s: 4_000_000.0,
            latency_ns,
            stats: Stats::default(),
        }
    }

    #[test]
    fn the_table_says_what_matters() {
        let table = outcome().table();
        for text in [
            "uring (the self-test passed)",
            "1,000,000 sent in 2.0 s",
            "4,000,000 (full speed)",
            "p99.9 ",
            "0 for peers = 0 delivered + 0 dropped",
        ] {
            assert!(table.contains(text), "{text} is missing in\n{table}");
        }
    }

    #[test]
    fn the_json_holds_the_promised_names() {
        let json = outcome().json();
        for name in "sent delivered lost duplicated out_of_order subscribers seconds deliveries_per_s".split(' ') {
            assert!(json[name].is_number(), "{name}");
        }
        assert!((json["p50_us"].as_f64().unwrap() - 500.0).abs() < 1.0);
        assert!((json["p99_us"].as_f64().unwrap() - 990.0).abs() < 1.0);
        assert_eq!((&json["backend"], &json["engine"]), (&json!("uring"), &json!("inline")));
        assert!(!json.to_string().contains('\n'));
    }

    #[test]
    fn any_fault_fails_the_run() {
        assert!(outcome().verdict().is_ok());
        let faults: [fn(&mut Outcome); 4] =
            [|o| o.lost = 1, |o| o.duplicated = 1, |o| o.out_of_order = 1, |o| o.corrupted = 1];
        for fault in faults {
            let mut outcome = outcome();
            fault(&mut outcome);
            assert!(outcome.verdict().is_err());
        }
    }
}
