//! Those who wait for something to happen to a socket: tasks and blocked threads, in the order in which they came.
//!
//! ```text
//!   waiter                            notifier
//!   listen()                          makes it true
//!   looks: is it true already?        notify()
//!   waits
//! ```
//! Invariants:
//! - Who listens before the last look misses no notification: the waiter counts itself in, then looks; the notifier makes it true,
//!   then reads the count; both with a full fence between.
//! - A listener that was notified and is dropped before it knew passes the notification on.
//! - Wakers are called without the lock. A thread that is woken takes the lock first of all; woken by one who holds it, it would go
//!   to sleep again at once, and on one core it always would.
//!
//! Called by whoever blocks (`socket`) and by the shards. It does not say what has happened: who is woken looks.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicUsize, fence};
use std::sync::{Arc, PoisonError};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

#[cfg(loom)]
use loom::sync::atomic::{AtomicUsize, fence};
#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};

/// Wakers called between two visits to the lock at most.
const BATCH: usize = 32;

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Waiters {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Listeners in the list. Changed under the lock.
    listeners: AtomicUsize,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    /// In order of their tickets, which only grow.
    entries: VecDeque<Entry>,
    ticket_next: u64,
    /// Among the entries.
    notified: usize,
}

struct Entry {
    ticket: u64,
    state: State,
}

enum State {
    /// Made, but not polled yet.
    Listening,
    Waiting(Waker),
    Notified,
}

impl Waiters {
    pub(crate) fn new() -> Waiters {
        Waiters::default()
    }

    /// Counts the caller in. It looks once more at what it waits for after this, and only then waits.
    pub(crate) fn listen(&self) -> Listener {
        let mut list = self.inner.lock();
        let ticket = list.ticket_next;
        list.ticket_next += 1;
        list.entries.push_back(Entry { ticket, state: State::Listening });
        self.inner.listeners.store(list.entries.len(), Ordering::Relaxed);
        drop(list);
        // Orders the count before the caller's look; pairs with `notify`.
        fence(Ordering::SeqCst);
        Listener { inner: Arc::clone(&self.inner), ticket, is_done: false }
    }

    /// Notifies listeners, the oldest first, until `n` are notified, those included that were before and do not know it yet.
    #[inline]
    pub(crate) fn notify(&self, n: usize) {
        // Orders what the caller has done before the look at the count; pairs with `listen`.
        fence(Ordering::SeqCst);
        if self.inner.listeners.load(Ordering::Relaxed) > 0 {
            self.inner.notify(n);
        }
    }
}

impl std::fmt::Debug for Waiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiters").field("listeners", &self.inner.listeners).finish()
    }
}

impl Inner {
    /// The list. It is whole between any two operations.
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn notify(&self, n: usize) {
        let mut wakers = [const { None }; BATCH];
        let mut more = true;
        // Bounded by the number of listeners: each pass but the last notifies `BATCH` of them.
        while more {
            let mut count = 0;
            let mut list = self.lock();
            let List { entries, notified, .. } = &mut *list;
            let mut unaware = entries.iter_mut().filter(|entry| !matches!(entry.state, State::Notified));
            more = loop {
                if *notified >= n {
                    break false;
                }
                if count == BATCH {
                    break true;
                }
                let Some(entry) = unaware.next() else { break false };
                *notified += 1;
                if let State::Waiting(waker) = std::mem::replace(&mut entry.state, State::Notified) {
                    wakers[count] = Some(waker);
                    count += 1;
                }
            };
            drop(list);
            wakers[..count].iter_mut().filter_map(Option::take).for_each(Waker::wake);
        }
    }

    /// Takes a listener off the list; true if it was notified.
    fn remove(&self, list: &mut List, at: usize) -> bool {
        let entry = list.entries.remove(at);
        self.listeners.store(list.entries.len(), Ordering::Relaxed);
        let notified = matches!(entry, Some(Entry { state: State::Notified, .. }));
        list.notified -= usize::from(notified);
        notified
    }
}

impl List {
    fn place(&self, ticket: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&ticket, |entry| entry.ticket).ok()
    }
}

/// One who waits. As a future it is ready once notified, and can be dropped at any time.
pub(crate) struct Listener {
    inner: Arc<Inner>,
    ticket: u64,
    is_done: bool,
}

impl Listener {
    /// Blocks the thread until notified.
    pub(crate) fn wait(self) {
        self.block(None);
    }

    /// Blocks the thread; false if the deadline passed first.
    pub(crate) fn wait_deadline(self, deadline: Instant) -> bool {
        self.block(Some(deadline))
    }

