//! One connection, from the first byte to the last completion.
//!
//! ```text
//!  accepted, connected --> Shaking --> Live --> Draining --> Dying --> (gone)
//!                             |         ^                      ^
//!                             +-> Held -+----------------------+
//! ```
//!
//! A link that ends is `Dying` until the backend has given back everything that it was lent: the last send's result says exactly
//! which frames went out. Only then is the link's position in the log given up and the table's place free.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};

use super::conflate::Conflated;
use super::control::Parting;
use super::detour::Detour;
use super::lane::Lane;
use super::late::Replay;
use super::policy::{Flow, Own};
use super::retain::{Retained, hand_on};
use super::shared::report;
use super::slow::{Dropped, Progress, Slow, terms_of};
use super::{DeliveryGuarantee, DisconnectReason, DropCause, Event, RejectReason, SocketConfig};
use super::{EndKey, LinkKey, Op, Shard, ShardSocket, SocketId, Timer, token};
use crate::backend::{Address, Handle, ReadBuf};
use crate::log::Cursor;
use crate::protocol::{self, Deframer, Due, Handshake, Identity, Liveness, LivenessConfig, Role};
use crate::sabotage::{Bug, planted};
use crate::shard::tally::{Account, add};
use crate::transport;

/// A refused connection stays open for this long: stock peers dial again at once when it is closed (interop note 1), and a
/// newcomer with the identity of a link that turns out dead takes its place (note 2, architecture 7).
pub(super) const HOLD_NS: u64 = 500_000_000;
/// After our last byte a link waits for the peer's: closing with unread bytes would destroy what the peer has not read yet.
pub(super) const DRAIN_NS: u64 = 1_000_000_000;

/// Which end made the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Listener {
        /// What its peers have instead of what the socket says.
        own: Own,
    },
    /// A dialer of that shard.
    Dialer { shard: u32, dialer: EndKey },
}

/// Where in its life a link is.
pub(super) enum State {
    /// No HELLO yet, until the deadline.
    Shaking { handshake: Handshake, sniffed: bool, deadline_ns: u64 },
    /// Its HELLO has come, and it is to be judged on this shard.
    Greeting,
    /// Moves to another shard as soon as our HELLO is out.
    Leaving,
    /// Refused, or a duplicate whose elder is being probed; closed at the deadline.
    Held { until_ns: u64 },
    /// A peer.
    Live,
    /// All was sent and our side is shut; waits for the peer's end.
    Draining { until_ns: u64 },
    /// Closed; waits for the backend to give everything back.
    Dying,
}

/// The operation that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Idle,
    /// An exact read of the handshake.
    Shaking,
    /// Leased buffers come until it is cancelled.
    Streaming,
    /// As `Streaming`, but cancelled: to stop, or to go on with the rest of a large frame.
    Stopping,
    /// One receive into the final buffer of a large frame.
    Filling,
}

/// What a send takes, besides control frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The socket's log.
    Log,
    /// The link's lane.
    Lane,
    /// What the link has kept of the socket's log.
    Kept,
}

/// The send that the kernel works on.
pub(super) struct InFlight {
    /// Bytes of control frames before the rest.
    pub(super) control: usize,
    /// Where the rest is from.
    pub(super) source: Source,
    pub(super) from: Cursor,
    pub(super) to: Cursor,
    /// When it was begun: what it does not hold came later, or did not fit.
    pub(super) since_ns: u64,
    /// It was asked to end, so that what it has not sent can be skipped.
    pub(super) cancelled: bool,
    /// It was asked to end because a publisher waits: if nothing of it has gone out, the link has to go.
    pub(super) doubted: bool,
}

