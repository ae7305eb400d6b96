//! What one link is to send that others are not: the records that the hub gave it (ROUNDROBIN), and what was sent to its peer by
//! identity. A log with one reader, so that it is counted, cut and handed on like any other. Made when it is first needed.

use std::collections::VecDeque;

use bytes::Bytes;

use super::KIB;
use crate::log::{self, Appender, Cursor, Frame, LogOptions, Reader};

/// Bytes that wait in a lane at most, a record apart, before the hub passes it over: what one send takes, and the same again.
pub(super) const LANE_BYTES_MAX: usize = 512 * KIB;
/// A lane's own chunks: small, as there may be thousands of lanes.
const CHUNK_BYTES: usize = 32 * KIB;
/// Payloads of at least this many bytes stay where they are.
pub(super) const SHARE_FROM_BYTES: usize = 8 * KIB;

/// See the module's documentation. It has no limit of its own: the hub keeps [`LANE_BYTES_MAX`], and senders by identity keep
/// theirs before they append to the mail.
pub(super) struct Lane {
    appender: Appender,
    /// Something was appended by reference since all had gone out: memory of another log that does not wait for the next append.
    borrows: bool,
    pub(super) reader: Reader,
    /// How far it has been sent.
    pub(super) cursor: Cursor,
    /// The records sent by identity that have not gone out, in order.
    directed: VecDeque<Directed>,
    /// Where copies lie that go out once more, from and to; their originals are kept elsewhere.
    again: VecDeque<(u64, u64)>,
    /// Such copies so far.
    copies: u64,
    /// Bytes of frames that went out and wait for their ACK.
    pub(super) unacknowledged: usize,
    /// It got something in the hub's present round.
    pub(super) listed: bool,
}

/// Records by identity in one stretch of a lane.
struct Directed {
    /// PUBLISH: they go out once the link is this far in the socket's log.
    after: Cursor,
    start: u64,
    end: Cursor,
}

impl Lane {
    pub(super) fn open() -> Lane {
        Lane::open_at(Cursor::default())
    }

    /// A lane that begins at `start`, a frame boundary: what is copied into it from there keeps its places.
    pub(super) fn open_at(start: Cursor) -> Lane {
        let options = LogOptions {
            chunk_bytes: CHUNK_BYTES,
            limit_bytes: usize::MAX / 4,
            share_from_bytes: SHARE_FROM_BYTES,
            ..LogOptions::default()
        };
        let (appender, mut readers) = log::open_at(options, 1, start);
        let mut reader = readers.swap_remove(0);
        let cursor = reader.join();
        Lane {
            appender,
            borrows: false,
            reader,
            cursor,
            directed: VecDeque::new(),
            again: VecDeque::new(),
            copies: 0,
            unacknowledged: 0,
            listed: false,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        (self.appender.position() - self.cursor.frame()) as usize + self.unacknowledged < LANE_BYTES_MAX
    }

    /// Messages that have not wholly gone out, copies apart: their originals are counted elsewhere.
    pub(super) fn queued(&mut self) -> u64 {
        self.appender.messages() - self.cursor.messages() - self.again.len() as u64
    }

    /// Bytes that have not gone out, or are of a frame that has not wholly.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.appender.position() - self.cursor.frame()
    }

    /// Messages that came in so far, copies apart.
    pub(super) fn taken(&self) -> u64 {
        self.appender.messages() - self.copies
    }

    pub(super) fn has_unsent(&mut self) -> bool {
        self.reader.has_more(self.cursor)
    }

    /// Appends a frame.
    pub(super) fn take(&mut self, frame: Frame<'_>) {
        let taken = match frame {
            Frame::Whole(frame) => {
                frame.split_first_chunk::<5>().map(|(head, rest)| self.appender.append(head, rest).is_ok())
            }
            Frame::Split { head, payload } => self.take_split(head, payload.clone()),
        };
        debug_assert_eq!(taken, Some(true), "a lane has no limit, and its frames have heads");
    }

    /// Appends a frame whose payload stays where it is.
    pub(super) fn take_split(&mut self, head: &[u8], payload: Bytes) -> Option<bool> {
        self.borrows = true;
        if let Ok(head) = <&[u8; 5]>::try_from(head) {
            return Some(self.appender.append_bytes(head, payload).is_ok());
        }
        let head = <&[u8; 21]>::try_from(head).ok()?;
        Some(self.appender.append_bytes(head, payload).is_ok())
    }

    /// Appends whole frames, less than [`SHARE_FROM_BYTES`], by copying them.
    pub(super) fn take_copied(&mut self, frames: &[u8], messages: u32) {
        let taken = self.appender.append_copied(frames, messages);
        debug_assert!(taken.is_ok(), "a lane has no limit");
    }

