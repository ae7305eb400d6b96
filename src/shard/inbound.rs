//! From a link to the application: what the kernel wrote is handed over where it lies, one queue entry per completion, and the
//! application's [`Walker`] yields the messages in it as slices.
//!
//! Whether received bytes are lent or copied is decided at hand-over: small pieces, and all pieces once slabs run short, are copied
//! into memory charged to the socket, so that no socket can keep the slabs that all share.

use bytes::{Bytes, BytesMut};

use crate::backend::{Lease, Slabs};
use crate::protocol::{self, Identity, MsgId};
use crate::queue::ReceiveQueue;
use crate::shard::LinkKey;

/// Pieces shorter than this are copied: a lease costs an allocation and holds a whole slab.
const LEND_FROM_BYTES: usize = 4096;
/// Small pieces are copied into blocks of this size, so that there is one allocation per block and not per piece.
const COPY_BLOCK_BYTES: usize = 64 * 1024;

/// A run of whole frames from one link.
pub(crate) struct Inbound {
    pub(crate) identity: Identity,
    /// Which link it came from, and on which shard: where an ACK has to go.
    pub(crate) link: LinkKey,
    pub(crate) shard: u32,
    pub(crate) frames: Bytes,
}

/// Makes [`Bytes`] of received pieces, for one socket.
#[derive(Default)]
pub(crate) struct HandOver {
    block: BytesMut,
}

impl HandOver {
    /// `run` is the part of the lease that holds whole frames.
    pub(crate) fn frames(&mut self, lease: Lease, run: std::ops::Range<usize>, slabs: Slabs) -> Bytes {
        if run.len() >= LEND_FROM_BYTES && slabs.free > slabs.total / 4 {
            return lease.into_bytes().slice(run);
        }
        let piece = &lease[run];
        if self.block.capacity() - self.block.len() < piece.len() {
            self.block.reserve(piece.len().max(COPY_BLOCK_BYTES));
        }
        self.block.extend_from_slice(piece);
        self.block.split().freeze()
    }
}

/// A received message, still in the memory that it was received into.
pub(crate) struct Message {
    pub(crate) identity: Identity,
    pub(crate) payload: Bytes,
    /// What the sender wants acknowledged, and where.
    pub(crate) ack: Option<(u32, LinkKey, MsgId)>,
}

/// The application's place in a receive queue. Belongs to the socket, not to a handle of it: a handle that goes away strands nothing.
#[derive(Default)]
pub(crate) struct Walker {
    current: Option<Inbound>,
    at: usize,
}

impl Walker {
    /// The next message, if one is there; `drained` is called when room was made in a queue that had stopped a link.
    #[inline]
    pub(crate) fn next(&mut self, queue: &ReceiveQueue<Inbound>, drained: impl Fn()) -> Option<Message> {
        loop {
            if let Some(run) = &self.current {
                if let Some(m) = protocol::next_message(&run.frames, &mut self.at) {
                    return Some(Message {
                        identity: run.identity,
                        payload: run.frames.slice(m.payload),
                        ack: m.msg_id.map(|id| (run.shard, run.link, id)),
                    });
                }
            }
            if !self.step(queue, &drained) {
                return None;
            }
        }
    }

    /// All that is left of the current run, or the next one: identity, frames, and where in them to begin.
    pub(crate) fn next_run(&mut self, queue: &ReceiveQueue<Inbound>, drained: impl Fn()) -> Option<(Inbound, usize)> {
        loop {
            let mut at = self.at;
            if let Some(run) = &self.current {
                if protocol::next_message(&run.frames, &mut at).is_some() {
                    let from = std::mem::take(&mut self.at);
                    let run = self.current.take()?;
                    if queue.release(run.frames.len()) {
                        drained();
                    }
                    return Some((run, from));
                }
            }
            if !self.step(queue, &drained) {
                return None;
            }
        }
    }

    /// Whether a message may be there without looking into the queue.
    pub(crate) fn is_midway(&self) -> bool {
        self.current.as_ref().is_some_and(|run| self.at < run.frames.len())
    }

    /// Goes on to the next run; false if there is none.
    #[cold]
    fn step(&mut self, queue: &ReceiveQueue<Inbound>, drained: &impl Fn()) -> bool {
        self.at = 0;
        if let Some(done) = self.current.take()
            && queue.release(done.frames.len())
        {
            drained();
        }
        self.current = queue.pop();
        self.current.is_some()
    }
}
