//! `aiomsg bench`: how many messages a second, and how long one takes, on this machine, now. Each figure is measured
//! several times; shown are medians and how far the repeats lie apart, so that noise is seen for what it is. Every
//! message is numbered and checked: a run that loses one fails.
//!
//! This file: the options, and what is shown. `load` and `latency` measure, `plot` draws.

mod latency;
mod load;
mod plot;

use std::path::{Path, PathBuf};
use std::time::Duration;

use aiomsg_uring::{Address, Endpoint as Place, EngineInfo, SocketBuilder};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::connection::seconds;
use crate::endpoint::{Cores, Drive, Endpoint};
use crate::exit::Exit;
use crate::terminal::{Live, grouped, note, print};
use plot::Chart;

/// Bytes of a message's own number and time.
const HEADER_BYTES: usize = 16;
/// The largest message, in bytes.
const SIZE_MAX: usize = 8 << 20;
/// How long connecting, and the last message's way, may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often progress is told where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
/// What is shown of a distribution.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

/// The options of `aiomsg bench`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    /// One publisher, one subscriber: messages a second, by size
    Pair(PairOptions),
    /// One publisher, many subscribers: deliveries a second, by number of subscribers
    FanOut(FanOutOptions),
    /// How long a message takes: there and back, one at a time; and at a given rate
    Latency(LatencyOptions),
}

#[derive(Args, Clone, Debug)]
struct PairOptions {
    /// Bytes of a message; several, separated by commas, are measured one after the other
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_values_t = [64, 1024, 16_384], value_parser = parse_size)]
    size: Vec<usize>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Clone, Debug)]
struct FanOutOptions {
    /// Subscribers, each a thread with an engine of its own; several numbers, separated by commas, are measured in turn
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 4, 16], value_parser = clap::value_parser!(u32).range(1..=256))]
    subscribers: Vec<u32>,
    /// Bytes of a message
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = parse_size)]
    size: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Clone, Debug)]
struct LatencyOptions {
    /// Measure against an `aiomsg echo` that listens there, and not against a thread of this process
    #[arg(long, value_name = "ENDPOINT")]
    connect: Option<Place>,
    /// Bytes of a message; several, separated by commas, are measured one after the other
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_values_t = [64], value_parser = parse_size)]
    size: Vec<usize>,
    /// Messages a second of the second measurement, which are sent when they are due and not when an answer has come
    #[arg(long, value_name = "PER_SECOND", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Clone, Debug)]
struct Common {
    /// How often each figure is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// How long each measurement takes
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    seconds: Duration,
    #[command(flatten)]
    drive: Drive,
    #[command(flatten)]
    cores: Cores,
    /// Draw the results into this file: SVG, or a page if its name ends with .html
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print one JSON object on standard output instead of the table
    #[arg(long)]
    json: bool,
}

/// One figure, or one distribution, measured several times.
enum Row {
    /// Messages a second: one number per repeat.
    Rate { name: String, bytes: usize, subscribers: u32, per_s: Vec<f64> },
    /// Times in nanoseconds: one distribution per repeat.
    Times { name: String, bytes: usize, times_ns: Vec<Histogram<u64>> },
}

