//! Sockets without a thread: the thread that uses them drives their engine. The shortest path there is, for one core that does
//! everything itself; not `Send`.
//!
//! `send` only appends. What was appended goes out when the engine is driven next: in any call that waits, in [`Engine::poll`], in
//! [`Socket::flush`], or by itself once 256 KiB are unsent (ROUNDROBIN to many: 32 KiB for each, 2 MiB in all). An application that goes quiet calls `flush`, and drives the engine
//! again by [`Engine::next_deadline`], so that heartbeats go out.
//!
//! A call from within the engine, while it is driven (by a subscriber of `tracing`, or by an owner of a payload when it is dropped), does
//! not drive it: `send` appends, `connect` and `drop` are done when the drive is, `recv` finds what is there, and what would have to
//! wait is refused ([`EngineError::Reentered`], [`SendError::Reentered`]).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::core::Take;
use super::{
    Batch, BindError, BindOptions, BuildError, CloseReport, ConnectError, Endpoint, EndpointError, Key, Payload,
    Received, RecvError, SendError, TryRecvError, TrySendError, WaitError, core,
};
use crate::backend::Address;
use crate::engine::inline::InlineEngine;
use crate::engine::{EngineBuilder, EngineError, EngineInfo};
use crate::protocol::Identity;
use crate::sabotage::{Bug, planted};
use crate::shard::{
    Command, Event, Outlet, PeerStats, Reply, SendMode, ShardStats, SocketConfig, SocketId, SocketShared, Stats,
    Walker, nanos,
};

/// Bytes appended after which `send` sends by itself: one chunk, what one operation takes.
const FLUSH_BYTES: usize = 256 * 1024;
/// ROUNDROBIN: they are for many, and each operation is to take so many.
const FLUSH_BYTES_EACH: usize = 32 * 1024;
const FLUSH_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes that no peer has been sent, for each peer, beyond which who has flushed waits: what is sent while caches hold it costs less.
const AHEAD_BYTES_MAX: u64 = 512 * 1024;
/// How long at most, after each flush: 256 KiB in so long are 2.6 GB/s, about what one sender reaches.
const AHEAD_WAIT_NS: u64 = 100_000;

/// An engine that the calling thread drives. Clones share it.
///
/// ```
/// use aiomsg_uring::{Socket, inline};
/// use std::time::Duration;
///
/// let engine = inline::Engine::new()?;
/// let publisher = Socket::builder().build_inline(&engine)?;
/// let address = publisher.bind("127.0.0.1:0")?;
/// let subscriber = Socket::builder().build_inline(&engine)?;
/// subscriber.connect(&address)?;
/// publisher.wait_for_peers(1, Duration::from_secs(10))?;
/// publisher.send("hello")?;
/// assert_eq!(subscriber.recv(Some(Duration::from_secs(10)))?, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Engine {
    pub(super) inner: InlineEngine,
    places: Rc<Places>,
}

impl Engine {
    /// An engine with all defaults.
    ///
    /// # Errors
    /// When no backend is to be had.
    pub fn new() -> Result<Engine, EngineError> {
        Engine::builder().build()
    }

    /// Settings, to begin with the defaults.
    pub fn builder() -> EngineBuilder<Engine> {
        EngineBuilder::default()
    }

    /// Which backend was chosen, and why.
    pub fn info(&self) -> &EngineInfo {
        self.inner.info()
    }

    /// What the engine has done since it was made.
    pub fn stats(&self) -> ShardStats {
        self.inner.stats()
    }

    /// Drives all sockets of the engine once: sends what was appended, receives, keeps connections alive. Waits until something
    /// happens, for at most `timeout` (`None`: for ever; zero: not at all). Puts into `ready` the sockets with messages to take,
    /// those that were there before included and first. Costs nothing for sockets to which nothing happens.
    ///
    /// # Errors
    /// When the backend is broken; all sockets of the engine have then ended.
    pub fn poll(&self, timeout: Option<Duration>, ready: &mut Vec<SocketId>) -> Result<(), EngineError> {
        ready.clear();
        self.inner.check()?;
        self.collect(ready);
        let deadline_ns = if ready.is_empty() { self.deadline_ns(timeout) } else { 0 };
        self.drive(deadline_ns)?;
        ready.clear();
        self.collect(ready);
        Ok(())
    }

