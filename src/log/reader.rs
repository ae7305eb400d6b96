//! The reading end of a log: one per shard, with any number of cursors.
//!
//! Invariants:
//! - `window` holds consecutive chunks, from the one that the hindmost cursor is in; it is empty without cursors, so
//!   that an idle reader keeps no memory alive.
//! - A cursor counts in the last chunk of the window that begins at or before its `frame`. When a successor of the
//!   last chunk is fetched, the cursors that wait exactly at its beginning move over to it at once; `high` and
//!   `at_high` are what is needed to know how many those are.
//! - The low-water mark of this reader is the beginning of the window's first chunk. It only grows while cursors exist,
//!   unless one joins further back, which happens under the list's lock. It is published after the chunks before it were
//!   let go.
//!
//! Called by one thread. It takes the list's lock only to fetch the successors of a finished chunk, to join and to
//! leave. It never writes to chunks and never waits.

use super::appender::frame_bytes;
use super::chunk::{Chunk, Extent};
use super::list::{List, NO_CURSOR, Shared};
use super::sync::{Arc, Ordering};
use super::{Cursor, Frame};
use crate::sabotage::{Bug, planted};
use bytes::Bytes;
use std::collections::VecDeque;

/// Reads a log through cursors.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    /// Which of the log's readers this is.
    number: usize,
    window: VecDeque<Held>,
    /// Cursors joined and not yet left.
    cursors: usize,
    /// The furthest frame boundary that a cursor in the window's last chunk has had, or the chunk's beginning.
    high: u64,
    /// Cursors at `high`.
    at_high: u32,
}

/// Where a cursor joins.
enum Start {
    /// At the backlog, or else at the tail.
    Backlog,
    /// At what is retained, or at the backlog.
    Oldest,
    #[cfg(test)]
    Tail,
}

/// A chunk in the window.
struct Held {
    chunk: Arc<Chunk>,
    /// Cursors that count in it.
    cursors: u32,
    /// The slice made last: what one link is given, the next hundred mostly ask for as well.
    memo: Bytes,
    /// Where in the chunk `memo` begins.
    memo_from: u32,
}

impl Held {
    /// Bytes `from..to` of the chunk, of which `len` are published.
    fn slice(&mut self, from: u32, to: u32, len: u32) -> Bytes {
        if self.chunk.is_by_reference() {
            return self.chunk.slice(from, to);
        }
        if from < self.memo_from || to as usize > self.memo_from as usize + self.memo.len() {
            self.memo = self.chunk.slice(from, len);
            self.memo_from = from;
        }
        self.memo.slice((from - self.memo_from) as usize..(to - self.memo_from) as usize)
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, number: usize) -> Self {
        Self { shared, number, window: VecDeque::new(), cursors: 0, high: 0, at_high: 0 }
    }

    /// A new cursor: at the beginning of the backlog if no reader has a cursor, else at the live tail.
    pub(crate) fn join(&mut self) -> Cursor {
        self.join_from(Start::Backlog)
    }

    /// A new cursor at the oldest frame that is retained, or at the beginning of the backlog if that is older.
    pub(crate) fn join_oldest(&mut self) -> Cursor {
        self.join_from(Start::Oldest)
    }

    /// A new cursor at the live tail; what backlog there is, is given up.
    #[cfg(test)]
    pub(crate) fn join_tail(&mut self) -> Cursor {
        self.join_from(Start::Tail)
    }

    /// The cursor `at` goes. If it was the last of all readers, the backlog begins at its frame, or further on where one that
    /// left earlier had come to: whoever joins next may be that one, and must not get the same again. Answers with how many
    /// messages from `at` on that leaves to nobody. There may be room for appends now.
    pub(crate) fn leave(&mut self, at: Cursor) -> u64 {
        let shared = Arc::clone(&self.shared);
        let mut list = shared.lock();
        self.uncount(at.frame);
        self.cursors -= 1;
        list.cursors -= 1;
        if at.frame > list.reached.frame {
            list.reached = at.frame_start();
        }
        let mut kept_from = list.tail();
        if list.cursors == 0 {
            list.floor = if planted(Bug::BacklogBehind) { at.frame_start() } else { list.reached };
            kept_from = list.floor;
        }
        if self.cursors > 0 {
            self.release();
        } else {
            self.window.clear();
            self.publish_low(NO_CURSOR);
        }
        kept_from.seq - at.seq
    }

