//! What the handles of one socket and the shards have in common. Nothing here is locked on the path of a message: the log has its
//! own appender, the receive queue is lock-free, counters are relaxed.
//!
//! Wake-up protocol of the way out: a sender appends, then calls [`SocketShared::appended`]; the shard calls
//! [`SocketShared::take_dirty`] before it reads the tail. Both swap the same mark, one after the other: either the shard's swap comes
//! later, and it sees the message, or the sender's does, and finds the socket not marked, and marks it.

use std::collections::hash_map::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;

use crate::log;
use crate::protocol::{IdHash, Identity, MsgId};
use crate::queue::{Commands, Doorbell, Marks, ReceiveQueue, Waiters};
use crate::sabotage::{Bug, planted};
use crate::shard::LinkKey;
use crate::shard::close::CloseReport;
use crate::shard::command::Command;
use crate::shard::config::{DeliveryGuarantee, SendMode, SocketConfig};
use crate::shard::event::{DropCause, Event, EventQueue};
use crate::shard::inbound::Inbound;
use crate::shard::late::Ages;
use crate::shard::logs::LogLimit;
use crate::shard::outlet::LastValues;
use crate::shard::peers::Peers;
use crate::shard::policy::Own;
use crate::shard::stats::{PeerStats, Stats};
use crate::shard::tally::{Counters, ShardCounters};

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

    /// Nothing is taken any more. Commands that came too late are dropped, and their askers see the socket's end; who closes is told
    /// that there is nothing left to close.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        // Orders the mark before the look; pairs with `command`.
        fence(Ordering::SeqCst);
        while let Some(command) = self.commands.pop() {
            if let Command::Close { reply, .. } = command {
                reply.answer(CloseReport::default());
            }
        }
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
                Ok(()) => break,
                Err(back) => command = back,
            }
            std::thread::yield_now();
        }
        // Orders the command before the look; pairs with `end`: if the shard has not seen the command, this sees that it has ended.
        fence(Ordering::SeqCst);
        if self.ended.load(Ordering::SeqCst) {
            self.end();
        }
        Ok(())
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
    logs: LogLimit,
    /// Each shard's.
    pub(crate) counters: Box<[CachePadded<Counters>]>,
    /// What senders count: messages accepted for one peer, and their bytes.
    pub(crate) directed: AtomicU64,
    pub(crate) directed_bytes: AtomicU64,
    pub(crate) peers: Peers,
    /// PUBLISH: what links that lag, and new ones, take instead of what is superseded.
    pub(crate) values: LastValues,
    pub(crate) ports: Arc<[Arc<Port>]>,
    /// The shard where its hub lives.
    home: usize,
    /// Notified when there is room in the log again, and when the socket ends.
    pub(crate) room: Waiters,
    /// A sender found the log full, and waits.
    blocked: AtomicBool,
    send_waits: AtomicU64,
    /// PUBLISH: if messages are kept by age. Held for a moment by a shard.
    pub(super) ages: Option<Mutex<Ages>>,
    /// What single peers have of their own.
    owns: Mutex<HashMap<Identity, Own, IdHash>>,
    /// Links that keep publishers waiting though the log is not full.
    gates: AtomicUsize,
    /// Connections on all shards, whatever their state.
    connections: AtomicUsize,
    /// Which shards have something to send.
    marks: Marks,
    /// What each shard has of it.
    shares: Box<[CachePadded<Share>]>,
    phase: AtomicU8,
    /// Notified when the phase changes.
    pub(crate) ended: Waiters,
}

