//! Peers that do not keep up with a publisher. A link over its limits (see [`Flow`]), or one that holds the memory which a publisher
//! waits for, is **slow**, and its policy decides what becomes of what it has not sent.
//!
//! ```text
//!    sent | in flight | not taken by a send yet        tail
//!    -----|----|------|--------------------------------|
//!         cursor      policies act from the end of the frame that the kernel has begun
//! ```
//!
//! A cursor that is left behind pins the log, and a send in flight pins the blocks that its slices lie in. So a skip takes both away:
//! the send is cancelled (the backend says how much of it went), the rest of a frame that is partly out is copied into a log of the
//! link's own, **kept**, whose places are those of the socket's log, and the cursor moves on. What is kept goes out before
//! anything else of the log. A stalled peer then pins nothing but that.
//!
//! Invariants: a frame that has begun is finished; what is skipped is counted when it is skipped; a skip never passes what
//! the link has not seen (`visible`); nothing here is done per message, and nothing at all for links that are not watched.

use super::lane::Lane;
use super::late::Replay;
use super::link::{Link, Origin, Source};
use super::policy::{Flow, Own, Unkeyed};
use super::shared::report;
use super::{DisconnectReason, DropCause, Event, LinkKey, Op, Shard, ShardSocket, SlowPolicy, SocketId, Timer, token};
use crate::protocol::Identity;
use crate::shard::config::nanos;

/// What a link dropped is told at most so often.
const TELL_NS: u64 = 100_000_000;
/// A link is told as slow at most so often.
const TELL_SLOW_NS: u64 = 1_000_000_000;

/// Who is in the way of publishers and gets on has to get on by [`PACE_BYTES`] in so many times as long as who does not get on at all
/// has: else one that takes a little now and then would hold them for ever.
const PACE_WAITS: u64 = 4;
const PACE_BYTES: u64 = 64 * 1024;
/// Links in the way of publishers are looked at so many times within what the most impatient policy allows.
const STALL_LOOKS: u64 = 4;

/// What publishers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    No,
    /// For links over a limit whose policy lets publishers wait.
    AtGates,
    /// For whoever is in the oldest chunk of the log, which ends there.
    ForRoom(u64),
}

/// What was last seen of a link in the way of publishers.
#[derive(Default)]
pub(super) struct Progress {
    /// Bytes that the kernel had and the peer had not taken, where that is known.
    unacknowledged: Option<u64>,
    /// When they were found to have changed.
    since_ns: u64,
    /// Where the link was, and when, at the last look that found it farther by [`PACE_BYTES`], or newly in the way.
    pace: (u64, u64),
}

/// What there is to know of a link that is slow.
pub(super) struct Slow {
    since_ns: u64,
    /// It was told.
    told: bool,
    /// It keeps publishers waiting before the log is full.
    pub(super) gates: bool,
    /// Nothing could be skipped when the log ended there, and was that old or not.
    in_vain: Option<(u64, bool)>,
}

/// What a link has dropped.
#[derive(Default)]
pub(super) struct Dropped {
    /// Not told yet, and why they were dropped.
    untold: u64,
    cause: Option<DropCause>,
    told_ns: u64,
    timed: bool,
}

impl Dropped {
    /// Messages not told yet, and their cause.
    fn take(&mut self) -> Option<(u64, DropCause)> {
        let cause = self.cause.take()?;
        Some((std::mem::take(&mut self.untold), cause))
    }
}

/// What is done about a link, and where it begins: what was set for its peer, or for its listener, or for all.
pub(super) fn terms_of(socket: &ShardSocket, link: &Link) -> (Flow, Replay) {
    let of_listener = match link.origin {
        Origin::Listener { own } => own,
        Origin::Dialer { .. } => Own::default(),
    };
    let own = socket.shared.own_of(&link.identity).or(of_listener);
    let config = &socket.shared.config;
    (own.flow.unwrap_or_else(|| config.flow()), own.replay.unwrap_or(config.replay))
}

