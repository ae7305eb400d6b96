//! What was sent by identity, on its way from the mail of this shard into the lane of the link that it is for. Nobody else's link is
//! looked at.
//!
//! Under PUBLISH a record keeps the place in the socket's log after which it was sent, and the link sends it when it has come there;
//! under ROUNDROBIN the hub takes it from the mail when the intake has come there. A record whose peer is gone is dropped and counted
//! (AT_MOST_ONCE), or waits for it to return until it expires (AT_LEAST_ONCE).

use std::collections::HashMap;

use bytes::Bytes;

use super::lane::Lane;
use super::link::Link;
use super::outlet::{Letter, frame_len};
use super::shared::report;
use super::{DeliveryGuarantee, DropCause, Event, LinkKey, Shard, ShardSocket, SocketId, Timer};
use crate::copy;
use crate::log::{Cursor, Frame};
use crate::protocol::Identity;
use crate::sabotage::{Bug, planted};
use crate::shard::tally::{add, drop_unlinked};

/// Frames that wait for a peer to return.
#[derive(Default)]
pub(super) struct Parked {
    pub(super) frames: Vec<Bytes>,
    /// When the first of them expires.
    pub(super) expires_ns: u64,
}

impl ShardSocket {
    /// ROUNDROBIN: after which message of the intake the next record goes.
    pub(super) fn mail_after(&mut self) -> Option<Cursor> {
        if !self.has_mail {
            return None;
        }
        let mut after = None;
        self.mail.frames(self.mail_at, |record| {
            after = Letter::open(record).map(|letter| letter.after);
            false
        });
        after
    }

    /// Looks how far the socket's log is, and then whether there is mail: a message that was sent after a letter is not sent
    /// before it. True if there is.
    pub(super) fn refresh(&mut self) -> bool {
        self.visible = self.reader.tail();
        self.has_mail = self.mail.has_more(self.mail_at);
        self.has_mail
    }
}

impl Shard {
    /// Puts what is in the mail, and due, into lanes. True if something was.
    pub(super) fn sort_mail(&mut self, id: SocketId) -> bool {
        let (now_ns, shard) = (self.now_ns, self.index as usize);
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return false };
        let ShardSocket { shared, hub, mail, mail_at, by_identity, parked, released, .. } = socket;
        let from = *mail_at;
        if !mail.has_more(from) {
            return false;
        }
        let due = hub.as_ref().map_or(Cursor::END, |hub| hub.intake);
        let keep = shared.config.delivery == DeliveryGuarantee::AtLeastOnce;
        let links = &mut self.links;
        let mut addressed: Vec<LinkKey> = Vec::new();
        let mut lost: HashMap<Identity, u64> = HashMap::new();
        let mut expiring = None;
        let to = mail.frames(from, |record| {
            let Some(letter) = Letter::open(record) else { return true };
            if letter.after.position() > due.position() {
                return false;
            }
            let bytes = frame_len(&letter.frame);
            let link =
                by_identity.get(&letter.identity).and_then(|key| Some((*key, links.get_mut(key.slot as usize)?)));
            match link {
                Some((key, link)) => {
                    let after = if hub.is_some() { Cursor::default() } else { letter.after };
                    lane_of(link).take_directed(letter.frame, after);
                    if addressed.last() != Some(&key) {
                        addressed.push(key);
                    }
                }
                None if keep => {
                    let expires_ns =
                        now_ns.saturating_add(if planted(Bug::ExpiresEarly) { 1 } else { shared.config.expiry_ns() });
                    let waiting = parked.entry(letter.identity).or_default();
                    if waiting.frames.is_empty() {
                        waiting.expires_ns = expires_ns;
                        expiring = Some(expires_ns);
                    }
                    waiting.frames.push(whole(letter.frame));
                    add(&shared.counters[shard].parked, 1);
                }
                None => {
                    shared.peers.sent_to(&letter.identity, bytes);
                    *lost.entry(letter.identity).or_default() += 1;
                }
            }
            true
        });
        if to == from {
            // Nothing is due: an inline engine that asks at each turn of a `send` that waits would never sleep.
            return false;
        }
        *mail_at = to;
        add(&shared.counters[shard].sorted, to.messages() - from.messages());
        *released |= mail.advance(from, to);
        for (identity, messages) in lost {
            drop_unlinked(shared, shard, identity, DropCause::PeerGone, messages);
        }
        if let Some(expires_ns) = expiring {
            self.timers.set(expires_ns, Timer::Parked(id));
        }
        self.touch(id);
        addressed.dedup();
        for key in addressed {
            self.pump(key);
        }
        true
    }

    /// A peer is back: what was kept for it goes into its lane.
    pub(super) fn unpark(&mut self, id: SocketId, key: LinkKey) {
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        let Some(parked) = socket.parked.remove(&link.identity) else { return };
        add(&socket.counters().parked, (parked.frames.len() as u64).wrapping_neg());
        let lane = lane_of(link);
        for frame in parked.frames.into_iter().filter(|_| !planted(Bug::NoUnpark)) {
            lane.take_directed(Frame::Whole(&frame), Cursor::default());
        }
    }

    /// Kept messages whose time is over are told as expired.
    pub(super) fn parked_due(&mut self, id: SocketId) {
        let now_ns = self.now_ns;
        let Some(socket) = self.socket(id) else { return };
        let due: Vec<Identity> =
            socket.parked.iter().filter(|(_, p)| p.expires_ns <= now_ns).map(|(identity, _)| *identity).collect();
        for identity in due {
            let Some(parked) = socket.parked.remove(&identity) else { continue };
            socket.shared.peers.sent_to(&identity, parked.frames.iter().map(Bytes::len).sum());
            let messages = parked.frames.len() as u64;
            add(&socket.counters().parked, messages.wrapping_neg());
            add(&socket.counters().all.expired, messages);
            report(&socket.shared, Event::Expired { identity: Some(identity), messages });
        }
        socket.released = true;
        let next_ns = socket.parked.values().map(|p| p.expires_ns).min();
        if let Some(next_ns) = next_ns {
            self.timers.set(next_ns, Timer::Parked(id));
        }
        self.touch(id);
    }
}

/// A link's lane, made when it is first needed.
pub(super) fn lane_of(link: &mut Link) -> &mut Lane {
    link.lane.get_or_insert_with(|| Box::new(Lane::open()))
}

/// A frame in memory of its own.
pub(super) fn whole(frame: Frame<'_>) -> Bytes {
    match frame {
        Frame::Whole(frame) => copy::owned(frame),
        Frame::Split { head, payload } => [head, payload].concat().into(),
    }
}
