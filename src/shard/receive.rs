//! The way in: leased buffers from the backend, through the link's deframer, into the socket's receive queue, one entry per
//! completion. A queue that is full stops the reading of the links that fill it, and TCP slows their senders.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};

use super::link::{Link, Reading, State};
use super::{AckMode, DisconnectReason, Inbound, LinkKey, Op, Shard, ShardSocket, SocketId, token};
use crate::backend::{self, Lease};
use crate::protocol::{self, FrameError, IdHash, IdSet, MsgId};
use crate::sabotage::{Bug, planted};
use crate::shard::tally::add;

/// The rest of a frame that is longer than this is received straight into its final buffer.
const FILL_FROM_BYTES: usize = 64 * 1024;

impl Shard {
    /// Arms the receiving of a link that does not receive.
    pub(super) fn read_on(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        if link.reading != Reading::Idle || link.paused {
            return;
        }
        if link.is_live() && link.deframer.missing().is_some_and(|missing| missing >= FILL_FROM_BYTES) {
            link.reading = Reading::Filling;
            let buffer = link.deframer.lend();
            self.backend.recv_into(link.conn, buffer, token(Op::LinkFill, key.slot, key.generation));
        } else {
            link.reading = Reading::Streaming;
            self.backend.recv(link.conn, token(Op::LinkRecv, key.slot, key.generation));
        }
    }

    /// Bytes have come.
    pub(super) fn received(&mut self, key: LinkKey, lease: Lease) {
        let (now_ns, shard) = (self.now_ns, self.index);
        let slabs = self.backend.slabs();
        let Some(link) = self.links.get_mut(key.slot as usize).filter(|link| link.generation == key.generation) else {
            return;
        };
        let Some(socket) = self.sockets.get_mut(link.socket.index()).and_then(Option::as_mut) else { return };
        link.count(socket.counters(), |tally| &tally.bytes_received, lease.len() as u64);
        if !link.is_live() {
            return;
        }
        let id = link.socket;
        link.heard = true;
        let recovered = !planted(Bug::HeartbeatDeaf) && link.liveness.handle_received(now_ns);
        let identity = link.identity;
        let mut acks = Vec::new();
        let result = link.deframer.feed(&lease, |msg_id| acks.push(msg_id));
        let scan = match result {
            Ok(scan) => scan,
            Err(error) => return self.too_long(key, error),
        };
        let fill = link.reading == Reading::Streaming
            && link.deframer.missing().is_some_and(|missing| missing >= FILL_FROM_BYTES);
        if fill {
            link.reading = Reading::Stopping;
        }
        link.count(socket.counters(), |tally| &tally.received, u64::from(scan.messages));
        if scan.messages > 0 {
            let run = |frames| Inbound { identity, link: key, shard, frames };
            let first = scan.assembled.map(run);
            let second = (!scan.run.is_empty()).then(|| run(socket.hand_over.frames(lease, scan.run, slabs)));
            for arrived in first.into_iter().chain(second) {
                if scan.needs_ack {
                    accept(socket, link, arrived);
                } else {
                    socket.take_in(arrived);
                }
            }
            self.hand_over(id, Some(key));
        }
        if !acks.is_empty() {
            self.acknowledged(key, &acks);
        }
        if scan.needs_ack {
            self.pump(key);
        }
        if fill {
            self.backend.cancel(token(Op::LinkRecv, key.slot, key.generation));
        }
        if recovered {
            self.recovered(key, id, identity);
        }
    }

