//! What a socket, its peers and an engine's shards have done: the snapshots that an application reads. They are made of counts that
//! shards write with relaxed stores (`tally.rs`), at any time and without making a shard wait.

use std::fmt;
use std::time::Duration;

use super::event::DropCause;
use crate::backend::Address;
use crate::protocol::Identity;

/// A snapshot of a socket's counters. Counts are since the socket was built.
///
/// The unit is the **addressed message**: a message counts once for each peer that it is for. Under PUBLISH that is every peer
/// connected at the time of the send (and one that is sent while nobody is there counts once, for whoever comes first); in a circle
/// and by identity it is one. At rest, in every mode and whatever has happened to links,
///
/// ```text
/// addressed = delivered + dropped + conflated + queued + pending + expired
/// ```
///
/// which [`is_balanced`](Self::is_balanced) checks. While messages are on their way a snapshot may be a few off: its parts are read
/// one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Peers connected now.
    pub peers: u64,
    /// Messages accepted by `send` and `send_to`, each counted once however many peers it goes to.
    pub messages_sent: u64,
    /// Messages accepted, once for each peer that they are for.
    pub messages_addressed: u64,
    /// Messages that have come where they should, per peer: handed to the kernel (AT_MOST_ONCE), or acknowledged (AT_LEAST_ONCE).
    pub messages_delivered: u64,
    /// Messages dropped, per peer that misses them: the sum of [`drops`](Self::drops).
    pub messages_dropped: u64,
    /// Messages dropped, by cause.
    pub drops: Drops,
    /// Messages that a newer one with the same key has replaced, per peer that got that one instead.
    pub messages_conflated: u64,
    /// Messages that wait here to be handed to the kernel, per peer that they are for.
    pub messages_queued: u64,
    /// Messages that were handed to the kernel and wait for their acknowledgement (AT_LEAST_ONCE).
    pub messages_pending: u64,
    /// Messages that expired without an acknowledgement.
    pub messages_expired: u64,
    /// Messages acknowledged by their receivers.
    pub messages_acknowledged: u64,
    /// Messages sent again because no acknowledgement came in time.
    pub messages_resent: u64,
    /// Messages received twice and not delivered the second time.
    pub duplicates_removed: u64,
    /// Messages received, whether or not the application has taken them yet.
    pub messages_received: u64,
    /// Bytes of accepted messages, each counted once, framing included.
    pub bytes_accepted: u64,
    /// Bytes that wait here to be handed to the kernel, per peer that they are for, framing included.
    pub bytes_queued: u64,
    /// Bytes that wait for an acknowledgement, framing included.
    pub bytes_pending: u64,
    /// Bytes handed to the kernel, framing and control included.
    pub bytes_sent: u64,
    /// Bytes received from the kernel, framing and control included.
    pub bytes_received: u64,
    /// Bytes of outbound log in use.
    pub log_bytes: u64,
    /// Keys that have a last value.
    pub keys: u64,
    /// Bytes of keys and their last values, tables included.
    pub keyed_bytes: u64,
    /// Bytes received and not yet taken by the application.
    pub receive_bytes: u64,
    /// How far the hindmost peer is behind: the largest of each value over all peers.
    pub lag: Lag,
    /// How far the hindmost peer is behind the foremost one.
    pub skew: Lag,
    /// How long acknowledgements took (AT_LEAST_ONCE).
    pub round_trips: RoundTrips,
    /// Links that became peers.
    pub connects: u64,
    /// Among them, links of peers that had been connected before.
    pub reconnects: u64,
    /// Links of peers that ended.
    pub disconnects: u64,
    /// Connections refused before they became peers.
    pub rejects: u64,
    /// Times that a full receive queue stopped the reading of a link.
    pub receive_pauses: u64,
    /// Times that `send` found the log full.
    pub send_waits: u64,
    /// Events that nobody read in time.
    pub events_missed: u64,
}

impl Stats {
    /// Addressed messages of which nothing is known: 0 at rest; negative if more is known of them than there are.
    pub fn balance(&self) -> i64 {
        let known = self.messages_delivered
            + self.messages_dropped
            + self.messages_conflated
            + self.messages_queued
            + self.messages_pending
            + self.messages_expired;
        self.messages_addressed.wrapping_sub(known) as i64
    }

    /// Whether every addressed message is accounted for, as it is at rest.
    pub fn is_balanced(&self) -> bool {
        self.balance() == 0
    }
}

