//! The world: it owns time, decides at random who runs next, and makes things go wrong by its own timeline. Shards that wait,
//! wait with their doorbell armed, exactly as a thread in the kernel would; only the world moves the clock, and only when nobody
//! can run.
//!
//! ```text
//!   steps      who runs next, or time passes; what sockets tell is read at once
//!   nodes      processes and sockets that start, end and come back
//!   mischief   what goes wrong by the timeline, and who comes from outside
//!   rest       what is asked of all together, once nothing goes wrong any more, and the end
//! ```

mod mischief;
mod nodes;
mod rest;
mod steps;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::checks;
use super::node::{Common, Kind, Node, Task};
use super::plan::{NodePlan, Plan};
use super::report::{Outcome, Setup, Violation};
use crate::backend::sim::{BackendId, Dice, Fault, Host, Network};

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

/// Where all connections that are no node's come from.
const STRANGERS: Host = Host(200);
/// Virtual time within which everybody has found everybody again, once nothing goes wrong any more: the receive timeout, the
/// longest connect, the longest delay between attempts, the holding of duplicates, and as much again.
const FOUND_NS: u64 = 90 * S;
/// Virtual time for what is left to be sent and the last round to arrive.
const DRAINED_NS: u64 = 900 * S;
/// Twice the longest receive timeout.
const QUIET_NS: u64 = 30 * S;
/// Acknowledgements of a large backlog may take a while over small windows.
const QUIET_ROUNDS: usize = 20;
/// The largest slab and the largest message of a farewell: by so much at least a receive queue may exceed its limit.
const ENTRY_BYTES_MIN: usize = 60 * 1024;
/// Less than the shortest time between heartbeats: where nothing is in the way, no message waits for one.
const PROMPT_NS: u64 = 450 * MS;
const IDLE_NS: u64 = 20 * S;

/// See the file's header.
pub(super) struct World {
    seed: u64,
    setup: Setup,
    dice: Dice,
    plans: Vec<NodePlan>,
    faulty_ns: u64,
    /// By how much a receive queue may exceed its limit: the largest message of all.
    entry_bytes_max: usize,
    common: Common,
    nodes: Vec<Node>,
    tasks: Vec<Task>,
    /// Connections that are no good.
    hostiles: Vec<Task>,
    hostile_seat: BackendId,
    turns: u64,
    /// Steps since time last moved.
    steps_at_once: u64,
    next_mischief_ns: u64,
    /// The nodes that a partition has separated from another one since the last mischief.
    cut_off: Vec<usize>,
    /// No link may end any more.
    settled: bool,
    ending: bool,
    identities: u64,
}

impl World {
    pub(super) fn new(seed: u64, setup: &Setup) -> World {
        let mut dice = Dice::new(seed);
        let Plan { faults, weather, nodes: plans, faulty_ns } = Plan::draw(&mut dice, setup);
        let mut network = Network::new(seed, faults, weather);
        if setup.verbose {
            network.set_verbose();
        }
        let hostile_seat = network.sit(STRANGERS);
        let entries = plans.iter().flat_map(|plan| &plan.sockets).map(|socket| socket.entry_bytes_max());
        let entry_bytes_max = entries.max().unwrap_or(0) + ENTRY_BYTES_MIN;
        let nodes = plans.iter().map(|_| Node::default()).collect();
        let common = Common {
            network: Rc::new(RefCell::new(network)),
            journal: Rc::default(),
            alarms: Rc::default(),
            violation: Rc::default(),
            healed: Rc::new(Cell::new(false)),
            verbose: setup.verbose,
        };
        World {
            seed,
            setup: setup.clone(),
            dice,
            plans,
            faulty_ns,
            entry_bytes_max,
            common,
            nodes,
            tasks: Vec::new(),
            hostiles: Vec::new(),
            hostile_seat,
            turns: 0,
            steps_at_once: 0,
            next_mischief_ns: 0,
            cut_off: Vec::new(),
            settled: false,
            ending: false,
            identities: 0,
        }
    }

