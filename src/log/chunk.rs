//! A chunk: one contiguous stretch of the log, written by one thread while others read what is published.
//!
//! This is the only file of the log with `unsafe` in it. Everything it offers is safe to call in any order. The one
//! rule that all its blocks rest on:
//!
//! ```text
//!   block   |<------------------------------ capacity ------------------------------>|
//!   chunk        offset |=== published: anybody reads ===|--- the Writer alone --------|
//!                                                        ^ len
//! ```
//!
//! - A `Writer` is the only thing that writes to its chunk's part of a block, and only at or beyond `published`.
//!   It is made from a block that nobody else refers to (checked), or from the `Rest` that another writer gave up,
//!   so two writers never share a byte.
//! - Readers form references only to bytes below a `published` length that they loaded with `Acquire`; those bytes
//!   are initialised and are not written again while any `Arc<Block>` but one exists.
//! - Every chunk and every slice that was handed out holds an `Arc<Block>`, so memory that somebody may still read
//!   (the kernel through a pending send included) cannot be handed to a new writer.
//!
//! Called by `appender`, `list` and `reader`. It never locks, never counts cursors and knows no budget.
#![allow(unsafe_code)]

use super::sync::{Arc, AtomicU64, Ordering, Watch};
use crate::copy;
use bytes::Bytes;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// Set in `Chunk::published` once a successor is in the list and nothing is added to this chunk any more.
const FOLLOWED: u64 = 1 << 63;
/// A remainder of a block smaller than this (bytes) is not worth a chunk of its own.
const REST_BYTES_MIN: u32 = 256;
/// A payload that is written in place is zero before: up to so many bytes with stores of a known length, not a call.
const ZEROED_AT_ONCE: usize = 64;

/// Memory for own chunks: allocated uninitialised, used again once nobody refers to it.
pub(super) struct Block {
    cells: Box<[UnsafeCell<MaybeUninit<u8>>]>,
    watch: Watch,
}

// SAFETY: the cells are written through a `Writer` only and read below `published` only (see the file's header), so
// sharing the block between threads shares no byte that is being written.
unsafe impl Sync for Block {}

impl Block {
    /// Allocates a block of `bytes` bytes without touching them.
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        let cells = Box::new_uninit_slice(bytes);
        #[cfg(test)]
        live_blocks::add(1);
        // SAFETY: an `UnsafeCell<MaybeUninit<u8>>` has no invalid state, uninitialised included.
        let cells = unsafe { cells.assume_init() };
        Arc::new(Self { cells, watch: Watch::new(bytes) })
    }

    fn start(&self) -> NonNull<u8> {
        // A slice's pointer is never null; the cells make writing through a shared borrow of the block legal.
        NonNull::from(&*self.cells).cast()
    }
}

#[cfg(test)]
impl Drop for Block {
    fn drop(&mut self) {
        live_blocks::add(-1);
    }
}

/// How many blocks the current test's thread has allocated and not yet freed.
#[cfg(test)]
pub(super) mod live_blocks {
    use std::cell::Cell;
    thread_local!(static LIVE: Cell<isize> = const { Cell::new(0) });

    pub(super) fn add(change: isize) {
        LIVE.with(|live| live.set(live.get() + change));
    }

    /// The count now.
    pub(crate) fn count() -> isize {
        LIVE.with(Cell::get)
    }
}

/// Where in the log a chunk begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Number of chunks before this one.
    pub(super) index: u64,
    /// Bytes of the log before this chunk.
    pub(super) base: u64,
    /// Frames that end at or before `base`.
    pub(super) base_seq: u64,
}

impl Place {
    /// Where the chunk after one of `bytes` bytes, in which `frames` frames end, begins.
    pub(super) fn after(self, bytes: u32, frames: u32) -> Self {
        Self { index: self.index + 1, base: self.base + u64::from(bytes), base_seq: self.base_seq + u64::from(frames) }
    }
}

/// What of a chunk is published: one atomic snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Bytes that may be read.
    pub(super) len: u32,
    /// Frames that end within those bytes, below 2^31.
    pub(super) frames: u32,
    /// The chunk is complete and its successor is in the list.
    pub(super) followed: bool,
}

impl Extent {
    fn pack(len: u32, frames: u32) -> u64 {
        u64::from(frames) << 32 | u64::from(len)
    }

