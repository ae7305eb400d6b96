//! The io_uring driver: bookkeeping of operations over a thin [`Ring`].
//!
//! Rules that it keeps, whatever the ring does (a simulated one does its worst):
//! - memory lent to a request is neither touched nor freed before the request's last completion (the `more` flag says
//!   which that is, never the errno);
//! - a receive that ended without an end of the stream or an error is armed again, after the buffer ring was refilled;
//!   one that found no buffer waits for a slab to come back: nothing spins;
//! - `user_data` carries a serial number, so that a late cancellation cannot hit a newer operation;
//! - closing cancels first and closes the descriptor after the last completion;
//! - wide fan-out is submitted in pieces, with completions reaped in between.
//!
//! This file is free of unsafe code but for one length that the kernel reported.

mod buffers;
mod message;
mod op;
mod probe;
mod ring;
mod seam;
#[cfg(any(test, feature = "simulation"))]
mod simulated;
mod submit;
mod turn;

use std::collections::VecDeque;
use std::io;
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use slab::Slab;

use self::op::{Op, Sending, State, Work};
pub(super) use self::probe::self_test;
use self::ring::KernelRing;
use self::seam::Ring;
#[cfg(any(test, feature = "simulation"))]
pub(super) use self::simulated::open_simulated;
use super::options::{BackendOptions, Kind, SocketOptions};
use super::pool::Pool;
use super::sockets::Stream;
use super::tokens::TokenMap;
use super::{
    Address, Backend, Completion, Counters, Handle, Outcome, READ_MAX, SEND_SLICES_MAX, Slabs, Token, dead_handle,
};
use crate::sabotage::{Bug, planted};

/// Opens the driver for the calling thread.
pub(super) fn open(options: &BackendOptions) -> io::Result<Box<dyn Backend>> {
    Ok(Box::new(Uring::new(KernelRing::open(options)?)?))
}

/// The io_uring driver over the kernel's ring or a simulated one.
struct Uring<R: Ring> {
    /// Declared before `pool`: the ring is closed before its buffers are freed.
    ring: R,
    pool: Pool,
    /// Slabs in the buffer ring that are not known to be used up.
    slabs_in_ring: usize,
    ops: Slab<Op>,
    next_serial: u32,
    conns: Slab<Conn<R::Socket>>,
    tokens: TokenMap<usize>,
    /// What waits for room in the submission queue, oldest first.
    queue: VecDeque<Queued>,
    /// Receives that wait for a slab, by key and serial, in the order in which they ran out.
    hungry: VecDeque<(usize, u32)>,
    /// It is being dropped: nothing is received any more.
    is_draining: bool,
    /// Completions for the shard, not yet delivered.
    ready: Vec<Completion>,
    /// Entries of `conns` to be forgotten when `ready` has been delivered: closed, all operations ended.
    dead: Vec<usize>,
    /// Boxes of finished sends, to be used again.
    #[expect(clippy::vec_box, reason = "a request points into the box: the send must not move")]
    spare_sends: Vec<Box<Sending>>,
    /// Whether the doorbell rang in this turn.
    rang: bool,
    overflowed: bool,
    /// What a direct receive needs, and has done.
    direct: Direct,
    counters: Counters,
}

/// Receiving by a call of its own.
#[derive(Default)]
struct Direct {
    /// The receive that completed last, by key and serial.
    last: Option<(usize, u32)>,
    /// The slab that it receives into; the buffer ring's are the kernel's.
    slab: Option<u16>,
    /// Whether it has received since the last turn.
    received: bool,
}

/// A listener or connection.
struct Conn<S> {
    /// `None` once it is closed or given away.
    socket: Option<S>,
    /// The pending accept, connect or receive.
    incoming: Option<usize>,
    /// The pending send.
    outgoing: Option<usize>,
    is_listener: bool,
    /// Still being made: not yet the shard's.
    is_connecting: bool,
    /// Closed by the shard; the descriptor goes with the last operation.
    closing: bool,
}

/// Something to be pushed.
enum Queued {
    Op(usize),
    Cancel(u64),
    Bell,
}

impl<R: Ring> Uring<R> {
    /// A driver over an empty ring.
    fn new(ring: R) -> io::Result<Uring<R>> {
        let pool = Pool::new(ring.pool_options(), ring.waker())?;
        Ok(Uring {
            ring,
            pool,
            slabs_in_ring: 0,
            ops: Slab::new(),
            next_serial: 0,
            conns: Slab::new(),
            tokens: TokenMap::default(),
            queue: VecDeque::from([Queued::Bell]),
            hungry: VecDeque::new(),
            is_draining: false,
            ready: Vec::new(),
            dead: Vec::new(),
            spare_sends: Vec::new(),
            rang: false,
            overflowed: false,
            direct: Direct::default(),
            counters: Counters::default(),
        })
    }

