//! The accepting end: a bound address whose connections become links. When the system refuses to accept for lack of descriptors or
//! memory, the listener rests for a moment instead of spinning, and goes on by itself. Connections over the limit of their address
//! are held for a while without work, and closed.

use std::sync::Arc;

use super::accepts::{Accepts, HELD_MAX};
use super::control::Done;
use super::link::{HOLD_NS, Origin};
use super::policy::Own;
use super::shared::report;
use super::{EndKey, Event, Op, RejectReason, Reply, Shard, SocketId, Target, Timer, token};
use crate::backend::{Address, Handle, is_cancelled};
use crate::sabotage::{Bug, planted};
use crate::shard::tally::add;

/// How long a listener rests after the system refused to accept.
const REST_NS: u64 = 100_000_000;
/// That it cannot accept is logged at most so often.
const LOG_NS: u64 = 10_000_000_000;
/// A process that has just ended with a ring gives its addresses back a little later than its descriptors (up to 50 ms were
/// measured): an address in use is tried for this long before that is the answer.
const IN_USE_NS: u64 = 300_000_000;
const IN_USE_STEP_NS: u64 = 20_000_000;

/// See the module's documentation.
pub(super) struct Listener {
    generation: u32,
    socket: SocketId,
    accepts: Accepts,
    /// What its peers have instead of what the socket says.
    own: Own,
    /// Where it listens.
    bound: Option<Address>,
    /// The name that this was found under, if it was.
    name: Option<Target>,
    /// From when on it is logged again that it cannot accept.
    log_ns: u64,
    state: State,
}

impl Listener {
    /// Whether it was bound to this name, or is bound to this address.
    pub(super) fn is_at(&self, target: &Target) -> bool {
        match target {
            Target::Address(address) => self.bound.as_ref() == Some(address),
            Target::Name { .. } => self.name.as_ref() == Some(target),
        }
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.bound, &self.name) {
            (Some(bound), Some(name)) => write!(f, "{bound} ({name})"),
            (Some(bound), None) => bound.fmt(f),
            (None, _) => f.write_str("nowhere yet"),
        }
    }
}

enum State {
    /// The name to bind to is being resolved.
    Resolving {
        name: Target,
        own: Own,
        reply: Reply<std::io::Result<Address>>,
    },
    /// The address is in use, perhaps only for a moment.
    InUse {
        address: Address,
        own: Own,
        reply: Reply<std::io::Result<Address>>,
        until_ns: u64,
    },
    Accepting(Handle),
    Resting(Handle),
    /// Whoever closed it is answered when the accept has ended.
    Closing {
        _done: Option<Arc<Done>>,
    },
}

impl Shard {
    pub(super) fn bind(&mut self, id: SocketId, target: Target, own: Own, reply: Reply<std::io::Result<Address>>) {
        if self.is_closing(id) {
            return reply.answer(Err(std::io::ErrorKind::NotConnected.into()));
        }
        match target {
            Target::Address(address) => {
                let until_ns = self.now_ns + IN_USE_NS;
                self.listen_soon(id, address, own, reply, until_ns);
            }
            Target::Name { ref host, port } => {
                let state = State::Resolving { name: target.clone(), own, reply };
                let Some(key) = self.add_listener(id, state) else { return };
                self.backend.resolve(host, port, token(Op::ResolveBind, key.slot, key.generation));
            }
        }
    }

    fn is_closing(&mut self, id: SocketId) -> bool {
        self.socket(id).is_none_or(|socket| socket.closing.is_some())
    }

    fn add_listener(&mut self, id: SocketId, state: State) -> Option<EndKey> {
        let generation = self.generation();
        let config = &self.socket(id)?.shared.config;
        let accepts = Accepts::new(config.accepts_per_second, config.accepts_burst);
        let listener = Listener {
            generation,
            socket: id,
            accepts,
            own: Own::default(),
            bound: None,
            name: None,
            log_ns: 0,
            state,
        };
        let slot = self.listeners.insert(listener) as u32;
        Some(EndKey { slot, generation })
    }

