//! The whole path over loopback TCP, both ends in this process: `cargo bench --bench macro`.
//!
//! Groups: `pair` (one publisher, one subscriber), `fan-out` (deliveries to all subscribers) and `round trip` (one message
//! outstanding). Rows: this library inline and sharded, on io_uring and on readiness polling; plain TCP and tokio-uring with
//! ready-made frames; libzmq with the feature `bench-libzmq`. How to read it: `README.md` beside this file.

mod support {
    #[cfg(feature = "bench-libzmq")]
    pub(crate) mod libzmq;
    pub(crate) mod ours;
    pub(crate) mod raw;
    pub(crate) mod rig;
    #[cfg(target_os = "linux")]
    pub(crate) mod tokio;
    #[cfg(feature = "bench-libzmq")]
    pub(crate) mod zmq;
}

use std::time::{Duration, Instant};

use aiomsg_uring::{Backend, inline};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use support::ours::{self, Way};
use support::raw;
use support::rig::Rig;
#[cfg(target_os = "linux")]
use support::tokio;
#[cfg(feature = "bench-libzmq")]
use support::zmq;

/// Bytes of payload that one burst brings to each receiver, about.
const BURST_BYTES: u64 = 4 << 20;
/// Most messages of a burst.
const BURST_MESSAGES_MAX: u64 = 64 << 10;
/// Round trips of a burst.
const ROUND_TRIPS: u64 = 256;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let ways = ways();
    let mut group = criterion.benchmark_group("pair");
    for payload_bytes in [64, 1024, 16 << 10] {
        pair(&mut group, &ways, payload_bytes);
    }
    group.finish();
    let mut group = criterion.benchmark_group("fan-out");
    for (payload_bytes, subscribers) in [(64, 8), (64, 64), (1024, 64)] {
        fan_out(&mut group, &ways, payload_bytes, subscribers);
    }
    group.finish();
    let mut group = criterion.benchmark_group("round trip");
    round_trip(&mut group, &ways, 64);
    group.finish();
    criterion.final_summary();
}

/// The rows of this library that the machine has.
fn ways() -> Vec<(&'static str, Way)> {
    let problem = inline::Engine::builder().backend(Backend::Uring).build().err();
    if let Some(problem) = &problem {
        eprintln!("no rows on io_uring: {problem}");
    }
    let way = |inline, backend| Way { inline, backend, spin: false };
    [
        ("inline uring", way(true, Backend::Uring)),
        ("inline poll", way(true, Backend::Poll)),
        ("sharded uring", way(false, Backend::Uring)),
        ("sharded poll", way(false, Backend::Poll)),
    ]
    .into_iter()
    .filter(|(_, way)| way.backend != Backend::Uring || problem.is_none())
    .collect()
}

fn pair(group: &mut Group, ways: &[(&'static str, Way)], payload_bytes: usize) {
    let case = format!("{payload_bytes} B");
    let mut row = |name: &str, make: &dyn Fn() -> Box<dyn Rig>| {
        run(group, name, &case, messages_of_burst(payload_bytes), 1, make);
    };
    row("raw tcp", &|| raw::pair(payload_bytes));
    for &(name, way) in ways {
        row(name, &|| ours::publish(way, payload_bytes, 1));
    }
    #[cfg(target_os = "linux")]
    row("tokio-uring", &|| tokio::pair(payload_bytes));
    #[cfg(feature = "bench-libzmq")]
    row("libzmq", &|| zmq::pair(payload_bytes));
}

fn fan_out(group: &mut Group, ways: &[(&'static str, Way)], payload_bytes: usize, subscribers: usize) {
    let case = format!("{payload_bytes} B x{subscribers}");
    let messages = messages_of_burst(payload_bytes) / 8;
    let mut row = |name: &str, make: &dyn Fn() -> Box<dyn Rig>| {
        run(group, name, &case, messages, subscribers as u64, make);
    };
    row("raw tcp, 64 messages a write", &|| raw::fan_out(payload_bytes, subscribers, 64));
    for &(name, way) in ways {
        row(name, &|| ours::publish(way, payload_bytes, subscribers));
    }
    #[cfg(feature = "bench-libzmq")]
    row("libzmq", &|| zmq::fan_out(payload_bytes, subscribers));
}

fn round_trip(group: &mut Group, ways: &[(&'static str, Way)], payload_bytes: usize) {
    let case = format!("{payload_bytes} B");
    let mut row = |name: &str, make: &dyn Fn() -> Box<dyn Rig>| run(group, name, &case, ROUND_TRIPS, 1, make);
    row("raw tcp", &|| raw::round_trip(payload_bytes));
    for &(name, way) in ways {
        row(name, &|| ours::round_trip(way, payload_bytes));
        if way.inline {
            let spinning = Way { spin: true, ..way };
            row(&format!("{name}, spinning"), &|| ours::round_trip(spinning, payload_bytes));
        }
    }
    #[cfg(target_os = "linux")]
    row("tokio-uring", &|| tokio::round_trip(payload_bytes));
    #[cfg(feature = "bench-libzmq")]
    row("libzmq", &|| zmq::round_trip(payload_bytes));
}

fn messages_of_burst(payload_bytes: usize) -> u64 {
    (BURST_BYTES / payload_bytes as u64).clamp(64, BURST_MESSAGES_MAX)
}

/// Times bursts of one row. The rig is connected once for all samples and not made at all if the row is filtered out.
fn run(group: &mut Group, row: &str, case: &str, messages: u64, copies: u64, make: &dyn Fn() -> Box<dyn Rig>) {
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(messages * copies));
    let mut rig: Option<Box<dyn Rig>> = None;
    group.bench_function(BenchmarkId::new(row, case), |bencher| {
        let rig = rig.get_or_insert_with(make);
        bencher.iter_custom(|bursts| {
            let began = Instant::now();
            rig.burst(bursts * messages);
            began.elapsed()
        });
    });
}
