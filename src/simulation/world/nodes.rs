//! Processes and their sockets: how they start, how they end, in good order or not, and how they come back.

use std::rc::Rc;
use std::sync::Arc;

use super::mischief::swallower;
use super::{S, World};
use crate::backend::Backend;
use crate::backend::sim::{BackendId, Dice, Fault, SimBackend, open_ring};
use crate::engine::Engine;
use crate::engine::inline::InlineEngine;
use crate::protocol::Identity;
use crate::shard::{Port, Shard};
use crate::simulation::handle::{Driver, Handle};
use crate::simulation::node::{Actor, Kind, Node, SimShard, SimSocket, Task};
use crate::simulation::plan::NodePlan;
use crate::simulation::report::Violation;

/// Requests that wait for a shard at most.
const COMMANDS_MAX: usize = 512;

impl World {
    pub(super) fn start(&mut self, at: usize) {
        let plan = self.plans[at].clone();
        if plan.inline {
            let Ok((backend, seat)) = self.backend(&plan) else { return self.common.fail(pool_refused()) };
            self.common.network.borrow_mut().faults.note(Fault::InlineEngine);
            self.nodes[at].inline = Some(Driver::new(InlineEngine::over(backend, 64, self.dice.next()), seat));
            return self.open_all(at);
        }
        let ports: Arc<[Arc<Port>]> = (0..plan.shards).map(|_| Arc::new(Port::new(COMMANDS_MAX, 64))).collect();
        let mut shards = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            let Ok((backend, seat)) = self.backend(&plan) else { return self.common.fail(pool_refused()) };
            let shard = Shard::new(backend, Arc::clone(&ports), index as u32, self.dice.next());
            shards.push(SimShard { shard, port: Arc::clone(port), seat, asleep: false, stopped: false });
        }
        let node = &mut self.nodes[at];
        node.engine = Some(Engine::over(ports, 64, self.dice.next()));
        node.shards = shards;
        self.open_all(at);
    }

    fn backend(&self, plan: &NodePlan) -> std::io::Result<(Box<dyn Backend>, BackendId)> {
        let network = Rc::clone(&self.common.network);
        match plan.ring {
            true => open_ring(network, plan.host, plan.pool),
            false => SimBackend::new(network, plan.host, plan.pool).map(|(plain, seat)| (Box::new(plain) as _, seat)),
        }
    }

    fn open_all(&mut self, at: usize) {
        let count = self.plans[at].sockets.len();
        self.nodes[at].sockets = (0..count).map(|_| None).collect();
        for socket in 0..count {
            self.open(at, socket);
        }
    }

    /// Opens a socket of a node that runs, and lets its applications begin.
    pub(super) fn open(&mut self, at: usize, socket_at: usize) {
        let plan = self.plans[at].sockets[socket_at].clone();
        let same = [Fault::RestartSameIdentity, Fault::RestartNewIdentity].map(|fault| {
            let network = self.common.network.borrow();
            network.faults.had(fault)
        });
        let old = self.nodes[at].identities.get(socket_at).copied();
        let keep = match same {
            [true, true] => self.dice.once_in(2),
            [keep, _] => keep,
        };
        let identity = match old {
            Some(old) if keep => {
                self.common.network.borrow_mut().faults.note(Fault::RestartSameIdentity);
                old
            }
            old => {
                if old.is_some() {
                    self.common.network.borrow_mut().faults.note(Fault::RestartNewIdentity);
                }
                self.identities += 1;
                Identity::from_seed(self.seed.wrapping_mul(1000).wrapping_add(self.identities))
            }
        };
        let builder = plan.builder().identity(identity);
        let built = match &self.nodes[at] {
            Node { inline: Some(driver), .. } => {
                let built = builder.build_inline(&driver.sockets);
                built.map(|socket| Handle::Inline(Rc::new(socket), driver.clone(), self.common.clone()))
            }
            Node { engine: Some(engine), .. } => builder.engine(engine).build().map(Handle::Threads),
            _ => return,
        };
        let Ok(socket) = built else {
            return self.common.fail(Violation { invariant: "I15", text: "a socket could not be built".to_owned() });
        };
        let life = self.common.journal.borrow_mut().born(identity, &plan);
        let node = &mut self.nodes[at];
        node.identities.resize(node.identities.len().max(socket_at + 1), identity);
        node.identities[socket_at] = identity;
        node.sockets[socket_at] = Some(SimSocket { socket: socket.clone(), life });
        let endpoints = plan.dials.iter().filter_map(|&(to, which)| {
            let target = &self.plans[to];
            let port = target.sockets[which].port?;
            let host = target.host;
            Some(match &target.sockets[which].path {
                Some(path) => path.clone(),
                None if plan.by_name => format!("host-{}:{port}", host.0),
                None => format!("{}:{port}", host.ip()),
            })
        });
        let mut endpoints: Vec<String> = endpoints.collect();
        if self.common.network.borrow_mut().faults.has(Fault::StockSwallows) && self.dice.once_in(3) {
            endpoints.push(swallower().to_string());
        }
        let [a, b, c] = [(); 3].map(|()| self.actor(at, socket_at));
        if let (Some(a), Some(b), Some(c)) = (a, b, c) {
            self.tasks.push(Task::new(at, Kind::SetUp, a.set_up(endpoints)));
            self.tasks.push(Task::new(at, Kind::Send, b.send_all()));
            self.tasks.push(Task::new(at, Kind::Receive, c.receive_all()));
        }
    }

    pub(super) fn actor(&mut self, node: usize, socket: usize) -> Option<Actor> {
        let place = self.nodes[node].sockets[socket].as_ref()?;
        let plan = self.plans[node].sockets[socket].clone();
        let dice = Dice::new(self.dice.next());
        Some(Actor { common: self.common.clone(), socket: place.socket.clone(), life: place.life, plan, dice })
    }

    pub(super) fn kill(&mut self, at: usize, power_loss: bool) {
        self.tasks.retain(|task| task.node != at);
        let node = &mut self.nodes[at];
        for seat in node.seats() {
            self.common.network.borrow_mut().kill(seat, power_loss);
        }
        if let Some(driver) = &node.inline {
            driver.engine.shard().abandon();
        }
        for socket in node.sockets.drain(..).flatten() {
            self.common.journal.borrow_mut().record(socket.life).over = true;
        }
        node.closing.clear();
        node.engine = None;
        // Nobody answers any more; without this, what waits in the queues would keep itself alive.
        node.shards.iter_mut().for_each(|shard| {
            shard.shard.abandon();
            shard.stopped = true;
        });
        node.returns_ns = Some(self.common.now_ns() + self.dice.pick(0, 10 * S));
    }

    pub(super) fn revive(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.returns_ns = None;
        for seat in node.seats() {
            self.common.network.borrow_mut().power_on(seat);
        }
        (node.shards, node.inline) = Default::default();
        self.start(at);
    }

    pub(super) fn close_socket(&mut self, node: usize, socket: usize) {
        // One after the other: what comes after the end of one is for that one alone.
        if !self.nodes[node].closing.is_empty() && !self.ending {
            return;
        }
        let Some(actor) = self.actor(node, socket) else { return };
        if let Some(closing) = self.nodes[node].sockets[socket].take() {
            self.nodes[node].closing.push((socket, closing));
        }
        self.common.journal.borrow_mut().record(actor.life).over = true;
        self.tasks.push(Task::new(node, Kind::Close, actor.close()));
    }
}

fn pool_refused() -> Violation {
    Violation { invariant: "I15", text: "the pool could not be made".to_owned() }
}