impl SocketShared {
    pub(crate) fn new(
        taken: TakenId,
        identity: Identity,
        config: SocketConfig,
        log: log::Handle,
        ports: Arc<[Arc<Port>]>,
    ) -> SocketShared {
        let measured = config.delivery == DeliveryGuarantee::AtLeastOnce;
        SocketShared {
            id: taken.id,
            home: taken.id.index() % ports.len(),
            marks: Marks::new(taken.id.index() % ports.len(), ports.len()),
            _taken: taken,
            identity,
            inbox: ReceiveQueue::new(RECEIVE_ENTRIES, config.receive_bytes_max),
            events: EventQueue::new(config.events_max),
            logs: LogLimit::default(),
            counters: ports.iter().map(|_| CachePadded::new(Counters::new(measured))).collect(),
            directed: AtomicU64::new(0),
            directed_bytes: AtomicU64::new(0),
            send_waits: AtomicU64::new(0),
            peers: Peers::default(),
            values: LastValues::new(config.keys),
            ages: Ages::new(&config.retention).map(Mutex::new),
            log,
            config,
            room: Waiters::new(),
            blocked: AtomicBool::new(false),
            owns: Mutex::default(),
            gates: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            shares: ports.iter().map(|_| CachePadded::new(Share::default())).collect(),
            ports,
            phase: AtomicU8::new(Phase::Open as u8),
            ended: Waiters::new(),
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
        if self.marks.mark(shard) {
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
        self.marks.others(home).for_each(|shard| self.mark_dirty(shard));
    }

    /// The shard is about to look at the log and its mail.
    pub(crate) fn take_dirty(&self, shard: usize) {
        self.marks.take(shard);
    }

    /// Lets senders not ring the home shard while there is nobody to send to. A link that joins undoes it and looks at the log.
    pub(crate) fn keep_dirty(&self) {
        if self.marks.keep() {
            self.wake(self.home);
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

    /// Connections that were counted in, those that shake hands included.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// A connection that was counted in is gone.
    pub(crate) fn dismiss(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// A link of this socket lives on `shard` now.
    pub(crate) fn link_joined(&self, shard: usize) {
        self.marks.joined(shard);
    }

    pub(crate) fn link_left(&self, shard: usize) {
        self.marks.left(shard);
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
        if !self.blocked.swap(true, Ordering::SeqCst) {
            self.send_waits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets the home shard see that a sender waits; who drives the shard itself need not.
    pub(crate) fn tell_wait(&self) {
        self.mark_dirty(self.home());
    }

    /// A waiting sender got its message in.
    pub(crate) fn end_wait(&self) {
        self.blocked.store(false, Ordering::SeqCst);
    }

    /// Whether some sender waits.
    pub(crate) fn has_waiting(&self) -> bool {
        self.blocked.load(Ordering::SeqCst)
    }

    /// Changes what one peer has of its own; the limit if too many have something.
    pub(crate) fn change_own(&self, identity: Identity, change: impl FnOnce(&mut Own)) -> Result<(), usize> {
        let mut owns = self.owns.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = owns.get(&identity).copied().unwrap_or_default();
        change(&mut own);
        if own == Own::default() {
            owns.remove(&identity);
        } else if owns.len() >= OWNS_MAX && !owns.contains_key(&identity) {
            return Err(OWNS_MAX);
        } else {
            owns.insert(identity, own);
        }
        Ok(())
    }

    pub(super) fn own_of(&self, identity: &Identity) -> Own {
        self.owns.lock().unwrap_or_else(PoisonError::into_inner).get(identity).copied().unwrap_or_default()
    }

    /// A link is so far behind that its policy lets publishers wait.
    pub(super) fn shut_gate(&self) {
        self.gates.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn open_gate(&self) {
        self.gates.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether publishers wait for some link. It may be a moment old: a limit is exceeded by what is sent meanwhile.
    #[inline]
    pub(crate) fn is_gated(&self) -> bool {
        self.gates.load(Ordering::Relaxed) > 0
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
        let resume = &self.shares[shard].resume;
        resume.load(Ordering::Relaxed) && resume.swap(false, Ordering::Acquire)
    }

    /// The engine's time.
    fn now_ns(&self) -> u64 {
        self.ports[self.home()].counts.now_ns()
    }

    /// The socket's counters. Takes the lock of the peers' directory for its lag and skew, and the log's for a moment.
    pub(crate) fn stats(&self) -> Stats {
        let directed = self.directed.load(Ordering::Relaxed);
        let directed_bytes = self.directed_bytes.load(Ordering::Relaxed);
        let mut stats = Stats::default();
        if let Some(table) = self.values.lock() {
            (stats.keys, stats.keyed_bytes) = (table.keys() as u64, table.bytes() as u64);
        }
        let (mut sorted, mut dealt, mut dealt_bytes) = (0, 0, 0);
        let tail = self.log.tail();
        for counters in &self.counters {
            let (all, of) = (&counters.all, |count: &AtomicU64| count.load(Ordering::Relaxed));
            let (queued, queued_bytes) = all.queued(tail);
            stats.messages_addressed += all.of_log(tail) + of(&all.snapshot);
            stats.messages_queued += queued + of(&counters.parked) + of(&counters.returned);
            stats.bytes_queued += queued_bytes;
            stats.messages_delivered += of(&all.delivered);
            stats.messages_conflated += of(&all.conflated);
            stats.messages_pending += of(&all.pending);
            stats.bytes_pending += of(&all.pending_bytes);
            stats.messages_expired += of(&all.expired);
            stats.messages_resent += of(&all.resent);
            stats.duplicates_removed += of(&all.duplicates);
            stats.messages_received += of(&all.received);
            stats.bytes_sent += of(&all.bytes_sent);
            stats.bytes_received += of(&all.bytes_received);
            for (sum, (_, dropped)) in stats.drops.0.iter_mut().zip(all.drops().iter()) {
                *sum += dropped;
            }
            stats.round_trips.merge(&all.round_trips());
            stats.connects += of(&counters.connects);
            stats.reconnects += of(&counters.reconnects);
            stats.disconnects += of(&counters.disconnects);
            stats.rejects += of(&counters.rejects);
            stats.receive_pauses += of(&counters.receive_pauses);
            sorted += of(&counters.sorted);
            dealt += of(&counters.dealt);
            dealt_bytes += of(&counters.dealt_bytes);
        }
        let (waiting, waiting_bytes) = match self.config.send_mode {
            SendMode::Publish => {
                let (backlog, bytes) = self.log.backlog();
                stats.messages_addressed += backlog;
                (backlog, bytes)
            }
            SendMode::RoundRobin => {
                stats.messages_addressed = tail.messages();
                (tail.messages().saturating_sub(dealt), tail.frame().saturating_sub(dealt_bytes))
            }
        };
        stats.messages_addressed += directed;
        stats.messages_queued += waiting + directed.saturating_sub(sorted);
        stats.bytes_queued += waiting_bytes;
        if self.phase() >= Phase::Closed {
            // It goes nowhere any more.
            let left = std::mem::take(&mut stats.messages_queued) + std::mem::take(&mut stats.messages_pending);
            stats.drops.0[DropCause::Closed as usize] += left;
            (stats.bytes_queued, stats.bytes_pending) = (0, 0);
        }
        stats.messages_dropped = stats.drops.total();
        if self.config.delivery == DeliveryGuarantee::AtLeastOnce {
            stats.messages_acknowledged = stats.messages_delivered;
        }
        (stats.lag, stats.skew) = self.peers.lag_and_skew(tail, self.now_ns());
        Stats {
            peers: self.peers.count() as u64,
            messages_sent: tail.messages() + directed,
            bytes_accepted: tail.frame() + directed_bytes,
            log_bytes: self.log.bytes_held() as u64,
            receive_bytes: self.inbox.bytes() as u64,
            send_waits: self.send_waits.load(Ordering::Relaxed),
            events_missed: self.events.missed_total(),
            ..stats
        }
    }

    /// Each connected peer's counters.
    pub(crate) fn peer_stats(&self) -> Vec<PeerStats> {
        let accounts = self.peers.accounts();
        let (tail, now_ns) = (self.log.tail(), self.now_ns());
        accounts.iter().map(|account| account.snapshot(tail, now_ns)).collect()
    }

    /// One connected peer's counters.
    pub(crate) fn peer_stats_of(&self, identity: &Identity) -> Option<PeerStats> {
        let account = self.peers.account(identity)?;
        Some(account.snapshot(self.log.tail(), self.now_ns()))
    }
}

/// Entries of a receive queue: completions that wait for the application.
const RECEIVE_ENTRIES: usize = 512;

/// Peers with something of their own, at most.
const OWNS_MAX: usize = 16_384;

/// Puts an event in the queue and in the log.
pub(crate) fn report(shared: &SocketShared, event: Event) {
    shared.logs.log(shared.identity, &event, shared.now_ns());
    shared.events.push(event);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Reply;

    #[test]
    fn who_closes_a_socket_of_a_shard_that_ends_is_answered() {
        let port = Port::new(4, 1);
        let close = || {
            let reply = Reply::new();
            (Command::Close { socket: SocketId(0), linger_ns: 0, reply: reply.clone() }, reply)
        };
        let (command, early) = close();
        assert!(port.command(command).is_ok() && early.take().is_none());
        port.end();
        assert_eq!(early.take().map(|report| report.undelivered), Some(0));
        assert!(port.command(close().0).is_err());
    }
}
