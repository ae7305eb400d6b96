//! What is done about a peer that does not keep up with a publisher: the policy and the limits, as an application states them and as
//! a link holds them. Plain data; [`slow`](super::slow) acts on it.

use std::time::Duration;

use super::config::nanos;
use super::late::Replay;

/// What a PUBLISH socket does about a peer that is over its [`LagLimit`]. Whatever it does, the other peers do not notice, no frame
/// is torn, order is kept, and each message that is skipped is counted and told as [`Event::Dropped`](crate::Event::Dropped).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SlowPolicy {
    /// `send` waits for the peer, as long as that gets on; one that has got nowhere for `max_wait` is disconnected. Without a limit in
    /// bytes or messages it is the log (`log_bytes_max`) that is full when `send` waits.
    Block {
        /// How long a publisher waits for a peer that takes nothing; it may be up to half more.
        max_wait: Duration,
    },
    /// The oldest messages that have not gone out are skipped, down to half of the limit. The newest one always stays.
    DropOldest,
    /// What is within the limit is copied out of the log and still goes to the peer, as fast as it takes it; what is published until
    /// that has gone out is dropped.
    DropNewest,
    /// The peer is disconnected if it does not come back to a quarter of the limit within `after`.
    Disconnect {
        /// How long it may be over its limit.
        after: Duration,
    },
    /// Of what was sent with [`send_keyed`](crate::Socket::send_keyed) and has not gone out, the peer gets only the newest of each key, in
    /// the order of their last updates. It begins when the peer is behind by 256 KiB, or by its limit if that is less, and needs no
    /// memory for the peer, however slow it is. What was sent without a key keeps its place; it is held for the peer up to the limit
    /// in bytes. So where nothing has a key nothing is conflated, and `unkeyed` alone says what happens.
    Conflate {
        /// What is done when more than that limit is without a key.
        unkeyed: Unkeyed,
    },
}

/// What [`SlowPolicy::Conflate`] does about messages without a key when they are more than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unkeyed {
    /// They stay in the log; when that is full, `send` waits for the peer as [`SlowPolicy::Block`] says. The first time that comes to
    /// pass on a socket, the log has a warning.
    Block {
        /// How long a publisher waits for a peer that takes nothing; it may be up to half more.
        max_wait: Duration,
    },
    /// The oldest of them are dropped, some at a time.
    DropOldest,
    /// The newest of them are dropped, some at a time.
    DropNewest,
    /// The peer is disconnected.
    Disconnect,
}

impl Default for Unkeyed {
    /// [`Block`](Self::Block) for one second.
    fn default() -> Unkeyed {
        Unkeyed::Block { max_wait: Duration::from_secs(1) }
    }
}

/// A peer that is so far behind, in bytes, is conflated: what one send takes.
const CONFLATE_BYTES: u64 = 256 << 10;

impl Default for SlowPolicy {
    /// [`Block`](Self::Block) for one second.
    fn default() -> SlowPolicy {
        SlowPolicy::Block { max_wait: Duration::from_secs(1) }
    }
}

/// How far a peer may be behind what was published: counted is what was not handed to the kernel. Any of the three that is set counts. A single message is
/// never over a limit of bytes or messages.
///
/// ```
/// use aiomsg_uring::{LagLimit, SlowPolicy, Socket};
///
/// let quotes = Socket::builder()
///     .slow_policy(SlowPolicy::DropOldest)
///     .lag_limit(LagLimit { messages: Some(1000), ..LagLimit::default() })
///     .build()?;
/// # Ok::<(), aiomsg_uring::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LagLimit {
    /// Bytes on the wire. Default: half of `log_bytes_max`, which is also the most that counts; none under [`SlowPolicy::Block`].
    pub bytes: Option<usize>,
    /// Messages. Default: any number.
    pub messages: Option<u64>,
    /// Age of the oldest of them. Default: any. It is known to a sixty-fourth, or to a millisecond if that is more.
    pub age: Option<Duration>,
}

/// What the peers of a listener, or a single peer, have instead of what the socket says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// What is done about those that are slow.
    pub(crate) flow: Option<Flow>,
    /// Where they begin.
    pub(crate) replay: Option<Replay>,
}

impl Own {
    /// What this says, and `other` where it says nothing.
    pub(super) fn or(self, other: Own) -> Own {
        Own { flow: self.flow.or(other.flow), replay: self.replay.or(other.replay) }
    }
}

/// Policy and limits of one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(super) policy: SlowPolicy,
    /// Bytes behind the tail; `u64::MAX` for no limit, as below.
    pub(super) bytes: u64,
    /// Under `Conflate`: bytes without a key that the link may hold.
    pub(super) unkeyed_bytes: u64,
    pub(super) messages: u64,
    pub(super) age_ns: u64,
    /// There is something to look at though the log is not full.
    pub(crate) watched: bool,
}

impl Default for Flow {
    fn default() -> Flow {
        Flow::new(SlowPolicy::default(), LagLimit::default(), 0)
    }
}

impl Flow {
    pub(crate) fn new(policy: SlowPolicy, limit: LagLimit, log_bytes_max: usize) -> Flow {
        let half = log_bytes_max as u64 / 2;
        let bytes = match (limit.bytes, policy) {
            (None, SlowPolicy::Block { .. }) => u64::MAX,
            (None, _) => half,
            (Some(bytes), _) => (bytes as u64).min(half),
        };
        let unkeyed_bytes = bytes;
        let bytes = if matches!(policy, SlowPolicy::Conflate { .. }) { bytes.min(CONFLATE_BYTES) } else { bytes };
        let (messages, age_ns) = (limit.messages.unwrap_or(u64::MAX), limit.age.map_or(u64::MAX, nanos));
        let watched = bytes.min(messages).min(age_ns) < u64::MAX || !matches!(policy, SlowPolicy::Block { .. });
        Flow { policy, bytes, unkeyed_bytes, messages, age_ns, watched }
    }

    /// How long a publisher may wait for the link.
    pub(super) fn max_wait_ns(&self) -> Option<u64> {
        match self.policy {
            SlowPolicy::Block { max_wait } | SlowPolicy::Conflate { unkeyed: Unkeyed::Block { max_wait } } => {
                Some(nanos(max_wait))
            }
            _ => None,
        }
    }
}
