//! What drivers ask of the [`Network`], as they would of a system: what is ready, listening, connecting, accepting, reading and
//! writing, names. What a call sets on its way, [`travel`](super::travel) brings to its end.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use super::places::is_file;
use super::{BackendId, Event, Fault, Host, Id, MS, Mark, Network, Phase, Thing, Token};

/// As Unix numbers them.
const EMFILE: i32 = 24;
const ENOMEM: i32 = 12;

impl Network {
    pub(in crate::backend::sim) fn bell(&self, seat: BackendId) -> Waker {
        Waker::from(Arc::clone(&self.seats[seat.0].bell))
    }

    /// Takes a ring of the doorbell.
    pub(crate) fn take_bell(&mut self, seat: BackendId) -> bool {
        self.seats[seat.0].bell.0.swap(false, Ordering::SeqCst)
    }

    #[cfg_attr(not(all(target_os = "linux", feature = "uring")), allow(dead_code, reason = "only the simulated ring"))]
    pub(crate) fn waker(&self, seat: BackendId) -> Waker {
        self.bell(seat)
    }

    /// The next listener or connection where something has changed.
    pub(crate) fn next_ready(&mut self, seat: BackendId) -> Option<Id> {
        let id = self.seats[seat.0].ready.pop_front()?;
        match &mut self.things[id.0 as usize] {
            // It has moved since.
            Thing::End(end) if end.seat != seat => {}
            Thing::Listener { queued, .. } => *queued = false,
            Thing::End(end) => end.queued = false,
            Thing::Closed => {}
        }
        Some(id)
    }

    pub(crate) fn next_resolved(&mut self, seat: BackendId) -> Option<(Token, io::Result<Vec<SocketAddr>>)> {
        self.seats[seat.0].resolved.pop_front()
    }

    #[cfg_attr(not(all(target_os = "linux", feature = "uring")), allow(dead_code, reason = "only the simulated ring"))]
    pub(crate) fn has_resolved(&self, seat: BackendId) -> bool {
        !self.seats[seat.0].resolved.is_empty()
    }

    /// How a driver's turn ended.
    pub(crate) fn turned(&mut self, seat: BackendId, waiting_until_ns: u64, backlog: bool) {
        let seat = &mut self.seats[seat.0];
        (seat.waiting_until_ns, seat.backlog) = (waiting_until_ns, backlog);
    }

    /// A driver's turn begins: it does not wait.
    pub(crate) fn begin_turn(&mut self, seat: BackendId) {
        self.seats[seat.0].waiting_until_ns = 0;
    }

    /// Makes a driver look again at some time.
    #[cfg_attr(not(all(target_os = "linux", feature = "uring")), allow(dead_code, reason = "only the simulated ring"))]
    pub(crate) fn poke(&mut self, seat: BackendId, at_ns: u64) {
        self.schedule(at_ns, Event::Poke(seat));
    }

    pub(crate) fn listen(&mut self, seat: BackendId, address: SocketAddr) -> io::Result<(Id, SocketAddr)> {
        let host = self.seats[seat.0].host;
        let port = if address.port() == 0 { self.port() } else { address.port() };
        let address = if is_file(address) { address } else { SocketAddr::new(host.ip(), port) };
        if self.listeners.contains_key(&address) {
            return Err(ErrorKind::AddrInUse.into());
        }
        // A file where nobody listens is replaced, as the real drivers do.
        if is_file(address) && !self.files.insert(address) {
            self.faults.note(Fault::UnixStale);
        }
        let id = self.insert(Thing::Listener { address, seat, pending: VecDeque::new(), queued: false });
        self.listeners.insert(address, id);
        self.note("listen", u64::from(id.0), u64::from(port));
        Ok((id, address))
    }

