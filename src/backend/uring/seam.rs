//! The seam below the io_uring driver: what its bookkeeping asks of a ring, and nothing more.
//!
//! [`super::ring::KernelRing`] is the real one. A simulator implements the same trait to play the kernel: it may complete
//! requests in any order, in part, late, not at all before a cancellation, or with any error that the kernel could give,
//! and it may write to the memory of a request until it has posted that request's last [`Cqe`].

use std::io;
use std::ptr::NonNull;
use std::task::Waker;

use socket2::SockAddr;

use super::message::Message;
use crate::backend::options::PoolOptions;
use crate::backend::sockets::Stream;
use crate::backend::{Address, Completion, SocketOptions, Token};

/// A submission and a completion queue, a ring of receive buffers, and the sockets that they work on.
pub(super) trait Ring {
    /// An open listener or connection; dropping it closes it.
    type Socket;

    /// Nanoseconds on the monotonic clock.
    fn now_ns(&self) -> u64;

    /// Rings the doorbell, from any thread: completes an armed [`Request::Bell`].
    fn waker(&self) -> Waker;

    /// Allows the next ring of the doorbell to get through. To be called before looking at what it was rung for.
    fn silence(&mut self);

    /// Queues a request for the next [`Ring::enter`]; false when the submission queue is full.
    fn push(&mut self, sqe: Sqe) -> bool;

    /// Whether `enter` has something to do even without waiting: requests to submit, completions to flush.
    fn needs_enter(&self) -> bool;

    /// Submits, and with a deadline (ns; `u64::MAX`: none) waits for a completion. May return early.
    ///
    /// # Errors
    /// Only when the ring is broken: passing shortages are not errors.
    fn enter(&mut self, wait_until_ns: Option<u64>) -> io::Result<()>;

    /// Whether completions wait because the completion queue is full.
    fn has_overflowed(&self) -> bool;

    /// Takes the oldest completion.
    fn reap(&mut self) -> Option<Cqe>;

    /// The pool whose slabs fit the buffer ring: count and size are the ring's choice.
    fn pool_options(&self) -> PoolOptions;

    /// How many slabs the buffer ring should hold.
    fn slabs_wanted(&self) -> usize;

    /// Adds a slab to the buffer ring. Its memory is the ring's until a [`Cqe`] says that it is used up.
    fn provide(&mut self, slab: u16, memory: NonNull<u8>, len: usize);

    /// Opens a listener; says where it is bound.
    fn listen(&mut self, address: &Address, options: &SocketOptions) -> io::Result<(Self::Socket, Address)>;

    /// A socket that can connect to `to`.
    fn open_stream(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<Self::Socket>;

    /// The socket that an accept completed with; to be called once for each.
    fn adopt(&mut self, accepted: i32) -> Self::Socket;

    /// The number that requests name the socket by.
    fn id(&self, socket: &Self::Socket) -> i32;

    /// The remote address of a connection.
    fn peer(&self, socket: &Self::Socket) -> io::Result<Address>;

    /// The remote address of a connection that was just made, or why it is of no use.
    fn connected(&self, socket: &Self::Socket) -> io::Result<Address>;

    /// Bytes that were sent and that the other end has not taken yet, where that is known.
    fn unacknowledged(&self, _socket: &Self::Socket) -> Option<u64> {
        None
    }

    /// Sends as much as fits at once, by a call of its own; nothing where that is of no use now.
    fn send_now(&mut self, socket: &Self::Socket, bytes: &[u8]) -> usize;

    /// Receives what is there at once, by a call of its own: how many bytes, 0 if there are none, or a negated errno. 0 as well
    /// where it could overtake a completion: one that was not reaped, or one that comes by itself.
    fn recv_now(&mut self, socket: &Self::Socket, into: &mut [u8]) -> i32;

    /// Closes the write side.
    fn shutdown(&self, socket: &Self::Socket);

    /// Gives a connection away; `None` for a listener.
    fn release(&mut self, socket: Self::Socket) -> Option<Stream>;

    /// Takes in a connection.
    fn attach(&mut self, stream: Stream) -> io::Result<Self::Socket>;

    /// Starts a lookup.
    fn resolve(&mut self, host: &str, port: u16, token: Token);

    /// Cancels a lookup; false when there is none with this token.
    fn cancel_resolve(&mut self, token: Token) -> bool;

    /// Whether a lookup is done that [`Ring::resolved`] will report without the doorbell's having rung.
    fn has_resolved(&self) -> bool;

    /// Appends the lookups that are done.
    fn resolved(&mut self, out: &mut Vec<Completion>);
}

/// A submission: `user_data` comes back in all of its completions.
#[derive(Clone, Debug)]
pub(super) struct Sqe {
    pub(super) user_data: u64,
    pub(super) request: Request,
}

/// What is asked. The memory behind pointers belongs to the ring until the request's last completion.
#[derive(Clone, Debug)]
pub(super) enum Request {
    /// Accept connections until cancelled (multishot).
    Accept { socket: i32 },
    /// Connect to the address.
    Connect { socket: i32, to: *const SockAddr },
    /// Receive once, at most `len` bytes, into `memory`.
    Recv { socket: i32, memory: *mut u8, len: u32 },
    /// Receive into the buffer ring until cancelled (multishot).
    RecvMulti { socket: i32 },
    /// Send all of it (MSG_WAITALL).
    Send { socket: i32, memory: *const u8, len: u32 },
    /// Send all parts of the message (MSG_WAITALL).
    SendMessage { socket: i32, message: *const Message },
    /// Cancel the request with this `user_data`.
    Cancel { target: u64 },
    /// Complete whenever the doorbell rings (multishot).
    Bell,
}

/// A completion.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Cqe {
    pub(super) user_data: u64,
    /// A count, a descriptor, or a negated errno.
    pub(super) result: i32,
    /// Whether the request will complete again.
    pub(super) more: bool,
    /// The slab that was written to.
    pub(super) slab: Option<u16>,
    /// Whether the ring will write more to that slab.
    pub(super) slab_more: bool,
}
