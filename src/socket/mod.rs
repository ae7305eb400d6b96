//! The public API: [`Socket`] with asynchronous calls that need no particular runtime, [`blocking::Socket`] and
//! [`inline::Socket`]. Only this layer knows futures; all of them wait on the same engine.

pub mod blocking;
mod builder;
mod control;
mod core;
mod endpoint;
mod error;
pub mod inline;
#[cfg(feature = "json")]
mod json;
mod key;
mod metrics;
mod payload;
mod sink;
mod slow;
mod stream;
mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use self::core::Take;
use crate::backend::Address;
use crate::engine::Engine;
use crate::protocol::Identity;
use crate::queue::Turns;
use crate::shard::{Command, Ended, Event, Outlet, PeerStats, Phase, Reply, SocketShared, Stats, Walker};

pub use crate::shard::{CloseReport, Undelivered};
pub use builder::SocketBuilder;
pub use endpoint::{Endpoint, EndpointError};
pub use error::{
    BindError, BuildError, ConnectError, ControlError, RecvError, SendError, TryRecvError, TrySendError, WaitError,
};
#[cfg(feature = "json")]
pub use json::JsonError;
pub use key::Key;
pub use metrics::Metrics;
pub use payload::{Batch, Payload, Payloads, Received};
pub use sink::MessageSink;
pub use slow::BindOptions;
pub use stream::{Events, IdentityMessages, Messages};

/// A smart socket: binds and connects, any number of times each, holds any number of peers, and turns their streams into messages.
/// Peers reconnect by themselves, connections are checked by heartbeats, and what is sent while nobody is there is kept.
///
/// A `Socket` is a handle: clones are handles to the same socket, for any number of threads and tasks. When the last one goes, the
/// socket drains in the background for as long as its linger time; a program that ends right after should [`close`](Self::close)
/// first.
///
/// All calls that wait are cancel-safe: a future that is dropped has either done everything or nothing.
///
/// ```
/// use aiomsg_uring::Socket;
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # pollster::block_on(async {
/// let publisher = Socket::new()?;
/// let address = publisher.bind("127.0.0.1:0").await?;
///
/// let subscriber = Socket::new()?;
/// subscriber.connect(&address).await?;
/// publisher.wait_for_peers(1, Duration::from_secs(10)).await?;
///
/// publisher.send("hello").await?;
/// assert_eq!(subscriber.recv().await?, "hello");
/// publisher.close().await;
/// # Ok(()) })
/// # }
/// ```
#[derive(Clone)]
pub struct Socket {
    inner: Arc<Inner>,
}

/// The name by which the family knows it.
pub type Søcket = Socket;

struct Inner {
    shared: Arc<SocketShared>,
    /// Producers take turns here; no reader ever does.
    outlet: Turns<Outlet>,
    /// Consumers take turns here; no shard ever does.
    walker: Turns<Walker>,
    /// Consumers that wait for a message.
    waiting: AtomicUsize,
    /// Keeps the threads.
    _engine: Engine,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.shared.phase() == Phase::Open {
            self.walker.take().finish(&self.shared);
            for port in self.shared.ports.iter() {
                let linger_ns = self.shared.config.linger_ns;
                let _ = port.command(Command::Close { socket: self.shared.id, linger_ns, reply: Reply::new() });
            }
        }
    }
}

impl Socket {
    /// A socket with all defaults: PUBLISH, AT_MOST_ONCE, a random identity, on the global engine.
    ///
    /// # Errors
    /// When the global engine does not start.
    pub fn new() -> Result<Socket, BuildError> {
        Socket::builder().build()
    }

    /// Settings, to begin with the defaults.
    pub fn builder() -> SocketBuilder {
        SocketBuilder::default()
    }

    fn new_on(engine: Engine, shared: Arc<SocketShared>, outlet: Outlet) -> Socket {
        Socket {
            inner: Arc::new(Inner {
                shared,
                outlet: Turns::new(outlet),
                walker: Turns::new(Walker::default()),
                waiting: AtomicUsize::new(0),
                _engine: engine,
            }),
        }
    }

