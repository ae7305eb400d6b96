//! One reactor and all it owns: links, listeners, dialers, timers, and its part of each socket. A shard is a plain struct that somebody
//! steps with [`Shard::turn`]: an engine thread, the application's own thread (inline), or a simulated world. It knows no thread and
//! takes time from its backend and randomness from a seed, so that the same inputs replay the same run.
//!
//! ```text
//!   commands, dirty sockets --> +-------+ --> backend: submit, wait, reap
//!                               | shard |
//!   completions, timers ------> +-------+ --> receive queues, events, room in the log
//! ```
//!
//! Here the five lowest layers meet: [`protocol`](crate::protocol), [`log`](crate::log), [`transport`](crate::transport),
//! [`queue`](crate::queue) and [`backend`](crate::backend) do not know each other.

mod accepts;
mod adopt;
mod close;
mod command;
mod config;
mod conflate;
mod control;
mod detour;
mod dialer;
mod event;
mod hub;
mod inbound;
mod lane;
mod late;
mod link;
mod listener;
mod logs;
mod mail;
mod marks;
mod outbound;
mod outlet;
mod peers;
mod policy;
mod receive;
mod retain;
mod shared;
mod slow;
mod stash;
mod stats;
mod tally;
mod timers;

use std::sync::Arc;

use bytes::Bytes;
use slab::Slab;

use crate::backend::{Backend, Completion, Outcome, Token};
use crate::log;
use crate::log::Cursor;
use crate::protocol::{Rng, Windows};

pub use close::{CloseReport, Undelivered};
pub(crate) use command::{Command, Reply, Target};
pub use config::{AckMode, DeliveryGuarantee, SendMode, UnknownName};
pub(crate) use config::{KIB, MIB, SocketConfig, nanos};
pub(crate) use control::Answer;
pub use event::{DisconnectReason, DropCause, Event, RejectReason};
pub(crate) use inbound::{Ack, Inbound, Message, Walker};
pub use late::{Replay, Retention};
pub(crate) use outlet::{LastValues, Outlet, Refusal};
pub(crate) use policy::{Flow, Own};
pub use policy::{LagLimit, SlowPolicy, Unkeyed};
pub use shared::SocketId;
pub(crate) use shared::{Ended, Phase, Port, SocketIds, SocketShared};
pub use stats::{Drops, Lag, PeerStats, RoundTrips, ShardStats, Stats};

use crate::sabotage::{Bug, planted};
use close::Closing;
use dialer::Dialer;
use hub::Hub;
use inbound::HandOver;
use link::Link;
use listener::Listener;
use stash::Stash;
use tally::TurnCount;
use timers::Timers;

/// A link of this shard: a place in its table and which tenant of that place. Stale keys are recognised by the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinkKey {
    slot: u32,
    generation: u32,
}

/// A listener or dialer of this shard, likewise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndKey {
    slot: u32,
    generation: u32,
}

/// Who waits for a deadline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Link(LinkKey),
    Dialer(EndKey),
    Listener(EndKey),
    /// Connections that a listener holds over its limit.
    Held(EndKey),
    /// Publishers wait for links of this socket.
    Stall(SocketId),
    Close(SocketId),
    Alarm(EndKey),
    /// A link that does not keep up.
    Slow(LinkKey),
    /// A socket's links with a limit of age.
    Age(SocketId),
    /// A link's unacknowledged messages.
    Resend(LinkKey),
    /// Messages kept for peers that are gone.
    Parked(SocketId),
}

/// Which operation of whom a token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    LinkRead,
    LinkRecv,
    LinkFill,
    LinkSend,
    Accept,
    Connect,
    Resolve,
    /// The resolution of a name to bind to.
    ResolveBind,
}

const OPS: [Op; 8] =
    [Op::LinkRead, Op::LinkRecv, Op::LinkFill, Op::LinkSend, Op::Accept, Op::Connect, Op::Resolve, Op::ResolveBind];
const SLOT_BITS: u32 = 28;

fn token(op: Op, slot: u32, generation: u32) -> Token {
    debug_assert!(slot < 1 << SLOT_BITS);
    Token(((op as u64) << 60) | (u64::from(slot) << 32) | u64::from(generation))
}

