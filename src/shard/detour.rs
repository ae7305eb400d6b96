//! How a link that lags comes to the end of the log at once: it takes the records without a key with it, and for the keyed ones
//! trusts in the table of last values, which is there anyway, however many links do so.
//!
//! ```text
//!            from                               until = the link's cursor
//!   log       |  [k1]  - -  [k2]   -  [k1]  [k3]  |  ... live
//!   own       |        - -         -              |   copies, bounded
//!   table     |             k2         k1    k3   |   k1's first value is conflated
//! ```
//!
//! Both are sent merged by position, then the link goes on in the log. A key that is updated meanwhile has moved beyond `until` and
//! comes from the log, or from the next jump, which only moves `until`. So every stream has rising positions, all records without a
//! key, and ends with the newest value of each key.
//!
//! A new link's snapshot is a detour that begins before everything. Called by `outbound`; what it gives is whole frames.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use crate::log::{Cursor, Frame, Latest, Reader};

/// Bytes that a piece of copied records has, a record apart: what is dropped at once, if some has to be.
const PIECE_BYTES: usize = 16 << 10;

/// Which of the records without a key go when they are more than a link may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spill {
    Oldest,
    Newest,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Detour {
    /// Where in the log is still to be sent.
    from: u64,
    /// Where the log goes on.
    until: u64,
    own: VecDeque<Piece>,
    /// Bytes in `own`.
    own_bytes: usize,
    /// Messages in `own`.
    own_messages: u64,
    /// Messages with keys that were left to the table and are neither sent nor known to be superseded.
    open: u64,
}

/// Consecutive records without a key.
struct Piece {
    start: u64,
    end: u64,
    messages: u64,
    /// Whole frames, or the last one's head.
    copied: Bytes,
    /// That one's payload.
    payload: Bytes,
}

impl Detour {
    /// Everything in the table before `cursor`, where the link has joined.
    pub(super) fn snapshot(table: &Latest, cursor: Cursor) -> Detour {
        let until = cursor.position();
        Detour { from: 0, until, open: table.count(0, until), ..Detour::default() }
    }

    /// Messages that it may still send; some turn out to be conflated.
    pub(super) fn queued(&self) -> u64 {
        self.own_messages + self.open
    }

    /// Bytes of its copies.
    pub(super) fn own_bytes(&self) -> u64 {
        self.own_bytes as u64
    }

    /// Everything before this position has been sent or superseded.
    pub(super) fn reached(&self) -> u64 {
        self.from
    }

    /// How many bytes without a key a jump would take along.
    pub(super) fn unkeyed_bytes(table: &Latest, (from, to): (Cursor, Cursor)) -> u64 {
        table.unkeyed(from, to).map(|(start, end)| end.position() - start.position()).sum()
    }

    /// Goes from `from`, a frame boundary at or beyond a cursor of `reader`, to `to`, another that the reader has told; the caller moves
    /// its cursor there. It takes along what has no key, so that it has at most `own_bytes_max` of that; answers with how many messages
    /// were too many.
    pub(super) fn jump(
        &mut self,
        table: &Latest,
        reader: &mut Reader,
        (from, to): (Cursor, Cursor),
        own_bytes_max: u64,
        spill: Spill,
    ) -> u64 {
        if self.until == 0 {
            self.from = from.position();
        }
        let (mut dropped, mut unkeyed) = (0, 0);
        for (start, end) in table.unkeyed(from, to) {
            unkeyed += end.messages() - start.messages();
            self.take_along(reader, start, end);
            while self.own_bytes() > own_bytes_max {
                dropped += self.spill(table, spill);
            }
        }
        self.open += to.messages() - from.messages() - unkeyed;
        self.until = to.position();
        dropped
    }

