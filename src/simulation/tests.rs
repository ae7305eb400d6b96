//! A bounded share of the simulation in every test run; the long ones are `examples/simulate.rs`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Report, run, shrink};

/// As many seeds as fit; `SIMULATE_SECONDS` in the environment sets another time.
const BUDGET: Duration = Duration::from_secs(100);
/// And not more than these: the same on a fast machine as on a slow one.
const SEEDS_MAX: u64 = 20_000;
/// One seed of so many is run twice.
const TWICE_ONE_IN: u64 = 64;

/// Seeds that have failed once, and then as many as fit, on all processors.
#[test]
fn seeds_keep_all_promises() {
    let seconds = std::env::var("SIMULATE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let until = Instant::now() + seconds.map_or(BUDGET, Duration::from_secs);
    let kept = include_str!("../../tests/seeds.txt").lines().filter(|line| !line.starts_with('#'));
    let kept = kept.filter_map(|line| line.split_whitespace().next()).map(|seed| seed.parse::<u64>());
    let kept: Vec<u64> = kept.collect::<Result<_, _>>().expect("a number begins each line");
    let (next, report) = (AtomicU64::new(0), Mutex::new(Report::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let first = kept.len() as u64;
                    let seed = kept.get(number as usize).copied().unwrap_or_else(|| number - first + 1);
                    if number >= first && (seed > SEEDS_MAX || Instant::now() > until) {
                        break;
                    }
                    let outcome = run(seed);
                    if outcome.violation.is_some() {
                        panic!("{outcome}\nshrunk to {}", shrink(outcome.clone()));
                    }
                    assert!(seed % TWICE_ONE_IN != 0 || run(seed).trace == outcome.trace, "I14: seed {seed}");
                    report.lock().expect("a thread that failed ends the test").add(outcome);
                }
            });
        }
    });
    let report = report.into_inner().expect("checked above");
    println!("{} seeds, {}", report.seeds, report.total);
    let silent = report.silent_faults();
    assert!(report.seeds < 500 || silent.is_empty(), "faults that never happened: {silent:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=8 {
        let (one, other) = (run(seed), run(seed));
        assert_eq!((one.trace, one.turns, one.events), (other.trace, other.turns, other.events), "seed {seed}");
    }
}

/// What is left out of a run stays out, and a run without a violation cannot shrink.
#[test]
fn a_run_can_be_made_smaller() {
    let whole = run(3);
    let mut setup = super::Setup { messages_max: Some(10), leaves_max: Some(1), ..super::Setup::default() };
    setup.without = super::fault_names();
    let small = super::run_with(3, &setup);
    assert!(small.sent < whole.sent && small.violation.is_none(), "{small}");
    assert_eq!(small.fired.iter().sum::<u64>(), 0);
    assert_eq!(shrink(whole.clone()).trace, whole.trace);
}
