//! What came of a run, and of many.

use std::fmt;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant: `I1` to `I17`, or `panic`.
    pub invariant: &'static str,
    /// What was seen.
    pub text: String,
}

/// How to run a seed: by default as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// Prints everything that happens.
    pub verbose: bool,
    /// Faults that are left out, by name.
    pub without: Vec<String>,
    /// Messages that a socket sends at most while things go wrong.
    pub messages_max: Option<u32>,
    /// Processes at most, besides those that listen.
    pub leaves_max: Option<usize>,
}

impl fmt::Display for Setup {
    /// As options of `examples/simulate.rs`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.without.is_empty() {
            write!(f, " --without {}", self.without.join(","))?;
        }
        self.messages_max.map_or(Ok(()), |messages| write!(f, " --messages {messages}"))?;
        self.leaves_max.map_or(Ok(()), |leaves| write!(f, " --leaves {leaves}"))
    }
}

/// What came of one seed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// How it was run.
    pub setup: Setup,
    /// The hash of all that happened.
    pub trace: u64,
    /// What was broken, if anything.
    pub violation: Option<Violation>,
    /// Messages that applications sent.
    pub sent: u64,
    /// Messages that applications received.
    pub received: u64,
    /// How often each fault has happened, in the order of their names.
    pub fired: Vec<u64>,
    /// Steps of shards.
    pub turns: u64,
    /// Events of the network.
    pub events: u64,
    /// Virtual time, in nanoseconds.
    pub virtual_ns: u64,
}

impl Outcome {
    pub(super) fn panicked(seed: u64, setup: &Setup, text: String) -> Outcome {
        let violation = Some(Violation { invariant: "panic", text });
        Outcome { seed, setup: setup.clone(), violation, ..Outcome::default() }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: u64 = self.fired.iter().sum();
        write!(
            f,
            "seed {}: trace {:016x}, {} sent, {} received, {faults} faults, {} turns, {} events, {:.1} virtual s",
            self.seed,
            self.trace,
            self.sent,
            self.received,
            self.turns,
            self.events,
            self.virtual_ns as f64 / 1e9
        )?;
        if let Some(Violation { invariant, text }) = &self.violation {
            write!(f, "\n{invariant} violated: {text}\n{}", replay(self.seed, &self.setup))?;
        }
        Ok(())
    }
}

fn replay(seed: u64, setup: &Setup) -> String {
    format!("replay: cargo run --release --features simulation --example simulate -- --seed {seed}{setup}")
}

/// The sum over many seeds.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Seeds that were run.
    pub seeds: u64,
    /// Those that broke something.
    pub failed: Vec<Outcome>,
    /// Sums of the outcomes' numbers.
    pub total: Outcome,
}

impl Report {
    /// Adds one outcome.
    pub fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        let total = &mut self.total;
        total.sent += outcome.sent;
        total.received += outcome.received;
        total.turns += outcome.turns;
        total.events += outcome.events;
        total.virtual_ns += outcome.virtual_ns;
        total.fired.resize(total.fired.len().max(outcome.fired.len()), 0);
        for (sum, fired) in total.fired.iter_mut().zip(&outcome.fired) {
            *sum += fired;
        }
        if outcome.violation.is_some() {
            self.failed.push(outcome);
        }
    }

    /// Faults that never happened, of those that can: without io_uring there is no ring to go wrong, and not
    /// all systems have unix sockets.
    pub fn silent_faults(&self) -> Vec<String> {
        let names = super::fault_names();
        let fired = |at: &usize| self.total.fired.get(*at).copied().unwrap_or(0);
        let ring = cfg!(all(target_os = "linux", feature = "uring"));
        let can_happen = |at: &usize| match &names[*at][..4] {
            "Ring" => ring,
            "Unix" => cfg!(unix),
            _ => true,
        };
        (0..names.len()).filter(|at| fired(at) == 0 && can_happen(at)).map(|at| names[at].clone()).collect()
    }
}
