//! ROUNDROBIN: the hub is the single owner of a socket's circle. The socket's log is its intake only; each record goes on into the
//! lane of one link: whole ranges by reference when there is one peer, small records copied one after the other into the lane's
//! chunks when there are several, large ones by reference. A lane that is full is passed over; when all are, the records stay in
//! the intake and `send` comes to wait.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{KIB, LinkKey, Shard, ShardSocket, SocketId};
use crate::log::{self, Appender, Cursor, Frame, LogOptions, Reader};
use crate::protocol::Circle;
use crate::shard::link::Link;

/// Bytes that wait in a lane at most, a record apart: what one send takes, and the same again for the next.
const LANE_BYTES_MAX: u64 = 512 * KIB as u64;
/// A lane's own chunks: small, as there may be thousands of lanes.
const LANE_CHUNK_BYTES: usize = 32 * KIB;
/// Records moved before the links are pumped.
const MOVE_MAX: usize = 8192;

/// The frames of one link: a log with one reader. Its bound is [`LANE_BYTES_MAX`], kept by the hub.
pub(super) struct Lane {
    appender: Appender,
    pub(super) reader: Reader,
    /// It got something in the present round.
    listed: bool,
}

impl Lane {
    pub(super) fn open() -> (Lane, Cursor) {
        let options =
            LogOptions { chunk_bytes: LANE_CHUNK_BYTES, limit_bytes: usize::MAX / 4, share_from_bytes: LANE_CHUNK_BYTES / 4 };
        let (appender, mut readers) = log::open(options, 1);
        let mut reader = readers.swap_remove(0);
        let cursor = reader.join();
        (Lane { appender, reader, listed: false }, cursor)
    }

    fn has_room(&self, cursor: Cursor) -> bool {
        self.appender.position() - cursor.frame() < LANE_BYTES_MAX
    }

    fn take_split(&mut self, head: &[u8], payload: Bytes) -> Option<bool> {
        if let Ok(head) = <&[u8; 5]>::try_from(head) {
            return Some(self.appender.append_bytes(head, payload).is_ok());
        }
        let head = <&[u8; 21]>::try_from(head).ok()?;
        Some(self.appender.append_bytes(head, payload).is_ok())
    }

    /// Appends a frame; a lane has no limit of its own that it could be beyond.
    fn take(&mut self, frame: Frame<'_>) {
        let taken = match frame {
            Frame::Whole(frame) => {
                frame.split_first_chunk::<5>().map(|(head, rest)| self.appender.append(head, rest).is_ok())
            }
            Frame::Split { head, payload } => self.take_split(head, payload.clone()),
        };
        debug_assert_eq!(taken, Some(true), "a lane has no limit, and its frames have heads");
    }
}

/// Records to be distributed: where they are, and how far it has come.
struct Source {
    lane: Lane,
    at: Cursor,
}

/// See the module's documentation.
pub(super) struct Hub {
    pub(super) circle: Circle<LinkKey>,
    /// How far the socket's log has been distributed.
    intake: Cursor,
    /// What dead links left behind goes first.
    returned: VecDeque<Source>,
    /// Links that got something in the present round.
    filled: Vec<LinkKey>,
}

impl Hub {
    pub(super) fn new(intake: Cursor) -> Hub {
        Hub { circle: Circle::new(), intake, returned: VecDeque::new(), filled: Vec::new() }
    }

    /// The frames of a link that has died, from the first that did not wholly go out.
    pub(super) fn take_back(&mut self, mut lane: Lane, cursor: Cursor) {
        let at = cursor.frame_start();
        if lane.reader.has_more(at) {
            self.returned.push_back(Source { lane, at });
        }
    }

    /// Messages that wait here for a link.
    pub(super) fn queued(&mut self, reader: &mut Reader) -> u64 {
        let returned: u64 = self.returned.iter_mut().map(|s| s.lane.reader.tail().messages() - s.at.messages()).sum();
        returned + reader.tail().messages() - self.intake.messages()
    }
}

