//! A lock for turns that are short: one atomic read-modify-write takes it and a store gives it back, where a lock that parks threads
//! needs a second one, to see whether somebody is parked. Of what a message costs its sender or its receiver, that is a tenth.
//!
//! Invariant: `taken` is true while there is a [`Turn`], and there is one at most.
//!
//! Taken by `socket`, for each message. Who finds it taken spins, then yields, then naps; it never stays asleep for longer than
//! [`NAP`], so a waiter of any priority lets whoever has its turn finish.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::{sync::atomic::AtomicBool, time::Duration};

#[cfg(not(loom))]
use crossbeam_utils::Backoff;
#[cfg(loom)]
use loom::sync::atomic::AtomicBool;

/// How long a thread sleeps that has spun and yielded in vain: whoever has its turn was taken off its core, or copies much.
#[cfg(not(loom))]
const NAP: Duration = Duration::from_micros(50);

/// A value that threads use in turns.
pub(crate) struct Turns<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
    #[cfg(loom)]
    ended: loom::sync::Notify,
}

// SAFETY: the value is used by one thread at a time, and each sees what the one before it did.
unsafe impl<T: Send> Sync for Turns<T> {}

impl<T> Turns<T> {
    pub(crate) fn new(value: T) -> Turns<T> {
        Turns {
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
            #[cfg(loom)]
            ended: loom::sync::Notify::new(),
        }
    }

    /// Waits for a turn.
    #[inline]
    pub(crate) fn take(&self) -> Turn<'_, T> {
        while self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.wait();
        }
        Turn { turns: self, _stays: PhantomData }
    }

    /// Until it looks as if nobody had a turn.
    #[cfg(not(loom))]
    #[cold]
    fn wait(&self) {
        let backoff = Backoff::new();
        while self.taken.load(Ordering::Relaxed) {
            match backoff.is_completed() {
                true => std::thread::sleep(NAP),
                false => backoff.snooze(),
            }
        }
    }

    /// Loom does not follow loops that turn until something changes.
    #[cfg(loom)]
    fn wait(&self) {
        self.ended.wait();
    }
}

/// The value for as long as the turn lasts: until this is dropped. Stays on its thread.
pub(crate) struct Turn<'a, T> {
    turns: &'a Turns<T>,
    /// Not to be sent or shared.
    _stays: PhantomData<*const T>,
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this is the only turn, and as long as the borrow lasts nobody has it exclusively.
        unsafe { &*self.turns.value.get() }
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this is the only turn, and it is borrowed exclusively.
        unsafe { &mut *self.turns.value.get() }
    }
}

impl<T> Drop for Turn<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.turns.taken.store(false, Ordering::Release);
        #[cfg(loom)]
        self.turns.ended.notify();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        const THREADS: usize = 4;
        const ROUNDS: usize = 20_000;
        let turns = Turns::new((0, 0));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let mut turn = turns.take();
                        turn.0 += 1;
                        assert_eq!(turn.0, turn.1 + 1, "somebody is in between");
                        turn.1 += 1;
                    }
                });
            }
        });
        assert_eq!(*turns.take(), (THREADS * ROUNDS, THREADS * ROUNDS));
    }

    #[test]
    fn a_panic_ends_the_turn() {
        let turns = std::sync::Arc::new(Turns::new(1));
        let theirs = turns.clone();
        let panicked = std::thread::spawn(move || {
            let _turn = theirs.take();
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert_eq!(*turns.take(), 1);
    }
}

/// Every interleaving, to be run by `tests/loom/run`. Weakening any of the orderings must make the model fail.
#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn turns_follow_each_other() {
        loom::model(|| {
            // Loom's cell notices who is not alone with it.
            let turns = Arc::new(Turns::new(loom::cell::UnsafeCell::new(0)));
            let use_it = |turns: &Turns<loom::cell::UnsafeCell<usize>>| {
                // SAFETY: whether nobody else is there is what loom checks.
                turns.take().with_mut(|value| unsafe { *value += 1 });
            };
            let other = loom::thread::spawn({
                let turns = turns.clone();
                move || use_it(&turns)
            });
            use_it(&turns);
            other.join().unwrap();
            // SAFETY: as above.
            assert_eq!(turns.take().with(|value| unsafe { *value }), 2);
        });
    }
}
