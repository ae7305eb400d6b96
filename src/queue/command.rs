//! What application threads and other shards ask of a shard: a bounded queue, many producers, one consumer, with the
//! shard's doorbell.
//!
//! Invariant: after a successful `push` the shard is awake or has been rung. Never grows: a full queue gives the
//! command back, and the caller waits or reports. Source of the queue: crossbeam's `ArrayQueue`.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use super::doorbell::Doorbell;

/// The inbox of one shard.
#[derive(Debug)]
pub(crate) struct Commands<T> {
    queue: ArrayQueue<T>,
    doorbell: Arc<Doorbell>,
}

impl<T> Commands<T> {
    /// An inbox for at most `capacity` commands (at least 1), whose shard is woken by `doorbell`.
    pub(crate) fn new(capacity: usize, doorbell: Arc<Doorbell>) -> Self {
        Self { queue: ArrayQueue::new(capacity.max(1)), doorbell }
    }

    /// Hands a command to the shard and wakes it if it sleeps; gives it back when the inbox is full.
    pub(crate) fn push(&self, command: T) -> Result<(), T> {
        self.queue.push(command)?;
        self.doorbell.ring();
        Ok(())
    }

    /// The oldest command. Called by the shard only.
    pub(crate) fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Whether nothing waits; the shard's second look before it sleeps.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The bell of the shard that reads this inbox.
    pub(crate) fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn is_bounded_and_keeps_order() {
        let commands = Commands::new(2, Arc::new(Doorbell::new()));
        assert!(commands.is_empty());
        assert_eq!(commands.push(1), Ok(()));
        assert_eq!(commands.push(2), Ok(()));
        assert_eq!(commands.push(3), Err(3));
        assert_eq!(commands.pop(), Some(1));
        assert_eq!(commands.push(3), Ok(()));
        assert_eq!((commands.pop(), commands.pop(), commands.pop()), (Some(2), Some(3), None));
    }

    #[test]
    fn a_push_rings() {
        let bell = Arc::new(Doorbell::new());
        bell.set_waker(Waker::noop().clone());
        let commands = Commands::new(2, bell.clone());
        bell.prepare_sleep();
        commands.push(()).unwrap();
        // The push has cleared the announcement, so nobody is left to be woken.
        assert!(!commands.doorbell().ring());
    }
}
