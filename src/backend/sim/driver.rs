//! The plain simulated driver: performs operations on the simulated network when they are possible, and reports the same
//! completions as the real drivers, as piecemeal and as late as the faults say. It never waits: a turn that finds nothing says
//! until when it would have.

use std::collections::VecDeque;
use std::io;
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use slab::Slab;

use super::network::{self, BackendId, Host, Id, SharedNetwork, place};
use super::{Fault, faults};
use crate::backend::options::{Kind, PoolOptions, SocketOptions};
use crate::backend::pool::Pool;
use crate::backend::sockets::{self, Stream};
use crate::backend::tokens::TokenMap;
use crate::backend::{
    Address, Backend, Completion, Counters, Handle, Outcome, READ_MAX, ReadBuf, SEND_SLICES_MAX, Slabs,
    TURN_COMPLETIONS_MAX, Token, cancelled, dead_handle,
};

/// Less room than this in a slab, and the next one is taken.
const SPARE_BYTES_MIN: usize = 256;

/// See the file's header.
pub(crate) struct SimBackend {
    network: SharedNetwork,
    seat: BackendId,
    entries: Slab<Entry>,
    /// Which entry, and whether it is the outgoing operation.
    tokens: TokenMap<(usize, bool)>,
    /// Entries of things in the network.
    keys: std::collections::BTreeMap<Id, usize>,
    /// Entries to be tried in the next turn.
    attempts: VecDeque<usize>,
    hungry: VecDeque<usize>,
    resolving: Vec<Token>,
    ready: VecDeque<Completion>,
    dead: Vec<usize>,
    pool: Pool,
    current: Option<u16>,
    counters: Counters,
}

struct Entry {
    kind: EntryKind,
    incoming: Option<(Token, Incoming)>,
    outgoing: Option<Sending>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    Listener(Id),
    Conn(Id),
    /// Closed, and reported; or given away.
    Dead,
}

enum Incoming {
    Accept,
    Connect,
    Read(usize),
    Recv,
    RecvInto(BytesMut),
}

struct Sending {
    token: Token,
    slices: Vec<Bytes>,
    sent: usize,
    total: usize,
}

impl Incoming {
    fn failed(self, error: io::Error) -> Outcome {
        match self {
            Incoming::Accept => Outcome::AcceptEnded(error),
            Incoming::Connect => Outcome::Connected(Err(error)),
            Incoming::Read(_) => Outcome::Read(Err(error)),
            Incoming::Recv => Outcome::RecvEnded(Err(error)),
            Incoming::RecvInto(buffer) => Outcome::Filled { buffer, result: Err(error) },
        }
    }
}

impl SimBackend {
    /// A driver on a host of the network.
    ///
    /// # Errors
    /// When the pool's sizes are out of range.
    pub(crate) fn new(network: SharedNetwork, host: Host, pool: PoolOptions) -> io::Result<(SimBackend, BackendId)> {
        let seat = network.borrow_mut().sit(host);
        let bell = network.borrow().bell(seat);
        let backend = SimBackend {
            network,
            seat,
            entries: Slab::new(),
            tokens: TokenMap::default(),
            keys: std::collections::BTreeMap::new(),
            attempts: VecDeque::new(),
            hungry: VecDeque::new(),
            resolving: Vec::new(),
            ready: VecDeque::new(),
            dead: Vec::new(),
            pool: Pool::new(pool, bell)?,
            current: None,
            counters: Counters::default(),
        };
        Ok((backend, seat))
    }

    fn insert(&mut self, kind: EntryKind) -> Handle {
        let key = self.entries.insert(Entry { kind, incoming: None, outgoing: None });
        if let EntryKind::Listener(id) | EntryKind::Conn(id) = kind {
            self.keys.insert(id, key);
        }
        Handle(key as u32)
    }

    fn complete(&mut self, token: Token, outcome: Outcome) {
        self.ready.push_back(Completion { token, outcome });
    }

