//! One socket of the readiness driver: its pending operations, and the readiness that it is registered for.
//!
//! What the poller is told lags behind what the operations want on purpose: interest that is no longer wanted is dropped
//! only when it causes a useless event, so that a stream of sends or receives costs no registration calls at all.

use std::io::{self, IoSlice};
use std::mem;

use bytes::{Bytes, BytesMut};
use socket2::Socket;

use crate::backend::sockets::Listener;
use crate::backend::{Address, Outcome, SEND_SLICES_MAX, Token};

/// A listener or connection and what is pending on it.
pub(super) struct Entry {
    pub(super) endpoint: Endpoint,
    /// The pending accept, connect or receive.
    pub(super) incoming: Option<(Token, Incoming)>,
    pub(super) outgoing: Option<Sending>,
    /// What the poller was last told; `None`: it does not have this socket.
    pub(super) registered: Option<Interest>,
    /// Whether the entry is in the driver's list of registrations to look at.
    pub(super) dirty: bool,
    /// Whether the registration has to be made exact because it causes useless events.
    pub(super) shrink: bool,
    /// Whether the receive waits for a slab.
    pub(super) hungry: bool,
}

/// What kind of socket an entry is.
pub(super) enum Endpoint {
    Listener(Listener),
    /// A connection, or one that is being made.
    Stream(Socket, Address),
    /// Closed; the entry stays until the terminal completions of its operations have been delivered.
    Dead,
}

/// A pending operation that waits for readability (or, for a connect, writability).
pub(super) enum Incoming {
    Accept,
    Connect,
    Read(usize),
    Recv,
    RecvInto(BytesMut),
}

impl Incoming {
    /// The terminal outcome when the operation fails.
    pub(super) fn failed(self, error: io::Error) -> Outcome {
        match self {
            Incoming::Accept => Outcome::AcceptEnded(error),
            Incoming::Connect => Outcome::Connected(Err(error)),
            Incoming::Read(_) => Outcome::Read(Err(error)),
            Incoming::Recv => Outcome::RecvEnded(Err(error)),
            Incoming::RecvInto(buffer) => Outcome::Filled { buffer, result: Err(error) },
        }
    }
}

/// Readiness to be told about.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Interest {
    pub(super) read: bool,
    pub(super) write: bool,
}

impl Entry {
    pub(super) fn new(endpoint: Endpoint) -> Entry {
        let (registered, dirty, shrink, hungry) = (None, false, false, false);
        Entry { endpoint, incoming: None, outgoing: None, registered, dirty, shrink, hungry }
    }

    /// The socket, unless the entry is dead.
    pub(super) fn socket(&self) -> Option<&Socket> {
        match &self.endpoint {
            Endpoint::Listener(listener) => Some(&listener.socket),
            Endpoint::Stream(socket, _) => Some(socket),
            Endpoint::Dead => None,
        }
    }

    /// The connection's socket; `None` for listeners, dead entries and connections that are still being made.
    pub(super) fn stream(&self) -> Option<&Socket> {
        match (&self.endpoint, &self.incoming) {
            (_, Some((_, Incoming::Connect))) => None,
            (Endpoint::Stream(socket, _), _) => Some(socket),
            _ => None,
        }
    }

    /// What the pending operations need to hear about.
    pub(super) fn wanted(&self) -> Interest {
        let connecting = matches!(self.incoming, Some((_, Incoming::Connect)));
        Interest {
            read: self.incoming.is_some() && !connecting && !self.hungry,
            write: self.outgoing.is_some() || connecting,
        }
    }
}

/// A send that is not finished.
pub(super) struct Sending {
    pub(super) token: Token,
    slices: Vec<Bytes>,
    /// Bytes handed to the kernel so far.
    bytes: usize,
    /// The first slice that is not wholly handed over, and how much of it is.
    slice: usize,
    offset: usize,
}

impl Sending {
    pub(super) fn new(token: Token, slices: Vec<Bytes>) -> Sending {
        assert!(slices.len() <= SEND_SLICES_MAX, "at most SEND_SLICES_MAX slices");
        Sending { token, slices, bytes: 0, slice: 0, offset: 0 }
    }

    /// Hands over what the kernel takes now. `Ok(true)`: that was all of it. A partial write means that the kernel's
    /// buffer is full: asking again at once would only say so.
    pub(super) fn attempt(&mut self, socket: &Socket, calls: &mut u64) -> io::Result<bool> {
        let mut parts = [IoSlice::new(&[]); SEND_SLICES_MAX];
        let (mut count, mut total) = (0, 0);
        for (index, slice) in self.slices.iter().enumerate().skip(self.slice) {
            let part = if index == self.slice { &slice[self.offset..] } else { &slice[..] };
            if !part.is_empty() {
                parts[count] = IoSlice::new(part);
                count += 1;
                total += part.len();
            }
        }
        if total == 0 {
            return Ok(true);
        }
        loop {
            *calls += 1;
            match socket.send_vectored_with_flags(&parts[..count], SEND_FLAGS) {
                Ok(sent) => {
                    self.advance(sent);
                    return Ok(sent == total);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn advance(&mut self, sent: usize) {
        self.bytes += sent;
        let mut left = sent + mem::take(&mut self.offset);
        while let Some(slice) = self.slices.get(self.slice).filter(|slice| left >= slice.len()) {
            left -= slice.len();
            self.slice += 1;
        }
        self.offset = left;
    }

    /// The terminal outcome.
    pub(super) fn ended(self, error: Option<io::Error>) -> Outcome {
        Outcome::Sent { slices: self.slices, bytes: self.bytes, error }
    }
}

/// No SIGPIPE where that is a flag of the call (elsewhere it is an option that `socket2` sets).
const SEND_FLAGS: i32 = if cfg!(any(target_os = "linux", target_os = "android")) { 0x4000 } else { 0 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_goes_on_in_the_middle_of_a_slice() {
        let mut sending = Sending::new(Token(1), vec!["abc".into(), "".into(), "defg".into(), "h".into()]);
        for (sent, expect) in [(2, (0, 2)), (1, (2, 0)), (3, (2, 3)), (1, (3, 0)), (1, (4, 0))] {
            sending.advance(sent);
            assert_eq!((sending.slice, sending.offset), expect);
        }
        assert_eq!(sending.bytes, 8);
    }
}