    /// Blocks the thread; false if `timeout` passed first.
    pub(crate) fn wait_timeout(self, timeout: Duration) -> bool {
        self.block(Instant::now().checked_add(timeout))
    }

    fn block(mut self, deadline: Option<Instant>) -> bool {
        thread_local!(static UNPARK: Waker = Waker::from(Arc::new(Unpark(thread::current()))));
        UNPARK.with(|waker| {
            let mut context = Context::from_waker(waker);
            // A thread may be unparked for other reasons too.
            while Pin::new(&mut self).poll(&mut context).is_pending() {
                match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                    None => thread::park(),
                    Some(Duration::ZERO) => return false,
                    Some(left) => thread::park_timeout(left),
                }
            }
            true
        })
    }
}

impl Future for Listener {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.is_done {
            return Poll::Ready(());
        }
        let mut list = self.inner.lock();
        let Some(at) = list.place(self.ticket) else { return Poll::Ready(()) };
        match &mut list.entries[at].state {
            State::Notified => {
                self.inner.remove(&mut list, at);
                drop(list);
                self.is_done = true;
                return Poll::Ready(());
            }
            State::Waiting(waker) => waker.clone_from(context.waker()),
            state => *state = State::Waiting(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let mut list = self.inner.lock();
        let Some(at) = list.place(self.ticket) else { return };
        let notified = self.inner.remove(&mut list, at);
        drop(list);
        if notified {
            self.inner.notify(1);
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Every interleaving, to be run by `tests/loom/run`. Taking either fence away must make the model fail.
#[cfg(all(test, loom))]
mod models {
    use loom::sync::Notify;

    use super::*;

    struct Bed(Notify);

    impl Wake for Bed {
        fn wake(self: Arc<Self>) {
            self.0.notify();
        }
    }

    #[test]
    fn who_listens_before_the_last_look_is_notified() {
        loom::model(|| {
            let shared = Arc::new((Waiters::new(), AtomicUsize::new(0)));
            let notifier = loom::thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.1.store(1, Ordering::Relaxed);
                    shared.0.notify(1);
                }
            });
            let bed = Arc::new(Bed(Notify::new()));
            let waker = Waker::from(bed.clone());
            let mut listener = shared.0.listen();
            if shared.1.load(Ordering::Relaxed) == 0 {
                // A lost notification leaves this thread asleep with nobody to run: loom reports the deadlock.
                while Pin::new(&mut listener).poll(&mut Context::from_waker(&waker)).is_pending() {
                    bed.0.wait();
                }
            }
            drop(listener);
            notifier.join().unwrap();
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn is_ready(listener: &mut Listener) -> bool {
        Pin::new(listener).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_oldest_is_notified_first_and_not_twice() {
        let waiters = Waiters::new();
        let [mut a, mut b, mut c] = [(); 3].map(|()| waiters.listen());
        assert!(!is_ready(&mut a));
        waiters.notify(1);
        // The first does not know it yet: no other needs to be told.
        waiters.notify(1);
        assert!(!is_ready(&mut b) && is_ready(&mut a));
        waiters.notify(1);
        assert!(is_ready(&mut b) && !is_ready(&mut c));
        waiters.notify(usize::MAX);
        assert!(is_ready(&mut c));
    }

    #[test]
    fn a_dropped_listener_passes_its_notification_on() {
        let waiters = Waiters::new();
        let [a, b, mut c] = [(); 3].map(|()| waiters.listen());
        waiters.notify(1);
        drop(b);
        assert!(!is_ready(&mut c));
        drop(a);
        assert!(is_ready(&mut c));
        assert_eq!(waiters.inner.listeners.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_are_notified_in_batches() {
        let waiters = Waiters::new();
        let mut all: Vec<_> = (0..3 * BATCH + 1).map(|_| waiters.listen()).collect();
        assert!(all.iter_mut().all(|listener| !is_ready(listener)));
        waiters.notify(usize::MAX);
        assert!(all.iter_mut().all(is_ready));
    }

    #[test]
    fn threads_wait_until_notified_or_a_deadline() {
        let waiters = Waiters::new();
        assert!(!waiters.listen().wait_timeout(Duration::from_millis(1)));
        assert!(!waiters.listen().wait_deadline(Instant::now()));
        let flag = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 1..=1000 {
                        loop {
                            let listener = waiters.listen();
                            if flag.load(Ordering::Acquire) >= round {
                                break;
                            }
                            listener.wait();
                        }
                    }
                });
            }
            for round in 1..=1000 {
                flag.store(round, Ordering::Release);
                waiters.notify(usize::MAX);
                if round % 64 == 0 {
                    thread::yield_now();
                }
            }
        });
    }
}
