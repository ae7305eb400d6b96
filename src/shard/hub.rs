//! ROUNDROBIN: the hub is the single owner of a socket's circle, on the socket's home shard, where all links of such a socket live:
//! one strict order is serial by nature, and another thread between log and link would cost a hop for each message. The socket's log
//! is its intake only; each record goes on into the lane of one link: whole ranges when there is one peer, copied while they are short;
//! one record after the other when there are several, the large ones by reference. A lane that is full is passed over; when all are, the
//! records stay in the intake and `send` comes to wait.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::lane::{Lane, SHARE_FROM_BYTES};
use super::outlet::frame_len;
use super::{LinkKey, Shard, ShardSocket, SocketId};
use crate::log::{Cursor, Frame, Reader};
use crate::protocol::Circle;
use crate::sabotage::{Bug, planted};
use crate::shard::link::Link;

/// Records moved before the links are pumped.
const MOVE_MAX: usize = 8192;

/// See the module's documentation.
pub(super) struct Hub {
    pub(super) circle: Circle<LinkKey>,
    /// How far the socket's log has been distributed.
    pub(super) intake: Cursor,
    /// What dead links left behind goes first.
    returned: VecDeque<Lane>,
    /// Links that got something in the present round.
    filled: Vec<LinkKey>,
}

impl Hub {
    pub(super) fn new(intake: Cursor) -> Hub {
        Hub { circle: Circle::new(), intake, returned: VecDeque::new(), filled: Vec::new() }
    }

    /// Frames for anybody that a dead link left behind.
    pub(super) fn take_back(&mut self, mut lane: Lane) {
        if lane.has_unsent() && !planted(Bug::ReturnedLost) {
            self.returned.push_back(lane);
        }
    }

    /// Messages that dead links left behind and that wait here.
    fn returned(&mut self) -> u64 {
        self.returned.iter_mut().map(Lane::queued).sum()
    }

    /// Messages that wait here for a link.
    pub(super) fn queued(&mut self, reader: &mut Reader) -> u64 {
        self.returned() + reader.tail().messages() - self.intake.messages()
    }
}

impl ShardSocket {
    /// How far the intake has been dealt out, and what waits to be dealt once more.
    pub(super) fn count_hub(&mut self) {
        let Some(hub) = &mut self.hub else { return };
        let counters = &self.shared.counters[self.shard];
        counters.dealt.store(hub.intake.messages(), Relaxed);
        counters.dealt_bytes.store(hub.intake.frame(), Relaxed);
        counters.returned.store(hub.returned(), Relaxed);
    }
}

impl Shard {
    /// Moves records from the intake into lanes, as long as there are both records and room, and mail when its turn has come.
    pub(super) fn distribute(&mut self, id: SocketId) {
        loop {
            let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
            let after = socket.mail_after();
            let ShardSocket { hub: Some(hub), reader, visible, released, .. } = socket else { return };
            if after.is_none() && hub.returned.is_empty() && hub.intake.position() >= visible.position() {
                break;
            }
            let until = after.filter(|after| after.position() < visible.position()).unwrap_or(*visible);
            let links = &mut self.links;
            let mut moved = false;
            while let Some(mut lane) = hub.returned.pop_front() {
                let at = lane.cursor;
                let to = spread(&mut hub.circle, &mut hub.filled, links, &mut lane.reader, at, Cursor::END);
                lane.advance(to);
                moved |= to != at;
                if lane.has_unsent() {
                    hub.returned.push_front(lane);
                    break;
                }
            }
            if hub.returned.is_empty() {
                let at = hub.intake;
                hub.intake = spread(&mut hub.circle, &mut hub.filled, links, reader, at, until);
                *released |= reader.advance(at, hub.intake);
                moved |= hub.intake != at;
            }
            let mut filled = std::mem::take(&mut hub.filled);
            if let Some(socket) = self.socket(id) {
                socket.count_hub();
            }
            moved |= after.is_some() && self.sort_mail(id);
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
            if !moved {
                break;
            }
        }
        if self.socket(id).is_some_and(|socket| socket.released || socket.closing.is_some()) {
            self.touch(id);
        }
    }
}

/// Gives out what `reader` has from `at` up to `until`; answers how far that went.
fn spread(
    circle: &mut Circle<LinkKey>,
    filled: &mut Vec<LinkKey>,
    links: &mut slab::Slab<Link>,
    reader: &mut Reader,
    at: Cursor,
    until: Cursor,
) -> Cursor {
    match circle.only() {
        Some(key) => match links.get_mut(key.slot as usize).and_then(|link| link.lane.as_mut()) {
            Some(lane) => pour(lane, key, filled, reader, at, until),
            None => at,
        },
        None => deal(circle, filled, links, reader, at, until),
    }
}

/// One peer: whole ranges, as long as its lane has room; what is little is copied.
fn pour(
    lane: &mut Lane,
    key: LinkKey,
    filled: &mut Vec<LinkKey>,
    reader: &mut Reader,
    mut at: Cursor,
    until: Cursor,
) -> Cursor {
    while at.position() < until.position() && lane.has_room() {
        let mut to =
            reader.show(at, until, SHARE_FROM_BYTES - 1, |frames, messages| lane.take_copied(frames, messages));
        if to == at {
            to = lend(lane, reader, at, until);
        }
        if to == at {
            break;
        }
        if !std::mem::replace(&mut lane.listed, true) {
            filled.push(key);
        }
        at = to;
    }
    at
}

/// What there is up to the end of a chunk, by reference; and where that is inside a large frame, its payload too.
fn lend(lane: &mut Lane, reader: &mut Reader, at: Cursor, until: Cursor) -> Cursor {
    let mut range: Vec<Bytes> = Vec::with_capacity(1);
    let mut to = reader.gather_until(at, until, usize::MAX, 1, &mut range);
    let Some(mut frames) = range.pop() else { return at };
    let head = frames.split_off((to.frame() - at.position()) as usize);
    if !frames.is_empty() {
        lane.take_frames(frames, (to.messages() - at.messages()) as u32);
    }
    if !to.is_aligned() {
        to = reader.gather_until(to, until, usize::MAX, 1, &mut range);
        let taken = lane.take_split(&head, range.pop().unwrap_or_default());
        debug_assert_eq!(taken, Some(true), "a lane has no limit, and its frames have heads");
    }
    to
}

/// Several peers: record by record, strictly in turn.
fn deal(
    circle: &mut Circle<LinkKey>,
    filled: &mut Vec<LinkKey>,
    links: &mut slab::Slab<Link>,
    reader: &mut Reader,
    at: Cursor,
    until: Cursor,
) -> Cursor {
    if circle.is_empty() {
        return at;
    }
    circle.begin_round();
    let mut left = MOVE_MAX;
    let mut position = at.position();
    reader.frames(at, |frame: Frame<'_>| {
        if left == 0 || position >= until.position() {
            return false;
        }
        let next = circle.next(|key: LinkKey| {
            let link = links.get(key.slot as usize);
            link.is_some_and(|link| link.lane.as_ref().is_some_and(|lane| lane.has_room()))
        });
        let Some((key, lane)) = next.and_then(|key| Some((key, links.get_mut(key.slot as usize)?.lane.as_mut()?)))
        else {
            return false;
        };
        position += frame_len(&frame) as u64;
        lane.take(frame);
        if !std::mem::replace(&mut lane.listed, true) {
            filled.push(key);
        }
        left -= 1;
        true
    })
}