/// A snapshot of one connected peer. Counts are since it connected: those of links that have ended are in the socket's [`Stats`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStats {
    /// Which socket it is.
    pub identity: Identity,
    /// Where it is.
    pub address: Address,
    /// It has been silent for longer than its heartbeats allow.
    pub suspect: bool,
    /// It is over its lag limit, or holds the memory that a publisher waits for.
    pub slow: bool,
    /// How long ago it connected.
    pub connected_for: Duration,
    /// How often it was connected before, as long as the socket remembers it.
    pub reconnects: u64,
    /// Messages for it.
    pub messages_addressed: u64,
    /// Messages that have come where they should; see [`Stats::messages_delivered`].
    pub messages_delivered: u64,
    /// Messages that it will never get: the sum of [`drops`](Self::drops).
    pub messages_dropped: u64,
    /// The same by cause.
    pub drops: Drops,
    /// Messages that a newer one with the same key has replaced.
    pub messages_conflated: u64,
    /// Messages handed to the kernel whose acknowledgement has not come (AT_LEAST_ONCE).
    pub messages_pending: u64,
    /// Messages that expired without an acknowledgement.
    pub messages_expired: u64,
    /// Messages sent again because no acknowledgement came in time.
    pub messages_resent: u64,
    /// Messages of it received twice and not delivered the second time.
    pub duplicates_removed: u64,
    /// Messages received from it.
    pub messages_received: u64,
    /// Bytes handed to the kernel, framing and control included.
    pub bytes_sent: u64,
    /// Bytes received from the kernel, framing and control included.
    pub bytes_received: u64,
    /// What waits here for it.
    pub lag: Lag,
    /// How long its acknowledgements took (AT_LEAST_ONCE).
    pub round_trips: RoundTrips,
}

impl PeerStats {
    /// Addressed messages of which nothing is known: 0 at rest. See [`Stats::balance`].
    pub fn balance(&self) -> i64 {
        let known = self.messages_delivered
            + self.messages_dropped
            + self.messages_conflated
            + self.lag.messages
            + self.messages_pending
            + self.messages_expired;
        self.messages_addressed.wrapping_sub(known) as i64
    }
}

/// How far a peer is behind: what was accepted for it and is not handed to the kernel. While a peer is conflated, or begins with a snapshot,
/// what it may still get from the table of last values counts as messages, and not in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Bytes, framing included.
    pub bytes: u64,
    /// Messages.
    pub messages: u64,
    /// For how long the oldest of them has waited, to the duration of a send; a lower bound for a peer that is more than one send (256 KiB)
    /// behind. 0 if there is none.
    pub age: Duration,
}

impl Lag {
    /// The larger of each value.
    pub(crate) fn max(self, other: Lag) -> Lag {
        Lag {
            bytes: self.bytes.max(other.bytes),
            messages: self.messages.max(other.messages),
            age: self.age.max(other.age),
        }
    }

    /// The smaller of each value.
    pub(crate) fn min(self, other: Lag) -> Lag {
        Lag {
            bytes: self.bytes.min(other.bytes),
            messages: self.messages.min(other.messages),
            age: self.age.min(other.age),
        }
    }

    /// By how much each value is larger than the other's.
    pub(crate) fn beyond(self, other: Lag) -> Lag {
        Lag {
            bytes: self.bytes.saturating_sub(other.bytes),
            messages: self.messages.saturating_sub(other.messages),
            age: self.age.saturating_sub(other.age),
        }
    }
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages, {} bytes, {:?} behind", self.messages, self.bytes, self.age)
    }
}

/// Messages dropped, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops(pub(crate) [u64; DropCause::ALL.len()]);

impl Drops {
    /// Messages dropped for this cause.
    pub fn of(&self, cause: DropCause) -> u64 {
        self.0[cause as usize]
    }

    /// All causes with their messages.
    pub fn iter(&self) -> impl Iterator<Item = (DropCause, u64)> + '_ {
        DropCause::ALL.into_iter().map(|cause| (cause, self.of(cause)))
    }

    /// Messages dropped, whatever the cause.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Buckets of [`RoundTrips`].
pub(crate) const BUCKETS: usize = 24;
/// The first bucket's upper bound; each following one's is twice as much.
const FIRST_BOUND_NS: u64 = 1024;

