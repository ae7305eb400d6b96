//! The list of live chunks, the memory budget, and what appender and readers share.
//!
//! Invariants, all kept under the list's lock:
//! - `live` is never empty; its last chunk is the writer's, the only one not yet followed. So under the lock the tail
//!   of the log is always a frame boundary.
//! - Memory accounted (blocks in any state, plus payloads by reference that are live) is at most `limit_bytes`.
//! - A chunk leaves `live` only when all of it is below the low-water mark of every reader that has cursors, or,
//!   while no cursor exists, below the floor of the backlog; and if it is not to be retained, or its memory is needed.
//!   A cursor joins further back than that mark only under this lock, where it finds the chunk in `live` or does not.
//! - A block goes from `lingering` to `free` only when the list alone refers to it.
//!
//! Called by `appender` when it needs memory and by `reader` to fetch chunks, join and leave; never per message.
//! It never waits: who finds no room is told so.

use super::appender::frame_bytes;
use super::chunk::{Block, Chunk};
use super::sync::{Arc, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering};
use super::{Cursor, Full, LogOptions};
use crate::sabotage::{Bug, planted};
use crossbeam_utils::CachePadded;
use std::collections::VecDeque;

/// A low-water mark of a reader that has no cursor.
pub(super) const NO_CURSOR: u64 = u64::MAX;

/// What the appender, the readers and the handles of one log have in common.
pub(super) struct Shared {
    /// As given, made consistent.
    pub(super) options: LogOptions,
    /// One per reader, written by that reader alone: all of its cursors are at or beyond it.
    pub(super) low: Box<[CachePadded<AtomicU64>]>,
    /// Copy of the list's accounted bytes, for whoever does not want the lock.
    held_bytes: AtomicUsize,
    /// The same of those that are by reference.
    by_reference_bytes: AtomicUsize,
    list: Mutex<List>,
}

impl Shared {
    /// State of a log that begins at `start`, where its only chunk is `first`.
    pub(super) fn new(options: LogOptions, readers: usize, start: Cursor, first: Arc<Chunk>) -> Self {
        let low = (0..readers).map(|_| CachePadded::new(AtomicU64::new(NO_CURSOR))).collect();
        let list = List {
            options,
            live: VecDeque::from([first]),
            lingering: Vec::new(),
            free: Vec::new(),
            blocks: 0,
            by_reference_bytes: 0,
            cursors: 0,
            floor: start,
            reached: start,
            aged: 0,
        };
        let (held_bytes, by_reference_bytes) = Default::default();
        Self { options, low, held_bytes, by_reference_bytes, list: Mutex::new(list) }
    }

    /// The list. A panic elsewhere does not make it unusable: every change to it is complete before the lock goes.
    pub(super) fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Bytes accounted, without the lock: may be a moment old.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Lets go of what all cursors have passed, without an append that needs the memory.
    pub(super) fn let_go(&self) {
        let mut list = self.lock();
        self.retire(&mut list);
        self.tell(&list);
    }

    /// As [`let_go`](Self::let_go) if anything is kept by reference, which somebody may wait for; else without the lock.
    pub(super) fn give_back(&self) {
        if self.by_reference_bytes.load(Ordering::Relaxed) > 0 {
            self.let_go();
        }
    }

    fn tell(&self, list: &List) {
        self.held_bytes.store(list.held_bytes(), Ordering::Relaxed);
        self.by_reference_bytes.store(list.by_reference_bytes, Ordering::Relaxed);
    }

    /// Lets go of what all cursors have passed; answers with how far they are.
    fn retire(&self, list: &mut List) -> u64 {
        let low = match list.cursors {
            0 => list.floor.frame,
            _ => self.low.iter().map(|low| low.load(Ordering::Acquire)).min().unwrap_or(NO_CURSOR),
        };
        let retained = list.retained_from();
        list.retire(low, retained);
        low
    }

    /// Takes all that an append needs, or nothing: a block if `block`, and the right to keep `by_reference_bytes`.
    pub(super) fn take(&self, block: bool, by_reference_bytes: usize) -> Result<Option<Arc<Block>>, Full> {
        let mut list = self.lock();
        let low = self.retire(&mut list);
        let mut taken = list.take(block, by_reference_bytes);
        // What is only retained gives way; bounded by the number of live chunks.
        while taken.is_err()
            && let Some(oldest) = list.oldest_end()
            && oldest <= low
        {
            list.retire(oldest, (u64::MAX, u64::MAX));
            taken = list.take(block, by_reference_bytes);
        }
        self.tell(&list);
        taken
    }
}

/// The chunks of a log and its memory.
pub(super) struct List {
    options: LogOptions,
    /// Chunks that somebody may still fetch, oldest first.
    live: VecDeque<Arc<Chunk>>,
    /// Blocks of which at least one chunk has left `live`, but which were still referred to when last looked at.
    lingering: Vec<Arc<Block>>,
    /// Blocks that nobody refers to; the last was in use most recently, and goes first because caches know it.
    free: Vec<Arc<Block>>,
    /// Blocks allocated, in whatever state.
    blocks: usize,
    /// Bytes of live chunks by reference, reserved ones included.
    by_reference_bytes: usize,
    /// Cursors in all readers.
    pub(super) cursors: usize,
    /// Where the backlog begins; means something only while `cursors` is 0. Aligned.
    pub(super) floor: Cursor,
    /// The furthest place of all cursors that have left.
    pub(super) reached: Cursor,
    /// What is before this position is too old to be retained.
    pub(super) aged: u64,
}