    fn complete(&mut self, token: Token, outcome: Outcome) {
        self.ready.push(Completion { token, outcome });
    }

    fn insert(&mut self, socket: R::Socket, is_listener: bool, is_connecting: bool) -> Handle {
        let conn =
            Conn { socket: Some(socket), incoming: None, outgoing: None, is_listener, is_connecting, closing: false };
        Handle(self.conns.insert(conn) as u32)
    }

    /// The live connection or listener behind a handle of the shard's.
    fn live(&self, handle: Handle, is_listener: bool) -> Option<&Conn<R::Socket>> {
        let conn = self.conns.get(handle.0 as usize)?;
        let usable = conn.socket.is_some() && !conn.closing && !conn.is_connecting && conn.is_listener == is_listener;
        usable.then_some(conn)
    }

    /// Queues an operation on a connection that the caller has checked.
    fn start(&mut self, conn: usize, token: Token, work: Work) {
        let outgoing = matches!(work, Work::Send(_));
        self.next_serial = self.next_serial.wrapping_add(u32::from(!planted(Bug::SerialReused)));
        let (serial, state, cancelled, errno) = (self.next_serial, State::Queued, false, 0);
        let key = self.ops.insert(Op { token, conn, serial, state, cancelled, errno, work });
        let conn = &mut self.conns[conn];
        let slot = if outgoing { &mut conn.outgoing } else { &mut conn.incoming };
        assert!(slot.is_none(), "one send and one receiving operation at a time");
        *slot = Some(key);
        self.tokens.insert(token, key);
        self.queue.push_back(Queued::Op(key));
    }

    fn start_incoming(&mut self, handle: Handle, token: Token, work: Work) {
        if self.live(handle, matches!(work, Work::Accept)).is_none() {
            return self.complete(token, work.failed(dead_handle()));
        }
        self.start(handle.0 as usize, token, work);
    }

    /// Asks one operation to end.
    fn cancel_op(&mut self, key: usize) {
        let op = &mut self.ops[key];
        if std::mem::replace(&mut op.cancelled, true) {
            return;
        }
        match op.state {
            // It ends when its turn to be pushed comes.
            State::Queued => {}
            State::Armed if planted(Bug::CancelForgotten) => {}
            State::Armed => self.queue.push_back(Queued::Cancel(user_data(key, op.serial))),
            State::Hungry => self.fail(key, super::cancelled()),
        }
    }

    /// Ends an operation that the kernel does not hold.
    fn fail(&mut self, key: usize, error: io::Error) {
        self.finish(key, |work| work.failed(error));
    }

    /// Removes an operation that the kernel does not hold (any more) and reports its terminal outcome.
    fn finish(&mut self, key: usize, outcome: impl FnOnce(Work) -> Outcome) {
        let op = self.ops.remove(key);
        self.tokens.remove(&op.token);
        let conn = &mut self.conns[op.conn];
        if matches!(op.work, Work::Send(_)) {
            conn.outgoing = None;
        } else {
            conn.incoming = None;
        }
        let outcome = outcome(op.work);
        if conn.is_connecting {
            conn.is_connecting = false;
            conn.closing |= !matches!(outcome, Outcome::Connected(Ok(_)));
        }
        self.bury_if_done(op.conn);
        self.complete(op.token, outcome);
    }

    /// Closes the descriptor of a closing connection that has no operations left.
    fn bury_if_done(&mut self, key: usize) {
        let conn = &mut self.conns[key];
        let idle = conn.incoming.is_none() && conn.outgoing.is_none();
        if conn.closing && (idle || planted(Bug::CloseUnderRequest)) && conn.socket.take().is_some() {
            self.dead.push(key);
        }
    }
}

impl<R: Ring> Backend for Uring<R> {
    fn kind(&self) -> Kind {
        Kind::Uring
    }

    fn now_ns(&self) -> u64 {
        self.ring.now_ns()
    }

    fn waker(&self) -> Waker {
        self.ring.waker()
    }

    fn listen(&mut self, address: &Address, options: &SocketOptions) -> io::Result<(Handle, Address)> {
        let (socket, bound) = self.ring.listen(address, options)?;
        Ok((self.insert(socket, true, false), bound))
    }

