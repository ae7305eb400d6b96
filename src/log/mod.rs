//! The log: an append-only list of chunks of finished wire frames, read through cursors, within a byte budget.
//!
//! ```text
//!               own chunk            payload by reference    own chunk (same block)
//!   | frame | frame | frame | head |       payload        | frame | frame | ...free
//!       ^                                    ^                            ^
//!       a cursor, aligned                    a cursor inside a frame      the published tail
//! ```
//!
//! One [`Appender`] writes (one thread at a time), one [`Reader`] per shard reads, each with any number of
//! [`Cursor`]s. Appending is two copies and one release store; a reader sees it with one acquire load. The lock in the
//! middle is for memory only: a chunk opened, fetched, joined, left.
//!
//! Invariants: a message accepted is read whole and in order by every cursor that had joined before; memory accounted
//! never exceeds [`Handle::limit_bytes`]; memory that a slice given out by [`Reader::gather`] refers to is not written
//! again before that slice is dropped. While no cursor exists, what is appended is kept as the backlog, and the first
//! cursor to join begins there.
//!
//! Called by `shard` and `socket`. It never does I/O, reads no clock, starts no thread, and waits for nothing: who
//! finds it [`Full`] waits outside. Room appears when [`Reader::advance`] or [`Reader::leave`] return true, and when
//! slices of a cursor that has left are dropped.

mod appender;
mod chunk;
mod latest;
mod list;
#[cfg(all(test, loom))]
mod models;
mod reader;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use appender::Appender;
pub(crate) use latest::{KeysFull, Latest, LatestOptions};
pub(crate) use reader::Reader;

use bytes::Bytes;
use sync::Arc;

/// Smallest chunk, bytes.
const CHUNK_BYTES_MIN: usize = 4 << 10;
/// Largest chunk, bytes: positions inside a chunk are 32 bits.
const CHUNK_BYTES_MAX: usize = 1 << 30;
/// A log has room for at least so many chunks: one that is read, one that is written, and as much for payloads.
const CHUNKS_MIN: usize = 4;

/// Sizes of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogOptions {
    /// Size of a block of memory, bytes; 4 KiB to 1 GiB, and at most a quarter of the limit (else it is made so).
    /// The first is allocated by the first append.
    pub(crate) chunk_bytes: usize,
    /// Most memory that the log accounts for, bytes; at least 16 KiB. All blocks count, those kept for use again
    /// included, and payloads by reference until every cursor has passed them.
    pub(crate) limit_bytes: usize,
    /// `Bytes` payloads of at least so many bytes are kept by reference; below, copying them is cheaper.
    pub(crate) share_from_bytes: usize,
    /// What is kept though every cursor has passed it.
    pub(crate) retain: Retain,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { chunk_bytes: 256 << 10, limit_bytes: 64 << 20, share_from_bytes: 16 << 10, retain: Retain::NOTHING }
    }
}

/// How much of what all cursors have passed is kept for [`Reader::join_oldest`]: within both bounds, and since
/// [`Handle::age`]. It gives way, the oldest first, when an append needs its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retain {
    /// Bytes before the tail.
    pub(crate) bytes_max: u64,
    /// Frames before the tail.
    pub(crate) messages_max: u64,
}

impl Retain {
    /// Nothing is kept.
    pub(crate) const NOTHING: Retain = Retain { bytes_max: 0, messages_max: 0 };
}

impl LogOptions {
    fn made_consistent(self) -> Self {
        let limit_bytes = self.limit_bytes.max(CHUNKS_MIN * CHUNK_BYTES_MIN);
        let chunk_bytes = self.chunk_bytes.min(limit_bytes / CHUNKS_MIN).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
        Self { chunk_bytes, limit_bytes, share_from_bytes: self.share_from_bytes.max(1), ..self }
    }
}

/// Opens a log with `readers` readers and no cursor. It allocates no block yet.
pub(crate) fn open(options: LogOptions, readers: usize) -> (Appender, Vec<Reader>) {
    open_at(options, readers, Cursor::default())
}

/// As [`open`], for a log that begins at `start`, a frame boundary: a copy of a part of another one keeps its places.
pub(crate) fn open_at(options: LogOptions, readers: usize, start: Cursor) -> (Appender, Vec<Reader>) {
    let writer = chunk::Writer::empty(chunk::Place { index: 0, base: start.pos, base_seq: start.seq });
    let shared = Arc::new(list::Shared::new(options.made_consistent(), readers, start, Arc::clone(writer.chunk())));
    let readers = (0..readers).map(|number| Reader::new(Arc::clone(&shared), number)).collect();
    (Appender::new(writer, shared), readers)
}

