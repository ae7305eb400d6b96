//! What the handles of one socket and the shards have in common. Nothing here is locked on the path of a message: the log has its
//! own appender, the receive queue is lock-free, counters are relaxed.
//!
//! Wake-up protocol of the way out: a sender appends, then calls [`SocketShared::appended`]; the shard calls
//! [`SocketShared::take_dirty`] before it reads the tail. Both have a full fence between their store and their load, so that either
//! the shard sees the message or the sender sees that the socket is not marked yet and marks it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;

use crate::backend::Address;
use crate::log;
use crate::protocol::Identity;
use crate::queue::{Commands, Doorbell, ReceiveQueue};
use crate::shard::command::Command;
use crate::shard::config::SocketConfig;
use crate::shard::event::{Event, EventQueue};
use crate::shard::inbound::Inbound;
use crate::shard::stats::{Counters, Stats};

/// Number of a socket within its engine; given again after the socket is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub(crate) u32);

impl SocketId {
    /// The number, dense from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The numbers that an engine's sockets go by.
pub(crate) struct SocketIds {
    max: usize,
    taken: Mutex<slab::Slab<()>>,
}

impl SocketIds {
    pub(crate) fn new(max: usize) -> SocketIds {
        SocketIds { max, taken: Mutex::new(slab::Slab::new()) }
    }

    /// A free number; the limit if there is none.
    pub(crate) fn take(self: &Arc<Self>) -> Result<TakenId, usize> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.len() >= self.max {
            return Err(self.max);
        }
        let id = SocketId(taken.insert(()) as u32);
        Ok(TakenId { id, ids: self.clone() })
    }
}

/// A number in use; free again when it is dropped, which is when the last shard has forgotten the socket.
pub(crate) struct TakenId {
    id: SocketId,
    ids: Arc<SocketIds>,
}

impl Drop for TakenId {
    fn drop(&mut self) {
        self.ids.taken.lock().unwrap_or_else(PoisonError::into_inner).try_remove(self.id.index());
    }
}

/// How other threads reach a shard.
pub(crate) struct Port {
    commands: Commands<Command>,
    /// The shard has ended; nobody takes commands any more.
    ended: AtomicBool,
    /// Sockets with something new to send. A socket is in here at most once, so that it never overflows.
    pub(crate) dirty: ArrayQueue<SocketId>,
}

impl Port {
    pub(crate) fn new(commands_max: usize, sockets_max: usize) -> Port {
        Port {
            commands: Commands::new(commands_max, Arc::new(Doorbell::new())),
            ended: AtomicBool::new(false),
            dirty: ArrayQueue::new(sockets_max),
        }
    }

    pub(crate) fn doorbell(&self) -> &Doorbell {
        self.commands.doorbell()
    }

    /// The oldest command.
    pub(super) fn take(&self) -> Option<Command> {
        self.commands.pop()
    }

    /// Whether neither a command nor a socket waits.
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.dirty.is_empty()
    }

    /// Nothing is taken any more; commands that came too late are dropped, and their askers see the socket's end.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        while self.commands.pop().is_some() {}
    }

    /// Hands over a command, yielding while the queue is full: commands are rare and a shard takes all of them in every turn.
    /// Gives it back when the shard has ended.
    pub(crate) fn command(&self, mut command: Command) -> Result<(), Command> {
        loop {
            if self.ended.load(Ordering::Acquire) {
                return Err(command);
            }
            match self.commands.push(command) {
                Ok(()) => return Ok(()),
                Err(back) => command = back,
            }
            std::thread::yield_now();
        }
    }
}

/// The life of a socket, in this order only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Open = 0,
    /// `close` was called or the last handle dropped: nothing more is accepted, what is queued drains.
    Closing = 1,
    /// All links are gone.
    Closed = 2,
    /// The engine ended under it.
    EngineStopped = 3,
}

/// One socket, as its handles and shards see it.
pub(crate) struct SocketShared {
    pub(crate) id: SocketId,
    _taken: TakenId,
    pub(crate) identity: Identity,
    pub(crate) config: SocketConfig,
    pub(crate) log: log::Handle,
    pub(crate) inbox: ReceiveQueue<Inbound>,
    pub(crate) events: EventQueue,
    pub(crate) counters: Counters,
    pub(crate) peers: Peers,
    pub(crate) ports: Arc<[Arc<Port>]>,
    /// Notified when there is room in the log again, and when the socket ends.
    pub(crate) room: event_listener::Event,
    /// 0, or the number of the wait that began when a sender found the log full.
    blocked: AtomicU64,
    waits: AtomicU64,
    /// Set by the first append after the home shard looked, cleared by the home shard.
    dirty: CachePadded<AtomicBool>,
    phase: AtomicU8,
    /// Notified when the phase changes.
    pub(crate) ended: event_listener::Event,
}