    /// Listens, or tries again in a moment if the address is in use and time is left.
    fn listen_soon(
        &mut self,
        id: SocketId,
        address: Address,
        own: Own,
        reply: Reply<std::io::Result<Address>>,
        until_ns: u64,
    ) {
        match self.listen(id, &address, own) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && self.now_ns < until_ns => {
                let state = State::InUse { address, own, reply, until_ns };
                let Some(key) = self.add_listener(id, state) else { return };
                self.timers.set(self.now_ns + IN_USE_STEP_NS, Timer::Listener(key));
            }
            result => reply.answer(result.map(|(_, bound)| bound)),
        }
    }

    /// The first of the name's addresses that can be bound.
    pub(super) fn bind_resolved(&mut self, key: EndKey, result: std::io::Result<Vec<std::net::SocketAddr>>) {
        let listener = self.listeners.get(key.slot as usize).filter(|l| l.generation == key.generation);
        if listener.is_none() {
            return;
        }
        let Listener { socket, state, .. } = self.listeners.remove(key.slot as usize);
        let State::Resolving { name, own, reply } = state else { return };
        let answer = result.and_then(|addresses| {
            let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
            for address in addresses {
                match self.listen(socket, &Address::Ip(address), own) {
                    Ok((key, bound)) => {
                        if let Some(listener) = self.listener(key) {
                            listener.name = Some(name);
                        }
                        return Ok(bound);
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        reply.answer(answer);
    }

    fn listen(&mut self, id: SocketId, address: &Address, own: Own) -> std::io::Result<(EndKey, Address)> {
        // It may have been closed while an address in use, or a name, kept it waiting.
        let socket = self.sockets.get(id.index()).and_then(Option::as_ref);
        let Some(socket) = socket.filter(|socket| socket.closing.is_none()) else {
            return Err(std::io::ErrorKind::NotConnected.into());
        };
        let (handle, bound) = self.backend.listen(address, &socket.shared.config.options)?;
        let Some(key) = self.add_listener(id, State::Accepting(handle)) else {
            self.backend.close(handle);
            return Err(std::io::ErrorKind::NotConnected.into());
        };
        self.backend.accept(handle, token(Op::Accept, key.slot, key.generation));
        if let Some(listener) = self.listener(key) {
            listener.bound = Some(bound.clone());
            listener.own = own;
        }
        if let Some(socket) = self.socket(id) {
            socket.listeners.push(key);
        }
        tracing::debug!(address = %bound, "listening");
        Ok((key, bound))
    }

    fn listener(&mut self, key: EndKey) -> Option<&mut Listener> {
        self.listeners.get_mut(key.slot as usize).filter(|listener| listener.generation == key.generation)
    }

    pub(super) fn accepted(&mut self, key: EndKey, conn: Handle, peer: Address) {
        let now_ns = self.now_ns;
        let Some(listener) = self.listener(key).filter(|listener| matches!(listener.state, State::Accepting(_))) else {
            return self.backend.close(conn);
        };
        let (id, origin) = (listener.socket, Origin::Listener { own: listener.own });
        if listener.accepts.admit(&peer, now_ns) {
            return self.begin(id, conn, peer, origin);
        }
        let held = &mut listener.accepts.held;
        if held.len() < HELD_MAX {
            held.push_back((now_ns + HOLD_NS, conn));
            if held.len() == 1 {
                self.timers.set(now_ns + HOLD_NS, Timer::Held(key));
            }
        } else {
            self.backend.close(conn);
        }
        if let Some(socket) = self.socket(id) {
            add(&socket.counters().rejects, 1);
            report(&socket.shared, Event::Rejected { address: peer, reason: RejectReason::TooManyAccepts });
        }
    }

    /// Connections over the limit have been held for long enough.
    pub(super) fn held_due(&mut self, key: EndKey) {
        let now_ns = self.now_ns;
        while let Some(listener) = self.listener(key)
            && let Some(&(until_ns, conn)) = listener.accepts.held.front()
        {
            if until_ns > now_ns {
                return self.timers.set(until_ns, Timer::Held(key));
            }
            listener.accepts.held.pop_front();
            self.backend.close(conn);
        }
    }

    pub(super) fn accept_ended(&mut self, key: EndKey, error: std::io::Error) {
        let now_ns = self.now_ns;
        let Some(listener) = self.listener(key) else { return };
        match listener.state {
            State::Accepting(handle) => {
                if !is_cancelled(&error) && listener.log_ns <= now_ns {
                    listener.log_ns = now_ns + LOG_NS;
                    tracing::warn!(%error, "cannot accept; if the process is out of descriptors raise its limit (ulimit -n)");
                }
                listener.state = State::Resting(handle);
                if !planted(Bug::ListenerRests) {
                    self.timers.set(now_ns + REST_NS, Timer::Listener(key));
                }
            }
            _ => {
                self.listeners.remove(key.slot as usize);
            }
        }
    }

    pub(super) fn listener_due(&mut self, key: EndKey) {
        let Some(listener) = self.listener(key) else { return };
        match listener.state {
            State::Resting(handle) => {
                listener.state = State::Accepting(handle);
                self.backend.accept(handle, token(Op::Accept, key.slot, key.generation));
            }
            State::InUse { .. } => {
                let Listener { socket, state, .. } = self.listeners.remove(key.slot as usize);
                let State::InUse { address, own, reply, until_ns } = state else { return };
                self.listen_soon(socket, address, own, reply, until_ns);
            }
            _ => {}
        }
    }

    pub(super) fn close_listener(&mut self, key: EndKey, done: Option<Arc<Done>>) {
        let Some(listener) = self.listener(key) else { return };
        let held = std::mem::take(&mut listener.accepts.held);
        let state = std::mem::replace(&mut listener.state, State::Closing { _done: done });
        held.into_iter().for_each(|(_, conn)| self.backend.close(conn));
        match state {
            // Its place is free when the accept has ended.
            State::Accepting(handle) => self.backend.close(handle),
            State::Resting(handle) => {
                self.backend.close(handle);
                self.listeners.remove(key.slot as usize);
            }
            State::Resolving { .. } | State::InUse { .. } | State::Closing { .. } => {}
        }
    }
}