    /// A cursor moves from `from` to `to`, which a call of this reader gave: what lies between is sent (or given up)
    /// and slices of it should be dropped by now. True if chunks were let go: there may be room for appends now.
    pub(crate) fn advance(&mut self, from: Cursor, to: Cursor) -> bool {
        debug_assert!(from.pos <= to.pos && from.frame <= to.frame && from.seq <= to.seq);
        if from.frame == to.frame {
            return false;
        }
        if self.window.back().is_some_and(|last| last.chunk.base() <= from.frame) {
            // Both in the last chunk, as most of the time.
            self.at_high -= u32::from(from.frame == self.high);
            self.raise_high(to.frame);
        } else {
            self.uncount(from.frame);
            self.count(to.frame);
        }
        self.release()
    }

    /// Appends to `out` the slices to send next, in order, and returns where they end (`from` if there is nothing).
    ///
    /// It cuts only at the ends of chunks, at the published tail, and inside memory by reference that is larger than
    /// `max_bytes`. So the first slice can exceed `max_bytes`, by less than a chunk; later ones do not.
    #[cfg(test)]
    pub(crate) fn gather(&mut self, from: Cursor, max_bytes: usize, max_slices: usize, out: &mut Vec<Bytes>) -> Cursor {
        self.gather_until(from, Cursor::END, max_bytes, max_slices, out)
    }

    /// As [`gather`](Self::gather), but not beyond `until`, a frame boundary.
    pub(crate) fn gather_until(
        &mut self,
        from: Cursor,
        until: Cursor,
        max_bytes: usize,
        max_slices: usize,
        out: &mut Vec<Bytes>,
    ) -> Cursor {
        let mut at = from;
        let mut index = self.index_of(from.pos);
        let mut room = max_bytes;
        let mut slices = 0;
        while slices < max_slices && room > 0 && at.pos < until.pos {
            let Some((found, extent)) = self.seek(index, at.pos) else { break };
            index = found;
            let held = &mut self.window[index];
            let start = (at.pos - held.chunk.base()) as u32;
            let available = u64::from(extent.len - start).min(until.pos - at.pos) as usize;
            let take = if available <= room {
                available
            } else if held.chunk.is_by_reference() && available > max_bytes {
                room
            } else if slices == 0 {
                available
            } else {
                break;
            };
            let end = start + take as u32;
            out.push(held.slice(start, end, extent.len));
            // A cut at a boundary that the caller knows needs no walk over the frames.
            let cut = end < extent.len && self.window[index].chunk.base() + u64::from(end) == until.pos;
            at = if cut { until } else { self.cursor_at(index, extent, end, at) };
            room = room.saturating_sub(take);
            slices += 1;
        }
        at
    }

    /// Shows what there is between two frame boundaries, with the number of frames, and returns where that ends: `from` if it is
    /// more than `max_bytes`, or ends within a frame.
    pub(crate) fn show(
        &mut self,
        from: Cursor,
        until: Cursor,
        max_bytes: usize,
        show: impl FnOnce(&[u8], u32),
    ) -> Cursor {
        let Some((index, extent)) = self.seek(self.index_of(from.pos), from.pos) else { return from };
        let base = self.window[index].chunk.base();
        let (start, end) = ((from.pos - base) as u32, (until.pos - base).min(u64::from(extent.len)) as u32);
        if (end - start) as usize > max_bytes {
            return from;
        }
        let to = if base + u64::from(end) == until.pos { until } else { self.cursor_at(index, extent, end, from) };
        if !to.is_aligned() {
            return from;
        }
        show(self.window[index].chunk.bytes(start, end), (to.seq - from.seq) as u32);
        to
    }

    /// Whether anything is published beyond `from`.
    #[inline]
    pub(crate) fn has_more(&mut self, from: Cursor) -> bool {
        match self.window.back() {
            Some(last) if from.pos >= last.chunk.base() => {
                let extent = last.chunk.extent();
                from.pos < last.chunk.base() + u64::from(extent.len)
                    || (extent.followed && self.seek(self.window.len() - 1, from.pos).is_some())
            }
            // Chunks in between hold bytes, or the position would belong to a later one.
            Some(_) => true,
            None => false,
        }
    }

