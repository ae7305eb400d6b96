//! Hosts, listeners and connections under a virtual clock.
//!
//! ```text
//!   write --> | arrived, unread |  on its way: arrivals (time, bytes, end or reset)  | <= window
//!             read <------------'
//! ```
//! Each end of a connection has one such pipe towards it. Bytes keep their order; [`Fault`] says what may happen to them.
//!
//! ```text
//!   world     what the world does: time, ways that are cut and healed, kills
//!   calls     what drivers ask, as of a system: listen, connect, accept, read, write, close, names
//!   places    addresses, and the paths of socket files
//!   travel    what is on its way, and what becomes of it: bytes, ends, resets, SYNs and their answers
//! ```

mod calls;
mod places;
mod travel;
mod world;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

use super::{Dice, Fault, Faults, Weather};
use crate::backend::Token;

pub(in crate::backend) use places::{address, place};

/// The network that all drivers of a run share.
pub(crate) type SharedNetwork = Rc<RefCell<Network>>;

/// A machine with an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Host(pub(crate) u8);

/// One driver's seat at the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BackendId(pub(crate) usize);

/// A listener or one end of a connection; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(pub(crate) u32);

/// An end of a connection on its way from one driver to another. When it is dropped on the way, the connection is closed.
#[derive(Debug)]
pub(crate) struct SimStream {
    pub(super) id: Id,
    pub(super) _alive: Arc<()>,
}

struct Seat {
    host: Host,
    ready: VecDeque<Id>,
    resolved: VecDeque<(Token, io::Result<Vec<SocketAddr>>)>,
    bell: Arc<Bell>,
    /// The driver found nothing to do and waits until then; 0: it does not wait.
    waiting_until_ns: u64,
    /// The driver has more to report.
    backlog: bool,
    down: bool,
}

/// The doorbell of a driver.
#[derive(Default)]
pub(crate) struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

enum Thing {
    Listener { address: SocketAddr, seat: BackendId, pending: VecDeque<Id>, queued: bool },
    End(Box<End>),
    Closed,
}

struct End {
    seat: BackendId,
    host: Host,
    remote: SocketAddr,
    twin: Option<Id>,
    pipe: Pipe,
    state: Phase,
    /// The owner has let go of it.
    closed: bool,
    /// The owner sends nothing more.
    shut: bool,
    error: Option<ErrorKind>,
    /// In the seat's list of ready ones.
    queued: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Connecting,
    Open,
    Failed(ErrorKind),
}

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// How many of them have arrived.
    readable: usize,
    arrivals: VecDeque<Arrival>,
    /// Nothing arrives before this.
    last_ns: u64,
    stalled_until_ns: u64,
    /// An `Arrive` event is under way.
    armed: bool,
    ended: bool,
    /// Nothing arrives any more, and nobody is told.
    dead: bool,
}

struct Arrival {
    at_ns: u64,
    mark: Mark,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mark {
    Bytes(usize),
    End,
    Reset,
}

enum Event {
    Arrive(Id),
    Knock {
        from: Id,
        to: SocketAddr,
    },
    Answer {
        to: Id,
        result: Result<Id, ErrorKind>,
    },
    Reset(Id),
    Ready(Id),
    Resolved {
        seat: BackendId,
        token: Token,
        result: io::Result<Vec<SocketAddr>>,
    },
    #[cfg_attr(not(all(target_os = "linux", feature = "uring")), allow(dead_code, reason = "only the simulated ring"))]
    Poke(BackendId),
}

/// See the file's header.
pub(crate) struct Network {
    now_ns: u64,
    pub(crate) dice: Dice,
    pub(crate) faults: Faults,
    weather: Weather,
    events: BTreeMap<(u64, u64), Event>,
    order: u64,
    things: Vec<Thing>,
    listeners: BTreeMap<SocketAddr, Id>,
    /// Socket files that there are, whether somebody listens there or not.
    files: BTreeSet<SocketAddr>,
    seats: Vec<Seat>,
    /// Which host's packets do not reach which other, and until when.
    cuts: BTreeMap<(Host, Host), u64>,
    /// Ends that no driver has at the moment.
    transit: Vec<(Id, std::sync::Weak<()>)>,
    next_port: u16,
    trace: u64,
    events_done: u64,
    verbose: bool,
}

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
/// What goes through a unix socket takes at most so long.
const LOCAL_NS: u64 = 20_000;

impl Network {
    /// An empty network.
    pub(crate) fn new(seed: u64, faults: Faults, weather: Weather) -> Network {
        Network {
            now_ns: S,
            dice: Dice::new(seed ^ 0x006e_6574),
            faults,
            weather,
            events: BTreeMap::new(),
            order: 0,
            things: Vec::new(),
            listeners: BTreeMap::new(),
            files: BTreeSet::new(),
            seats: Vec::new(),
            cuts: BTreeMap::new(),
            transit: Vec::new(),
            next_port: 30_000,
            trace: 0xcbf2_9ce4_8422_2325,
            events_done: 0,
            verbose: false,
        }
    }

