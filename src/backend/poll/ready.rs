//! What the readiness driver does when the poller reports a socket: connect, accept, receive, go on sending.

use std::io::{self, Read};

use polling::PollMode;

use super::Poll;
use super::entry::{Endpoint, Incoming, Interest};
use crate::backend::{Address, Handle, Outcome, READ_MAX, ReadBuf, Token, fill, sockets};

/// Connections accepted for one report, so that a flood of them leaves time for the others.
const ACCEPTS_MAX: usize = 64;

/// A slab with less room than this is done; smaller pools use a quarter of a slab.
const SPARE_BYTES_MIN: usize = 16 * 1024;

/// Bytes received for one report before the other sockets have their turn, give or take the last call's.
const RECV_BYTES_MAX: usize = 1024 * 1024;

impl Poll {
    /// A report of the poller.
    pub(super) fn on_event(&mut self, key: usize, ready: Interest) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let wanted = entry.wanted();
        if self.mode == PollMode::Oneshot {
            entry.registered = Some(Interest { read: false, write: false });
            self.mark_dirty(key);
        } else if ready.read && !wanted.read || ready.write && !wanted.write {
            // Reported though nobody wants it any more (a hang-up is reported as both: then this changes nothing).
            entry.shrink = entry.registered != Some(wanted) || !wanted.read && !wanted.write;
            if entry.shrink {
                self.mark_dirty(key);
            }
        }
        if wanted.write {
            self.on_writable(key);
        }
        if wanted.read && ready.read {
            self.on_readable(key);
        }
    }

    fn on_writable(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        let Endpoint::Stream(socket, peer) = &entry.endpoint else { return };
        if matches!(entry.incoming, Some((_, Incoming::Connect))) {
            let result = match socket.take_error() {
                Ok(None) => sockets::connected(socket),
                Ok(Some(error)) | Err(error) => Err(error),
            };
            match result {
                // Not finished after all.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(error) => self.fail_incoming(key, error),
                Ok(_) => {
                    let peer = peer.clone();
                    if let Some((token, _)) = self.take_incoming(key) {
                        self.complete(token, Outcome::Connected(Ok((Handle(key as u32), peer))));
                    }
                }
            }
            return;
        }
        let Some(sending) = &mut entry.outgoing else { return };
        match sending.attempt(socket, &mut self.counters.syscalls) {
            Ok(true) => self.end_outgoing(key, None),
            Ok(false) => {}
            Err(error) => self.end_outgoing(key, Some(error)),
        }
    }

    fn on_readable(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        let Some((token, incoming)) = &mut entry.incoming else { return };
        let token = *token;
        let socket = match &entry.endpoint {
            Endpoint::Stream(socket, _) => socket,
            Endpoint::Listener(_) => return self.accept_ready(key, token),
            Endpoint::Dead => return,
        };
        let result = match incoming {
            Incoming::Read(len) => {
                let mut bytes = [0; READ_MAX];
                (&*socket).read(&mut bytes[..*len]).map(|len| Outcome::Read(Ok(ReadBuf::new(bytes, len))))
            }
            Incoming::RecvInto(buffer) => fill::recv_append(socket, buffer)
                .map(|len| Outcome::Filled { buffer: std::mem::take(buffer), result: Ok(len) }),
            Incoming::Recv => return self.receive(key, token),
            Incoming::Accept | Incoming::Connect => return,
        };
        self.counters.syscalls += 1;
        match result {
            Ok(outcome) => {
                self.take_incoming(key);
                self.complete(token, outcome);
            }
            Err(error) if is_not_now(&error) => {}
            Err(error) => self.fail_incoming(key, error),
        }
    }

    fn accept_ready(&mut self, key: usize, token: Token) {
        for _ in 0..ACCEPTS_MAX {
            let Endpoint::Listener(listener) = &self.entries[key].endpoint else { return };
            self.counters.syscalls += 1;
            let accepted = listener.socket.accept().and_then(|(socket, peer)| {
                socket.set_nonblocking(true)?;
                // An option that the system refuses here was accepted for the listener: nothing to lose a peer over.
                let _ = sockets::apply_accepted(&socket, &listener.options);
                Ok((socket, Address::from_sockaddr(&peer)?))
            });
            match accepted {
                Ok((socket, peer)) => {
                    let conn = self.insert(Endpoint::Stream(socket, peer.clone()));
                    self.complete(token, Outcome::Accepted { conn, peer });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if sockets::is_passing_accept_error(&error) => {}
                Err(error) => return self.fail_incoming(key, error),
            }
        }
    }

    /// Receives into shared slabs: again and again while there is as much as asked for, within limits.
    fn receive(&mut self, key: usize, token: Token) {
        let mut received = 0;
        while received < RECV_BYTES_MAX {
            let Some(slab) = self.roomy_slab() else {
                self.counters.enobufs += 1;
                self.hungry.push_back(key);
                let entry = &mut self.entries[key];
                (entry.hungry, entry.shrink) = (true, true);
                return self.mark_dirty(key);
            };
            let Some(mut socket) = self.entries[key].socket() else { return };
            self.counters.syscalls += 1;
            let spare = self.pool.spare(slab);
            let asked = spare.len();
            match socket.read(spare) {
                Ok(0) => {
                    self.take_incoming(key);
                    return self.complete(token, Outcome::RecvEnded(Ok(())));
                }
                Ok(len) => {
                    received += len;
                    self.received += len;
                    let lease = self.pool.lease(slab, len);
                    self.complete(token, Outcome::Received(lease));
                    if len < asked {
                        return;
                    }
                }
                Err(error) if is_not_now(&error) => return,
                Err(error) => return self.fail_incoming(key, error),
            }
        }
    }

    /// The slab to receive into: the current one while it has enough room, else the next.
    fn roomy_slab(&mut self) -> Option<u16> {
        let enough = SPARE_BYTES_MIN.min(self.pool.slab_bytes() / 4);
        if let Some(slab) = self.current {
            let spare = self.pool.spare(slab).len();
            if spare >= enough || spare > 0 && !self.pool.has_free() {
                return Some(slab);
            }
            self.pool.release(slab);
        }
        self.current = self.pool.take();
        self.current
    }
}

fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
