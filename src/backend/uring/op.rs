//! Pending operations of the io_uring driver and what they own.
//!
//! ```text
//! Queued --push--> Armed --last completion--> finished, or Queued again (re-armed), or Hungry
//!    ^                                                                                  |
//!    +--------------------------------- a slab came back --------------------------------+
//! ```
//! While an operation is `Armed` the kernel may read or write the memory that its `Work` owns: the operation is neither
//! dropped nor is that memory touched until the last completion.

use std::mem;

use bytes::{Bytes, BytesMut};
use socket2::SockAddr;

use super::message::Message;
use super::seam::Request;
use crate::backend::{Outcome, READ_MAX, Token};

/// One operation.
pub(super) struct Op {
    pub(super) token: Token,
    /// Its listener or connection.
    pub(super) conn: usize,
    /// Distinguishes it from earlier operations with the same key.
    pub(super) serial: u32,
    pub(super) state: State,
    /// The shard does not want it any more: it ends at the next occasion instead of going on.
    pub(super) cancelled: bool,
    /// The errno that a direct receive has found, which the kernel does not tell twice; 0 if none.
    pub(super) errno: i32,
    pub(super) work: Work,
}

/// Where an operation is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// In the driver's queue.
    Queued,
    /// In the kernel.
    Armed,
    /// A receive that waits for a slab.
    Hungry,
}

/// What an operation does, and the memory that it lends to the kernel.
pub(super) enum Work {
    Accept,
    Connect(Box<SockAddr>),
    Read(Box<[u8; READ_MAX]>, usize),
    Recv,
    RecvInto(BytesMut),
    Send(Box<Sending>),
}

impl Work {
    /// The request for what is still to be done, and how many bytes it sends.
    pub(super) fn request(&mut self, socket: i32) -> (Request, usize) {
        match self {
            Work::Accept => (Request::Accept { socket }, 0),
            Work::Connect(to) => (Request::Connect { socket, to: &raw const **to }, 0),
            Work::Read(bytes, len) => (Request::Recv { socket, memory: bytes.as_mut_ptr(), len: *len as u32 }, 0),
            Work::Recv => (Request::RecvMulti { socket }, 0),
            Work::RecvInto(buffer) => {
                let spare = buffer.spare_capacity_mut();
                let len = spare.len().min(RECV_BYTES_MAX) as u32;
                (Request::Recv { socket, memory: spare.as_mut_ptr().cast(), len }, 0)
            }
            Work::Send(sending) => sending.request(socket),
        }
    }

    /// The terminal outcome of an operation that failed or was cancelled.
    pub(super) fn failed(self, error: std::io::Error) -> Outcome {
        match self {
            Work::Accept => Outcome::AcceptEnded(error),
            Work::Connect(_) => Outcome::Connected(Err(error)),
            Work::Read(..) => Outcome::Read(Err(error)),
            Work::Recv => Outcome::RecvEnded(Err(error)),
            Work::RecvInto(buffer) => Outcome::Filled { buffer, result: Err(error) },
            Work::Send(mut sending) => sending.ended(Some(error)),
        }
    }
}

/// The most that one receive asks for: results are signed 32-bit numbers.
const RECV_BYTES_MAX: usize = 1 << 30;

/// A send: the caller's slices, and how the kernel was told about them.
pub(super) struct Sending {
    pub(super) slices: Vec<Bytes>,
    /// All bytes of the slices.
    pub(super) total: usize,
    /// Bytes handed to the kernel so far.
    pub(super) sent: usize,
    message: Message,
}

impl Sending {
    pub(super) fn new() -> Sending {
        Sending { slices: Vec::new(), total: 0, sent: 0, message: Message::new() }
    }

    /// Takes on the slices of a new send.
    pub(super) fn begin(&mut self, slices: Vec<Bytes>) {
        self.total = slices.iter().map(Bytes::len).sum();
        self.sent = 0;
        self.slices = slices;
    }

    fn request(&mut self, socket: i32) -> (Request, usize) {
        let left = self.message.describe(&self.slices, self.sent);
        let mut parts = self.message.parts();
        match (parts.next(), parts.len()) {
            (Some((memory, len)), 0) => {
                let len = len.min(RECV_BYTES_MAX) as u32;
                (Request::Send { socket, memory, len }, left)
            }
            _ => (Request::SendMessage { socket, message: &raw const self.message }, left),
        }
    }

    /// The terminal outcome; what is left of `self` can be used again.
    pub(super) fn ended(&mut self, error: Option<std::io::Error>) -> Outcome {
        Outcome::Sent { slices: mem::take(&mut self.slices), bytes: self.sent, error }
    }
}
