//! The way out. Under PUBLISH a link holds a position in the socket's log and sends the range from there to the tail with one
//! operation, however many messages that is; under ROUNDROBIN it does the same with the lane that the hub fills. One send is in
//! flight per link; what is appended meanwhile goes with the next one, so that batches form by themselves under load, and after
//! idleness the first message goes at once.

use bytes::Bytes;

use super::link::{InFlight, State};
use super::retain::KEPT_RANGE_BYTES_MAX;
use super::{Command, DeliveryGuarantee, DisconnectReason, LinkKey, Op, Shard, SocketId, Timer, token};
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
        let shared = socket.shared.clone();
        if shared.take_resume(shard) {
            self.resume(id);
        }
        self.acknowledge(id, &shared.take_acks(shard));
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        if socket.shared.home() == shard {
            socket.note_ages(self.now_ns);
            if !planted(Bug::OthersNotTold) {
                socket.shared.tell_others(shard);
            }
            let wait = socket.shared.wait_number();
            if wait != 0 && wait != socket.stall_timed {
                socket.stall_timed = wait;
                let due_ns = self.now_ns.saturating_add(socket.shared.config.publish_stall_ns);
                self.timers.set(due_ns, Timer::Stall(id, wait));
            }
        }
        let has_mail = socket.refresh();
        if socket.hub.is_some() {
            self.distribute(id);
        } else {
            if has_mail {
                self.sort_mail(id);
            }
            self.pump_all(id);
        }
        if let Some(socket) = self.socket(id) {
            // AT_LEAST_ONCE keeps mail for peers that are gone, and times it: that has to be seen when it comes.
            let mail_waits = socket.shared.config.delivery == DeliveryGuarantee::AtLeastOnce;
            let at_home = socket.shared.home() == shard && !mail_waits;
            let timed = socket.shared.ages.is_some();
            if socket.links.is_empty() && at_home && !timed && socket.shared.wait_number() == 0 {
                socket.shared.keep_dirty();
            }
            if socket.closing.is_some() {
                self.touch(id);
            }
        }
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
        let Some(socket) = self.sockets.get_mut(link.socket.index()).and_then(Option::as_mut) else { return };
        if link.lane.is_some() {
            link.count_lane(socket.counters());
        }
        if link.sending.is_some() || !link.is_live() {
            return;
        }
        let mut slices = self.spare.pop().unwrap_or_default();
        let mut control = 0;
        let between = planted(Bug::ControlInside)
            || link.cursor.is_aligned() && link.lane.as_ref().is_none_or(|lane| lane.cursor.is_aligned());
        if !link.control.is_empty() && between {
            control = link.control.len();
            slices.push(link.control.split().freeze());
        }
        let room = RANGE_SLICES_MAX - slices.len();
        let mut of_lane = false;
        let (mut from, mut to) = (link.cursor, link.cursor);
        let mut until = link.addressed_until(socket.visible);
        if let Some(lane) = &mut link.lane {
            let held_back = lane.cursor.is_aligned() && link.retained.as_ref().is_some_and(|kept| kept.is_full());
            let due = match lane.next_after() {
                _ if held_back => None,
                _ if socket.hub.is_some() => Some(Cursor::END),
                Some(after) if after.position() > link.cursor.position() && !planted(Bug::OvertakeMail) => {
                    if after.position() < until.position() {
                        until = after;
                    }
                    None
                }
                // A frame is finished first.
                _ if !link.cursor.is_aligned() => None,
                Some(_) => Some(lane.due_end(link.cursor)),
                None => None,
            };
            if let Some(due) = due {
                (of_lane, from) = (true, lane.cursor);
                // What is kept is bounded by count: a send ends with a whole frame, or finishes the one that it is in.
                let (due, room) = match &link.retained {
                    Some(kept) if from.is_aligned() => (lane.whole_until(due, KEPT_RANGE_BYTES_MAX, kept.room()), room),
                    Some(_) => (due, 1),
                    None => (due, room),
                };
                to = lane.reader.gather_until(from, due, RANGE_BYTES_MAX, room, &mut slices);
            }
        }
        if !of_lane && socket.hub.is_none() {
            to = socket.reader.gather_until(from, until, RANGE_BYTES_MAX, room, &mut slices);
        }
        if slices.is_empty() {
            self.spare.push(slices);
            return link.behind_since(0);
        }
        if link.behind_since_ns == 0 {
            link.behind_since(self.now_ns);
        }
        link.sending = Some(InFlight { control, of_lane, from, to, since_ns: self.now_ns });
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
        if range.to != range.from {
            let of_log = bytes.saturating_sub(range.control);
            let reader = match &mut link.lane {
                Some(lane) if range.of_lane => &mut lane.reader,
                _ => &mut socket.reader,
            };
            let reached = match error {
                Some(_) if planted(Bug::CursorBehind) => range.from,
                None if planted(Bug::FrameRestarted) => range.to.frame_start(),
                None => range.to,
                Some(_) if planted(Bug::SentTooFar) => range.to,
                Some(_) => reader.align(range.from, of_log as u64),
            };
            let whole = reached.messages() - range.from.messages();
            if link.retained.is_none() {
                link.count(socket.counters(), |tally| &tally.delivered, whole);
                if let Some(closing) = &mut socket.closing {
                    closing.deduct(&link.identity, whole, reached.position() - range.from.position());
                }
            }
            if range.of_lane
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
            return self.die(key, DisconnectReason::Failed(error.to_string()));
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

    /// A publisher has waited for `publish_stall_max`: whoever is furthest behind has to go.
    pub(super) fn stall_due(&mut self, id: SocketId, wait: u64) {
        let Some(socket) = self.socket(id) else { return };
        socket.stall_timed = 0;
        if socket.shared.wait_number() != wait {
            return self.flush(id);
        }
        let own = self.index as usize;
        for (shard, port) in self.ports.clone().iter().enumerate() {
            if shard != own {
                self.pass(port.clone(), Command::Stalled { socket: id, wait });
            }
        }
        self.drop_holders(id, wait);
        self.flush(id);
    }

    /// Disconnects this shard's links that hold the memory which a publisher waits for.
    pub(super) fn drop_holders(&mut self, id: SocketId, wait: u64) {
        let Some(socket) = self.socket(id) else { return };
        if socket.shared.wait_number() != wait || socket.hub.is_some() {
            return;
        }
        let Some(oldest_end) = socket.shared.log.oldest_end() else { return };
        for key in socket.links.clone() {
            if self.link(key).is_some_and(|link| link.cursor.frame() <= oldest_end) {
                self.die(key, DisconnectReason::Stalled);
            }
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