    /// Virtual time, in nanoseconds.
    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// The hash of all that has happened.
    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    /// Network events so far.
    pub(crate) fn events_done(&self) -> u64 {
        self.events_done
    }

    /// Prints what happens.
    pub(crate) fn set_verbose(&mut self) {
        self.verbose = true;
    }

    /// Adds to the hash of all that has happened.
    pub(crate) fn note(&mut self, what: &'static str, a: u64, b: u64) {
        if self.verbose {
            eprintln!("{:>14} {what} {a} {b}", self.now_ns);
        }
        let name = what.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        for word in [self.now_ns, name, a, b] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
    }

    /// Whether a fault happens here.
    pub(crate) fn strikes(&mut self, fault: Fault, one_in: u64) -> bool {
        let strikes = self.faults.strikes(fault, one_in, &mut self.dice);
        if strikes {
            self.note("fault", fault as u64, 0);
        }
        strikes
    }

    /// A driver of a host sits down.
    pub(crate) fn sit(&mut self, host: Host) -> BackendId {
        self.seats.push(Seat {
            host,
            ready: VecDeque::new(),
            resolved: VecDeque::new(),
            bell: Arc::default(),
            waiting_until_ns: 0,
            backlog: false,
            down: false,
        });
        BackendId(self.seats.len() - 1)
    }

    fn insert(&mut self, thing: Thing) -> Id {
        self.things.push(thing);
        Id(self.things.len() as u32 - 1)
    }

    fn insert_end(&mut self, seat: BackendId, host: Host, remote: SocketAddr, state: Phase) -> Id {
        let pipe = Pipe::default();
        let (twin, closed, shut, error, queued) = (None, false, false, None, false);
        self.insert(Thing::End(Box::new(End { seat, host, remote, twin, pipe, state, closed, shut, error, queued })))
    }

    fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    fn end(&self, id: Id) -> Option<&End> {
        match &self.things[id.0 as usize] {
            Thing::End(end) => Some(end),
            _ => None,
        }
    }

    /// How long it takes from one end of a connection to the other.
    fn latency(&mut self, id: Id) -> u64 {
        if self.is_local(id) {
            return self.dice.pick(0, LOCAL_NS);
        }
        let (low, high) = self.weather.latency_ns;
        if self.strikes(Fault::LongDelay, 60) { self.dice.pick(100 * MS, 2 * S) } else { self.dice.pick(low, high) }
    }

    fn schedule(&mut self, at_ns: u64, event: Event) {
        self.order += 1;
        self.events.insert((at_ns.max(self.now_ns), self.order), event);
    }

    fn mark(&mut self, to: Id, mark: Mark) {
        let at_ns = self.now_ns + self.latency(to);
        self.mark_at(to, mark, at_ns);
    }

    /// Puts something on its way to an end, behind what is on its way already.
    fn mark_at(&mut self, to: Id, mark: Mark, at_ns: u64) {
        let Thing::End(end) = &mut self.things[to.0 as usize] else { return };
        let pipe = &mut end.pipe;
        if pipe.dead {
            return;
        }
        let at_ns = at_ns.max(pipe.last_ns);
        pipe.last_ns = at_ns;
        match (pipe.arrivals.back_mut(), mark) {
            (Some(Arrival { at_ns: last_ns, mark: Mark::Bytes(sum) }), Mark::Bytes(len)) if *last_ns == at_ns => {
                *sum += len;
            }
            _ => pipe.arrivals.push_back(Arrival { at_ns, mark }),
        }
        if !std::mem::replace(&mut pipe.armed, true) {
            self.schedule(at_ns, Event::Arrive(to));
        }
    }

    /// Tells the owner to look.
    fn notify(&mut self, id: Id) {
        let (seat, queued) = match &mut self.things[id.0 as usize] {
            Thing::Listener { seat, queued, .. } => (*seat, queued),
            Thing::End(end) if !end.closed => (end.seat, &mut end.queued),
            _ => return,
        };
        if !std::mem::replace(queued, true) {
            self.seats[seat.0].ready.push_back(id);
        }
    }

    /// How long packets between two hosts are held up.
    fn cut_until_ns(&self, from: Host, to: Host) -> Option<u64> {
        self.cuts.get(&(from, to)).copied().filter(|until_ns| *until_ns > self.now_ns)
    }
}
