//! The end of a socket: what was accepted is sent for as long as the linger time lasts, each peer then sees an orderly end of the
//! stream, and whoever asked learns how many messages were not delivered.

use std::sync::Arc;

use super::link::State;
use super::{DisconnectReason, Event, LinkKey, Phase, Reply, Shard, ShardSocket, SocketId, SocketShared, Timer};
use crate::sabotage::{Bug, planted};
use crate::shard::link::DRAIN_NS;
use crate::shard::shared::report;

/// A socket that is ending.
pub(super) struct Closing {
    deadline_ns: u64,
    replies: Vec<Reply<u64>>,
    /// Set when nothing more is sent: what was not delivered.
    undelivered: Option<u64>,
}

impl Closing {
    pub(super) fn answer(&self, shared: &Arc<SocketShared>, more: u64) {
        shared.enter_phase(Phase::Closed);
        for reply in &self.replies {
            reply.answer(self.undelivered.unwrap_or(0) + more);
        }
    }
}

impl Shard {
    pub(super) fn close_socket(&mut self, id: SocketId, linger_ns: u64, reply: Reply<u64>) {
        let deadline_ns = self.now_ns.saturating_add(linger_ns);
        let Some(socket) = self.socket(id) else { return reply.answer(0) };
        match &mut socket.closing {
            Some(closing) => closing.replies.push(reply),
            none => {
                *none = Some(Closing { deadline_ns, replies: vec![reply], undelivered: None });
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
        let due = socket.closing.as_ref().is_some_and(|c| c.deadline_ns <= now_ns && c.undelivered.is_none());
        if due {
            self.finish_sending(id);
        }
    }

    /// Looks whether a closing socket has come to its next step.
    pub(super) fn check_closing(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        let Some(closing) = &socket.closing else { return };
        if closing.undelivered.is_some() {
            if socket.links_open == 0 {
                self.forget(id);
            }
            return;
        }
        if socket.unsettled == 0 && (planted(Bug::CloseForgetsLog) || self.undelivered(id) == 0) && self.is_quiet(id) {
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
        for key in links {
            let Some(link) = self.links.get_mut(key.slot as usize) else { continue };
            if hub.is_none() {
                left += reader.tail().messages() - link.cursor.messages();
            }
            left += link.lane.as_mut().map_or(0, |lane| lane.queued());
            left += link.retained.as_ref().map_or(0, |retained| retained.len() as u64);
        }
        left
    }

    /// Sends nothing more: ends each peer's stream and closes the rest.
    fn finish_sending(&mut self, id: SocketId) {
        let until_ns = self.now_ns + DRAIN_NS;
        let undelivered = self.undelivered(id);
        let Some(socket) = self.socket(id) else { return };
        if let Some(closing) = &mut socket.closing {
            closing.undelivered = Some(undelivered);
        }
        let (listeners, dialers) = (std::mem::take(&mut socket.listeners), std::mem::take(&mut socket.dialers));
        let live = socket.links.clone();
        listeners.into_iter().for_each(|key| self.close_listener(key));
        dialers.into_iter().for_each(|key| self.close_dialer(key));
        for key in live {
            self.finish_link(key, until_ns);
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
    fn finish_link(&mut self, key: LinkKey, until_ns: u64) {
        self.unlist(key);
        let Some(link) = self.link(key) else { return };
        let (id, identity, address, conn) = (link.socket, link.identity, link.address.clone(), link.conn);
        let stuck = link.sending.is_some();
        link.state = State::Draining { until_ns };
        if let Some(socket) = self.socket(id) {
            let reason = DisconnectReason::ClosedHere;
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
            closing.answer(&socket.shared, 0);
        }
    }
}
