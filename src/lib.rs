#![doc = include_str!("../README.md")]
//!
//! # The layers
//!
//! ```text
//! socket   the public API: builder, async and blocking calls, streams, events, counters
//! engine   owns the threads: N shards, or none (inline)
//! shard    one reactor and all it owns: links, listeners, dialers, timers, its part of each socket
//!   |-- protocol    frames, handshake, heartbeat, routing: no descriptor, clock or thread
//!   |-- log         what was sent: chunks, cursors, a byte budget
//!   |-- transport   what a byte stream is wrapped in
//!   |-- queue       paths between threads, and the doorbell
//!   |-- backend     completion-shaped I/O: uring or poll
//! ```
//!
//! A row imports only from rows below it; the five lowest do not know each other and meet in `shard`. `copy` is in no row.

mod backend;
#[cfg(feature = "bench-internals")]
#[doc(hidden)]
pub mod bench_support;
mod copy;
mod engine;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod log;
pub mod manual;
mod protocol;
mod queue;
#[doc(hidden)]
pub mod sabotage;
mod shard;
#[cfg(any(test, feature = "simulation"))]
#[doc(hidden)]
pub mod simulation;
mod socket;
mod transport;

pub use backend::{Address, Choice as Backend, Kind as BackendKind, SocketOptions};
pub use engine::{Engine, EngineBuilder, EngineError, EngineInfo};
pub use protocol::{Identity, IdentityError};
pub use shard::{
    AckMode, DeliveryGuarantee, DisconnectReason, DropCause, Drops, Event, Lag, LagLimit, PeerStats, RejectReason,
    Replay, Retention, RoundTrips, SendMode, ShardStats, SlowPolicy, SocketId, Stats, Unkeyed, UnknownName,
};
#[cfg(feature = "json")]
pub use socket::JsonError;
pub use socket::{
    Batch, BindError, BindOptions, BuildError, CloseReport, ConnectError, ControlError, Endpoint, EndpointError,
    Events, IdentityMessages, Key, MessageSink, Messages, Metrics, Payload, Payloads, Received, RecvError, SendError,
    Socket, SocketBuilder, Søcket, TryRecvError, TrySendError, Undelivered, WaitError, blocking, inline,
};
