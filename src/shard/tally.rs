//! The live counts: one [`Tally`] for each link and one for all links of a socket on a shard. Each has one writer, the shard, which
//! counts once per completion with plain relaxed stores; anybody reads at any time.
//!
//! What is a difference of places in the socket's log is not counted but subtracted: a link that joined at message 100 and has sent up
//! to message 130 of a log that is at 150 has 50 messages addressed and 20 queued, and an append costs no link anything. What a link
//! has beside the log (its lane, and what was set aside for it) is a level that the shard sets when it changes.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use super::event::{DropCause, Event};
use super::link::Link;
use super::shared::{SocketShared, report};
use super::stats::{BUCKETS, Drops, Lag, PeerStats, RoundTrips, ShardStats};
use super::{Shard, ShardSocket};
use crate::backend::{self, Address};
use crate::log::Cursor;
use crate::protocol::Identity;

/// Adds to a count of which the caller is the only writer.
#[inline]
pub(crate) fn add(count: &AtomicU64, n: u64) {
    count.store(count.load(Relaxed).wrapping_add(n), Relaxed);
}

/// How much larger a sum is than another; 0 if it is smaller, as it may be because they were read one after the other.
fn difference(sum: u64, other: u64) -> u64 {
    (sum.wrapping_sub(other) as i64).max(0) as u64
}

/// What has happened on one link, or on all links of a socket on one shard.
#[derive(Default)]
pub(crate) struct Tally {
    /// Links of a PUBLISH socket whose places are in `joined` and `passed`: for a link 1 or 0.
    links: AtomicU64,
    /// Messages of the socket's log before the place where the link joined; of several links the sum, as below.
    joined: AtomicU64,
    /// Messages of the socket's log, and bytes, before the link's cursor.
    passed: AtomicU64,
    passed_bytes: AtomicU64,
    /// Messages of the log that were for links that have ended.
    ended: AtomicU64,
    /// Messages that came to be sent by the link beside the log, each once.
    pub(crate) beside: AtomicU64,
    /// Messages that a snapshot had for it.
    pub(crate) snapshot: AtomicU64,
    /// Level: those of them that have not gone out, with bytes.
    pub(crate) held: AtomicU64,
    pub(crate) held_bytes: AtomicU64,
    /// Level: what waits for an acknowledgement.
    pub(crate) pending: AtomicU64,
    pub(crate) pending_bytes: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) conflated: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) resent: AtomicU64,
    pub(crate) duplicates: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    drops: [AtomicU64; DropCause::ALL.len()],
    round_trips: Option<Box<RoundTripTally>>,
}

impl Tally {
    /// `measured` if acknowledgements will come.
    fn new(measured: bool) -> Tally {
        Tally { round_trips: measured.then(Box::default), ..Tally::default() }
    }

    pub(crate) fn dropped(&self, cause: DropCause) -> &AtomicU64 {
        &self.drops[cause as usize]
    }

    pub(crate) fn drops(&self) -> Drops {
        Drops(std::array::from_fn(|at| self.drops[at].load(Relaxed)))
    }

    /// Messages and bytes that wait to be handed to the kernel, when the socket's log is at `tail`.
    pub(crate) fn queued(&self, tail: Cursor) -> (u64, u64) {
        let links = self.links.load(Relaxed);
        let behind = |at: u64, passed: &AtomicU64, held: &AtomicU64| {
            difference(links.wrapping_mul(at), passed.load(Relaxed)) + held.load(Relaxed)
        };
        (behind(tail.messages(), &self.passed, &self.held), behind(tail.frame(), &self.passed_bytes, &self.held_bytes))
    }

    /// Messages of the socket's log that are, or were, for these links.
    pub(crate) fn of_log(&self, tail: Cursor) -> u64 {
        let live = difference(self.links.load(Relaxed).wrapping_mul(tail.messages()), self.joined.load(Relaxed));
        self.ended.load(Relaxed) + live
    }

    pub(crate) fn round_trips(&self) -> RoundTrips {
        self.round_trips.as_ref().map_or_else(RoundTrips::default, |tally| tally.snapshot())
    }
}

