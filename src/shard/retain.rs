//! AT_LEAST_ONCE, the sender's part: what went out on a link is kept until its ACK comes back on that link, sent again when it does not,
//! and handed on when the link dies. Kept frames are places in the memory that they were sent from, so that nothing is copied; that
//! memory counts against the socket's log as long as they are kept, which is what bounds them.

use std::ops::Range;

use bytes::Bytes;
use slab::Slab;

use super::lane::Lane;
use super::link::Link;
use super::shared::report;
use super::{Event, LinkKey, Shard, ShardSocket, Timer};
use crate::log::Frame;
use crate::protocol::{self, Deframer, MsgId, Overdue, Pending, PendingConfig, Waiting};
use crate::sabotage::{Bug, planted};
use crate::shard::config::SocketConfig;
use crate::shard::mail::Parked;
use crate::shard::tally::add;

/// What one link has sent and not seen acknowledged.
pub(super) struct Retained {
    pending: Pending<Kept>,
    /// The memory of what waits.
    sent: Slab<Sent>,
    /// Finds the frames in what was sent, however sends cut them.
    deframer: Deframer,
    /// For what the link's timer is set.
    timed_ns: u64,
    /// ACKs that came before the send that they are for had ended: they count when it has. At most [`PENDING_MAX`].
    early: Vec<MsgId>,
}

/// A piece of what was sent, in which messages wait for their ACK.
struct Sent {
    bytes: Bytes,
    /// How many.
    waiting: u32,
}

/// A frame that wants an ACK: where it is.
#[derive(Clone, Copy)]
struct Kept {
    /// In which of [`Retained::sent`].
    sent: u32,
    start: u32,
    end: u32,
    /// It is for this peer only.
    directed: bool,
}

impl Kept {
    fn len(self) -> usize {
        (self.end - self.start) as usize
    }
}

/// Messages of a link that wait for their ACK at most: what a receiver of ours recognises when it comes again.
const PENDING_MAX: usize = 4096;
/// Bytes that one send takes of a lane whose messages are kept.
pub(super) const KEPT_RANGE_BYTES_MAX: usize = 64 * 1024;

impl Retained {
    pub(super) fn new(config: &SocketConfig) -> Retained {
        Retained {
            pending: Pending::new(PendingConfig {
                resend_ns: config.resend_ns,
                attempts_max: config.attempts_max,
                // Never refuses: what has gone out must be kept. The bound is when sending stops, see `is_full`.
                capacity: usize::MAX,
            }),
            sent: Slab::new(),
            deframer: Deframer::new(u32::MAX),
            timed_ns: u64::MAX,
            early: Vec::new(),
        }
    }

    /// `slices` of the lane, beginning at `position` of it, have gone to the kernel. Answers with the bytes kept.
    pub(super) fn keep(&mut self, slices: &[Bytes], lane: &Lane, mut position: u64, now_ns: u64) -> usize {
        let mut kept = 0;
        for slice in slices {
            // What we wrote ourselves has no frame that is too long.
            let Ok(scan) = self.deframer.feed(slice, |_| {}) else { continue };
            if let Some(frame) = scan.assembled {
                let start = position + scan.run.start as u64 - frame.len() as u64;
                kept += self.keep_frames(&frame, 0..frame.len(), lane, start, now_ns);
            }
            kept += self.keep_frames(slice, scan.run.clone(), lane, position + scan.run.start as u64, now_ns);
            position += slice.len() as u64;
        }
        kept
    }