fn named(token: Token) -> (Op, u32, u32) {
    let slot = (token.0 >> 32) as u32 & ((1 << SLOT_BITS) - 1);
    (OPS[(token.0 >> 60) as usize % OPS.len()], slot, token.0 as u32)
}

/// This shard's part of one socket.
struct ShardSocket {
    shared: Arc<SocketShared>,
    /// Which shard this is.
    shard: usize,
    /// This shard's view of the socket's log.
    reader: log::Reader,
    /// How far that log was when the mail was last looked at: nothing beyond is sent before the mail is looked at again.
    visible: Cursor,
    /// What was sent by identity to peers of this shard, and how far it has been sorted.
    mail: log::Reader,
    mail_at: Cursor,
    /// Whether there was any when it was last looked at.
    has_mail: bool,
    /// AT_LEAST_ONCE: messages by identity whose peers are gone.
    parked: std::collections::HashMap<crate::protocol::Identity, mail::Parked>,
    /// Message ids that its peers have used.
    seen: Windows,
    /// Ids of messages that the application has not acknowledged yet.
    in_hand: receive::InHand,
    /// Links that have died with something still to be settled by the backend.
    unsettled: usize,
    /// Its live links; each knows its place in here.
    links: Vec<LinkKey>,
    by_identity: std::collections::HashMap<crate::protocol::Identity, LinkKey>,
    /// Newcomers with the identity of a live link, held until that has been probed.
    held: Vec<LinkKey>,
    /// All links, those that shake hands, drain or die included.
    links_open: usize,
    /// ROUNDROBIN: who gets what.
    hub: Option<Hub>,
    listeners: Vec<EndKey>,
    dialers: Vec<EndKey>,
    hand_over: HandOver,
    /// Runs that found the receive queue full.
    stash: Stash,
    /// Links whose reading stopped because of that.
    paused: Vec<LinkKey>,
    /// Something happened in this turn that the application may wait for.
    touched: bool,
    /// Log room was made in this turn.
    released: bool,
    /// Where the next round over the links begins.
    rotation: usize,
    /// What publishers wait for, and since when this shard knows of it.
    waiting: slow::Waiting,
    waiting_since_ns: u64,
    /// When a timer looks after whoever is in their way; 0 if none is set.
    stall_due_ns: u64,
    /// It was logged, once, that a peer cannot be conflated for want of keys.
    told_unkeyed: bool,
    /// When what is in the log came, if some link has a limit of age.
    marks: marks::Marks,
    closing: Option<Closing>,
}

/// What a turn does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It returns.
    No,
    /// It returns, and whoever called turns again at once: that pays for a closer look.
    Spin,
    /// It waits for something to happen, until then at most (ns; `u64::MAX`: for ever).
    Until(u64),
}

/// How a turn went, for whoever decides to spin, yield or sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Something was done.
    Busy,
    /// Nothing was.
    Idle,
    /// The shard was told to end, and has.
    Stopped,
}

/// See the module's documentation.
pub(crate) struct Shard {
    backend: Box<dyn Backend>,
    /// The ports of all shards of the engine; this one's is `ports[index]`.
    ports: Arc<[Arc<Port>]>,
    index: u32,
    /// Commands for other shards that found their queues full, in order.
    outgoing: std::collections::VecDeque<(Arc<Port>, Command)>,
    rng: Rng,
    now_ns: u64,
    sockets: Vec<Option<ShardSocket>>,
    links: Slab<Link>,
    listeners: Slab<Listener>,
    dialers: Slab<Dialer>,
    alarms: Slab<Reply<()>>,
    /// Counts tenants of all tables.
    generation: u32,
    timers: Timers<Timer>,
    /// Sockets whose application is to be told at the end of the turn.
    touched: Vec<SocketId>,
    /// Those that were told in the last turn.
    told: Vec<SocketId>,
    completions: Vec<Completion>,
    /// Vectors that sends use again.
    spare: Vec<Vec<Bytes>>,
    /// Told to end as soon as the last socket has.
    stopping: bool,
}