    fn unpack(word: u64) -> Self {
        Self { len: word as u32, frames: (word >> 32) as u32 & (u32::MAX >> 1), followed: word & FOLLOWED != 0 }
    }
}

enum Memory {
    /// Part of a block, from `offset`; no block if the chunk is to stay empty. Begins and grows by whole frames;
    /// only its very end may be the head of a frame whose payload is the next chunk.
    Own { block: Option<Arc<Block>>, offset: u32 },
    /// Whole frames by reference.
    Frames(Bytes),
    /// The payload of one frame by reference; the frame's first `head_bytes` end the chunk before.
    Payload { bytes: Bytes, head_bytes: u32 },
}

/// One stretch of the log.
pub(super) struct Chunk {
    place: Place,
    /// Bits 0..32 length in bytes, 32..63 frames, 63 `FOLLOWED`: one store publishes all three. Written by the
    /// chunk's `Writer` alone.
    published: AtomicU64,
    memory: Memory,
}

impl Chunk {
    /// A chunk that is `count` whole frames, kept by reference. The caller puts a successor behind it at once.
    pub(super) fn frames(place: Place, frames: Bytes, count: u32) -> Self {
        let published = Extent::pack(len_u32(&frames), count) | FOLLOWED;
        Self { place, published: AtomicU64::new(published), memory: Memory::Frames(frames) }
    }

    /// A chunk that is the payload of a frame whose head of `head_bytes` ends the chunk before. The caller puts a
    /// successor behind it at once.
    pub(super) fn payload(place: Place, bytes: Bytes, head_bytes: u32) -> Self {
        let published = Extent::pack(len_u32(&bytes), 1) | FOLLOWED;
        Self { place, published: AtomicU64::new(published), memory: Memory::Payload { bytes, head_bytes } }
    }

    /// Where the chunk begins.
    #[inline]
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Bytes of the log before this chunk.
    #[inline]
    pub(super) fn base(&self) -> u64 {
        self.place.base
    }

    /// What may be read now.
    #[inline]
    pub(super) fn extent(&self) -> Extent {
        Extent::unpack(self.published.load(Ordering::Acquire))
    }

    /// The log position just behind the published bytes.
    #[inline]
    pub(super) fn end(&self) -> u64 {
        self.place.base + u64::from(self.extent().len)
    }

    /// True if the bytes were not copied into the log's own memory.
    pub(super) fn is_by_reference(&self) -> bool {
        !matches!(self.memory, Memory::Own { .. })
    }

    /// The payload and the length of its frame's head, if this chunk is a payload by reference.
    pub(super) fn as_payload(&self) -> Option<(&Bytes, u32)> {
        match &self.memory {
            Memory::Payload { bytes, head_bytes } => Some((bytes, *head_bytes)),
            _ => None,
        }
    }

    /// The block that the chunk lies in, if it has one.
    pub(super) fn block(&self) -> Option<&Arc<Block>> {
        match &self.memory {
            Memory::Own { block, .. } => block.as_ref(),
            _ => None,
        }
    }

    /// Published bytes `from..to` of the chunk, in place.
    pub(super) fn bytes(&self, from: u32, to: u32) -> &[u8] {
        self.check(from, to);
        match &self.memory {
            Memory::Own { block: Some(block), offset } => {
                // SAFETY: `check` saw `to` at or below a length published with Release: those bytes are initialised,
                // inside the block, and nobody writes them while this chunk holds the block.
                unsafe { published_bytes(block, offset + from, to - from) }
            }
            Memory::Own { block: None, .. } => &[],
            Memory::Frames(bytes) | Memory::Payload { bytes, .. } => &bytes[from as usize..to as usize],
        }
    }

    /// Published bytes `from..to` of the chunk as a slice that keeps their memory from being used again.
    pub(super) fn slice(&self, from: u32, to: u32) -> Bytes {
        self.check(from, to);
        match &self.memory {
            Memory::Own { block: Some(block), offset } => {
                Bytes::from_owner(BlockSlice { block: Arc::clone(block), offset: offset + from, len: to - from })
            }
            Memory::Own { block: None, .. } => Bytes::new(),
            Memory::Frames(bytes) | Memory::Payload { bytes, .. } => bytes.slice(from as usize..to as usize),
        }
    }

