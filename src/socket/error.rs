//! What can go wrong with a socket, and what to do about it. Nothing that a peer sends is an error here: that ends in an
//! [`Event`](crate::Event).

use std::fmt;

use super::endpoint::EndpointError;
use super::payload::Payload;
use crate::engine::{EngineError, OpenError};
use crate::protocol::Identity;

/// Why a socket could not be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// PUBLISH with AT_LEAST_ONCE: to whom should a message go that one of many peers has not acknowledged, and for how long?
    PublishAtLeastOnce,
    /// A limit that does not go with the others.
    Limit {
        /// Which setting.
        setting: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The engine has as many sockets as it may.
    TooManySockets {
        /// The engine's `sockets_max`.
        sockets_max: usize,
    },
    /// The default engine could not be started.
    Engine(EngineError),
    /// The engine has ended.
    EngineStopped,
}

impl From<OpenError> for BuildError {
    fn from(error: OpenError) -> BuildError {
        match error {
            OpenError::TooManySockets(sockets_max) => BuildError::TooManySockets { sockets_max },
            OpenError::EngineStopped => BuildError::EngineStopped,
        }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PublishAtLeastOnce => f.write_str(
                "AT_LEAST_ONCE cannot be combined with PUBLISH: acknowledgement is between two sockets; use ROUNDROBIN, or send by identity",
            ),
            Self::Limit { setting, problem } => write!(f, "{setting} {problem}"),
            Self::TooManySockets { sockets_max } => {
                write!(f, "the engine has {sockets_max} sockets already: raise sockets_max, or use another engine")
            }
            Self::Engine(error) => write!(f, "the default engine did not start: {error}"),
            Self::EngineStopped => f.write_str("the engine has stopped"),
        }
    }
}

impl std::error::Error for BuildError {}

/// Why an endpoint could not be bound.
#[derive(Debug)]
#[non_exhaustive]
pub enum BindError {
    /// The text names no place.
    Endpoint(EndpointError),
    /// The system refused.
    Io {
        /// Where to.
        endpoint: String,
        /// What it said.
        error: std::io::Error,
    },
    /// The socket is closed.
    Closed,
    /// Inline: the call came from within the engine, and would have to wait for it.
    Reentered,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(error) => error.fmt(f),
            Self::Io { endpoint, error } => {
                use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
                let hint = match (error.kind(), endpoint.starts_with("unix:")) {
                    (AddrInUse, false) => "; another socket listens there: choose another port, or 0 for a free one",
                    (AddrInUse, true) => {
                        "; another socket listens there, or the file is no socket: choose another path"
                    }
                    (AddrNotAvailable, _) => "; no interface of this machine has that address",
                    (PermissionDenied, false) => "; ports below 1024 need the right to bind them",
                    (PermissionDenied, true) => "; its folder must be writable",
                    _ => "",
                };
                write!(f, "cannot bind {endpoint}: {error}{hint}")
            }
            Self::Closed => f.write_str("the socket is closed"),
            Self::Reentered => EngineError::Reentered.fmt(f),
        }
    }
}

impl std::error::Error for BindError {}

