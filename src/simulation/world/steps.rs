//! Who runs next: a shard, a task, somebody from outside; when nobody can, time passes. What a node's sockets tell is read after each
//! turn of its shards, before any application runs.

use std::sync::atomic::Ordering;

use super::{MS, World};
use crate::backend::sim::Fault;
use crate::shard::{DeliveryGuarantee, DisconnectReason, DropCause, Event, Turn, Wait};
use crate::simulation::checks;
use crate::simulation::handle::Driver;
use crate::simulation::node::{Kind, SimShard, SimSocket};
use crate::simulation::report::Violation;

/// Steps without time passing after which somebody spins.
const SPIN_STEPS: u64 = 300_000;

/// A wait that ends later than by this was stopped in the middle.
const LATE_NS: u64 = 500 * MS;

/// Who can run.
enum Runnable {
    Shard(usize, usize),
    Task(usize),
    Hostile(usize),
}

impl World {
    /// Runs until a condition holds (true) or virtual time is up (false).
    pub(super) fn run_until(
        &mut self,
        until_ns: u64,
        mut done: impl FnMut(&mut World) -> bool,
    ) -> Result<bool, Violation> {
        loop {
            if let Some(violation) = self.common.violation.borrow_mut().take() {
                return Err(violation);
            }
            if done(self) {
                return Ok(true);
            }
            if self.step(until_ns)? {
                continue;
            }
            return Ok(false);
        }
    }

    /// Lets somebody run, or time pass; false when time is up.
    fn step(&mut self, until_ns: u64) -> Result<bool, Violation> {
        let now_ns = self.now_ns();
        let runnable = self.runnable(now_ns);
        if !runnable.is_empty() {
            self.steps_at_once += 1;
            if self.steps_at_once > SPIN_STEPS {
                return self.broken("I13", format!("{SPIN_STEPS} steps and no time has passed: somebody spins"));
            }
            match runnable[self.dice.index(runnable.len())] {
                Runnable::Shard(node, shard) => self.turn(node, shard)?,
                Runnable::Task(task) => self.poll(task)?,
                Runnable::Hostile(at) => {
                    if self.hostiles[at].poll() {
                        self.hostiles.swap_remove(at);
                    }
                }
            }
            return Ok(true);
        }
        if now_ns >= until_ns {
            return Ok(false);
        }
        let next_ns = self.next_ns().min(until_ns).max(now_ns + 1);
        self.common.network.borrow_mut().close_dropped();
        self.common.network.borrow_mut().advance(next_ns);
        self.steps_at_once = 0;
        loop {
            let mut alarms = self.common.alarms.borrow_mut();
            match alarms.first_entry() {
                Some(alarm) if alarm.key().0 <= next_ns => alarm.remove().wake(),
                _ => break,
            }
        }
        Ok(true)
    }