/// See the module's documentation.
pub(super) struct Link {
    pub(super) generation: u32,
    pub(super) socket: SocketId,
    pub(super) conn: Handle,
    pub(super) address: Address,
    pub(super) origin: Origin,
    pub(super) state: State,
    pub(super) identity: Identity,
    /// Place in the socket's list of live links.
    pub(super) place: usize,
    pub(super) reading: Reading,
    /// Reading was stopped because the socket's receive queue is full.
    pub(super) paused: bool,
    pub(super) deframer: Deframer,
    pub(super) liveness: Liveness,
    /// Anything after HELLO was received: the peer has accepted us.
    pub(super) heard: bool,
    pub(super) sending: Option<InFlight>,
    /// Why it can send no more: the peer has closed. What it had sent before is still read; the next heartbeat would be the end.
    pub(super) mute: Option<std::io::Error>,
    /// Finished control frames, for the next frame boundary.
    pub(super) control: BytesMut,
    /// PUBLISH: how far this link is in the socket's log.
    pub(super) cursor: Cursor,
    /// PUBLISH: what the link still has to send of the part of the socket's log that it has skipped: goes out before the log goes on.
    pub(super) kept: Option<Box<Lane>>,
    /// PUBLISH: what it takes from the last values, and with it, instead of a part of the log; goes out through `kept`.
    pub(super) detour: Option<Box<Detour>>,
    pub(super) conflated: Conflated,
    /// PUBLISH: what is done when it does not keep up.
    pub(super) flow: Flow,
    /// It does not.
    pub(super) slow: Option<Box<Slow>>,
    /// When it was last told as slow; 0 if it never was.
    pub(super) told_slow_ns: u64,
    pub(super) dropped: Dropped,
    pub(super) progress: Progress,
    /// What only this link is to send.
    pub(super) lane: Option<Box<Lane>>,
    /// AT_LEAST_ONCE: what it has sent and not seen acknowledged.
    pub(super) retained: Option<Box<Retained>>,
    /// Bytes sent by identity that have not gone out (AT_LEAST_ONCE: that are not acknowledged).
    queued: Option<Arc<AtomicUsize>>,
    /// It was told to go.
    pub(super) parting: Option<Box<Parting>>,
    /// When it became a peer; 0 if it never did, and once all that it leaves is settled.
    pub(super) live_since_ns: u64,
    /// Its counters, once it is a peer.
    pub(super) account: Option<Arc<Account>>,
    /// At least since then something waits to go out; 0 if nothing does.
    pub(super) behind_since_ns: u64,
    /// What becomes of what it has not sent when it ends.
    pub(super) lost_to: DropCause,
}

impl Link {
    /// A link that has done nothing yet.
    pub(super) fn new(
        generation: u32,
        socket: SocketId,
        conn: Handle,
        address: Address,
        origin: Origin,
        deframer: Deframer,
        liveness: Liveness,
    ) -> Link {
        Link {
            generation,
            socket,
            conn,
            address,
            origin,
            state: State::Greeting,
            identity: Identity::from_bytes([0; 16]),
            place: 0,
            reading: Reading::Idle,
            paused: false,
            deframer,
            liveness,
            heard: false,
            sending: None,
            mute: None,
            control: BytesMut::new(),
            cursor: Cursor::default(),
            kept: None,
            detour: None,
            conflated: Conflated::default(),
            flow: Flow::default(),
            slow: None,
            told_slow_ns: 0,
            dropped: Dropped::default(),
            progress: Progress::default(),
            lane: None,
            retained: None,
            queued: None,
            parting: None,
            live_since_ns: 0,
            account: None,
            behind_since_ns: 0,
            lost_to: DropCause::LinkEnded,
        }
    }

    /// Bytes sent by identity have been settled.
    pub(super) fn queued_sub(&self, bytes: usize) {
        if let Some(queued) = &self.queued {
            queued.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn behind_since(&mut self, since_ns: u64) {
        if self.behind_since_ns != since_ns {
            self.behind_since_ns = since_ns;
            if let Some(account) = &self.account {
                account.behind_since_ns.store(since_ns, Ordering::Relaxed);
            }
        }
    }

    /// How far the peer has got of the socket's log, what was skipped included once it is past it.
    pub(super) fn reached(&self) -> Cursor {
        match (&self.kept, &self.detour) {
            (Some(kept), _) => kept.cursor,
            (None, Some(detour)) => Cursor::boundary(detour.reached(), 0),
            (None, None) => self.cursor,
        }
    }

    /// Whether there is nothing to send, on the face of it.
    pub(super) fn has_sent_all(&self, socket: &ShardSocket) -> bool {
        self.control.is_empty()
            && self.kept.is_none()
            && self.detour.is_none()
            && (socket.hub.is_some() || self.cursor.position() >= socket.visible.position())
            && self.lane.as_ref().is_none_or(|lane| lane.queued_bytes() == 0)
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::Live)
    }
}

impl Shard {
    pub(super) fn link(&mut self, key: LinkKey) -> Option<&mut Link> {
        self.links.get_mut(key.slot as usize).filter(|link| link.generation == key.generation)
    }

