//! HELLO out, HELLO in (protocol, "Handshake"), with reads that take not a byte more: what follows the peer's HELLO
//! stays in the kernel for whoever gets the connection next.
//!
//! ```text
//!   connecting end                          binding end
//!   poll_transmit -> HELLO at once          first byte (the shard has sniffed it: raw)
//!                                           poll_transmit -> HELLO
//!   want() = 4, then 18: each end reads LENGTH, checks it, reads the rest, has the peer's identity
//! ```
//! Each byte is judged as soon as it is there: a stranger is turned away on the first byte that no HELLO has. The only
//! LENGTH that a HELLO can have is 18. Nothing but HELLO may be sent before the peer's was accepted.
//! Called by `shard`, one per connection in its handshake; the deadline for the whole is the shard's.

use std::fmt;

use super::frame::{self, HELLO_BYTES, LENGTH_BYTES, VERSION, kind};
use super::identity::Identity;

/// LENGTH of every HELLO.
const HELLO_LENGTH: u32 = (HELLO_BYTES - LENGTH_BYTES) as u32;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// Has dialed; speaks first.
    Connecting,
    /// Has accepted; speaks after it has seen the first byte.
    Binding,
}

/// One connection's handshake.
#[derive(Debug)]
pub(crate) struct Handshake {
    role: Role,
    own: Identity,
    /// The own HELLO was handed out.
    transmitted: bool,
    /// What has arrived of the peer's HELLO.
    received: [u8; HELLO_BYTES],
    /// How much of it.
    received_len: usize,
}

impl Handshake {
    /// A handshake in which this end is `role` and calls itself `own`.
    pub(crate) fn new(role: Role, own: Identity) -> Self {
        Self { role, own, transmitted: false, received: [0; HELLO_BYTES], received_len: 0 }
    }

    /// The HELLO to send, once: at once on the connecting end, after the first received byte on the binding end. To be
    /// asked at the start and after each [`handle_bytes`](Self::handle_bytes), also after the one that completes.
    pub(crate) fn poll_transmit(&mut self) -> Option<[u8; HELLO_BYTES]> {
        let may = self.role == Role::Connecting || self.received_len > 0;
        if self.transmitted || !may {
            return None;
        }
        self.transmitted = true;
        Some(frame::hello(&self.own))
    }

    /// How many bytes to read at most, and to pass to [`handle_bytes`](Self::handle_bytes), next; 0 when done.
    pub(crate) fn want(&self) -> usize {
        let boundary = if self.received_len < LENGTH_BYTES { LENGTH_BYTES } else { HELLO_BYTES };
        boundary - self.received_len
    }

    /// Takes what was read: at most [`want`](Self::want) bytes. Returns the peer's identity once its HELLO is complete.
    /// After an error the connection is to be closed.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<Identity>, HandshakeError> {
        assert!(bytes.len() <= self.want(), "more was read than wanted: it belongs to what follows the handshake");
        let before = self.received_len;
        self.received_len += bytes.len();
        self.received[before..self.received_len].copy_from_slice(bytes);
        let arrived = &self.received[..self.received_len];
        match frame::length(arrived) {
            Some(len) if len != HELLO_LENGTH => return Err(HandshakeError::BadLength { len }),
            _ => {}
        }
        if let Some(&kind) = arrived.get(4).filter(|&&kind| kind != kind::HELLO) {
            return Err(HandshakeError::NotHello { kind });
        }
        if let Some(&got) = arrived.get(5).filter(|&&got| got != VERSION) {
            return Err(HandshakeError::Version { got });
        }
        // Sixteen bytes are left exactly when all have arrived.
        Ok(arrived.get(6..).and_then(<[u8]>::first_chunk).map(|identity| Identity::from_bytes(*identity)))
    }

    /// The connection ended before the peer's HELLO was complete: says so, for the log.
    pub(crate) fn handle_end(&self) -> HandshakeError {
        HandshakeError::ClosedEarly { received: self.received_len }
    }
}