    fn shared(&self) -> &SocketShared {
        &self.inner.shared
    }

    fn home(&self, command: Command) -> Result<(), Ended> {
        let shared = self.shared();
        shared.ports[shared.home()].command(command)
    }

    /// Listens on an endpoint; answers with the bound address (of interest when the port was 0). May be called any number of times,
    /// mixed with [`connect`](Self::connect).
    ///
    /// # Errors
    /// When the text names no place, the system refuses, or the socket is closed.
    pub async fn bind<E>(&self, endpoint: E) -> Result<Address, BindError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        self.bind_with(endpoint, BindOptions::new()).await
    }

    /// Hands the request to the engine.
    fn start_bind<E>(
        &self,
        endpoint: E,
        options: &BindOptions,
    ) -> Result<(Reply<std::io::Result<Address>>, Endpoint), BindError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        let endpoint = endpoint.try_into().map_err(|error| BindError::Endpoint(error.into()))?;
        core::check_open(self.shared()).map_err(|_| BindError::Closed)?;
        let reply = Reply::new();
        let (socket, own) = (self.shared().id, options.on(self.shared()));
        let command = Command::Bind { socket, target: endpoint.0.clone(), own, reply: reply.clone() };
        self.home(command).map_err(|_| BindError::Closed)?;
        Ok((reply, endpoint))
    }

    /// Connects to an endpoint, now and again for the socket's life: a peer that is not there yet, or goes and comes back, is found
    /// by itself. Answers at once; see [`wait_for_peers`](Self::wait_for_peers). A name is resolved anew at each attempt.
    ///
    /// # Errors
    /// When the text names no place, or the socket is closed.
    pub async fn connect<E>(&self, endpoint: E) -> Result<(), ConnectError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        self.start_connect(endpoint)
    }

    fn start_connect<E>(&self, endpoint: E) -> Result<(), ConnectError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        let endpoint: Endpoint = endpoint.try_into().map_err(|error| ConnectError::Endpoint(error.into()))?;
        endpoint.check_reachable().map_err(ConnectError::Endpoint)?;
        core::check_open(self.shared()).map_err(|_| ConnectError::Closed)?;
        let command = Command::Connect { socket: self.shared().id, target: endpoint.0 };
        self.home(command).map_err(|_| ConnectError::Closed)
    }

    /// Sends a message: puts it into the socket's log, from where it goes to every peer (PUBLISH) or to the next one
    /// (ROUNDROBIN), at once or when a peer comes. Waits while the log is full.
    ///
    /// # Errors
    /// When the message is too long, or the socket is closed.
    pub async fn send<'a>(&self, message: impl Into<Payload<'a>>) -> Result<(), SendError> {
        let payload = message.into();
        if self.send_at_once(&payload) {
            return Ok(());
        }
        self.when_room(payload, |payload| self.try_send(payload)).await
    }

    async fn when_room<'a>(
        &self,
        mut payload: Payload<'a>,
        put: impl Fn(Payload<'a>) -> Result<(), TrySendError<'a>>,
    ) -> Result<(), SendError> {
        loop {
            payload = match put(payload) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Never(error)) => return Err(error),
                Err(TrySendError::Full(payload)) => payload,
            };
            let wait = wait::Room::new(self.shared());
            payload = match put(payload) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Never(error)) => return Err(error),
                Err(TrySendError::Full(payload)) => payload,
            };
            wait.notified().await;
        }
    }

    /// Sends a message of `bytes` bytes that `fill` writes in its place in the log, as [`send`](Self::send): one copy less, for
    /// messages that are made field by field. They are zero at first. Others who send wait meanwhile, and `fill` must not use the
    /// socket, which would wait for itself. If it panics nothing is sent.
    ///
    /// ```
    /// # use aiomsg_uring::{SendError, Socket};
    /// # async fn quote(socket: &Socket, instrument: u32, price: u64) -> Result<(), SendError> {
    /// socket.send_with(12, |message| {
    ///     message[..4].copy_from_slice(&instrument.to_le_bytes());
    ///     message[4..].copy_from_slice(&price.to_le_bytes());
    /// }).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_with(&self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), SendError> {
        match self.send_with_at_once(bytes, fill) {
            Ok(()) => Ok(()),
            Err(fill) => self.send(core::filled(self.shared(), bytes, fill)?).await,
        }
    }

    #[inline]
    fn send_with_at_once<F: FnOnce(&mut [u8])>(&self, bytes: usize, fill: F) -> Result<(), F> {
        let shared = self.shared();
        core::put_with_at_once(shared, &mut self.inner.outlet.take(), bytes, fill)?;
        shared.appended();
        Ok(())
    }

    /// The usual case of `try_send`, see [`core::put_at_once`].
    #[inline]
    fn send_at_once(&self, payload: &Payload<'_>) -> bool {
        let shared = self.shared();
        let sent = core::put_at_once(shared, &mut self.inner.outlet.take(), payload);
        if sent {
            shared.appended();
        }
        sent
    }

    /// Sends a message if there is room for it now.
    ///
    /// # Errors
    /// When there is no room, with the message; when it is too long; or when the socket is closed.
    pub fn try_send<'a>(&self, message: impl Into<Payload<'a>>) -> Result<(), TrySendError<'a>> {
        let shared = self.shared();
        core::check_open(shared).map_err(TrySendError::Never)?;
        core::offer(shared, &mut self.inner.outlet.take(), message.into())?;
        shared.appended();
        Ok(())
    }

    /// Sends a message that `fill` writes, see [`send_with`](Self::send_with), if there is room for it now.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send); the message that comes back is filled.
    pub fn try_send_with(&self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), TrySendError<'static>> {
        match self.send_with_at_once(bytes, fill) {
            Ok(()) => Ok(()),
            Err(fill) => self.try_send(core::filled(self.shared(), bytes, fill).map_err(TrySendError::Never)?),
        }
    }

    /// Sends a message that is the newest value of `key`: a quote, a state, a position. Peers get it like any other message; one that
    /// lags, under [`SlowPolicy::Conflate`](crate::SlowPolicy::Conflate), gets only the newest of each key, and one that comes late,
    /// under [`Replay::Snapshot`](crate::Replay::Snapshot), begins with those. What must never be left out, a trade say, is sent with
    /// [`send`](Self::send). Under ROUNDROBIN the key means nothing.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendError::KeysFull`].
    pub async fn send_keyed<'a>(
        &self,
        key: impl Into<Key<'a>>,
        message: impl Into<Payload<'a>>,
    ) -> Result<(), SendError> {
        let key = key.into();
        self.when_room(message.into(), |payload| self.try_send_keyed(key, payload)).await
    }

    /// Sends a message that is the newest value of `key` if there is room for it now.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send), and [`SendError::KeysFull`].
    pub fn try_send_keyed<'a>(
        &self,
        key: impl Into<Key<'a>>,
        message: impl Into<Payload<'a>>,
    ) -> Result<(), TrySendError<'a>> {
        let shared = self.shared();
        core::check_open(shared).map_err(TrySendError::Never)?;
        core::offer_keyed(shared, &mut self.inner.outlet.take(), key.into(), message.into())?;
        shared.appended();
        Ok(())
    }

    /// Forgets a key that is out of use, to make room for others; false if it was not known. No snapshot has its value any more, and a
    /// peer that lags and has not got it does not get it.
    pub fn forget_key<'a>(&self, key: impl Into<Key<'a>>) -> bool {
        self.shared().values.lock().is_some_and(|mut table| table.forget(key.into().as_ref()))
    }

    /// Sends a message to one peer, in any send mode, in order with everything else that this socket sends to it. Waits while too
    /// much is under way to that peer (an eighth of `log_bytes_max`).
    ///
    /// # Errors
    /// When the peer was never seen; when it is gone (AT_MOST_ONCE; AT_LEAST_ONCE keeps the message for its return); when the
    /// message is too long, or the socket is closed.
    pub async fn send_to<'a>(&self, identity: Identity, message: impl Into<Payload<'a>>) -> Result<(), SendError> {
        let mut payload = message.into();
        loop {
            payload = match self.try_send_to(identity, payload) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Never(error)) => return Err(error),
                Err(TrySendError::Full(payload)) => payload,
            };
            let room = self.shared().room.listen();
            payload = match self.try_send_to(identity, payload) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Never(error)) => return Err(error),
                Err(TrySendError::Full(payload)) => payload,
            };
            room.await;
        }
    }

    /// Sends a message to one peer if there is room for it now.
    ///
    /// # Errors
    /// When there is no room, with the message; or as [`send_to`](Self::send_to).
    pub fn try_send_to<'a>(&self, identity: Identity, message: impl Into<Payload<'a>>) -> Result<(), TrySendError<'a>> {
        let shared = self.shared();
        core::check_open(shared).map_err(TrySendError::Never)?;
        let shard = core::offer_to(shared, &mut self.inner.outlet.take(), &identity, message.into())?;
        shared.mark_dirty(shard);
        Ok(())
    }

    /// The next message with everything about it; under [`AckMode::Manual`](crate::AckMode::Manual) the way to acknowledge it.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_message(&self) -> Result<Received, RecvError> {
        self.next().await.map(|message| Received::new(&self.inner.shared, message))
    }

    /// The next message with everything about it, if one is there.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    #[inline]
    pub fn try_recv_message(&self) -> Result<Received, TryRecvError> {
        self.try_next().map(|message| Received::new(&self.inner.shared, message))
    }

    /// The next message from any peer.
    ///
    /// # Errors
    /// When the socket is closed and all that had arrived was taken.
    pub async fn recv(&self) -> Result<Bytes, RecvError> {
        self.next().await
    }

    /// The next message and who sent it.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_identity(&self) -> Result<(Identity, Bytes), RecvError> {
        self.next().await
    }

    /// The messages of one peer that have arrived together. The cheapest way to receive many small ones.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_batch(&self) -> Result<Batch, RecvError> {
        self.next().await
    }

    /// The next message if one is there.
    ///
    /// # Errors
    /// When none is there, or none will come any more.
    #[inline]
    pub fn try_recv(&self) -> Result<Bytes, TryRecvError> {
        self.try_next()
    }

    /// The next message and who sent it, if one is there.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    #[inline]
    pub fn try_recv_identity(&self) -> Result<(Identity, Bytes), TryRecvError> {
        self.try_next()
    }

    /// The messages of one peer that have arrived together, if some are there.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    pub fn try_recv_batch(&self) -> Result<Batch, TryRecvError> {
        self.try_next()
    }

    #[inline(always)]
    fn take<T: Take>(&self) -> Option<T> {
        let mut walker = self.inner.walker.take();
        let taken = T::take(&mut walker, self.shared());
        // One arrival notifies one consumer; where it brought several messages the others are needed too.
        if self.inner.waiting.load(Ordering::Relaxed) > 0 && walker.is_midway() {
            self.shared().inbox.notify_next();
        }
        taken
    }

    fn none_left(&self) -> TryRecvError {
        core::none_left(self.shared(), &self.inner.walker.take())
    }

    #[inline(always)]
    fn try_next<T: Take>(&self) -> Result<T, TryRecvError> {
        self.take().ok_or_else(|| self.none_left())
    }

    /// Waits until there is something to take.
    async fn next<T: Take>(&self) -> Result<T, RecvError> {
        loop {
            if let Some(taken) = self.take() {
                return Ok(taken);
            }
            let arrival = wait::Arrival::new(self.shared(), &self.inner.waiting);
            if let Some(taken) = self.take() {
                return Ok(taken);
            }
            match self.none_left() {
                TryRecvError::Never(error) => return Err(error),
                TryRecvError::Empty => arrival.notified().await,
            }
        }
    }

    /// All messages, until the socket is closed.
    pub fn messages(&self) -> Messages<'_> {
        Messages::new(self)
    }

    /// All messages with who sent them, until the socket is closed.
    pub fn identity_messages(&self) -> IdentityMessages<'_> {
        IdentityMessages::new(self)
    }

    /// The socket as a `Sink` of messages.
    pub fn sink(&self) -> MessageSink<'_> {
        MessageSink::new(self)
    }

    /// The name by which peers know this socket.
    pub fn identity(&self) -> Identity {
        self.shared().identity
    }

    /// The peers that are connected now, in no particular order.
    pub fn peers(&self) -> Vec<Identity> {
        self.shared().peers.identities()
    }

    /// Waits until `n` peers or more are connected: in [`peers`](Self::peers), so that what is sent from then on is for them too. They
    /// may be gone again when it answers.
    ///
    /// # Errors
    /// When they are not within `timeout`, or the socket is closed.
    pub async fn wait_for_peers(&self, n: usize, timeout: Duration) -> Result<(), WaitError> {
        // An alarm that nobody waits for any more is kept until it is due.
        if self.shared().peers.count() >= n {
            return Ok(());
        }
        let alarm = Reply::new();
        let _ = self.home(Command::Alarm { after_ns: crate::shard::nanos(timeout), reply: alarm.clone() });
        loop {
            let changed = self.shared().peers.changed.listen();
            let rung = alarm.listen();
            let peers = self.shared().peers.count();
            if peers >= n {
                return Ok(());
            }
            if alarm.take().is_some() || self.shared().phase() != Phase::Open {
                return Err(WaitError { peers, wanted: n });
            }
            wait::either(changed, rung).await;
        }
    }

    /// What happens to the socket's peers and messages, until it is closed. All readers share one bounded queue.
    pub fn events(&self) -> Events<'_> {
        Events::new(self)
    }

    /// The next event; `None` when the socket is closed and all were taken.
    pub async fn next_event(&self) -> Option<Event> {
        loop {
            let arrived = self.shared().events.arrived.listen();
            if let Some(event) = self.try_event() {
                return Some(event);
            }
            if self.shared().phase() >= Phase::Closed {
                return None;
            }
            arrived.await;
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

    /// Ends the socket for all its handles: nothing more is accepted, what was is sent for as long as the linger time lasts, then
    /// every connection gets an orderly end. Answers when all of that is done. If the future is dropped the socket closes all the same.
    pub async fn close(&self) -> CloseReport {
        let replies = self.start_close();
        let mut report = CloseReport::default();
        for reply in &replies {
            report.add(wait::done(reply).await.unwrap_or_default());
        }
        report
    }

    fn start_close(&self) -> Vec<Reply<CloseReport>> {
        let shared = self.shared();
        let linger_ns = shared.config.linger_ns;
        let ask = |port: &Arc<crate::shard::Port>| {
            let reply = Reply::new();
            let command = Command::Close { socket: shared.id, linger_ns, reply: reply.clone() };
            if port.command(command).is_err() {
                reply.answer(CloseReport::default());
            }
            reply
        };
        self.inner.walker.take().finish(shared);
        // No append may come after the shards have begun to drain.
        let _outlet = self.inner.outlet.take();
        shared.enter_phase(Phase::Closing);
        shared.ports.iter().map(ask).collect()
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("identity", &self.identity())
            .field("send_mode", &self.shared().config.send_mode)
            .field("peers", &self.shared().peers.count())
            .finish()
    }
}

/// The engine's answer to `bind`, as an application sees it.
pub(crate) fn bound(result: std::io::Result<Address>, endpoint: Endpoint) -> Result<Address, BindError> {
    result.map_err(|error| BindError::Io { endpoint: endpoint.to_string(), error })
}