/// Completions of one backend turn are bounded by the backend; commands and dirty sockets by this.
const INTAKE_MAX: usize = 1024;
/// Message ids remembered of each peer, and of how many peers at most: what recognises a resend.
/// More than a link of ours has pending, so that all that comes again after a cut is recognised; 300 KiB at most for a peer.
const SEEN_IDS: usize = 8192;
const SEEN_PEERS_MAX: usize = 1024;
/// At least so many, however few may be connected: a stranger who comes and goes must not make a peer's messages fresh again.
const SEEN_PEERS_MIN: usize = 32;

impl Shard {
    pub(crate) fn new(backend: Box<dyn Backend>, ports: Arc<[Arc<Port>]>, index: u32, seed: u64) -> Shard {
        ports[index as usize].doorbell().set_waker(backend.waker());
        let now_ns = backend.now_ns();
        Shard {
            backend,
            ports,
            index,
            outgoing: std::collections::VecDeque::new(),
            rng: Rng::new(seed),
            now_ns,
            sockets: Vec::new(),
            links: Slab::new(),
            listeners: Slab::new(),
            dialers: Slab::new(),
            alarms: Slab::new(),
            generation: 0,
            timers: Timers::new(),
            touched: Vec::new(),
            told: Vec::new(),
            completions: Vec::with_capacity(1024),
            spare: Vec::new(),
            stopping: false,
        }
    }

    /// One pass, with one visit to the kernel, which waits as told if nothing is to be done.
    ///
    /// 1. Commands first: a socket that is opened here may have completions for it in this very turn.
    /// 2. Then sockets whose logs have grown: their sends go out with this turn's visit to the kernel.
    /// 3. The visit: submit, wait, reap. Before a wait the doorbell is armed and the queues are looked at once more.
    /// 4. Completions before timers, so that a link whose bytes have arrived is never judged silent.
    /// 5. Applications are told last, once per socket, when all that this turn brought is there to take.
    pub(crate) fn turn(&mut self, wait: Wait) -> std::io::Result<Turn> {
        self.told.clear();
        let mut work = self.pass_on();
        // A look costs less than two pops in vain.
        if !self.port().is_empty() {
            work += self.take_commands() + self.take_dirty();
        }
        if self.stopping && self.sockets.iter().all(Option::is_none) {
            self.abandon();
            return Ok(Turn::Stopped);
        }

        let (mut deadline_ns, mut armed) = (0, false);
        if let Wait::Until(limit_ns) = wait
            && work == 0
            && self.touched.is_empty()
        {
            self.port().doorbell().prepare_sleep();
            armed = true;
            if self.port().is_empty() && self.outgoing.is_empty() {
                deadline_ns = self.timers.next_ns().min(limit_ns);
            }
        }
        let mut completions = std::mem::take(&mut self.completions);
        let direct = wait == Wait::Spin && self.backend.recv_directly(&mut completions);
        let result = if direct { Ok(()) } else { self.backend.turn(deadline_ns, &mut completions) };
        let rung = armed && self.port().doorbell().awake();
        let heard = rung && completions.is_empty();

        self.now_ns = self.backend.now_ns();
        work += completions.len();
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        result?;

        work += self.fire_timers();
        self.tell_applications();
        self.count_turn(TurnCount { waited: deadline_ns != 0, worked: work > 0, rung, heard });
        Ok(if work > 0 || !self.told.is_empty() { Turn::Busy } else { Turn::Idle })
    }

    /// Sockets to which something happened in the last turn that their application may wait for, each at least once.
    pub(crate) fn told(&self) -> &[SocketId] {
        &self.told
    }

    /// When the shard wants to be stepped again though nothing arrives; `u64::MAX` if never.
    pub(crate) fn next_deadline_ns(&self) -> u64 {
        self.timers.next_ns()
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.backend.now_ns()
    }

    /// The time at which the last turn looked at its completions: who asks after each turn need not read the clock once more.
    pub(crate) fn turned_ns(&self) -> u64 {
        self.now_ns
    }