    fn start(&mut self, handle: Handle, token: Token, incoming: Incoming) {
        let key = handle.0 as usize;
        let fits = match (&incoming, self.entries.get(key).map(|entry| entry.kind)) {
            (Incoming::Accept, Some(EntryKind::Listener(_))) => true,
            (Incoming::Accept, _) => false,
            (_, Some(EntryKind::Conn(_))) => true,
            _ => false,
        };
        if !fits {
            return self.complete(token, incoming.failed(dead_handle()));
        }
        let entry = &mut self.entries[key];
        assert!(entry.incoming.is_none(), "one receiving operation at a time");
        entry.incoming = Some((token, incoming));
        assert!(self.tokens.insert(token, (key, false)).is_none(), "a token is unique among the pending ones");
        self.attempts.push_back(key);
    }

    fn fail_incoming(&mut self, key: usize, error: io::Error) {
        if let Some((token, incoming)) = self.entries[key].incoming.take() {
            self.tokens.remove(&token);
            self.hungry.retain(|&hungry| hungry != key);
            let connecting = matches!(incoming, Incoming::Connect);
            self.complete(token, incoming.failed(error));
            if connecting {
                self.bury(key);
            }
        }
    }

    fn end_outgoing(&mut self, key: usize, error: Option<io::Error>) {
        if let Some(Sending { token, slices, sent, .. }) = self.entries[key].outgoing.take() {
            self.tokens.remove(&token);
            self.complete(token, Outcome::Sent { slices, bytes: sent, error });
        }
    }

    fn bury(&mut self, key: usize) {
        if let EntryKind::Listener(id) | EntryKind::Conn(id) =
            std::mem::replace(&mut self.entries[key].kind, EntryKind::Dead)
        {
            self.network.borrow_mut().close(id);
            self.keys.remove(&id);
            self.dead.push(key);
        }
    }

    fn attempt(&mut self, key: usize) {
        match self.entries.get(key).map(|entry| entry.kind) {
            Some(EntryKind::Listener(id)) => self.accept_some(key, id),
            Some(EntryKind::Conn(id)) => {
                self.receive(key, id);
                self.transmit(key, id);
            }
            _ => {}
        }
    }