    fn check(&self, from: u32, to: u32) {
        assert!(from <= to && to <= self.extent().len, "range beyond the published bytes of a chunk");
    }
}

/// Lengths of chunks are 32 bits; the appender refuses longer payloads before it comes to this.
fn len_u32(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len()).unwrap_or_else(|_| panic!("a chunk of {} bytes", bytes.len()))
}

/// # Safety
/// `offset..offset + len` must be published bytes of a chunk in `block`.
unsafe fn published_bytes(block: &Block, offset: u32, len: u32) -> &[u8] {
    block.watch.read(offset as usize, len as usize);
    // SAFETY: the range is inside the block and initialised, says the caller; it is not written while the block is
    // referred to from here, says the file's header.
    unsafe { std::slice::from_raw_parts(block.start().add(offset as usize).as_ptr(), len as usize) }
}

/// Owner of a slice that was handed out: published bytes of one block.
struct BlockSlice {
    block: Arc<Block>,
    offset: u32,
    len: u32,
}

impl AsRef<[u8]> for BlockSlice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `Chunk::slice` checked that the range is published.
        unsafe { published_bytes(&self.block, self.offset, self.len) }
    }
}

/// # Safety
/// `to` is valid for writes of as many bytes as `payload` has, and does not overlap it.
unsafe fn copy_large(payload: &[u8], mut to: *mut u8) {
    for piece in copy::pieces(payload, to) {
        // SAFETY: the pieces together are as long as `payload`.
        unsafe {
            std::ptr::copy_nonoverlapping(piece.as_ptr(), to, piece.len());
            to = to.add(piece.len());
        }
    }
}

/// The right to write the remainder of a block.
pub(super) struct Rest {
    block: Option<Arc<Block>>,
    offset: u32,
    capacity: u32,
}

/// The writing end of the newest own chunk.
pub(super) struct Writer {
    chunk: Arc<Chunk>,
    /// First byte of the chunk; dangling if the capacity is 0. Valid as long as `chunk` is held.
    start: NonNull<u8>,
    /// Bytes written and published.
    len: u32,
    /// Bytes that the chunk can hold.
    capacity: u32,
    /// Frames written and published.
    frames: u32,
}

// SAFETY: `start` points into the block that `chunk` keeps alive; writing there from another thread than before is
// as good, for the writer is the only one to do so.
unsafe impl Send for Writer {}

impl Writer {
    /// A writer of a chunk that holds nothing and never will: the log's beginning.
    pub(super) fn empty(place: Place) -> Self {
        Self::resume(Rest { block: None, offset: 0, capacity: 0 }, place)
    }

    /// A writer of a whole block.
    ///
    /// # Panics
    /// If anybody else refers to the block.
    pub(super) fn open(mut block: Arc<Block>, place: Place) -> Self {
        // Also synchronises with those who dropped their references: their reads are over.
        assert!(Arc::get_mut(&mut block).is_some(), "a block opened while it is still read");
        let capacity = u32::try_from(block.cells.len()).unwrap_or(u32::MAX);
        Self::resume(Rest { block: Some(block), offset: 0, capacity }, place)
    }

    /// A writer of what another one left over.
    pub(super) fn resume(rest: Rest, place: Place) -> Self {
        let Rest { block, offset, capacity } = rest;
        let start = match &block {
            // SAFETY: a `Rest` lies inside its block.
            Some(block) => unsafe { block.start().add(offset as usize) },
            None => NonNull::dangling(),
        };
        let memory = Memory::Own { block, offset };
        let chunk = Arc::new(Chunk { place, published: AtomicU64::new(0), memory });
        Self { chunk, start, len: 0, capacity, frames: 0 }
    }

    /// The chunk that is being written.
    pub(super) fn chunk(&self) -> &Arc<Chunk> {
        &self.chunk
    }

    /// Where the next chunk begins, if this one ends here.
    pub(super) fn end(&self) -> Place {
        self.chunk.place.after(self.len, self.frames)
    }

    /// Bytes that still fit.
    #[inline]
    pub(super) fn room(&self) -> usize {
        (self.capacity - self.len) as usize
    }