impl SocketShared {
    pub(crate) fn new(
        taken: TakenId,
        identity: Identity,
        config: SocketConfig,
        log: log::Handle,
        ports: Arc<[Arc<Port>]>,
    ) -> SocketShared {
        SocketShared {
            id: taken.id,
            _taken: taken,
            identity,
            inbox: ReceiveQueue::new(RECEIVE_ENTRIES, config.receive_bytes_max),
            events: EventQueue::new(config.events_max),
            counters: Counters::default(),
            peers: Peers::default(),
            log,
            config,
            ports,
            room: event_listener::Event::new(),
            blocked: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            dirty: CachePadded::new(AtomicBool::new(false)),
            phase: AtomicU8::new(Phase::Open as u8),
            ended: event_listener::Event::new(),
        }
    }

    /// The shard where this socket's hub lives.
    pub(crate) fn home(&self) -> usize {
        self.id.index() % self.ports.len()
    }

    /// Tells the home shard that the log has grown. Costs a fence and a load unless the shard has looked since the last call.
    #[inline]
    pub(crate) fn appended(&self) {
        fence(Ordering::SeqCst);
        if !self.dirty.load(Ordering::Relaxed) {
            self.mark_dirty();
        }
    }

    #[cold]
    pub(crate) fn mark_dirty(&self) {
        if !self.dirty.swap(true, Ordering::AcqRel) {
            let port = &self.ports[self.home()];
            // There is a place for every socket.
            let _ = port.dirty.push(self.id);
            port.doorbell().ring();
        }
    }

    /// The shard is about to look at the log.
    pub(crate) fn take_dirty(&self) {
        self.dirty.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Lets senders not ring while nobody would be sent to; a link that joins looks at the log anyway.
    pub(crate) fn keep_dirty(&self) {
        self.dirty.store(true, Ordering::Relaxed);
    }

    /// A sender found the log full. The caller has begun to listen to `room` and tries once more after this.
    pub(crate) fn begin_wait(&self) {
        let number = self.waits.fetch_add(1, Ordering::Relaxed) + 1;
        if self.blocked.compare_exchange(0, number, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            Counters::add(&self.counters.send_waits, 1);
        }
        self.mark_dirty();
    }

    /// A waiting sender got its message in.
    pub(crate) fn end_wait(&self) {
        self.blocked.store(0, Ordering::SeqCst);
    }

    /// The wait that goes on now, 0 if none does.
    pub(crate) fn wait_number(&self) -> u64 {
        self.blocked.load(Ordering::SeqCst)
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::Closing,
            2 => Phase::Closed,
            _ => Phase::EngineStopped,
        }
    }

    /// Goes on to `phase` if that is later than the present one; true if it was.
    pub(crate) fn enter_phase(&self, phase: Phase) -> bool {
        let before = self.phase.fetch_max(phase as u8, Ordering::AcqRel);
        let changed = before < phase as u8;
        if changed {
            self.ended.notify(usize::MAX);
            self.room.notify(usize::MAX);
            self.inbox.close();
            self.events.arrived.notify(usize::MAX);
            self.peers.changed.notify(usize::MAX);
        }
        changed
    }

    /// The application made room in a receive queue that had stopped links: all shards may read again.
    #[cold]
    pub(crate) fn resume_reading(&self) {
        for port in self.ports.iter() {
            let _ = port.command(Command::Resume(self.id));
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            peers: self.peers.count() as u64,
            messages_sent: self.log.messages(),
            log_bytes: self.log.bytes_held() as u64,
            receive_bytes: self.inbox.bytes() as u64,
            ..self.counters.snapshot()
        }
    }
}

/// Entries of a receive queue: completions that wait for the application.
const RECEIVE_ENTRIES: usize = 1024;

/// The peers that are connected now.
#[derive(Default)]
pub(crate) struct Peers {
    table: Mutex<HashMap<Identity, Address>>,
    count: AtomicUsize,
    /// Notified when a peer comes or goes, and when the socket ends.
    pub(crate) changed: event_listener::Event,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Address>> {
        // A map stays whole whatever panicked beside it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, identity: Identity, address: Address) {
        let mut table = self.lock();
        table.insert(identity, address);
        self.count.store(table.len(), Ordering::Release);
        drop(table);
        self.changed.notify(usize::MAX);
    }

    pub(crate) fn remove(&self, identity: &Identity) {
        let mut table = self.lock();
        table.remove(identity);
        self.count.store(table.len(), Ordering::Release);
        drop(table);
        self.changed.notify(usize::MAX);
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(crate) fn identities(&self) -> Vec<Identity> {
        self.lock().keys().copied().collect()
    }
}

/// Puts an event in the queue and in the log.
pub(crate) fn report(shared: &SocketShared, event: Event) {
    match &event {
        Event::Connected { .. } | Event::Recovered { .. } | Event::Reconnecting { .. } => {
            tracing::debug!(socket = %shared.identity, "{event}");
        }
        Event::Disconnected { reason, .. } if *reason == super::DisconnectReason::ClosedHere => {
            tracing::debug!(socket = %shared.identity, "{event}");
        }
        _ => tracing::warn!(socket = %shared.identity, "{event}"),
    }
    shared.events.push(event);
}
