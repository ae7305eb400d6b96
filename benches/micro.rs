//! The parts of the path of a message, one by one: `cargo bench --features bench-internals --bench micro`.
//!
//! For instruction counts the same program runs one case by itself, under callgrind (see `instructions.sh`):
//! `--list-cases` prints names and operations per round, `--case NAME --rounds N` runs N rounds. Everything else on the
//! command line is criterion's.

#[path = "support/cases.rs"]
mod cases;

use std::time::{Duration, Instant};

use cases::{CASES, Case, Work};
use criterion::{Criterion, Throughput};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value_of = |name| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
    if arguments.iter().any(|argument| argument == "--list-cases") {
        for case in CASES.iter().filter(|case| case.counted) {
            println!("{}\t{}", case.operations, case.name);
        }
    } else if let Some(name) = value_of("--case") {
        let case = CASES.iter().find(|case| case.name == name).expect("one of --list-cases");
        let rounds = value_of("--rounds").map_or(1, |rounds| rounds.parse().expect("a number of rounds"));
        run(case, rounds);
    } else {
        time_all();
    }
}

/// The first round is not counted: it brings memory and code in.
fn run(case: &Case, rounds: u32) {
    let mut work = case.make();
    work.prepare();
    work.round();
    for _ in 0..rounds {
        work.prepare();
        counted_round(&mut *work);
    }
}

/// What callgrind counts, found by this name.
#[inline(never)]
fn counted_round(work: &mut dyn Work) {
    work.round();
}

fn time_all() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args();
    for case in CASES {
        let (group, what) = case.name.split_once('/').expect("group/what");
        let mut group = criterion.benchmark_group(group);
        group.throughput(Throughput::Elements(case.operations));
        group.bench_function(what, |bencher| {
            let mut work = case.make();
            bencher.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    work.prepare();
                    let began = Instant::now();
                    work.round();
                    time += began.elapsed();
                }
                time
            });
        });
        group.finish();
    }
    criterion.final_summary();
}
