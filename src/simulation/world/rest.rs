//! What is asked of all together once nothing goes wrong any more: that everybody has found everybody, a last round of messages,
//! silence, accounts that balance, and an end that leaves nothing.

use std::time::Duration;

use super::{IDLE_NS, MS, S, World};
use crate::backend::sim::Fault;
use crate::protocol::Identity;
use crate::shard::{LagLimit, SlowPolicy};
use crate::simulation::checks;
use crate::simulation::node::{Kind, SimSocket, Task};
use crate::simulation::report::Violation;

/// Virtual time for closing: linger, drain, and a bit.
const CLOSED_NS: u64 = 10 * S;

impl World {
    pub(super) fn last_round(&mut self) {
        let messages = self.dice.pick(20, 60) as u32;
        // Nothing of it is to be skipped.
        let peers: Vec<Identity> = self.common.journal.borrow().lives.iter().map(|life| life.identity).collect();
        for (node, plan) in self.nodes.iter().zip(&self.plans) {
            for (socket, plan) in node.sockets.iter().zip(&plan.sockets) {
                let Some(socket) = socket.as_ref().filter(|_| plan.lag.is_some()) else { continue };
                for &peer in &peers {
                    let policy = SlowPolicy::Block { max_wait: Duration::from_secs(1) };
                    let _ = socket.socket.set_slow_policy(peer, policy, LagLimit::default());
                }
            }
        }
        for SimSocket { socket, life } in self.nodes.iter().flat_map(|node| node.sockets.iter().flatten()) {
            self.common.journal.borrow_mut().record(*life).resent_before = socket.stats().messages_resent;
        }
        for node in 0..self.nodes.len() {
            for socket in 0..self.nodes[node].sockets.len() {
                if let Some(actor) = self.actor(node, socket) {
                    self.tasks.push(Task::new(node, Kind::Send, actor.send_last_round(messages)));
                }
            }
        }
    }

    pub(super) fn has_task(&self, kind: Kind) -> bool {
        self.tasks.iter().any(|task| task.kind == kind)
    }

    pub(super) fn is_connected(&mut self) -> bool {
        self.unconnected().is_empty()
    }

    /// Pairs that should be connected and are not.
    pub(super) fn unconnected(&self) -> String {
        let mut missing = String::new();
        for (at, plan) in self.plans.iter().enumerate() {
            for (socket_at, socket) in plan.sockets.iter().enumerate() {
                for &(to, which) in &socket.dials {
                    let here = self.nodes[at].sockets.get(socket_at).and_then(Option::as_ref);
                    let there = self.nodes[to].sockets.get(which).and_then(Option::as_ref);
                    let (Some(here), Some(there)) = (here, there) else {
                        missing += &format!(" {at}-{to} (closed)");
                        continue;
                    };
                    let (a, b) = (here.socket.peers(), there.socket.peers());
                    if !a.contains(&there.socket.identity()) || !b.contains(&here.socket.identity()) {
                        missing += &format!(" {at}-{to} ({:?}, {:?})", here.life, there.life);
                    }
                }
            }
        }
        missing
    }

    /// Who still has not sent all, and what its socket says.
    pub(super) fn stuck(&self) -> String {
        let stuck = self.tasks.iter().filter(|task| task.kind == Kind::Send).map(|task| task.node);
        let mut text = String::new();
        for place in stuck.flat_map(|node| self.nodes[node].sockets.iter().flatten()) {
            text += &format!("{:?} {:?}; ", place.life, place.socket.stats());
        }
        text
    }

    /// I13: nothing but heartbeats stirs in an idle engine.
    pub(super) fn idle_is_quiet(&self, turns: u64) -> Result<(), Violation> {
        let links: usize = self.plans.iter().flat_map(|plan| &plan.sockets).map(|socket| socket.dials.len()).sum();
        // Each end of each link beats every 0.5 s at the most; a beat takes a handful of turns on either side.
        let turns_max = 1000 + links as u64 * 2 * (IDLE_NS / (500 * MS)) * 24;
        if turns > turns_max {
            return self.broken("I13", format!("{turns} turns in {} s of silence, {turns_max} allowed", IDLE_NS / S));
        }
        Ok(())
    }