    /// A connection begins to shake hands, or is refused at the door.
    pub(super) fn begin(&mut self, id: SocketId, conn: Handle, address: Address, origin: Origin) {
        let now_ns = self.now_ns;
        let generation = self.generation();
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else {
            self.backend.close(conn);
            return;
        };
        if !socket.shared.admit() {
            add(&socket.counters().rejects, 1);
            report(&socket.shared, Event::Rejected { address, reason: RejectReason::TooManyPeers });
            self.backend.close(conn);
            return self.tell_origin(origin, "peers_max connections are open", true);
        }
        socket.links_open += 1;
        let config = &socket.shared.config;
        let role = if matches!(origin, Origin::Listener { .. }) { Role::Binding } else { Role::Connecting };
        let deadline_ns = now_ns.saturating_add(config.handshake_ns);
        let deframer = Deframer::new(frame_bytes_max(config.message_bytes_max));
        let liveness = Liveness::new(liveness_config(config), now_ns);
        let slot = self.links.insert(Link {
            state: State::Shaking {
                handshake: Handshake::new(role, socket.shared.identity),
                sniffed: role == Role::Connecting,
                deadline_ns,
            },
            ..Link::new(generation, id, conn, address, origin, deframer, liveness)
        });
        let key = LinkKey { slot: slot as u32, generation };
        self.timers.set(deadline_ns, Timer::Link(key));
        self.shake(key);
    }

    /// Sends our HELLO when it is time and reads the next part of theirs.
    fn shake(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let State::Shaking { handshake, .. } = &mut link.state else { return };
        if let Some(hello) = handshake.poll_transmit() {
            link.sending = Some(InFlight {
                control: hello.len(),
                source: Source::Log,
                from: link.cursor,
                to: link.cursor,
                since_ns: 0,
                cancelled: false,
                doubted: false,
            });
            let slices = vec![Bytes::copy_from_slice(&hello)];
            self.backend.send(link.conn, slices, token(Op::LinkSend, key.slot, key.generation));
        }
        link.reading = Reading::Shaking;
        self.backend.read(link.conn, handshake.want(), token(Op::LinkRead, key.slot, key.generation));
    }

    /// A part of the peer's HELLO.
    pub(super) fn shaken(&mut self, key: LinkKey, result: std::io::Result<ReadBuf>) {
        let Some(link) = self.link(key) else { return };
        link.reading = Reading::Idle;
        let State::Shaking { handshake, sniffed, .. } = &mut link.state else {
            self.bury(key);
            return;
        };
        let bytes = match &result {
            Ok(bytes) if bytes.is_empty() => {
                let reason = RejectReason::Handshake(handshake.handle_end().to_string());
                return self.refuse(key, reason, false);
            }
            Ok(bytes) => bytes,
            Err(error) => {
                return self.refuse(key, RejectReason::Handshake(format!("failed before its HELLO: {error}")), false);
            }
        };
        if !*sniffed {
            *sniffed = true;
            match transport::admit(bytes[0]) {
                Ok(()) => {}
                Err(error) => return self.refuse(key, RejectReason::Handshake(error.to_string()), false),
            }
        }
        match handshake.handle_bytes(bytes) {
            Ok(None) => self.shake(key),
            Ok(Some(identity)) => {
                if let Some(hello) = handshake.poll_transmit() {
                    link.control.extend_from_slice(&hello);
                }
                link.identity = identity;
                self.greet(key);
            }
            Err(error) => self.refuse(key, RejectReason::Handshake(error.to_string()), true),
        }
    }