impl Shard {
    /// Moves records from the intake into lanes, as long as there are both records and room.
    pub(super) fn distribute(&mut self, id: SocketId) {
        loop {
            let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
            let ShardSocket { hub: Some(hub), reader, released, .. } = socket else { return };
            let links = &mut self.links;
            let mut moved = false;
            while let Some(mut source) = hub.returned.pop_front() {
                let at = source.at;
                source.at = spread(&mut hub.circle, &mut hub.filled, links, &mut source.lane.reader, at);
                source.lane.reader.advance(at, source.at);
                moved |= source.at != at;
                if source.lane.reader.has_more(source.at) {
                    hub.returned.push_front(source);
                    break;
                }
            }
            if hub.returned.is_empty() {
                let at = hub.intake;
                hub.intake = spread(&mut hub.circle, &mut hub.filled, links, reader, at);
                *released |= reader.advance(at, hub.intake);
                moved |= hub.intake != at;
            }
            let mut filled = std::mem::take(&mut hub.filled);
            let went_on = !filled.is_empty();
            for key in filled.drain(..) {
                if let Some(link) = self.links.get_mut(key.slot as usize)
                    && let Some(lane) = &mut link.lane
                {
                    lane.listed = false;
                }
                self.pump(key);
            }
            if let Some(hub) = self.socket(id).and_then(|socket| socket.hub.as_mut()) {
                hub.filled = filled;
            }
            self.touch(id);
            if !moved || !went_on {
                return;
            }
        }
    }
}

/// Gives out what `reader` has from `at` on; answers how far that went.
fn spread(
    circle: &mut Circle<LinkKey>,
    filled: &mut Vec<LinkKey>,
    links: &mut slab::Slab<Link>,
    reader: &mut Reader,
    at: Cursor,
) -> Cursor {
    match circle.only() {
        Some(key) => {
            let Some(link) = links.get_mut(key.slot as usize) else { return at };
            let cursor = link.cursor;
            match &mut link.lane {
                Some(lane) => pour(lane, cursor, key, filled, reader, at),
                None => at,
            }
        }
        None => deal(circle, filled, links, reader, at),
    }
}

/// One peer: whole ranges by reference, as long as its lane has room.
fn pour(
    lane: &mut Lane,
    cursor: Cursor,
    key: LinkKey,
    filled: &mut Vec<LinkKey>,
    reader: &mut Reader,
    mut at: Cursor,
) -> Cursor {
    let mut range: Vec<Bytes> = Vec::with_capacity(2);
    while lane.has_room(cursor) {
        // Up to the end of a chunk; and where that is inside a large frame, its payload too.
        let mut to = reader.gather(at, usize::MAX, 1, &mut range);
        let Some(mut frames) = range.pop() else { break };
        let head = frames.split_off((to.frame() - at.position()) as usize);
        let taken = lane.appender.append_frames(frames, (to.messages() - at.messages()) as u32);
        debug_assert!(taken.is_ok(), "a lane has no limit");
        if !to.is_aligned() {
            to = reader.gather(to, usize::MAX, 1, &mut range);
            let payload = range.pop().unwrap_or_default();
            let taken = lane.take_split(&head, payload);
            debug_assert_eq!(taken, Some(true), "a lane has no limit, and its frames have heads");
        }
        if !std::mem::replace(&mut lane.listed, true) {
            filled.push(key);
        }
        at = to;
    }
    at
}

/// Several peers: record by record, strictly in turn.
fn deal(
    circle: &mut Circle<LinkKey>,
    filled: &mut Vec<LinkKey>,
    links: &mut slab::Slab<Link>,
    reader: &mut Reader,
    at: Cursor,
) -> Cursor {
    if circle.is_empty() {
        return at;
    }
    let mut left = MOVE_MAX;
    reader.frames(at, |frame| {
        if left == 0 {
            return false;
        }
        let next = circle.next(|key: LinkKey| {
            let link = links.get(key.slot as usize);
            link.is_some_and(|link| link.lane.as_ref().is_some_and(|lane| lane.has_room(link.cursor)))
        });
        let Some(lane) = next.and_then(|key| links.get_mut(key.slot as usize)?.lane.as_mut().map(|lane| (key, lane))) else {
            return false;
        };
        let (key, lane) = lane;
        lane.take(frame);
        if !std::mem::replace(&mut lane.listed, true) {
            filled.push(key);
        }
        left -= 1;
        true
    })
}
