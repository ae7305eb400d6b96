//! The way up: one turn of the loop, and what each completion of the kernel means for its operation.
//!
//! The one unsafe block counts bytes of a buffer as written because the kernel said so.
#![allow(unsafe_code)]

use std::{io, mem};

use super::op::{Op, State, Work};
use super::seam::{Cqe, Ring};
use super::{BELL, CANCEL, Conn, Queued, Uring, named};
use crate::backend::{Completion, Handle, Outcome, ReadBuf, TURN_COMPLETIONS_MAX, cancelled, fill, sockets};
use crate::sabotage::{Bug, planted};

/// Boxes of finished sends that are kept.
const SPARE_SENDS_MAX: usize = 256;

impl<R: Ring> Uring<R> {
    /// See `Backend::turn`. The order: stock the buffer ring, then arm what waited for it; submit before waiting, and
    /// wait only when nothing at all is to be reported.
    pub(super) fn take_turn(&mut self, deadline_ns: u64, out: &mut Vec<Completion>) -> io::Result<()> {
        self.rang = false;
        if deadline_ns > 0
            && let Some(slab) = self.direct.slab.take()
        {
            // Nobody spins any more.
            self.pool.release(slab);
        }
        self.refill();
        let starving = self.feed_hungry();
        let hungry = self.hungry.len();
        self.send_directly();
        self.direct.received = false;
        let may_wait = deadline_ns > 0 && !starving && !self.ring.has_resolved();
        // Bounded: each round pushes something or is the last.
        loop {
            let pushed = self.push_chunk();
            self.reap()?;
            // A receive that has just run out of slabs has not asked to be woken for one: that is the next turn's start.
            let nothing_to_do = self.ready.is_empty() && !self.rang && self.hungry.len() == hungry;
            let wait = may_wait && !pushed.more && nothing_to_do;
            if wait || self.ring.needs_enter() {
                self.note_overflow();
                self.counters.syscalls += 1;
                self.ring.enter(wait.then_some(deadline_ns))?;
                self.reap()?;
            }
            if !pushed.more || pushed.count == 0 || self.ready.len() >= TURN_COMPLETIONS_MAX {
                break;
            }
        }
        let before = out.len();
        self.ring.resolved(out);
        if out.is_empty() && self.ready.len() <= TURN_COMPLETIONS_MAX {
            mem::swap(out, &mut self.ready);
        } else {
            out.extend(self.ready.drain(..self.ready.len().min(TURN_COMPLETIONS_MAX)));
        }
        self.counters.completions += (out.len() - before) as u64;
        if self.ready.is_empty() {
            for key in self.dead.drain(..) {
                self.conns.remove(key);
            }
        }
        Ok(())
    }

    /// See `Backend::recv_directly`. Order is kept because the kernel receives for requests only while it is entered: what the last
    /// visit brought has been reaped (or the ring gives nothing), and what comes now is newer. The request that waits for the same
    /// bytes finds none.
    pub(super) fn try_recv(&mut self, out: &mut Vec<Completion>) -> bool {
        if self.is_draining || !self.queue.is_empty() || !self.hungry.is_empty() || !self.ready.is_empty() {
            return false;
        }
        let Some((key, serial)) = self.direct.last else { return false };
        let armed = |op: &&mut Op| op.serial == serial && op.state == State::Armed && !op.cancelled && op.errno == 0;
        let Some(op) = self.ops.get_mut(key).filter(armed) else { return false };
        let Conn { socket: Some(socket), closing: false, .. } = &self.conns[op.conn] else { return false };
        let roomy = self.direct.slab.is_some_and(|slab| self.pool.spare(slab).len() >= self.pool.slab_bytes() / 4);
        // One beyond those of the buffer ring: these still come back without it.
        if !roomy && self.slabs_in_ring >= self.ring.slabs_wanted() {
            if let Some(used_up) = self.direct.slab.take() {
                self.pool.release(used_up);
            }
            self.direct.slab = self.pool.take();
        }
        let Some(slab) = self.direct.slab else { return false };
        self.counters.syscalls += 1;
        match self.ring.recv_now(socket, self.pool.spare(slab)) {
            0 => false,
            result if result < 0 => {
                op.errno = -result;
                false
            }
            len => {
                self.counters.completions += 1;
                let (token, lease) = (op.token, self.pool.lease(slab, len as usize));
                out.push(Completion { token, outcome: Outcome::Received(lease) });
                true
            }
        }
    }