    fn accept_some(&mut self, key: usize, id: Id) {
        // Bounded: each round takes a connection that has come in.
        while let Some((token, Incoming::Accept)) = &self.entries[key].incoming {
            let token = *token;
            let accepted = self.network.borrow_mut().accept(id);
            match accepted {
                Ok((conn, peer)) => {
                    let conn = self.insert(EntryKind::Conn(conn));
                    self.complete(token, Outcome::Accepted { conn, peer: network::address(peer) });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if sockets::is_passing_accept_error(&error) => {}
                Err(error) => return self.fail_incoming(key, error),
            }
        }
    }

    fn receive(&mut self, key: usize, id: Id) {
        let Some((token, incoming)) = &mut self.entries[key].incoming else { return };
        let token = *token;
        let done = match incoming {
            Incoming::Accept => return,
            Incoming::Recv => return self.receive_leased(key, id, token),
            Incoming::Connect => match self.network.borrow().connected(id) {
                None => return,
                Some(Ok(peer)) => Ok(Outcome::Connected(Ok((Handle(key as u32), network::address(peer))))),
                Some(Err(error)) => Err(error),
            },
            Incoming::Read(len) => {
                let mut bytes = [0; READ_MAX];
                let read = self.network.borrow_mut().read(id, &mut bytes[..*len]);
                read.map(|len| Outcome::Read(Ok(ReadBuf::new(bytes, len))))
            }
            Incoming::RecvInto(buffer) => {
                let mut bytes = vec![0; (buffer.capacity() - buffer.len()).min(64 * 1024)];
                let read = self.network.borrow_mut().read(id, &mut bytes);
                read.map(|len| {
                    let mut buffer = std::mem::take(buffer);
                    buffer.extend_from_slice(&bytes[..len]);
                    Outcome::Filled { buffer, result: Ok(len) }
                })
            }
        };
        match done {
            Ok(outcome) => {
                self.entries[key].incoming = None;
                self.tokens.remove(&token);
                self.complete(token, outcome);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.fail_incoming(key, error),
        }
    }

    fn receive_leased(&mut self, key: usize, id: Id, token: Token) {
        // Bounded: a few slabs at a time, as a real driver is for fairness.
        for _ in 0..4 {
            if !self.network.borrow().is_readable(id) {
                return;
            }
            let Some(slab) = self.roomy_slab() else {
                self.counters.enobufs += 1;
                self.network.borrow_mut().faults.note(Fault::FewSlabs);
                if !self.hungry.contains(&key) {
                    self.hungry.push_back(key);
                }
                return;
            };
            let read = self.network.borrow_mut().read(id, self.pool.spare(slab));
            match read {
                Ok(0) => {
                    self.entries[key].incoming = None;
                    self.tokens.remove(&token);
                    return self.complete(token, Outcome::RecvEnded(Ok(())));
                }
                Ok(len) => {
                    let lease = self.pool.lease(slab, len);
                    self.complete(token, Outcome::Received(lease));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.fail_incoming(key, error),
            }
        }
        self.attempts.push_back(key);
    }

    fn roomy_slab(&mut self) -> Option<u16> {
        if let Some(slab) = self.current {
            let spare = self.pool.spare(slab).len();
            if spare >= SPARE_BYTES_MIN || spare > 0 && !self.pool.has_free() {
                return Some(slab);
            }
            self.pool.release(slab);
        }
        self.current = self.pool.take();
        self.current
    }

    fn transmit(&mut self, key: usize, id: Id) {
        // Bounded: each round hands over at least a byte.
        while let Some(sending) = &mut self.entries[key].outgoing {
            if sending.sent == sending.total {
                return self.end_outgoing(key, None);
            }
            let mut skip = sending.sent;
            let parts = sending.slices.iter().map(move |slice| {
                let part = &slice[skip.min(slice.len())..];
                skip -= slice.len() - part.len();
                part
            });
            let written = self.network.borrow_mut().write(id, parts);
            match written {
                Ok(len) => sending.sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.end_outgoing(key, Some(error)),
            }
        }
    }

    fn feed_hungry(&mut self) {
        while self.pool.has_free() || self.current.is_some_and(|slab| !self.pool.spare(slab).is_empty()) {
            let Some(key) = self.hungry.pop_front() else { return };
            self.counters.rearms += 1;
            self.attempts.push_back(key);
            if self.hungry.is_empty() {
                return;
            }
        }
        if !self.hungry.is_empty() && !self.pool.starve() {
            self.attempts.extend(self.hungry.drain(..));
        }
    }
}

impl Backend for SimBackend {
    fn kind(&self) -> Kind {
        Kind::Sim
    }

    fn now_ns(&self) -> u64 {
        self.network.borrow().now_ns()
    }

    fn waker(&self) -> Waker {
        self.network.borrow().bell(self.seat)
    }

    fn listen(&mut self, address: &Address, _options: &SocketOptions) -> io::Result<(Handle, Address)> {
        let (id, bound) = self.network.borrow_mut().listen(self.seat, place(address)?)?;
        Ok((self.insert(EntryKind::Listener(id)), network::address(bound)))
    }

    fn accept(&mut self, listener: Handle, token: Token) {
        self.start(listener, token, Incoming::Accept);
    }

    fn connect(&mut self, address: &Address, _options: &SocketOptions, token: Token) {
        let connected = place(address).and_then(|place| self.network.borrow_mut().connect(self.seat, place));
        match connected {
            Ok(id) => {
                let handle = self.insert(EntryKind::Conn(id));
                self.start(handle, token, Incoming::Connect);
            }
            Err(error) => self.complete(token, Outcome::Connected(Err(error))),
        }
    }

    fn resolve(&mut self, host: &str, port: u16, token: Token) {
        self.resolving.push(token);
        self.network.borrow_mut().resolve(self.seat, host, port, token);
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
        assert!(slices.len() <= SEND_SLICES_MAX, "at most SEND_SLICES_MAX slices");
        let key = conn.0 as usize;
        let total = slices.iter().map(Bytes::len).sum();
        if !self.entries.get(key).is_some_and(|entry| matches!(entry.kind, EntryKind::Conn(_))) {
            return self.complete(token, Outcome::Sent { slices, bytes: 0, error: Some(dead_handle()) });
        }
        let entry = &mut self.entries[key];
        assert!(entry.outgoing.is_none(), "one send at a time");
        entry.outgoing = Some(Sending { token, slices, sent: 0, total });
        assert!(self.tokens.insert(token, (key, true)).is_none(), "a token is unique among the pending ones");
        self.attempts.push_back(key);
    }

    fn cancel(&mut self, token: Token) {
        match self.tokens.get(&token) {
            Some(&(key, true)) => self.end_outgoing(key, Some(cancelled())),
            Some(&(key, false)) => self.fail_incoming(key, cancelled()),
            None => {
                if let Some(at) = self.resolving.iter().position(|&pending| pending == token) {
                    self.resolving.swap_remove(at);
                    self.complete(token, Outcome::Resolved(Err(cancelled())));
                }
            }
        }
    }

    fn shutdown(&mut self, conn: Handle) {
        if let Some(EntryKind::Conn(id)) = self.entries.get(conn.0 as usize).map(|entry| entry.kind) {
            self.network.borrow_mut().shutdown(id);
        }
    }

    fn close(&mut self, handle: Handle) {
        let key = handle.0 as usize;
        if self.entries.get(key).is_some_and(|entry| entry.kind != EntryKind::Dead) {
            self.end_outgoing(key, Some(cancelled()));
            self.fail_incoming(key, cancelled());
            self.bury(key);
        }
    }

    fn detach(&mut self, conn: Handle) -> Option<Stream> {
        let key = conn.0 as usize;
        let entry = self.entries.get_mut(key)?;
        let EntryKind::Conn(id) = entry.kind else { return None };
        if entry.incoming.is_some() || entry.outgoing.is_some() {
            return None;
        }
        entry.kind = EntryKind::Dead;
        self.keys.remove(&id);
        self.dead.push(key);
        Some(Stream::Simulated(self.network.borrow_mut().give(id)))
    }

    fn attach(&mut self, stream: Stream) -> io::Result<Handle> {
        let Stream::Simulated(stream) = stream else { return Err(io::ErrorKind::Unsupported.into()) };
        self.network.borrow_mut().take(self.seat, &stream);
        Ok(self.insert(EntryKind::Conn(stream.id)))
    }

    fn slabs(&self) -> Slabs {
        self.pool.slabs()
    }

    fn turn(&mut self, deadline_ns: u64, out: &mut Vec<Completion>) -> io::Result<()> {
        let rang = self.network.borrow_mut().take_bell(self.seat);
        self.feed_hungry();
        loop {
            let Some(id) = self.network.borrow_mut().next_ready(self.seat) else { break };
            if let Some(&key) = self.keys.get(&id) {
                self.attempts.push_back(key);
            }
        }
        for _ in 0..self.attempts.len() {
            let Some(key) = self.attempts.pop_front() else { break };
            self.attempt(key);
        }
        loop {
            let Some((token, result)) = self.network.borrow_mut().next_resolved(self.seat) else { break };
            if let Some(at) = self.resolving.iter().position(|&pending| pending == token) {
                self.resolving.swap_remove(at);
                self.complete(token, Outcome::Resolved(result));
            }
        }
        let mut count = self.ready.len().min(TURN_COMPLETIONS_MAX);
        if count > 1 && self.network.borrow_mut().strikes(faults::Fault::PiecemealCompletions, 4) {
            count = self.network.borrow_mut().dice.pick(1, count as u64 - 1) as usize;
        }
        out.extend(self.ready.drain(..count));
        self.counters.completions += count as u64;
        if self.ready.is_empty() {
            for key in self.dead.drain(..) {
                self.entries.remove(key);
            }
        }
        let backlog = !self.ready.is_empty() || !self.attempts.is_empty();
        let waits = deadline_ns > 0 && count == 0 && !backlog && !rang;
        self.network.borrow_mut().turned(self.seat, if waits { deadline_ns } else { 0 }, backlog);
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Drop for SimBackend {
    fn drop(&mut self) {
        let keys: Vec<Id> = self.keys.keys().copied().collect();
        for id in keys {
            self.network.borrow_mut().close(id);
        }
    }
}
