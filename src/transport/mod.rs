//! What a connection's bytes are wrapped in, told from its first byte ([`sniff`]). Plain connections carry the aiomsg bytes as they
//! are: ranges of the log go to the kernel, and received bytes to the deframer, untouched. TLS (a bounded buffer per link) and
//! WebSocket (a header before each range) will stand here, between the link and its connection.
//!
//! Sans IO: called by `shard`, which owns the connection; no descriptor, clock or thread.

pub(crate) mod sniff;

pub(crate) use sniff::admit;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use sniff::{Sniff, sniff};
