//! The connecting end: dials one endpoint for the socket's life. A name is resolved anew for each round of attempts, its addresses
//! are tried one after the other, and between rounds the dialer waits with growing delay and jitter. An address where somebody else
//! answers does not end the round: after the delay the next one is tried.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::link::Origin;
use super::shared::report;
use super::{EndKey, Event, Op, Shard, SocketId, Target, Timer, token};
use crate::backend::{Address, Handle};
use crate::protocol::{Backoff, BackoffConfig};

/// An attempt that takes longer has failed: the system's own limit is minutes.
const CONNECT_NS: u64 = 5_000_000_000;

/// See the module's documentation.
pub(super) struct Dialer {
    generation: u32,
    socket: SocketId,
    pub(super) target: Target,
    backoff: Backoff,
    /// Its last link ended as if it had been refused.
    unwanted: bool,
    /// Failed rounds since the last connection.
    attempt: u32,
    /// Addresses of the present round that have not been tried.
    candidates: VecDeque<Address>,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Resolving,
    Connecting {
        deadline_ns: u64,
    },
    /// A link of it shakes hands or lives.
    Linked,
    Waiting {
        until_ns: u64,
    },
    /// The socket is gone; waits for the operation that is under way.
    Closing,
}

impl Shard {
    pub(super) fn dial(&mut self, id: SocketId, target: Target) {
        let generation = self.generation();
        let Some(socket) = self.socket(id).filter(|socket| socket.closing.is_none()) else { return };
        let config = &socket.shared.config;
        let backoff = Backoff::new(BackoffConfig {
            min_ns: config.reconnect_min_ns,
            max_ns: config.reconnect_max_ns,
            ..Default::default()
        });
        let slot = self.dialers.insert(Dialer {
            generation,
            socket: id,
            target,
            backoff,
            unwanted: false,
            attempt: 0,
            candidates: VecDeque::new(),
            state: State::Resolving,
        }) as u32;
        let key = EndKey { slot, generation };
        if let Some(socket) = self.socket(id) {
            socket.dialers.push(key);
        }
        self.dial_now(key);
    }

    fn dialer(&mut self, key: EndKey) -> Option<&mut Dialer> {
        self.dialers.get_mut(key.slot as usize).filter(|dialer| dialer.generation == key.generation)
    }

    /// Goes on with the round, or begins one.
    fn dial_now(&mut self, key: EndKey) {
        if self.try_next(key) {
            return;
        }
        let Some(dialer) = self.dialers.get_mut(key.slot as usize) else { return };
        match &dialer.target {
            Target::Address(address) => {
                dialer.candidates = VecDeque::from([address.clone()]);
                self.try_next(key);
            }
            Target::Name { host, port } => {
                dialer.state = State::Resolving;
                self.backend.resolve(host, *port, token(Op::Resolve, key.slot, key.generation));
            }
        }
    }

    pub(super) fn resolved(&mut self, key: EndKey, result: std::io::Result<Vec<SocketAddr>>) {
        let Some(dialer) = self.dialer(key) else { return };
        if let State::Closing = dialer.state {
            self.dialers.remove(key.slot as usize);
            return;
        }
        match result {
            Ok(addresses) if !addresses.is_empty() => {
                dialer.candidates = addresses.into_iter().map(Address::Ip).collect();
                self.try_next(key);
            }
            Ok(_) => self.dial_later(key, "the name has no address", false),
            Err(error) => self.dial_later(key, &format!("the name does not resolve: {error}"), false),
        }
    }

    /// Tries the next address; true if there was one.
    fn try_next(&mut self, key: EndKey) -> bool {
        let deadline_ns = self.now_ns + CONNECT_NS;
        let Some(dialer) = self.dialers.get_mut(key.slot as usize) else { return false };
        let Some(address) = dialer.candidates.pop_front() else { return false };
        dialer.state = State::Connecting { deadline_ns };
        let Some(socket) = self.sockets.get(dialer.socket.index()).and_then(Option::as_ref) else { return false };
        let options = &socket.shared.config.options;
        self.timers.set(deadline_ns, Timer::Dialer(key));
        self.backend.connect(&address, options, token(Op::Connect, key.slot, key.generation));
        true
    }

    pub(super) fn connected(&mut self, key: EndKey, result: std::io::Result<(Handle, Address)>) {
        let Some(dialer) = self.dialer(key) else {
            if let Ok((conn, _)) = result {
                self.backend.close(conn);
            }
            return;
        };
        if let State::Closing = dialer.state {
            self.dialers.remove(key.slot as usize);
            if let Ok((conn, _)) = result {
                self.backend.close(conn);
            }
            return;
        }
        match result {
            Ok((conn, address)) => {
                dialer.state = State::Linked;
                let (id, shard) = (dialer.socket, self.index);
                self.begin(id, conn, address, Origin::Dialer { shard, dialer: key });
            }
            Err(error) => {
                if !self.try_next(key) {
                    self.dial_later(key, &error.to_string(), false);
                }
            }
        }
    }

    /// The round failed, or its link has ended: the next one after a delay, which is long if the other end did not want us.
    pub(super) fn dial_later(&mut self, key: EndKey, error: &str, rejected: bool) {
        let now_ns = self.now_ns;
        let Some(dialer) = self.dialers.get_mut(key.slot as usize).filter(|d| d.generation == key.generation) else {
            return;
        };
        match dialer.state {
            State::Closing => {
                self.dialers.remove(key.slot as usize);
                return;
            }
            State::Waiting { .. } => return,
            State::Linked if !rejected => {
                dialer.backoff.reset();
                dialer.attempt = 0;
                dialer.candidates.clear();
            }
            _ => {}
        }
        // Once may be an accident that came soon after the handshake; twice in a row is a refusal.
        if rejected && dialer.unwanted {
            dialer.backoff.rejected();
        }
        dialer.unwanted = rejected;
        dialer.attempt += 1;
        let delay_ns = dialer.backoff.next(&mut self.rng);
        dialer.state = State::Waiting { until_ns: now_ns + delay_ns };
        self.timers.set(now_ns + delay_ns, Timer::Dialer(key));
        let event = Event::Reconnecting {
            endpoint: dialer.target.to_string(),
            attempt: dialer.attempt,
            delay: Duration::from_nanos(delay_ns),
            error: error.to_owned(),
        };
        if let Some(socket) = self.sockets.get(dialer.socket.index()).and_then(Option::as_ref) {
            report(&socket.shared, event);
        }
    }

    pub(super) fn dialer_due(&mut self, key: EndKey) {
        let now_ns = self.now_ns;
        let Some(dialer) = self.dialer(key) else { return };
        match dialer.state {
            State::Waiting { until_ns } if until_ns <= now_ns => self.dial_now(key),
            State::Connecting { deadline_ns } if deadline_ns <= now_ns => {
                self.backend.cancel(token(Op::Connect, key.slot, key.generation));
            }
            _ => {}
        }
    }

    pub(super) fn close_dialer(&mut self, key: EndKey) {
        let Some(dialer) = self.dialer(key) else { return };
        match std::mem::replace(&mut dialer.state, State::Closing) {
            State::Connecting { .. } => self.backend.cancel(token(Op::Connect, key.slot, key.generation)),
            State::Resolving | State::Closing => {}
            State::Linked | State::Waiting { .. } => {
                self.dialers.remove(key.slot as usize);
            }
        }
    }
}