    /// One receive into a large frame's buffer has ended.
    pub(super) fn filled(&mut self, key: LinkKey, buffer: BytesMut, result: std::io::Result<usize>) {
        let (now_ns, shard) = (self.now_ns, self.index);
        let Some(link) = self.links.get_mut(key.slot as usize).filter(|link| link.generation == key.generation) else {
            return;
        };
        link.reading = Reading::Idle;
        let id = link.socket;
        let whole: Option<Bytes> = link.deframer.restore(buffer);
        match result {
            _ if matches!(link.state, State::Dying) => return self.bury(key),
            Ok(0) => return self.closed_by_peer(key),
            Err(error) if !backend::is_cancelled(&error) => return self.failed(key, &error),
            Err(_) => {}
            Ok(bytes) => {
                link.heard = true;
                let recovered = link.liveness.handle_received(now_ns);
                let identity = link.identity;
                if let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) {
                    link.count(socket.counters(), |tally| &tally.bytes_received, bytes as u64);
                    if let Some(frames) = whole
                        && link.is_live()
                    {
                        link.count(socket.counters(), |tally| &tally.received, 1);
                        accept(socket, link, Inbound { identity, link: key, shard, frames });
                        self.hand_over(id, Some(key));
                        self.pump(key);
                    }
                }
                if recovered {
                    self.recovered(key, id, identity);
                }
            }
        }
        self.read_on(key);
    }

    /// Receiving has ended: because it was stopped, at the peer's end, or in an error.
    pub(super) fn recv_ended(&mut self, key: LinkKey, result: std::io::Result<()>) {
        let Some(link) = self.link(key) else { return };
        let stopping = link.reading == Reading::Stopping;
        link.reading = Reading::Idle;
        match (&link.state, result) {
            (State::Dying, _) => self.bury(key),
            (State::Live, Ok(())) => self.closed_by_peer(key),
            (State::Live, Err(error)) if backend::is_cancelled(&error) => {
                if !stopping {
                    tracing::warn!("a receive ended as cancelled though nobody cancelled it: armed again");
                }
                self.read_on(key);
            }
            (State::Live, Err(error)) => self.failed(key, &error),
            (State::Draining { .. }, Err(error)) if backend::is_cancelled(&error) => self.read_on(key),
            _ => self.end(key),
        }
    }

    fn too_long(&mut self, key: LinkKey, error: FrameError) {
        let FrameError::TooLong { len, .. } = error;
        self.die(key, DisconnectReason::FrameTooLong { bytes: u64::from(len) });
    }

    /// A suspect peer was heard again.
    fn recovered(&mut self, key: LinkKey, id: SocketId, identity: crate::protocol::Identity) {
        let Some(link) = self.link(key).filter(|link| link.is_live()) else { return };
        link.set_suspect(false);
        let stays = link.parting.is_none();
        if let Some(socket) = self.socket(id) {
            if let Some(hub) = socket.hub.as_mut().filter(|_| stays) {
                hub.circle.insert(key);
            }
            super::shared::report(&socket.shared, super::Event::Recovered { identity });
        }
    }

    /// Moves what arrived to the receive queue; what does not fit waits here, and the link it came from is not read until it does.
    fn hand_over(&mut self, id: SocketId, from: Option<LinkKey>) {
        let now_ns = self.now_ns;
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let ShardSocket { stash, shared, .. } = socket;
        let mut full = false;
        while !stash.is_empty() {
            if stash.give(|run| {
                let bytes = run.frames.len();
                shared.inbox.push(run, bytes)
            }) {
                full = false;
                continue;
            }
            // After this mark the application's next release calls back; one that came just before is seen by the retry.
            if full {
                break;
            }
            if !planted(Bug::NoSecondPush) {
                shared.inbox.mark_starved();
            }
            full = true;
        }
        if let Some(key) = from
            && !socket.stash.is_empty()
            && let Some(link) = self.links.get_mut(key.slot as usize)
            && !link.paused
            && socket.stash.peers().contains(&link.identity)
        {
            link.paused = true;
            link.liveness.pause(now_ns);
            if let Some(retained) = &mut link.retained {
                retained.pause(now_ns);
            }
            socket.paused.push(key);
            add(&socket.counters().receive_pauses, 1);
            if link.reading == Reading::Streaming {
                link.reading = Reading::Stopping;
                self.backend.cancel(token(Op::LinkRecv, key.slot, key.generation));
            }
        }
        self.touch(id);
    }

    /// The application has made room.
    pub(super) fn resume(&mut self, id: SocketId) {
        let now_ns = self.now_ns;
        self.hand_over(id, None);
        let Some(socket) = self.socket(id) else { return };
        // Whose runs still wait waits too, and nobody else.
        let waiting = socket.stash.peers();
        for key in std::mem::take(&mut socket.paused) {
            if let Some(link) = self.link(key) {
                if waiting.contains(&link.identity) {
                    if let Some(socket) = self.socket(id) {
                        socket.paused.push(key);
                    }
                    continue;
                }
                if planted(Bug::NoResume) {
                    continue;
                }
                link.paused = false;
                link.liveness.resume(now_ns);
                if let Some(retained) = &mut link.retained {
                    retained.resume(now_ns);
                }
                let due_ns = link.liveness.deadline_ns();
                self.timers.set(due_ns, super::Timer::Link(key));
                self.read_on(key);
                self.time_resend(key);
            }
        }
    }
}