    fn collect(&self, ready: &mut Vec<SocketId>) {
        self.places.arrived.borrow_mut().retain(|place| {
            let is_ready = place.has_messages();
            place.is_arrived.set(is_ready);
            ready.extend(is_ready.then_some(place.shared.id));
            is_ready
        });
    }

    fn flush_all(&self) {
        // The list is not borrowed meanwhile: what is called from within may append to a socket, or drop it.
        while let Some(place) = self.places.next_unsent() {
            if place.unsent.take() > 0 && !planted(Bug::InlineUnsent) {
                self.inner.flush(place.shared.id);
            }
        }
    }

    /// When the engine wants to be driven again though nothing arrives: a heartbeat, a reconnection.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadline_ns = self.inner.next_deadline_ns();
        let from_now = Duration::from_nanos(deadline_ns.saturating_sub(self.inner.now_ns()));
        (deadline_ns != u64::MAX).then(|| Instant::now() + from_now)
    }

    fn deadline_ns(&self, timeout: Option<Duration>) -> u64 {
        match timeout {
            None => u64::MAX,
            Some(Duration::ZERO) => 0,
            Some(timeout) => self.inner.now_ns().saturating_add(nanos(timeout)),
        }
    }

    /// Sends what was appended to all sockets and steps the shard once.
    pub(crate) fn drive(&self, deadline_ns: u64) -> Result<(), EngineError> {
        self.inner.check()?;
        self.flush_all();
        self.turn(deadline_ns)
    }

    fn turn(&self, deadline_ns: u64) -> Result<(), EngineError> {
        self.inner.turn(deadline_ns)?;
        let by_id = self.places.by_id.borrow();
        self.inner.for_each_told(|id| {
            if let Some(Some(place)) = by_id.get(id.index())
                && !place.is_arrived.replace(true)
            {
                self.places.arrived.borrow_mut().push(place.clone());
            }
        });
        Ok(())
    }
}

impl From<InlineEngine> for Engine {
    fn from(inner: InlineEngine) -> Engine {
        Engine { inner, places: Rc::default() }
    }
}

impl EngineBuilder<Engine> {
    /// Opens the backend on this thread.
    ///
    /// # Errors
    /// When a forced backend is not to be had, or memory or descriptors run out.
    pub fn build(self) -> Result<Engine, EngineError> {
        self.open_inline().map(Engine::from)
    }
}

/// The sockets of an engine, and which of them it has to look at: however many there are, only those cost something.
#[derive(Default)]
struct Places {
    /// By their numbers, which are dense.
    by_id: RefCell<Vec<Option<Rc<Place>>>>,
    /// To which something has come that may still be there; each once.
    arrived: RefCell<Vec<Rc<Place>>>,
    /// To which something was appended that may not have been sent; each once.
    unsent: RefCell<Vec<Rc<Place>>>,
}

impl Places {
    fn next_unsent(&self) -> Option<Rc<Place>> {
        let place = self.unsent.borrow_mut().pop()?;
        place.attend_bytes.set(0);
        Some(place)
    }
}

/// What engine and handle both look at.
struct Place {
    shared: Arc<SocketShared>,
    walker: RefCell<Walker>,
    /// In the list of those to which something has come.
    is_arrived: Cell<bool>,
    /// Bytes appended since the last flush.
    unsent: Cell<usize>,
    /// How many make `send` attend to them: 0 while the socket is not in the list of those with something unsent, then as many as
    /// make it flush.
    attend_bytes: Cell<usize>,
    /// How many make `send` flush.
    flush_bytes: Cell<usize>,
}

impl Place {
    fn has_messages(&self) -> bool {
        self.walker.borrow().is_midway() || !self.shared.inbox.is_empty()
    }
}

/// A socket that the calling thread drives. When it is dropped it drains while its engine is driven further; to be sure, call
/// [`close`](Self::close).
pub struct Socket {
    pub(super) engine: Engine,
    place: Rc<Place>,
    outlet: RefCell<Outlet>,
}

