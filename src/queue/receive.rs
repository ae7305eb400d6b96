//! What the shards received for one socket, until the application takes it: entries (one per completion, not one per
//! message), bounded in number and in bytes.
//!
//! ```text
//!   shard                                   application
//!   push: refused?                          pop an entry, walk its messages
//!     mark_starved(), push again            release(its bytes) when done with it
//!     still refused: stop reading             true: tell the paused shards to read again
//! ```
//! Invariants:
//! - A push is refused once the bytes held have reached the limit, so what is held exceeds the limit by at most one
//!   entry per shard that pushes at the same time.
//! - The count never runs ahead of what is held (bytes are added after the entry is in, so it may lag for a moment and
//!   even be negative): no refusal comes from an entry that is not there.
//! - A shard that was refused after `mark_starved` is told: the refusal means that an entry is held, so a `release`
//!   follows, and it sees the mark. Every entry must be released, also one of zero bytes.
//!
//! Waiting for `arrived` is the consumer's business; several consumers may wait. A consumer that takes something and
//! leaves more behind passes the notification on ([`ReceiveQueue::notify_next`]).

use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicIsize, fence};

use super::{Listener, Waiters};
use crate::sabotage::{Bug, planted};
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicIsize, fence};

/// The bounded receive queue of one socket: shards push, the application pops.
#[derive(Debug)]
pub(crate) struct ReceiveQueue<E> {
    entries: ArrayQueue<E>,
    /// Bytes that the application has not released; written by both sides, may lag behind (see the file's header).
    bytes: CachePadded<AtomicIsize>,
    /// Bytes, at least 1.
    limit_bytes: isize,
    /// Some shard has stopped reading because of this queue. Set by shards, cleared by `release`.
    starved: AtomicBool,
    /// No more pushes; what is in can still be taken.
    closed: AtomicBool,
    arrived: Waiters,
}

impl<E> ReceiveQueue<E> {
    /// A queue for at most `slots` entries (at least 1) that together hold about `limit_bytes` (at least 1).
    pub(crate) fn new(slots: usize, limit_bytes: usize) -> Self {
        Self {
            entries: ArrayQueue::new(slots.max(1)),
            bytes: CachePadded::new(AtomicIsize::new(0)),
            limit_bytes: isize::try_from(limit_bytes).unwrap_or(isize::MAX).max(1),
            starved: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            arrived: Waiters::new(),
        }
    }

    /// Adds an entry that holds `bytes` of memory and notifies one waiting consumer. Gives the entry back when the
    /// bytes held have reached the limit, when all slots are taken, or when the queue is closed.
    pub(crate) fn push(&self, entry: E, bytes: usize) -> Result<(), E> {
        if self.bytes.load(Ordering::Relaxed) >= self.limit_bytes && !planted(Bug::NoReceiveLimit) || self.is_closed() {
            return Err(entry);
        }
        self.entries.push(entry)?;
        self.bytes.fetch_add(signed(bytes), Ordering::Relaxed);
        self.notify_next();
        Ok(())
    }

    /// The oldest entry. Its bytes stay charged until [`release`](Self::release).
    pub(crate) fn pop(&self) -> Option<E> {
        self.entries.pop()
    }

    /// Takes the bytes of a popped entry off the account. True when the queue has come down to half of its limit and a
    /// shard was starved: the caller then tells the paused shards to read again.
    #[must_use = "paused shards read again only when they are told"]
    pub(crate) fn release(&self, bytes: usize) -> bool {
        let held = self.bytes.fetch_sub(signed(bytes), Ordering::Relaxed) - signed(bytes);
        // Orders the release (and the pop before it) before the look at the mark; pairs with `mark_starved`.
        fence(Ordering::SeqCst);
        held <= self.limit_bytes / 2
            && self.starved.load(Ordering::Relaxed)
            && self.starved.compare_exchange(true, false, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Leaves the mark of a shard that was refused. It must try the push once more before it stops reading.
    pub(crate) fn mark_starved(&self) {
        self.starved.store(true, Ordering::Relaxed);
        // Orders the mark before the second push; pairs with `release`.
        fence(Ordering::SeqCst);
    }

    /// A listener for the next arrival or the close. Look at the queue again after making it, and only then wait.
    pub(crate) fn listen(&self) -> Listener {
        self.arrived.listen()
    }

    /// Notifies one waiting consumer, unless one has been notified and has not looked yet.
    pub(crate) fn notify_next(&self) {
        self.arrived.notify(1);
    }

    /// Refuses further entries and notifies every waiting consumer. What is in can still be popped.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.arrived.notify(usize::MAX);
    }

    /// Whether the queue was closed. Entries may be left.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether no entry waits (what was popped and not released does not count).
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries that wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes held: in waiting entries and in popped ones that were not released.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed).max(0).unsigned_abs()
    }
}