    fn note_overflow(&mut self) {
        let overflowed = self.ring.has_overflowed();
        if overflowed && !self.overflowed {
            self.counters.cq_overflows += 1;
        }
        self.overflowed = overflowed;
    }

    /// Handles the completions that are there, as long as the shard has room for what they mean.
    fn reap(&mut self) -> io::Result<()> {
        for _ in self.ready.len()..TURN_COMPLETIONS_MAX {
            let Some(cqe) = self.ring.reap() else { break };
            self.on_cqe(cqe)?;
        }
        Ok(())
    }

    fn on_cqe(&mut self, cqe: Cqe) -> io::Result<()> {
        if cqe.user_data == BELL {
            self.ring.silence();
            self.rang = true;
            if !cqe.more {
                self.queue.push_back(Queued::Bell);
            }
            return Ok(());
        }
        let (key, serial) = named(cqe.user_data & !CANCEL);
        let armed = self.ops.get(key).filter(|op| op.serial == serial && op.state == State::Armed);
        if cqe.user_data & CANCEL != 0 {
            // What ends shows that in its own completion. But the kernel does not find what it is just about to try again, a send
            // above all, and that may wait for ever then.
            let missed = cqe.result == -libc::ENOENT && armed.is_some_and(|op| op.cancelled);
            if missed && !planted(Bug::CancelOnce) {
                self.queue.push_back(Queued::Cancel(cqe.user_data & !CANCEL));
            }
            return Ok(());
        }
        let Some(op) = armed else {
            return Err(io::Error::other("io_uring completed an operation that it does not have"));
        };
        match &op.work {
            Work::Recv => return self.on_recv(key, cqe),
            Work::Accept => self.on_accept(key, cqe),
            Work::Send(_) => self.on_send(key, cqe.result),
            Work::Connect(_) => self.on_connect(key, cqe.result),
            Work::Read(..) | Work::RecvInto(_) => self.on_received_once(key, cqe.result),
        }
        Ok(())
    }

    fn on_recv(&mut self, key: usize, cqe: Cqe) -> io::Result<()> {
        let (token, closing) = {
            let op = &self.ops[key];
            (op.token, self.conns[op.conn].closing)
        };
        if let Some(slab) = cqe.slab {
            if cqe.result > 0 {
                let len = cqe.result as usize;
                if usize::from(slab) >= self.pool.slabs().total || len > self.pool.spare_bytes(slab) {
                    // The position of the data would be a guess.
                    return Err(io::Error::other("io_uring reported more received bytes than the buffer had room for"));
                }
                let lease = self.pool.lease(slab, len);
                if !closing {
                    self.direct.last = Some((key, self.ops[key].serial));
                    self.complete(token, Outcome::Received(lease));
                }
            }
            if !cqe.slab_more || planted(Bug::SlabReusedEarly) {
                self.pool.release(slab);
                self.slabs_in_ring -= 1;
            }
        }
        if cqe.more {
            return Ok(());
        }
        let errno = self.ops[key].errno;
        match cqe.result {
            result if result <= 0 && errno != 0 => self.fail(key, error_of(-errno)),
            0 => self.finish(key, |_| Outcome::RecvEnded(Ok(()))),
            result if result == -libc::ENOBUFS => {
                self.counters.enobufs += 1;
                if self.ops[key].cancelled {
                    self.fail(key, cancelled());
                } else {
                    self.ops[key].state = State::Hungry;
                    if !planted(Bug::HungryForgotten) {
                        self.hungry.push_back((key, self.ops[key].serial));
                    }
                }
            }
            result if result > 0 && planted(Bug::MultishotNotRearmed) => {}
            result if result > 0 || is_not_now(result) => self.go_on(key),
            result => self.fail(key, error_of(result)),
        }
        Ok(())
    }

