//! The readiness driver: epoll, kqueue, event ports or IOCP by way of the `polling` crate, reporting completions.
//!
//! Operations are performed when the system says that they will not block. Sends are tried at once; what is left goes on
//! when the socket is writable. Receives of all connections share the current slab, one read for each report.
//! Where the system has no level-triggered mode each report uses up the registration, and it is renewed.
//!
//! Invariant of the one unsafe block: a socket is deleted from the poller before it is closed or given away.
#![allow(unsafe_code)]

mod entry;
mod ready;

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use polling::{Event, Events, PollMode, Poller};
use slab::Slab;

use self::entry::{Endpoint, Entry, Incoming, Interest, Sending};
use super::options::{BackendOptions, Kind, SocketOptions};
use super::pool::Pool;
use super::resolver::Resolver;
use super::sockets::{self, Listener, Stream};
use super::tokens::TokenMap;
use super::unacknowledged::unacknowledged;
use super::{
    Address, Backend, Completion, Counters, Handle, Outcome, READ_MAX, Slabs, TURN_COMPLETIONS_MAX, Token, cancelled,
    dead_handle, monotonic_ns,
};

/// Reports taken at a time: about as many receives as there are slabs for. The poller goes around: who is not among them is the next
/// time.
const REPORTS_MAX: NonZeroUsize = NonZeroUsize::new(32).unwrap();
/// The same while each brings [`MUCH_BYTES`]: what a turn receives is to be read before it has left the caches.
const REPORTS_FEW: NonZeroUsize = NonZeroUsize::new(4).unwrap();
/// Bytes for each report of a turn: 1 MiB for [`REPORTS_MAX`].
const MUCH_BYTES: usize = 32 * 1024;

/// Receives that are tried again for each slab that came back.
const FED_PER_SLAB: usize = 16;

/// The readiness driver.
pub(crate) struct Poll {
    poller: Arc<Poller>,
    waker: Waker,
    mode: PollMode,
    events: Events,
    /// Those of the other size: [`REPORTS_FEW`] or [`REPORTS_MAX`].
    other_events: Events,
    takes_few: bool,
    /// Bytes received in this turn.
    received: usize,
    /// Listeners and connections; the key is the handle and the poller's key.
    entries: Slab<Entry>,
    /// Pending operations except lookups: which entry, and whether it is the outgoing one.
    tokens: TokenMap<(usize, bool)>,
    /// Entries whose registration has to be looked at before the next wait.
    dirty: Vec<usize>,
    /// Entries to be forgotten once `ready` is empty.
    dead: Vec<usize>,
    /// Completions that needed no waiting.
    ready: VecDeque<Completion>,
    pool: Pool,
    /// The slab that receives share now.
    current: Option<u16>,
    /// Entries whose receive waits for a slab, in the order in which they ran out.
    hungry: VecDeque<usize>,
    resolver: Resolver,
    counters: Counters,
}

struct Bell(Arc<Poller>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if let Err(error) = self.0.notify() {
            tracing::error!(%error, "the doorbell failed");
        }
    }
}

impl Poll {
    /// Opens the driver.
    pub(crate) fn new(options: &BackendOptions) -> io::Result<Poll> {
        let poller = Arc::new(Poller::new()?);
        let waker = Waker::from(Arc::new(Bell(Arc::clone(&poller))));
        let mode = if poller.supports_level() { PollMode::Level } else { PollMode::Oneshot };
        Ok(Poll {
            mode,
            events: Events::with_capacity(REPORTS_MAX),
            other_events: Events::with_capacity(REPORTS_FEW),
            takes_few: false,
            received: 0,
            entries: Slab::new(),
            tokens: TokenMap::default(),
            dirty: Vec::new(),
            dead: Vec::new(),
            ready: VecDeque::new(),
            pool: Pool::new(options.pool, waker.clone())?,
            current: None,
            hungry: VecDeque::new(),
            resolver: Resolver::new(waker.clone()),
            counters: Counters::default(),
            poller,
            waker,
        })
    }