    /// Whether nothing has been appended beyond `at`, where the only cursor of this reader is: then it lets go of all before that.
    pub(crate) fn is_drained(&mut self, at: Cursor) -> bool {
        let is_drained = !self.has_more(at);
        if is_drained {
            self.release();
        }
        is_drained
    }

    /// The live tail: a frame boundary.
    pub(crate) fn tail(&mut self) -> Cursor {
        loop {
            let Some(last) = self.window.back() else {
                let list = self.shared.lock();
                return list.chunks_from(list.index_last()).last().map_or(Cursor::default(), |chunk| tail_of(chunk).1);
            };
            let (extent, tail) = tail_of(&last.chunk);
            if !extent.followed {
                return tail;
            }
            self.fetch();
        }
    }

    /// The cursor `bytes` bytes behind `from`, no further than what was gathered from there. It walks the frames
    /// in between, so it is for sends that ended short; a send that went through ends where `gather` said.
    pub(crate) fn align(&mut self, from: Cursor, bytes: u64) -> Cursor {
        let pos = from.pos + bytes;
        self.settle(pos);
        let index = self.index_of(pos);
        let chunk = &self.window[index].chunk;
        let extent = chunk.extent();
        let offset = pos - chunk.base();
        assert!(offset <= u64::from(extent.len), "aligned beyond the published tail");
        self.cursor_at(index, extent, offset as u32, from)
    }