/// No room within the log's limit now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// A place in the log. It is a plain value: the reader that it joined only counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Bytes since the log began.
    pos: u64,
    /// Where the frame that `pos` is in begins; equal to `pos` at a boundary.
    frame: u64,
    /// Frames that end at or before `frame`.
    seq: u64,
}

impl Cursor {
    /// Bytes since the log began.
    pub(crate) fn position(self) -> u64 {
        self.pos
    }

    /// Beyond the end of every log.
    pub(crate) const END: Cursor = Cursor { pos: u64::MAX, frame: u64::MAX, seq: u64::MAX };

    /// The frame boundary at `pos`, with `seq` frames before it.
    pub(crate) fn boundary(pos: u64, seq: u64) -> Cursor {
        Cursor { pos, frame: pos, seq }
    }

    /// Where the frame that it is in begins, in bytes since the log began.
    pub(crate) fn frame(self) -> u64 {
        self.frame
    }

    /// Whether it is on a frame boundary.
    pub(crate) fn is_aligned(self) -> bool {
        self.pos == self.frame
    }

    /// Whole frames before the cursor, since the log began.
    pub(crate) fn messages(self) -> u64 {
        self.seq
    }

    /// The beginning of the frame that the cursor is in; the cursor itself if it is aligned.
    pub(crate) fn frame_start(self) -> Self {
        Self { pos: self.frame, ..self }
    }
}

/// A whole frame as it lies in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Frame<'a> {
    /// In one piece.
    Whole(&'a [u8]),
    /// In two: the payload is by reference.
    Split {
        /// Length, type and what else comes before the payload.
        head: &'a [u8],
        /// The payload.
        payload: &'a Bytes,
    },
}

impl Frame<'_> {
    /// Bytes of the frame.
    pub(crate) fn len(&self) -> usize {
        match self {
            Frame::Whole(frame) => frame.len(),
            Frame::Split { head, payload } => head.len() + payload.len(),
        }
    }
}

/// Tells about a log from anywhere.
#[derive(Clone)]
pub(crate) struct Handle {
    shared: Arc<list::Shared>,
}

impl Handle {
    fn new(shared: Arc<list::Shared>) -> Self {
        Self { shared }
    }

    /// Bytes accounted now: blocks, free ones included, and payloads by reference not yet let go. Lock-free. Chunks
    /// that all cursors have passed count until the appender next needs memory.
    pub(crate) fn bytes_held(&self) -> usize {
        self.shared.held_bytes()
    }

    /// The most that `bytes_held` can be.
    #[cfg(test)]
    pub(crate) fn limit_bytes(&self) -> usize {
        self.shared.options.limit_bytes
    }

    /// The largest payload, bytes, that is sure to find room once everything before it was read and dropped.
    #[cfg(test)]
    pub(crate) fn payload_bytes_max(&self) -> usize {
        let room = self.shared.options.limit_bytes - 2 * self.shared.options.chunk_bytes;
        // A frame's length is 32 bits and counts its type and id.
        room.min(u32::MAX as usize - 64)
    }

    /// Lets go of the payloads by reference that all cursors have passed; an append that needs memory does that too. Takes the
    /// lock if there are any.
    pub(crate) fn give_back(&self) {
        self.shared.give_back();
    }

    /// The end of what was appended: a frame boundary. Takes the lock.
    pub(crate) fn tail(&self) -> Cursor {
        self.shared.lock().tail()
    }

    /// Frames, with their bytes, that are kept for the first cursor that joins; none while there is a cursor. Takes the lock.
    pub(crate) fn backlog(&self) -> (u64, u64) {
        let list = self.shared.lock();
        let (tail, floor) = (list.tail(), list.floor);
        if list.cursors == 0 { (tail.seq - floor.seq, tail.frame - floor.frame) } else { (0, 0) }
    }

    /// Where the oldest chunk ends, if it is finished: cursors before that hold the memory that the appender waits for. Takes
    /// the lock.
    pub(crate) fn oldest_end(&self) -> Option<u64> {
        self.shared.lock().oldest_end()
    }

    /// What is before `position`, a place in the log, has become too old to be retained. Takes the lock.
    pub(crate) fn age(&self, position: u64) {
        self.shared.lock().aged = position;
    }

    /// Cursors in all readers. Takes the lock.
    #[cfg(test)]
    pub(crate) fn cursors(&self) -> usize {
        self.shared.lock().cursors
    }
}
