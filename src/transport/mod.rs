//! Sans-IO adapters between a link's aiomsg bytes and the bytes on its connection, and the [`sniff`] that tells which
//! adapter an accepted connection needs.
//!
//! A transport turns ranges of finished frames into slices to send, and what the kernel received into aiomsg bytes.
//! [`Transport::Plain`] passes both through untouched, so the ranges stay shared. TLS (a bounded buffer per link) and
//! WebSocket (a header before the range) will be further variants; callers see the same two methods.
//!
//! Called by `shard`, which owns the connection. Never reads or writes one itself; no descriptor, clock or thread.

pub(crate) mod sniff;

pub(crate) use sniff::admit;

use bytes::Bytes;

/// How the aiomsg bytes of one link travel on its connection.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) enum Transport {
    /// The connection carries the aiomsg bytes as they are.
    #[default]
    Plain,
}

impl Transport {
    /// Takes a range of aiomsg bytes to send and appends the slices that carry it to `slices`. What was taken will be
    /// sent: the link may no longer skip it.
    #[inline]
    pub(crate) fn take(&mut self, range: Bytes, slices: &mut Vec<Bytes>) {
        match self {
            Transport::Plain => slices.push(range),
        }
    }

    /// The aiomsg bytes in what was received from the connection.
    #[inline]
    pub(crate) fn received<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match self {
            Transport::Plain => bytes,
        }
    }

    /// Whether received bytes are the aiomsg bytes, so that the kernel may write straight into a frame's final buffer.
    #[inline]
    pub(crate) fn passes_through(&self) -> bool {
        match self {
            Transport::Plain => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_shares_what_it_is_given() {
        let mut transport = Transport::default();
        let range = Bytes::from_static(b"\0\0\0\x01\x02");
        let mut slices = Vec::new();
        transport.take(range.clone(), &mut slices);
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0].as_ptr(), range.as_ptr());
        assert_eq!(transport.received(&range).as_ptr(), range.as_ptr());
        assert!(transport.passes_through());
    }
}
