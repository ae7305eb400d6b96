//! Conflation, and snapshots: links that leave the log for the table of last values and come back to it further on. What a
//! [`Detour`] gives is put into the link's `kept` a batch at a time, so that it goes out, and is counted, like anything else that is kept.
//!
//! Between two batches what was sent by identity has its turn, so that the order of the `send` calls holds for these too: a batch ends
//! before the place of the next such message.

use super::detour::{Detour, Spill};
use super::lane::Lane;
use super::link::Link;
use super::policy::Unkeyed;
use super::shared::report;
use super::{DisconnectReason, DropCause, Event, LinkKey, Shard, ShardSocket};
use crate::log::{Cursor, Latest};

/// Bytes that a link takes from the table at once, while that is locked.
const BATCH_BYTES: usize = 64 << 10;
/// Conflation on a link is told at most so often.
const TELL_NS: u64 = 100_000_000;

/// Messages conflated on a link that were not told yet.
#[derive(Default)]
pub(super) struct Conflated {
    untold: u64,
    told_ns: u64,
}

impl Link {
    /// The link begins with the last values.
    pub(super) fn begin_snapshot(&mut self, socket: &ShardSocket) {
        let detour = socket.shared.values.read(|table| Detour::snapshot(table, self.cursor));
        self.count(socket.counters(), |tally| &tally.snapshot, detour.queued());
        self.detour = Some(Box::new(detour));
        self.count_lane(socket.counters());
    }

    /// Puts the next batch into `kept`, which is empty. Ends the detour when all of it was taken.
    pub(super) fn refill(&mut self, socket: &ShardSocket, now_ns: u64) {
        let Some(detour) = &mut self.detour else { return };
        let limit = self.lane.as_ref().and_then(|lane| lane.next_after()).map_or(u64::MAX, |after| after.position());
        let mut batch = Box::new(Lane::open_at(Cursor::boundary(detour.reached(), 0)));
        let take = |table: &Latest| detour.take(table, limit, BATCH_BYTES, |frame| batch.take(frame));
        if socket.shared.values.read(take) > 0 {
            self.kept = Some(batch);
        }
        if let Some(conflated) = detour.end() {
            self.detour = None;
            self.count_conflated(socket, conflated, now_ns);
        }
        self.count_lane(socket.counters());
    }

    /// The link has died: answers with the messages that it still had to send.
    pub(super) fn leave_detour(&mut self, socket: &ShardSocket) -> u64 {
        let Some(detour) = self.detour.take() else { return 0 };
        let waiting = socket.shared.values.read(|table| detour.waiting(table));
        self.count_conflated(socket, detour.queued() - waiting, u64::MAX);
        waiting
    }

    fn count_conflated(&mut self, socket: &ShardSocket, messages: u64, now_ns: u64) {
        self.count(socket.counters(), |tally| &tally.conflated, messages);
        let Conflated { untold, told_ns } = &mut self.conflated;
        *untold += messages;
        if *untold > 0 && now_ns.saturating_sub(*told_ns) >= TELL_NS {
            *told_ns = now_ns;
            let messages = std::mem::take(untold);
            report(&socket.shared, Event::Conflated { identity: self.identity, messages });
        }
    }
}

impl Shard {
    /// Takes a link that lags to the end of the log. No part of the log is in flight.
    pub(super) fn conflate(&mut self, key: LinkKey, unkeyed: Unkeyed) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let id = link.socket;
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let (cursor, to) = (link.cursor, link.addressed_until(socket.visible));
        let mut from = cursor;
        let mut begun = None;
        if !cursor.is_aligned() {
            // The frame that has begun is finished first.
            let mut kept = Box::new(Lane::open_at(cursor.frame_start()));
            from = socket.reader.frames(cursor.frame_start(), |frame| {
                let is_first = !kept.has_unsent();
                if is_first {
                    kept.take(frame);
                }
                is_first
            });
            kept.cursor = kept.reader.align(kept.cursor, cursor.position() - cursor.frame());
            begun = Some(kept);
        }
        if to.position() <= from.position() {
            return;
        }
        let way = (from, to);
        let bytes_max = link.flow.unkeyed_bytes;
        let held = link.detour.as_ref().map_or(0, |detour| detour.own_bytes());
        let (spill, cause) = match unkeyed {
            Unkeyed::DropNewest => (Spill::Newest, DropCause::Newest),
            _ => (Spill::Oldest, DropCause::Oldest),
        };
        let drops = matches!(unkeyed, Unkeyed::DropOldest | Unkeyed::DropNewest);
        let dropped = socket.shared.values.read(|table| {
            let fits = drops || held + Detour::unkeyed_bytes(table, way) <= bytes_max;
            let detour = fits.then(|| link.detour.get_or_insert_default())?;
            Some(detour.jump(table, &mut socket.reader, way, bytes_max, spill))
        });
        let Some(dropped) = dropped else {
            // Too much has to be kept: the publisher waits when the log is full, or the link has to go.
            if unkeyed == Unkeyed::Disconnect {
                self.die(key, DisconnectReason::Slow);
            } else if !std::mem::replace(&mut socket.told_unkeyed, true) {
                // To the application it looks as if it had asked for nothing but waiting.
                tracing::warn!(
                    socket = %socket.shared.identity,
                    peer = %link.identity,
                    "what a slow peer has not got cannot be conflated, for it has no keys, and is more than the limit: \
                     once the log is full, the publisher waits for the peer; send with keys, or choose another policy"
                );
            }
            return;
        };
        if begun.is_some() {
            link.kept = begun;
        }
        socket.released |= socket.reader.advance(cursor, to);
        link.cursor = to;
        link.count_cursor(socket.counters());
        link.count_lane(socket.counters());
        link.count(socket.counters(), |tally| tally.dropped(cause), dropped);
        if dropped > 0 {
            self.dropped(key, dropped, cause);
        }
        self.touch(id);
    }
}