impl Link {
    /// Whether it holds the oldest chunk of a log in which a publisher waits for room.
    fn is_holding(&self, socket: &ShardSocket) -> bool {
        matches!(socket.waiting, Waiting::ForRoom(end) if self.cursor.frame() <= end) && socket.shared.has_waiting()
    }

    fn is_over(&self, socket: &ShardSocket, now_ns: u64) -> bool {
        self.is_too_far(socket) || self.is_too_old(socket, now_ns)
    }

    fn is_too_old(&self, socket: &ShardSocket, now_ns: u64) -> bool {
        self.flow.age_ns < u64::MAX && self.cursor.position() < socket.marks.stale(now_ns, self.flow.age_ns).position()
    }

    fn is_too_far(&self, socket: &ShardSocket) -> bool {
        let tail = self.addressed_until(socket.visible);
        let bytes = tail.position().saturating_sub(self.cursor.position());
        let messages = tail.messages().saturating_sub(self.cursor.messages());
        messages > 1 && (bytes > self.flow.bytes || messages > self.flow.messages)
    }

    /// Far enough below its limits not to be slow any more.
    fn has_caught_up(&self, socket: &ShardSocket) -> bool {
        let tail = self.addressed_until(socket.visible);
        let bytes = tail.position().saturating_sub(self.cursor.position());
        let messages = tail.messages().saturating_sub(self.cursor.messages());
        self.kept.is_none()
            && self.detour.is_none()
            && bytes <= self.flow.bytes / 4
            && messages <= self.flow.messages / 4
    }
}

impl Shard {
    /// Looks whether a link is within its limits, and acts by its policy if it is not.
    pub(super) fn watch(&mut self, key: LinkKey) {
        let now_ns = self.now_ns;
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let Some(socket) = self.sockets.get_mut(link.socket.index()).and_then(Option::as_mut) else { return };
        if socket.hub.is_some() {
            return;
        }
        if !link.is_over(socket, now_ns) && !link.is_holding(socket) {
            let follows = matches!(link.flow.policy, SlowPolicy::DropNewest) && link.kept.is_some();
            if link.slow.is_none() || (!follows && !link.has_caught_up(socket)) {
                return;
            }
            if !follows {
                return self.caught_up(key);
            }
        }
        if link.slow.is_none() {
            self.fell_behind(key);
        }
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let Some(socket) = self.sockets.get_mut(link.socket.index()).and_then(Option::as_mut) else { return };
        match link.flow.policy {
            SlowPolicy::Block { .. } => {
                let over = link.is_over(socket, now_ns);
                if let Some(slow) = link.slow.as_mut().filter(|slow| over && !slow.gates) {
                    slow.gates = true;
                    socket.shared.shut_gate();
                }
            }
            SlowPolicy::Disconnect { .. } => {}
            SlowPolicy::DropOldest | SlowPolicy::DropNewest | SlowPolicy::Conflate { .. } => {
                let now = Some((link.addressed_until(socket.visible).position(), link.is_too_old(socket, now_ns)));
                let in_vain = link.slow.as_ref().is_some_and(|slow| slow.in_vain == now);
                match &mut link.sending {
                    // What a send has taken comes back first, as far as it has not gone out. Not again if that was in vain: who waits
                    // for room looks at every turn, and the send would never rest.
                    Some(sending) if sending.source == Source::Log && sending.to != sending.from => {
                        if !in_vain && !std::mem::replace(&mut sending.cancelled, true) {
                            self.backend.cancel(token(Op::LinkSend, key.slot, key.generation));
                        }
                    }
                    _ => {
                        let from = link.cursor;
                        self.skip(key);
                        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
                        if let Some(slow) = &mut link.slow {
                            slow.in_vain = now.filter(|_| link.cursor == from);
                        }
                    }
                }
            }
        }
    }

