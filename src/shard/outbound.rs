//! The way out. Under PUBLISH a link holds a position in the socket's log and sends the range from there to the tail with one
//! operation, however many messages that is; under ROUNDROBIN it does the same with the lane that the hub fills. One send is in
//! flight per link; what is appended meanwhile goes with the next one, so that batches form by themselves under load, and after
//! idleness the first message goes at once.

use std::io::ErrorKind;

use bytes::Bytes;

use super::link::{InFlight, Reading, Source, State};
use super::retain::KEPT_RANGE_BYTES_MAX;
use super::slow::Waiting;
use super::{DeliveryGuarantee, DisconnectReason, LinkKey, Op, Shard, SocketId, token};
use crate::backend::is_cancelled;
use crate::log::Cursor;
use crate::sabotage::{Bug, planted};

/// Bytes that one send takes from a log at most; a frame that is larger goes in several.
pub(super) const RANGE_BYTES_MAX: usize = 256 * 1024;
/// Slices that one send takes at most.
const RANGE_SLICES_MAX: usize = 64;
/// Vectors kept for later sends.
const SPARE_MAX: usize = 256;

impl Shard {
    /// Sends what a socket's log and mail hold for its links: all of them, in rotation, that have no send in flight.
    pub(crate) fn flush(&mut self, id: SocketId) {
        let shard = self.index as usize;
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        socket.shared.take_dirty(shard);
        let (may_resume, acks) = (socket.shared.take_resume(shard), socket.shared.take_acks(shard));
        if may_resume {
            self.resume(id);
        }
        if !acks.is_empty() {
            self.acknowledge(id, &acks);
        }
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        if socket.shared.home() == shard {
            socket.note_ages(self.now_ns);
            if !planted(Bug::OthersNotTold) {
                socket.shared.tell_others(shard);
            }
        }
        let has_mail = socket.refresh();
        socket.marks.note(self.now_ns, socket.visible);
        if socket.shared.has_waiting() || socket.waiting != Waiting::No {
            self.press(id);
        }
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        if socket.hub.is_some() {
            self.distribute(id);
        } else {
            if has_mail {
                self.sort_mail(id);
            }
            self.pump_all(id);
            self.time_age(id);
        }
        if let Some(socket) = self.socket(id) {
            // AT_LEAST_ONCE keeps mail for peers that are gone, and times it: that has to be seen when it comes.
            let mail_waits = socket.shared.config.delivery == DeliveryGuarantee::AtLeastOnce;
            let at_home = socket.shared.home() == shard;
            let timed = socket.shared.ages.is_some();
            // What found the receive queue full waits for the application to tell that there is room.
            let waits = timed || mail_waits || !socket.stash.is_empty() || socket.shared.has_waiting();
            if socket.links.is_empty() && at_home && !waits {
                socket.shared.keep_dirty();
            }
            if socket.closing.is_some() {
                self.touch(id);
            }
        }
    }

    /// Bytes at the end of a socket's log that have gone to no link, or into no lane, as of its last flush, for each link; 0 while
    /// there is none.
    pub(crate) fn ahead_bytes(&self, id: SocketId) -> u64 {
        let Some(socket) = self.sockets.get(id.index()).and_then(Option::as_ref) else { return 0 };
        let reached = |key: &LinkKey| self.links.get(key.slot as usize).map(|link| link.reached().position());
        let Some(furthest) = socket.links.iter().filter_map(reached).max() else { return 0 };
        let furthest = socket.hub.as_ref().map_or(furthest, |hub| hub.intake.position());
        socket.visible.position().saturating_sub(furthest) / socket.links.len() as u64
    }

    fn pump_all(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        let n = socket.links.len();
        socket.rotation = if n == 0 { 0 } else { (socket.rotation + 1) % n };
        let first = socket.rotation;
        for i in 0..n {
            // Nothing that a pump does takes a link off the list.
            let Some(&key) = self.socket(id).and_then(|socket| socket.links.get((first + i) % n)) else { break };
            self.pump(key);
        }
    }