    fn accept(&mut self, listener: Handle, token: Token) {
        self.start_incoming(listener, token, Work::Accept);
    }

    fn connect(&mut self, address: &Address, options: &SocketOptions, token: Token) {
        let opened = address.to_sockaddr().and_then(|to| Ok((self.ring.open_stream(&to, options)?, to)));
        match opened {
            Ok((socket, to)) => {
                let conn = self.insert(socket, false, true);
                self.start(conn.0 as usize, token, Work::Connect(Box::new(to)));
            }
            Err(error) => self.complete(token, Outcome::Connected(Err(error))),
        }
    }

    fn resolve(&mut self, host: &str, port: u16, token: Token) {
        self.ring.resolve(host, port, token);
    }

    fn read(&mut self, conn: Handle, len: usize, token: Token) {
        assert!((1..=READ_MAX).contains(&len), "a read is of 1..=READ_MAX bytes");
        self.start_incoming(conn, token, Work::Read(Box::new([0; READ_MAX]), len));
    }

    fn recv(&mut self, conn: Handle, token: Token) {
        self.start_incoming(conn, token, Work::Recv);
    }

    fn recv_into(&mut self, conn: Handle, buffer: BytesMut, token: Token) {
        assert!(buffer.capacity() > buffer.len(), "a receive needs room");
        self.start_incoming(conn, token, Work::RecvInto(buffer));
    }

    fn send(&mut self, conn: Handle, slices: Vec<Bytes>, token: Token) {
        assert!(slices.len() <= SEND_SLICES_MAX, "at most SEND_SLICES_MAX slices");
        let mut sending = self.spare_sends.pop().unwrap_or_else(|| Box::new(Sending::new()));
        sending.begin(slices);
        if self.live(conn, false).is_none() {
            let outcome = sending.ended(Some(dead_handle()));
            return self.complete(token, outcome);
        }
        if sending.total == 0 {
            let outcome = sending.ended(None);
            return self.complete(token, outcome);
        }
        self.start(conn.0 as usize, token, Work::Send(sending));
    }

    fn cancel(&mut self, token: Token) {
        match self.tokens.get(&token) {
            Some(&key) => self.cancel_op(key),
            None => drop(self.ring.cancel_resolve(token)),
        }
    }

    fn unacknowledged(&self, conn: Handle) -> Option<u64> {
        self.ring.unacknowledged(self.live(conn, false)?.socket.as_ref()?)
    }

    fn shutdown(&mut self, conn: Handle) {
        if let Some(socket) = self.live(conn, false).and_then(|conn| conn.socket.as_ref()) {
            self.ring.shutdown(socket);
        }
    }

    fn close(&mut self, handle: Handle) {
        let key = handle.0 as usize;
        let Some(conn) = self.conns.get_mut(key).filter(|conn| !conn.closing && !conn.is_connecting) else { return };
        conn.closing = true;
        for op in [conn.incoming, conn.outgoing].into_iter().flatten() {
            self.cancel_op(op);
        }
        self.bury_if_done(key);
    }

    fn detach(&mut self, conn: Handle) -> Option<Stream> {
        let live = self.live(conn, false)?;
        if live.incoming.is_some() || live.outgoing.is_some() {
            return None;
        }
        let key = conn.0 as usize;
        let socket = self.conns[key].socket.take()?;
        self.dead.push(key);
        self.ring.release(socket)
    }

    fn attach(&mut self, stream: Stream) -> io::Result<Handle> {
        let socket = self.ring.attach(stream)?;
        Ok(self.insert(socket, false, false))
    }

    fn slabs(&self) -> Slabs {
        self.pool.slabs()
    }

    fn turn(&mut self, deadline_ns: u64, out: &mut Vec<Completion>) -> io::Result<()> {
        self.take_turn(deadline_ns, out)
    }

    fn recv_directly(&mut self, out: &mut Vec<Completion>) -> bool {
        let received = !self.direct.received && self.try_recv(out);
        self.direct.received |= received;
        received
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

/// The doorbell's completions.
const BELL: u64 = u64::MAX;
/// Marks the completions of cancellations themselves, beside what they were to cancel.
const CANCEL: u64 = 1 << 31;

fn user_data(key: usize, serial: u32) -> u64 {
    // Keys are below 2^31: an operation takes more than two bytes of memory.
    u64::from(serial) << 32 | key as u64
}

/// The key and the serial number.
fn named(user_data: u64) -> (usize, u32) {
    ((user_data & u64::from(u32::MAX)) as usize, (user_data >> 32) as u32)
}