    /// What the end of a wait in the kernel does, for a backend that returns instead of waiting: time has passed.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn waited(&mut self) {
        self.now_ns = self.backend.now_ns();
    }

    /// Whether applications hold so much of what arrived that they should have the core before there is more: it would leave the
    /// caches before it is read, and be copied once slabs run short.
    pub(crate) fn is_ahead(&self) -> bool {
        let slabs = self.backend.slabs();
        slabs.free < slabs.total - slabs.total / 4
    }

    /// Receive slabs that somebody still holds.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn slabs_lent(&self) -> usize {
        let slabs = self.backend.slabs();
        slabs.total - slabs.free
    }

    /// Takes a command without the queue (inline).
    pub(crate) fn command(&mut self, command: Command) {
        self.now_ns = self.backend.now_ns();
        match command {
            Command::Open { shared, log, mail } => self.open(shared, log, mail),
            Command::Bind { socket, target, own, reply } => self.bind(socket, target, own, reply),
            Command::Connect { socket, target } => self.dial(socket, target),
            Command::Adopt(moving) => self.adopt(*moving),
            Command::Lost { dialer, error, rejected } => self.dial_later(dialer, &error, rejected),
            Command::Unbind { socket, target, reply } => self.unbind(socket, &target, reply),
            Command::DisconnectFrom { socket, target, reply } => self.disconnect_from(socket, &target, reply),
            Command::Disconnect { socket, identity, reply } => self.disconnect(socket, identity, reply),
            Command::Release { socket, shard, dialer, done } => self.release(socket, shard, dialer, &done),
            Command::Flow { socket, identity } => self.reflow(socket, identity),
            Command::Alarm { after_ns, reply } => self.set_alarm(after_ns, reply),
            Command::Close { socket, linger_ns, reply } => self.close_socket(socket, linger_ns, reply),
            Command::Stop => self.stopping = true,
            #[cfg(test)]
            Command::Panic => panic!("asked to by a test"),
        }
    }

    fn port(&self) -> &Port {
        &self.ports[self.index as usize]
    }

    /// Hands a command to another shard; never waits for it.
    fn pass(&mut self, port: Arc<Port>, command: Command) {
        self.outgoing.push_back((port, command));
        self.pass_on();
    }

    /// Bounded by what links and applications have caused: each has one command on its way at a time.
    fn pass_on(&mut self) -> usize {
        let mut passed = 0;
        while let Some((port, command)) = self.outgoing.pop_front() {
            if let Some(command) = port.offer(command) {
                self.outgoing.push_front((port, command));
                break;
            }
            passed += 1;
        }
        passed
    }

    fn take_commands(&mut self) -> usize {
        for n in 0..INTAKE_MAX {
            match self.port().take() {
                Some(command) => self.command(command),
                None => return n,
            }
        }
        INTAKE_MAX
    }

    fn take_dirty(&mut self) -> usize {
        for n in 0..INTAKE_MAX {
            match self.port().dirty.pop() {
                Some(socket) => self.flush(socket),
                None => return n,
            }
        }
        INTAKE_MAX
    }

    fn open(&mut self, shared: Arc<SocketShared>, mut reader: log::Reader, mut mail: log::Reader) {
        let at = shared.id.index();
        if self.sockets.len() <= at {
            self.sockets.resize_with(at + 1, || None);
        }
        let has_hub = shared.config.send_mode == SendMode::RoundRobin && shared.home() == self.index as usize;
        let hub = has_hub.then(|| Hub::new(reader.join()));
        let seen = Windows::new(SEEN_IDS, shared.config.peers_max.clamp(SEEN_PEERS_MIN, SEEN_PEERS_MAX));
        let mail_at = mail.join();
        self.sockets[at] = Some(ShardSocket {
            visible: reader.tail(),
            shard: self.index as usize,
            shared,
            reader,
            mail,
            mail_at,
            has_mail: false,
            parked: std::collections::HashMap::new(),
            seen,
            in_hand: receive::InHand::default(),
            unsettled: 0,
            links: Vec::new(),
            by_identity: std::collections::HashMap::new(),
            held: Vec::new(),
            links_open: 0,
            hub,
            listeners: Vec::new(),
            dialers: Vec::new(),
            hand_over: HandOver::default(),
            stash: Stash::default(),
            paused: Vec::new(),
            touched: false,
            released: false,
            rotation: 0,
            waiting: slow::Waiting::No,
            waiting_since_ns: 0,
            stall_due_ns: 0,
            told_unkeyed: false,
            marks: marks::Marks::default(),
            closing: None,
        });
    }

    fn socket(&mut self, id: SocketId) -> Option<&mut ShardSocket> {
        self.sockets.get_mut(id.index())?.as_mut()
    }

    fn generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    fn complete(&mut self, completion: Completion) {
        let (op, slot, generation) = named(completion.token);
        let link = LinkKey { slot, generation };
        let end = EndKey { slot, generation };
        match (op, completion.outcome) {
            (Op::LinkRecv, Outcome::Received(lease)) => self.received(link, lease),
            (Op::LinkSend, Outcome::Sent { slices, bytes, error }) => self.sent(link, slices, bytes, error),
            (Op::LinkRecv, Outcome::RecvEnded(result)) => self.recv_ended(link, result),
            (Op::LinkFill, Outcome::Filled { buffer, result }) => self.filled(link, buffer, result),
            (Op::LinkRead, Outcome::Read(result)) => self.shaken(link, result),
            (Op::Accept, Outcome::Accepted { conn, peer }) => self.accepted(end, conn, peer),
            (Op::Accept, Outcome::AcceptEnded(error)) => self.accept_ended(end, error),
            (Op::Connect, Outcome::Connected(result)) => self.connected(end, result),
            (Op::Resolve, Outcome::Resolved(result)) => self.resolved(end, result),
            (Op::ResolveBind, Outcome::Resolved(result)) => self.bind_resolved(end, result),
            (op, outcome) => debug_assert!(false, "{op:?} cannot end with {outcome:?}"),
        }
    }

    fn fire_timers(&mut self) -> usize {
        let mut fired = 0;
        while let Some(timer) = self.timers.due(self.now_ns) {
            fired += 1;
            match timer {
                Timer::Link(key) => self.link_due(key),
                Timer::Dialer(key) => self.dialer_due(key),
                Timer::Listener(key) => self.listener_due(key),
                Timer::Held(key) => self.held_due(key),
                Timer::Stall(socket) => self.stall_due(socket),
                Timer::Close(socket) => self.close_due(socket),
                Timer::Alarm(key) => self.alarm_due(key),
                Timer::Slow(key) => self.slow_due(key),
                Timer::Age(socket) => self.age_due(socket),
                Timer::Resend(key) => self.resend_due(key),
                Timer::Parked(socket) => self.parked_due(socket),
            }
        }
        fired
    }

    fn set_alarm(&mut self, after_ns: u64, reply: Reply<()>) {
        let key = EndKey { slot: self.alarms.insert(reply) as u32, generation: 0 };
        self.timers.set(self.now_ns.saturating_add(after_ns).min(u64::MAX - 1), Timer::Alarm(key));
    }

    fn alarm_due(&mut self, key: EndKey) {
        if let Some(reply) = self.alarms.try_remove(key.slot as usize) {
            reply.answer(());
        }
    }

    /// Notes that something happened to a socket that its application may wait for.
    fn touch(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut)
            && !std::mem::replace(&mut socket.touched, true)
        {
            self.touched.push(id);
        }
    }

    fn tell_applications(&mut self) {
        while let Some(id) = self.touched.pop() {
            self.told.push(id);
            let Some(socket) = self.socket(id) else { continue };
            socket.touched = false;
            if std::mem::take(&mut socket.released) && !planted(Bug::NoRoomNotice) {
                socket.shared.log.give_back();
                socket.shared.room.notify(usize::MAX);
            }
            if socket.closing.is_some() {
                self.check_closing(id);
            }
        }
    }

    /// Ends everything at once: what was not drained is lost to this engine's sockets, which learn that it stopped.
    pub(crate) fn abandon(&mut self) {
        for socket in self.sockets.iter_mut().filter_map(Option::take) {
            if let Some(closing) = socket.closing {
                closing.answer(&socket.shared);
            }
            socket.shared.enter_phase(Phase::EngineStopped);
        }
        self.port().end();
    }
}
