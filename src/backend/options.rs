//! Settings of the backend and of the sockets that it opens. Plain data: who applies a field is said beside it.

use std::time::Duration;

/// Which driver to use.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Choice {
    /// io_uring when a self-test of it passes, else readiness polling.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Readiness polling: epoll, kqueue, event ports or IOCP.
    Poll,
}

/// A driver that was opened.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// io_uring.
    Uring,
    /// Readiness polling: epoll, kqueue, event ports or IOCP.
    Poll,
    /// The simulated network of tests.
    Sim,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Uring => "uring",
            Kind::Poll => "poll",
            Kind::Sim => "sim",
        })
    }
}

/// Options of the operating system's sockets, for listeners (inherited by what they accept) and connections.
///
/// TCP options are skipped on unix sockets, and options that a platform lacks are skipped there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SocketOptions {
    /// TCP_NODELAY: small sends go out at once. Default true: the engine does its own batching.
    pub nodelay: bool,
    /// SO_SNDBUF in bytes (Linux doubles it and caps it at `net.core.wmem_max`): what a stalled peer can hold in the
    /// kernel. Default `None`: the system's automatic sizing.
    pub send_buffer_bytes: Option<usize>,
    /// SO_RCVBUF in bytes (Linux doubles it and caps it at `net.core.rmem_max`). Default `None`: automatic sizing.
    pub recv_buffer_bytes: Option<usize>,
    /// TCP keep-alive after this much idleness, probed at a third of it. Default `None`: off, the protocol has its own.
    pub keepalive: Option<Duration>,
    /// TCP_USER_TIMEOUT: how long sent data may stay unacknowledged before the connection is dead (Linux only).
    /// Default `None`: the system's retransmission limit, about 15 minutes.
    pub user_timeout: Option<Duration>,
    /// TCP_NOTSENT_LOWAT in bytes: the kernel takes no more while this much is not on the wire yet (Linux only). What it does not
    /// take waits in the log, where all peers share it, it is still in the caches, and policies for slow peers reach it. Default
    /// 256 KiB, what one send takes at most; `None`: as much as the send buffer holds.
    pub notsent_lowat_bytes: Option<u32>,
    /// Connections that may wait to be accepted; the system caps it (`net.core.somaxconn`). Default 4096.
    pub backlog: u32,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            send_buffer_bytes: None,
            recv_buffer_bytes: None,
            keepalive: None,
            user_timeout: None,
            notsent_lowat_bytes: Some(256 * 1024),
            backlog: 4096,
        }
    }
}

/// Size of the pool of receive slabs of one backend.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct PoolOptions {
    /// Slabs, `1..=32768`. Default 32.
    pub(crate) slab_count: usize,
    /// Bytes of each slab, at least 4096. Default 256 KiB. Memory is touched only when a slab is first used.
    pub(crate) slab_bytes: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { slab_count: 32, slab_bytes: 256 * 1024 }
    }
}

/// Settings of one backend.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct BackendOptions {
    /// Which driver. Default `Auto`.
    pub(crate) choice: Choice,
    /// The receive slabs.
    pub(crate) pool: PoolOptions,
    /// Entries of the submission queue of io_uring, rounded up to a power of two; the completion queue has 8 times as
    /// many. Default 256.
    pub(crate) ring_entries: u32,
    /// Slabs that io_uring's buffer ring holds at a time, from 1: fewer keep the caches warm, more let one visit to
    /// the kernel receive more. Default 4.
    pub(crate) ring_slabs: usize,
    /// Whether to use incrementally consumed buffers when the kernel has them (6.12 and later). Off, or on an older
    /// kernel, the pool's memory is cut into slabs of 16 KiB. Default true.
    pub(crate) incremental: bool,
}

impl Default for BackendOptions {
    fn default() -> Self {
        Self { choice: Choice::Auto, pool: PoolOptions::default(), ring_entries: 256, ring_slabs: 4, incremental: true }
    }
}