    fn complete(&mut self, token: Token, outcome: Outcome) {
        self.ready.push_back(Completion { token, outcome });
    }

    fn live(&self, handle: Handle) -> Option<&Entry> {
        self.entries.get(handle.0 as usize)
    }

    fn insert(&mut self, endpoint: Endpoint) -> Handle {
        Handle(self.entries.insert(Entry::new(endpoint)) as u32)
    }

    fn mark_dirty(&mut self, key: usize) {
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| !entry.dirty) {
            entry.dirty = true;
            self.dirty.push(key);
        }
    }

    /// Starts an operation that waits for readability.
    fn start(&mut self, handle: Handle, token: Token, incoming: Incoming) {
        let key = handle.0 as usize;
        let fits = match (&incoming, self.live(handle)) {
            (Incoming::Accept, Some(entry)) => matches!(entry.endpoint, Endpoint::Listener(_)),
            (_, Some(entry)) => entry.stream().is_some(),
            (_, None) => false,
        };
        if !fits {
            return self.complete(token, incoming.failed(dead_handle()));
        }
        self.counters.submissions += 1;
        let entry = &mut self.entries[key];
        assert!(entry.incoming.is_none(), "one receiving operation at a time");
        entry.incoming = Some((token, incoming));
        self.tokens.insert(token, (key, false));
        self.mark_dirty(key);
    }

    /// Takes the entry's pending accept, connect or receive, to end it.
    fn take_incoming(&mut self, key: usize) -> Option<(Token, Incoming)> {
        let entry = self.entries.get_mut(key)?;
        let (token, incoming) = entry.incoming.take()?;
        if std::mem::take(&mut entry.hungry) {
            self.hungry.retain(|&hungry| hungry != key);
        }
        self.tokens.remove(&token);
        Some((token, incoming))
    }

    fn fail_incoming(&mut self, key: usize, error: io::Error) {
        if let Some((token, incoming)) = self.take_incoming(key) {
            let connecting = matches!(incoming, Incoming::Connect);
            self.complete(token, incoming.failed(error));
            if connecting {
                self.bury(key);
            }
        }
    }

    fn end_outgoing(&mut self, key: usize, error: Option<io::Error>) {
        if let Some(sending) = self.entries.get_mut(key).and_then(|entry| entry.outgoing.take()) {
            self.tokens.remove(&sending.token);
            self.complete(sending.token, sending.ended(error));
        }
    }

    /// Closes the socket; the entry goes when the completions of its operations have been delivered.
    fn bury(&mut self, key: usize) {
        self.unregister(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.endpoint = Endpoint::Dead;
            self.dead.push(key);
        }
    }

    fn unregister(&mut self, key: usize) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.registered.take().is_some()
            && let Some(socket) = entry.socket()
        {
            // It fails only for a socket that is not registered, which is what is wanted.
            let _ = self.poller.delete(socket);
        }
    }

    /// Tells the poller what has changed.
    fn register_changes(&mut self) {
        while let Some(key) = self.dirty.pop() {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            entry.dirty = false;
            let (wanted, shrink) = (entry.wanted(), std::mem::take(&mut entry.shrink));
            let Some(socket) = entry.socket() else { continue };
            let grows = match entry.registered {
                Some(now) => wanted.read && !now.read || wanted.write && !now.write,
                None => wanted.read || wanted.write,
            };
            if !grows && !shrink {
                continue;
            }
            let result = match entry.registered {
                Some(_) if !wanted.read && !wanted.write => {
                    // Not a registration for nothing: that would still report errors and hang-ups, over and over.
                    let _ = self.poller.delete(socket);
                    entry.registered = None;
                    continue;
                }
                None if !grows => continue,
                Some(_) => self.poller.modify_with_mode(socket, event(key, wanted), self.mode),
                // SAFETY: the socket is open and stays so while it is registered (the file's invariant).
                None => unsafe { self.poller.add_with_mode(socket, event(key, wanted), self.mode) },
            };
            self.counters.syscalls += 1;
            match result {
                Ok(()) => entry.registered = Some(wanted),
                Err(error) => {
                    // Out of memory or of watches: the operations cannot go on.
                    let copy = io::Error::new(error.kind(), error.to_string());
                    self.fail_incoming(key, error);
                    self.end_outgoing(key, Some(copy));
                }
            }
        }
    }

    /// Lets receives that wait for a slab try again; true when some still wait though a slab is free.
    fn feed_hungry(&mut self) -> bool {
        if self.hungry.is_empty() {
            return false;
        }
        for _ in 0..self.pool.slabs().free * FED_PER_SLAB {
            let Some(key) = self.hungry.pop_front() else { return false };
            if let Some(entry) = self.entries.get_mut(key) {
                entry.hungry = false;
                self.counters.rearms += 1;
                self.mark_dirty(key);
            }
        }
        !self.hungry.is_empty() && !self.pool.starve()
    }
}

