//! The aiomsg protocol, version 1, sans IO: what the bytes mean and when they are due, one file per concern.
//!
//! ```text
//!            0       4      5                                   4 + LENGTH
//!  frame     | LENGTH | TYPE |  BODY                                |     LENGTH: u32 big-endian, counts TYPE and BODY
//!                     |<------------- envelope ------------------->|
//!
//!  HELLO     00 00 00 12  01  VERSION=01  IDENTITY (16)                  first frame of each end, once
//!  HEARTBEAT 00 00 00 01  02                                             after 5 s in which nothing was sent
//!  DATA      LENGTH       03  PAYLOAD (0 or more)                        at most once
//!  DATA_REQ  LENGTH       04  MSG_ID (16)  PAYLOAD (0 or more)           at least once: wants an ACK
//!  ACK       00 00 00 11  05  MSG_ID (16)                                on the connection where the DATA_REQ came
//! ```
//! After the handshake, frames of another type, empty envelopes (LENGTH = 0), a second HELLO and bodies too short for
//! their type are skipped and never fatal. A frame longer than the local limit ends the connection.
//!
//! | file | section of the protocol | what |
//! |---|---|---|
//! | [`frame`] | Frames | the bytes of each frame, and the walk over a run of whole frames |
//! | [`deframe`] | Frames | a stream of received bytes cut into whole frames |
//! | [`identity`] | Handshake | the 16 bytes that name a socket |
//! | [`handshake`] | Handshake | HELLO out, HELLO in, with exact reads |
//! | [`liveness`] | Liveness | when to send HEARTBEAT, when a peer is suspect or dead |
//! | [`backoff`] | Connections | how long a dialer waits before it tries again |
//! | [`circle`] | Connections | whose turn it is under ROUNDROBIN |
//! | [`delivery`] | Delivery guarantee | fresh message ids, what is unacknowledged, what was seen before |
//! | [`rng`] | | seeded randomness for all of the above |
//!
//! The machines have methods of four kinds: getters; `handle_*` for what happens outside; `poll*` and `next*` for what
//! they want done; `deadline_ns` for when they want to be asked again. Time (`now_ns`, nanoseconds on a monotonic clock)
//! and randomness are arguments: the same calls give the same answers. No descriptor, clock, thread or unsafe code.
//! Called by `shard`; the walk over received frames also by `socket`.

pub(crate) mod backoff;
pub(crate) mod circle;
pub(crate) mod deframe;
pub(crate) mod delivery;
pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod identity;
pub(crate) mod liveness;
pub(crate) mod rng;

pub use identity::{Identity, IdentityError};

pub(crate) use backoff::{Backoff, BackoffConfig};
pub(crate) use circle::Circle;
pub(crate) use deframe::{Deframer, FrameError};
pub(crate) use delivery::ids::IdSet;
pub(crate) use delivery::pending::{Overdue, Pending, PendingConfig, Waiting};
pub(crate) use delivery::window::Windows;
pub(crate) use delivery::{IdHash, MsgIds};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use frame::payload_of;
pub(crate) use frame::{HEARTBEAT, MsgId, ack, data_head, data_req_head, next_message};
pub(crate) use handshake::{Handshake, Role};
pub(crate) use liveness::{Due, Liveness, LivenessConfig};
pub(crate) use rng::Rng;