    /// Appends whole frames by reference.
    pub(super) fn take_frames(&mut self, frames: Bytes, messages: u32) {
        self.borrows = true;
        let taken = self.appender.append_frames(frames, messages);
        debug_assert!(taken.is_ok(), "a lane has no limit");
    }

    /// Appends a frame that was sent by identity.
    pub(super) fn take_directed(&mut self, frame: Frame<'_>, after: Cursor) {
        let start = self.appender.position();
        self.take(frame);
        let end = Cursor::boundary(self.appender.position(), self.appender.messages());
        match self.directed.back_mut() {
            Some(last) if last.end.position() == start && last.after == after => last.end = end,
            _ => self.directed.push_back(Directed { after, start, end }),
        }
    }

    /// Appends a copy of a frame that went out before.
    pub(super) fn take_again(&mut self, frame: Frame<'_>) {
        let start = self.appender.position();
        self.take(frame);
        self.again.push_back((start, self.appender.position()));
        self.copies += 1;
    }

    /// Whether such copies have not gone out yet.
    pub(super) fn has_copies(&self) -> bool {
        !self.again.is_empty()
    }

    /// Whether the frame at this position is such a copy.
    pub(super) fn is_again(&self, position: u64) -> bool {
        self.again.iter().any(|(start, end)| (*start..*end).contains(&position))
    }

    /// PUBLISH: the place in the socket's log after which the next record goes out.
    pub(super) fn next_after(&self) -> Option<Cursor> {
        self.directed.front().map(|directed| directed.after)
    }

    /// PUBLISH: how far the records go that are due at `reached`; the front one must be.
    pub(super) fn due_end(&self, reached: Cursor) -> Cursor {
        let due = self.directed.iter().take_while(|d| d.after.position() <= reached.position());
        due.last().map_or(self.cursor, |directed| directed.end)
    }

    /// The end of the whole frames that make up `bytes` at most, and `frames` at most, or one if it is larger; not beyond `until`.
    pub(super) fn whole_until(&mut self, until: Cursor, bytes: usize, frames: usize) -> Cursor {
        let (mut left, mut count, mut position) = (bytes, 0, self.cursor.position());
        self.reader.frames(self.cursor, |frame| {
            let len = super::outlet::frame_len(&frame);
            if position >= until.position() || count >= frames || (len > left && count > 0) {
                return false;
            }
            left = left.saturating_sub(len);
            position += len as u64;
            count += 1;
            true
        })
    }

    /// The link has sent up to `to`; answers with the bytes by identity among that.
    pub(super) fn advance(&mut self, to: Cursor) -> u64 {
        self.reader.advance(self.cursor, to);
        self.cursor = to;
        if self.borrows && self.reader.is_drained(to) {
            self.appender.let_go();
            self.borrows = false;
        }
        while self.again.front().is_some_and(|(_, end)| *end <= to.frame()) {
            self.again.pop_front();
        }
        let mut bytes = 0;
        while let Some(front) = self.directed.front_mut() {
            let sent = to.frame().min(front.end.position()).saturating_sub(front.start);
            bytes += sent;
            front.start += sent;
            if front.start < front.end.position() {
                break;
            }
            self.directed.pop_front();
        }
        bytes
    }

    /// Everything that has not wholly gone out, copies apart, with whether it was sent by identity.
    pub(super) fn visit_unsent(mut self, mut visit: impl FnMut(Frame<'_>, bool)) {
        let (directed, again) = (self.directed, self.again);
        let mut position = self.cursor.frame();
        self.reader.frames(self.cursor.frame_start(), |frame| {
            let start = position;
            position += super::outlet::frame_len(&frame) as u64;
            if again.iter().any(|(from, end)| (*from..*end).contains(&start)) {
                return true;
            }
            visit(frame, directed.iter().any(|d| d.start <= start && start < d.end.position()));
            true
        });
    }

    /// Whether the frame at this position was sent by identity.
    pub(super) fn is_directed(&self, position: u64) -> bool {
        self.directed.iter().any(|d| d.start <= position && position < d.end.position())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    /// Otherwise lanes that have nothing to do could hold all of the socket's log, and no `send` would find room again.
    #[test]
    fn a_lane_that_has_sent_all_holds_no_memory_of_others() {
        let frames = Bytes::from([&protocol::data_head(40_000)[..], &[7; 40_000]].concat());
        let payload = Bytes::from(vec![7; 40_000]);
        let mut lane = Lane::open();
        for _ in 0..3 {
            lane.take_frames(frames.clone(), 1);
            lane.take_split(&protocol::data_head(payload.len()), payload.clone());
            while lane.has_unsent() {
                let mut slices = Vec::new();
                let to = lane.reader.gather(lane.cursor, usize::MAX, 64, &mut slices);
                assert!(!frames.is_unique() || !payload.is_unique());
                drop(slices);
                lane.advance(to);
            }
            assert!(frames.is_unique() && payload.is_unique());
        }
    }
}
