//! Whether the simulation would notice: each planted bug (`src/sabotage.rs`) must break a promise within a thousand seeds. Prints
//! which, and after how many. Run with
//! `AIOMSG_SABOTAGE=1 cargo test --release --features sabotage --test planted -- --nocapture`; `BUG=name` tries one alone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use aiomsg_uring::sabotage::{BUGS, Bug, plant};
use aiomsg_uring::simulation::{self, Violation};

/// Within how many seeds each has to be found.
const SEEDS_MAX: u64 = 1000;
/// They come after this one: any thousand will do, and the first are those of the tests without a bug.
const SEEDS_AFTER: u64 = 2200;

/// Seeds until a promise was broken, and which.
fn hunt(bug: Bug) -> Option<(u64, Violation)> {
    plant(Some(bug));
    let mut seeds = SEEDS_AFTER + 1..=SEEDS_AFTER + SEEDS_MAX;
    let found = seeds.find_map(|seed| Some((seed, simulation::run(seed).violation?)));
    plant(None);
    // A seed that fails without the bug shows nothing.
    let found = found.filter(|(seed, _)| simulation::run(*seed).violation.is_none());
    found.map(|(seed, violation)| (seed - SEEDS_AFTER, violation))
}

#[test]
fn each_planted_bug_is_found() {
    let only = std::env::var("BUG").ok();
    if only.is_none() {
        // A panic is a finding too, and not worth its backtrace.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let bugs: Vec<Bug> =
        BUGS.iter().copied().filter(|bug| only.as_ref().is_none_or(|only| format!("{bug:?}") == *only)).collect();
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    let found = hunt(bug);
                    let seconds = begun.elapsed().as_secs_f64();
                    rows.lock().expect("no thread panics with it").push((bug, found, seconds));
                }
            });
        }
    });
    drop(std::panic::take_hook());
    let mut rows = rows.into_inner().expect("the threads are done");
    rows.sort_by_key(|(bug, ..)| *bug as usize);
    println!("| bug | what goes wrong | seeds until found | broken |\n|---|---|---|---|");
    for (bug, found, seconds) in &rows {
        let (seeds, invariant) = match found {
            Some((seeds, violation)) => (seeds.to_string(), violation.invariant),
            None => (format!("not in {SEEDS_MAX}"), "nothing"),
        };
        println!("| {bug:?} | {} | {seeds} | {invariant} |", bug.text());
        if let (Some((seed, violation)), true) = (found, std::env::var_os("TEXTS").is_some()) {
            let text: String = violation.text.chars().take(150).collect();
            println!("    {seconds:.1} s, seed {}: {text}", SEEDS_AFTER + seed);
        }
    }
    let missed: Vec<_> = rows.iter().filter(|(_, found, _)| found.is_none()).map(|(bug, ..)| bug).collect();
    println!("{} of {} found", rows.len() - missed.len(), rows.len());
    assert!(missed.is_empty(), "not found: {missed:?}");
    assert!(only.is_some() || rows.len() >= 24, "only {} bugs", rows.len());
}