    /// Appends `head` and `payload`, in which `frames` frames end, and publishes them; false if they do not fit.
    #[inline]
    pub(super) fn push<const H: usize>(&mut self, head: &[u8; H], payload: &[u8], frames: u32) -> bool {
        // No overflow: a slice is shorter than isize::MAX, a head is an array that exists.
        let bytes = H + payload.len();
        if bytes > self.room() {
            return false;
        }
        #[cfg(all(loom, test))]
        self.watch_write(bytes);
        // SAFETY: `len + bytes <= capacity`, so the target lies in this writer's part of the block and beyond what
        // is published: nobody else has a reference to it, the sources cannot overlap it.
        unsafe {
            let to = self.start.as_ptr().add(self.len as usize);
            std::ptr::copy_nonoverlapping(head.as_ptr(), to, H);
            match payload.len() < copy::LARGE_BYTES {
                true => std::ptr::copy_nonoverlapping(payload.as_ptr(), to.add(H), payload.len()),
                false => copy_large(payload, to.add(H)),
            }
        }
        self.publish(bytes, frames);
        true
    }

    /// As [`push`](Self::push) for one frame, whose payload of `bytes` bytes, zero at first, `fill` writes in its place. If it does
    /// not fit `fill` comes back and `head` is not asked for; if `fill` panics nothing is published.
    #[inline(always)]
    pub(super) fn push_with<const H: usize, F>(
        &mut self,
        head: impl FnOnce() -> [u8; H],
        bytes: usize,
        fill: F,
    ) -> Result<(), F>
    where
        F: FnOnce(&mut [u8]),
    {
        let room = self.room();
        // No overflow: what there is room for is less than 4 GiB.
        if room < H || bytes > room - H {
            return Err(fill);
        }
        #[cfg(all(loom, test))]
        self.watch_write(H + bytes);
        // SAFETY: as in `push`, for what is zeroed beyond the payload as well; the slice lies within what was zeroed.
        let payload = unsafe {
            let to = self.start.as_ptr().add(self.len as usize);
            std::ptr::copy_nonoverlapping(head().as_ptr(), to, H);
            let at_once = bytes <= ZEROED_AT_ONCE && room - H >= ZEROED_AT_ONCE;
            match at_once {
                true => to.add(H).write_bytes(0, ZEROED_AT_ONCE),
                false => to.add(H).write_bytes(0, bytes),
            }
            std::slice::from_raw_parts_mut(to.add(H), bytes)
        };
        fill(payload);
        self.publish(H + bytes, 1);
        Ok(())
    }

    /// The next `bytes` bytes, in which `frames` frames end, were written.
    #[inline(always)]
    fn publish(&mut self, bytes: usize, frames: u32) {
        self.len += bytes as u32;
        self.frames += frames;
        self.chunk.published.store(Extent::pack(self.len, self.frames), Ordering::Release);
    }

    /// Ends the chunk, with the head of a frame whose payload is the next chunk as its last bytes (or nothing), and
    /// gives up the rest of its memory. One store publishes both the head and the end, so that whoever sees the head
    /// knows that a successor is there. The caller holds the list's lock and puts the successor into the list.
    ///
    /// # Panics
    /// If the head does not fit.
    pub(super) fn finish<const H: usize>(&mut self, head: &[u8; H]) -> Rest {
        assert!(H <= self.room(), "a head that does not fit");
        #[cfg(all(loom, test))]
        self.watch_write(H);
        // SAFETY: as in `push`.
        unsafe { std::ptr::copy_nonoverlapping(head.as_ptr(), self.start.as_ptr().add(self.len as usize), H) };
        self.len += H as u32;
        let Memory::Own { block, offset } = &self.chunk.memory else { unreachable!("a writer's chunk is its own") };
        let left = self.capacity - self.len;
        let rest = if left < REST_BYTES_MIN {
            Rest { block: None, offset: 0, capacity: 0 }
        } else {
            Rest { block: block.clone(), offset: offset + self.len, capacity: left }
        };
        self.capacity = self.len;
        self.chunk.published.store(Extent::pack(self.len, self.frames) | FOLLOWED, Ordering::Release);
        rest
    }

    #[cfg(all(loom, test))]
    fn watch_write(&self, bytes: usize) {
        if let Memory::Own { block: Some(block), offset } = &self.chunk.memory {
            block.watch.write((offset + self.len) as usize, bytes);
        }
    }
}
