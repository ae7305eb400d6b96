//! The same socket with calls that block the thread, for programs without a runtime. It lives on the same engine, and both kinds of
//! handle may be used on one socket.
//!
//! Not for a subscriber of `tracing` that hears the engine's own log, whose lines come from its reactors: one that blocks waits for itself.
//! The `try_` calls may be made there.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::core::{self, Take};
use super::{
    Batch, BindError, BindOptions, BuildError, CloseReport, ConnectError, Endpoint, EndpointError, Key, Payload,
    Received, RecvError, SendError, SocketBuilder, TryRecvError, TrySendError, WaitError, wait,
};
use crate::backend::Address;
use crate::protocol::Identity;
use crate::shard::{Event, PeerStats, Phase, Stats};

/// A [`Socket`](crate::Socket) whose calls block. Clones are handles to the same socket.
///
/// ```
/// use aiomsg_uring::blocking::Socket;
/// use std::time::Duration;
///
/// let server = Socket::new()?;
/// let address = server.bind("127.0.0.1:0")?;
/// let client = Socket::new()?;
/// client.connect(&address)?;
/// client.send("hello")?;
/// assert_eq!(server.recv_timeout(Duration::from_secs(10))?, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Socket {
    pub(super) socket: super::Socket,
}

impl From<super::Socket> for Socket {
    fn from(socket: super::Socket) -> Socket {
        Socket { socket }
    }
}

impl From<Socket> for super::Socket {
    fn from(socket: Socket) -> super::Socket {
        socket.socket
    }
}

impl Socket {
    /// A socket with all defaults, see [`Socket::new`](crate::Socket::new).
    ///
    /// # Errors
    /// When the global engine does not start.
    pub fn new() -> Result<Socket, BuildError> {
        super::Socket::new().map(Socket::from)
    }

    /// Settings; end with [`build_blocking`](SocketBuilder::build_blocking).
    pub fn builder() -> SocketBuilder {
        SocketBuilder::default()
    }

    /// Listens on an endpoint, see [`Socket::bind`](crate::Socket::bind).
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

