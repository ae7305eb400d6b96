//! The world: it owns time, decides at random who runs next, and makes things go wrong by its own timeline. Shards that wait,
//! wait with their doorbell armed, exactly as a thread in the kernel would; only the world moves the clock, and only when nobody
//! can run.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::checks;
use super::hostile::{self, Hostile};
use super::node::{Actor, Common, Kind, Node, SimShard, SimSocket, Task};
use super::plan::{NodePlan, Plan};
use super::report::{Outcome, Setup, Violation};
use super::stock::{self, Stock};
use crate::backend::Backend;
use crate::backend::sim::{BackendId, Dice, Fault, Host, Network, SimBackend, open_ring};
use crate::engine::Engine;
use crate::protocol::Identity;
use crate::shard::{DeliveryGuarantee, DisconnectReason, DropCause, Event, LagLimit, Port, Shard, SlowPolicy, Turn};

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

/// Where all connections that are no node's come from.
const STRANGERS: Host = Host(200);
/// Steps without time passing after which somebody spins.
const SPIN_STEPS: u64 = 300_000;
/// Virtual time within which everybody has found everybody again, once nothing goes wrong any more: the receive timeout, the
/// longest connect, the longest delay between attempts, the holding of duplicates, and as much again.
const FOUND_NS: u64 = 90 * S;
/// Virtual time for what is left to be sent and the last round to arrive.
const DRAINED_NS: u64 = 900 * S;
/// Twice the longest receive timeout.
const QUIET_NS: u64 = 30 * S;
/// Requests that wait for a shard at most.
const COMMANDS_MAX: usize = 512;
/// Acknowledgements of a large backlog may take a while over small windows.
const QUIET_ROUNDS: usize = 20;
/// The largest slab and the largest message of a farewell: by so much at least a receive queue may exceed its limit.
const ENTRY_BYTES_MIN: usize = 60 * 1024;
/// Less than the shortest time between heartbeats: where nothing is in the way, no message waits for one.
const PROMPT_NS: u64 = 450 * MS;
const IDLE_NS: u64 = 20 * S;
/// Virtual time for closing: linger, drain, and a bit.
const CLOSED_NS: u64 = 10 * S;

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
        checks::fair_shares(&journal.borrow())?;
        self.accounts()?;
        self.end()
    }

    // ---- stepping ----

    fn now_ns(&self) -> u64 {
        self.common.now_ns()
    }

    fn broken<T>(&self, invariant: &'static str, text: String) -> Result<T, Violation> {
        Err(Violation { invariant, text })
    }

    /// Runs until a condition holds (true) or virtual time is up (false).
    fn run_until(&mut self, until_ns: u64, mut done: impl FnMut(&mut World) -> bool) -> Result<bool, Violation> {
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
                Runnable::Task(task) => self.poll(task),
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
            if now_ns <= self.common.network.borrow().waiting_until_ns(*seat).saturating_add(500 * MS) {
                shard.waited();
            }
        }
        self.turns += 1;
        self.common.network.borrow_mut().begin_turn(*seat);
        let result = shard.turn(!idle, u64::MAX);
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

    fn poll(&mut self, at: usize) {
        if !self.tasks[at].poll() {
            return;
        }
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

    // ---- nodes ----

    fn start(&mut self, at: usize) {
        let plan = self.plans[at].clone();
        let ports: Arc<[Arc<Port>]> = (0..plan.shards).map(|_| Arc::new(Port::new(COMMANDS_MAX, 64))).collect();
        let mut shards = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            let network = Rc::clone(&self.common.network);
            let made: std::io::Result<(Box<dyn Backend>, _)> = match plan.ring {
                true => open_ring(network, plan.host, plan.pool),
                false => {
                    SimBackend::new(network, plan.host, plan.pool).map(|(plain, seat)| (Box::new(plain) as _, seat))
                }
            };
            let Ok((backend, seat)) = made else { return self.common.fail(pool_refused()) };
            let shard = Shard::new(backend, Arc::clone(&ports), index as u32, self.dice.next());
            shards.push(SimShard { shard, port: Arc::clone(port), seat, asleep: false, stopped: false });
        }
        let node = &mut self.nodes[at];
        node.engine = Some(Engine::over(ports, 64, self.dice.next()));
        node.shards = shards;
        node.sockets = plan.sockets.iter().map(|_| None).collect();
        for socket in 0..plan.sockets.len() {
            self.open(at, socket);
        }
    }

    /// Opens a socket of a node that runs, and lets its applications begin.
    fn open(&mut self, at: usize, socket_at: usize) {
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
        let Some(engine) = &self.nodes[at].engine else { return };
        let Ok(socket) = plan.builder().identity(identity).engine(engine).build() else {
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
            Some(if plan.by_name { format!("host-{}:{port}", host.0) } else { format!("{}:{port}", host.ip()) })
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

    fn actor(&mut self, node: usize, socket: usize) -> Option<Actor> {
        let place = self.nodes[node].sockets[socket].as_ref()?;
        let plan = self.plans[node].sockets[socket].clone();
        let dice = Dice::new(self.dice.next());
        Some(Actor { common: self.common.clone(), socket: place.socket.clone(), life: place.life, plan, dice })
    }

    fn kill(&mut self, at: usize, power_loss: bool) {
        self.tasks.retain(|task| task.node != at);
        let node = &mut self.nodes[at];
        for shard in &node.shards {
            self.common.network.borrow_mut().kill(shard.seat, power_loss);
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

    fn revive(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.returns_ns = None;
        for shard in node.shards.drain(..) {
            self.common.network.borrow_mut().power_on(shard.seat);
        }
        self.start(at);
    }

    // ---- what goes wrong by the timeline ----

    fn mischief(&mut self) -> Option<()> {
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
        if one != other && strikes(self, Fault::PartitionBothWays, 4) {
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
            self.common.network.borrow_mut().cut(host, remote, until_ns);
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

    /// Somebody who means no good connects to a socket that listens.
    fn let_in_hostile(&mut self) {
        let kind = hostile::KINDS[self.dice.index(hostile::KINDS.len())];
        let node = self.dice.index(self.nodes.len());
        let socket = self.dice.index(self.plans[node].sockets.len());
        let Some(port) = self.plans[node].sockets[socket].port else { return };
        let other = self.dice.index(self.nodes.len());
        let which = self.dice.index(self.plans[other].sockets.len());
        let Some(victim) = self.nodes[other].identities.get(which).copied() else { return };
        if !self.common.network.borrow_mut().strikes(kind, 1) {
            return;
        }
        if kind == Fault::HostileStolenIdentity {
            self.common.journal.borrow_mut().stolen.push(victim);
        }
        let to = std::net::SocketAddr::new(self.plans[node].host.ip(), port);
        let dice = Dice::new(self.dice.next());
        let hostile = Hostile { common: self.common.clone(), seat: self.hostile_seat, to, kind, victim, dice };
        self.hostiles.push(Task::new(node, Kind::SetUp, hostile.misbehave()));
    }

    /// A peer of other make connects to a socket that listens.
    fn let_in_stock(&mut self) {
        let node = self.dice.index(self.nodes.len());
        let socket = self.dice.index(self.plans[node].sockets.len());
        let plan = &self.plans[node].sockets[socket];
        let Some(port) = plan.port else { return };
        if !self.common.network.borrow_mut().strikes(Fault::StockPeer, 2) {
            return;
        }
        let drawn = |habit: &Fault| self.common.network.borrow_mut().strikes(*habit, 2);
        let habits: Vec<Fault> = stock::HABITS.iter().copied().filter(drawn).collect();
        self.identities += 1;
        let identity = Identity::from_seed(self.seed.wrapping_mul(1000).wrapping_add(self.identities));
        let life = self.common.journal.borrow_mut().born_elsewhere(identity, plan);
        let to = std::net::SocketAddr::new(self.plans[node].host.ip(), port);
        let dice = Dice::new(self.dice.next());
        let stock = Stock { common: self.common.clone(), seat: self.hostile_seat, to, identity, life, dice, habits };
        self.hostiles.push(Task::new(node, Kind::SetUp, stock.live()));
    }

    fn let_in_swallower(&mut self) {
        if self.common.network.borrow().faults.has(Fault::StockSwallows) {
            let identity = Identity::from_seed(self.dice.next());
            let swallow = stock::swallow(self.common.clone(), self.hostile_seat, swallower(), identity);
            self.hostiles.push(Task::new(0, Kind::SetUp, swallow));
        }
    }

    fn close_socket(&mut self, node: usize, socket: usize) {
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

    fn heal(&mut self) {
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

    fn last_round(&mut self) {
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

    // ---- what is asked of the world as a whole ----

    fn has_task(&self, kind: Kind) -> bool {
        self.tasks.iter().any(|task| task.kind == kind)
    }

    fn is_connected(&mut self) -> bool {
        self.unconnected().is_empty()
    }

    /// Pairs that should be connected and are not.
    fn unconnected(&self) -> String {
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
    fn stuck(&self) -> String {
        let stuck = self.tasks.iter().filter(|task| task.kind == Kind::Send).map(|task| task.node);
        let mut text = String::new();
        for place in stuck.flat_map(|node| self.nodes[node].sockets.iter().flatten()) {
            text += &format!("{:?} {:?}; ", place.life, place.socket.stats());
        }
        text
    }

    /// I13: nothing but heartbeats stirs in an idle engine.
    fn idle_is_quiet(&self, turns: u64) -> Result<(), Violation> {
        let links: usize = self.plans.iter().flat_map(|plan| &plan.sockets).map(|socket| socket.dials.len()).sum();
        // Each end of each link beats every 0.5 s at the most; a beat takes a handful of turns on either side.
        let turns_max = 1000 + links as u64 * 2 * (IDLE_NS / (500 * MS)) * 24;
        if turns > turns_max {
            return self.broken("I13", format!("{turns} turns in {} s of silence, {turns_max} allowed", IDLE_NS / S));
        }
        Ok(())
    }

    /// What the counters of sockets must say at rest.
    fn accounts(&self) -> Result<(), Violation> {
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
    fn end(&mut self) -> Result<(), Violation> {
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
            for SimShard { shard, seat, .. } in std::mem::take(&mut self.nodes[at].shards) {
                let lent = shard.slabs_lent();
                // As a thread that ends does.
                drop(shard);
                let open = self.common.network.borrow().open_things(seat);
                if open > 0 || lent > 1 {
                    return self
                        .broken("I15", format!("node {at} has left {open} descriptors open and {lent} slabs lent"));
                }
            }
        }
        Ok(())
    }
}

/// Where somebody listens who drops all that comes.
fn swallower() -> std::net::SocketAddr {
    std::net::SocketAddr::new(STRANGERS.ip(), 9000)
}

fn pool_refused() -> Violation {
    Violation { invariant: "I15", text: "the pool could not be made".to_owned() }
}

/// Who can run.
enum Runnable {
    Shard(usize, usize),
    Task(usize),
    Hostile(usize),
}