/// What one shard counts for a socket: its links, those that are gone included, and what is no link's.
pub(crate) struct Counters {
    pub(crate) all: Tally,
    /// Messages by identity that were taken out of the mail.
    pub(crate) sorted: AtomicU64,
    /// Level: messages that wait for peers to return (AT_LEAST_ONCE).
    pub(crate) parked: AtomicU64,
    /// ROUNDROBIN, level: how far the hub has dealt the log out, and what dead links left for others.
    pub(crate) dealt: AtomicU64,
    pub(crate) dealt_bytes: AtomicU64,
    pub(crate) returned: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    pub(crate) disconnects: AtomicU64,
    pub(crate) rejects: AtomicU64,
    pub(crate) receive_pauses: AtomicU64,
}

impl Counters {
    pub(crate) fn new(measured: bool) -> Counters {
        let zero = AtomicU64::default;
        Counters {
            all: Tally::new(measured),
            sorted: zero(),
            parked: zero(),
            dealt: zero(),
            dealt_bytes: zero(),
            returned: zero(),
            connects: zero(),
            reconnects: zero(),
            disconnects: zero(),
            rejects: zero(),
            receive_pauses: zero(),
        }
    }
}

/// A connected peer, as whoever asks for its counters sees it.
pub(crate) struct Account {
    identity: Identity,
    address: Address,
    connected_ns: u64,
    reconnects: u64,
    pub(crate) tally: Tally,
    pub(crate) suspect: AtomicBool,
    pub(crate) slow: AtomicBool,
    /// When the oldest message that waits for it was seen, at the earliest; 0 if none waits.
    pub(crate) behind_since_ns: AtomicU64,
}

impl Account {
    pub(super) fn new(identity: Identity, address: Address, now_ns: u64, reconnects: u64, measured: bool) -> Account {
        Account {
            identity,
            address,
            connected_ns: now_ns,
            reconnects,
            tally: Tally::new(measured),
            suspect: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            behind_since_ns: AtomicU64::new(0),
        }
    }

    /// What waits for it when the socket's log is at `tail`.
    pub(crate) fn lag(&self, tail: Cursor, now_ns: u64) -> Lag {
        let (messages, bytes) = self.tally.queued(tail);
        let age_ns = match self.behind_since_ns.load(Relaxed) {
            since_ns if since_ns > 0 && messages > 0 => now_ns.saturating_sub(since_ns),
            _ => 0,
        };
        Lag { bytes, messages, age: Duration::from_nanos(age_ns) }
    }

    pub(crate) fn snapshot(&self, tail: Cursor, now_ns: u64) -> PeerStats {
        let tally = &self.tally;
        let drops = tally.drops();
        let of = |count: &AtomicU64| count.load(Relaxed);
        PeerStats {
            identity: self.identity,
            address: self.address.clone(),
            suspect: self.suspect.load(Relaxed),
            slow: self.slow.load(Relaxed),
            connected_for: Duration::from_nanos(now_ns.saturating_sub(self.connected_ns)),
            reconnects: self.reconnects,
            messages_addressed: tally.of_log(tail) + of(&tally.beside) + of(&tally.snapshot),
            messages_delivered: of(&tally.delivered),
            messages_dropped: drops.total(),
            drops,
            messages_conflated: of(&tally.conflated),
            messages_pending: of(&tally.pending),
            messages_expired: of(&tally.expired),
            messages_resent: of(&tally.resent),
            duplicates_removed: of(&tally.duplicates),
            messages_received: of(&tally.received),
            bytes_sent: of(&tally.bytes_sent),
            bytes_received: of(&tally.bytes_received),
            lag: self.lag(tail, now_ns),
            round_trips: tally.round_trips(),
        }
    }
}

impl Link {
    /// Counts for this link and its socket.
    #[inline]
    pub(super) fn count(&self, counters: &Counters, what: impl Fn(&Tally) -> &AtomicU64, n: u64) {
        add(what(&counters.all), n);
        if let Some(account) = &self.account {
            add(what(&account.tally), n);
        }
    }

    /// Sets a level of this link, and that of its socket accordingly.
    #[inline]
    pub(super) fn set_level(&self, counters: &Counters, what: impl Fn(&Tally) -> &AtomicU64, level: u64) {
        let Some(account) = &self.account else { return };
        let own = what(&account.tally);
        add(what(&counters.all), level.wrapping_sub(own.load(Relaxed)));
        own.store(level, Relaxed);
    }

