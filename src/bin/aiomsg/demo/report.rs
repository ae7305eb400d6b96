//! What a subscriber tells the publisher over its standard output: one JSON object a line, `{"delivered":n}` while it
//! runs and one report at its end. Written and read only here.

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// The longest latency that is told apart from longer ones, in nanoseconds.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// One line from a subscriber.
#[derive(Debug)]
pub(crate) enum Line {
    /// Ticks delivered so far.
    Progress(u64),
    /// It has seen the end of the stream.
    Report(Box<Report>),
}

/// What one subscriber saw.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    /// Different ticks that arrived, undamaged.
    pub(crate) delivered: u64,
    /// Those of them that arrived before the last phase.
    pub(crate) delivered_before_last_phase: u64,
    /// Ticks that the publisher sent and that did not arrive.
    pub(crate) lost: u64,
    /// Ticks that arrived once more.
    pub(crate) duplicated: u64,
    /// Ticks that arrived after a later one.
    pub(crate) out_of_order: u64,
    /// Messages that were no tick, or with a wrong checksum.
    pub(crate) corrupted: u64,
    /// When the end of the stream was seen: nanoseconds since 1970.
    pub(crate) ended_ns: u64,
    /// Publish to receive, nanoseconds, of the timed ticks.
    pub(crate) latency_ns: Histogram<u64>,
}

/// An empty histogram of latencies in nanoseconds, three digits exact, up to a minute.
pub(crate) fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("the bounds are constants, and right")
}

impl Line {
    /// The line, without its end.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Progress(delivered) => json!({ "delivered": delivered }),
            Self::Report(report) => json!({ "report": report.to_json() }),
        }
    }

    /// Reads what [`Line::to_json`] wrote.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("not JSON")?;
        match value.get("report") {
            Some(report) => Ok(Self::Report(Box::new(Report::from_json(report)?))),
            None => Ok(Self::Progress(number(&value, "delivered")?)),
        }
    }
}

impl Report {
    fn to_json(&self) -> Value {
        let latency: Vec<_> =
            self.latency_ns.iter_recorded().map(|step| [step.value_iterated_to(), step.count_at_value()]).collect();
        json!({
            "delivered": self.delivered,
            "delivered_before_last_phase": self.delivered_before_last_phase,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "out_of_order": self.out_of_order,
            "corrupted": self.corrupted,
            "ended_ns": self.ended_ns,
            "latency_ns": latency,
        })
    }

    fn from_json(value: &Value) -> Result<Self> {
        let mut latency_ns = latency_histogram();
        for step in value["latency_ns"].as_array().context("no latency_ns")? {
            let (latency, count) = step[0].as_u64().zip(step[1].as_u64()).context("latency_ns is not pairs")?;
            latency_ns.saturating_record_n(latency, count);
        }
        Ok(Self {
            delivered: number(value, "delivered")?,
            delivered_before_last_phase: number(value, "delivered_before_last_phase")?,
            lost: number(value, "lost")?,
            duplicated: number(value, "duplicated")?,
            out_of_order: number(value, "out_of_order")?,
            corrupted: number(value, "corrupted")?,
            ended_ns: number(value, "ended_ns")?,
            latency_ns,
        })
    }
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().with_context(|| format!("no number {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_pipe() {
        let mut latency_ns = latency_histogram();
        for latency in [1, 999, 50_000, 50_000, 3_000_000, 200_000_000_000] {
            latency_ns.saturating_record(latency);
        }
        let report = Report {
            delivered: 6,
            delivered_before_last_phase: 2,
            lost: 1,
            duplicated: 3,
            out_of_order: 4,
            corrupted: 5,
            ended_ns: u64::MAX,
            latency_ns,
        };
        let line = Line::Report(Box::new(report.clone())).to_json().to_string();
        let Line::Report(read) = Line::parse(&line).unwrap() else { panic!("{line}") };
        assert_eq!(*read, report);
    }

    #[test]
    fn progress_and_nonsense() {
        assert!(matches!(Line::parse(&Line::Progress(17).to_json().to_string()), Ok(Line::Progress(17))));
        for bad in ["", "hello", "{}", r#"{"report":{}}"#, r#"{"delivered":-1}"#] {
            assert!(Line::parse(bad).is_err(), "{bad}");
        }
    }
}
