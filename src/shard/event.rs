//! What happens to a socket, told to the application: a bounded queue of [`Event`]s that never makes the engine wait. When nobody
//! reads, the newest are counted instead of kept, and the count is told as [`Event::Missed`] as soon as there is room again.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::stats::Lag;
use crate::backend::Address;
use crate::protocol::Identity;

/// Something that happened to a socket's peers or messages. Events are in the order in which the shard that holds the peer saw them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A peer has shaken hands: from here on it is in `peers()` and gets messages.
    Connected {
        /// Which socket it is.
        identity: Identity,
        /// Where it is.
        address: Address,
    },
    /// A connected peer's link has ended.
    Disconnected {
        /// Which socket it was.
        identity: Identity,
        /// Where it was.
        address: Address,
        /// Why it ended.
        reason: DisconnectReason,
    },
    /// A connection was refused before it became a peer.
    Rejected {
        /// Where it came from, or went to.
        address: Address,
        /// What was wrong with it.
        reason: RejectReason,
    },
    /// Messages that were accepted for a peer will never reach it.
    Dropped {
        /// Which peer misses them.
        identity: Identity,
        /// How many.
        messages: u64,
        /// Why.
        cause: DropCause,
    },
    /// Messages for a peer that lags were replaced by newer ones with the same keys.
    Conflated {
        /// Which peer gets the newer ones only.
        identity: Identity,
        /// How many.
        messages: u64,
    },
    /// A peer is over its lag limit, or holds the memory that a publisher waits for.
    Slow {
        /// Which peer.
        identity: Identity,
        /// How far it is behind.
        lag: Lag,
    },
    /// A peer that was told as slow is far below its limit again.
    CaughtUp {
        /// Which peer.
        identity: Identity,
    },
    /// Messages that nobody has acknowledged as often as they were sent, or whose peer did not return (AT_LEAST_ONCE).
    Expired {
        /// For whom they were, if they were sent by identity or had gone to one peer.
        identity: Option<Identity>,
        /// How many.
        messages: u64,
    },
    /// A connecting end waits before its next attempt.
    Reconnecting {
        /// What it connects to.
        endpoint: String,
        /// How many attempts have failed since it was last connected.
        attempt: u32,
        /// How long it waits.
        delay: Duration,
        /// What went wrong last.
        error: String,
    },
    /// A peer has been silent for longer than its heartbeats allow.
    Suspect {
        /// Which peer.
        identity: Identity,
    },
    /// A suspect peer was heard again.
    Recovered {
        /// Which peer.
        identity: Identity,
    },
    /// Events that were not kept because nobody read them in time.
    Missed {
        /// How many.
        events: u64,
    },
}

/// Why a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The peer closed the connection.
    ClosedByPeer,
    /// Nothing was received for the receive timeout.
    Silent,
    /// The connection failed; the text is the system's.
    Failed(String),
    /// The peer kept a publisher waiting for longer than [`SlowPolicy::Block`](crate::SlowPolicy::Block) allows.
    Stalled,
    /// The peer was over its lag limit for longer than [`SlowPolicy::Disconnect`](crate::SlowPolicy::Disconnect) allows.
    Slow,
    /// A frame longer than `message_bytes_max` was announced.
    FrameTooLong {
        /// What was announced, in bytes.
        bytes: u64,
    },
    /// This socket was closed.
    ClosedHere,
    /// `disconnect` or `disconnect_from` was called on this socket.
    DisconnectedHere,
}

/// Why a connection never became a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectReason {
    /// The identity is connected to this socket already.
    Duplicate(Identity),
    /// It is this very socket.
    Itself,
    /// It did not speak the protocol; the text says what it did.
    Handshake(String),
    /// It did not finish the handshake in time.
    TooSlow,
    /// The socket has `peers_max` connections.
    TooManyPeers,
    /// More connections from its address than `accepts_per_second` allows.
    TooManyAccepts,
}

/// Why messages were dropped for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropCause {
    /// Its link ended before they were handed to the kernel.
    LinkEnded,
    /// Its link was ended here because it was too slow, before they were handed to the kernel.
    Stalled,
    /// They were sent to its identity while it was connected, and it was gone when they were to go out.
    PeerGone,
    /// It was over its lag limit, and they were the oldest that waited: [`SlowPolicy::DropOldest`](crate::SlowPolicy::DropOldest).
    Oldest,
    /// It was over its lag limit, and they were the newest: [`SlowPolicy::DropNewest`](crate::SlowPolicy::DropNewest).
    Newest,
    /// They had waited for longer than its lag limit allows.
    TooOld,
    /// The socket was closed here before they were handed to the kernel.
    Closed,
}

impl DropCause {
    /// All causes, in the order of their numbers.
    pub(crate) const ALL: [DropCause; 7] =
        [Self::LinkEnded, Self::Stalled, Self::PeerGone, Self::Oldest, Self::Newest, Self::TooOld, Self::Closed];