    /// Where the link's cursor is in the socket's log; to be called whenever it has moved, for whatever reason.
    #[inline]
    pub(super) fn count_cursor(&self, counters: &Counters) {
        self.set_level(counters, |tally| &tally.passed, self.cursor.messages());
        self.set_level(counters, |tally| &tally.passed_bytes, self.cursor.frame());
    }

    /// PUBLISH: the link has joined the socket's log at its cursor.
    pub(super) fn count_joined(&self, counters: &Counters) {
        self.set_level(counters, |tally| &tally.joined, self.cursor.messages());
        self.count_cursor(counters);
        self.set_level(counters, |tally| &tally.links, 1);
    }

    /// PUBLISH: the link has left the log, and misses so many messages from its cursor on.
    pub(super) fn count_left(&self, counters: &Counters, missed: u64) {
        let Some(account) = &self.account else { return };
        let joined = account.tally.joined.load(Relaxed);
        add(&counters.all.ended, (self.cursor.messages() + missed).wrapping_sub(joined));
        self.set_level(counters, |tally| &tally.links, 0);
        self.set_level(counters, |tally| &tally.joined, 0);
        self.set_level(counters, |tally| &tally.passed, 0);
        self.set_level(counters, |tally| &tally.passed_bytes, 0);
    }

    /// What is in the lane, and what went out of it and is kept for resending; and what was kept of the socket's log.
    pub(super) fn count_lane(&mut self, counters: &Counters) {
        let (mut queued, mut bytes) = self.kept.as_mut().map_or((0, 0), |kept| (kept.queued(), kept.queued_bytes()));
        queued += self.detour.as_ref().map_or(0, |detour| detour.queued());
        if let Some(lane) = &mut self.lane {
            let (taken, unacknowledged) = (lane.taken(), lane.unacknowledged as u64);
            queued += lane.queued();
            bytes += lane.queued_bytes();
            self.set_level(counters, |tally| &tally.beside, taken);
            if let Some(retained) = &self.retained {
                self.set_level(counters, |tally| &tally.pending, retained.len() as u64);
                self.set_level(counters, |tally| &tally.pending_bytes, unacknowledged);
            }
        }
        self.set_level(counters, |tally| &tally.held, queued);
        self.set_level(counters, |tally| &tally.held_bytes, bytes);
    }

    /// Nothing is left of what it had beside the log.
    pub(super) fn count_lane_gone(&self, counters: &Counters) {
        self.set_level(counters, |tally| &tally.held, 0);
        self.set_level(counters, |tally| &tally.held_bytes, 0);
        self.set_level(counters, |tally| &tally.pending, 0);
        self.set_level(counters, |tally| &tally.pending_bytes, 0);
    }

    pub(super) fn set_suspect(&self, suspect: bool) {
        if let Some(account) = &self.account {
            account.suspect.store(suspect, Relaxed);
        }
    }

    pub(super) fn set_slow(&self, slow: bool) {
        if let Some(account) = &self.account {
            account.slow.store(slow, Relaxed);
        }
    }

    /// Acknowledgements have come: after how long, and how many.
    pub(super) fn count_round_trips(&self, counters: &Counters, times: &[(u64, u64)]) {
        let own = self.account.as_ref().and_then(|account| account.tally.round_trips.as_ref());
        for tally in [counters.all.round_trips.as_ref(), own].into_iter().flatten() {
            times.iter().for_each(|&(ns, count)| tally.take(ns, count));
        }
    }
}

impl ShardSocket {
    pub(super) fn counters(&self) -> &Counters {
        &self.shared.counters[self.shard]
    }

    /// Messages for a link are dropped: counted and told.
    pub(super) fn drop_messages(&self, link: &Link, cause: DropCause, messages: u64) {
        if messages > 0 {
            link.count(self.counters(), |tally| tally.dropped(cause), messages);
            report(&self.shared, Event::Dropped { identity: link.identity, messages, cause });
        }
    }
}

/// Messages for a peer that has no link are dropped: counted and told.
pub(super) fn drop_unlinked(shared: &SocketShared, shard: usize, identity: Identity, cause: DropCause, messages: u64) {
    add(shared.counters[shard].all.dropped(cause), messages);
    report(shared, Event::Dropped { identity, messages, cause });
}