    /// Copies the records from `start` to `end`.
    fn take_along(&mut self, reader: &mut Reader, start: Cursor, end: Cursor) {
        let (mut at, mut begin, mut messages) = (start.position(), start.position(), 0);
        let mut copied = BytesMut::new();
        reader.frames(start, |frame| {
            if at >= end.position() {
                return false;
            }
            at += frame.len() as u64;
            messages += 1;
            let payload = match frame {
                Frame::Whole(frame) => {
                    copied.put_slice(frame);
                    Bytes::new()
                }
                Frame::Split { head, payload } => {
                    copied.put_slice(head);
                    payload.clone()
                }
            };
            if copied.len() >= PIECE_BYTES || !payload.is_empty() || at >= end.position() {
                let copied = copied.split().freeze();
                self.push(Piece { start: begin, end: at, messages, copied, payload });
                (begin, messages) = (at, 0);
            }
            true
        });
    }

    fn push(&mut self, piece: Piece) {
        self.own_bytes += piece.bytes();
        self.own_messages += piece.messages;
        self.own.push_back(piece);
    }

    fn pop(&mut self) -> Option<Piece> {
        let piece = self.own.pop_front()?;
        self.own_bytes -= piece.bytes();
        self.own_messages -= piece.messages;
        Some(piece)
    }

    /// Gives one piece up; answers with the messages that are lost by that. What the table has of it still comes.
    fn spill(&mut self, table: &Latest, spill: Spill) -> u64 {
        if spill == Spill::Newest {
            // To the front, where it goes; the rest stays in order.
            self.own.rotate_right(1);
        }
        let Some(piece) = self.pop() else { return 0 };
        let kept = table.count(piece.start, piece.end);
        self.open += kept;
        piece.messages - kept
    }

    /// Shows what comes next, whole frames that begin before `limit` (a frame boundary), until they make up `bytes_max`. Answers with
    /// how many these are.
    pub(super) fn take(
        &mut self,
        table: &Latest,
        limit: u64,
        bytes_max: usize,
        mut visit: impl FnMut(Frame<'_>),
    ) -> u64 {
        let limit = limit.min(self.until);
        let (mut bytes, mut messages) = (0, 0);
        while bytes < bytes_max && self.from < limit {
            let stop = self.own.front().map_or(limit, |piece| piece.start.min(limit));
            if self.from < stop {
                let taken = table.visit(self.from, stop, bytes_max - bytes, &mut visit);
                self.from = taken.reached;
                self.open -= taken.entries;
                messages += taken.entries;
                bytes += taken.bytes;
                continue;
            }
            let Some(mut piece) = self.pop() else { break };
            if piece.end > limit {
                let (now, later) = piece.split(limit);
                self.own_bytes += later.bytes();
                self.own_messages += later.messages;
                self.own.push_front(later);
                piece = now;
            }
            self.from = piece.end;
            messages += piece.messages;
            bytes += piece.bytes();
            let rest = whole_frames(&piece.copied, &mut visit);
            if !rest.is_empty() {
                visit(Frame::Split { head: rest, payload: &piece.payload });
            }
        }
        messages
    }

    /// Whether all of it was taken; then answers with how many messages were conflated.
    pub(super) fn end(&self) -> Option<u64> {
        (self.from >= self.until).then_some(self.open)
    }

    /// Messages that are still to be sent; the rest of [`queued`](Self::queued) is conflated already.
    pub(super) fn waiting(&self, table: &Latest) -> u64 {
        let in_own: u64 = self.own.iter().map(|piece| table.count(piece.start, piece.end)).sum();
        self.own_messages + table.count(self.from, self.until) - in_own
    }
}

impl Piece {
    fn bytes(&self) -> usize {
        self.copied.len() + self.payload.len()
    }

