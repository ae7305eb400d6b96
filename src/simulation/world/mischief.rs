//! What goes wrong by the timeline: ways that are cut, processes that pause or die, sockets that close; who comes from outside, good
//! or not; and the healing of it all.

use std::net::SocketAddr;

use super::{MS, S, STRANGERS, World};
use crate::backend::sim::{Dice, Fault};
use crate::protocol::Identity;
use crate::simulation::hostile::{self, Hostile};
use crate::simulation::node::{Kind, Task};
use crate::simulation::stock::{self, Stock};

impl World {
    pub(super) fn mischief(&mut self) -> Option<()> {
        let now_ns = self.now_ns();
        for at in 0..self.nodes.len() {
            if self.nodes[at].returns_ns.is_some_and(|returns_ns| returns_ns <= now_ns) {
                self.revive(at);
            }
        }
        if now_ns < self.next_mischief_ns {
            return Some(());
        }
        self.next_mischief_ns = now_ns + self.dice.pick(50 * MS, 3 * S);
        let strikes = |world: &mut World, fault, one_in| world.common.network.borrow_mut().strikes(fault, one_in);
        let (one, other) = (self.dice.index(self.nodes.len()), self.dice.index(self.nodes.len()));
        let (host, remote) = (self.plans[one].host, self.plans[other].host);
        let until_ns = now_ns + self.dice.magnitude(100 * MS, 30 * S);
        // A peer of theirs has been cut off meanwhile, and their others are ahead of that one.
        for node in std::mem::take(&mut self.cut_off) {
            if strikes(self, Fault::HostReset, 1) {
                self.reset_all(node);
            }
        }
        if one != other && strikes(self, Fault::PartitionBothWays, 4) {
            self.cut_off.extend([one, other]);
            self.common.network.borrow_mut().cut(host, remote, until_ns);
            self.common.network.borrow_mut().cut(remote, host, until_ns);
        }
        if strikes(self, Fault::Isolated, 8) {
            let until_ns = now_ns + self.dice.pick(S, 40 * S);
            for other in self.plans.iter().filter(|other| other.host != host).map(|other| other.host) {
                self.common.network.borrow_mut().cut(host, other, until_ns);
                self.common.network.borrow_mut().cut(other, host, until_ns);
            }
        }
        if one != other && strikes(self, Fault::PartitionOneWay, 4) {
            self.cut_off.push(one);
            self.common.network.borrow_mut().cut(host, remote, until_ns);
        }
        if strikes(self, Fault::HostReset, 4) {
            self.reset_all(one);
        }
        self.let_in_hostile();
        self.let_in_stock();
        let runs = self.nodes[one].returns_ns.is_none();
        if runs && strikes(self, Fault::Pause, 8) {
            self.nodes[one].paused_until_ns = now_ns + self.dice.magnitude(MS, 20 * S);
        }
        if runs && strikes(self, Fault::SocketClosed, 8) {
            let socket = self.dice.index(self.plans[one].sockets.len());
            self.close_socket(one, socket);
        }
        if runs && strikes(self, Fault::Kill, 10) {
            self.kill(one, false);
        } else if runs && strikes(self, Fault::PowerLoss, 10) {
            self.kill(one, true);
        }
        Some(())
    }

    fn reset_all(&mut self, node: usize) {
        for seat in self.nodes[node].seats() {
            self.common.network.borrow_mut().reset_all(seat);
        }
    }

    /// Somebody who means no good connects to a socket that listens.
    fn let_in_hostile(&mut self) {
        let kind = hostile::KINDS[self.dice.index(hostile::KINDS.len())];
        let node = self.dice.index(self.nodes.len());
        let socket = self.dice.index(self.plans[node].sockets.len());
        let Some(to) = self.plans[node].sockets[socket].place(self.plans[node].host) else { return };
        let other = self.dice.index(self.nodes.len());
        let which = self.dice.index(self.plans[other].sockets.len());
        let Some(victim) = self.nodes[other].identities.get(which).copied() else { return };
        if !self.common.network.borrow_mut().strikes(kind, 1) {
            return;
        }
        if kind == Fault::HostileStolenIdentity {
            self.common.journal.borrow_mut().stolen.push(victim);
        }
        let dice = Dice::new(self.dice.next());
        let hostile = Hostile { common: self.common.clone(), seat: self.hostile_seat, to, kind, victim, dice };
        self.hostiles.push(Task::new(node, Kind::SetUp, hostile.misbehave()));
    }

    /// A peer of other make connects to a socket that listens.
    fn let_in_stock(&mut self) {
        let node = self.dice.index(self.nodes.len());
        let socket = self.dice.index(self.plans[node].sockets.len());
        let plan = &self.plans[node].sockets[socket];
        let Some(to) = plan.place(self.plans[node].host) else { return };
        if !self.common.network.borrow_mut().strikes(Fault::StockPeer, 2) {
            return;
        }
        let drawn = |habit: &Fault| self.common.network.borrow_mut().strikes(*habit, 2);
        let habits: Vec<Fault> = stock::HABITS.iter().copied().filter(drawn).collect();
        self.identities += 1;
        let identity = Identity::from_seed(self.seed.wrapping_mul(1000).wrapping_add(self.identities));
        let life = self.common.journal.borrow_mut().born_elsewhere(identity, plan);
        let dice = Dice::new(self.dice.next());
        let stock = Stock { common: self.common.clone(), seat: self.hostile_seat, to, identity, life, dice, habits };
        self.hostiles.push(Task::new(node, Kind::SetUp, stock.live()));
    }

    pub(super) fn let_in_swallower(&mut self) {
        if self.common.network.borrow().faults.has(Fault::StockSwallows) {
            let identity = Identity::from_seed(self.dice.next());
            let swallow = stock::swallow(self.common.clone(), self.hostile_seat, swallower(), identity);
            self.hostiles.push(Task::new(0, Kind::SetUp, swallow));
        }
    }

    pub(super) fn heal(&mut self) {
        self.hostiles.clear();
        self.common.network.borrow_mut().kill(self.hostile_seat, false);
        self.common.network.borrow_mut().heal();
        self.common.healed.set(true);
        for at in 0..self.nodes.len() {
            self.nodes[at].paused_until_ns = 0;
            if self.nodes[at].returns_ns.is_some() {
                self.revive(at);
            }
        }
    }
}

/// Where somebody listens who drops all that comes.
pub(super) fn swallower() -> SocketAddr {
    SocketAddr::new(STRANGERS.ip(), 9000)
}
