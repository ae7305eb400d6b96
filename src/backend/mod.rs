//! Completion-shaped access to the operating system: sockets, accept, connect, receive, send, name resolution, clock and
//! doorbell behind one trait, [`Backend`], with two drivers: `uring` (io_uring, Linux) and `poll` (epoll, kqueue, IOCP).
//!
//! The shard submits operations named by [`Token`]s and calls [`Backend::turn`]; what happened comes back as
//! [`Completion`]s. Invariants that both drivers keep and `tests` checks on both:
//! - every operation ends with exactly one terminal completion, also when it is cancelled or its handle is closed;
//! - "would block" never leaves a driver, and neither does a receive that merely has to be armed again;
//! - a buffer given to an operation is the driver's until that operation's terminal completion gives it back;
//! - completions are produced by `turn` only: submitting never calls back.
//!
//! Only `shard` (and `engine`, which opens the backend) calls in here. Nothing here knows frames, links or sockets of
//! the messaging kind, and no call blocks except `turn`.

mod address;
mod fill;
#[cfg(target_os = "linux")]
mod inherited;
mod open;
mod options;
mod poll;
mod pool;
#[cfg(any(test, feature = "fuzzing"))]
mod pool_ops;
mod resolver;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod sim;
mod sockets;
#[cfg(test)]
mod tests;
mod tokens;
mod unacknowledged;
#[cfg(all(target_os = "linux", feature = "uring"))]
mod uring;

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::OnceLock;
use std::task::Waker;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

pub use address::Address;
pub(crate) use open::open;
#[cfg(test)]
use open::probe;
pub(crate) use options::{BackendOptions, PoolOptions};
pub use options::{Choice, Kind, SocketOptions};
pub(crate) use pool::Lease;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use pool_ops::pool_ops;
pub(crate) use sockets::Stream;

/// The most bytes that one [`Backend::read`] can ask for.
pub(crate) const READ_MAX: usize = 64;

/// The most slices that one [`Backend::send`] can take.
pub(crate) const SEND_SLICES_MAX: usize = 64;

/// The most completions that one [`Backend::turn`] appends, give or take the last event's few.
pub(crate) const TURN_COMPLETIONS_MAX: usize = 1024;

/// Names one operation; chosen by the shard, unique among the pending ones, comes back in its completions.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Token(pub(crate) u64);

/// A listener or connection that the backend owns. Never reused while an operation on it is pending.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Handle(pub(crate) u32);

/// What a shard asks of the operating system. See the module's invariants; `poll` and `uring` implement it.
///
/// A connection has at most one receiving operation (`read`, `recv` or `recv_into`) and one send pending; a second one
/// is a programming error and panics. An operation on a dead or wrong handle completes with `NotConnected`.
pub(crate) trait Backend {
    /// Which driver this is.
    fn kind(&self) -> Kind;

    /// Nanoseconds on the monotonic clock that deadlines refer to; the same clock for all backends of the process.
    fn now_ns(&self) -> u64;

    /// The doorbell: makes the current or the next `turn` that would wait return. Thread-safe, cheap when already rung.
    fn waker(&self) -> Waker;

    /// Opens a listener and returns the address that it is bound to (the real port for port 0). A socket file that
    /// nobody listens on is replaced.
    fn listen(&mut self, address: &Address, options: &SocketOptions) -> io::Result<(Handle, Address)>;

    /// Starts accepting: [`Outcome::Accepted`] until [`Outcome::AcceptEnded`].
    fn accept(&mut self, listener: Handle, token: Token);

    /// Connects: one [`Outcome::Connected`].
    fn connect(&mut self, address: &Address, options: &SocketOptions, token: Token);

    /// Resolves a name on a helper thread, an IP literal at once: one [`Outcome::Resolved`].
    fn resolve(&mut self, host: &str, port: u16, token: Token);

    /// Reads `1..=len` bytes and not one more (`len <= READ_MAX`): one [`Outcome::Read`]; no bytes mean the end.
    fn read(&mut self, conn: Handle, len: usize, token: Token);

    /// Receives into shared slabs: [`Outcome::Received`] until [`Outcome::RecvEnded`]. What arrived before a
    /// cancellation took effect is still delivered, ahead of the terminal completion.
    fn recv(&mut self, conn: Handle, token: Token);

    /// Receives once into the spare capacity of `buffer` (which must not be empty): one [`Outcome::Filled`].
    fn recv_into(&mut self, conn: Handle, buffer: BytesMut, token: Token);

    /// Sends all of `slices` (at most [`SEND_SLICES_MAX`]): one [`Outcome::Sent`].
    fn send(&mut self, conn: Handle, slices: Vec<Bytes>, token: Token);

    /// Asks a pending operation to end. Its terminal completion still comes, and says what was done before: it may have
    /// succeeded. An unknown token is ignored.
    fn cancel(&mut self, token: Token);

    /// Bytes of a connection that the kernel has and the other end has not taken yet, where the system tells (Linux).
    fn unacknowledged(&self, _conn: Handle) -> Option<u64> {
        None
    }

    /// Closes the write side: the peer sees the end of the stream after what was sent.
    fn shutdown(&mut self, conn: Handle);

