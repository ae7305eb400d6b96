//! Counters of sockets and shards. A socket's are written by its shards with relaxed stores once per completion (never per message), read at any time
//! without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::backend;

/// A snapshot of a socket's counters. Counts are since the socket was built.
///
/// At rest, under PUBLISH to one peer, `messages_sent = messages_delivered + messages_dropped + what is still queued`; with more
/// peers each message counts once per addressed peer in `messages_delivered` and `messages_dropped`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Peers connected now.
    pub peers: u64,
    /// Messages accepted by `send` and `send_to`, each counted once however many peers it goes to.
    pub messages_sent: u64,
    /// Messages handed to the kernel, per peer.
    pub messages_delivered: u64,
    /// Messages dropped, per peer that misses them.
    pub messages_dropped: u64,
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
    /// Bytes handed to the kernel, framing and control included.
    pub bytes_sent: u64,
    /// Bytes received from the kernel, framing and control included.
    pub bytes_received: u64,
    /// Bytes of outbound log in use.
    pub log_bytes: u64,
    /// Bytes received and not yet taken by the application.
    pub receive_bytes: u64,
    /// Links that became peers.
    pub connects: u64,
    /// Links of peers that ended.
    pub disconnects: u64,
    /// Connections refused before they became peers.
    pub rejects: u64,
    /// Times that a full receive queue stopped the reading of a link.
    pub receive_pauses: u64,
    /// Times that `send` found the log full.
    pub send_waits: u64,
}

/// The live counters.
#[derive(Default)]
pub(crate) struct Counters {
    /// Accepted by `send_to`.
    pub(crate) directed: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) resent: AtomicU64,
    pub(crate) duplicates: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) disconnects: AtomicU64,
    pub(crate) rejects: AtomicU64,
    pub(crate) receive_pauses: AtomicU64,
    pub(crate) send_waits: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// The part of a snapshot that counters know; the caller fills in what is a level rather than a count.
    pub(crate) fn snapshot(&self) -> Stats {
        Stats {
            messages_delivered: self.delivered.load(Relaxed),
            messages_dropped: self.dropped.load(Relaxed),
            messages_expired: self.expired.load(Relaxed),
            messages_acknowledged: self.acknowledged.load(Relaxed),
            messages_resent: self.resent.load(Relaxed),
            duplicates_removed: self.duplicates.load(Relaxed),
            messages_received: self.received.load(Relaxed),
            bytes_sent: self.bytes_sent.load(Relaxed),
            bytes_received: self.bytes_received.load(Relaxed),
            connects: self.connects.load(Relaxed),
            disconnects: self.disconnects.load(Relaxed),
            rejects: self.rejects.load(Relaxed),
            receive_pauses: self.receive_pauses.load(Relaxed),
            send_waits: self.send_waits.load(Relaxed),
            ..Stats::default()
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
    /// System calls of the backend.
    pub syscalls: u64,
    /// Operations given to the backend.
    pub submissions: u64,
    /// What came back from it.
    pub completions: u64,
    /// Receives that found no free buffer.
    pub buffers_exhausted: u64,
    /// Times that the kernel had more completions than room for them.
    pub overflows: u64,
}

/// The live counters of a shard. Written by its reactor alone.
#[derive(Default)]
pub(crate) struct ShardCounters {
    turns: AtomicU64,
    waits: AtomicU64,
    syscalls: AtomicU64,
    submissions: AtomicU64,
    completions: AtomicU64,
    buffers_exhausted: AtomicU64,
    overflows: AtomicU64,
}

impl ShardCounters {
    pub(crate) fn tell(&self, waited: bool, backend: backend::Counters) {
        let add = |counter: &AtomicU64, n| counter.store(counter.load(Relaxed) + n, Relaxed);
        add(&self.turns, 1);
        add(&self.waits, u64::from(waited));
        self.syscalls.store(backend.syscalls, Relaxed);
        self.submissions.store(backend.submissions, Relaxed);
        self.completions.store(backend.completions, Relaxed);
        self.buffers_exhausted.store(backend.enobufs, Relaxed);
        self.overflows.store(backend.cq_overflows, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> ShardStats {
        ShardStats {
            turns: self.turns.load(Relaxed),
            waits: self.waits.load(Relaxed),
            syscalls: self.syscalls.load(Relaxed),
            submissions: self.submissions.load(Relaxed),
            completions: self.completions.load(Relaxed),
            buffers_exhausted: self.buffers_exhausted.load(Relaxed),
            overflows: self.overflows.load(Relaxed),
        }
    }
}