    /// Moves a link on in the log, past what its policy gives up. No part of the log is in flight.
    fn skip(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let Some(socket) = self.sockets.get_mut(link.socket.index()).and_then(Option::as_mut) else { return };
        let now_ns = self.now_ns;
        let (from, tail, flow) = (link.cursor, link.addressed_until(socket.visible), link.flow);
        match flow.policy {
            SlowPolicy::Conflate { unkeyed } => return self.conflate(key, unkeyed),
            // In the midst of a snapshot, or of a conflation that was its policy before.
            SlowPolicy::DropOldest if link.detour.is_some() => return self.conflate(key, Unkeyed::DropOldest),
            SlowPolicy::DropNewest if link.detour.is_some() => return self.conflate(key, Unkeyed::DropNewest),
            _ => {}
        }
        let start = from.frame_start();
        let newest = flow.policy == SlowPolicy::DropNewest;
        let stale = if link.is_too_old(socket, now_ns) { socket.marks.stale(now_ns, flow.age_ns) } else { start };
        let target = if newest {
            tail
        } else {
            let (mut position, mut messages) = (0, 0);
            let holding = link.is_holding(socket);
            if holding || link.is_too_far(socket) {
                let freed = match socket.waiting {
                    Waiting::ForRoom(end) if holding => end.min(tail.position()),
                    _ => 0,
                };
                position = tail.position().saturating_sub(flow.bytes / 2).max(freed);
                messages = tail.messages().saturating_sub((flow.messages / 2).max(1));
            }
            let target = socket.reader.boundary(start, position, messages);
            // The newest message stays whatever its size, unless it is too old.
            let newest = tail.messages().saturating_sub(1);
            let target = if target != tail { target } else { socket.reader.boundary(start, 0, newest) };
            if stale.position() > target.position() { link.addressed_until(stale) } else { target }
        };
        if target.position() <= from.position() {
            return;
        }
        let mut resume = start;
        let keeps = newest && link.kept.is_none();
        if keeps || !from.is_aligned() {
            let mut kept = Box::new(Lane::open_at(start));
            let (mut bytes, mut messages) = (0, 0);
            resume = socket.reader.frames(start, |frame| {
                bytes += frame.len() as u64;
                messages += 1;
                let begun = messages == 1;
                let within = keeps && bytes <= flow.bytes && messages <= flow.messages;
                let takes = (begun || within) && start.position() + bytes <= tail.position();
                if takes {
                    kept.take(frame);
                }
                takes
            });
            kept.cursor = kept.reader.align(kept.cursor, from.position() - start.position());
            link.kept = Some(kept);
        }
        socket.released |= socket.reader.advance(from, target);
        link.cursor = target;
        let id = link.socket;
        link.count_cursor(socket.counters());
        link.count_lane(socket.counters());
        let missed = target.messages() - resume.messages();
        let too_old = if newest { 0 } else { stale.messages().saturating_sub(resume.messages()).min(missed) };
        let cause = if newest { DropCause::Newest } else { DropCause::Oldest };
        for (cause, messages) in [(DropCause::TooOld, too_old), (cause, missed - too_old)] {
            let Some(link) = self.links.get_mut(key.slot as usize).filter(|_| messages > 0) else { continue };
            let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { continue };
            link.count(socket.counters(), |tally| tally.dropped(cause), messages);
            self.dropped(key, messages, cause);
        }
        self.touch(id);
    }