    /// The whole frames in `run` of `bytes`, which begin at `position` of the lane.
    fn keep_frames(&mut self, bytes: &Bytes, run: Range<usize>, lane: &Lane, position: u64, now_ns: u64) -> usize {
        let sent = self.sent.vacant_key() as u32;
        let (mut waiting, mut kept) = (0, 0);
        let frames = &bytes[..run.end];
        let mut at = run.start;
        while let start = at
            && let Some(message) = protocol::next_message(frames, &mut at)
        {
            let Some(msg_id) = message.msg_id else { continue };
            let position = position + (start - run.start) as u64;
            // A copy is not kept again: its original still waits, or was acknowledged meanwhile.
            if lane.is_again(position) && !planted(Bug::KeepCopies) {
                continue;
            }
            // Memory of ours is no longer than what fits into 32 bits.
            let frame = Kept { sent, start: start as u32, end: at as u32, directed: lane.is_directed(position) };
            if self.pending.insert(Waiting { msg_id, attempts: 1, message: frame }, now_ns).is_ok() {
                waiting += 1;
                kept += frame.len();
            }
        }
        if waiting > 0 {
            self.sent.insert(Sent { bytes: bytes.clone(), waiting });
        }
        kept
    }

    fn frame(&self, kept: Kept) -> Bytes {
        self.sent[kept.sent as usize].bytes.slice(kept.start as usize..kept.end as usize)
    }

    /// A frame waits no longer.
    #[inline]
    fn let_go(&mut self, kept: Kept) {
        let sent = &mut self.sent[kept.sent as usize];
        sent.waiting -= 1;
        if sent.waiting == 0 {
            self.sent.remove(kept.sent as usize);
        }
    }

    /// All frames that wait, in the order in which they went out last, with whether they are for this peer only.
    fn drain(&mut self) -> Vec<(Bytes, bool)> {
        let waiting = self.pending.drain();
        let frames = waiting.iter().map(|waiting| (self.frame(waiting.message), waiting.message.directed)).collect();
        self.sent.clear();
        frames
    }

    /// The ACKs that were too early for their send, if there are any.
    pub(super) fn take_early(&mut self) -> Option<Vec<MsgId>> {
        (!self.early.is_empty()).then(|| std::mem::take(&mut self.early))
    }

    pub(super) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// Messages that may go out before an ACK comes.
    pub(super) fn room(&self) -> usize {
        PENDING_MAX.saturating_sub(self.pending.len())
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn pause(&mut self, now_ns: u64) {
        self.pending.pause(now_ns);
    }

    pub(super) fn resume(&mut self, now_ns: u64) {
        self.pending.resume(now_ns);
    }
}

impl Shard {
    /// ACKs have come on a link.
    pub(super) fn acknowledged(&mut self, key: LinkKey, ids: &[MsgId]) {
        self.let_go(key, ids);
        let Some(id) = self.link(key).map(|link| link.socket) else { return };
        self.touch(id);
        self.distribute(id);
        self.pump(key);
        self.check_parting(key);
    }

