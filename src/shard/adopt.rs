//! A connection's one move: it shakes hands on whichever shard it was made, with exact reads, so that nothing of it is buffered and
//! no operation is in flight; then its descriptor goes to the shard of its peer, where alone duplicates are judged, and stays.

use super::link::{Link, Origin, State};
use super::policy::Own;
use super::shared::report;
use super::{Event, LinkKey, RejectReason, Shard, SocketId};
use crate::backend::{Address, Stream};
use crate::protocol::{Deframer, Identity, Liveness};
use crate::sabotage::{Bug, planted};
use crate::shard::command::Command;
use crate::shard::link::{frame_bytes_max, liveness_config};
use crate::shard::tally::add;

/// A connection between two shards.
pub(crate) struct Moving {
    socket: SocketId,
    stream: Stream,
    address: Address,
    identity: Identity,
    origin: Origin,
}

impl Shard {
    /// Sends a connection whose peer lives elsewhere there, as soon as our HELLO is out. True if it does not stay here.
    pub(super) fn move_on(&mut self, key: LinkKey) -> bool {
        let Some(link) = self.links.get_mut(key.slot as usize) else { return true };
        let Some(socket) = self.sockets.get_mut(link.socket.index()).and_then(Option::as_mut) else { return true };
        let shard = socket.shared.shard_of(&link.identity);
        if shard == self.index as usize {
            return false;
        }
        if link.sending.is_some() {
            link.state = State::Leaving;
            return true;
        }
        let link = self.links.remove(key.slot as usize);
        socket.links_open -= 1;
        match self.backend.detach(link.conn) {
            Some(stream) => {
                let moving = Moving {
                    socket: link.socket,
                    stream,
                    address: link.address,
                    identity: link.identity,
                    origin: link.origin,
                };
                let port = socket.shared.ports[shard].clone();
                if !planted(Bug::MoveLost) {
                    self.pass(port, Command::Adopt(Box::new(moving)));
                }
            }
            None => {
                socket.shared.dismiss();
                tracing::error!("a connection could not move to its shard: operations are pending");
            }
        }
        true
    }

    /// Takes a connection in that has shaken hands elsewhere.
    pub(super) fn adopt(&mut self, moving: Moving) {
        let Moving { socket: id, stream, address, identity, origin } = moving;
        let now_ns = self.now_ns;
        let generation = self.generation();
        let Some(socket) = self.sockets.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let conn = match self.backend.attach(stream) {
            Ok(conn) => conn,
            Err(error) => {
                socket.shared.dismiss();
                add(&socket.counters().rejects, 1);
                let reason = RejectReason::Handshake(format!("could not be taken over: {error}"));
                report(&socket.shared, Event::Rejected { address, reason });
                return self.tell_origin(origin, &error.to_string(), false);
            }
        };
        if socket.closing.is_some() {
            socket.shared.dismiss();
            self.backend.close(conn);
            return self.tell_origin(origin, "the socket takes no more peers", true);
        }
        socket.links_open += 1;
        let config = &socket.shared.config;
        let deframer = Deframer::new(frame_bytes_max(config.message_bytes_max));
        let liveness = Liveness::new(liveness_config(config), now_ns);
        let origin = if planted(Bug::AdoptForgets) { Origin::Listener { own: Own::default() } } else { origin };
        let mut link = Link::new(generation, id, conn, address, origin, deframer, liveness);
        link.identity = identity;
        let slot = self.links.insert(link);
        self.greet(LinkKey { slot: slot as u32, generation });
    }

    /// Lets whoever made a connection know that it has ended.
    pub(super) fn tell_origin(&mut self, origin: Origin, error: &str, rejected: bool) {
        let Origin::Dialer { shard, dialer } = origin else { return };
        if shard == self.index {
            return self.dial_later(dialer, error, rejected);
        }
        if let Some(port) = self.ports.get(shard as usize).cloned() {
            self.pass(port, Command::Lost { dialer, error: error.to_owned(), rejected });
        }
    }
}