    /// Tells what a link has dropped, in sums.
    pub(super) fn dropped(&mut self, key: LinkKey, messages: u64, cause: DropCause) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let dropped = &mut link.dropped;
        if dropped.cause.is_some_and(|other| other != cause) {
            self.tell_dropped(key);
        }
        let now_ns = self.now_ns;
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let dropped = &mut link.dropped;
        dropped.untold += messages;
        dropped.cause = Some(cause);
        let due_ns = dropped.told_ns.saturating_add(TELL_NS);
        if dropped.told_ns == 0 || due_ns <= now_ns {
            self.tell_dropped(key);
        } else if !std::mem::replace(&mut dropped.timed, true) {
            self.timers.set(due_ns, Timer::Slow(key));
        }
    }

    pub(super) fn tell_dropped(&mut self, key: LinkKey) {
        let now_ns = self.now_ns;
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let Some((messages, cause)) = link.dropped.take() else { return };
        link.dropped.told_ns = now_ns;
        let (id, identity) = (link.socket, link.identity);
        if let Some(socket) = self.socket(id) {
            report(&socket.shared, Event::Dropped { identity, messages, cause });
        }
    }

    fn fell_behind(&mut self, key: LinkKey) {
        let now_ns = self.now_ns;
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let told = link.told_slow_ns == 0 || link.told_slow_ns.saturating_add(TELL_SLOW_NS) <= now_ns;
        link.slow = Some(Box::new(Slow { since_ns: now_ns, told, gates: false, in_vain: None }));
        let (id, identity, policy) = (link.socket, link.identity, link.flow.policy);
        link.set_slow(true);
        let tail = self.sockets.get(id.index()).and_then(Option::as_ref).map(|socket| socket.visible);
        let lag = link.account.as_ref().zip(tail).map(|(account, tail)| account.lag(tail, now_ns));
        if told {
            link.told_slow_ns = now_ns;
            if let (Some(socket), Some(lag)) = (self.socket(id), lag) {
                report(&socket.shared, Event::Slow { identity, lag });
            }
        }
        self.time_slow(key, policy);
    }

    /// Sets the timer that a policy asks for.
    fn time_slow(&mut self, key: LinkKey, policy: SlowPolicy) {
        if let SlowPolicy::Disconnect { after } = policy {
            self.timers.set(self.now_ns.saturating_add(nanos(after)), Timer::Slow(key));
        }
    }

    fn caught_up(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let told = link.slow.as_ref().is_some_and(|slow| slow.told);
        let (id, identity) = (link.socket, link.identity);
        self.open_gate(key);
        if told && let Some(socket) = self.socket(id) {
            report(&socket.shared, Event::CaughtUp { identity });
        }
    }

    /// The link keeps publishers waiting no more.
    pub(super) fn open_gate(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let Some(slow) = link.slow.take() else { return };
        link.set_slow(false);
        let id = link.socket;
        if slow.gates
            && let Some(socket) = self.socket(id)
        {
            socket.shared.open_gate();
            socket.released = true;
            self.touch(id);
        }
    }

    /// A peer's policy has changed.
    pub(super) fn reflow(&mut self, id: SocketId, identity: Identity) {
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let Some(&key) = socket.by_identity.get(&identity) else { return };
        let Some(link) = self.links.get_mut(key.slot as usize).filter(|_| socket.hub.is_none()) else { return };
        link.flow = terms_of(socket, link).0;
        socket.marks.know(link.flow.age_ns);
        // If it is slow by the new one as well, that begins now.
        self.caught_up(key);
        self.pump(key);
        self.time_age(id);
    }

    /// Sees to it that links whose oldest message becomes too old are looked at then.
    pub(super) fn time_age(&mut self, id: SocketId) {
        let now_ns = self.now_ns;
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let Some(apart_ns) = socket.marks.apart_ns().filter(|_| !socket.marks.timed) else { return };
        let due = |key: &LinkKey| {
            let link = self.links.get(key.slot as usize).filter(|link| link.flow.age_ns < u64::MAX)?;
            socket.marks.due_ns(link.cursor, link.flow.age_ns)
        };
        if let Some(due_ns) = socket.links.iter().filter_map(due).min() {
            socket.marks.timed = true;
            self.timers.set(due_ns.max(now_ns.saturating_add(apart_ns)), Timer::Age(id));
        }
    }

    pub(super) fn age_due(&mut self, id: SocketId) {
        if let Some(socket) = self.socket(id) {
            socket.marks.timed = false;
            self.flush(id);
        }
    }

    /// A slow link's timer.
    pub(super) fn slow_due(&mut self, key: LinkKey) {
        let now_ns = self.now_ns;
        let Some(link) = self.link(key).filter(|link| link.is_live()) else { return };
        if std::mem::take(&mut link.dropped.timed) {
            self.tell_dropped(key);
        }
        let Some(link) = self.link(key) else { return };
        if let (Some(slow), SlowPolicy::Disconnect { after }) = (&link.slow, link.flow.policy)
            && slow.since_ns.saturating_add(nanos(after)) <= now_ns
        {
            self.die(key, DisconnectReason::Slow);
        }
    }

    /// Publishers wait: links that would rather drop than hold them up let go, and the others' time begins.
    pub(super) fn press(&mut self, id: SocketId) {
        let now_ns = self.now_ns;
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let waiting = match (socket.shared.has_waiting() && socket.hub.is_none(), socket.shared.is_gated()) {
            (false, _) => Waiting::No,
            (true, true) => Waiting::AtGates,
            (true, false) => Waiting::ForRoom(socket.shared.log.oldest_end().unwrap_or(0)),
        };
        if socket.waiting != waiting {
            (socket.waiting, socket.waiting_since_ns) = (waiting, now_ns);
        }
        if waiting != Waiting::No && socket.stall_due_ns == 0 {
            self.time_stall(id);
        }
    }

    /// Sets the timer that looks after whoever is in the way: several times within the shortest time that any of them has.
    fn time_stall(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let of = |key: &LinkKey| self.links.get(key.slot as usize)?.flow.max_wait_ns();
        if let Some(shortest_ns) = socket.links.iter().filter_map(of).min() {
            socket.stall_due_ns = self.now_ns.saturating_add((shortest_ns / STALL_LOOKS).max(1));
            self.timers.set(socket.stall_due_ns, Timer::Stall(id));
        }
    }

    /// Who is in the way of publishers, and has got nowhere for as long as its policy allows, has to go.
    pub(super) fn stall_due(&mut self, id: SocketId) {
        let now_ns = self.now_ns;
        let Some(socket) = self.socket(id) else { return };
        // What this turn is late by is not the peers' fault.
        let at_ns = std::mem::take(&mut socket.stall_due_ns).min(now_ns);
        let late_ns = now_ns - at_ns;
        self.press(id);
        let Some(socket) = self.socket(id) else { return };
        let (waiting, since_ns) = (socket.waiting, socket.waiting_since_ns);
        for key in socket.links.clone() {
            let Some(link) = self.links.get_mut(key.slot as usize) else { continue };
            let in_the_way = match waiting {
                Waiting::No => break,
                Waiting::AtGates => link.slow.as_ref().is_some_and(|slow| slow.gates),
                Waiting::ForRoom(end) => link.cursor.frame() <= end,
            };
            let Some(max_ns) = link.flow.max_wait_ns().filter(|_| in_the_way) else { continue };
            // The wait that this look belongs to.
            let wait_ns =
                link.slow.as_ref().filter(|slow| slow.gates).map_or(since_ns, |slow| slow.since_ns.max(since_ns));
            let (position, pace) = (link.cursor.position(), &mut link.progress.pace);
            pace.1 += late_ns;
            if pace.1 < wait_ns || position >= pace.0 + PACE_BYTES {
                *pace = (position, now_ns);
            }
            if at_ns.saturating_sub(pace.1) >= max_ns.saturating_mul(PACE_WAITS) {
                self.die(key, DisconnectReason::Stalled);
                continue;
            }
            let unacknowledged = self.backend.unacknowledged(link.conn);
            if link.progress.unacknowledged != unacknowledged {
                (link.progress.unacknowledged, link.progress.since_ns) = (unacknowledged, now_ns);
            }
            let began_ns = link.sending.as_ref().map_or(0, |sending| sending.since_ns);
            let since_ns = since_ns.max(link.progress.since_ns).max(began_ns);
            if at_ns.saturating_sub(since_ns) < max_ns {
                continue;
            }
            match &mut link.sending {
                // How far it has got, only its end tells.
                Some(sending) => {
                    sending.doubted = true;
                    if !std::mem::replace(&mut sending.cancelled, true) {
                        self.backend.cancel(token(Op::LinkSend, key.slot, key.generation));
                    }
                }
                None => self.die(key, DisconnectReason::Stalled),
            }
        }
        self.flush(id);
    }
}