impl ShardSocket {
    /// A run goes to the receive queue, or waits here.
    fn take_in(&mut self, run: Inbound) {
        let bytes = run.frames.len();
        let refused = if self.stash.is_empty() { self.shared.inbox.push(run, bytes).err() } else { Some(run) };
        if let Some(run) = refused {
            self.stash.push(run);
        }
    }
}

/// Messages of which it is remembered that the application has not acknowledged them; a resend of one beyond is acknowledged at once.
const IN_HAND_MAX: usize = 1 << 16;

/// The messages that the application has not acknowledged.
#[derive(Default)]
pub(super) struct InHand {
    ids: IdSet,
    /// Of those that have come again on another link, the last one.
    moved: HashMap<MsgId, LinkKey, IdHash>,
}

impl InHand {
    /// The application is done with a message that came on `link`; answers with the link on which it came last.
    fn remove(&mut self, id: &MsgId, link: LinkKey) -> LinkKey {
        match self.ids.remove(id) && !self.moved.is_empty() {
            true => self.moved.remove(id).unwrap_or(link),
            false => link,
        }
    }
}

/// Takes in a run with messages that want to be acknowledged: those that were received before are acknowledged again and taken out,
/// the others are acknowledged now if that is the socket's mode.
fn accept(socket: &mut ShardSocket, link: &mut Link, arrived: Inbound) {
    let frames = &arrived.frames;
    let on_receipt = socket.shared.config.ack_mode == AckMode::OnReceipt || planted(Bug::AckOnArrival);
    let (mut at, mut fresh_from) = (0, 0);
    let mut duplicates = 0;
    let window = socket.seen.of(&arrived.identity);
    loop {
        let start = at;
        let Some(message) = protocol::next_message(frames, &mut at) else { break };
        let Some(id) = message.msg_id else { continue };
        let fresh = window.insert(id) || planted(Bug::WindowForgets);
        if fresh && !on_receipt {
            if socket.in_hand.ids.len() < IN_HAND_MAX {
                socket.in_hand.ids.insert(&id);
            }
        } else if !on_receipt && socket.in_hand.ids.contains(&id) && !planted(Bug::AckInHand) {
            // Acknowledged when the application is done with it, on the link where it has come last: until then its sender must
            // keep it.
            socket.in_hand.moved.insert(id, arrived.link);
        } else {
            link.control.extend_from_slice(&protocol::ack(id));
        }
        if !fresh {
            duplicates += 1;
            if start > fresh_from {
                socket.stash.push(Inbound { frames: frames.slice(fresh_from..start), ..arrived });
            }
            fresh_from = at;
        }
    }
    if duplicates == 0 {
        return socket.take_in(arrived);
    }
    link.count(socket.counters(), |tally| &tally.duplicates, duplicates);
    if fresh_from < frames.len() {
        socket.stash.push(Inbound { frames: frames.slice(fresh_from..), ..arrived });
    }
}

impl Shard {
    /// The application is done with messages: their ACKs go out between its next frames.
    pub(super) fn acknowledge(&mut self, id: SocketId, acks: &[(LinkKey, MsgId)]) {
        let Some(socket) = self.socket(id) else { return };
        let last = |(link, id): &(LinkKey, MsgId)| (socket.in_hand.remove(id, *link), *id);
        let acks: Vec<_> = acks.iter().map(last).collect();
        for of_link in acks.chunk_by(|a, b| a.0 == b.0) {
            let key = of_link[0].0;
            let Some(link) = self.link(key).filter(|link| link.is_live()) else { continue };
            for (_, id) in of_link.iter().filter(|_| !planted(Bug::ForgetAck)) {
                link.control.extend_from_slice(&protocol::ack(*id));
            }
            self.pump(key);
        }
    }
}