    /// Connects for the socket's life, see [`Socket::connect`](crate::Socket::connect).
    ///
    /// # Errors
    /// When the text names no place, or the socket is closed.
    pub fn connect<E>(&self, endpoint: E) -> Result<(), ConnectError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        self.socket.start_connect(endpoint)
    }

    /// Sends a message; blocks while the log is full.
    ///
    /// # Errors
    /// When the message is too long, or the socket is closed.
    #[inline]
    pub fn send<'a>(&self, message: impl Into<Payload<'a>>) -> Result<(), SendError> {
        let payload = message.into();
        if self.socket.send_at_once(&payload) {
            Ok(())
        } else {
            self.when_room(payload, None, |payload| self.try_send(payload))
        }
    }

    /// Sends a message; blocks for at most `timeout` while the log is full.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendError::TimedOut`].
    pub fn send_timeout<'a>(&self, message: impl Into<Payload<'a>>, timeout: Duration) -> Result<(), SendError> {
        self.when_room(message.into(), Instant::now().checked_add(timeout), |payload| self.try_send(payload))
    }

    /// Sends a message that is the newest value of `key`, see [`Socket::send_keyed`](crate::Socket::send_keyed); blocks while the log is
    /// full.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendError::KeysFull`].
    pub fn send_keyed<'a>(&self, key: impl Into<Key<'a>>, message: impl Into<Payload<'a>>) -> Result<(), SendError> {
        let key = key.into();
        self.when_room(message.into(), None, |payload| self.try_send_keyed(key, payload))
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
        self.socket.try_send_keyed(key, message)
    }

    /// Forgets a key, see [`Socket::forget_key`](crate::Socket::forget_key).
    pub fn forget_key<'a>(&self, key: impl Into<Key<'a>>) -> bool {
        self.socket.forget_key(key)
    }

    #[cold]
    fn when_room<'a>(
        &self,
        mut payload: Payload<'a>,
        deadline: Option<Instant>,
        put: impl Fn(Payload<'a>) -> Result<(), TrySendError<'a>>,
    ) -> Result<(), SendError> {
        loop {
            payload = match put(payload) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Never(error)) => return Err(error),
                Err(TrySendError::Full(payload)) => payload,
            };
            let wait = wait::Room::new(self.socket.shared());
            payload = match put(payload) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Never(error)) => return Err(error),
                Err(TrySendError::Full(payload)) => payload,
            };
            if !wait.block(deadline) {
                return Err(SendError::TimedOut);
            }
        }
    }

    /// Sends a message that `fill` writes in its place, see [`Socket::send_with`](crate::Socket::send_with).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    #[inline]
    pub fn send_with(&self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), SendError> {
        match self.socket.send_with_at_once(bytes, fill) {
            Ok(()) => Ok(()),
            Err(fill) => self.send(core::filled(self.socket.shared(), bytes, fill)?),
        }
    }

    /// Sends a message that `fill` writes if there is room for it now.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send); the message that comes back is filled.
    pub fn try_send_with(&self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), TrySendError<'static>> {
        self.socket.try_send_with(bytes, fill)
    }

    /// Sends a message if there is room for it now, see [`Socket::try_send`](crate::Socket::try_send).
    ///
    /// # Errors
    /// When there is no room, with the message; when it is too long; or when the socket is closed.
    pub fn try_send<'a>(&self, message: impl Into<Payload<'a>>) -> Result<(), TrySendError<'a>> {
        self.socket.try_send(message)
    }

    /// Sends a message to one peer, see [`Socket::send_to`](crate::Socket::send_to); blocks while too much is under way to it.
    ///
    /// # Errors
    /// When the peer was never seen or is gone, the message is too long, or the socket is closed.
    pub fn send_to<'a>(&self, identity: Identity, message: impl Into<Payload<'a>>) -> Result<(), SendError> {
        let mut payload = message.into();
        loop {
            let room = self.socket.shared().room.listen();
            payload = match self.socket.try_send_to(identity, payload) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Never(error)) => return Err(error),
                Err(TrySendError::Full(payload)) => payload,
            };
            wait::block(room, None);
        }
    }

    /// Sends a message to one peer if there is room for it now.
    ///
    /// # Errors
    /// When there is no room, with the message; or as [`send_to`](Self::send_to).
    pub fn try_send_to<'a>(&self, identity: Identity, message: impl Into<Payload<'a>>) -> Result<(), TrySendError<'a>> {
        self.socket.try_send_to(identity, message)
    }

    /// The next message with everything about it, see [`Socket::recv_message`](crate::Socket::recv_message).
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    #[inline]
    pub fn recv_message(&self) -> Result<Received, RecvError> {
        let message = self.next(None).map_err(ended)?;
        Ok(Received::new(&self.socket.inner.shared, message))
    }

    /// As [`recv_message`](Self::recv_message); blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    #[inline]
    pub fn recv_message_timeout(&self, timeout: Duration) -> Result<Received, TryRecvError> {
        let message = self.next(Some(timeout))?;
        Ok(Received::new(&self.socket.inner.shared, message))
    }

    /// The next message from any peer; blocks until there is one.
    ///
    /// # Errors
    /// When the socket is closed and all that had arrived was taken.
    #[inline]
    pub fn recv(&self) -> Result<Bytes, RecvError> {
        self.next(None).map_err(ended)
    }

    /// The next message; blocks for at most `timeout`.
    ///
    /// # Errors
    /// [`TryRecvError::Empty`] when none came in time, or as [`recv`](Self::recv).
    #[inline]
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Bytes, TryRecvError> {
        self.next(Some(timeout))
    }

    /// The next message and who sent it; blocks until there is one.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    #[inline]
    pub fn recv_identity(&self) -> Result<(Identity, Bytes), RecvError> {
        self.next(None).map_err(ended)
    }

    /// The next message and who sent it; blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    #[inline]
    pub fn recv_identity_timeout(&self, timeout: Duration) -> Result<(Identity, Bytes), TryRecvError> {
        self.next(Some(timeout))
    }

    /// The messages of one peer that have arrived together; blocks until there are some.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_batch(&self) -> Result<Batch, RecvError> {
        self.next(None).map_err(ended)
    }

    /// The messages of one peer that have arrived together; blocks for at most `timeout`.
    ///
    /// # Errors
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_batch_timeout(&self, timeout: Duration) -> Result<Batch, TryRecvError> {
        self.next(Some(timeout))
    }

    /// The next message if one is there, see [`Socket::try_recv`](crate::Socket::try_recv).
    ///
    /// # Errors
    /// When none is there, or none will come any more.
    #[inline]
    pub fn try_recv(&self) -> Result<Bytes, TryRecvError> {
        self.socket.try_recv()
    }

    #[inline(always)]
    fn next<T: Take>(&self, timeout: Option<Duration>) -> Result<T, TryRecvError> {
        match self.socket.take() {
            Some(taken) => Ok(taken),
            None => self.wait_for_next(timeout),
        }
    }

    #[cold]
    fn wait_for_next<T: Take>(&self, timeout: Option<Duration>) -> Result<T, TryRecvError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let arrival = wait::Arrival::new(self.socket.shared(), &self.socket.inner.waiting);
            if let Some(taken) = self.socket.take() {
                return Ok(taken);
            }
            match self.socket.none_left() {
                TryRecvError::Empty if arrival.block(deadline) => {}
                none_left => return Err(none_left),
            }
            if let Some(taken) = self.socket.take() {
                return Ok(taken);
            }
        }
    }

    /// All messages, until the socket is closed.
    pub fn messages(&self) -> impl Iterator<Item = Bytes> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }

    /// All messages with who sent them, until the socket is closed.
    pub fn identity_messages(&self) -> impl Iterator<Item = (Identity, Bytes)> + '_ {
        std::iter::from_fn(|| self.recv_identity().ok())
    }

    /// The name by which peers know this socket.
    pub fn identity(&self) -> Identity {
        self.socket.identity()
    }

    /// The peers that are connected now.
    pub fn peers(&self) -> Vec<Identity> {
        self.socket.peers()
    }

    /// Blocks until `n` peers or more are connected.
    ///
    /// # Errors
    /// When they are not within `timeout`, or the socket is closed.
    pub fn wait_for_peers(&self, n: usize, timeout: Duration) -> Result<(), WaitError> {
        let deadline = Instant::now().checked_add(timeout);
        let shared = self.socket.shared();
        loop {
            let changed = shared.peers.changed.listen();
            let peers = shared.peers.count();
            if peers >= n {
                return Ok(());
            }
            if shared.phase() != Phase::Open || !wait::block(changed, deadline) {
                return Err(WaitError { peers: shared.peers.count(), wanted: n });
            }
        }
    }

    /// The next event; blocks for at most `timeout`.
    pub fn event_timeout(&self, timeout: Duration) -> Option<Event> {
        let deadline = Instant::now().checked_add(timeout);
        let shared = self.socket.shared();
        loop {
            let arrived = shared.events.arrived.listen();
            if let Some(event) = shared.events.pop() {
                return Some(event);
            }
            if shared.phase() >= Phase::Closed || !wait::block(arrived, deadline) {
                return None;
            }
        }
    }

    /// The next event if there is one.
    pub fn try_event(&self) -> Option<Event> {
        self.socket.try_event()
    }

    /// The socket's counters now. Costs a look at each peer, for the lag.
    pub fn stats(&self) -> Stats {
        self.socket.stats()
    }

    /// The counters of each peer that is connected now, in no particular order.
    pub fn peer_stats(&self) -> Vec<PeerStats> {
        self.socket.peer_stats()
    }

    /// One peer's counters; `None` if it is not connected now.
    pub fn peer_stats_of(&self, identity: Identity) -> Option<PeerStats> {
        self.socket.peer_stats_of(identity)
    }

    /// Ends the socket for all its handles, see [`Socket::close`](crate::Socket::close).
    pub fn close(&self) -> CloseReport {
        let mut report = CloseReport::default();
        self.socket.start_close().iter().for_each(|reply| report.add(wait::done_blocking(reply)));
        report
    }
}

/// A wait without a deadline ends only with the socket.
fn ended(error: TryRecvError) -> RecvError {
    match error {
        TryRecvError::Never(error) => error,
        TryRecvError::Empty => RecvError::Closed,
    }
}
