//! What the handles of one socket and the shards have in common. Nothing here is locked on the path of a message: the log has its
//! own appender, the receive queue is lock-free, counters are relaxed.
//!
//! Wake-up protocol of the way out: a sender appends, then calls [`SocketShared::appended`]; the shard calls
//! [`SocketShared::take_dirty`] before it reads the tail. Both swap the same mark, one after the other: either the shard's swap comes
//! later, and it sees the message, or the sender's does, and finds the socket not marked, and marks it.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;

use crate::backend::Address;
use crate::log;
use crate::protocol::{IdHash, Identity, MsgId};
use crate::queue::{Commands, Doorbell, ReceiveQueue};
use crate::sabotage::{Bug, planted};
use crate::shard::LinkKey;
use crate::shard::command::Command;
use crate::shard::config::{SendMode, SocketConfig};
use crate::shard::event::{DisconnectReason, Event, EventQueue};
use crate::shard::inbound::Inbound;
use crate::shard::stats::{Counters, ShardCounters, Stats};

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

/// The shard has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended;

/// How other threads reach a shard.
pub(crate) struct Port {
    commands: Commands<Command>,
    /// The shard has ended; nobody takes commands any more.
    ended: AtomicBool,
    /// What its reactor has done, told once per turn.
    pub(crate) counts: ShardCounters,
    /// Sockets with something new to send. A socket is in here at most once, so that it never overflows.
    pub(crate) dirty: ArrayQueue<SocketId>,
}