/// Memory objects are at most `isize::MAX` bytes long, so this loses nothing.
fn signed(bytes: usize) -> isize {
    debug_assert!(isize::try_from(bytes).is_ok());
    bytes as isize
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn refuses_at_the_limit_and_may_overshoot_by_an_entry() {
        let queue = ReceiveQueue::new(8, 100);
        queue.push('a', 99).unwrap();
        queue.push('b', 50).unwrap();
        assert_eq!(queue.bytes(), 149);
        assert_eq!(queue.push('c', 0), Err('c'));
        assert_eq!(queue.pop(), Some('a'));
        assert_eq!(queue.push('c', 0), Err('c'), "popped is not released");
        assert!(!queue.release(99), "nobody was starved");
        queue.push('c', 0).unwrap();
        assert_eq!((queue.len(), queue.bytes()), (2, 50));
    }

    #[test]
    fn refuses_when_all_slots_are_taken() {
        let queue = ReceiveQueue::new(2, 1_000);
        queue.push(1, 0).unwrap();
        queue.push(2, 0).unwrap();
        assert_eq!(queue.push(3, 0), Err(3));
        assert_eq!(queue.bytes(), 0);
        queue.mark_starved();
        assert_eq!(queue.pop(), Some(1));
        assert!(queue.release(0));
    }

    #[test]
    fn tells_the_starved_once_at_half_of_the_limit() {
        let queue = ReceiveQueue::new(8, 100);
        for entry in 0..4 {
            queue.push(entry, 25).unwrap();
        }
        assert!(queue.push(4, 25).is_err());
        queue.mark_starved();
        assert!(queue.push(4, 25).is_err());
        let told: Vec<bool> = std::iter::from_fn(|| queue.pop().map(|_| queue.release(25))).collect();
        assert_eq!(told, [false, true, false, false]);
    }

    #[test]
    fn the_smallest_limit_still_moves() {
        let queue = ReceiveQueue::new(0, 0);
        queue.push('a', 10).unwrap();
        queue.mark_starved();
        assert!(queue.push('b', 10).is_err());
        queue.pop().unwrap();
        assert!(queue.release(10));
        queue.push('b', 10).unwrap();
    }

    #[test]
    fn a_closed_queue_drains_and_wakes() {
        let queue = Arc::new(ReceiveQueue::new(2, 10));
        queue.push(1, 1).unwrap();
        let listener = queue.listen();
        let closer = thread::spawn({
            let queue = queue.clone();
            move || queue.close()
        });
        listener.wait();
        closer.join().unwrap();
        assert!(queue.is_closed());
        assert_eq!(queue.push(2, 1), Err(2));
        assert_eq!((queue.pop(), queue.is_empty()), (Some(1), true));
    }

    /// Two shards push as fast as they are let, one application takes; nobody may be left waiting for the other.
    #[test]
    fn starved_shards_are_always_told() {
        const ENTRIES: usize = 30_000;
        const SHARDS: usize = 2;
        let queue = Arc::new(ReceiveQueue::new(4, 64));
        let shards: Vec<_> = (0..SHARDS)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || {
                    for entry in 0..ENTRIES {
                        let bytes = entry % 40;
                        let mut refused = queue.push(bytes, bytes);
                        while let Err(entry) = refused {
                            queue.mark_starved();
                            refused = queue.push(entry, bytes);
                            if refused.is_err() {
                                thread::park_timeout(Duration::from_secs(20));
                            }
                        }
                    }
                })
            })
            .collect();
        let mut taken = 0;
        let mut most = 0;
        while taken < ENTRIES * SHARDS {
            let Some(bytes) = queue.pop() else {
                let listener = queue.listen();
                if queue.is_empty() {
                    assert!(listener.wait_timeout(Duration::from_secs(10)), "a wake-up was lost");
                }
                continue;
            };
            taken += 1;
            most = most.max(queue.bytes());
            if queue.release(bytes) {
                shards.iter().for_each(|shard| shard.thread().unpark());
            }
        }
        shards.into_iter().for_each(|shard| shard.join().unwrap());
        assert!(most <= 64 + SHARDS * 40, "{most} bytes held");
        assert_eq!(queue.bytes(), 0);
    }
}

/// Every interleaving of our own words, to be run with `--cfg loom` (crossbeam's queue is taken to be sequentially
/// consistent). Taking the mark's fence away must make the model fail; the one in `release` as well.
#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;

    use loom::sync::Notify;

    use super::*;

    #[test]
    fn a_starved_shard_is_told() {
        loom::model(|| {
            let shared = Arc::new((ReceiveQueue::new(2, 1), Notify::new()));
            let shard = loom::thread::spawn({
                let shared = shared.clone();
                move || {
                    let (queue, told) = &*shared;
                    for entry in 0..2 {
                        while queue.push(entry, 1).is_err() {
                            queue.mark_starved();
                            if queue.push(entry, 1).is_ok() {
                                break;
                            }
                            told.wait();
                        }
                    }
                }
            });
            let (queue, told) = &*shared;
            let mut taken = 0;
            while taken < 2 {
                match queue.pop() {
                    Some(_) => {
                        taken += 1;
                        if queue.release(1) {
                            told.notify();
                        }
                    }
                    None => loom::thread::yield_now(),
                }
            }
            shard.join().unwrap();
        });
    }
}
