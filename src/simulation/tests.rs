//! A bounded share of the simulation in every test run; the long ones are `examples/simulate.rs`.

use std::time::{Duration, Instant};

use super::Report;

/// As many seeds as fit.
const BUDGET: Duration = Duration::from_secs(20);

#[test]
fn seeds_keep_all_promises() {
    let begun = Instant::now();
    let mut report = Report::default();
    for seed in 1.. {
        let outcome = super::run(seed, false);
        assert!(outcome.violation.is_none(), "{outcome}");
        report.add(outcome);
        if begun.elapsed() > BUDGET {
            break;
        }
    }
    println!("{} seeds, {}", report.seeds, report.total);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=8 {
        let (one, other) = (super::run(seed, false), super::run(seed, false));
        assert_eq!((one.trace, one.turns, one.events), (other.trace, other.turns, other.events), "seed {seed}");
    }
}