    /// A valid HELLO has come: a peer, or a duplicate, unless another shard has to judge that.
    pub(super) fn greet(&mut self, key: LinkKey) {
        if self.move_on(key) {
            return;
        }
        let Some(link) = self.link(key) else { return };
        let (id, identity) = (link.socket, link.identity);
        let Some(socket) = self.socket(id) else { return };
        if socket.shared.identity == identity {
            return self.refuse(key, RejectReason::Itself, true);
        }
        let Some(&elder) = socket.by_identity.get(&identity).filter(|_| !planted(Bug::DuplicateWelcome)) else {
            return self.promote(key);
        };
        socket.held.push(key);
        let until_ns = self.now_ns + HOLD_NS / 2 + self.rng.range(0..HOLD_NS);
        if let Some(link) = self.link(key) {
            link.state = State::Held { until_ns };
            self.timers.set(until_ns, Timer::Link(key));
        }
        // If the elder is dead this makes its connection fail soon.
        if let Some(elder_link) = self.link(elder) {
            elder_link.control.extend_from_slice(&protocol::HEARTBEAT);
            self.pump(elder);
        }
    }

    /// The link becomes a peer.
    pub(super) fn promote(&mut self, key: LinkKey) {
        let now_ns = self.now_ns;
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let id = link.socket;
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        link.state = State::Live;
        link.live_since_ns = now_ns;
        link.liveness.handle_received(now_ns);
        link.liveness.handle_sent(now_ns);
        link.place = socket.links.len();
        socket.links.push(key);
        socket.by_identity.insert(link.identity, key);
        let mut replay = Replay::Live;
        match &mut socket.hub {
            None => {
                socket.note_ages(now_ns);
                (link.flow, replay) = terms_of(socket, link);
                link.cursor = match replay {
                    Replay::Live | Replay::Snapshot => socket.reader.join(),
                    Replay::Oldest => socket.reader.join_oldest(),
                };
                socket.marks.know(link.flow.age_ns);
            }
            Some(hub) => {
                link.lane = Some(Box::new(Lane::open()));
                hub.circle.insert(key);
            }
        }
        if socket.shared.config.delivery == DeliveryGuarantee::AtLeastOnce {
            link.retained = Some(Box::new(Retained::new(&socket.shared.config)));
        }
        socket.shared.link_joined(self.index as usize);
        self.timers.set(link.liveness.deadline_ns(), Timer::Link(key));
        add(&socket.counters().connects, 1);
        let measured = link.retained.is_some();
        let (account, queued) = socket.shared.peers.insert(link.identity, |before| {
            add(&socket.counters().reconnects, u64::from(before > 0));
            Account::new(link.identity, link.address.clone(), now_ns, before, measured)
        });
        (link.account, link.queued) = (Some(account), Some(queued));
        if socket.hub.is_none() {
            link.count_joined(socket.counters());
        }
        if replay == Replay::Snapshot && !planted(Bug::SnapshotForgotten) {
            link.begin_snapshot(socket);
        }
        report(&socket.shared, Event::Connected { identity: link.identity, address: link.address.clone() });
        self.read_on(key);
        self.unpark(id, key);
        // From here on appends ring; what was appended before is sent now.
        self.flush(id);
        self.pump(key);
    }

    /// Not a peer. Kept open for a while where the other end would only come back at once.
    fn refuse(&mut self, key: LinkKey, reason: RejectReason, hold: bool) {
        let until_ns = self.now_ns + HOLD_NS / 2 + self.rng.range(0..HOLD_NS);
        let Some(link) = self.link(key) else { return };
        let (id, address, origin) = (link.socket, link.address.clone(), link.origin);
        if hold {
            link.state = State::Held { until_ns };
            self.timers.set(until_ns, Timer::Link(key));
        }
        if let Some(socket) = self.socket(id) {
            add(&socket.counters().rejects, 1);
            report(&socket.shared, Event::Rejected { address, reason: reason.clone() });
        }
        if !hold {
            self.end(key);
        }
        if planted(Bug::DialerGivesUp) {
            return;
        }
        self.tell_origin(origin, &reason.to_string(), true);
    }