    pub(super) fn run(mut self) -> Outcome {
        let violation = self.phases().err();
        let setup = std::mem::take(&mut self.setup);
        let network = self.common.network.borrow();
        let journal = self.common.journal.borrow();
        Outcome {
            seed: self.seed,
            setup,
            trace: network.trace(),
            violation,
            sent: journal.messages_sent(),
            received: journal.messages_received,
            fired: network.faults.fired.clone(),
            turns: self.turns,
            events: network.events_done(),
            virtual_ns: network.now_ns(),
        }
    }

    fn phases(&mut self) -> Result<(), Violation> {
        self.let_in_swallower();
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        // Faults.
        let until_ns = self.now_ns() + self.faulty_ns;
        self.next_mischief_ns = self.now_ns();
        self.run_until(until_ns, |world| world.mischief().is_none())?;
        // Heal: everybody finds everybody.
        self.heal();
        let until_ns = self.now_ns() + FOUND_NS;
        if !self.run_until(until_ns, World::is_connected)? {
            return self
                .broken("I11", format!("not connected {} s after the heal: {}", FOUND_NS / S, self.unconnected()));
        }
        // What was begun is finished, and a last round in which nothing may be lost.
        let until_ns = self.now_ns() + DRAINED_NS;
        let mut sent = false;
        while !sent && self.now_ns() < until_ns {
            // Whoever waits for somebody who will not come back looks up now and then.
            self.tasks.iter().for_each(|task| task.woken.0.store(true, Ordering::Relaxed));
            let look_ns = self.now_ns() + IDLE_NS;
            sent = self.run_until(look_ns, |world| !world.has_task(Kind::Send))?;
        }
        if !sent {
            return self
                .broken("I11", format!("senders are stuck though nothing goes wrong any more: {}", self.stuck()));
        }
        // Links that died without a word are found out.
        let quiet_ns = self.now_ns() + QUIET_NS;
        self.run_until(quiet_ns, |_| false)?;
        if !self.run_until(until_ns, World::is_connected)? {
            return self.broken("I11", format!("not connected at the end: {}", self.unconnected()));
        }
        self.last_round();
        let sent = self.run_until(until_ns, |world| !world.has_task(Kind::Send))?;
        let prompt_ns = self.now_ns() + PROMPT_NS;
        let arrived = |world: &mut World| checks::last_round_missing(&world.common.journal.borrow()).is_none();
        let prompt = sent && self.run_until(prompt_ns, arrived)?;
        let narrow = self.common.network.borrow().faults.had(Fault::SmallWindow);
        if sent && !prompt && !narrow {
            let missing = checks::last_round_missing(&self.common.journal.borrow());
            return self.broken("I11", format!("late by {PROMPT_NS} ns: {}", missing.unwrap_or_default()));
        }
        if !sent || !self.run_until(until_ns, arrived)? {
            let missing = checks::last_round_missing(&self.common.journal.borrow());
            return self.broken("I11", missing.unwrap_or_else(|| format!("the last round is stuck: {}", self.stuck())));
        }
        // Silence. What still was to come has come.
        self.settled = true;
        let mut quiet = Ok(());
        for _ in 0..QUIET_ROUNDS {
            let turns = self.turns;
            let until_ns = self.now_ns() + IDLE_NS;
            self.run_until(until_ns, |_| false)?;
            quiet = self.idle_is_quiet(self.turns - turns);
            if quiet.is_ok() {
                break;
            }
        }
        quiet?;
        let journal = Rc::clone(&self.common.journal);
        checks::at_rest(&journal.borrow())?;
        self.note_replayed(journal.borrow().replayed);
        checks::fair_shares(&journal.borrow())?;
        self.accounts()?;
        self.end()
    }

    fn now_ns(&self) -> u64 {
        self.common.now_ns()
    }

    fn broken<T>(&self, invariant: &'static str, text: String) -> Result<T, Violation> {
        Err(Violation { invariant, text })
    }
}