    fn runnable(&mut self, now_ns: u64) -> Vec<Runnable> {
        let network = self.common.network.borrow();
        let mut runnable = Vec::new();
        for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.paused_until_ns <= now_ns) {
            for (shard_at, shard) in node.shards.iter().enumerate().filter(|(_, shard)| !shard.stopped) {
                let ready =
                    !shard.asleep || network.has_work(shard.seat) || network.waiting_until_ns(shard.seat) <= now_ns;
                if ready {
                    runnable.push(Runnable::Shard(at, shard_at));
                }
            }
            if let Some(driver) = &node.inline {
                driver.look(&network, LATE_NS);
            }
        }
        for (at, task) in self.tasks.iter().enumerate() {
            if task.woken.0.load(Ordering::Relaxed) && self.nodes[task.node].paused_until_ns <= now_ns {
                runnable.push(Runnable::Task(at));
            }
        }
        for (at, task) in self.hostiles.iter().enumerate() {
            if task.woken.0.load(Ordering::Relaxed) {
                runnable.push(Runnable::Hostile(at));
            }
        }
        runnable
    }

    /// When something happens by itself.
    fn next_ns(&self) -> u64 {
        let network = self.common.network.borrow();
        let mut next_ns = network.next_event_ns();
        let now_ns = network.now_ns();
        for node in &self.nodes {
            if node.paused_until_ns > now_ns {
                next_ns = next_ns.min(node.paused_until_ns);
                continue;
            }
            for shard in node.shards.iter().filter(|shard| !shard.stopped) {
                next_ns = next_ns.min(network.waiting_until_ns(shard.seat));
            }
            next_ns = next_ns.min(node.inline.as_ref().map_or(u64::MAX, Driver::until_ns));
            next_ns = next_ns.min(node.returns_ns.unwrap_or(u64::MAX));
        }
        if !self.common.healed.get() {
            next_ns = next_ns.min(self.next_mischief_ns);
        }
        next_ns.min(self.common.alarms.borrow().first_key_value().map_or(u64::MAX, |(key, _)| key.0))
    }

    fn turn(&mut self, node: usize, at: usize) -> Result<(), Violation> {
        let idle = self.common.network.borrow_mut().strikes(Fault::IdleTurns, 16);
        let now_ns = self.now_ns();
        let SimShard { shard, port, seat, asleep, stopped } = &mut self.nodes[node].shards[at];
        if *asleep {
            *asleep = false;
            port.doorbell().awake();
            // A thread that was stopped finds out by itself how late it is.
            if now_ns <= self.common.network.borrow().waiting_until_ns(*seat).saturating_add(LATE_NS) {
                shard.waited();
            }
        }
        self.turns += 1;
        self.common.network.borrow_mut().begin_turn(*seat);
        let result = shard.turn(if idle { Wait::Spin } else { Wait::Until(u64::MAX) });
        let mut network = self.common.network.borrow_mut();
        match result {
            Ok(Turn::Stopped) => *stopped = true,
            Ok(_) if network.waiting_until_ns(*seat) > 0 => {
                *asleep = true;
                port.doorbell().prepare_sleep();
            }
            Ok(_) => {}
            Err(error) => {
                let text = format!("the backend of node {node} broke: {error}");
                return Err(Violation { invariant: "I16", text });
            }
        }
        network.note("turn", node as u64, at as u64);
        drop(network);
        self.observe(node)
    }

    fn poll(&mut self, at: usize) -> Result<(), Violation> {
        let node = self.tasks[at].node;
        let turns = |world: &World| world.nodes[node].inline.as_ref().map_or(0, |driver| driver.sockets.stats().turns);
        let before = turns(self);
        if self.tasks[at].poll() {
            self.ended(at);
        }
        // It may have driven its engine.
        let driven = turns(self) - before;
        self.turns += driven;
        if driven > 0 { self.observe(node) } else { Ok(()) }
    }

    fn ended(&mut self, at: usize) {
        let task = self.tasks.swap_remove(at);
        if task.kind == Kind::Close && !self.ending {
            self.nodes[task.node].closing.clear();
            let sockets = 0..self.nodes[task.node].sockets.len();
            for socket in sockets.filter(|socket| self.nodes[task.node].sockets[*socket].is_none()).collect::<Vec<_>>()
            {
                self.open(task.node, socket);
            }
        }
    }

    /// Reads what a node's sockets tell, before any application runs.
    fn observe(&mut self, node: usize) -> Result<(), Violation> {
        let mut journal = self.common.journal.borrow_mut();
        let plans = &self.plans[node].sockets;
        let node = &self.nodes[node];
        let closing = node.closing.iter().map(|(at, socket)| (*at, socket));
        let open = node.sockets.iter().enumerate().filter_map(|(at, socket)| Some((at, socket.as_ref()?)));
        for (at, SimSocket { socket, life }) in open.chain(closing) {
            while let Some(event) = socket.try_event() {
                if self.common.verbose {
                    eprintln!("{:>14} {life:?}: {event}", self.common.network.borrow().now_ns());
                }
                match event {
                    Event::Connected { identity, .. } => journal.connected(*life, identity)?,
                    Event::Disconnected { identity, reason, .. } => {
                        journal.disconnected(*life, identity)?;
                        let cancelled = matches!(&reason, DisconnectReason::Failed(text) if text.contains("ancel"));
                        if self.settled || cancelled {
                            let text = format!("{life:?} lost {identity} though all was well: {reason}");
                            return Err(Violation { invariant: "I12", text });
                        }
                        let network = self.common.network.borrow();
                        let silencers = [
                            Fault::LongDelay,
                            Fault::Stall,
                            Fault::PartitionBothWays,
                            Fault::PartitionOneWay,
                            Fault::Isolated,
                            Fault::HalfOpen,
                            Fault::PowerLoss,
                            Fault::Pause,
                        ];
                        let honest = journal.living(identity).is_some() && !journal.stolen.contains(&identity);
                        let silenced = silencers.iter().any(|&fault| network.faults.had(fault));
                        if reason == DisconnectReason::Silent && honest && !silenced {
                            let text = format!("{life:?} found {identity} silent, and nothing had silenced it");
                            return Err(Violation { invariant: "I12", text });
                        }
                    }
                    Event::Dropped { identity, messages, cause } => {
                        let record = journal.record(*life);
                        record.dropped += messages;
                        if matches!(cause, DropCause::Oldest | DropCause::Newest | DropCause::TooOld) {
                            let session = record.sessions.iter_mut().rev().find(|session| session.peer == identity);
                            if let Some(session) = session {
                                session.skipped += messages;
                            }
                            self.common.network.borrow_mut().faults.note(Fault::LagLimit);
                        }
                    }
                    Event::Expired { messages, .. } => {
                        self.common.network.borrow_mut().faults.note(Fault::ShortPatience);
                        journal.record(*life).expired += messages;
                    }
                    _ => {}
                }
            }
            if self.turns.is_multiple_of(8) {
                let stats = socket.stats();
                let (log_max, queue_max) = (plans[at].log_bytes(), plans[at].receive_bytes() + self.entry_bytes_max);
                if stats.log_bytes > log_max as u64 || stats.receive_bytes > queue_max as u64 {
                    let text = format!("{life:?} holds {} of log, {} received", stats.log_bytes, stats.receive_bytes);
                    return Err(Violation { invariant: "I9", text });
                }
                if stats.peers > plans[at].peers_max() as u64 {
                    let text = format!("{life:?} has {} peers, {} are allowed", stats.peers, plans[at].peers_max());
                    return Err(Violation { invariant: "I9", text });
                }
                if plans[at].delivery == DeliveryGuarantee::AtLeastOnce {
                    checks::acknowledged_were_taken(&journal, *life, &stats)?;
                }
            }
        }
        Ok(())
    }
}
