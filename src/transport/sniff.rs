//! Telling what an accepted connection speaks by its first byte (protocol, "WebSocket": a binding end serves raw and
//! WebSocket peers on one port).
//!
//! A raw peer starts with the LENGTH of its HELLO, 18 as a big-endian u32, so with 0x00; an HTTP upgrade with the `G`
//! of `GET`; a TLS client with record type 0x16. Anything else is no peer of ours. Pure functions; called by `shard`
//! before it starts a handshake on an accepted connection.

use std::fmt;

/// What the first byte of an accepted connection announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sniff {
    /// 0x00: aiomsg frames, as they are.
    Raw,
    /// 0x47, `G`: an HTTP upgrade to WebSocket.
    WebSocket,
    /// 0x16: a TLS handshake record.
    Tls,
    /// Nothing that an aiomsg peer sends.
    Unknown,
}

/// Looks at the first byte that an accepted connection has sent.
pub(crate) fn sniff(first_byte: u8) -> Sniff {
    match first_byte {
        0x00 => Sniff::Raw,
        b'G' => Sniff::WebSocket,
        0x16 => Sniff::Tls,
        _ => Sniff::Unknown,
    }
}

/// Passes connections that this end can serve; today these are the raw ones.
pub(crate) fn admit(first_byte: u8) -> Result<(), SniffError> {
    match sniff(first_byte) {
        Sniff::Raw => Ok(()),
        Sniff::WebSocket => Err(SniffError::WebSocket),
        Sniff::Tls => Err(SniffError::Tls),
        Sniff::Unknown => Err(SniffError::NotAiomsg { first_byte }),
    }
}

/// Why an accepted connection was refused after its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum SniffError {
    /// The peer asks for a WebSocket.
    WebSocket,
    /// The peer starts TLS.
    Tls,
    /// The peer speaks something else.
    NotAiomsg {
        /// The first byte that it sent.
        first_byte: u8,
    },
}

impl fmt::Display for SniffError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SniffError::WebSocket => {
                f.write_str("the peer sent an HTTP request ('G'): WebSocket peers are not supported yet, connect with plain TCP")
            }
            SniffError::Tls => f.write_str(
                "the peer started TLS (0x16) on a port that serves plain TCP: turn TLS off there, or let a proxy end it here",
            ),
            SniffError::NotAiomsg { first_byte } => {
                write!(f, "the peer does not speak aiomsg: its first byte was 0x{first_byte:02x}, a HELLO starts with 0x00")
            }
        }
    }
}

impl std::error::Error for SniffError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_byte_has_one_verdict() {
        for byte in 0..=u8::MAX {
            let expected = match byte {
                0x00 => Sniff::Raw,
                0x47 => Sniff::WebSocket,
                0x16 => Sniff::Tls,
                _ => Sniff::Unknown,
            };
            assert_eq!(sniff(byte), expected);
            assert_eq!(admit(byte).is_ok(), byte == 0);
        }
    }

    #[test]
    fn refusals_say_what_came() {
        assert!(admit(b'G').unwrap_err().to_string().contains("WebSocket"));
        assert!(admit(0x16).unwrap_err().to_string().contains("TLS"));
        assert!(admit(0xff).unwrap_err().to_string().contains("0xff"));
    }
}
