//! Taking back: a listener that stops, a dialer that stops, a peer that has to go. A link that is told to go **parts**: what was accepted
//! for its peer before is still sent, for as long as the linger time lasts, nothing that comes later is; then its stream gets an
//! orderly end.
//!
//! Whoever asked is answered when everything has ended, however it does: the answer hangs on a [`Done`] that the listener, or the
//! links, hold until they are gone.

use std::sync::Arc;

use super::command::Target;
use super::link::{Link, Origin};
use super::{Command, DisconnectReason, EndKey, LinkKey, Reply, Shard, ShardSocket, SocketId, Timer};
use crate::log::Cursor;
use crate::protocol::Identity;

/// Done, or what there is instead of what was named.
pub(crate) type Answer = Result<(), Vec<String>>;

/// Answers when it is dropped.
pub(crate) struct Done(Reply<Answer>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.answer(Ok(()));
    }
}

/// A link that was told to go.
pub(super) struct Parting {
    /// PUBLISH: how far in the socket's log it still sends.
    end: Cursor,
    /// How far in the mail there may be something for it.
    mail_end: Cursor,
    /// When it goes whatever is left.
    pub(super) until_ns: u64,
    /// Whoever waits for its end.
    waiting: Vec<Arc<Done>>,
}

impl Link {
    /// PUBLISH: the end of what is for this link in a log with this tail.
    pub(super) fn addressed_until(&self, tail: Cursor) -> Cursor {
        match &self.parting {
            Some(parting) if parting.end.position() < tail.position() => parting.end,
            _ => tail,
        }
    }
}

impl Shard {
    /// Stops listening at an endpoint: one that was bound in these words, or whose bound address this is.
    pub(super) fn unbind(&mut self, id: SocketId, target: &Target, reply: Reply<Answer>) {
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else {
            return reply.answer(Ok(()));
        };
        let listeners = &self.listeners;
        let get = |key: &EndKey| listeners.get(key.slot as usize);
        let found: Vec<EndKey> =
            socket.listeners.extract_if(.., |key| get(key).is_some_and(|listener| listener.is_at(target))).collect();
        if found.is_empty() {
            let there = socket.listeners.iter().filter_map(get).map(ToString::to_string).collect();
            return reply.answer(Err(there));
        }
        let done = Arc::new(Done(reply));
        for key in found {
            self.close_listener(key, Some(done.clone()));
        }
    }

    /// Stops dialling an endpoint, and parts from whom it found there.
    pub(super) fn disconnect_from(&mut self, id: SocketId, target: &Target, reply: Reply<Answer>) {
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else {
            return reply.answer(Ok(()));
        };
        let dialers = &self.dialers;
        let get = |key: &EndKey| dialers.get(key.slot as usize);
        let found: Vec<EndKey> =
            socket.dialers.extract_if(.., |key| get(key).is_some_and(|dialer| dialer.target == *target)).collect();
        if found.is_empty() {
            let there = socket.dialers.iter().filter_map(get).map(|dialer| dialer.target.to_string()).collect();
            return reply.answer(Err(there));
        }
        let done = Arc::new(Done(reply));
        let own = self.index;
        for dialer in found {
            self.close_dialer(dialer);
            self.release(id, own, dialer, &done);
            // Or its link is elsewhere, or on its way there: then this command comes after it.
            for port in
                self.ports.clone().iter().enumerate().filter(|(shard, _)| *shard != own as usize).map(|(_, port)| port)
            {
                self.pass(port.clone(), Command::Release { socket: id, shard: own, dialer, done: done.clone() });
            }
        }
    }

    /// Parts from the link that this dialer made, if it is here.
    pub(super) fn release(&mut self, id: SocketId, shard: u32, dialer: EndKey, done: &Arc<Done>) {
        let origin = Origin::Dialer { shard, dialer };
        let of_dialer = |(slot, link): (usize, &Link)| {
            let key = LinkKey { slot: slot as u32, generation: link.generation };
            (link.socket == id && link.origin == origin).then_some((key, link.is_live()))
        };
        let found: Vec<_> = self.links.iter().filter_map(of_dialer).collect();
        for (key, is_live) in found {
            if is_live { self.part(key, done.clone()) } else { self.end(key) }
        }
    }

    /// Parts from a peer, if it is there.
    pub(super) fn disconnect(&mut self, id: SocketId, identity: Identity, reply: Reply<Answer>) {
        let done = Arc::new(Done(reply));
        if let Some(&key) = self.socket(id).and_then(|socket| socket.by_identity.get(&identity)) {
            self.part(key, done);
        }
    }

    fn part(&mut self, key: LinkKey, done: Arc<Done>) {
        let Some(id) = self.link(key).map(|link| link.socket) else { return };
        // What was sent to it before is for it; the log is looked at after the mail, so that no letter waits for what lies beyond.
        self.flush(id);
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        if let Some(parting) = &mut link.parting {
            return parting.waiting.push(done);
        }
        let until_ns = self.now_ns.saturating_add(socket.shared.config.linger_ns);
        let (end, mail_end) = (socket.reader.tail(), socket.mail.tail());
        link.parting = Some(Box::new(Parting { end, mail_end, until_ns, waiting: vec![done] }));
        socket.shared.peers.remove(&link.identity);
        if let Some(hub) = &mut socket.hub {
            hub.circle.remove(key);
        }
        self.timers.set(until_ns, Timer::Link(key));
        self.pump(key);
        self.check_parting(key);
    }

    /// Ends a parting link if all that was for it has gone, or its time is over.
    pub(super) fn check_parting(&mut self, key: LinkKey) {
        let now_ns = self.now_ns;
        let Some(link) = self.links.get_mut(key.slot as usize).filter(|link| link.generation == key.generation) else {
            return;
        };
        let Some(until_ns) = link.parting.as_ref().map(|parting| parting.until_ns).filter(|_| link.is_live()) else {
            return;
        };
        let (id, origin) = (link.socket, link.origin);
        let Some(socket) = self.sockets.get(id.index()).and_then(Option::as_ref) else { return };
        if now_ns < until_ns && !is_through(socket, link) {
            return;
        }
        self.finish_link(key, DisconnectReason::DisconnectedHere);
        self.settle(key);
        // A dialer whose peer was told to go, and not the dialer itself, dials again.
        self.tell_origin(origin, &DisconnectReason::DisconnectedHere.to_string(), false);
    }
}

/// Whether a parting link has nothing left to send, or to see acknowledged.
fn is_through(socket: &ShardSocket, link: &mut Link) -> bool {
    let Some(parting) = &link.parting else { return false };
    link.sending.is_none()
        && link.control.is_empty()
        && link.kept.is_none()
        && link.detour.is_none()
        && (socket.hub.is_some() || link.cursor.position() >= parting.end.position())
        && socket.mail_at.position() >= parting.mail_end.position()
        && link.lane.as_mut().is_none_or(|lane| !lane.has_unsent())
        && link.retained.as_ref().is_none_or(|retained| retained.len() == 0)
}