    /// These options count as used where somebody was given something from before.
    pub(super) fn note_replayed(&self, (snapshot, retained): (u64, u64)) {
        let faults = &mut self.common.network.borrow_mut().faults;
        (0..snapshot).for_each(|_| faults.note(Fault::Snapshot));
        (0..retained).for_each(|_| faults.note(Fault::Retained));
    }

    /// What the counters of sockets must say at rest.
    pub(super) fn accounts(&self) -> Result<(), Violation> {
        let journal = self.common.journal.borrow();
        let narrow = self.common.network.borrow().faults.had(Fault::SmallWindow);
        for SimSocket { socket, life } in self.nodes.iter().flat_map(|node| node.sockets.iter().flatten()) {
            let (stats, record) = (socket.stats(), &journal.lives[life.0 as usize]);
            checks::accounts(*life, record, &stats)?;
            if let Some(peer) = socket.peer_stats().iter().find(|peer| peer.balance() != 0) {
                return self.broken("I10", format!("{life:?} does not know of {} messages: {peer:?}", peer.balance()));
            }
            let resent = stats.messages_resent - record.resent_before;
            if resent > 0 && !narrow && !record.expires {
                let text = format!("{life:?} had to send {resent} messages again though nothing was wrong: {stats:?}");
                return self.broken("I11", text);
            }
        }
        Ok(())
    }

    /// One socket sends some messages and closes; the others are there and get them.
    fn farewell(&mut self) -> Result<(), Violation> {
        let (node, messages) = (self.dice.index(self.nodes.len()), self.dice.pick(1, 20) as u32);
        let socket = self.dice.index(self.nodes[node].sockets.len());
        let Some(actor) = self.actor(node, socket) else { return Ok(()) };
        let narrow = self.common.network.borrow().faults.had(Fault::SmallWindow);
        let (life, nobody) = (actor.life, actor.socket.peers().is_empty());
        if narrow || nobody {
            return Ok(());
        }
        if let Some(closing) = self.nodes[node].sockets[socket].take() {
            self.nodes[node].closing.push((socket, closing));
        }
        self.common.journal.borrow_mut().record(life).over = true;
        self.tasks.push(Task::new(node, Kind::Close, actor.farewell(messages)));
        let until_ns = self.now_ns() + CLOSED_NS;
        let arrived = |world: &mut World| {
            !world.has_task(Kind::Close) && checks::farewell_missing(&world.common.journal.borrow()).is_none()
        };
        if !self.run_until(until_ns, arrived)? {
            let missing = checks::farewell_missing(&self.common.journal.borrow());
            return self.broken("I11", missing.unwrap_or_default());
        }
        Ok(())
    }

    /// Everything is closed in good order, and nothing is left.
    pub(super) fn end(&mut self) -> Result<(), Violation> {
        (self.ending, self.settled) = (true, false);
        self.farewell()?;
        for node in 0..self.nodes.len() {
            for socket in 0..self.nodes[node].sockets.len() {
                self.close_socket(node, socket);
            }
        }
        let until_ns = self.now_ns() + CLOSED_NS;
        self.nodes.iter_mut().for_each(|node| node.closing.clear());
        if !self.run_until(until_ns, |world| world.tasks.is_empty())? {
            let left: Vec<String> = self.tasks.iter().map(|task| format!("{:?} of {}", task.kind, task.node)).collect();
            return self.broken("I15", format!("not closed after {} s: {}", CLOSED_NS / S, left.join(", ")));
        }
        self.nodes.iter_mut().for_each(|node| node.engine = None);
        let stopped = |world: &mut World| world.nodes.iter().flat_map(|node| &node.shards).all(|shard| shard.stopped);
        if !self.run_until(until_ns, stopped)? {
            return self.broken("I15", "an engine does not stop".to_owned());
        }
        for at in 0..self.nodes.len() {
            let node = std::mem::take(&mut self.nodes[at]);
            let lent: Vec<usize> = node.shards.iter().map(|shard| shard.shard.slabs_lent()).collect();
            let lent = lent.into_iter().chain(node.inline.iter().map(|driver| driver.engine.shard().slabs_lent()));
            let (seats, lent) = (node.seats(), lent.max().unwrap_or(0));
            // As a thread that ends does.
            drop(node);
            let open: usize = seats.into_iter().map(|seat| self.common.network.borrow().open_things(seat)).sum();
            if open > 0 || lent > 1 {
                return self.broken("I15", format!("node {at} has left {open} descriptors open and {lent} slabs lent"));
            }
        }
        Ok(())
    }
}