impl Socket {
    pub(super) fn open(engine: &Engine, identity: Identity, config: SocketConfig) -> Result<Socket, BuildError> {
        let (shared, outlet) = engine.inner.open_socket(identity, config)?;
        let place = Rc::new(Place {
            shared,
            walker: RefCell::default(),
            is_arrived: Cell::new(false),
            unsent: Cell::new(0),
            attend_bytes: Cell::new(0),
            flush_bytes: Cell::new(FLUSH_BYTES),
        });
        let at = place.shared.id.index();
        let mut by_id = engine.places.by_id.borrow_mut();
        if by_id.len() <= at {
            by_id.resize(at + 1, None);
        }
        by_id[at] = Some(place.clone());
        drop(by_id);
        Ok(Socket { engine: engine.clone(), place, outlet: RefCell::new(outlet) })
    }

    pub(super) fn shared(&self) -> &SocketShared {
        &self.place.shared
    }

    /// The socket's number on its engine, as [`Engine::poll`] names it.
    pub fn id(&self) -> SocketId {
        self.shared().id
    }

    /// Listens on an endpoint; drives the engine while a name is being resolved.
    ///
    /// # Errors
    /// When the text names no place, the system refuses, or the socket is closed.
    pub fn bind<E>(&self, endpoint: E) -> Result<Address, BindError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        self.bind_with(endpoint, BindOptions::new())
    }

    /// Connects for the socket's life, see [`Socket::connect`](crate::Socket::connect). A name is resolved on a thread that lives
    /// only that long; with an address there is no other thread.
    ///
    /// # Errors
    /// When the text names no place, or the socket is closed.
    pub fn connect<E>(&self, endpoint: E) -> Result<(), ConnectError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        let endpoint: Endpoint = endpoint.try_into().map_err(|error| ConnectError::Endpoint(error.into()))?;
        endpoint.check_reachable().map_err(ConnectError::Endpoint)?;
        core::check_open(self.shared()).map_err(|_| ConnectError::Closed)?;
        self.engine.inner.command(Command::Connect { socket: self.id(), target: endpoint.0 });
        Ok(())
    }

    /// Appends a message; sends by itself once 256 KiB are unsent. While the log is full, drives the engine; before that for at most
    /// 100 us each time it has sent, while even the fastest peer is far behind (512 KiB for each peer).
    ///
    /// # Errors
    /// When the message is too long, or the socket is closed.
    #[inline]
    pub fn send<'a>(&self, message: impl Into<Payload<'a>>) -> Result<(), SendError> {
        let payload = message.into();
        if core::put_at_once(self.shared(), &mut self.outlet.borrow_mut(), &payload) {
            return self.appended(payload.len() + 5, true);
        }
        self.send_when_room(payload, |payload| self.offer(payload, true))
    }

    /// Appends a message that `fill` writes in its place, see [`Socket::send_with`](crate::Socket::send_with), as
    /// [`send`](Self::send).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    #[inline]
    pub fn send_with(&self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), SendError> {
        match self.put_with(bytes, fill) {
            Ok(()) => self.appended(bytes + 5, true),
            Err(fill) => self.send(core::filled(self.shared(), bytes, fill)?),
        }
    }

    #[inline]
    fn put_with<F: FnOnce(&mut [u8])>(&self, bytes: usize, fill: F) -> Result<(), F> {
        core::put_with_at_once(self.shared(), &mut self.outlet.borrow_mut(), bytes, fill)
    }

    /// Counts what was appended; sends once it is much, and then waits a little, if it may, while no peer keeps up.
    #[inline(always)]
    fn appended(&self, bytes: usize, may_wait: bool) -> Result<(), SendError> {
        let unsent = self.place.unsent.get() + bytes;
        self.place.unsent.set(unsent);
        match unsent < self.place.attend_bytes.get() {
            true => Ok(()),
            false => self.attend(unsent, may_wait),
        }
    }

    #[cold]
    fn attend(&self, unsent: usize, may_wait: bool) -> Result<(), SendError> {
        let flush_bytes = self.place.flush_bytes.get();
        if self.place.attend_bytes.replace(flush_bytes) == 0 {
            self.engine.places.unsent.borrow_mut().push(self.place.clone());
        }
        if unsent < flush_bytes {
            return Ok(());
        }
        let flushed = self.flush();
        match if may_wait { flushed.and_then(|()| self.wait_while_ahead()) } else { flushed } {
            // It goes out when the engine is driven next.
            Ok(()) | Err(EngineError::Reentered) => Ok(()),
            Err(_) => Err(SendError::EngineStopped),
        }
    }

    fn wait_while_ahead(&self) -> Result<(), EngineError> {
        let engine = &self.engine.inner;
        let mut until_ns = None;
        while engine.ahead_bytes(self.id()) > AHEAD_BYTES_MAX {
            let now_ns = engine.now_ns();
            let until_ns = *until_ns.get_or_insert(now_ns + AHEAD_WAIT_NS);
            if now_ns >= until_ns {
                break;
            }
            self.engine.turn(until_ns)?;
        }
        Ok(())
    }

    #[cold]
    fn send_when_room<'a>(
        &self,
        payload: Payload<'a>,
        put: impl Fn(Payload<'a>) -> Result<(), TrySendError<'a>>,
    ) -> Result<(), SendError> {
        let mut payload = match put(payload) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Never(error)) => return Err(error),
            Err(TrySendError::Full(payload)) => payload,
        };
        loop {
            self.shared().begin_wait();
            let driven = self.flush_and_turn(u64::MAX);
            let result = driven.map_err(not_sent).and_then(|()| match put(payload) {
                Ok(()) => Ok(None),
                Err(TrySendError::Never(error)) => Err(error),
                Err(TrySendError::Full(payload)) => Ok(Some(payload)),
            });
            match result {
                Ok(Some(back)) => payload = back,
                Ok(None) => {
                    self.shared().end_wait();
                    return Ok(());
                }
                Err(error) => {
                    self.shared().end_wait();
                    return Err(error);
                }
            }
        }
    }

    /// Appends a message if there is room for it; does not drive the engine while there is.
    ///
    /// # Errors
    /// When there is no room, with the message; when it is too long; or when the socket is closed.
    #[inline]
    pub fn try_send<'a>(&self, message: impl Into<Payload<'a>>) -> Result<(), TrySendError<'a>> {
        self.offer(message.into(), false)
    }

    #[inline]
    fn offer<'a>(&self, payload: Payload<'a>, may_wait: bool) -> Result<(), TrySendError<'a>> {
        core::check_open(self.shared()).map_err(TrySendError::Never)?;
        let bytes = payload.len();
        core::offer(self.shared(), &mut self.outlet.borrow_mut(), payload)?;
        self.appended(bytes + 5, may_wait).map_err(TrySendError::Never)
    }

    /// Appends a message that `fill` writes if there is room for it.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send); the message that comes back is filled.
    #[inline]
    pub fn try_send_with(&self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), TrySendError<'static>> {
        match self.put_with(bytes, fill) {
            Ok(()) => self.appended(bytes + 5, false).map_err(TrySendError::Never),
            Err(fill) => self.try_send(core::filled(self.shared(), bytes, fill).map_err(TrySendError::Never)?),
        }
    }

    /// Appends a message that is the newest value of `key`, see [`Socket::send_keyed`](crate::Socket::send_keyed). While the log is
    /// full, drives the engine.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendError::KeysFull`].
    pub fn send_keyed<'a>(&self, key: impl Into<Key<'a>>, message: impl Into<Payload<'a>>) -> Result<(), SendError> {
        let key = key.into();
        self.send_when_room(message.into(), |payload| self.try_send_keyed(key, payload))
    }

    /// Appends a message that is the newest value of `key` if there is room for it.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send), and [`SendError::KeysFull`].
    pub fn try_send_keyed<'a>(
        &self,
        key: impl Into<Key<'a>>,
        message: impl Into<Payload<'a>>,
    ) -> Result<(), TrySendError<'a>> {
        let payload = message.into();
        core::check_open(self.shared()).map_err(TrySendError::Never)?;
        let bytes = payload.len();
        core::offer_keyed(self.shared(), &mut self.outlet.borrow_mut(), key.into(), payload)?;
        self.appended(bytes + 5, false).map_err(TrySendError::Never)
    }

    /// Forgets a key, see [`Socket::forget_key`](crate::Socket::forget_key).
    pub fn forget_key<'a>(&self, key: impl Into<Key<'a>>) -> bool {
        self.shared().values.lock().is_some_and(|mut table| table.forget(key.into().as_ref()))
    }

    /// Sends a message to one peer, see [`Socket::send_to`](crate::Socket::send_to); drives the engine while too much is under way
    /// to it.
    ///
    /// # Errors
    /// When the peer was never seen or is gone, the message is too long, or the socket is closed.
    pub fn send_to<'a>(&self, identity: Identity, message: impl Into<Payload<'a>>) -> Result<(), SendError> {
        let mut payload = message.into();
        loop {
            payload = match self.try_send_to(identity, payload) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Never(error)) => return Err(error),
                Err(TrySendError::Full(payload)) => payload,
            };
            self.flush_and_turn(u64::MAX).map_err(not_sent)?;
        }
    }

    /// Appends a message for one peer if there is room for it.
    ///
    /// # Errors
    /// When there is no room, with the message; or as [`send_to`](Self::send_to).
    pub fn try_send_to<'a>(&self, identity: Identity, message: impl Into<Payload<'a>>) -> Result<(), TrySendError<'a>> {
        let payload = message.into();
        core::check_open(self.shared()).map_err(TrySendError::Never)?;
        let bytes = payload.len();
        core::offer_to(self.shared(), &mut self.outlet.borrow_mut(), &identity, payload)?;
        self.appended(bytes + 41, false).map_err(TrySendError::Never)
    }

    /// The next message with everything about it; waits for at most `timeout` (`None`: for ever).
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_message(&self, timeout: Option<Duration>) -> Result<Received, TryRecvError> {
        self.next(timeout).map(|message| Received::new(&self.place.shared, message))
    }

    /// Sends what was appended, without waiting.
    ///
    /// # Errors
    /// When the backend is broken.
    pub fn flush(&self) -> Result<(), EngineError> {
        self.flush_and_turn(0)
    }

    fn flush_and_turn(&self, deadline_ns: u64) -> Result<(), EngineError> {
        self.engine.inner.check()?;
        self.place.unsent.set(0);
        let shared = self.shared();
        if shared.config.send_mode == SendMode::RoundRobin {
            let each = shared.connections() * FLUSH_BYTES_EACH;
            self.place.flush_bytes.set(each.clamp(FLUSH_BYTES, FLUSH_BYTES_MAX));
        }
        self.engine.inner.flush(self.id());
        self.engine.turn(deadline_ns)
    }

    /// The next message; waits for at most `timeout` (`None`: for ever).
    ///
    /// # Errors
    /// [`TryRecvError::Empty`] when none came in time; or when the socket is closed and all that had arrived was taken.
    #[inline]
    pub fn recv(&self, timeout: Option<Duration>) -> Result<Bytes, TryRecvError> {
        self.next(timeout)
    }

    /// The next message and who sent it; waits for at most `timeout` (`None`: for ever).
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    #[inline]
    pub fn recv_identity(&self, timeout: Option<Duration>) -> Result<(Identity, Bytes), TryRecvError> {
        self.next(timeout)
    }

    /// The messages of one peer that have arrived together; waits for at most `timeout` (`None`: for ever).
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_batch(&self, timeout: Option<Duration>) -> Result<Batch, TryRecvError> {
        self.next(timeout)
    }

    /// The next message if one has been received; does not drive the engine.
    ///
    /// # Errors
    /// When none is there, or none will come any more.
    #[inline]
    pub fn try_recv(&self) -> Result<Bytes, TryRecvError> {
        self.try_next()
    }

    /// The next message and who sent it, if one has been received; does not drive the engine.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    #[inline]
    pub fn try_recv_identity(&self) -> Result<(Identity, Bytes), TryRecvError> {
        self.try_next()
    }

    /// The messages of one peer that have arrived together, if some have been received; does not drive the engine.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    pub fn try_recv_batch(&self) -> Result<Batch, TryRecvError> {
        self.try_next()
    }

    #[inline(always)]
    fn take<T: Take>(&self) -> Option<T> {
        T::take(&mut self.place.walker.borrow_mut(), self.shared())
    }

    fn none_left(&self) -> TryRecvError {
        core::none_left(self.shared(), &self.place.walker.borrow())
    }

    #[inline(always)]
    fn try_next<T: Take>(&self) -> Result<T, TryRecvError> {
        self.take().ok_or_else(|| self.none_left())
    }

    #[inline(always)]
    fn next<T: Take>(&self, timeout: Option<Duration>) -> Result<T, TryRecvError> {
        match self.take() {
            Some(taken) => Ok(taken),
            None => self.next_driven(timeout),
        }
    }

    #[cold]
    fn next_driven<T: Take>(&self, timeout: Option<Duration>) -> Result<T, TryRecvError> {
        let deadline_ns = self.engine.deadline_ns(timeout);
        let mut may_drive = true;
        loop {
            match self.none_left() {
                TryRecvError::Empty if may_drive => {}
                none_left => return Err(none_left),
            }
            match self.engine.drive(deadline_ns) {
                Ok(()) => {}
                Err(EngineError::Reentered) => return Err(TryRecvError::Empty),
                Err(_) => return Err(TryRecvError::Never(RecvError::EngineStopped)),
            }
            if let Some(taken) = self.take() {
                return Ok(taken);
            }
            may_drive = deadline_ns != 0 && !self.past(deadline_ns);
        }
    }

    fn past(&self, deadline_ns: u64) -> bool {
        deadline_ns != u64::MAX && self.engine.inner.now_ns() >= deadline_ns
    }

    /// The name by which peers know this socket.
    pub fn identity(&self) -> Identity {
        self.shared().identity
    }

    /// The peers that are connected now.
    pub fn peers(&self) -> Vec<Identity> {
        self.shared().peers.identities()
    }

    /// Drives the engine until `n` peers or more are connected.
    ///
    /// # Errors
    /// When they are not within `timeout`, or the backend is broken.
    pub fn wait_for_peers(&self, n: usize, timeout: Duration) -> Result<(), WaitError> {
        let deadline_ns = self.engine.inner.now_ns().saturating_add(nanos(timeout));
        loop {
            let peers = self.shared().peers.count();
            if peers >= n {
                return Ok(());
            }
            if self.past(deadline_ns) || self.engine.drive(deadline_ns).is_err() {
                return Err(WaitError { peers, wanted: n });
            }
        }
    }

    /// The next event if there is one.
    pub fn try_event(&self) -> Option<Event> {
        self.shared().events.pop()
    }

    /// The socket's counters now. Costs a look at each peer, for the lag.
    pub fn stats(&self) -> Stats {
        self.shared().stats()
    }

    /// The counters of each peer that is connected now, in no particular order.
    pub fn peer_stats(&self) -> Vec<PeerStats> {
        self.shared().peer_stats()
    }

    /// One peer's counters; `None` if it is not connected now.
    pub fn peer_stats_of(&self, identity: Identity) -> Option<PeerStats> {
        self.shared().peer_stats_of(&identity)
    }

    /// Ends the socket: drives the engine until what was sent has drained, within the linger time, and every connection has had an
    /// orderly end. From within the engine it ends likewise, and the report is empty.
    pub fn close(self) -> CloseReport {
        let reply = self.start_close();
        loop {
            if let Some(report) = reply.take() {
                return report;
            }
            if self.engine.drive(u64::MAX).is_err() {
                return CloseReport::default();
            }
        }
    }

    pub(crate) fn start_close(&self) -> Reply<CloseReport> {
        self.place.walker.borrow_mut().finish(self.shared());
        let reply = Reply::new();
        let linger_ns = self.shared().config.linger_ns;
        self.engine.inner.command(Command::Close { socket: self.id(), linger_ns, reply: reply.clone() });
        reply
    }
}

/// Why a message was not accepted that had to wait.
fn not_sent(error: EngineError) -> SendError {
    match error {
        EngineError::Reentered => SendError::Reentered,
        _ => SendError::EngineStopped,
    }
}

#[cfg(any(test, feature = "simulation"))]
impl Socket {
    /// Whether a call that has given up did so because it would have had to wait.
    pub(crate) fn is_open(&self) -> bool {
        core::check_open(self.shared()).is_ok()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.engine.places.by_id.borrow_mut()[self.id().index()] = None;
        self.engine.places.arrived.borrow_mut().retain(|place| !Rc::ptr_eq(place, &self.place));
        self.start_close();
        // What can go at once does.
        let _ = self.flush();
    }
}