    /// One word for it, as metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LinkEnded => "link_ended",
            Self::Stalled => "stalled",
            Self::PeerGone => "peer_gone",
            Self::Oldest => "oldest",
            Self::Newest => "newest",
            Self::TooOld => "too_old",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for DropCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LinkEnded => "its link ended",
            Self::Stalled => "it was disconnected for being slow",
            Self::PeerGone => "it is gone",
            Self::Oldest => "over its lag limit, the oldest",
            Self::Newest => "over its lag limit, the newest",
            Self::TooOld => "older than its lag limit allows",
            Self::Closed => "closed here",
        })
    }
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClosedByPeer => f.write_str("closed by the peer"),
            Self::Silent => f.write_str("nothing received within the receive timeout"),
            Self::Failed(error) => write!(f, "connection failed: {error}"),
            Self::Stalled => f.write_str("kept the publisher waiting for longer than its policy allows"),
            Self::Slow => f.write_str("was over its lag limit for longer than its policy allows"),
            Self::FrameTooLong { bytes } => write!(f, "announced a frame of {bytes} bytes, over message_bytes_max"),
            Self::ClosedHere => f.write_str("closed here"),
            Self::DisconnectedHere => f.write_str("disconnected here"),
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate(identity) => write!(f, "identity {identity} is connected already"),
            Self::Itself => f.write_str("connected to itself"),
            Self::Handshake(text) => f.write_str(text),
            Self::TooSlow => f.write_str("no HELLO within the handshake timeout"),
            Self::TooManyPeers => f.write_str("peers_max connections are open"),
            Self::TooManyAccepts => f.write_str("too many connections from its address: over accepts_per_second"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { identity, address } => write!(f, "connected {identity} at {address}"),
            Self::Disconnected { identity, address, reason } => {
                write!(f, "disconnected {identity} at {address}: {reason}")
            }
            Self::Rejected { address, reason } => write!(f, "rejected {address}: {reason}"),
            Self::Dropped { identity, messages, cause } => {
                write!(f, "dropped {messages} messages for {identity}: {cause}")
            }
            Self::Conflated { identity, messages } => write!(f, "conflated {messages} messages for {identity}"),
            Self::Slow { identity, lag } => write!(f, "slow {identity}: {lag}"),
            Self::CaughtUp { identity } => write!(f, "caught up {identity}"),
            Self::Expired { identity: Some(identity), messages } => {
                write!(f, "{messages} messages for {identity} expired")
            }
            Self::Expired { identity: None, messages } => write!(f, "{messages} messages expired"),
            Self::Reconnecting { endpoint, attempt, delay, error } => {
                write!(f, "reconnecting to {endpoint} in {delay:.0?}, failed attempts {attempt}: {error}")
            }
            Self::Suspect { identity } => write!(f, "suspect {identity}"),
            Self::Recovered { identity } => write!(f, "recovered {identity}"),
            Self::Missed { events } => write!(f, "{events} events missed"),
        }
    }
}

/// The queue. Written by shards, read by the application.
pub(crate) struct EventQueue {
    queue: Mutex<VecDeque<Event>>,
    events_max: usize,
    missed: AtomicU64,
    /// All that were missed so far.
    missed_total: AtomicU64,
    /// Notified when an event arrives and when the socket ends.
    pub(crate) arrived: crate::queue::Waiters,
}

impl EventQueue {
    pub(crate) fn new(events_max: usize) -> EventQueue {
        EventQueue {
            queue: Mutex::default(),
            events_max: events_max.max(1),
            missed: AtomicU64::new(0),
            missed_total: AtomicU64::new(0),
            arrived: crate::queue::Waiters::new(),
        }
    }

    /// Events are rare, so a lock will do, and an idle socket holds no memory for them.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, event: Event) {
        let mut queue = self.lock();
        if queue.len() < self.events_max {
            queue.push_back(event);
        } else {
            self.missed.fetch_add(1, Ordering::Relaxed);
            self.missed_total.fetch_add(1, Ordering::Relaxed);
        }
        drop(queue);
        self.arrived.notify(usize::MAX);
    }

    pub(crate) fn missed_total(&self) -> u64 {
        self.missed_total.load(Ordering::Relaxed)
    }

    pub(crate) fn pop(&self) -> Option<Event> {
        if let Some(event) = self.lock().pop_front() {
            return Some(event);
        }
        match self.missed.swap(0, Ordering::Relaxed) {
            0 => None,
            events => Some(Event::Missed { events }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let q = EventQueue::new(2);
        for i in 0..5 {
            q.push(Event::Suspect { identity: Identity::from_bytes([i; 16]) });
        }
        assert_eq!(q.pop(), Some(Event::Suspect { identity: Identity::from_bytes([0; 16]) }));
        assert_eq!(q.pop(), Some(Event::Suspect { identity: Identity::from_bytes([1; 16]) }));
        assert_eq!(q.pop(), Some(Event::Missed { events: 3 }));
        assert_eq!(q.pop(), None);
    }
}