    /// Sends what there is for one link, unless a send is in flight. Control frames go between two others; then what only this
    /// link is to send, as far as it is due; then the socket's log.
    pub(super) fn pump(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        if link.is_live() && link.flow.watched {
            self.watch(key);
        }
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let Some(socket) = self.sockets.get_mut(link.socket.index()).and_then(Option::as_mut) else { return };
        if link.lane.is_some() {
            link.count_lane(socket.counters());
        }
        if link.sending.is_some() || link.mute.is_some() || !link.is_live() {
            return;
        }
        if link.has_sent_all(socket) {
            return link.behind_since(0);
        }
        if link.detour.is_some() && link.kept.is_none() {
            link.refill(socket, self.now_ns);
        }
        let mut slices = self.spare.pop().unwrap_or_default();
        let mut control = 0;
        let between = planted(Bug::ControlInside)
            || link.reached().is_aligned() && link.lane.as_ref().is_none_or(|lane| lane.cursor.is_aligned());
        if !link.control.is_empty() && between {
            control = link.control.len();
            slices.push(link.control.split().freeze());
        }
        let room = RANGE_SLICES_MAX - slices.len();
        let reached = link.reached();
        let mut source = if link.kept.is_some() { Source::Kept } else { Source::Log };
        let (mut from, mut to) = (reached, reached);
        let mut until = link.addressed_until(socket.visible);
        if let Some(lane) = &mut link.lane {
            let held_back = lane.cursor.is_aligned() && link.retained.as_ref().is_some_and(|kept| kept.is_full());
            let due = match lane.next_after() {
                _ if held_back => None,
                _ if socket.hub.is_some() => Some(Cursor::END),
                Some(after) if after.position() > reached.position() && !planted(Bug::OvertakeMail) => {
                    if after.position() < until.position() {
                        until = after;
                    }
                    None
                }
                // A frame is finished first.
                _ if !reached.is_aligned() => None,
                Some(_) => Some(lane.due_end(reached)),
                None => None,
            };
            if let Some(due) = due {
                (source, from) = (Source::Lane, lane.cursor);
                // What is kept is bounded by count: a send ends with a whole frame, or finishes the one that it is in.
                let (due, room) = match &link.retained {
                    Some(kept) if from.is_aligned() => (lane.whole_until(due, KEPT_RANGE_BYTES_MAX, kept.room()), room),
                    Some(_) => (due, 1),
                    None => (due, room),
                };
                to = lane.reader.gather_until(from, due, RANGE_BYTES_MAX, room, &mut slices);
            }
        }
        match (source, &mut link.kept) {
            (Source::Kept, Some(kept)) => {
                to = kept.reader.gather_until(from, until, RANGE_BYTES_MAX, room, &mut slices);
            }
            (Source::Log, _) if socket.hub.is_none() && link.detour.is_none() => {
                to = socket.reader.gather_until(from, until, RANGE_BYTES_MAX, room, &mut slices);
            }
            _ => {}
        }
        if slices.is_empty() {
            self.spare.push(slices);
            return link.behind_since(0);
        }
        if link.behind_since_ns == 0 {
            link.behind_since(self.now_ns);
        }
        link.sending =
            Some(InFlight { control, source, from, to, since_ns: self.now_ns, cancelled: false, doubted: false });
        self.backend.send(link.conn, slices, token(Op::LinkSend, key.slot, key.generation));
    }