/// Why a handshake failed. In every case the peer is at fault or gone, and the connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum HandshakeError {
    /// The first frame cannot be a HELLO: its LENGTH is not 18.
    BadLength {
        /// LENGTH, in bytes.
        len: u32,
    },
    /// The first frame is of another type.
    NotHello {
        /// Its TYPE.
        kind: u8,
    },
    /// The peer speaks another version of the protocol.
    Version {
        /// The version in its HELLO.
        got: u8,
    },
    /// The peer closed the connection first.
    ClosedEarly {
        /// Bytes of its HELLO that had arrived.
        received: usize,
    },
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::BadLength { len } if len >> 16 == 0x1603 => {
                f.write_str("the peer speaks TLS where a plain HELLO was expected: set both ends alike")
            }
            HandshakeError::BadLength { len } if len.to_be_bytes() == *b"HTTP" => {
                f.write_str("the peer is an HTTP server, not an aiomsg one: check the address")
            }
            HandshakeError::BadLength { len } => {
                let began = len.to_be_bytes();
                write!(
                    f,
                    "the peer does not speak aiomsg: it began with \"{}\", not with a HELLO",
                    began.escape_ascii()
                )
            }
            HandshakeError::NotHello { kind } => {
                write!(f, "the peer's first frame is of type 0x{kind:02x}, not a HELLO (0x01)")
            }
            HandshakeError::Version { got } => {
                write!(f, "the peer speaks version {got} of the aiomsg protocol, this end speaks version {VERSION}")
            }
            HandshakeError::ClosedEarly { received: 0 } => {
                f.write_str("the peer closed the connection without a HELLO")
            }
            HandshakeError::ClosedEarly { received } => {
                write!(f, "the peer closed the connection after {received} of the {HELLO_BYTES} bytes of its HELLO")
            }
        }
    }
}

impl std::error::Error for HandshakeError {}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Identity = Identity::from_bytes([1; 16]);
    const PEER: Identity = Identity::from_bytes([2; 16]);

    /// Feeds `bytes` with reads of at most `read` bytes and never more than wanted.
    fn feed(handshake: &mut Handshake, mut bytes: &[u8], read: usize) -> Result<Option<Identity>, HandshakeError> {
        while !bytes.is_empty() && handshake.want() > 0 {
            let (now, later) = bytes.split_at(handshake.want().min(read).min(bytes.len()));
            bytes = later;
            if let Some(identity) = handshake.handle_bytes(now)? {
                return Ok(Some(identity));
            }
        }
        Ok(None)
    }

    #[test]
    fn split_at_every_byte() {
        let hello = frame::hello(&PEER);
        for role in [Role::Connecting, Role::Binding] {
            for read in 1..=HELLO_BYTES {
                for cut in 0..=HELLO_BYTES {
                    let mut handshake = Handshake::new(role, OWN);
                    assert_eq!(handshake.want(), 4);
                    let first = feed(&mut handshake, &hello[..cut], read).unwrap();
                    assert_eq!(first.is_some(), cut == HELLO_BYTES);
                    let second = feed(&mut handshake, &hello[cut..], read).unwrap();
                    assert_eq!(first.or(second), Some(PEER));
                    assert_eq!(handshake.want(), 0);
                }
            }
        }
    }

    #[test]
    fn who_speaks_first() {
        let mut connecting = Handshake::new(Role::Connecting, OWN);
        assert_eq!(connecting.poll_transmit(), Some(frame::hello(&OWN)));
        assert_eq!(connecting.poll_transmit(), None);
        let mut binding = Handshake::new(Role::Binding, OWN);
        assert_eq!(binding.poll_transmit(), None);
        assert_eq!(binding.handle_bytes(&[]), Ok(None));
        assert_eq!(binding.poll_transmit(), None);
        assert_eq!(binding.handle_bytes(&[0]), Ok(None));
        assert_eq!(binding.poll_transmit(), Some(frame::hello(&OWN)));
        assert_eq!(binding.handle_bytes(&[0, 0, 18]), Ok(None));
        assert_eq!(binding.poll_transmit(), None);
    }

    #[test]
    fn strangers_are_turned_away_on_the_first_wrong_byte() {
        let hello = frame::hello(&PEER);
        let cases = [
            (3, 19, HandshakeError::BadLength { len: 19 }),
            (3, 0, HandshakeError::BadLength { len: 0 }),
            (0, 0x80, HandshakeError::BadLength { len: 0x8000_0012 }),
            (4, 3, HandshakeError::NotHello { kind: 3 }),
            (5, 2, HandshakeError::Version { got: 2 }),
        ];
        for (at, byte, error) in cases {
            for read in 1..=HELLO_BYTES {
                let mut bytes = hello;
                bytes[at] = byte;
                let mut handshake = Handshake::new(Role::Binding, OWN);
                assert_eq!(feed(&mut handshake, &bytes[..=at.max(3)], read), Err(error));
                assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn an_early_end_says_how_far_it_came() {
        let mut handshake = Handshake::new(Role::Connecting, OWN);
        assert_eq!(handshake.handle_end(), HandshakeError::ClosedEarly { received: 0 });
        handshake.handle_bytes(&[0, 0]).unwrap();
        assert!(handshake.handle_end().to_string().contains("2 of the 22"));
    }

    #[test]
    fn common_strangers_are_named() {
        let mut handshake = Handshake::new(Role::Connecting, OWN);
        let error = handshake.handle_bytes(&[0x16, 3, 1, 2]).unwrap_err();
        assert!(error.to_string().contains("TLS"));
        let error = Handshake::new(Role::Connecting, OWN).handle_bytes(b"HTTP").unwrap_err();
        assert!(error.to_string().contains("HTTP"));
    }
}