/// Measures, shows, draws.
pub(crate) fn run(options: &Options) -> Result<Exit> {
    let (title, common) = match &options.what {
        What::Pair(pair) => ("one publisher, one subscriber", &pair.common),
        What::FanOut(fan) => ("one publisher, many subscribers", &fan.common),
        What::Latency(latency) => ("latency", &latency.common),
    };
    // Before the work: a file that cannot be written is found out at once.
    if let Some(path) = &common.plot {
        std::fs::write(path, "").with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut rows = Vec::new();
    let info = match &options.what {
        What::Pair(pair) => {
            let mut progress = Progress::new(pair.size.len(), common);
            let mut info = None;
            for &bytes in &pair.size {
                info = Some(load::measure(common, 1, bytes, &mut progress, &mut rows)?);
            }
            info
        }
        What::FanOut(fan) => {
            let mut progress = Progress::new(fan.subscribers.len(), common);
            let mut info = None;
            for &subscribers in &fan.subscribers {
                info = Some(load::measure(common, subscribers, fan.size, &mut progress, &mut rows)?);
            }
            info
        }
        What::Latency(options) => {
            let mut progress = Progress::new(2 * options.size.len(), common);
            Some(latency::measure(options, &mut progress, &mut rows)?)
        }
    };
    let info = info.context("there is nothing to measure")?;
    let engine = if info.inline { "inline" } else { "sharded" };
    let about = format!(
        "{engine} engine on {}{}, median of {} repeats of {} s",
        info.backend,
        common.cores,
        common.repeats,
        common.seconds.as_secs_f64()
    );
    let table = table(&format!("{title}; {about}"), &rows);
    if common.json {
        print(format!("{}\n", json(title, &info, &common.cores, &rows)))?;
    } else {
        print(&table)?;
    }
    if let Some(path) = &common.plot {
        draw(path, title, &about, &table, &rows)?;
    }
    Ok(Exit::Done)
}

/// How far a run is.
struct Progress {
    live: Live,
    done: u64,
    repeats: u32,
}

impl Progress {
    fn new(figures: usize, common: &Common) -> Self {
        let steps = figures as u64 * u64::from(common.repeats);
        Self { live: Live::new(Some(steps), PLAIN_INTERVAL), done: 0, repeats: common.repeats }
    }

    /// A measurement begins.
    fn next(&mut self, what: &str, repeat: u32) {
        let repeats = self.repeats;
        self.live.show(self.done, || format!("{what}, {} of {repeats}", repeat + 1));
        self.done += 1;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.live.end();
    }
}

/// Runs the `nth` other end, from 1 on, on a thread of its own, with an engine of its own. It lives for as long as this process
/// at most.
fn beside(
    common: &Common,
    nth: usize,
    address: Address,
    settings: fn() -> SocketBuilder,
    work: impl FnOnce(Endpoint) -> Result<()> + Send + 'static,
) -> Result<()> {
    let (drive, cores) = (common.drive, common.cores.clone());
    let run = move || {
        let other = cores.open(drive, nth, settings()).and_then(|mut other| {
            other.connect(address.into())?;
            work(other)
        });
        if let Err(error) = other {
            note(format!("the other end failed: {error:#}"));
        }
    };
    std::thread::Builder::new().name("beside".into()).spawn(run).context("cannot start a thread")?;
    Ok(())
}

/// The middle one, and the least and the greatest.
fn spread(values: impl IntoIterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
    [median, values[0], values[values.len() - 1]]
}

/// A quantile of each repeat, in microseconds.
fn quantile_us(times_ns: &[Histogram<u64>], quantile: f64) -> impl Iterator<Item = f64> {
    times_ns.iter().map(move |times| times.value_at_quantile(quantile) as f64 / 1e3)
}

fn table(about: &str, rows: &[Row]) -> String {
    let mut text = format!("{about}\n\n");
    let heads: &[&str] = match rows.first() {
        Some(Row::Rate { .. }) => &["messages/s", "deliveries/s", "MB/s", "least", "most"],
        _ => &QUANTILES.map(|(name, _)| name),
    };
    let line = |name: &str, cells: &[String]| {
        let cells: String = cells.iter().map(|cell| format!(" {cell:>13}")).collect();
        format!("{name:<28}{cells}\n")
    };
    let unit = if matches!(rows.first(), Some(Row::Times { .. })) { "microseconds" } else { "" };
    text += &line(unit, &heads.iter().map(|&head| head.to_owned()).collect::<Vec<_>>());
    for row in rows {
        text += &match row {
            Row::Rate { name, bytes, subscribers, per_s } => {
                let [median, least, most] = spread(per_s.iter().copied());
                let all = f64::from(*subscribers);
                let cells = [median, median * all, median * all * *bytes as f64 / 1e6, least, most];
                line(name, &cells.map(|cell| grouped(cell as u64)))
            }
            Row::Times { name, times_ns, .. } => {
                let cells = QUANTILES.map(|(_, quantile)| {
                    let [median, least, most] = spread(quantile_us(times_ns, quantile));
                    // Of the extremes the bare median would hide what the other repeats met.
                    if quantile < 1.0 { format!("{median:.1}") } else { format!("{least:.0}..{most:.0}") }
                });
                line(name, &cells)
            }
        };
    }
    text
}

fn json(title: &str, info: &EngineInfo, cores: &Cores, rows: &[Row]) -> Value {
    let rows = rows.iter().map(|row| match row {
        Row::Rate { name, bytes, subscribers, per_s } => {
            let [median, least, most] = spread(per_s.iter().copied());
            json!({
                "name": name, "bytes": bytes, "subscribers": subscribers, "messages_per_s": median,
                "deliveries_per_s": median * f64::from(*subscribers), "least": least, "most": most, "repeats": per_s,
            })
        }
        Row::Times { name, bytes, times_ns } => {
            let mut row = json!({
                "name": name, "bytes": bytes, "samples": times_ns.iter().map(Histogram::len).sum::<u64>(),
            });
            for (quantile_name, quantile) in QUANTILES {
                let [median, least, most] = spread(quantile_us(times_ns, quantile));
                row[format!("{quantile_name}_us")] = json!({ "median": median, "least": least, "most": most });
            }
            row
        }
    });
    json!({
        "what": title,
        "backend": info.backend.to_string(),
        "reason": info.reason,
        "engine": if info.inline { "inline" } else { "sharded" },
        "spin_us": cores.spin,
        "cores": cores.pin,
        "rows": rows.collect::<Vec<_>>(),
    })
}

fn draw(path: &Path, title: &str, about: &str, table: &str, rows: &[Row]) -> Result<()> {
    let mut chart = Chart::new(title, about);
    for row in rows {
        match row {
            Row::Rate { name, subscribers, per_s, .. } => {
                chart.bar(name, per_s.iter().map(|per_s| per_s * f64::from(*subscribers)).collect());
            }
            Row::Times { name, times_ns, .. } => chart.curve(name, times_ns),
        }
    }
    let svg = chart.svg();
    let is_page = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("html"));
    let text = if is_page { plot::page(title, &svg, table) } else { svg };
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn parse_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size) if (HEADER_BYTES..=SIZE_MAX).contains(&size) => Ok(size),
        _ => Err(format!("a number from {HEADER_BYTES} (a message's number and time) to {SIZE_MAX} is needed")),
    }
}

