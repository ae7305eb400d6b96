//! The writing end of a log.
//!
//! Invariants: a frame lies in one own chunk, or its head ends an own chunk and its payload is the whole next chunk,
//! or it came ready-made in a chunk of whole frames. So the 4 bytes of a frame's length are always contiguous. An
//! append happens wholly or not at all; `Full` changes nothing that a reader sees.
//!
//! Called by one thread at a time (the socket's lock, or a shard that owns the log). It takes the list's lock only
//! when it needs memory, never per message, and it never waits.

use super::chunk::{Block, Chunk, Writer};
use super::list::Shared;
use super::sync::Arc;
use super::{Cursor, Full, Handle};
use crate::copy;
use bytes::Bytes;

/// Longest head of a frame, bytes: far more than a length, a type and a message id.
const HEAD_BYTES_MAX: usize = 256;
/// A payload larger than a chunk divided by this is not copied into a chunk that must be opened for it.
const COPY_SHARE: usize = 4;

/// Appends frames to a log.
pub(crate) struct Appender {
    writer: Writer,
    shared: Arc<Shared>,
}

impl Appender {
    pub(super) fn new(writer: Writer, shared: Arc<Shared>) -> Self {
        Self { writer, shared }
    }

    /// Appends one frame by copying it: `head` is its length, type and so on, `payload` the rest.
    ///
    /// # Errors
    /// `Full` if the budget has no room now. A payload above [`Handle::payload_bytes_max`] may never find room.
    #[inline]
    pub(crate) fn append<const H: usize>(&mut self, head: &[u8; H], payload: &[u8]) -> Result<(), Full> {
        const { assert!(H >= 4 && H <= HEAD_BYTES_MAX) };
        debug_assert_eq!(frame_bytes(head), Some(H as u64 + payload.len() as u64));
        // The slow path has a copy of the head, so that this one can be in registers.
        if self.writer.push(head, payload, 1) { Ok(()) } else { self.append_slow(&{ *head }, payload) }
    }

    /// Appends one frame with `head` and a payload of `bytes` bytes that `fill` writes in its place, zero at first.
    ///
    /// # Errors
    /// `fill` back, and `head` was not asked for, if the open chunk has no room: the payload is to be made elsewhere.
    #[inline(always)]
    pub(crate) fn append_with<const H: usize, F>(
        &mut self,
        head: impl FnOnce() -> [u8; H],
        bytes: usize,
        fill: F,
    ) -> Result<(), F>
    where
        F: FnOnce(&mut [u8]),
    {
        const { assert!(H >= 4 && H <= HEAD_BYTES_MAX) };
        self.writer.push_with(head, bytes, fill)
    }

    /// Appends one frame whose payload, if it is large, is kept by reference instead of copied.
    ///
    /// # Errors
    /// `Full` and the payload, as [`append`](Self::append).
    pub(crate) fn append_bytes<const H: usize>(&mut self, head: &[u8; H], payload: Bytes) -> Result<(), (Full, Bytes)> {
        const { assert!(H >= 4 && H <= HEAD_BYTES_MAX) };
        let copy = payload.len() < self.shared.options.share_from_bytes
            && (H + payload.len() <= self.writer.room() || self.is_copied(payload.len()));
        if copy {
            return self.append(head, &payload).map_err(|full| (full, payload));
        }
        debug_assert_eq!(frame_bytes(head), Some(H as u64 + payload.len() as u64));
        match self.reserve(H, payload.len()) {
            Ok(block) => self.put_payload(block, head, payload),
            Err(full) => return Err((full, payload)),
        }
        Ok(())
    }

    /// Appends `count` ready-made whole frames, which are all that `frames` holds; by reference unless they are few
    /// bytes.
    ///
    /// # Errors
    /// `Full` and the frames, as [`append`](Self::append).
    pub(crate) fn append_frames(&mut self, frames: Bytes, count: u32) -> Result<(), (Full, Bytes)> {
        debug_assert!(are_frames(&frames, count), "not {count} whole frames");
        if frames.is_empty() {
            return Ok(());
        }
        if frames.len() < self.shared.options.share_from_bytes && self.is_copied(frames.len()) {
            return self.append_copied(&frames, count).map_err(|full| (full, frames));
        }
        if let Err(full) = self.reserve(0, frames.len()) {
            return Err((full, frames));
        }
        let bytes = frames.len() as u32;
        let mut list = self.shared.lock();
        let rest = self.writer.finish(&[]);
        let place = self.writer.end();
        list.push(Arc::new(Chunk::frames(place, frames, count)));
        self.writer = Writer::resume(rest, place.after(bytes, count));
        list.push(Arc::clone(self.writer.chunk()));
        Ok(())
    }

