//! How calls wait, asynchronously or not. Each guard here is made before the last look at what is waited for, and undoes its marks
//! when it is dropped, so that a cancelled call leaves nothing behind.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Instant;

use crate::queue::{Listener, Waiters};
use crate::shard::{Phase, Reply, SocketShared};

/// A sender that waits for room in the log.
pub(super) struct Room<'a> {
    shared: &'a SocketShared,
    listener: Option<Listener>,
}

impl<'a> Room<'a> {
    pub(super) fn new(shared: &'a SocketShared) -> Room<'a> {
        let listener = shared.room.listen();
        shared.begin_wait();
        shared.tell_wait();
        Room { shared, listener: Some(listener) }
    }

    pub(super) async fn notified(mut self) {
        if let Some(listener) = self.listener.take() {
            listener.await;
        }
    }

    /// False if the deadline passed first.
    pub(super) fn block(mut self, deadline: Option<Instant>) -> bool {
        self.listener.take().is_none_or(|listener| block(listener, deadline))
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.shared.end_wait();
    }
}

/// A receiver that waits for a message.
pub(super) struct Arrival<'a> {
    waiting: &'a AtomicUsize,
    listener: Option<Listener>,
}

impl<'a> Arrival<'a> {
    pub(super) fn new(shared: &SocketShared, waiting: &'a AtomicUsize) -> Arrival<'a> {
        waiting.fetch_add(1, Ordering::SeqCst);
        Arrival { waiting, listener: Some(shared.inbox.listen()) }
    }

    pub(super) async fn notified(mut self) {
        if let Some(listener) = self.listener.take() {
            listener.await;
        }
    }

    /// False if the deadline passed first.
    pub(super) fn block(mut self, deadline: Option<Instant>) -> bool {
        self.listener.take().is_none_or(|listener| block(listener, deadline))
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Blocks the thread; false if the deadline passed first.
pub(super) fn block(listener: Listener, deadline: Option<Instant>) -> bool {
    match deadline {
        None => {
            listener.wait();
            true
        }
        Some(deadline) => listener.wait_deadline(deadline),
    }
}

/// An engine's answer; `None` if the socket ended before it came.
pub(super) async fn answer<T>(reply: &Reply<T>, ended: &Waiters) -> Option<T> {
    let mut last = false;
    loop {
        let (filled, end) = (reply.listen(), ended.listen());
        if let Some(value) = reply.take() {
            return Some(value);
        }
        if last {
            return None;
        }
        // A socket that ends has its answers already, or gets none.
        last = either(filled, end).await;
    }
}

/// An answer that always comes.
pub(super) async fn done<T>(reply: &Reply<T>) -> Option<T> {
    loop {
        let filled = reply.listen();
        if let Some(value) = reply.take() {
            return Some(value);
        }
        filled.await;
    }
}

/// As [`done`], for a thread.
pub(super) fn done_blocking<T>(reply: &Reply<T>) -> T {
    loop {
        let filled = reply.listen();
        if let Some(value) = reply.take() {
            return value;
        }
        filled.wait();
    }
}

/// As [`answer`], for a thread.
pub(super) fn answer_blocking<T>(reply: &Reply<T>, shared: &SocketShared) -> Option<T> {
    loop {
        let filled = reply.listen();
        if let Some(value) = reply.take() {
            return Some(value);
        }
        if shared.phase() >= Phase::Closed {
            return None;
        }
        filled.wait_timeout(std::time::Duration::from_millis(100));
    }
}

/// Waits for one of two; true if it was the second.
pub(super) async fn either(mut first: Listener, mut second: Listener) -> bool {
    std::future::poll_fn(|cx| {
        if Pin::new(&mut first).poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        Pin::new(&mut second).poll(cx).map(|()| true)
    })
    .await
}
