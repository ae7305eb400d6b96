//! The end of a socket: what was accepted is sent for as long as the linger time lasts, each peer then sees an orderly end of the
//! stream, and whoever asked learns what each peer did not get.

use std::sync::Arc;

use super::link::{Link, State};
use super::{DisconnectReason, Event, LinkKey, Phase, Reply, Shard, ShardSocket, SocketId, SocketShared, Timer};
use crate::log::Cursor;
use crate::protocol::Identity;
use crate::sabotage::{Bug, planted};
use crate::shard::link::DRAIN_NS;
use crate::shard::shared::report;
use crate::shard::tally::add;

/// Peers in a report at most.
const PEERS_MAX: usize = 1024;

/// How a socket's end went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReport {
    /// Messages that were accepted and not handed to the kernel (AT_LEAST_ONCE: not acknowledged) within the linger time, each once
    /// for each peer that misses it.
    pub undelivered: u64,
    /// The part of them that was for a particular peer: those that miss most come first, 1,024 of them at most. What was for
    /// whoever would come is in `undelivered` alone.
    pub peers: Vec<Undelivered>,
}

/// What one peer did not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undelivered {
    /// Which peer.
    pub identity: Identity,
    /// Messages that it misses, in whole or in part.
    pub messages: u64,
    /// Bytes of them that were not handed to the kernel, or not acknowledged, framing included.
    pub bytes: u64,
}

impl CloseReport {
    /// The reports of several shards are one.
    pub(crate) fn add(&mut self, other: CloseReport) {
        self.undelivered += other.undelivered;
        self.peers.extend(other.peers);
        self.shorten();
    }

    fn shorten(&mut self) {
        self.peers.sort_unstable_by_key(|peer| (std::cmp::Reverse((peer.messages, peer.bytes)), peer.identity));
        self.peers.truncate(PEERS_MAX);
    }
}

/// A socket that is ending.
pub(super) struct Closing {
    deadline_ns: u64,
    replies: Vec<Reply<CloseReport>>,
    /// Set when nothing more is sent: what was not delivered.
    report: Option<CloseReport>,
}

impl Closing {
    /// A send that was under way when the report was made has handed over a part of what it says.
    pub(super) fn deduct(&mut self, identity: &Identity, messages: u64, bytes: u64) {
        let Some(report) = &mut self.report else { return };
        if let Some(peer) = report.peers.iter_mut().find(|peer| peer.identity == *identity) {
            report.undelivered = report.undelivered.saturating_sub(messages);
            peer.messages = peer.messages.saturating_sub(messages);
            peer.bytes = peer.bytes.saturating_sub(bytes);
        }
    }

    pub(super) fn answer(self, shared: &Arc<SocketShared>) {
        shared.enter_phase(Phase::Closed);
        let mut report = self.report.unwrap_or_default();
        report.peers.retain(|peer| peer.messages > 0);
        report.shorten();
        for reply in self.replies {
            reply.answer(report.clone());
        }
    }
}

impl Shard {
    pub(super) fn close_socket(&mut self, id: SocketId, linger_ns: u64, reply: Reply<CloseReport>) {
        let deadline_ns = self.now_ns.saturating_add(linger_ns);
        let Some(socket) = self.socket(id) else { return reply.answer(CloseReport::default()) };
        match &mut socket.closing {
            Some(closing) => closing.replies.push(reply),
            none => {
                *none = Some(Closing { deadline_ns, replies: vec![reply], report: None });
                socket.shared.enter_phase(Phase::Closing);
                // Nobody takes what still arrives; the peers' ends of stream have to be seen.
                socket.stash.clear();
                self.timers.set(deadline_ns, Timer::Close(id));
                self.resume(id);
                self.flush(id);
            }
        }
        self.touch(id);
    }

    /// At the deadline what is left counts as not delivered.
    pub(super) fn close_due(&mut self, id: SocketId) {
        let now_ns = self.now_ns;
        let Some(socket) = self.socket(id) else { return };
        let due = socket.closing.as_ref().is_some_and(|c| c.deadline_ns <= now_ns && c.report.is_none());
        if due {
            self.finish_sending(id);
        }
    }

    /// Looks whether a closing socket has come to its next step.
    pub(super) fn check_closing(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        let Some(closing) = &socket.closing else { return };
        if closing.report.is_some() {
            if socket.links_open == 0 {
                self.forget(id);
            }
            return;
        }
        let done = socket.unsettled == 0 && self.undelivered(id) == 0 && self.is_quiet(id);
        if done || planted(Bug::CloseForgetsLog) {
            self.finish_sending(id);
        }
    }

    /// Whether no send is under way and no control frame waits for one.
    fn is_quiet(&self, id: SocketId) -> bool {
        let Some(socket) = self.sockets.get(id.index()).and_then(Option::as_ref) else { return true };
        let quiet = |link: &super::link::Link| link.sending.is_none() && link.control.is_empty();
        socket.links.iter().all(|key| self.links.get(key.slot as usize).is_none_or(quiet))
    }