    /// A link's timer: the meaning depends on where in its life it is.
    pub(super) fn link_due(&mut self, key: LinkKey) {
        let now_ns = self.now_ns;
        let Some(link) = self.link(key) else { return };
        match &link.state {
            State::Shaking { deadline_ns, .. } if *deadline_ns <= now_ns => {
                self.refuse(key, RejectReason::TooSlow, false)
            }
            State::Held { until_ns } if *until_ns <= now_ns => {
                let (id, address, identity, origin) = (link.socket, link.address.clone(), link.identity, link.origin);
                let Some(socket) = self.socket(id) else { return };
                let duplicate = socket.held.iter().position(|&held| held == key);
                if let Some(at) = duplicate {
                    socket.held.swap_remove(at);
                    add(&socket.counters().rejects, 1);
                    report(&socket.shared, Event::Rejected { address, reason: RejectReason::Duplicate(identity) });
                }
                self.end(key);
                if duplicate.is_some() {
                    self.tell_origin(origin, "its identity is connected already", true);
                }
            }
            State::Draining { until_ns } if *until_ns <= now_ns => self.end(key),
            State::Live if link.parting.as_ref().is_some_and(|parting| parting.until_ns <= now_ns) => {
                self.check_parting(key)
            }
            State::Live => self.judge(key),
            _ => {}
        }
    }

    /// Heartbeats are due, or the peer has been silent for long.
    fn judge(&mut self, key: LinkKey) {
        let now_ns = self.now_ns;
        loop {
            let Some(link) = self.link(key).filter(|link| link.is_live()) else { return };
            let Some(due) = link.liveness.poll(now_ns) else { break };
            match due {
                Due::Heartbeat => {
                    if let Some(error) = link.mute.take() {
                        return self.failed(key, &error);
                    }
                    // One that waits already says the same.
                    if link.control.is_empty() && link.sending.is_none() && !planted(Bug::NoHeartbeat) {
                        link.control.extend_from_slice(&protocol::HEARTBEAT);
                    }
                    link.liveness.handle_sent(now_ns);
                    self.pump(key);
                }
                Due::Suspect => {
                    link.set_suspect(true);
                    let (id, identity) = (link.socket, link.identity);
                    if let Some(socket) = self.socket(id) {
                        if let Some(hub) = &mut socket.hub {
                            hub.circle.remove(key);
                        }
                        report(&socket.shared, Event::Suspect { identity });
                    }
                }
                Due::Dead if planted(Bug::NeverDead) => return,
                Due::Dead => return self.die(key, DisconnectReason::Silent),
            }
        }
        if let Some(link) = self.link(key).filter(|_| !planted(Bug::LinkTimerOnce)) {
            let next_ns = link.liveness.deadline_ns();
            self.timers.set(next_ns, Timer::Link(key));
        }
    }

    /// A peer's link ends, for whatever reason.
    pub(super) fn die(&mut self, key: LinkKey, reason: DisconnectReason) {
        let now_ns = self.now_ns;
        let Some(link) = self.link(key) else { return };
        match link.state {
            State::Live => {}
            // Whoever dialled has to know.
            State::Shaking { .. } => {
                let text = format!("failed before its HELLO: {reason}");
                return self.refuse(key, RejectReason::Handshake(text), false);
            }
            State::Held { .. } => {
                let origin = link.origin;
                self.end(key);
                return self.tell_origin(origin, &reason.to_string(), true);
            }
            _ => return self.end(key),
        }
        let (id, identity, origin, heard) = (link.socket, link.identity, link.origin, link.heard);
        let address = link.address.clone();
        let lived_ns = now_ns.saturating_sub(link.live_since_ns);
        if matches!(reason, DisconnectReason::Stalled | DisconnectReason::Slow) {
            link.lost_to = DropCause::Stalled;
        }
        self.unlist(key);
        let Some(socket) = self.socket(id) else { return };
        let held = std::mem::take(&mut socket.held);
        add(&socket.counters().disconnects, 1);
        let text = reason.to_string();
        report(&socket.shared, Event::Disconnected { identity, address, reason });
        self.end(key);
        let heir = held.iter().copied().find(|&held| self.link(held).is_some_and(|link| link.identity == identity));
        if let Some(socket) = self.socket(id) {
            socket.held = held;
            socket.held.retain(|&held| Some(held) != heir);
        }
        if let Some(heir) = heir {
            self.promote(heir);
        }
        // Closed right after HELLO: most likely refused as a duplicate (interop note 14).
        self.tell_origin(origin, &text, !heard && lived_ns < 2 * HOLD_NS);
    }