    /// Lets go of messages that were acknowledged.
    pub(super) fn let_go(&mut self, key: LinkKey, ids: &[MsgId]) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let is_sending = link.sending.is_some();
        let (id, Some(retained), Some(lane)) = (link.socket, &mut link.retained, &mut link.lane) else { return };
        let now_ns = self.now_ns;
        // How long they took, and how many that long: what went out together and comes back together.
        let mut round_trips: Vec<(u64, u64)> = Vec::new();
        let mut known = 0;
        let mut directed = 0;
        for msg_id in ids {
            if let Some((kept, round_trip_ns)) = retained.pending.acknowledge(msg_id, now_ns) {
                known += 1;
                match (round_trip_ns, round_trips.last_mut()) {
                    (Some(ns), Some((last_ns, count))) if *last_ns == ns => *count += 1,
                    (Some(ns), _) => round_trips.push((ns, 1)),
                    (None, _) => {}
                }
                lane.unacknowledged -= kept.len();
                directed += if kept.directed { kept.len() } else { 0 };
                retained.let_go(kept);
            } else if is_sending && retained.early.len() < PENDING_MAX {
                retained.early.push(*msg_id);
            }
        }
        link.queued_sub(directed);
        if let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) {
            link.count(socket.counters(), |tally| &tally.delivered, known);
            link.count_round_trips(socket.counters(), &round_trips);
            socket.released = true;
        }
    }

    /// Sets the link's resend timer if the next one is earlier than what it is set for.
    pub(super) fn time_resend(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let Some(retained) = &mut link.retained else { return };
        let due_ns = retained.pending.deadline_ns();
        // While copies wait nothing is sent again, and the timer is set for when to look.
        let waits = retained.timed_ns != u64::MAX && link.lane.as_ref().is_some_and(|lane| lane.has_copies());
        if due_ns < retained.timed_ns && !waits {
            retained.timed_ns = due_ns;
            self.timers.set(due_ns, Timer::Resend(key));
        }
    }

    /// Messages whose ACK is overdue go out again under the same id, or expire.
    pub(super) fn resend_due(&mut self, key: LinkKey) {
        let now_ns = self.now_ns;
        let Some(link) = self.links.get_mut(key.slot as usize).filter(|link| link.generation == key.generation) else {
            return;
        };
        if !link.is_live() {
            return;
        }
        let (id, identity) = (link.socket, link.identity);
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        if let (Some(retained), Some(lane)) = (&mut link.retained, &link.lane)
            && lane.has_copies()
        {
            // On a slow link copies of copies would only keep the ACKs waiting.
            retained.timed_ns = now_ns.saturating_add(socket.shared.config.resend_ns);
            return self.timers.set(retained.timed_ns, Timer::Resend(key));
        }
        let (mut resent, mut expired, mut directed_bytes) = (0, 0, 0);
        if let (Some(retained), Some(lane)) = (&mut link.retained, &mut link.lane) {
            retained.timed_ns = u64::MAX;
            // Bounded by what waits: a message that is sent again is due later.
            while let Some(overdue) = retained.pending.poll(now_ns) {
                match overdue {
                    Overdue::Resend(_, &kept) => {
                        resent += 1;
                        let mut copy = retained.frame(kept).to_vec();
                        copy[5] ^= u8::from(planted(Bug::ResendNewId));
                        lane.take_again(Frame::Whole(&copy));
                    }
                    Overdue::Expired(Waiting { message: kept, .. }) => {
                        expired += 1;
                        lane.unacknowledged -= kept.len();
                        directed_bytes += if kept.directed { kept.len() } else { 0 };
                        retained.let_go(kept);
                    }
                }
            }
        }
        link.queued_sub(directed_bytes);
        if let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) {
            link.count(socket.counters(), |tally| &tally.resent, resent);
            if expired > 0 {
                link.count(socket.counters(), |tally| &tally.expired, expired);
                report(&socket.shared, Event::Expired { identity: Some(identity), messages: expired });
            }
            socket.released = true;
        }
        self.touch(id);
        self.time_resend(key);
        self.distribute(id);
        self.pump(key);
    }
}

/// A dead link's messages: what waited for an ACK and what had not gone out. What was for anybody goes back to the hub, what was for
/// this peer waits for its return, or, without a promise, is lost. Answers with how many are lost.
pub(super) fn hand_on(socket: &mut ShardSocket, link: &mut Link, expires_ns: u64) -> u64 {
    let mut back = Lane::open();
    let mut park = Vec::new();
    let keep = link.retained.is_some();
    if let Some(retained) = &mut link.retained {
        for (frame, directed) in retained.drain().into_iter().filter(|_| !planted(Bug::PendingLost)) {
            match directed && !planted(Bug::LoseAddressee) {
                true => park.push(frame),
                false => back.take_frames(frame, 1),
            }
        }
    }
    let mut lost = 0;
    let mut lost_bytes = 0;
    if let Some(lane) = link.lane.take() {
        lane.visit_unsent(|frame, directed| match (directed, keep) {
            (false, _) => back.take(frame),
            (true, true) => park.push(crate::shard::mail::whole(frame)),
            (true, false) => {
                lost += 1;
                lost_bytes += super::outlet::frame_len(&frame);
            }
        });
    }
    link.queued_sub(lost_bytes);
    if !park.is_empty() {
        add(&socket.counters().parked, park.len() as u64);
        let parked: &mut Parked = socket.parked.entry(link.identity).or_default();
        parked.expires_ns = expires_ns;
        parked.frames.extend(park);
    }
    if let Some(hub) = &mut socket.hub {
        hub.take_back(back);
    }
    socket.count_hub();
    lost
}