    /// As [`append_frames`](Self::append_frames), by copying them: they are few.
    ///
    /// # Errors
    /// `Full`, as [`append`](Self::append).
    pub(crate) fn append_copied(&mut self, frames: &[u8], count: u32) -> Result<(), Full> {
        let appended = self.writer.push(&[], frames, count) || self.open_and_push(&[], frames, count);
        if appended { Ok(()) } else { Err(Full) }
    }

    /// Bytes appended since the log began.
    pub(crate) fn position(&self) -> u64 {
        self.writer.end().base
    }

    /// Frames appended since the log began.
    pub(crate) fn messages(&self) -> u64 {
        self.writer.end().base_seq
    }

    /// The end of what was appended.
    pub(crate) fn end(&self) -> Cursor {
        Cursor::boundary(self.position(), self.messages())
    }

    /// Where the oldest chunk begins that is still there: no cursor is before it, and none will be. Takes the lock.
    pub(crate) fn oldest(&self) -> u64 {
        self.shared.lock().oldest()
    }

    /// Lets go of what all cursors have passed; otherwise an append does that when it needs memory. Takes the lock.
    pub(crate) fn let_go(&self) {
        self.shared.let_go();
    }

    /// A handle that tells about the log.
    pub(crate) fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }

    /// The frame does not fit into what is left of the chunk.
    #[cold]
    fn append_slow<const H: usize>(&mut self, head: &[u8; H], payload: &[u8]) -> Result<(), Full> {
        if self.is_copied(payload.len()) {
            return if self.open_and_push(head, payload, 1) { Ok(()) } else { Err(Full) };
        }
        // Room first, copy then: a large payload is not copied in vain, and not under the lock.
        let block = self.reserve(H, payload.len())?;
        self.put_payload(block, head, copy::owned(payload));
        Ok(())
    }

    /// Whether so many bytes are copied into a chunk that is opened for them.
    fn is_copied(&self, bytes: usize) -> bool {
        bytes <= self.shared.options.chunk_bytes / COPY_SHARE
    }

    /// Goes on to a chunk in another block and writes there; false if there is none.
    fn open_and_push<const H: usize>(&mut self, head: &[u8; H], payload: &[u8], frames: u32) -> bool {
        let Ok(Some(block)) = self.shared.take(true, 0) else { return false };
        self.open(block);
        self.writer.push(head, payload, frames)
    }

    /// Room for `payload_bytes` by reference after a head of `head_bytes`: with it a block if the head needs one.
    fn reserve(&mut self, head_bytes: usize, payload_bytes: usize) -> Result<Option<Arc<Block>>, Full> {
        if u32::try_from(payload_bytes).is_err() {
            return Err(Full);
        }
        self.shared.take(self.writer.room() < head_bytes, payload_bytes)
    }

    /// Appends a frame for which room was reserved.
    fn put_payload<const H: usize>(&mut self, block: Option<Arc<Block>>, head: &[u8; H], payload: Bytes) {
        if let Some(block) = block {
            self.open(block);
        }
        let bytes = payload.len() as u32;
        // The head becomes visible inside the lock, so that nobody who holds it sees half a frame at the tail.
        let mut list = self.shared.lock();
        let rest = self.writer.finish(head);
        let place = self.writer.end();
        list.push(Arc::new(Chunk::payload(place, payload, H as u32)));
        self.writer = Writer::resume(rest, place.after(bytes, 1));
        list.push(Arc::clone(self.writer.chunk()));
    }

    /// Ends the chunk and begins one in `block`.
    fn open(&mut self, block: Arc<Block>) {
        let mut list = self.shared.lock();
        self.writer.finish(&[]);
        self.writer = Writer::open(block, self.writer.end());
        list.push(Arc::clone(self.writer.chunk()));
    }
}

/// Bytes of the frame that begins with `bytes`, its length field included; None if the field is not all there.
pub(super) fn frame_bytes(bytes: &[u8]) -> Option<u64> {
    let length = bytes.first_chunk::<4>()?;
    Some(4 + u64::from(u32::from_be_bytes(*length)))
}

fn are_frames(mut bytes: &[u8], count: u32) -> bool {
    for _ in 0..count {
        let rest = frame_bytes(bytes).and_then(|len| bytes.get(usize::try_from(len).ok()?..));
        let Some(rest) = rest else { return false };
        bytes = rest;
    }
    bytes.is_empty()
}
