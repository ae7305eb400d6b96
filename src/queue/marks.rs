//! Which shards have something to send for one socket: a mark for each, so that a message costs its sender one swap, and a wake-up
//! only when the shard has looked since the last one.
//!
//! ```text
//!   sender                               shard
//!   1. append to the log or the mail     1. take(): clears the mark
//!   2. mark(): true: queue, ring         2. look at log and mail
//!                                        a link joins: joined(), then look at the log
//!                                        nobody to send to: keep() leaves the mark, and no sender rings
//! ```
//! Invariant: whoever finds a shard marked has published before the shard's next look. All sides swap the same mark, one after the
//! other: either the shard's swap comes later and sees what was published before the sender's, or the sender's comes later and finds
//! the shard unmarked.
//!
//! Called by `shard`, on behalf of the socket's handles as well. It never wakes anybody by itself.

use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicUsize};

use crossbeam_utils::CachePadded;
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicUsize};

/// The marks of one socket.
#[derive(Debug)]
pub(crate) struct Marks {
    /// The shard that is told when the log grows, and tells the others.
    home: usize,
    shards: Box<[CachePadded<Mark>]>,
}

#[derive(Debug, Default)]
struct Mark {
    /// The shard is told, or about to be. Cleared by the shard.
    dirty: AtomicBool,
    /// Live links there. Written by the shard.
    links: AtomicUsize,
}

impl Marks {
    /// Nobody is marked and nobody has links.
    pub(crate) fn new(home: usize, shards: usize) -> Self {
        Self { home, shards: (0..shards).map(|_| CachePadded::new(Mark::default())).collect() }
    }

    /// There is something new for a shard: in the log, in its mail, or elsewhere. True if the shard has to be told.
    #[inline]
    pub(crate) fn mark(&self, shard: usize) -> bool {
        !self.shards[shard].dirty.swap(true, Ordering::AcqRel)
    }

    /// The shard is about to look.
    pub(crate) fn take(&self, shard: usize) {
        self.shards[shard].dirty.swap(false, Ordering::AcqRel);
    }

    /// Leaves the home shard marked while there is nobody to send to, so that nobody rings it in vain. True if it has to be told after
    /// all: somebody joined meanwhile, and may have looked at the log before a sender that found the mark.
    pub(crate) fn keep(&self) -> bool {
        let nobody = || self.shards.iter().all(|mark| mark.links.load(Ordering::Relaxed) == 0);
        if !nobody() {
            return false;
        }
        // If the swap of `joined` came first, this one sees the link.
        self.shards[self.home].dirty.swap(true, Ordering::AcqRel);
        if nobody() {
            return false;
        }
        self.take(self.home);
        self.mark(self.home)
    }

    /// A link lives on a shard now; it is about to look at the log.
    pub(crate) fn joined(&self, shard: usize) {
        self.shards[shard].links.fetch_add(1, Ordering::Relaxed);
        self.take(self.home);
    }

    /// A link is gone.
    pub(crate) fn left(&self, shard: usize) {
        self.shards[shard].links.fetch_sub(1, Ordering::Relaxed);
    }

    /// The other shards with links, for the home shard to mark when it has looked.
    pub(crate) fn others(&self, home: usize) -> impl Iterator<Item = usize> + '_ {
        let has_links = move |shard: &usize| *shard != home && self.shards[*shard].links.load(Ordering::Relaxed) > 0;
        (0..self.shards.len()).filter(has_links)
    }
}

/// Every interleaving, to be run by `tests/loom/run`. Weakening any swap must make a model fail.
#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;

    use loom::sync::Notify;
    use loom::sync::atomic::AtomicUsize;

    use super::*;

    /// What a shard is rung by.
    struct Socket {
        marks: Marks,
        /// What was published.
        log: AtomicUsize,
        rung: [Notify; 2],
        told: [AtomicUsize; 2],
    }

    impl Socket {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                marks: Marks::new(0, 2),
                log: AtomicUsize::new(0),
                rung: [Notify::new(), Notify::new()],
                told: [AtomicUsize::new(0), AtomicUsize::new(0)],
            })
        }

        fn tell(&self, shard: usize) {
            self.told[shard].fetch_add(1, Ordering::Release);
            self.rung[shard].notify();
        }

        fn send(&self) {
            self.log.fetch_add(1, Ordering::Relaxed);
            if self.marks.mark(0) {
                self.tell(0);
            }
        }
    }

    fn check(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    /// A shard that sleeps until it is told sees every message: otherwise loom reports that it sleeps for ever.
    #[test]
    fn what_is_published_is_seen() {
        check(|| {
            let socket = Socket::new();
            let sending = loom::thread::spawn({
                let socket = socket.clone();
                move || (0..2).for_each(|_| socket.send())
            });
            while {
                socket.marks.take(0);
                socket.log.load(Ordering::Relaxed) < 2
            } {
                socket.rung[0].wait();
            }
            sending.join().unwrap();
        });
    }

    /// The home shard has nobody to send to and keeps its mark while a link joins at the other shard: the link sees the message, or
    /// its shard is told.
    #[test]
    fn a_link_that_joins_meanwhile_gets_it() {
        check(|| {
            let socket = Socket::new();
            let sending = loom::thread::spawn({
                let socket = socket.clone();
                move || socket.send()
            });
            let joining = loom::thread::spawn({
                let socket = socket.clone();
                move || {
                    socket.marks.joined(1);
                    socket.log.load(Ordering::Relaxed) == 1
                }
            });
            if socket.marks.keep() {
                socket.tell(0);
            }
            sending.join().unwrap();
            let seen = joining.join().unwrap();
            // What the home shard does when it was told.
            if socket.told[0].load(Ordering::Acquire) > 0 {
                socket.marks.take(0);
                socket.marks.others(0).for_each(|shard| {
                    if socket.marks.mark(shard) {
                        socket.tell(shard);
                    }
                });
            }
            assert!(seen || socket.told[1].load(Ordering::Acquire) > 0, "neither seen nor told");
        });
    }
}