    /// Cuts it at a frame boundary within.
    fn split(mut self, at: u64) -> (Piece, Piece) {
        let offset = (at - self.start) as usize;
        let copied = self.copied.split_to(offset);
        let mut messages = 0;
        whole_frames(&copied, |_| messages += 1);
        let now = Piece { start: self.start, end: at, messages, copied, payload: Bytes::new() };
        let later = Piece { start: at, messages: self.messages - messages, ..self };
        (now, later)
    }
}

/// Shows the whole frames that these bytes begin with, and answers with the rest.
fn whole_frames(mut bytes: &[u8], mut visit: impl FnMut(Frame<'_>)) -> &[u8] {
    while let Some(length) = bytes.first_chunk::<4>() {
        let Some((frame, rest)) = bytes.split_at_checked(4 + u32::from_be_bytes(*length) as usize) else { break };
        visit(Frame::Whole(frame));
        bytes = rest;
    }
    bytes
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::log::{self, Appender, LatestOptions, LogOptions};
    use proptest::prelude::*;

    /// A link without a connection.
    struct Slow {
        cursor: Cursor,
        /// The first message addressed to it from the log, and how many it got from the table as a snapshot.
        joined: u64,
        snapshot: u64,
        detour: Option<Box<Detour>>,
        received: Vec<u32>,
        conflated: u64,
        dropped: u64,
    }

    struct World {
        appender: Appender,
        reader: Reader,
        table: Latest,
        links: Vec<Slow>,
        /// Key, if any, of every message, and where it begins; the payload is its number.
        sent: Vec<(Option<u8>, u64)>,
    }

    impl World {
        fn new() -> World {
            let options = LogOptions { chunk_bytes: 4 << 10, share_from_bytes: 256, ..LogOptions::default() };
            let (appender, mut readers) = log::open(options, 1);
            let table = Latest::new(LatestOptions { keys_max: 100, bytes_max: 1 << 20 }, Cursor::default());
            World { appender, reader: readers.pop().unwrap(), table, links: Vec::new(), sent: Vec::new() }
        }

        fn join(&mut self, snapshot: bool) {
            let cursor = self.reader.join();
            let detour = snapshot.then(|| Box::new(Detour::snapshot(&self.table, cursor)));
            let snapshot = detour.as_ref().map_or(0, |detour| detour.queued());
            let joined = cursor.messages();
            self.links.push(Slow { cursor, joined, snapshot, detour, received: Vec::new(), conflated: 0, dropped: 0 });
        }

        fn send(&mut self, key: Option<u8>, bytes: usize) {
            let mut payload = (self.sent.len() as u32).to_be_bytes().to_vec();
            payload.resize(4 + bytes, 0);
            let head = crate::protocol::data_head(payload.len());
            self.sent.push((key, self.appender.position()));
            self.appender.append_bytes(&head, payload.clone().into()).unwrap();
            let end = Cursor::boundary(self.appender.position(), self.appender.messages());
            match key {
                Some(key) => self.table.update(&[key], &head, &payload, end),
                None => self.table.pass(end),
            }
        }

        /// Takes up to so many bytes (from a detour) or messages (from the log), not beyond the record of that number.
        fn step(&mut self, link: usize, amount: usize, limit: usize) {
            let Some(link) = self.links.get_mut(link) else { return };
            if let Some(detour) = &mut link.detour {
                let before = link.received.len();
                let limit = self.sent.get(limit).map_or(u64::MAX, |(_, begin)| *begin);
                let messages = detour.take(&self.table, limit, amount, |frame| link.received.push(number(frame)));
                assert_eq!(messages, (link.received.len() - before) as u64);
                assert!(link.received.last().is_none_or(|n| self.sent[*n as usize].1 < limit.max(detour.reached())));
                if let Some(conflated) = detour.end() {
                    link.conflated += conflated;
                    link.detour = None;
                }
                return;
            }
            let mut left = 1 + amount / 16;
            let to = self.reader.frames(link.cursor, |frame| {
                left -= 1;
                if left > 0 {
                    link.received.push(number(frame));
                }
                left > 0
            });
            self.reader.advance(link.cursor, to);
            link.cursor = to;
        }

        fn jump(&mut self, link: usize, own_bytes_max: u64, spill: Spill) {
            let Some(link) = self.links.get_mut(link) else { return };
            let detour = link.detour.get_or_insert_default();
            let way = (link.cursor, self.reader.tail());
            link.dropped += detour.jump(&self.table, &mut self.reader, way, own_bytes_max, spill);
            assert!(detour.own_bytes() <= own_bytes_max);
            assert!(detour.waiting(&self.table) <= detour.queued());
            self.reader.advance(link.cursor, way.1);
            link.cursor = way.1;
        }
    }

    fn number(frame: Frame<'_>) -> u32 {
        let payload = match frame {
            Frame::Whole(frame) => &frame[5..],
            Frame::Split { payload, .. } => payload,
        };
        u32::from_be_bytes(payload[..4].try_into().unwrap())
    }

    #[derive(Clone, Debug)]
    enum Step {
        Send { key: Option<u8>, bytes: usize, times: usize },
        Join { snapshot: bool },
        Go { link: usize, amount: usize, limit: usize },
        Jump { link: usize },
        Forget { key: u8 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let send =
            (proptest::option::weighted(0.7, 0..6u8), prop_oneof![9 => 0..40usize, 1 => 200..600usize], 1..4usize);
        let step = prop_oneof![
            10 => send.prop_map(|(key, bytes, times)| Step::Send { key, bytes, times }),
            1 => any::<bool>().prop_map(|snapshot| Step::Join { snapshot }),
            6 => (0..5usize, 1..600usize, 0..400usize).prop_map(|(link, amount, limit)| Step::Go { link, amount, limit }),
            3 => (0..5usize).prop_map(|link| Step::Jump { link }),
            1 => (0..6u8).prop_map(|key| Step::Forget { key }),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// However links lag and jump: positions rise, every record without a key arrives or is counted, the newest value of each key
        /// arrives, a snapshot has nothing that was superseded, and the account closes.
        #[test]
        fn streams_rise_lose_nothing_uncounted_and_end_with_the_newest(
            steps in steps(),
            own_bytes_max in prop_oneof![2 => Just(u64::MAX), 1 => 0..2000u64],
            spill in prop_oneof![Just(Spill::Oldest), Just(Spill::Newest)],
        ) {
            let mut world = World::new();
            world.join(false);
            let mut forgotten = Vec::new();
            for step in steps {
                match step {
                    Step::Send { key, bytes, times } => (0..times).for_each(|_| world.send(key, bytes)),
                    Step::Join { snapshot } => world.join(snapshot),
                    Step::Go { link, amount, limit } => world.step(link, amount, limit),
                    Step::Jump { link } => world.jump(link, own_bytes_max, spill),
                    Step::Forget { key } => {
                        world.table.forget(&[key]);
                        forgotten.push(world.sent.iter().rposition(|(k, _)| *k == Some(key)));
                    }
                }
            }
            let total = world.sent.len();
            for link in 0..world.links.len() {
                while world.links[link].detour.is_some() || world.links[link].cursor != world.reader.tail() {
                    world.step(link, 301, usize::MAX);
                }
                let World { links, sent, .. } = &world;
                let Slow { joined, snapshot, received, conflated, dropped, .. } = &links[link];
                prop_assert!(received.is_sorted_by(|a, b| a < b), "{:?}", received);
                prop_assert_eq!(received.len() as u64 + conflated + dropped, total as u64 - joined + snapshot);
                let got = |n: usize| received.binary_search(&(n as u32)).is_ok();
                let missed = (*joined as usize..total).filter(|n| sent[*n].0.is_none() && !got(*n)).count() as u64;
                prop_assert_eq!(missed, *dropped);
                for key in 0..6 {
                    let newest = sent.iter().rposition(|(k, _)| *k == Some(key));
                    if let Some(newest) = newest.filter(|n| (*snapshot > 0 || *n as u64 >= *joined) && !forgotten.contains(&Some(*n))) {
                        prop_assert!(got(newest), "the newest of {} is {}: {:?}", key, newest, received);
                    }
                    let superseded = |n: usize| sent[n + 1..*joined as usize].iter().any(|(k, _)| *k == sent[n].0);
                    let old = received.iter().map(|n| *n as usize).filter(|n| (*n as u64) < *joined);
                    prop_assert!(old.into_iter().all(|n| sent[n].0.is_some() && !superseded(n)));
                }
            }
        }
    }
}