    /// Visits whole frames from `from`, which must be aligned, until `visit` returns false (that frame is not
    /// consumed) or nothing is left. Returns the cursor behind the last frame consumed.
    pub(crate) fn frames(&mut self, from: Cursor, mut visit: impl FnMut(Frame<'_>) -> bool) -> Cursor {
        debug_assert!(from.is_aligned());
        let mut at = from;
        let mut index = self.index_of(from.pos);
        // Each round is one chunk; one that ends with a head takes the payload's chunk with it.
        while let Some((found, extent)) = self.seek(index, at.pos) {
            index = found;
            let payload_fetched = !extent.followed || self.reach(index + 1);
            debug_assert!(payload_fetched);
            let chunk = &self.window[index].chunk;
            let data = chunk.bytes((at.pos - chunk.base()) as u32, extent.len);
            let mut offset = 0;
            while let Some(bytes) = frame_bytes(&data[offset..]) {
                let end = offset + bytes as usize;
                let frame = match data.get(offset..end) {
                    Some(whole) => Frame::Whole(whole),
                    None => match self.window.get(index + 1).and_then(|next| next.chunk.as_payload()) {
                        Some((payload, _)) => Frame::Split { head: &data[offset..], payload },
                        None => return at,
                    },
                };
                if !visit(frame) {
                    return at;
                }
                let next = at.pos + bytes;
                at = Cursor { pos: next, frame: next, seq: at.seq + 1 + u64::from(planted(Bug::CursorAhead)) };
                if end >= data.len() {
                    break;
                }
                offset = end;
            }
        }
        at
    }

    /// The first frame boundary with at least `position` bytes and `messages` frames of the log before it; not before
    /// `from`, a boundary, and not beyond the tail. It walks the frames of one chunk, however far that is.
    pub(crate) fn boundary(&mut self, from: Cursor, position: u64, messages: u64) -> Cursor {
        // Sees to it that the window reaches to the tail.
        self.tail();
        let before = |held: &Held| held.chunk.base() < position || held.chunk.place().base_seq < messages;
        let index = self.window.partition_point(before);
        let mut start = from;
        if let Some(held) = index.checked_sub(1).map(|index| &self.window[index]) {
            let (place, extent) = (held.chunk.place(), held.chunk.extent());
            // No frame begins where a payload by reference does.
            let place = if held.chunk.as_payload().is_some() { place.after(extent.len, extent.frames) } else { place };
            if place.base > from.pos {
                start = Cursor::boundary(place.base, place.base_seq);
            }
        }
        let (mut pos, mut seq) = (start.pos, start.seq);
        self.frames(start, |frame| {
            let goes_on = pos < position || seq < messages;
            pos += frame.len() as u64;
            seq += 1;
            goes_on
        })
    }

    /// Bytes from one cursor to a later one.
    #[cfg(test)]
    pub(crate) fn bytes_between(&self, from: Cursor, to: Cursor) -> u64 {
        to.pos.saturating_sub(from.pos)
    }

    /// Frames that end between one cursor and a later one.
    #[cfg(test)]
    pub(crate) fn messages_between(&self, from: Cursor, to: Cursor) -> u64 {
        to.seq.saturating_sub(from.seq)
    }

    fn join_from(&mut self, start: Start) -> Cursor {
        let shared = Arc::clone(&self.shared);
        let mut list = shared.lock();
        let floor = match start {
            Start::Backlog => (list.cursors == 0 && !planted(Bug::BacklogSkipped)).then_some(list.floor),
            Start::Oldest => Some(list.oldest_boundary()),
            #[cfg(test)]
            Start::Tail => None,
        };
        let first_cursor = self.window.is_empty();
        if first_cursor {
            let index = floor.map_or_else(|| list.index_last(), |floor| list.index_at(floor.frame));
            self.extend(&list, index);
        } else {
            self.fetch_from(&list);
        }
        // The last chunk cannot be finished by somebody while the list is locked: its end is a frame boundary.
        let tail = self.window.back().map_or(Cursor::default(), |last| tail_of(&last.chunk).1);
        let at = floor.unwrap_or(tail);
        if let Some(first) = self.window.front().filter(|first| at.frame < first.chunk.base()) {
            let (index, before) = (list.index_at(at.frame), first.chunk.place().index);
            let missing: Vec<_> = list.chunks_from(index).take((before - index) as usize).cloned().collect();
            for chunk in missing.into_iter().rev() {
                self.window.push_front(Held { chunk, cursors: 0, memo: Bytes::new(), memo_from: 0 });
            }
            self.publish_low(self.window.front().map_or(NO_CURSOR, |first| first.chunk.base()));
        }
        self.count(at.frame);
        self.cursors += 1;
        list.cursors += 1;
        if first_cursor {
            self.publish_low(self.window.front().map_or(NO_CURSOR, |first| first.chunk.base()));
        }
        // Chunks that the others have passed stay until one of them advances, for only then somebody is told of room.
        at
    }

    /// Index in the window of the chunk that `position` belongs to: the last that begins at or before it.
    #[inline]
    fn index_of(&self, position: u64) -> usize {
        let index = match self.window.back() {
            Some(last) if last.chunk.base() <= position => self.window.len(),
            _ => self.window.partition_point(|held| held.chunk.base() <= position),
        };
        assert!(index > 0, "a position before the window: its cursor has not joined, or has left");
        index - 1
    }

    /// The first chunk from `index` on that has published bytes at or beyond `position`.
    fn seek(&mut self, mut index: usize, position: u64) -> Option<(usize, Extent)> {
        loop {
            let chunk = &self.window.get(index)?.chunk;
            let extent = chunk.extent();
            if chunk.base() + u64::from(extent.len) > position {
                return Some((index, extent));
            }
            if !extent.followed || !self.reach(index + 1) {
                return None;
            }
            index += 1;
        }
    }

    /// Sees to it that the window has a chunk at `index`, which is known to be in the list.
    fn reach(&mut self, index: usize) -> bool {
        if index >= self.window.len() {
            self.fetch();
        }
        index < self.window.len()
    }

    /// Fetches the successor of the last chunk if that chunk is finished and ends at `position`.
    fn settle(&mut self, position: u64) {
        if let Some(last) = self.window.back() {
            let extent = last.chunk.extent();
            if extent.followed && position >= last.chunk.base() + u64::from(extent.len) {
                self.fetch();
            }
        }
    }

    #[cold]
    fn fetch(&mut self) {
        let shared = Arc::clone(&self.shared);
        self.fetch_from(&shared.lock());
    }

    fn fetch_from(&mut self, list: &List) {
        let next = self.window.back().map_or_else(|| list.index_last(), |last| last.chunk.place().index + 1);
        self.extend(list, next);
    }

    /// Takes the list's chunks from `index` on into the window.
    fn extend(&mut self, list: &List, index: u64) {
        for chunk in list.chunks_from(index) {
            let base = chunk.base();
            let moved = match self.window.back_mut() {
                Some(last) if self.high == base => {
                    last.cursors -= self.at_high;
                    self.at_high
                }
                _ => 0,
            };
            (self.high, self.at_high) = (base, moved);
            self.window.push_back(Held { chunk: Arc::clone(chunk), cursors: moved, memo: Bytes::new(), memo_from: 0 });
        }
    }

    fn count(&mut self, frame: u64) {
        let index = self.index_of(frame);
        self.window[index].cursors += 1;
        if index + 1 == self.window.len() {
            self.raise_high(frame);
        }
    }

    /// A cursor has come to `frame`, in the last chunk.
    fn raise_high(&mut self, frame: u64) {
        if frame > self.high {
            (self.high, self.at_high) = (frame, 1);
        } else if frame == self.high {
            self.at_high += 1;
        }
    }

    fn uncount(&mut self, frame: u64) {
        let index = self.index_of(frame);
        let held = &mut self.window[index];
        assert!(held.cursors > 0, "a cursor that is not where it was");
        held.cursors -= 1;
        if index + 1 == self.window.len() && frame == self.high {
            self.at_high -= 1;
        }
    }

    /// Lets go of the chunks that all cursors of this reader have passed, then says so.
    fn release(&mut self) -> bool {
        let before = self.window.len();
        while self.window.len() > 1 && self.window.front().is_some_and(|first| first.cursors == 0) {
            self.window.pop_front();
        }
        let released = self.window.len() < before;
        if let (true, Some(first)) = (released, self.window.front()) {
            self.publish_low(first.chunk.base());
        }
        released
    }

    fn publish_low(&self, position: u64) {
        // Release: who sees the mark sees the chunks let go as well, and does not find the log full for nothing. It is
        // not what keeps memory from being used again (that is the count of references), so no model depends on it.
        self.shared.low[self.number].store(position, Ordering::Release);
    }

    /// The cursor at `offset` in the window's chunk at `index`, reached from `from`.
    fn cursor_at(&mut self, index: usize, extent: Extent, offset: u32, from: Cursor) -> Cursor {
        // Fetching the successor here also means that the advance to this cursor leaves the finished chunk for it: else
        // an appender that needs that memory and a link that has nothing to send would wait for each other.
        let head_bytes = if offset == extent.len && extent.followed && self.reach(index + 1) {
            self.window[index + 1].chunk.as_payload().map_or(0, |(_, head_bytes)| head_bytes)
        } else {
            0
        };
        let chunk = &self.window[index].chunk;
        let place = chunk.place();
        let pos = place.base + u64::from(offset);
        if offset == extent.len {
            let seq = place.base_seq + u64::from(extent.frames);
            return Cursor { pos, frame: pos - u64::from(head_bytes), seq };
        }
        if let Some((_, head_bytes)) = chunk.as_payload() {
            return Cursor { pos, frame: place.base - u64::from(head_bytes), seq: place.base_seq };
        }
        // Both `from` and a chunk of frames begin at a boundary: walk on from the nearer one.
        let (mut frame, mut seq) =
            if from.frame >= place.base { (from.frame, from.seq) } else { (place.base, place.base_seq) };
        let data = chunk.bytes(0, extent.len);
        while let Some(bytes) = frame_bytes(&data[(frame - place.base) as usize..]) {
            if frame + bytes > pos {
                break;
            }
            frame += bytes;
            seq += 1;
        }
        Cursor { pos, frame, seq }
    }
}

impl Drop for Reader {
    /// Cursors that have not left go with their reader; what only they had still to read is given up.
    fn drop(&mut self) {
        let mut list = self.shared.lock();
        list.cursors -= self.cursors;
        if self.cursors > 0 && list.cursors == 0 {
            let last = list.chunks_from(list.index_last()).last();
            list.floor = last.map_or(Cursor::default(), |chunk| tail_of(chunk).1);
        }
        self.publish_low(NO_CURSOR);
    }
}

/// The end of what is published of `chunk`, which is right as a cursor if no payload by reference follows.
pub(super) fn tail_of(chunk: &Chunk) -> (Extent, Cursor) {
    let extent = chunk.extent();
    let place = chunk.place().after(extent.len, extent.frames);
    (extent, Cursor { pos: place.base, frame: place.base, seq: place.base_seq })
}