    /// Messages, per addressed peer, that were accepted and not handed to the kernel.
    fn undelivered(&mut self, id: SocketId) -> u64 {
        let home = self.index as usize;
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return 0 };
        let ShardSocket { links, reader, hub, shared, parked, mail, mail_at, .. } = socket;
        let mut left = mail.tail().messages() - mail_at.messages();
        left += parked.values().map(|parked| parked.frames.len() as u64).sum::<u64>();
        left += match hub {
            Some(hub) => hub.queued(reader),
            None if shared.home() == home => shared.log.backlog().0,
            None => 0,
        };
        let log_end = if hub.is_none() { reader.tail() } else { Cursor::default() };
        for key in links {
            let Some(link) = self.links.get_mut(key.slot as usize) else { continue };
            left += missed_by(link, log_end).messages;
        }
        left
    }

    /// As [`undelivered`](Self::undelivered), with the part of each peer.
    fn close_report(&mut self, id: SocketId) -> CloseReport {
        let mut report = CloseReport { undelivered: self.undelivered(id), peers: Vec::new() };
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return report };
        let log_end = if socket.hub.is_none() { socket.reader.tail() } else { Cursor::default() };
        report.peers.extend(socket.parked.iter().map(|(identity, parked)| Undelivered {
            identity: *identity,
            messages: parked.frames.len() as u64,
            bytes: parked.frames.iter().map(|frame| frame.len() as u64).sum(),
        }));
        for key in &socket.links {
            let Some(link) = self.links.get_mut(key.slot as usize) else { continue };
            report.peers.push(missed_by(link, log_end));
        }
        report
    }

    /// Sends nothing more: ends each peer's stream and closes the rest.
    fn finish_sending(&mut self, id: SocketId) {
        let report = self.close_report(id);
        let Some(socket) = self.socket(id) else { return };
        if let Some(closing) = &mut socket.closing {
            closing.report = Some(report);
        }
        let (listeners, dialers) = (std::mem::take(&mut socket.listeners), std::mem::take(&mut socket.dialers));
        let live = socket.links.clone();
        listeners.into_iter().for_each(|key| self.close_listener(key, None));
        dialers.into_iter().for_each(|key| self.close_dialer(key));
        for key in live {
            self.finish_link(key, DisconnectReason::ClosedHere);
        }
        let rest: Vec<LinkKey> = self
            .links
            .iter()
            .filter(|(_, link)| link.socket == id && !matches!(link.state, State::Draining { .. } | State::Dying))
            .map(|(slot, link)| LinkKey { slot: slot as u32, generation: link.generation })
            .collect();
        rest.into_iter().for_each(|key| self.end(key));
        self.touch(id);
    }

    /// Shuts our side of a live link, or closes it if it is stuck in a send.
    pub(super) fn finish_link(&mut self, key: LinkKey, reason: DisconnectReason) {
        let until_ns = self.now_ns + DRAIN_NS;
        self.unlist(key);
        let Some(link) = self.link(key) else { return };
        let (id, identity, address, conn) = (link.socket, link.identity, link.address.clone(), link.conn);
        let stuck = link.sending.is_some();
        link.state = State::Draining { until_ns };
        if let Some(socket) = self.socket(id) {
            add(&socket.counters().disconnects, 1);
            report(&socket.shared, Event::Disconnected { identity, address, reason });
        }
        if stuck {
            return self.end(key);
        }
        self.backend.shutdown(conn);
        self.timers.set(until_ns, Timer::Link(key));
        self.read_on(key);
    }

    /// The last link is gone.
    fn forget(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::take) else { return };
        if let Some(closing) = socket.closing {
            closing.answer(&socket.shared);
        }
    }
}

/// What a link has not handed to the kernel, or not seen acknowledged, of a log with this end and of its own.
fn missed_by(link: &mut Link, log_end: Cursor) -> Undelivered {
    let (end, at) = (link.addressed_until(log_end), link.cursor);
    let mut missed = Undelivered {
        identity: link.identity,
        messages: end.messages().saturating_sub(at.messages()),
        bytes: end.position().saturating_sub(at.position()),
    };
    if let Some(kept) = &mut link.kept {
        missed.messages += kept.queued();
        missed.bytes += kept.queued_bytes();
    }
    if let Some(detour) = &link.detour {
        missed.messages += detour.queued();
        missed.bytes += detour.own_bytes();
    }
    if let Some(lane) = &mut link.lane {
        missed.messages += lane.queued();
        missed.bytes += lane.queued_bytes() + lane.unacknowledged as u64;
    }
    missed.messages += link.retained.as_ref().map_or(0, |retained| retained.len() as u64);
    missed
}
