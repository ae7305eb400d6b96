//! The way down: the driver's queue into the submission queue, slabs into the buffer ring, and the last way out (drop).

use std::mem;

use super::op::{Op, State, Work};
use super::seam::{Request, Ring, Sqe};
use super::{BELL, CANCEL, Queued, Uring, user_data};
use crate::backend::cancelled;

/// Requests submitted by one visit to the kernel.
const CHUNK_REQUESTS: usize = 128;

/// Bytes sent by one visit, after which completions are looked at: sends run inside the visit.
const CHUNK_BYTES: usize = 2 * 1024 * 1024;

/// What a send has at most that is not worth a request.
const DIRECT_BYTES_MAX: usize = 4096;

/// Receives that are armed again for each slab in the buffer ring.
const FED_PER_SLAB: usize = 16;

/// How long a dropped driver waits for the kernel to let go of memory, in ns.
const DROP_WAIT_NS: u64 = 1_000_000_000;

/// What a push round achieved.
pub(super) struct Pushed {
    /// Requests that are now in the submission queue.
    pub(super) count: usize,
    /// Whether the queue still holds some.
    pub(super) more: bool,
}

impl<R: Ring> Uring<R> {
    /// Moves one piece of the queue into the submission queue.
    pub(super) fn push_chunk(&mut self) -> Pushed {
        let (mut count, mut bytes) = (0, 0);
        while let Some(next) = self.queue.front() {
            if count >= CHUNK_REQUESTS || bytes >= CHUNK_BYTES {
                return Pushed { count, more: true };
            }
            let (sqe, sends) = match *next {
                Queued::Bell => (Sqe { user_data: BELL, request: Request::Bell }, 0),
                Queued::Cancel(target) => (Sqe { user_data: target | CANCEL, request: Request::Cancel { target } }, 0),
                Queued::Op(key) if self.ops[key].cancelled => {
                    self.queue.pop_front();
                    self.fail(key, cancelled());
                    continue;
                }
                Queued::Op(key) => {
                    let op = &mut self.ops[key];
                    let Some(socket) = &self.conns[op.conn].socket else {
                        unreachable!("a descriptor outlives the operations on it")
                    };
                    let (request, sends) = op.work.request(self.ring.id(socket));
                    (Sqe { user_data: user_data(key, op.serial), request }, sends)
                }
            };
            if !self.ring.push(sqe) {
                return Pushed { count, more: true };
            }
            if let Some(Queued::Op(key)) = self.queue.pop_front() {
                self.ops[key].state = State::Armed;
            }
            self.counters.submissions += 1;
            (count, bytes) = (count + 1, bytes + sends);
        }
        Pushed { count, more: false }
    }

    /// One short send, and nothing else to visit the kernel for: a direct call is cheaper than a request with its completion. What does
    /// not fit at once goes on as a request. Who has just received directly answers first, and enters the kernel for what that left
    /// behind while the peer is at work.
    pub(super) fn send_directly(&mut self) {
        let (Some(&Queued::Op(key)), 1) = (self.queue.front(), self.queue.len()) else { return };
        let Op { conn, cancelled: false, work: Work::Send(sending), .. } = &self.ops[key] else { return };
        let ([bytes], 0) = (&sending.slices[..], sending.sent) else { return };
        let Some(socket) = &self.conns[*conn].socket else { return };
        if bytes.len() > DIRECT_BYTES_MAX || self.ring.needs_enter() && !self.direct.received {
            return;
        }
        self.counters.syscalls += 1;
        let sent = self.ring.send_now(socket, bytes);
        if sent > 0 {
            self.counters.submissions += 1;
            self.queue.pop_front();
            self.on_send(key, sent as i32);
        }
    }

    /// Keeps the buffer ring stocked.
    pub(super) fn refill(&mut self) {
        while !self.is_draining && self.slabs_in_ring < self.ring.slabs_wanted() {
            let Some(slab) = self.pool.take() else { return };
            self.ring.provide(slab, self.pool.memory(slab), self.pool.slab_bytes());
            self.slabs_in_ring += 1;
        }
    }

    /// Arms receives again that found no slab. True when the turn must not wait, because some still could be armed.
    pub(super) fn feed_hungry(&mut self) -> bool {
        if self.hungry.is_empty() {
            return false;
        }
        if self.slabs_in_ring == 0 {
            // The slab that comes back next rings; if one has come back since, look again at once.
            return !self.pool.starve();
        }
        for _ in 0..self.slabs_in_ring * FED_PER_SLAB {
            let Some((key, serial)) = self.hungry.pop_front() else { return false };
            let waits = |op: &&mut Op| op.serial == serial && op.state == State::Hungry;
            if let Some(op) = self.ops.get_mut(key).filter(waits) {
                op.state = State::Queued;
                self.queue.push_back(Queued::Op(key));
                self.counters.rearms += 1;
            }
        }
        !self.hungry.is_empty()
    }

    /// Queues an operation that ended early and has to go on.
    pub(super) fn rearm(&mut self, key: usize) {
        self.ops[key].state = State::Queued;
        self.queue.push_back(Queued::Op(key));
        self.counters.rearms += 1;
    }

    /// Cancels everything and waits until the kernel has let go of all memory; false when it has not.
    fn drain(&mut self) -> bool {
        self.is_draining = true;
        let keys: Vec<usize> = self.ops.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.cancel_op(key);
        }
        let deadline_ns = self.ring.now_ns() + DROP_WAIT_NS;
        let mut out = Vec::new();
        while !self.ops.is_empty() {
            if self.ring.now_ns() >= deadline_ns || self.take_turn(deadline_ns, &mut out).is_err() {
                return false;
            }
            out.clear();
        }
        true
    }
}

impl<R: Ring> Drop for Uring<R> {
    fn drop(&mut self) {
        if !self.drain() {
            // Better lost than written to by the kernel when it is somebody else's.
            tracing::error!(operations = self.ops.len(), "io_uring did not end its operations: leaking their buffers");
            mem::forget(mem::take(&mut self.ops));
            self.pool.leak();
        }
    }
}
