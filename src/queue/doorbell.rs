//! Waking a shard that sleeps, and only then: the wake costs the caller microseconds, the check a fence and a load.
//!
//! ```text
//!   producer                          sleeper (the shard)
//!   1. publish the work               1. prepare_sleep()
//!   2. ring()                         2. look at every source of work again
//!                                     3. none: sleep (wait in the kernel); some: do not
//!                                     4. awake()
//! ```
//! Invariant: if `ring` finds nobody sleeping, then the sleeper's second look comes after the publication and sees the
//! work. Both sides write first and read second, with a sequentially consistent fence in between.
//! A wake may come late, when the sleeper is already up again: it costs one turn that finds nothing, never more.
//! One sleeper, any number of producers.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, fence};
use std::task::Waker;

use crate::sabotage::{Bug, planted};
use crossbeam_utils::CachePadded;
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, fence};

/// The bell of one shard: rung by whoever published work for it.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    /// Written by the sleeper (true, false) and by the one ringer that wins (false).
    sleeping: CachePadded<AtomicBool>,
    /// What makes the shard's wait in the kernel return; set once, by the shard, before its first sleep.
    waker: OnceLock<Waker>,
}

impl Doorbell {
    /// A bell that does not wake anybody until [`set_waker`](Self::set_waker).
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Says how to wake the sleeper. The first call counts; later ones are ignored.
    pub(crate) fn set_waker(&self, waker: Waker) {
        // A second waker would belong to a second sleeper, which the protocol above excludes.
        let fresh = self.waker.set(waker).is_ok();
        debug_assert!(fresh, "a doorbell has one sleeper, and that one has one waker");
    }

    /// Wakes the sleeper if it sleeps; true if it did. To be called after the work was published.
    #[inline]
    pub(crate) fn ring(&self) -> bool {
        // Orders the publication before the look at the flag (pairs with the fence in `prepare_sleep`).
        fence(Ordering::SeqCst);
        !planted(Bug::DoorbellLost) && self.sleeping.load(Ordering::Relaxed) && self.wake()
    }

    /// Announces that the sleeper is about to sleep. It must look at its sources of work once more before it does.
    #[inline]
    pub(crate) fn prepare_sleep(&self) {
        debug_assert!(self.waker.get().is_some(), "nobody could wake this sleeper");
        self.sleeping.store(true, Ordering::Relaxed);
        // Orders the announcement before the second look (pairs with the fence in `ring`).
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back: the sleeper is up, rings need not wake it. True if one has: announced, it was not taken back.
    #[inline]
    pub(crate) fn awake(&self) -> bool {
        !self.sleeping.swap(false, Ordering::Relaxed)
    }

    /// Of several ringers, the one that clears the flag pays for the wake.
    #[cold]
    fn wake(&self) -> bool {
        // A loser writes nothing: so who reads `false` reads the sleeper's own word, or a winner's, who wakes.
        if self.sleeping.compare_exchange(true, false, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        match self.waker.get() {
            Some(waker) => {
                waker.wake_by_ref();
                true
            }
            None => false,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize};
    use std::task::Wake;
    use std::thread::{self, Thread};
    use std::time::{Duration, Instant};

    use super::*;

    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    #[test]
    fn wakes_only_a_sleeper_and_only_once() {
        let wakes = Arc::new(Counter(AtomicUsize::new(0)));
        let bell = Doorbell::new();
        assert!(!bell.ring());
        bell.set_waker(Waker::from(wakes.clone()));
        assert!(!bell.ring());
        bell.prepare_sleep();
        assert!(bell.ring());
        assert!(!bell.ring());
        bell.awake();
        bell.prepare_sleep();
        bell.awake();
        assert!(!bell.ring());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    }

    /// Two threads hand a number back and forth; each sleeps until rung. A lost wake-up shows as a park that lasts
    /// until its time limit although the number has moved.
    #[test]
    fn ping_pong_loses_no_wake_up() {
        const ROUNDS: u64 = 20_000;
        struct Side {
            bell: Doorbell,
            mail: AtomicU64,
        }
        let sides: [Arc<Side>; 2] =
            std::array::from_fn(|_| Arc::new(Side { bell: Doorbell::new(), mail: AtomicU64::new(0) }));

        fn wait_for(side: &Side, round: u64) {
            let started = Instant::now();
            while side.mail.load(Ordering::Relaxed) < round {
                side.bell.prepare_sleep();
                if side.mail.load(Ordering::Relaxed) < round {
                    thread::park_timeout(Duration::from_secs(20));
                }
                side.bell.awake();
                assert!(started.elapsed() < Duration::from_secs(10), "a wake-up was lost in round {round}");
            }
        }

        let [here, there] = sides.clone();
        here.bell.set_waker(Waker::from(Arc::new(Unpark(thread::current()))));
        let other = thread::spawn(move || {
            there.bell.set_waker(Waker::from(Arc::new(Unpark(thread::current()))));
            for round in 1..=ROUNDS {
                wait_for(&there, round);
                here.mail.store(round, Ordering::Relaxed);
                here.bell.ring();
            }
        });
        let [here, there] = sides;
        for round in 1..=ROUNDS {
            there.mail.store(round, Ordering::Relaxed);
            there.bell.ring();
            wait_for(&here, round);
        }
        other.join().unwrap();
    }
}

/// Every interleaving, to be run with `--cfg loom`. Taking either fence away must make a model fail.
#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;
    use std::task::Wake;

    use loom::sync::Notify;
    use loom::sync::atomic::AtomicUsize;

    use super::*;

    struct Bed(Notify);

    impl Wake for Bed {
        fn wake(self: Arc<Self>) {
            self.0.notify();
        }
    }

    fn no_wake_up_is_lost(producers: usize, preemptions_max: usize) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions_max);
        builder.check(move || {
            let bed = Arc::new(Bed(Notify::new()));
            let shared = Arc::new((Doorbell::new(), AtomicUsize::new(0)));
            shared.0.set_waker(Waker::from(bed.clone()));
            for _ in 0..producers {
                let shared = shared.clone();
                loom::thread::spawn(move || {
                    shared.1.fetch_add(1, Ordering::Relaxed);
                    shared.0.ring();
                });
            }
            // A lost wake-up leaves this thread asleep with nobody to run: loom reports the deadlock.
            while shared.1.load(Ordering::Relaxed) < producers {
                shared.0.prepare_sleep();
                if shared.1.load(Ordering::Relaxed) < producers {
                    bed.0.wait();
                }
                shared.0.awake();
            }
        });
    }

    #[test]
    fn one_producer() {
        no_wake_up_is_lost(1, 4);
    }

    #[test]
    fn two_producers() {
        no_wake_up_is_lost(2, 2);
    }
}