    /// Takes a link out of what its socket sends to.
    pub(super) fn unlist(&mut self, key: LinkKey) {
        self.open_gate(key);
        // What it has skipped is told before its end.
        self.tell_dropped(key);
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let Some(socket) = self.sockets.get_mut(link.socket.index()).and_then(Option::as_mut) else { return };
        let (place, identity) = (link.place, link.identity);
        socket.links.swap_remove(place);
        if let Some(&moved) = socket.links.get(place)
            && let Some(link) = self.links.get_mut(moved.slot as usize)
        {
            link.place = place;
        }
        socket.by_identity.remove(&identity);
        socket.paused.retain(|&paused| paused != key);
        if let Some(hub) = &mut socket.hub {
            hub.circle.remove(key);
        }
        socket.shared.peers.remove(&identity);
        socket.shared.link_left(self.index as usize);
    }

    /// Closes the connection. The link stays in the table until all its operations have ended.
    pub(super) fn end(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.slot as usize).filter(|link| link.generation == key.generation) else {
            return;
        };
        if !matches!(link.state, State::Dying) {
            link.state = State::Dying;
            self.backend.close(link.conn);
            if let Some(socket) = self.sockets.get_mut(link.socket.index()).and_then(Option::as_mut) {
                socket.unsettled += usize::from(link.live_since_ns != 0);
            }
        }
        self.bury(key);
    }

    /// Frees a dying link's place once nothing of it is left with the backend.
    pub(super) fn bury(&mut self, key: LinkKey) {
        let Some(link) = self.link(key) else { return };
        if !matches!(link.state, State::Dying) || link.reading != Reading::Idle || link.sending.is_some() {
            return;
        }
        let (id, was_live) = (link.socket, link.live_since_ns != 0);
        if let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) {
            socket.links_open -= 1;
            socket.shared.dismiss();
            socket.held.retain(|&held| held != key);
            socket.unsettled -= usize::from(was_live);
        }
        self.settle(key);
        self.links.remove(key.slot as usize);
        self.touch(id);
        self.flush(id);
    }

    /// Gives up a link's part of the log, once nothing of it is under way any more.
    pub(super) fn settle(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.slot as usize).filter(|link| link.generation == key.generation) else {
            return;
        };
        if link.live_since_ns == 0 || link.sending.is_some() {
            return;
        }
        link.live_since_ns = 0;
        let id = link.socket;
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let expires_ns = self.now_ns.saturating_add(socket.shared.config.expiry_ns());
        give_up(socket, link, expires_ns);
        let identity = link.identity;
        if socket.parked.contains_key(&identity) {
            match socket.by_identity.get(&identity).copied() {
                // The peer was back before all of its old link had been given back.
                Some(successor) => {
                    self.unpark(id, successor);
                    self.pump(successor);
                }
                None => self.timers.set(expires_ns, Timer::Parked(id)),
            }
        }
        self.touch(id);
    }
}

/// A dead link's part of the log: what it did not send goes to others (ROUNDROBIN), waits for the next peer if this was the last, or
/// is dropped and counted.
fn give_up(socket: &mut ShardSocket, link: &mut Link, expires_ns: u64) {
    let mut missed = hand_on(socket, link, expires_ns);
    socket.released = true;
    if socket.hub.is_none() {
        missed += link.kept.as_mut().map_or(0, |kept| kept.queued());
        missed += link.leave_detour(socket);
        // What is left for the next peer is not lost.
        let of_log = socket.reader.leave(link.cursor.frame_start());
        link.count_left(socket.counters(), of_log);
        missed += of_log;
    }
    link.count_lane_gone(socket.counters());
    let cause = if socket.closing.is_some() { DropCause::Closed } else { link.lost_to };
    if !planted(Bug::DropUncounted) {
        socket.drop_messages(link, cause, missed);
    }
}

/// The times of a link.
pub(super) fn liveness_config(config: &SocketConfig) -> LivenessConfig {
    LivenessConfig {
        heartbeat_ns: config.heartbeat_ns,
        timeout_ns: config.timeout_ns,
        // Stock peers beat at their interval; a fifth more allows for the way (interop note 2).
        suspect_ns: config.heartbeat_ns.saturating_add(config.heartbeat_ns / 5),
    }
}

/// The longest frame that a peer may send: the longest payload and the longest head.
pub(super) fn frame_bytes_max(message_bytes_max: usize) -> u32 {
    u32::try_from(message_bytes_max.saturating_add(17)).unwrap_or(u32::MAX)
}