impl List {
    /// Puts the successor of the last chunk behind it.
    pub(super) fn push(&mut self, chunk: Arc<Chunk>) {
        debug_assert!(self.live.back().is_some_and(|last| last.end() == chunk.base()));
        self.live.push_back(chunk);
    }

    /// Live chunks whose index is at least `index`, oldest first.
    pub(super) fn chunks_from(&self, index: u64) -> impl Iterator<Item = &Arc<Chunk>> {
        let first = self.live.front().map_or(0, |chunk| chunk.place().index);
        let skip = usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX);
        self.live.iter().skip(skip)
    }

    /// Index of the live chunk that `position` belongs to: the last that begins at or before it.
    pub(super) fn index_at(&self, position: u64) -> u64 {
        let at = self.live.partition_point(|chunk| chunk.base() <= position);
        self.live.get(at.saturating_sub(1)).map_or(0, |chunk| chunk.place().index)
    }

    /// The end of what is published: a frame boundary, while the list is locked.
    pub(super) fn tail(&self) -> Cursor {
        self.live.back().map_or(Cursor::default(), |chunk| super::reader::tail_of(chunk).1)
    }

    /// Where the oldest chunk ends, if it is finished.
    pub(super) fn oldest_end(&self) -> Option<u64> {
        self.live.front().filter(|_| self.live.len() > 1).map(|chunk| chunk.end())
    }

    /// Index of the last chunk.
    pub(super) fn index_last(&self) -> u64 {
        self.live.back().map_or(0, |chunk| chunk.place().index)
    }

    fn held_bytes(&self) -> usize {
        self.blocks * self.options.chunk_bytes + self.by_reference_bytes
    }

    /// Where the oldest chunk begins.
    pub(super) fn oldest(&self) -> u64 {
        self.live.front().map_or(0, |chunk| chunk.base())
    }

    /// What is retained begins at or beyond both this position and this number of frames.
    fn retained_from(&self) -> (u64, u64) {
        let (tail, retain) = (self.tail(), self.options.retain);
        (tail.pos.saturating_sub(retain.bytes_max).max(self.aged), tail.seq.saturating_sub(retain.messages_max))
    }

    /// The oldest frame boundary that a cursor may join at: what is retained, and the backlog.
    pub(super) fn oldest_boundary(&self) -> Cursor {
        let (from, from_seq) = self.retained_from();
        let backlog = if self.cursors == 0 { self.floor } else { self.tail() };
        for chunk in &self.live {
            let (place, extent) = (chunk.place(), chunk.extent());
            // A chunk that is a payload begins within a frame, and one that ends before the bounds has no such boundary.
            let ends_before = chunk.end() < from || place.base_seq + u64::from(extent.frames) < from_seq;
            if chunk.as_payload().is_some() || ends_before {
                continue;
            }
            let (mut at, mut seq, data) = (place.base, place.base_seq, chunk.bytes(0, extent.len));
            while at < from || seq < from_seq {
                let offset = (at - place.base) as usize;
                let Some(bytes) = data.get(offset..).and_then(frame_bytes) else { break };
                (at, seq) = (at + bytes, seq + 1);
            }
            if at >= from && seq >= from_seq {
                return if at < backlog.pos { Cursor::boundary(at, seq) } else { backlog };
            }
        }
        backlog
    }

    /// Lets go of the chunks that lie wholly below `low` and are not to be retained, and collects the blocks that nobody
    /// refers to any more.
    fn retire(&mut self, low: u64, retained: (u64, u64)) {
        // Of a frame that is retained the head may end a chunk in which as many frames end as are given up: that one stays.
        let may_go = |chunk: &Chunk| {
            let end = chunk.place().after(chunk.extent().len, chunk.extent().frames);
            let is_passed = end.base <= low || planted(Bug::ChunkEarly) && chunk.base() < low;
            is_passed && (end.base <= retained.0 || end.base_seq < retained.1)
        };
        // Bounded by the number of live chunks; the writer's stays whatever its position.
        while self.live.len() > 1 && self.live.front().is_some_and(|chunk| may_go(chunk)) {
            let Some(chunk) = self.live.pop_front() else { break };
            if chunk.is_by_reference() {
                self.by_reference_bytes -= chunk.extent().len as usize;
            }
            if let Some(block) = chunk.block() {
                // Chunks of one block leave one after the other, so looking at the last one finds doubles.
                if !self.lingering.last().is_some_and(|last| Arc::ptr_eq(last, block)) {
                    self.lingering.push(Arc::clone(block));
                }
            }
        }
        let free = &mut self.free;
        free.extend(self.lingering.extract_if(.., |block| Arc::get_mut(block).is_some()));
    }

    fn take(&mut self, block: bool, by_reference_bytes: usize) -> Result<Option<Arc<Block>>, Full> {
        let chunk_bytes = self.options.chunk_bytes;
        let reused = if block { self.free.pop() } else { None };
        let allocate = block && reused.is_none();
        let wanted = by_reference_bytes.saturating_add(if allocate { chunk_bytes } else { 0 });
        // What free blocks occupy goes back to the allocator if that makes room; the coldest first.
        let excess = self
            .held_bytes()
            .saturating_add(wanted)
            .saturating_sub(self.options.limit_bytes + if planted(Bug::LogLimitLate) { chunk_bytes } else { 0 });
        let given_back = excess.div_ceil(chunk_bytes);
        if given_back > self.free.len() {
            self.free.extend(reused);
            return Err(Full);
        }
        self.free.drain(..given_back);
        self.blocks -= given_back;
        self.by_reference_bytes += by_reference_bytes;
        if allocate {
            self.blocks += 1;
            return Ok(Some(Block::new(chunk_bytes)));
        }
        Ok(reused)
    }
}