impl Port {
    pub(crate) fn new(commands_max: usize, sockets_max: usize) -> Port {
        Port {
            commands: Commands::new(commands_max, Arc::new(Doorbell::new())),
            ended: AtomicBool::new(false),
            counts: ShardCounters::default(),
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

    /// Hands over a command; gives it back if there is no room now. Where nobody takes it any more it is dropped.
    pub(super) fn offer(&self, command: Command) -> Option<Command> {
        if self.ended.load(Ordering::Acquire) {
            return None;
        }
        self.commands.push(command).err()
    }

    /// Hands over a command, yielding while the queue is full: commands are rare and a shard takes all of them in every turn.
    ///
    /// # Errors
    /// When the shard has ended.
    pub(crate) fn command(&self, mut command: Command) -> Result<(), Ended> {
        loop {
            if self.ended.load(Ordering::Acquire) {
                return Err(Ended);
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

/// What one shard has of a socket.
#[derive(Default)]
struct Share {
    /// The socket is, or is about to be, among the port's dirty ones. Cleared by the shard.
    dirty: AtomicBool,
    /// Live links there. Written by the shard.
    links: AtomicUsize,
    /// There is room in the receive queue again. Set by the application, cleared by the shard.
    resume: AtomicBool,
    /// Messages that the application is done with. Held for a moment by either; bounded by what was received.
    acks: Mutex<Vec<(LinkKey, MsgId)>>,
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
    /// The shard where its hub lives.
    home: usize,
    /// Notified when there is room in the log again, and when the socket ends.
    pub(crate) room: event_listener::Event,
    /// 0, or the number of the wait that began when a sender found the log full.
    blocked: AtomicU64,
    waits: AtomicU64,
    /// Connections on all shards, whatever their state.
    connections: AtomicUsize,
    /// What each shard has of it.
    shares: Box<[CachePadded<Share>]>,
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
            home: taken.id.index() % ports.len(),
            _taken: taken,
            identity,
            inbox: ReceiveQueue::new(RECEIVE_ENTRIES, config.receive_bytes_max),
            events: EventQueue::new(config.events_max),
            counters: Counters::default(),
            peers: Peers::default(),
            log,
            config,
            room: event_listener::Event::new(),
            blocked: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            shares: ports.iter().map(|_| CachePadded::new(Share::default())).collect(),
            ports,
            phase: AtomicU8::new(Phase::Open as u8),
            ended: event_listener::Event::new(),
        }
    }

    /// The shard where this socket's hub lives.
    pub(crate) fn home(&self) -> usize {
        self.home
    }

    /// Tells the home shard that the log has grown. Costs a swap unless the shard has looked since the last call.
    #[inline]
    pub(crate) fn appended(&self) {
        self.mark_dirty(self.home);
    }

    /// Tells a shard that there is something new for it: in the log, or in its mail.
    #[inline]
    pub(crate) fn mark_dirty(&self, shard: usize) {
        if !self.shares[shard].dirty.swap(true, Ordering::AcqRel) {
            self.wake(shard);
        }
    }

    #[cold]
    fn wake(&self, shard: usize) {
        let port = &self.ports[shard];
        // There is a place for every socket.
        let _ = port.dirty.push(self.id);
        port.doorbell().ring();
    }

    /// The home shard passes the word on: the other shards with links of this socket have something to send too.
    pub(crate) fn tell_others(&self, home: usize) {
        for (shard, share) in self.shares.iter().enumerate() {
            if shard != home && share.links.load(Ordering::SeqCst) > 0 {
                self.mark_dirty(shard);
            }
        }
    }

    /// The shard is about to look at the log and its mail.
    pub(crate) fn take_dirty(&self, shard: usize) {
        self.shares[shard].dirty.swap(false, Ordering::AcqRel);
    }

    /// Lets senders not ring the home shard while there is nobody to send to. A link that joins undoes it and looks at the log.
    pub(crate) fn keep_dirty(&self) {
        let nobody = || self.shares.iter().all(|share| share.links.load(Ordering::SeqCst) == 0);
        if nobody() {
            self.shares[self.home].dirty.swap(true, Ordering::SeqCst);
            if !nobody() {
                // Somebody joined meanwhile, and may have looked at the log before a sender that found the mark.
                self.take_dirty(self.home);
                self.mark_dirty(self.home);
            }
        }
    }

    /// Counts a connection in, on whichever shard it is; false if there are `peers_max`.
    pub(crate) fn admit(&self) -> bool {
        let admitted = self.connections.fetch_add(1, Ordering::Relaxed)
            < self.config.peers_max + usize::from(planted(Bug::PeersOneMore));
        if !admitted {
            self.dismiss();
        }
        admitted
    }

    /// A connection that was counted in is gone.
    pub(crate) fn dismiss(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// A link of this socket lives on `shard` now.
    pub(crate) fn link_joined(&self, shard: usize) {
        self.shares[shard].links.fetch_add(1, Ordering::SeqCst);
        self.shares[self.home].dirty.swap(false, Ordering::SeqCst);
    }

    pub(crate) fn link_left(&self, shard: usize) {
        self.shares[shard].links.fetch_sub(1, Ordering::SeqCst);
    }

    /// The shard where the links of a peer live: any, by its identity, under PUBLISH; the home shard under ROUNDROBIN.
    pub(crate) fn shard_of(&self, identity: &Identity) -> usize {
        if self.ports.len() == 1 || self.config.send_mode == SendMode::RoundRobin {
            return self.home();
        }
        let mut bits = u64::from(self.id.0);
        for half in identity.as_bytes().chunks_exact(8) {
            let half = half.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
            bits = (bits ^ half).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            bits ^= bits >> 29;
        }
        ((u128::from(bits) * self.ports.len() as u128) >> 64) as usize
    }

    /// A sender found the log full. The caller has begun to listen to `room` and tries once more after this.
    pub(crate) fn begin_wait(&self) {
        let number = self.waits.fetch_add(1, Ordering::Relaxed) + 1;
        if self.blocked.compare_exchange(0, number, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            Counters::add(&self.counters.send_waits, 1);
        }
    }

    /// Lets the home shard see that a sender waits; who drives the shard itself need not.
    pub(crate) fn tell_wait(&self) {
        self.mark_dirty(self.home());
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
        for (shard, share) in self.shares.iter().enumerate() {
            share.resume.store(true, Ordering::Release);
            self.mark_dirty(shard);
        }
    }

    /// The application is done with messages that wanted to be acknowledged.
    pub(crate) fn acknowledge(&self, shard: u32, link: LinkKey, ids: &[MsgId]) {
        let Some(share) = self.shares.get(shard as usize) else { return };
        let mut acks = share.acks.lock().unwrap_or_else(PoisonError::into_inner);
        acks.extend(ids.iter().map(|id| (link, *id)));
        drop(acks);
        self.mark_dirty(shard as usize);
    }

    /// What the application is done with, for this shard's links.
    pub(super) fn take_acks(&self, shard: usize) -> Vec<(LinkKey, MsgId)> {
        std::mem::take(&mut *self.shares[shard].acks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the application has made room since the last call.
    pub(super) fn take_resume(&self, shard: usize) -> bool {
        self.shares[shard].resume.swap(false, Ordering::Acquire)
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            peers: self.peers.count() as u64,
            messages_sent: self.log.messages() + self.counters.directed.load(Ordering::Relaxed),
            log_bytes: self.log.bytes_held() as u64,
            receive_bytes: self.inbox.bytes() as u64,
            ..self.counters.snapshot()
        }
    }
}

/// Entries of a receive queue: completions that wait for the application.
const RECEIVE_ENTRIES: usize = 512;

/// Peers that are gone and still known, at most: a message by identity to them is told from one to nobody.
const GONE_MAX: usize = 16_384;

/// The peers that are connected now, and those that were.
#[derive(Default)]
pub(crate) struct Peers {
    directory: Mutex<Directory>,
    count: AtomicUsize,
    /// Notified when a peer comes or goes, and when the socket ends.
    pub(crate) changed: event_listener::Event,
}

#[derive(Default)]
struct Directory {
    peers: HashMap<Identity, Peer, IdHash>,
    connected: usize,
    /// Those that went, oldest first; some may be back.
    gone: VecDeque<Identity>,
}

struct Peer {
    /// Where it is, while it is connected.
    address: Option<Address>,
    /// Bytes sent to it by identity that have not gone out.
    queued: Arc<AtomicUsize>,
}

/// What a sender by identity has to know of a peer.
pub(crate) struct Addressee {
    pub(crate) connected: bool,
    pub(crate) queued: Arc<AtomicUsize>,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, Directory> {
        // A map stays whole whatever panicked beside it.
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer is connected; answers with its account of bytes sent by identity.
    pub(crate) fn insert(&self, identity: Identity, address: Address) -> Arc<AtomicUsize> {
        let mut directory = self.lock();
        let queued = match directory.peers.entry(identity) {
            Entry::Occupied(mut known) => {
                known.get_mut().address = Some(address);
                known.get().queued.clone()
            }
            Entry::Vacant(new) => new.insert(Peer { address: Some(address), queued: Arc::default() }).queued.clone(),
        };
        directory.connected += 1;
        self.count.store(directory.connected, Ordering::Release);
        drop(directory);
        self.changed.notify(usize::MAX);
        queued
    }

    pub(crate) fn remove(&self, identity: &Identity) {
        let mut directory = self.lock();
        if directory.peers.get_mut(identity).and_then(|peer| peer.address.take()).is_some() {
            directory.connected -= 1;
            directory.gone.push_back(*identity);
        }
        while directory.gone.len() > GONE_MAX {
            if let Some(oldest) = directory.gone.pop_front()
                && directory.peers.get(&oldest).is_some_and(|peer| peer.address.is_none())
            {
                directory.peers.remove(&oldest);
            }
        }
        self.count.store(directory.connected, Ordering::Release);
        drop(directory);
        self.changed.notify(usize::MAX);
    }

    /// What is known of a peer; `None` if it was never seen.
    pub(crate) fn find(&self, identity: &Identity) -> Option<Addressee> {
        let directory = self.lock();
        let peer = directory.peers.get(identity)?;
        Some(Addressee { connected: peer.address.is_some(), queued: peer.queued.clone() })
    }

    /// Bytes by identity to this peer have gone out, or never will.
    pub(crate) fn sent_to(&self, identity: &Identity, bytes: usize) {
        if let Some(peer) = self.lock().peers.get(identity) {
            peer.queued.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(crate) fn identities(&self) -> Vec<Identity> {
        self.lock().peers.iter().filter(|(_, peer)| peer.address.is_some()).map(|(identity, _)| *identity).collect()
    }
}

/// Puts an event in the queue and in the log.
pub(crate) fn report(shared: &SocketShared, event: Event) {
    match &event {
        Event::Connected { .. } | Event::Recovered { .. } | Event::Reconnecting { .. } => {
            tracing::debug!(socket = %shared.identity, "{event}");
        }
        Event::Disconnected { reason: DisconnectReason::ClosedHere | DisconnectReason::ClosedByPeer, .. } => {
            tracing::debug!(socket = %shared.identity, "{event}");
        }
        _ => tracing::warn!(socket = %shared.identity, "{event}"),
    }
    shared.events.push(event);
}