impl Backend for Poll {
    fn kind(&self) -> Kind {
        Kind::Poll
    }

    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn listen(&mut self, address: &Address, options: &SocketOptions) -> io::Result<(Handle, Address)> {
        let (listener, bound) = Listener::open(address, options, true)?;
        Ok((self.insert(Endpoint::Listener(listener)), bound))
    }

    fn accept(&mut self, listener: Handle, token: Token) {
        self.start(listener, token, Incoming::Accept);
    }

    fn connect(&mut self, address: &Address, options: &SocketOptions, token: Token) {
        let opened = address.to_sockaddr().and_then(|to| Ok((sockets::open_stream(&to, options, true)?, to)));
        let (socket, to) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.complete(token, Outcome::Connected(Err(error))),
        };
        self.counters.submissions += 1;
        self.counters.syscalls += 1;
        match socket.connect(&to) {
            Ok(()) => {
                let conn = self.insert(Endpoint::Stream(socket, address.clone()));
                self.complete(token, Outcome::Connected(Ok((conn, address.clone()))));
            }
            Err(error) if is_in_progress(&error) && address.socket_addr().is_some() => {
                let conn = self.insert(Endpoint::Stream(socket, address.clone()));
                let key = conn.0 as usize;
                self.entries[key].incoming = Some((token, Incoming::Connect));
                self.tokens.insert(token, (key, false));
                self.mark_dirty(key);
            }
            Err(error) => self.complete(token, Outcome::Connected(Err(error))),
        }
    }

    fn resolve(&mut self, host: &str, port: u16, token: Token) {
        self.resolver.resolve(host, port, token);
    }

    fn read(&mut self, conn: Handle, len: usize, token: Token) {
        assert!((1..=READ_MAX).contains(&len), "a read is of 1..=READ_MAX bytes");
        self.start(conn, token, Incoming::Read(len));
    }

    fn recv(&mut self, conn: Handle, token: Token) {
        self.start(conn, token, Incoming::Recv);
    }

    fn recv_into(&mut self, conn: Handle, buffer: BytesMut, token: Token) {
        assert!(buffer.capacity() > buffer.len(), "a receive needs room");
        self.start(conn, token, Incoming::RecvInto(buffer));
    }

    fn send(&mut self, conn: Handle, slices: Vec<Bytes>, token: Token) {
        let mut sending = Sending::new(token, slices);
        let key = conn.0 as usize;
        let Some(socket) = self.entries.get(key).and_then(Entry::stream) else {
            return self.complete(token, sending.ended(Some(dead_handle())));
        };
        assert!(self.entries[key].outgoing.is_none(), "one send at a time");
        self.counters.submissions += 1;
        match sending.attempt(socket, &mut self.counters.syscalls) {
            Ok(true) => self.complete(token, sending.ended(None)),
            Ok(false) => {
                self.entries[key].outgoing = Some(sending);
                self.tokens.insert(token, (key, true));
                self.mark_dirty(key);
            }
            Err(error) => self.complete(token, sending.ended(Some(error))),
        }
    }

    fn cancel(&mut self, token: Token) {
        match self.tokens.get(&token) {
            Some(&(key, true)) => self.end_outgoing(key, Some(cancelled())),
            Some(&(key, false)) => self.fail_incoming(key, cancelled()),
            None => drop(self.resolver.cancel(token)),
        }
    }

    fn unacknowledged(&self, conn: Handle) -> Option<u64> {
        unacknowledged(self.live(conn)?.stream()?)
    }

    fn shutdown(&mut self, conn: Handle) {
        if let Some(socket) = self.live(conn).and_then(Entry::stream) {
            // It fails only when the connection is gone, which the next receive or send reports.
            let _ = socket.shutdown(std::net::Shutdown::Write);
        }
    }

    fn close(&mut self, handle: Handle) {
        let key = handle.0 as usize;
        if self.live(handle).is_some_and(|entry| entry.socket().is_some()) {
            self.end_outgoing(key, Some(cancelled()));
            let connecting = matches!(self.entries[key].incoming, Some((_, Incoming::Connect)));
            self.fail_incoming(key, cancelled());
            if !connecting {
                self.bury(key);
            }
        }
    }

    fn detach(&mut self, conn: Handle) -> Option<Stream> {
        let key = conn.0 as usize;
        let entry = self.live(conn)?;
        if entry.stream().is_none() || entry.incoming.is_some() || entry.outgoing.is_some() {
            return None;
        }
        self.unregister(key);
        let entry = &mut self.entries[key];
        let Endpoint::Stream(socket, _) = std::mem::replace(&mut entry.endpoint, Endpoint::Dead) else { return None };
        self.dead.push(key);
        Some(Stream::System { socket, nonblocking: true })
    }

    fn attach(&mut self, stream: Stream) -> io::Result<Handle> {
        let socket = stream.into_socket(true)?;
        let peer = sockets::peer_address(&socket)?;
        Ok(self.insert(Endpoint::Stream(socket, peer)))
    }

    fn slabs(&self) -> Slabs {
        self.pool.slabs()
    }

    fn turn(&mut self, deadline_ns: u64, out: &mut Vec<Completion>) -> io::Result<()> {
        // 1. What came back from other threads, so that the wait below covers it.
        let mut at_once = self.feed_hungry();
        self.register_changes();
        // 2. One visit to the poller, which waits only when there is nothing to report yet.
        at_once |= deadline_ns == 0 || !self.ready.is_empty() || self.resolver.is_ready();
        let timeout = match deadline_ns {
            _ if at_once => Some(Duration::ZERO),
            u64::MAX => None,
            deadline_ns => Some(Duration::from_nanos(deadline_ns.saturating_sub(monotonic_ns()))),
        };
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        self.counters.syscalls += 1;
        let waited = self.poller.wait(&mut events, timeout);
        // 3. The operations that became possible.
        self.received = 0;
        for event in events.iter() {
            self.on_event(event.key, Interest { read: event.readable, write: event.writable });
        }
        let takes_few = !events.is_empty() && self.received / events.len() >= MUCH_BYTES;
        self.events = events;
        if takes_few != self.takes_few {
            self.takes_few = takes_few;
            std::mem::swap(&mut self.events, &mut self.other_events);
        }
        match waited {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        // 4. Reports, oldest first.
        let before = out.len();
        self.resolver.collect(out);
        let count = self.ready.len().min(TURN_COMPLETIONS_MAX);
        out.extend(self.ready.drain(..count));
        self.counters.completions += (out.len() - before) as u64;
        if self.ready.is_empty() {
            for key in self.dead.drain(..) {
                self.entries.remove(key);
            }
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.unregister(key);
        }
    }
}

fn event(key: usize, interest: Interest) -> Event {
    Event::new(key, interest.read, interest.write)
}

/// Whether a non-blocking connect goes on by itself (EINPROGRESS has no stable `ErrorKind`).
fn is_in_progress(error: &io::Error) -> bool {
    #[cfg(target_os = "linux")]
    let in_progress = rustix::io::Errno::INPROGRESS.raw_os_error();
    #[cfg(any(target_os = "solaris", target_os = "illumos"))]
    let in_progress = 150;
    #[cfg(not(any(target_os = "linux", target_os = "solaris", target_os = "illumos")))]
    let in_progress = 36;
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(in_progress)
}
