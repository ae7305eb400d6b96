//! The way out. Under PUBLISH a link holds a position in the socket's log and sends the range from there to the tail with one
//! operation, however many messages that is; under ROUNDROBIN it does the same with the lane that the hub fills. One send is in
//! flight per link; what is appended meanwhile goes with the next one, so that batches form by themselves under load, and after
//! idleness the first message goes at once.

use bytes::Bytes;

use super::link::InFlight;
use super::{DisconnectReason, LinkKey, Op, Shard, SocketId, Timer, token};
use crate::shard::stats::Counters;

/// Bytes that one send takes from a log at most; a frame that is larger goes in several.
pub(super) const RANGE_BYTES_MAX: usize = 256 * 1024;
/// Slices that one send takes at most.
const RANGE_SLICES_MAX: usize = 64;
/// Vectors kept for later sends.
const SPARE_MAX: usize = 256;

impl Shard {
    /// Sends what a socket's log holds for its links: all of them, in rotation, that have no send in flight.
    pub(crate) fn flush(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        socket.shared.take_dirty();
        let wait = socket.shared.wait_number();
        if wait != 0 && wait != socket.stall_timed {
            socket.stall_timed = wait;
            let due_ns = self.now_ns.saturating_add(socket.shared.config.publish_stall_ns);
            self.timers.set(due_ns, Timer::Stall(id, wait));
        }
        if socket.hub.is_some() {
            self.distribute(id);
        } else {
            let n = socket.links.len();
            socket.rotation = if n == 0 { 0 } else { (socket.rotation + 1) % n };
            let first = socket.rotation;
            for i in 0..n {
                // A link that fails is only marked here, so that the list stays as it is.
                let Some(&key) = self.socket(id).and_then(|socket| socket.links.get((first + i) % n)) else { break };
                self.pump(key);
            }
        }
        if let Some(socket) = self.socket(id) {
            if socket.links.is_empty() && socket.shared.wait_number() == 0 {
                socket.shared.keep_dirty();
            }
            if socket.closing.is_some() {
                self.touch(id);
            }
        }
    }

    /// Sends what there is for one link, unless a send is in flight.
    pub(super) fn pump(&mut self, key: LinkKey) {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return };
        if link.sending.is_some() || !link.is_live() {
            return;
        }
        let Some(socket) = self.sockets.get_mut(link.socket.index()).and_then(Option::as_mut) else { return };
        let mut slices = self.spare.pop().unwrap_or_default();
        let mut control = 0;
        if !link.control.is_empty() && link.cursor.is_aligned() {
            control = link.control.len();
            slices.push(link.control.split().freeze());
        }
        let reader = match &mut link.lane {
            Some(lane) => &mut lane.reader,
            None => &mut socket.reader,
        };
        let from = link.cursor;
        let to = reader.gather(from, RANGE_BYTES_MAX, RANGE_SLICES_MAX - slices.len(), &mut slices);
        if slices.is_empty() {
            self.spare.push(slices);
            return;
        }
        link.sending = Some(InFlight { control, from, to });
        self.backend.send(link.conn, slices, token(Op::LinkSend, key.slot, key.generation));
    }

    /// A send has ended: all of it, or as much as went before an error.
    pub(super) fn sent(&mut self, key: LinkKey, mut slices: Vec<Bytes>, bytes: usize, error: Option<std::io::Error>) {
        slices.clear();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(slices);
        }
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
            Counters::add(&socket.shared.counters.bytes_sent, bytes as u64);
        }
        if range.to != range.from {
            let reader = match &mut link.lane {
                Some(lane) => &mut lane.reader,
                None => &mut socket.reader,
            };
            let reached = match error {
                None => range.to,
                Some(_) => reader.align(range.from, bytes.saturating_sub(range.control) as u64),
            };
            let whole = reached.messages() - range.from.messages();
            Counters::add(&socket.shared.counters.delivered, whole);
            socket.released |= reader.advance(range.from, reached);
            link.cursor = reached;
        }
        if matches!(link.state, super::link::State::Dying) {
            return self.bury(key);
        }
        if let Some(error) = error {
            return self.die(key, DisconnectReason::Failed(error.to_string()));
        }
        let refill = link.lane.is_some();
        if socket.released || socket.closing.is_some() || refill {
            // Lanes keep ranges of the socket's log; room appears when they have gone.
            socket.released |= refill;
            self.touch(id);
        }
        if refill {
            self.distribute(id);
        }
        self.pump(key);
    }

    /// A publisher has waited for `publish_stall_max`: whoever is furthest behind has to go.
    pub(super) fn stall_due(&mut self, id: SocketId, wait: u64) {
        let Some(socket) = self.socket(id) else { return };
        socket.stall_timed = 0;
        if socket.shared.wait_number() != wait {
            return self.flush(id);
        }
        if socket.hub.is_some() {
            return;
        }
        let Some(oldest_end) = socket.shared.log.oldest_end() else { return };
        let keys = socket.links.clone();
        let holders = keys.into_iter().filter(|&key| self.link(key).is_some_and(|l| l.cursor.frame() <= oldest_end));
        for key in holders.collect::<Vec<_>>() {
            if let Some(link) = self.link(key) {
                let (identity, behind) = (link.identity, link.cursor.position());
                tracing::debug!(%identity, position = behind, "holds the publisher");
            }
            self.die(key, DisconnectReason::Stalled);
        }
        self.flush(id);
    }

    /// The failure of a connection, unless it is the end that we asked for.
    pub(super) fn failed(&mut self, key: LinkKey, error: &std::io::Error) {
        self.die(key, DisconnectReason::Failed(error.to_string()));
    }
}
