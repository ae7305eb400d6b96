//! Hosts, listeners and connections under a virtual clock.
//!
//! ```text
//!   write --> | arrived, unread |  on its way: arrivals (time, bytes, end or reset)  | <= window
//!             read <------------'
//! ```
//! Each end of a connection has one such pipe towards it. Bytes keep their order; [`Fault`] says what may happen to them.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use super::{Dice, Fault, Faults, Weather};
use crate::backend::Token;

/// The network that all drivers of a run share.
pub(crate) type SharedNetwork = Rc<RefCell<Network>>;

/// A machine with an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Host(pub(crate) u8);

impl Host {
    /// Its address.
    pub(crate) fn ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, self.0, 1))
    }

    fn of(address: SocketAddr) -> Host {
        match address.ip() {
            IpAddr::V4(ip) => Host(ip.octets()[2]),
            IpAddr::V6(_) => Host(u8::MAX),
        }
    }
}

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
/// A SYN that finds no way is not sent again after this.
const SYN_GIVES_UP_NS: u64 = 120 * S;
/// As Unix numbers them.
const EMFILE: i32 = 24;
const ENOMEM: i32 = 12;

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

    // ---- what the world asks ----

    /// When the next thing happens by itself; `u64::MAX` if nothing will.
    pub(crate) fn next_event_ns(&self) -> u64 {
        self.events.first_key_value().map_or(u64::MAX, |((at_ns, _), _)| *at_ns)
    }

    /// Moves the clock, and lets happen what is due.
    pub(crate) fn advance(&mut self, to_ns: u64) {
        self.now_ns = self.now_ns.max(to_ns);
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now_ns {
                break;
            }
            let event = entry.remove();
            self.events_done += 1;
            self.happen(event);
        }
    }

    /// Closes the ends that were dropped on the way from one driver to another.
    pub(crate) fn close_dropped(&mut self) {
        let dropped: Vec<Id> =
            self.transit.iter().filter(|(_, alive)| alive.strong_count() == 0).map(|(id, _)| *id).collect();
        self.transit.retain(|(_, alive)| alive.strong_count() > 0);
        dropped.into_iter().for_each(|id| self.close(id));
    }

    /// A driver gives an end away.
    pub(crate) fn give(&mut self, id: Id) -> SimStream {
        let alive = Arc::new(());
        self.transit.push((id, Arc::downgrade(&alive)));
        SimStream { id, _alive: alive }
    }

    /// Another one takes it, and learns who is at the other end.
    pub(crate) fn take(&mut self, seat: BackendId, stream: &SimStream) -> (Id, SocketAddr) {
        self.transit.retain(|(id, _)| *id != stream.id);
        let mut remote = SocketAddr::new(Host(0).ip(), 0);
        if let Thing::End(end) = &mut self.things[stream.id.0 as usize] {
            (end.seat, end.queued, remote) = (seat, false, end.remote);
        }
        self.note("moved", u64::from(stream.id.0), seat.0 as u64);
        (stream.id, remote)
    }

    /// Whether a driver has something to do now.
    pub(crate) fn has_work(&self, seat: BackendId) -> bool {
        let seat = &self.seats[seat.0];
        seat.backlog || !seat.ready.is_empty() || !seat.resolved.is_empty() || seat.bell.0.load(Ordering::SeqCst)
    }

    /// Until when a driver waits; 0 if it does not.
    pub(crate) fn waiting_until_ns(&self, seat: BackendId) -> u64 {
        self.seats[seat.0].waiting_until_ns
    }

    /// Listeners and connections that a driver holds.
    pub(crate) fn open_things(&self, seat: BackendId) -> usize {
        let open = |thing: &&Thing| match thing {
            Thing::Listener { seat: owner, .. } => *owner == seat,
            Thing::End(end) => end.seat == seat && !end.closed,
            Thing::Closed => false,
        };
        self.things.iter().filter(open).count()
    }

    /// Packets from one host do not reach another until then.
    pub(crate) fn cut(&mut self, from: Host, to: Host, until_ns: u64) {
        self.note("cut", u64::from(from.0) << 8 | u64::from(to.0), until_ns);
        self.cuts.insert((from, to), until_ns);
    }

    /// All ways are open again, and what was stalled goes on.
    pub(crate) fn heal(&mut self) {
        self.note("heal", 0, 0);
        self.faults.heal();
        self.cuts.clear();
        for at in 0..self.things.len() {
            if let Thing::End(end) = &mut self.things[at] {
                end.pipe.stalled_until_ns = 0;
                let (id, now_ns) = (Id(at as u32), self.now_ns);
                self.schedule(now_ns, Event::Arrive(id));
            }
        }
    }

    /// A process ends without a word: its peers get resets, or (a power loss) nothing until the host is up again.
    pub(crate) fn kill(&mut self, seat: BackendId, power_loss: bool) {
        self.note("kill", seat.0 as u64, u64::from(power_loss));
        self.seats[seat.0].down = power_loss;
        for at in 0..self.things.len() {
            match &mut self.things[at] {
                Thing::Listener { address, seat: owner, .. } if *owner == seat => {
                    let address = *address;
                    self.listeners.remove(&address);
                    self.things[at] = Thing::Closed;
                }
                Thing::End(end) if end.seat == seat && !end.closed => {
                    end.closed = true;
                    let twin = end.twin;
                    if let (false, Some(twin)) = (power_loss, twin) {
                        self.mark(twin, Mark::Reset);
                    }
                }
                _ => {}
            }
        }
    }

    /// A host is up again: what still arrives for its old connections is answered with resets.
    pub(crate) fn power_on(&mut self, seat: BackendId) {
        self.seats[seat.0].down = false;
    }

    // ---- what drivers ask ----

    pub(super) fn bell(&self, seat: BackendId) -> Waker {
        Waker::from(Arc::clone(&self.seats[seat.0].bell))
    }

    /// Takes a ring of the doorbell.
    pub(crate) fn take_bell(&mut self, seat: BackendId) -> bool {
        self.seats[seat.0].bell.0.swap(false, Ordering::SeqCst)
    }

    #[cfg_attr(not(all(target_os = "linux", feature = "uring")), allow(dead_code, reason = "only the simulated ring"))]
    pub(crate) fn waker(&self, seat: BackendId) -> Waker {
        self.bell(seat)
    }

    /// The next listener or connection where something has changed.
    pub(crate) fn next_ready(&mut self, seat: BackendId) -> Option<Id> {
        let id = self.seats[seat.0].ready.pop_front()?;
        match &mut self.things[id.0 as usize] {
            // It has moved since.
            Thing::End(end) if end.seat != seat => {}
            Thing::Listener { queued, .. } => *queued = false,
            Thing::End(end) => end.queued = false,
            Thing::Closed => {}
        }
        Some(id)
    }

    pub(crate) fn next_resolved(&mut self, seat: BackendId) -> Option<(Token, io::Result<Vec<SocketAddr>>)> {
        self.seats[seat.0].resolved.pop_front()
    }

    #[cfg_attr(not(all(target_os = "linux", feature = "uring")), allow(dead_code, reason = "only the simulated ring"))]
    pub(crate) fn has_resolved(&self, seat: BackendId) -> bool {
        !self.seats[seat.0].resolved.is_empty()
    }

    /// How a driver's turn ended.
    pub(crate) fn turned(&mut self, seat: BackendId, waiting_until_ns: u64, backlog: bool) {
        let seat = &mut self.seats[seat.0];
        (seat.waiting_until_ns, seat.backlog) = (waiting_until_ns, backlog);
    }

    /// A driver's turn begins: it does not wait.
    pub(crate) fn begin_turn(&mut self, seat: BackendId) {
        self.seats[seat.0].waiting_until_ns = 0;
    }

    /// Makes a driver look again at some time.
    #[cfg_attr(not(all(target_os = "linux", feature = "uring")), allow(dead_code, reason = "only the simulated ring"))]
    pub(crate) fn poke(&mut self, seat: BackendId, at_ns: u64) {
        self.schedule(at_ns, Event::Poke(seat));
    }

    pub(crate) fn listen(&mut self, seat: BackendId, address: SocketAddr) -> io::Result<(Id, SocketAddr)> {
        let host = self.seats[seat.0].host;
        let port = if address.port() == 0 { self.port() } else { address.port() };
        let address = SocketAddr::new(host.ip(), port);
        if self.listeners.contains_key(&address) {
            return Err(ErrorKind::AddrInUse.into());
        }
        let id = self.insert(Thing::Listener { address, seat, pending: VecDeque::new(), queued: false });
        self.listeners.insert(address, id);
        self.note("listen", u64::from(id.0), u64::from(port));
        Ok((id, address))
    }

    pub(crate) fn connect(&mut self, seat: BackendId, to: SocketAddr) -> io::Result<Id> {
        for (fault, errno) in [(Fault::ConnectEmfile, EMFILE), (Fault::ConnectEnomem, ENOMEM)] {
            if self.strikes(fault, 8) {
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        let host = self.seats[seat.0].host;
        let id = self.insert_end(seat, host, to, Phase::Connecting);
        self.note("connect", u64::from(id.0), u64::from(to.port()));
        let at_ns = self.now_ns + self.latency();
        self.schedule(at_ns, Event::Knock { from: id, to });
        Ok(id)
    }

    /// `None` while the connection is being made.
    pub(crate) fn connected(&self, id: Id) -> Option<io::Result<SocketAddr>> {
        let end = self.end(id)?;
        match end.state {
            Phase::Connecting => None,
            Phase::Open => Some(Ok(end.remote)),
            Phase::Failed(kind) => Some(Err(kind.into())),
        }
    }

    /// A connection that came in.
    pub(crate) fn accept(&mut self, id: Id) -> io::Result<(Id, SocketAddr)> {
        let refusals = [(Fault::AcceptEmfile, EMFILE), (Fault::AcceptEnomem, ENOMEM)];
        let refusal = refusals.into_iter().find(|(fault, _)| self.strikes(*fault, 8));
        let Thing::Listener { pending, .. } = &mut self.things[id.0 as usize] else {
            return Err(ErrorKind::NotConnected.into());
        };
        if pending.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        if let Some((_, errno)) = refusal {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let Some(conn) = pending.pop_front() else { return Err(ErrorKind::WouldBlock.into()) };
        if self.strikes(Fault::AcceptAborted, 8) {
            self.reset_both(conn);
            self.close(conn);
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let remote = self.end(conn).map(|end| end.remote).ok_or(ErrorKind::ConnectionAborted)?;
        self.note("accept", u64::from(id.0), u64::from(conn.0));
        Ok((conn, remote))
    }

    /// Reads what has arrived; `Ok(0)` is the end of the stream.
    pub(crate) fn read(&mut self, id: Id, into: &mut [u8]) -> io::Result<usize> {
        let Some(end) = self.end(id).filter(|end| !end.closed) else { return Err(ErrorKind::NotConnected.into()) };
        let readable = end.pipe.readable;
        if readable == 0 {
            return match (end.state, end.error, end.pipe.ended) {
                (Phase::Connecting | Phase::Failed(_), ..) => Err(ErrorKind::NotConnected.into()),
                (_, Some(kind), _) => Err(kind.into()),
                (_, None, true) => Ok(0),
                (_, None, false) => Err(ErrorKind::WouldBlock.into()),
            };
        }
        let mut len = readable.min(into.len());
        if len > 1 && self.strikes(Fault::ShortRead, 3) {
            len = self.dice.magnitude(1, len as u64) as usize;
        }
        let latency_ns = self.latency();
        let Thing::End(end) = &mut self.things[id.0 as usize] else { return Err(ErrorKind::NotConnected.into()) };
        let (front, back) = end.pipe.bytes.as_slices();
        let first = len.min(front.len());
        into[..first].copy_from_slice(&front[..first]);
        into[first..len].copy_from_slice(&back[..len - first]);
        end.pipe.bytes.drain(..len);
        end.pipe.readable -= len;
        let twin = end.twin;
        if let Some(twin) = twin {
            let at_ns = self.now_ns + latency_ns;
            self.schedule(at_ns, Event::Ready(twin));
        }
        self.note("read", u64::from(id.0), len as u64);
        Ok(len)
    }

    /// Bytes that could be read now, or whether reading would say something else than "not now".
    pub(crate) fn is_readable(&self, id: Id) -> bool {
        self.end(id).is_none_or(|end| end.pipe.readable > 0 || end.error.is_some() || end.pipe.ended)
    }

    /// Hands bytes over, as many as there is room for.
    pub(crate) fn write<'a>(&mut self, id: Id, parts: impl Iterator<Item = &'a [u8]> + Clone) -> io::Result<usize> {
        let Some(end) = self.end(id).filter(|end| !end.closed) else { return Err(ErrorKind::NotConnected.into()) };
        if let Some(kind) = end.error {
            return Err(kind.into());
        }
        if end.state != Phase::Open {
            return Err(ErrorKind::NotConnected.into());
        }
        if end.shut {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let total: usize = parts.clone().map(<[u8]>::len).sum();
        let latency_ns = self.latency();
        let at_ns = self.now_ns + latency_ns;
        let Some(twin) = self.end(id).and_then(|end| end.twin) else {
            // Nobody is there any more: it seems to go out, and the answer is a reset.
            self.schedule(at_ns, Event::Reset(id));
            return Ok(total);
        };
        let window = self.weather.window_bytes;
        let Some(peer) = self.end(twin) else { return Ok(total) };
        let mut len = total.min(window.saturating_sub(peer.pipe.bytes.len()));
        if len == 0 && total > 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        if len > 1 && self.strikes(Fault::ShortWrite, 3) {
            len = self.dice.magnitude(1, len as u64) as usize;
        }
        if len > 0 {
            if let Thing::End(peer) = &mut self.things[twin.0 as usize] {
                let mut left = len;
                for part in parts {
                    let piece = &part[..left.min(part.len())];
                    peer.pipe.bytes.extend(piece);
                    left -= piece.len();
                }
            }
            self.mark_at(twin, Mark::Bytes(len), at_ns);
            self.note("write", u64::from(id.0), len as u64);
        }
        Ok(len)
    }

    /// Nothing more is sent.
    pub(crate) fn shutdown(&mut self, id: Id) {
        if let Thing::End(end) = &mut self.things[id.0 as usize]
            && !std::mem::replace(&mut end.shut, true)
            && let Some(twin) = end.twin
        {
            self.mark(twin, Mark::End);
        }
    }

    /// The owner lets go of a listener or of an end. Bytes that nobody read make it a reset.
    pub(crate) fn close(&mut self, id: Id) {
        match &mut self.things[id.0 as usize] {
            Thing::Listener { address, pending, .. } => {
                let (address, pending) = (*address, std::mem::take(pending));
                self.listeners.remove(&address);
                self.things[id.0 as usize] = Thing::Closed;
                for conn in pending {
                    self.close(conn);
                }
            }
            Thing::End(end) => {
                if std::mem::replace(&mut end.closed, true) {
                    return;
                }
                let (unread, shut) = (end.pipe.readable > 0, std::mem::replace(&mut end.shut, true));
                let twin = end.twin;
                if let Some(twin) = twin {
                    match (unread, shut) {
                        (true, _) => self.mark(twin, Mark::Reset),
                        (false, false) => self.mark(twin, Mark::End),
                        (false, true) => {}
                    }
                }
            }
            Thing::Closed => return,
        }
        self.note("close", u64::from(id.0), 0);
    }

    pub(crate) fn resolve(&mut self, seat: BackendId, host: &str, port: u16, token: Token) {
        let number = host.strip_prefix("host-").and_then(|rest| rest.parse::<u8>().ok());
        let result = match number {
            _ if self.strikes(Fault::ResolveFails, 4) => Err(ErrorKind::NotFound.into()),
            None => Err(ErrorKind::NotFound.into()),
            Some(number) => {
                let mut addresses = vec![SocketAddr::new(Host(number).ip(), port)];
                if self.strikes(Fault::ResolveStale, 4) {
                    // Either an empty house or an empty street.
                    let ghost = if self.dice.once_in(2) { Host(number) } else { Host(250) };
                    addresses.insert(0, SocketAddr::new(ghost.ip(), 9));
                }
                Ok(addresses)
            }
        };
        let at_ns = self.now_ns + self.dice.pick(0, 200 * MS);
        self.schedule(at_ns, Event::Resolved { seat, token, result });
    }

    // ---- inside ----

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

    fn latency(&mut self) -> u64 {
        let (low, high) = self.weather.latency_ns;
        if self.strikes(Fault::LongDelay, 60) { self.dice.pick(100 * MS, 2 * S) } else { self.dice.pick(low, high) }
    }

    fn schedule(&mut self, at_ns: u64, event: Event) {
        self.order += 1;
        self.events.insert((at_ns.max(self.now_ns), self.order), event);
    }

    fn mark(&mut self, to: Id, mark: Mark) {
        let at_ns = self.now_ns + self.latency();
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

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(id) => self.arrive(id),
            Event::Knock { from, to } => self.knock(from, to),
            Event::Answer { to, result } => self.answer(to, result),
            Event::Reset(id) => self.reset(id),
            Event::Ready(id) => self.notify(id),
            Event::Resolved { seat, token, result } => self.seats[seat.0].resolved.push_back((token, result)),
            Event::Poke(seat) => self.seats[seat.0].backlog = true,
        }
    }

    fn arrive(&mut self, id: Id) {
        let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
        end.pipe.armed = false;
        let (host, seat, twin) = (end.host, end.seat, end.twin);
        let from = twin.and_then(|twin| self.end(twin)).map(|end| end.host);
        // Bounded: each round takes an arrival or ends.
        loop {
            let now_ns = self.now_ns;
            let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
            let Some(head) = end.pipe.arrivals.front() else { return };
            let mut not_before_ns = head.at_ns.max(end.pipe.stalled_until_ns);
            if let Some(until_ns) = from.and_then(|from| self.cut_until_ns(from, host)) {
                // Sent again some time after the way is open.
                not_before_ns = not_before_ns.max(until_ns + self.dice.pick(0, 400 * MS));
            } else if not_before_ns <= now_ns && self.strikes(Fault::Stall, 300) {
                not_before_ns = now_ns + self.dice.pick(100 * MS, 10 * S);
            }
            let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
            if not_before_ns > now_ns {
                end.pipe.stalled_until_ns = not_before_ns;
                end.pipe.armed = true;
                return self.schedule(not_before_ns, Event::Arrive(id));
            }
            let Some(Arrival { mark, .. }) = end.pipe.arrivals.pop_front() else { return };
            if end.closed {
                end.pipe.bytes.clear();
                end.pipe.readable = 0;
                if let (Mark::Bytes(_), Some(twin), false) = (mark, twin, self.seats[seat.0].down) {
                    let at_ns = now_ns + self.latency();
                    self.schedule(at_ns, Event::Reset(twin));
                }
                continue;
            }
            if end.error.is_some() {
                // After a reset nothing more is taken in: what came before it may have been cut off.
                end.pipe.bytes.truncate(end.pipe.readable);
                continue;
            }
            match mark {
                Mark::Bytes(len) => self.deliver(id, len),
                Mark::End => {
                    end.pipe.ended = true;
                    self.notify(id);
                }
                Mark::Reset => self.reset(id),
            }
        }
    }

    /// Bytes reach an end, unless something happens to the connection in the middle of them.
    fn deliver(&mut self, id: Id, len: usize) {
        let cuts = [(Fault::Reset, 400), (Fault::EndOfStream, 600), (Fault::HalfOpen, 1500)];
        let fate = cuts.into_iter().find(|&(fault, one_in)| self.strikes(fault, one_in)).map(|(fault, _)| fault);
        let arrived = if fate.is_some() { self.dice.pick(0, len as u64) as usize } else { len };
        let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
        end.pipe.readable += arrived;
        let twin = end.twin;
        self.note("arrive", u64::from(id.0), arrived as u64);
        match fate {
            Some(Fault::Reset) => self.reset_both(id),
            Some(Fault::EndOfStream) => [Some(id), twin].into_iter().flatten().for_each(|id| self.cut_off(id)),
            Some(_) => {
                for id in [Some(id), twin].into_iter().flatten() {
                    if let Thing::End(end) = &mut self.things[id.0 as usize] {
                        end.pipe.dead = true;
                        end.pipe.arrivals.clear();
                    }
                }
            }
            None => {}
        }
        self.notify(id);
    }

    /// The stream towards an end is over, and what it writes is answered with a reset.
    fn cut_off(&mut self, id: Id) {
        let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
        end.twin = None;
        end.pipe.ended = true;
        end.pipe.arrivals.clear();
        end.pipe.bytes.truncate(end.pipe.readable);
        self.notify(id);
    }

    fn reset_both(&mut self, id: Id) {
        let twin = self.end(id).and_then(|end| end.twin);
        self.reset(id);
        if let Some(twin) = twin {
            let at_ns = self.now_ns + self.latency();
            self.schedule(at_ns, Event::Reset(twin));
        }
    }

    /// A reset reaches an end.
    fn reset(&mut self, id: Id) {
        let destroys = self.strikes(Fault::ResetDestroysUnread, 2);
        let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
        if end.closed || end.error.is_some() {
            return;
        }
        end.error = Some(ErrorKind::ConnectionReset);
        if destroys {
            end.pipe.readable = 0;
        }
        end.pipe.arrivals.clear();
        end.pipe.bytes.truncate(end.pipe.readable);
        self.note("reset", u64::from(id.0), 0);
        self.notify(id);
    }

    /// A SYN arrives.
    fn knock(&mut self, from: Id, to: SocketAddr) {
        let Some(end) = self.end(from).filter(|end| !end.closed) else { return };
        let (host, target, local) = (end.host, Host::of(to), SocketAddr::new(end.host.ip(), 1024 + from.0 as u16));
        if let Some(until_ns) = self.cut_until_ns(host, target) {
            if until_ns - self.now_ns < SYN_GIVES_UP_NS {
                let at_ns = until_ns + self.dice.pick(0, S);
                self.schedule(at_ns, Event::Knock { from, to });
            }
            return;
        }
        let listener = self.listeners.get(&to).copied();
        let down = self.seats.iter().any(|seat| seat.host == target && seat.down);
        if listener.is_none() && (down || !self.seats.iter().any(|seat| seat.host == target)) {
            return;
        }
        let mut result = Err(ErrorKind::ConnectionRefused);
        if self.strikes(Fault::ConnectUnreachable, 8) {
            result = Err(ErrorKind::HostUnreachable);
        } else if let Some(listener) = listener
            && !self.strikes(Fault::ConnectRefused, 8)
            && let Thing::Listener { seat, .. } = &self.things[listener.0 as usize]
        {
            let seat = *seat;
            let conn = self.insert_end(seat, target, local, Phase::Open);
            if let Thing::End(end) = &mut self.things[conn.0 as usize] {
                end.twin = Some(from);
            }
            if let Thing::End(end) = &mut self.things[from.0 as usize] {
                end.twin = Some(conn);
            }
            if let Thing::Listener { pending, .. } = &mut self.things[listener.0 as usize] {
                pending.push_back(conn);
            }
            self.notify(listener);
            result = Ok(conn);
        }
        let mut at_ns = self.now_ns + self.latency();
        if let Some(until_ns) = self.cut_until_ns(target, host) {
            at_ns = until_ns + self.dice.pick(0, S);
        }
        if let Thing::End(end) = &mut self.things[from.0 as usize] {
            end.pipe.last_ns = end.pipe.last_ns.max(at_ns);
        }
        self.schedule(at_ns, Event::Answer { to: from, result });
    }

    fn answer(&mut self, to: Id, result: Result<Id, ErrorKind>) {
        let Thing::End(end) = &mut self.things[to.0 as usize] else { return };
        if end.closed {
            // Nobody waits for it any more: the other end learns by a reset.
            if let Ok(conn) = result {
                self.schedule(self.now_ns, Event::Reset(conn));
            }
            return;
        }
        end.state = match result {
            Ok(_) => Phase::Open,
            Err(kind) => Phase::Failed(kind),
        };
        self.note("answer", u64::from(to.0), u64::from(result.is_ok()));
        self.notify(to);
    }
}