/// How long it took from the handing over of a message to its acknowledgement. Messages that were sent more than once are left out:
/// nobody knows which sending was acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoundTrips {
    /// How many were measured.
    pub count: u64,
    /// All of them together.
    pub total: Duration,
    /// The shortest; 0 if there was none.
    pub shortest: Duration,
    /// The longest.
    pub longest: Duration,
    /// A moving average that gives the latest an eighth of the weight.
    pub recent: Duration,
    pub(crate) buckets: [u64; BUCKETS],
}

impl RoundTrips {
    /// Their mean; 0 if there was none.
    pub fn mean(&self) -> Duration {
        self.total / u32::try_from(self.count.max(1)).unwrap_or(u32::MAX)
    }

    /// The histogram: upper bounds, from 1 us to 8.6 s by powers of two, with how many were at most so long and longer than the bound
    /// before. What took longer is only in [`count`](Self::count).
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let bound = |at: usize| Duration::from_nanos(FIRST_BOUND_NS << at);
        self.buckets.iter().enumerate().map(move |(at, count)| (bound(at), *count))
    }

    /// The bucket of a time; none if it is beyond the last.
    pub(crate) fn bucket_of(ns: u64) -> Option<usize> {
        let at = ns.saturating_sub(1).checked_ilog2().map_or(0, |log| (log + 1).saturating_sub(FIRST_BOUND_NS.ilog2()));
        Some(at as usize).filter(|at| *at < BUCKETS)
    }

    /// Takes the times of others in.
    pub(crate) fn merge(&mut self, other: &RoundTrips) {
        if other.count == 0 {
            return;
        }
        let was_empty = self.count == 0;
        self.shortest = if was_empty { other.shortest } else { self.shortest.min(other.shortest) };
        self.recent = if was_empty { other.recent } else { (self.recent + other.recent) / 2 };
        self.longest = self.longest.max(other.longest);
        self.count += other.count;
        self.total += other.total;
        for (own, others) in self.buckets.iter_mut().zip(other.buckets) {
            *own += others;
        }
    }
}

/// A snapshot of what one shard has done since its engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardStats {
    /// Passes of the reactor.
    pub turns: u64,
    /// Passes that waited for something to happen.
    pub waits: u64,
    /// Passes that found nothing to do and did not wait.
    pub spins: u64,
    /// System calls of the backend.
    pub syscalls: u64,
    /// Operations given to the backend.
    pub submissions: u64,
    /// What came back from it.
    pub completions: u64,
    /// Times that somebody woke it from its wait: each costs the waker a system call.
    pub doorbells_rung: u64,
    /// Waits that ended because of that, and not because something else had happened.
    pub doorbells_heard: u64,
    /// Receives that found no free buffer.
    pub buffers_exhausted: u64,
    /// Times that the kernel had more completions than room for them.
    pub overflows: u64,
}

impl ShardStats {
    /// How many completions a pass brought in the mean.
    pub fn completions_per_turn(&self) -> f64 {
        self.completions as f64 / self.turns.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_in_the_first_bucket_that_it_does_not_exceed() {
        let bounds: Vec<u64> = RoundTrips::default().buckets().map(|(bound, _)| bound.as_nanos() as u64).collect();
        assert_eq!((bounds[0], bounds[BUCKETS - 1]), (1024, 1024 << (BUCKETS - 1)));
        for ns in [0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 1_000_000, bounds[BUCKETS - 1], bounds[BUCKETS - 1] + 1] {
            let expected = bounds.iter().position(|bound| ns <= *bound);
            assert_eq!(RoundTrips::bucket_of(ns), expected, "{ns}");
        }
    }

    #[test]
    fn merged_round_trips_are_those_of_all() {
        let one = |ns| {
            let time = Duration::from_nanos(ns);
            let mut one = RoundTrips {
                count: 1,
                total: time,
                shortest: time,
                longest: time,
                recent: time,
                buckets: [0; BUCKETS],
            };
            one.buckets[RoundTrips::bucket_of(ns).unwrap()] = 1;
            one
        };
        let mut all = RoundTrips::default();
        [3000, 1000, 5000].map(one).iter().for_each(|other| all.merge(other));
        all.merge(&RoundTrips::default());
        assert_eq!((all.count, all.mean()), (3, Duration::from_micros(3)));
        assert_eq!((all.shortest, all.longest), (Duration::from_micros(1), Duration::from_micros(5)));
        assert_eq!(all.buckets().map(|(_, count)| count).sum::<u64>(), 3);
    }
}