    fn on_accept(&mut self, key: usize, cqe: Cqe) {
        let op = &self.ops[key];
        let (token, closing) = (op.token, self.conns[op.conn].closing);
        if cqe.result >= 0 {
            let socket = self.ring.adopt(cqe.result);
            // Without an address the peer has left already; it is dropped here.
            if let (false, Ok(peer)) = (closing, self.ring.peer(&socket)) {
                let conn = self.insert(socket, false, false);
                self.complete(token, Outcome::Accepted { conn, peer });
            }
        }
        if cqe.more {
            return;
        }
        let error = error_of(cqe.result);
        if cqe.result >= 0 || is_not_now(cqe.result) || sockets::is_passing_accept_error(&error) {
            self.go_on(key);
        } else {
            self.fail(key, error);
        }
    }

    pub(super) fn on_send(&mut self, key: usize, result: i32) {
        let op = &mut self.ops[key];
        let Work::Send(sending) = &mut op.work else { return };
        if result > 0 {
            sending.sent += result as usize;
        }
        let error = match result {
            _ if sending.sent >= sending.total => None,
            0 => Some(io::Error::from(io::ErrorKind::WriteZero)),
            result if result > 0 && planted(Bug::ShortSendIsWhole) => None,
            result if result > 0 || is_not_now(result) => return self.go_on(key),
            result => Some(error_of(result)),
        };
        let mut spare = None;
        self.finish(key, |work| {
            let Work::Send(mut sending) = work else { unreachable!("checked above") };
            let outcome = sending.ended(error);
            spare = Some(sending);
            outcome
        });
        if self.spare_sends.len() < SPARE_SENDS_MAX {
            self.spare_sends.extend(spare);
        }
    }

    fn on_connect(&mut self, key: usize, result: i32) {
        let conn = self.ops[key].conn;
        let outcome = match (result, &self.conns[conn].socket) {
            (0, Some(socket)) => self.ring.connected(socket),
            (result, _) => Err(error_of(result)),
        };
        self.finish(key, |_| Outcome::Connected(outcome.map(|peer| (Handle(conn as u32), peer))));
    }

    fn on_received_once(&mut self, key: usize, result: i32) {
        if is_not_now(result) {
            return self.go_on(key);
        }
        if result < 0 {
            return self.fail(key, error_of(result));
        }
        let len = result as usize;
        self.finish(key, |work| match work {
            Work::Read(bytes, _) => Outcome::Read(Ok(ReadBuf::new(*bytes, len))),
            Work::RecvInto(mut buffer) => {
                // SAFETY: the kernel has written `len` bytes to the spare capacity that the request pointed at.
                unsafe { fill::append_written(&mut buffer, len) };
                Outcome::Filled { buffer, result: Ok(len) }
            }
            other => other.failed(io::Error::from(io::ErrorKind::InvalidData)),
        });
    }

    /// An operation that the kernel ended though it is not done: ends here if that is wanted, else goes on.
    fn go_on(&mut self, key: usize) {
        if self.ops[key].cancelled {
            self.fail(key, cancelled());
        } else {
            self.rearm(key);
        }
    }
}

fn is_not_now(result: i32) -> bool {
    result == -libc::EINTR || result == -libc::EAGAIN
}

fn error_of(result: i32) -> io::Error {
    if result == -libc::ECANCELED { cancelled() } else { io::Error::from_raw_os_error(-result) }
}