    pub(crate) fn connect(&mut self, seat: BackendId, to: SocketAddr) -> io::Result<Id> {
        for (fault, errno) in [(Fault::ConnectEmfile, EMFILE), (Fault::ConnectEnomem, ENOMEM)] {
            if self.strikes(fault, 8) {
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        if is_file(to) && !self.listeners.contains_key(&to) {
            let stale = self.files.contains(&to);
            self.faults.note(if stale { Fault::UnixStale } else { Fault::UnixMissing });
            return Err(if stale { ErrorKind::ConnectionRefused } else { ErrorKind::NotFound }.into());
        }
        let host = self.seats[seat.0].host;
        let id = self.insert_end(seat, host, to, Phase::Connecting);
        self.note("connect", u64::from(id.0), u64::from(to.port()));
        let at_ns = self.now_ns + self.latency(id);
        self.schedule(at_ns, Event::Knock { from: id, to });
        Ok(id)
    }

    /// `None` while the connection is being made.
    pub(crate) fn connected(&self, id: Id) -> Option<io::Result<SocketAddr>> {
        let end = self.end(id)?;
        match end.state {
            Phase::Connecting => None,
            Phase::Open => Some(Ok(end.remote)),
            Phase::Failed(kind) => Some(Err(kind.into())),
        }
    }

    /// A connection that came in.
    pub(crate) fn accept(&mut self, id: Id) -> io::Result<(Id, SocketAddr)> {
        let refusals = [(Fault::AcceptEmfile, EMFILE), (Fault::AcceptEnomem, ENOMEM)];
        let refusal = refusals.into_iter().find(|(fault, _)| self.strikes(*fault, 8));
        let Thing::Listener { pending, .. } = &mut self.things[id.0 as usize] else {
            return Err(ErrorKind::NotConnected.into());
        };
        if pending.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        if let Some((_, errno)) = refusal {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let Some(conn) = pending.pop_front() else { return Err(ErrorKind::WouldBlock.into()) };
        if !self.is_local(conn) && self.strikes(Fault::AcceptAborted, 8) {
            self.reset_both(conn);
            self.close(conn);
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let remote = self.end(conn).map(|end| end.remote).ok_or(ErrorKind::ConnectionAborted)?;
        self.note("accept", u64::from(id.0), u64::from(conn.0));
        Ok((conn, remote))
    }

    /// Reads what has arrived; `Ok(0)` is the end of the stream.
    pub(crate) fn read(&mut self, id: Id, into: &mut [u8]) -> io::Result<usize> {
        let Some(end) = self.end(id).filter(|end| !end.closed) else { return Err(ErrorKind::NotConnected.into()) };
        let readable = end.pipe.readable;
        if readable == 0 {
            return match (end.state, end.error, end.pipe.ended) {
                (Phase::Connecting | Phase::Failed(_), ..) => Err(ErrorKind::NotConnected.into()),
                (_, Some(kind), _) => Err(kind.into()),
                (_, None, true) => Ok(0),
                (_, None, false) => Err(ErrorKind::WouldBlock.into()),
            };
        }
        let mut len = readable.min(into.len());
        if len > 1 && self.strikes(Fault::ShortRead, 3) {
            len = self.dice.magnitude(1, len as u64) as usize;
        }
        let latency_ns = self.latency(id);
        let Thing::End(end) = &mut self.things[id.0 as usize] else { return Err(ErrorKind::NotConnected.into()) };
        let (front, back) = end.pipe.bytes.as_slices();
        let first = len.min(front.len());
        into[..first].copy_from_slice(&front[..first]);
        into[first..len].copy_from_slice(&back[..len - first]);
        end.pipe.bytes.drain(..len);
        end.pipe.readable -= len;
        let twin = end.twin;
        if let Some(twin) = twin {
            let at_ns = self.now_ns + latency_ns;
            self.schedule(at_ns, Event::Ready(twin));
        }
        self.note("read", u64::from(id.0), len as u64);
        Ok(len)
    }

    /// Bytes that could be read now, or whether reading would say something else than "not now".
    pub(crate) fn is_readable(&self, id: Id) -> bool {
        self.end(id).is_none_or(|end| end.pipe.readable > 0 || end.error.is_some() || end.pipe.ended)
    }

    /// Hands bytes over, as many as there is room for.
    pub(crate) fn write<'a>(&mut self, id: Id, parts: impl Iterator<Item = &'a [u8]> + Clone) -> io::Result<usize> {
        let Some(end) = self.end(id).filter(|end| !end.closed) else { return Err(ErrorKind::NotConnected.into()) };
        if let Some(kind) = end.error {
            return Err(kind.into());
        }
        if end.state != Phase::Open {
            return Err(ErrorKind::NotConnected.into());
        }
        if end.shut {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let total: usize = parts.clone().map(<[u8]>::len).sum();
        let latency_ns = self.latency(id);
        let at_ns = self.now_ns + latency_ns;
        let Some(twin) = self.end(id).and_then(|end| end.twin) else {
            // Nobody is there any more: it seems to go out, and the answer is a reset.
            self.schedule(at_ns, Event::Reset(id));
            return Ok(total);
        };
        let window = self.weather.window_bytes;
        let Some(peer) = self.end(twin) else { return Ok(total) };
        let mut len = total.min(window.saturating_sub(peer.pipe.bytes.len()));
        if len == 0 && total > 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        if len > 1 && self.strikes(Fault::ShortWrite, 3) {
            len = self.dice.magnitude(1, len as u64) as usize;
        }
        if len > 0 {
            if let Thing::End(peer) = &mut self.things[twin.0 as usize] {
                let mut left = len;
                for part in parts {
                    let piece = &part[..left.min(part.len())];
                    peer.pipe.bytes.extend(piece);
                    left -= piece.len();
                }
            }
            self.mark_at(twin, Mark::Bytes(len), at_ns);
            self.note("write", u64::from(id.0), len as u64);
        }
        Ok(len)
    }

    /// Nothing more is sent.
    pub(crate) fn shutdown(&mut self, id: Id) {
        if let Thing::End(end) = &mut self.things[id.0 as usize]
            && !std::mem::replace(&mut end.shut, true)
            && let Some(twin) = end.twin
        {
            self.mark(twin, Mark::End);
        }
    }

    /// The owner lets go of a listener or of an end. Bytes that nobody read make it a reset.
    pub(crate) fn close(&mut self, id: Id) {
        match &mut self.things[id.0 as usize] {
            Thing::Listener { address, pending, .. } => {
                let (address, pending) = (*address, std::mem::take(pending));
                self.listeners.remove(&address);
                self.files.remove(&address);
                self.things[id.0 as usize] = Thing::Closed;
                for conn in pending {
                    self.close(conn);
                }
            }
            Thing::End(end) => {
                if std::mem::replace(&mut end.closed, true) {
                    return;
                }
                let (unread, shut) = (end.pipe.readable > 0, std::mem::replace(&mut end.shut, true));
                let twin = end.twin;
                if let Some(twin) = twin {
                    match (unread, shut) {
                        (true, _) => self.mark(twin, Mark::Reset),
                        (false, false) => self.mark(twin, Mark::End),
                        (false, true) => {}
                    }
                }
            }
            Thing::Closed => return,
        }
        self.note("close", u64::from(id.0), 0);
    }

    pub(crate) fn resolve(&mut self, seat: BackendId, host: &str, port: u16, token: Token) {
        let number = host.strip_prefix("host-").and_then(|rest| rest.parse::<u8>().ok());
        let result = match number {
            _ if self.strikes(Fault::ResolveFails, 4) => Err(ErrorKind::NotFound.into()),
            None => Err(ErrorKind::NotFound.into()),
            Some(number) => {
                let mut addresses = vec![SocketAddr::new(Host(number).ip(), port)];
                if self.strikes(Fault::ResolveStale, 4) {
                    // Either an empty house or an empty street.
                    let ghost = if self.dice.once_in(2) { Host(number) } else { Host(250) };
                    addresses.insert(0, SocketAddr::new(ghost.ip(), 9));
                }
                Ok(addresses)
            }
        };
        let at_ns = self.now_ns + self.dice.pick(0, 200 * MS);
        self.schedule(at_ns, Event::Resolved { seat, token, result });
    }
}
