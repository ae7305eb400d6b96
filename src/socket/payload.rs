//! What an application gives to `send`, and what it gets in batches.

use std::sync::Arc;

use bytes::Bytes;

use crate::protocol::{self, Identity};
use crate::shard::{Ack, AckMode, Message, SocketShared};

/// The bytes of one message: borrowed ones are copied into the log (without an allocation if they are small), owned ones of 16 KiB
/// and more are sent from where they are, and given back once all peers have them: who keeps a clone may then change them by
/// [`Bytes::try_into_mut`] and send them again. What owns them (`Bytes::from_owner`) may be dropped within a call of the socket or by
/// a reactor; it must not call the socket then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Bytes of the caller.
    Borrowed(&'a [u8]),
    /// Shared bytes.
    Owned(Bytes),
}

impl Payload<'_> {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Payload::Borrowed(bytes) => bytes.len(),
            Payload::Owned(bytes) => bytes.len(),
        }
    }

    /// Whether it is empty, which a message may be.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl AsRef<[u8]> for Payload<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Payload::Borrowed(bytes) => bytes,
            Payload::Owned(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Payload::Borrowed(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Payload<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Payload::Borrowed(bytes)
    }
}

impl<'a> From<&'a str> for Payload<'a> {
    fn from(text: &'a str) -> Self {
        Payload::Borrowed(text.as_bytes())
    }
}

impl<'a> From<&'a Vec<u8>> for Payload<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Payload::Borrowed(bytes)
    }
}

impl<'a> From<&'a String> for Payload<'a> {
    fn from(text: &'a String) -> Self {
        Payload::Borrowed(text.as_bytes())
    }
}

impl From<Bytes> for Payload<'_> {
    fn from(bytes: Bytes) -> Self {
        Payload::Owned(bytes)
    }
}

impl From<&Bytes> for Payload<'_> {
    fn from(bytes: &Bytes) -> Self {
        Payload::Owned(bytes.clone())
    }
}

impl From<Vec<u8>> for Payload<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Payload::Owned(bytes.into())
    }
}

impl From<String> for Payload<'_> {
    fn from(text: String) -> Self {
        Payload::Owned(text.into())
    }
}

/// A received message with everything about it.
#[derive(Clone)]
pub struct Received {
    shared: Arc<SocketShared>,
    identity: Identity,
    payload: Bytes,
    ack: Option<Ack>,
}

impl Received {
    pub(super) fn new(shared: &Arc<SocketShared>, message: Message) -> Received {
        Received { shared: shared.clone(), identity: message.identity, payload: message.payload, ack: message.ack }
    }

    /// The peer that sent it.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The application's bytes.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The application's bytes, to keep.
    pub fn into_payload(self) -> Bytes {
        self.payload
    }

    /// Whether its sender keeps it until it is acknowledged.
    pub fn wants_ack(&self) -> bool {
        self.ack.is_some()
    }

    /// Tells the sender that the message is dealt with, so that it is not sent again. Without effect if the sender did not ask, or
    /// if the socket acknowledges by itself (see [`AckMode`](crate::AckMode)). May be called from any thread.
    pub fn ack(&self) {
        if let Some(ack) = self.ack
            && self.shared.config.ack_mode == AckMode::Manual
        {
            self.shared.acknowledge(ack.shard, ack.link, &[ack.id]);
        }
    }
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Received").field("identity", &self.identity).field("bytes", &self.payload.len()).finish()
    }
}

/// Messages of one peer that arrived together, in order, in the memory that they were received into. Iterating costs a few
/// nanoseconds a message; nothing is copied or counted by reference until [`bytes`](Batch::bytes) asks for it.
///
/// ```no_run
/// # use aiomsg_uring::blocking::Socket;
/// # fn f(socket: Socket) -> Result<(), Box<dyn std::error::Error>> {
/// let batch = socket.recv_batch()?;
/// for payload in &batch {
///     println!("{} sent {} bytes", batch.identity(), payload.len());
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Batch {
    identity: Identity,
    frames: Bytes,
    from: usize,
}

impl Batch {
    pub(crate) fn new(identity: Identity, frames: Bytes, from: usize) -> Batch {
        Batch { identity, frames, from }
    }

    /// The peer that sent them.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How many messages there are; walks over them once.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Always false: a batch has at least one message.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The payloads, one after the other; at least one.
    pub fn iter(&self) -> Payloads<'_> {
        Payloads { frames: &self.frames, at: self.from }
    }

    /// The payloads as shared bytes, which may outlive the batch. Each one keeps the memory of all of them.
    pub fn bytes(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut at = self.from;
        std::iter::from_fn(move || protocol::next_message(&self.frames, &mut at).map(|m| self.frames.slice(m.payload)))
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = &'a [u8];
    type IntoIter = Payloads<'a>;

    fn into_iter(self) -> Payloads<'a> {
        self.iter()
    }
}

/// Iterator over the payloads of a [`Batch`].
#[derive(Clone, Debug)]
pub struct Payloads<'a> {
    frames: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Payloads<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        protocol::next_message(self.frames, &mut self.at).map(|m| &self.frames[m.payload])
    }
}
