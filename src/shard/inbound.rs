//! From a link to the application: what the kernel wrote is handed over where it lies, one queue entry per completion, and the
//! application's [`Walker`] yields the messages in it as slices.
//!
//! Whether received bytes are lent or copied is decided at hand-over: small pieces, and all pieces once slabs run short, are copied
//! into memory charged to the socket, so that no socket can keep the slabs that all share.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

use crate::backend::{Lease, Slabs};
use crate::copy;
use crate::protocol::{self, Identity, MsgId};
use crate::shard::{AckMode, LinkKey, SocketShared};

/// Pieces shorter than this are copied: a lease costs an allocation and holds a whole slab.
const LEND_FROM_BYTES: usize = 4096;
/// Small pieces are copied into blocks of this size, so that there is one allocation per block and not per piece.
const COPY_BLOCK_BYTES: usize = 64 * 1024;

/// A run of whole frames from one link.
#[derive(Clone)]
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
    pub(crate) fn frames(&mut self, lease: Lease, run: Range<usize>, slabs: Slabs) -> Bytes {
        if run.len() >= LEND_FROM_BYTES && slabs.free > slabs.total / 4 {
            return lease.into_bytes().slice(run);
        }
        let piece = &lease[run];
        if self.block.capacity() - self.block.len() < piece.len() {
            self.block.reserve(piece.len().max(COPY_BLOCK_BYTES));
        }
        copy::extend(&mut self.block, piece);
        self.block.split().freeze()
    }
}

/// Where the acknowledgement of a message goes: the link on which it arrived last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) shard: u32,
    pub(crate) link: LinkKey,
    pub(crate) id: MsgId,
}

/// A received message, still in the memory that it was received into.
pub(crate) struct Message {
    pub(crate) identity: Identity,
    pub(crate) payload: Bytes,
    /// What its sender wants acknowledged.
    pub(crate) ack: Option<Ack>,
}

/// The application's place in a receive queue. Belongs to the socket, not to a handle of it: a handle that goes away strands nothing.
#[derive(Default)]
pub(crate) struct Walker {
    current: Option<Inbound>,
    at: usize,
    in_hand: InHand,
}

/// Asked for its length, a message that is on its way out is moved in words. Unasked, its length and the word behind it are moved together,
/// by a load that is wider than the stores of [`Bytes::slice`] and waits until they are done: more than half of `recv`, for those who
/// do not ask either before they pass it on.
#[inline(always)]
fn move_in_words(payload: &Bytes) {
    // It is always so, which the compiler does not know.
    assert!(payload.len() <= isize::MAX as usize);
}

/// Automatic acknowledgement: what the application has in hand.
#[derive(Default)]
enum InHand {
    #[default]
    Nothing,
    Message(Ack),
    /// The messages of a run, from an offset on.
    Run(Inbound, usize),
}

impl Walker {
    /// The next message, if one is there.
    #[inline(always)]
    pub(crate) fn next(&mut self, shared: &SocketShared) -> Option<Message> {
        let message = self.next_with(shared, |identity, payload, ack| Message { identity, payload, ack })?;
        move_in_words(&message.payload);
        Some(message)
    }

    /// The payload of the next message: half the time of [`next`](Self::next), as nothing else has to be moved.
    #[inline(always)]
    pub(crate) fn next_payload(&mut self, shared: &SocketShared) -> Option<Bytes> {
        let payload = self.next_with(shared, |_, payload, _| payload)?;
        move_in_words(&payload);
        Some(payload)
    }

    // Inlined, so that a message is not moved through memory once more at each call: what was stored in words is not yet there to be
    // loaded in pairs.
    #[inline(always)]
    fn next_with<T>(&mut self, shared: &SocketShared, make: impl Fn(Identity, Bytes, Option<Ack>) -> T) -> Option<T> {
        self.let_go(shared);
        loop {
            if let Some(run) = &self.current
                && let Some(m) = protocol::next_message(&run.frames, &mut self.at)
            {
                let ack = m.msg_id.map(|id| Ack { shard: run.shard, link: run.link, id });
                if ack.is_some() && shared.config.ack_mode == AckMode::Automatic {
                    self.in_hand = ack.map_or(InHand::Nothing, InHand::Message);
                }
                let identity = run.identity;
                let payload = match self.at < run.frames.len() {
                    true => run.frames.slice(m.payload),
                    false => self.last(shared, m.payload),
                };
                return Some(make(identity, payload, ack));
            }
            if !self.step(shared) {
                return None;
            }
        }
    }

    /// All that is left of the current run, or the next one: identity, frames, and where in them to begin.
    pub(crate) fn next_run(&mut self, shared: &SocketShared) -> Option<(Inbound, usize)> {
        self.let_go(shared);
        loop {
            let mut at = self.at;
            if let Some(run) = &self.current
                && let Some(first) = protocol::next_message(&run.frames, &mut at)
            {
                let from = self.at;
                let run = self.end_run(shared)?;
                if first.msg_id.is_some() && shared.config.ack_mode == AckMode::Automatic {
                    self.in_hand = InHand::Run(run.clone(), from);
                }
                return Some((run, from));
            }
            if !self.step(shared) {
                return None;
            }
        }
    }

    /// Whether a message may be there without looking into the queue.
    pub(crate) fn is_midway(&self) -> bool {
        self.current.as_ref().is_some_and(|run| self.at < run.frames.len())
    }

    /// The application asks for more: it is done with what it has had in hand.
    #[inline]
    fn let_go(&mut self, shared: &SocketShared) {
        if !matches!(self.in_hand, InHand::Nothing) {
            self.acknowledge(shared);
        }
    }

    #[cold]
    fn acknowledge(&mut self, shared: &SocketShared) {
        match std::mem::take(&mut self.in_hand) {
            InHand::Nothing => {}
            InHand::Message(ack) => shared.acknowledge(ack.shard, ack.link, &[ack.id]),
            InHand::Run(run, mut at) => {
                let next = || protocol::next_message(&run.frames, &mut at);
                let ids: Vec<MsgId> = std::iter::from_fn(next).filter_map(|message| message.msg_id).collect();
                shared.acknowledge(run.shard, run.link, &ids);
            }
        }
    }

    /// The application closes the socket: it is done with what it has had.
    pub(crate) fn finish(&mut self, shared: &SocketShared) {
        self.let_go(shared);
    }

    /// The last message of the run takes the run's place: nothing is left of it here while the application has no need of more.
    fn last(&mut self, shared: &SocketShared, payload: Range<usize>) -> Bytes {
        // An empty payload holds nothing.
        let Some(Inbound { mut frames, .. }) = self.end_run(shared).filter(|_| !payload.is_empty()) else {
            return Bytes::new();
        };
        frames.truncate(payload.end);
        frames.advance(payload.start);
        frames
    }

    fn end_run(&mut self, shared: &SocketShared) -> Option<Inbound> {
        self.at = 0;
        let run = self.current.take()?;
        if shared.inbox.release(run.frames.len()) {
            shared.resume_reading();
        }
        Some(run)
    }

    /// Goes on to the next run; false if there is none.
    #[cold]
    fn step(&mut self, shared: &SocketShared) -> bool {
        self.end_run(shared);
        self.current = shared.inbox.pop();
        self.current.is_some()
    }
}