    /// A send has ended: all of it, or as much as went before an error.
    pub(super) fn sent(&mut self, key: LinkKey, mut slices: Vec<Bytes>, bytes: usize, error: Option<std::io::Error>) {
        let now_ns = self.now_ns;
        let Some(link) = self.links.get_mut(key.slot as usize).filter(|link| link.generation == key.generation) else {
            return;
        };
        let Some(range) = link.sending.take() else { return };
        let id = link.socket;
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else {
            return self.bury(key);
        };
        if bytes > 0 {
            link.liveness.handle_sent(now_ns);
            link.count(socket.counters(), |tally| &tally.bytes_sent, bytes as u64);
        }
        let all = error.is_none();
        let cut_short = range.cancelled && error.as_ref().is_some_and(is_cancelled);
        let error = error.filter(|_| !cut_short);
        if bytes < range.control
            && let Some(unsent) = slices.first()
        {
            // It begins inside a frame, perhaps, but nothing else goes out before it.
            let later = link.control.split();
            link.control.extend_from_slice(&unsent[bytes..]);
            link.control.unsplit(later);
        }
        if range.to != range.from {
            let of_log = bytes.saturating_sub(range.control);
            let reader = match (range.source, &mut link.lane, &mut link.kept) {
                (Source::Lane, Some(lane), _) | (Source::Kept, _, Some(lane)) => &mut lane.reader,
                _ => &mut socket.reader,
            };
            let reached = match all {
                false if planted(Bug::CursorBehind) => range.from,
                true if planted(Bug::FrameRestarted) => range.to.frame_start(),
                false if planted(Bug::SentTooFar) => range.to,
                true => range.to,
                false => reader.align(range.from, of_log as u64),
            };
            let whole = reached.messages() - range.from.messages();
            if link.retained.is_none() {
                link.count(socket.counters(), |tally| &tally.delivered, whole);
                if let Some(closing) = &mut socket.closing {
                    closing.deduct(&link.identity, whole, reached.position() - range.from.position());
                }
            }
            if range.source == Source::Kept
                && let Some(kept) = &mut link.kept
            {
                slices.clear();
                kept.advance(reached);
                if !kept.has_unsent() {
                    link.kept = None;
                }
                link.count_lane(socket.counters());
            } else if range.source == Source::Lane
                && let Some(lane) = &mut link.lane
            {
                if let Some(retained) = &mut link.retained {
                    cut(&mut slices, range.control, of_log);
                    lane.unacknowledged += retained.keep(&slices, lane, range.from.position(), now_ns);
                }
                slices.clear();
                let directed = lane.advance(reached);
                if link.retained.is_none() {
                    link.queued_sub(directed as usize);
                }
                socket.released = true;
            } else {
                slices.clear();
                socket.released |= socket.reader.advance(range.from, reached);
                link.cursor = reached;
                link.count_cursor(socket.counters());
            }
            link.behind_since(range.since_ns);
        }
        slices.clear();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(slices);
        }
        let retained = self.link(key).and_then(|link| link.retained.as_mut());
        if let Some(early) = retained.and_then(|retained| retained.take_early()) {
            self.let_go(key, &early);
        }
        let is_live = self.link(key).is_some_and(|link| link.is_live());
        if range.doubted && cut_short && bytes == 0 && is_live {
            // It has got nowhere at all for as long as a publisher may wait for it.
            return self.die(key, DisconnectReason::Stalled);
        }
        self.after_send(key, id, error);
    }

    /// What follows from a send: the link's end, or its next send.
    fn after_send(&mut self, key: LinkKey, id: SocketId, error: Option<std::io::Error>) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        match link.state {
            State::Dying => return self.bury(key),
            State::Leaving => {
                self.move_on(key);
                return;
            }
            _ => {}
        }
        if let Some(error) = error {
            // A peer that sent its last and closed: what it sent has come, or comes before the end does.
            let closed = matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
            if closed && link.is_live() && link.reading != Reading::Idle && !link.paused {
                link.mute = Some(error);
                return;
            }
            return self.failed(key, &error);
        }
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let has_mail = socket.refresh();
        if socket.released || socket.closing.is_some() {
            self.touch(id);
        }
        if self.socket(id).is_some_and(|socket| socket.hub.is_some()) {
            self.time_resend(key);
            self.distribute(id);
        } else if has_mail {
            self.sort_mail(id);
        }
        self.pump(key);
        self.check_parting(key);
    }

    /// A peer's last byte has been read.
    pub(super) fn closed_by_peer(&mut self, key: LinkKey) {
        let mute = self.link(key).and_then(|link| link.mute.take());
        match mute.filter(|error| error.kind() == ErrorKind::ConnectionReset) {
            Some(error) => self.failed(key, &error),
            None => self.die(key, DisconnectReason::ClosedByPeer),
        }
    }

    /// The failure of a connection, unless it is the end that we asked for.
    pub(super) fn failed(&mut self, key: LinkKey, error: &std::io::Error) {
        self.die(key, DisconnectReason::Failed(error.to_string()));
    }
}

/// Leaves of a send's slices what went out behind the control frames.
fn cut(slices: &mut Vec<Bytes>, control: usize, mut bytes: usize) {
    if control > 0 {
        slices.remove(0);
    }
    slices.retain_mut(|slice| {
        slice.truncate(bytes);
        bytes -= slice.len();
        !slice.is_empty()
    });
}