/// A size for people.
fn size_name(bytes: usize) -> String {
    match bytes {
        0x10_0000.. if bytes.is_multiple_of(0x10_0000) => format!("{} MiB", bytes >> 20),
        1024.. if bytes.is_multiple_of(1024) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(spread([3.0, 1.0, 2.0]), [2.0, 1.0, 3.0]);
        assert_eq!(spread([4.0, 1.0, 2.0, 3.0]), [2.5, 1.0, 4.0]);
        assert_eq!(spread([7.0]), [7.0, 7.0, 7.0]);
    }

    #[test]
    fn tables_hold_the_figures() {
        let rate = Row::Rate { name: "64 B".into(), bytes: 64, subscribers: 4, per_s: vec![1e6, 3e6, 2e6] };
        let shown = table("about", &[rate]);
        assert!(shown.contains("2,000,000     8,000,000           512     1,000,000     3,000,000"), "{shown}");
        let mut times = Histogram::new(3).unwrap();
        (1..=1000).for_each(|us| times.record(us * 1000).unwrap());
        let shown = table("about", &[Row::Times { name: "x".into(), bytes: 64, times_ns: vec![times] }]);
        assert!(shown.contains("p99.99") && shown.contains("500.") && shown.contains("1000..1000"), "{shown}");
    }

    #[test]
    fn sizes_are_told_in_their_unit() {
        for (bytes, name) in [(64, "64 B"), (1024, "1 KiB"), (1500, "1500 B"), (8 << 20, "8 MiB")] {
            assert_eq!(size_name(bytes), name);
        }
    }
}