/// Why an endpoint cannot be connected to. That nobody listens there yet is no error: the socket tries again for its life.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The text names no place.
    Endpoint(EndpointError),
    /// The socket is closed.
    Closed,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(error) => error.fmt(f),
            Self::Closed => f.write_str("the socket is closed"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// Why a message was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// It is longer than `message_bytes_max`.
    TooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// It has a new key, or a longer value, for which there is no room: see [`keys_max`](super::SocketBuilder::keys_max).
    KeysFull {
        /// The limit of keys.
        keys_max: usize,
        /// The limit of the bytes of keys and their last values.
        bytes_max: usize,
    },
    /// No peer of that identity was ever connected.
    UnknownPeer(Identity),
    /// The peer is not connected any more (AT_MOST_ONCE; AT_LEAST_ONCE keeps the message for its return).
    PeerGone(Identity),
    /// The socket is closed.
    Closed,
    /// The engine has stopped.
    EngineStopped,
    /// No room within the given time (only calls that take one).
    TimedOut,
    /// Inline: there is no room, and the call came from within the engine, which can make none before it returns.
    Reentered,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes, bytes_max } => {
                write!(
                    f,
                    "a message of {bytes} bytes is over message_bytes_max ({bytes_max}): raise it, at the receiver too"
                )
            }
            Self::KeysFull { keys_max, bytes_max } => {
                write!(
                    f,
                    "no room for another key or a longer value (keys_max {keys_max}, keyed_bytes_max {bytes_max}): raise \
                     them, forget keys that are out of use, or send it without a key"
                )
            }
            Self::Closed => f.write_str("the socket is closed"),
            Self::EngineStopped => f.write_str("the engine has stopped"),
            Self::UnknownPeer(identity) => {
                write!(f, "no peer {identity} was ever connected: use an identity from peers() or recv_identity()")
            }
            Self::PeerGone(identity) => write!(f, "peer {identity} is not connected any more"),
            Self::Reentered => EngineError::Reentered.fmt(f),
            Self::TimedOut => f.write_str("the log stayed full: the peers do not keep up, or there are none"),
        }
    }
}

impl std::error::Error for SendError {}

/// Why a message was not accepted at once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrySendError<'a> {
    /// The log is full; here is the message back.
    Full(Payload<'a>),
    /// It never will be.
    Never(SendError),
}

impl fmt::Display for TrySendError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("the log is full"),
            Self::Never(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TrySendError<'_> {}

/// Why no message will come any more.
// A word, so that a `Result` of it and a message moves in words, not in bytes.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecvError {
    /// The socket is closed, and all that had arrived was taken.
    Closed,
    /// The engine has stopped, and all that had arrived was taken.
    EngineStopped,
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the socket is closed",
            Self::EngineStopped => "the engine has stopped",
        })
    }
}

impl std::error::Error for RecvError {}

/// Why no message came now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryRecvError {
    /// None is there, or none came within the given time.
    Empty,
    /// None will come any more.
    Never(RecvError),
}

impl fmt::Display for TryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no message is there"),
            Self::Never(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TryRecvError {}

/// Fewer peers than asked for connected in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitError {
    /// How many are connected.
    pub peers: usize,
    /// How many were asked for.
    pub wanted: usize,
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} peers connected in time", self.peers, self.wanted)
    }
}

impl std::error::Error for WaitError {}

/// Why what was asked for could not be taken back, or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlError {
    /// The text names no place.
    Endpoint(EndpointError),
    /// This socket does not listen there.
    NotBound {
        /// What was named.
        endpoint: String,
        /// Where it does listen.
        bound: Vec<String>,
    },
    /// This socket was not told to connect there.
    NotConnecting {
        /// What was named.
        endpoint: String,
        /// Where it was told to connect, in the words that were used.
        connecting: Vec<String>,
    },
    /// The peer is not connected.
    NotConnected(Identity),
    /// So many peers have policies of their own already.
    TooManyPolicies {
        /// The limit.
        max: usize,
    },
    /// The socket is closed.
    Closed,
    /// Inline: the call came from within the engine, and would have to wait for it.
    Reentered,
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |all: &[String]| if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        match self {
            Self::Endpoint(error) => error.fmt(f),
            Self::NotBound { endpoint, bound } => write!(
                f,
                "this socket does not listen at {endpoint}: name an address that bind answered with ({})",
                list(bound)
            ),
            Self::NotConnecting { endpoint, connecting } => write!(
                f,
                "this socket was not told to connect to {endpoint}: name an endpoint as connect was given it ({})",
                list(connecting)
            ),
            Self::NotConnected(identity) => write!(f, "peer {identity} is not connected: use an identity from peers()"),
            Self::TooManyPolicies { max } => {
                write!(f, "{max} peers have policies of their own: clear some, or set one for the socket or a listener")
            }
            Self::Closed => f.write_str("the socket is closed"),
            Self::Reentered => EngineError::Reentered.fmt(f),
        }
    }
}

impl std::error::Error for ControlError {}
