//! What the application asks of a shard, through its bounded command queue, and how it answers.

use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Address;
use crate::log;
use crate::protocol::Identity;
use crate::queue::{Listener, Waiters};
use crate::shard::adopt::Moving;
use crate::shard::close::CloseReport;
use crate::shard::control::{Answer, Done};
use crate::shard::shared::SocketId;
use crate::shard::{EndKey, Own, SocketShared};

/// A place to bind or connect to: an address, or a name that is resolved when it is needed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Address(Address),
    Name { host: String, port: u16 },
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Address(address) => address.fmt(f),
            // Without it these would be read as another kind of address.
            Target::Name { host, port } if ["unix", "fd"].contains(&&host[..]) => write!(f, "tcp://{host}:{port}"),
            Target::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// One request.
pub(crate) enum Command {
    /// A socket begins on this shard, with its view of the log and of this shard's mail.
    Open { shared: Arc<SocketShared>, log: log::Reader, mail: log::Reader },
    /// Listens; answers with the bound address.
    Bind { socket: SocketId, target: Target, own: Own, reply: Reply<std::io::Result<Address>> },
    /// Dials until the socket ends.
    Connect { socket: SocketId, target: Target },
    /// A connection that has shaken hands elsewhere moves to the shard of its peer, and stays.
    Adopt(Box<Moving>),
    /// A link that one of this shard's dialers made has ended.
    Lost { dialer: EndKey, error: String, rejected: bool },
    /// Stops listening at an endpoint.
    Unbind { socket: SocketId, target: Target, reply: Reply<Answer> },
    /// Stops dialling an endpoint, and parts from whom it found there.
    DisconnectFrom { socket: SocketId, target: Target, reply: Reply<Answer> },
    /// Parts from a peer of this shard.
    Disconnect { socket: SocketId, identity: Identity, reply: Reply<Answer> },
    /// A dialer of that shard has stopped: parts from its link, if it is here.
    Release { socket: SocketId, shard: u32, dialer: EndKey, done: Arc<Done> },
    /// Drains, closes and forgets the socket; answers with what was not delivered.
    Close { socket: SocketId, linger_ns: u64, reply: Reply<CloseReport> },
    /// What is done about a peer that is slow has changed.
    Flow { socket: SocketId, identity: Identity },
    /// Answers after a while.
    Alarm { after_ns: u64, reply: Reply<()> },
    /// Ends the shard as soon as its last socket has drained.
    Stop,
    /// What no command should do.
    #[cfg(test)]
    Panic,
}

/// Where an answer will be; the asker waits on it, asynchronously or not.
pub(crate) struct Reply<T>(Arc<Slot<T>>);

struct Slot<T> {
    value: Mutex<Option<T>>,
    filled: Waiters,
}

impl<T> Clone for Reply<T> {
    fn clone(&self) -> Self {
        Reply(self.0.clone())
    }
}

impl<T> Reply<T> {
    pub(crate) fn new() -> Reply<T> {
        Reply(Arc::new(Slot { value: Mutex::new(None), filled: Waiters::new() }))
    }

    pub(crate) fn answer(&self, value: T) {
        *self.0.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        self.0.filled.notify(usize::MAX);
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.0.value.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn listen(&self) -> Listener {
        self.0.filled.listen()
    }
}