    /// Cancels what is pending on the handle and releases it after the last terminal completion. The handle is dead for
    /// new operations at once; data that still arrives for it may be delivered and is to be ignored.
    fn close(&mut self, handle: Handle);

    /// Takes an idle connection out, to move it to another shard; `None` (and no change) while an operation is pending.
    fn detach(&mut self, conn: Handle) -> Option<Stream>;

    /// Takes in a connection that another backend detached.
    fn attach(&mut self, stream: Stream) -> io::Result<Handle>;

    /// The receive slabs, for the decision to lend or to copy.
    fn slabs(&self) -> Slabs;

    /// Submits what is queued, waits for a completion, the doorbell or the deadline (`0`: does not wait, `u64::MAX`: no
    /// deadline), and appends completions, about [`TURN_COMPLETIONS_MAX`] at most. May return early with nothing.
    ///
    /// # Errors
    /// Only when the backend is broken for good.
    fn turn(&mut self, deadline_ns: u64, out: &mut Vec<Completion>) -> io::Result<()>;

    /// Receives from the connection that received last, by a call of its own, if nothing else comes first: for who turns again at
    /// once until something comes. True if that gave an [`Outcome::Received`]; then not again before the next `turn`.
    fn recv_directly(&mut self, _out: &mut Vec<Completion>) -> bool {
        false
    }

    /// Totals since the backend was opened.
    fn counters(&self) -> Counters;
}

/// Something that happened to one operation.
#[derive(Debug)]
pub(crate) struct Completion {
    /// The operation.
    pub(crate) token: Token,
    /// What happened to it.
    pub(crate) outcome: Outcome,
}

/// What happened to an operation. All are terminal except `Accepted` and `Received`.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A connection came in; more may follow.
    Accepted {
        /// The new connection.
        conn: Handle,
        /// Its remote address.
        peer: Address,
    },
    /// Accepting ended: cancelled, or out of descriptors or memory (accept again later).
    AcceptEnded(io::Error),
    /// The connection and its remote address, or why there is none.
    Connected(io::Result<(Handle, Address)>),
    /// The addresses of the name, in the resolver's order; not empty.
    Resolved(io::Result<Vec<SocketAddr>>),
    /// What [`Backend::read`] read; empty at the end of the stream.
    Read(io::Result<ReadBuf>),
    /// Received bytes, never none; more may follow.
    Received(Lease),
    /// [`Backend::recv`] ended: `Ok` at the end of the stream.
    RecvEnded(io::Result<()>),
    /// [`Backend::recv_into`] ended; its buffer comes back, longer by the result. `Ok(0)` is the end of the stream.
    Filled {
        /// The buffer that was given.
        buffer: BytesMut,
        /// How many bytes were appended to it.
        result: io::Result<usize>,
    },
    /// [`Backend::send`] ended; `error` is `None` exactly when all was handed to the kernel.
    Sent {
        /// What was to be sent, unchanged; the vector can be used again.
        slices: Vec<Bytes>,
        /// How many bytes were handed to the kernel.
        bytes: usize,
        /// Why it was not all of them.
        error: Option<io::Error>,
    },
}

/// Receive slabs, by count.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Slabs {
    /// Slabs that hold no received bytes.
    pub(crate) free: usize,
    /// All slabs of the pool.
    pub(crate) total: usize,
}

/// Totals of one backend, for `stats` and for tests of its economy.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counters {
    /// Visits to the kernel to submit, wait, receive or send (the set-up of sockets not counted).
    pub(crate) syscalls: u64,
    /// Operations handed to the kernel, internal repeats and cancellations included.
    pub(crate) submissions: u64,
    /// Completions given to the shard.
    pub(crate) completions: u64,
    /// Times that a receive found no slab.
    pub(crate) enobufs: u64,
    /// Times that the kernel's completion queue was full.
    pub(crate) cq_overflows: u64,
    /// Operations armed again without the shard's doing.
    pub(crate) rearms: u64,
}

/// The few bytes that one [`Backend::read`] got.
#[derive(Copy, Clone)]
pub(crate) struct ReadBuf {
    bytes: [u8; READ_MAX],
    len: u8,
}

impl ReadBuf {
    /// The first `len` of `bytes`.
    fn new(bytes: [u8; READ_MAX], len: usize) -> Self {
        assert!(len <= READ_MAX);
        Self { bytes, len: len as u8 }
    }
}

impl Deref for ReadBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for ReadBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadBuf({:02x?})", &**self)
    }
}

/// Whether an operation ended because it was cancelled or its handle was closed.
pub(crate) fn is_cancelled(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Cancelled>())
}

/// The error of cancelled operations.
fn cancelled() -> io::Error {
    io::Error::other(Cancelled)
}

/// The error of operations on a handle that is no (longer a) connection or listener.
fn dead_handle() -> io::Error {
    io::Error::from(io::ErrorKind::NotConnected)
}

#[derive(Debug)]
struct Cancelled;

impl std::fmt::Display for Cancelled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the operation was cancelled")
    }
}

impl std::error::Error for Cancelled {}

/// Nanoseconds since the process first asked, plus one: never 0, which means "do not wait" as a deadline.
pub(crate) fn monotonic_ns() -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    EPOCH.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
}
