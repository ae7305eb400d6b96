//! The whole engine under every fault, from a seed: real shards and real sockets over a simulated network, a simulated clock and
//! applications that are futures which the world polls. The same seed gives the same run, to the last byte.
//!
//! ```text
//!   plan      what a seed means: nodes, sockets, who dials whom, limits, times
//!   world     the clock, and who runs next: shards, applications, the timeline of faults
//!   handle    a socket as applications use it, on an engine with threads or on one that they drive
//!   node      a process: an engine over simulated drivers, its sockets, its applications
//!   hostile   connections that are no good
//!   stock     peers of other make, with their habits
//!   journal   what was sent and what was received: the reference model, which shares no code with the engine
//!   checks    the invariants, one checker each
//!   shrink    how much of a run that fails can be left out
//! ```
//! A run goes through phases: faults; heal; everybody finds everybody again within a stated virtual time; a last round of
//! messages, each of which must arrive; silence, in which nothing may stir; the orderly end, after which nothing may be left.
//!
//! Nothing here sleeps, reads a clock or starts a thread. Compiled for tests and for the feature `simulation` only.

mod checks;
mod handle;
mod hostile;
mod journal;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod lone;
mod node;
mod plan;
mod report;
mod shrink;
#[cfg(test)]
mod stalled;
mod stock;
#[cfg(test)]
mod tests;
mod world;

pub use report::{Outcome, Report, Setup, Violation};
pub use shrink::shrink;

/// Runs one seed.
pub fn run(seed: u64) -> Outcome {
    run_with(seed, &Setup::default())
}

/// Runs one seed with something left out, or with everything that happens printed.
pub fn run_with(seed: u64, setup: &Setup) -> Outcome {
    let result = std::panic::catch_unwind(|| world::World::new(seed, setup).run());
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        Outcome::panicked(seed, setup, text)
    })
}

/// The names of all faults, in the order of [`Outcome::fired`].
pub fn fault_names() -> Vec<String> {
    crate::backend::sim::FAULTS.iter().map(|fault| format!("{fault:?}")).collect()
}