/// Times of acknowledgement.
#[derive(Default)]
struct RoundTripTally {
    count: AtomicU64,
    total_ns: AtomicU64,
    shortest_ns: AtomicU64,
    longest_ns: AtomicU64,
    recent_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl RoundTripTally {
    /// `count` round trips (at least one) took `ns`.
    fn take(&self, ns: u64, count: u64) {
        /// After so many of one kind the moving mean is there, within rounding.
        const SETTLED: u64 = 128;
        let (shortest, mut recent) = match self.count.load(Relaxed) {
            0 => (ns, ns),
            _ => (self.shortest_ns.load(Relaxed).min(ns), self.recent_ns.load(Relaxed)),
        };
        for _ in 0..count.min(SETTLED) {
            recent = recent - recent / 8 + ns / 8;
        }
        self.shortest_ns.store(shortest, Relaxed);
        self.recent_ns.store(recent, Relaxed);
        self.longest_ns.store(self.longest_ns.load(Relaxed).max(ns), Relaxed);
        add(&self.total_ns, ns.saturating_mul(count));
        add(&self.count, count);
        if let Some(at) = RoundTrips::bucket_of(ns) {
            add(&self.buckets[at], count);
        }
    }

    fn snapshot(&self) -> RoundTrips {
        let time = |ns: &AtomicU64| Duration::from_nanos(ns.load(Relaxed));
        RoundTrips {
            count: self.count.load(Relaxed),
            total: time(&self.total_ns),
            shortest: time(&self.shortest_ns),
            longest: time(&self.longest_ns),
            recent: time(&self.recent_ns),
            buckets: std::array::from_fn(|at| self.buckets[at].load(Relaxed)),
        }
    }
}

/// The live counters of a shard. Written by its reactor alone, once per turn.
#[derive(Default)]
pub(crate) struct ShardCounters {
    turns: AtomicU64,
    waits: AtomicU64,
    spins: AtomicU64,
    rung: AtomicU64,
    heard: AtomicU64,
    syscalls: AtomicU64,
    submissions: AtomicU64,
    completions: AtomicU64,
    buffers_exhausted: AtomicU64,
    overflows: AtomicU64,
    /// Where time is simulated, that of the last turn; else 0.
    simulated_ns: AtomicU64,
}

/// How one turn went.
pub(super) struct TurnCount {
    pub(super) waited: bool,
    pub(super) worked: bool,
    /// The doorbell was rung while it waited.
    pub(super) rung: bool,
    /// And nothing else had happened.
    pub(super) heard: bool,
}

impl ShardCounters {
    fn tell(&self, turn: TurnCount, backend: backend::Counters) {
        add(&self.turns, 1);
        add(&self.waits, u64::from(turn.waited));
        add(&self.spins, u64::from(!turn.waited && !turn.worked));
        add(&self.rung, u64::from(turn.rung));
        add(&self.heard, u64::from(turn.heard));
        self.syscalls.store(backend.syscalls, Relaxed);
        self.submissions.store(backend.submissions, Relaxed);
        self.completions.store(backend.completions, Relaxed);
        self.buffers_exhausted.store(backend.enobufs, Relaxed);
        self.overflows.store(backend.cq_overflows, Relaxed);
    }

    /// The engine's time for whoever is not in a turn.
    pub(crate) fn now_ns(&self) -> u64 {
        match self.simulated_ns.load(Relaxed) {
            0 => backend::monotonic_ns(),
            now_ns => now_ns,
        }
    }

    pub(crate) fn snapshot(&self) -> ShardStats {
        let of = |count: &AtomicU64| count.load(Relaxed);
        ShardStats {
            turns: of(&self.turns),
            waits: of(&self.waits),
            spins: of(&self.spins),
            doorbells_rung: of(&self.rung),
            doorbells_heard: of(&self.heard),
            syscalls: of(&self.syscalls),
            submissions: of(&self.submissions),
            completions: of(&self.completions),
            buffers_exhausted: of(&self.buffers_exhausted),
            overflows: of(&self.overflows),
        }
    }
}

impl Shard {
    /// Tells how the turn went.
    pub(super) fn count_turn(&self, turn: TurnCount) {
        let counts = &self.port().counts;
        counts.tell(turn, self.backend.counters());
        #[cfg(any(test, feature = "simulation"))]
        if self.backend.kind() == backend::Kind::Sim {
            counts.simulated_ns.store(self.now_ns, Relaxed);
        }
    }
}
