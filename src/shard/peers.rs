//! Whom a socket knows: the peers that are connected, and those that were, so that a message by identity to one that is gone is told
//! from one to nobody. One directory for all shards, under a lock that is taken when peers come and go, for messages by identity, and
//! for statistics; never on the path of a published message.

use std::collections::VecDeque;
use std::collections::hash_map::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::log;
use crate::protocol::{IdHash, Identity};
use crate::queue::Waiters;
use crate::shard::stats::Lag;
use crate::shard::tally::Account;

/// Peers that are gone and still known, at most: a message by identity to them is told from one to nobody.
const GONE_MAX: usize = 16_384;

/// The peers that are connected now, and those that were.
#[derive(Default)]
pub(crate) struct Peers {
    directory: Mutex<Directory>,
    count: AtomicUsize,
    /// Notified when a peer comes or goes, and when the socket ends.
    pub(crate) changed: Waiters,
}

#[derive(Default)]
struct Directory {
    peers: HashMap<Identity, Peer, IdHash>,
    connected: usize,
    /// Those that went, oldest first; some may be back.
    gone: VecDeque<Identity>,
}

#[derive(Default)]
struct Peer {
    /// Its counters, while it is connected.
    account: Option<Arc<Account>>,
    /// How often it has connected.
    connects: u64,
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

    /// A peer is connected; answers with its counters, and with how many bytes sent to it by identity wait. `open` makes the counters
    /// of one that was connected so often before.
    pub(crate) fn insert(
        &self,
        identity: Identity,
        open: impl FnOnce(u64) -> Account,
    ) -> (Arc<Account>, Arc<AtomicUsize>) {
        let mut directory = self.lock();
        let peer = directory.peers.entry(identity).or_default();
        let account = Arc::new(open(peer.connects));
        peer.connects += 1;
        peer.account = Some(account.clone());
        let queued = peer.queued.clone();
        directory.connected += 1;
        self.count.store(directory.connected, Ordering::Release);
        drop(directory);
        self.changed.notify(usize::MAX);
        (account, queued)
    }

    pub(crate) fn remove(&self, identity: &Identity) {
        let mut directory = self.lock();
        if directory.peers.get_mut(identity).and_then(|peer| peer.account.take()).is_some() {
            directory.connected -= 1;
            directory.gone.push_back(*identity);
        }
        while directory.gone.len() > GONE_MAX {
            if let Some(oldest) = directory.gone.pop_front()
                && directory.peers.get(&oldest).is_some_and(|peer| peer.account.is_none())
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
        Some(Addressee { connected: peer.account.is_some(), queued: peer.queued.clone() })
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
        self.lock().peers.iter().filter(|(_, peer)| peer.account.is_some()).map(|(identity, _)| *identity).collect()
    }

    pub(super) fn accounts(&self) -> Vec<Arc<Account>> {
        self.lock().peers.values().filter_map(|peer| peer.account.clone()).collect()
    }

    pub(super) fn account(&self, identity: &Identity) -> Option<Arc<Account>> {
        self.lock().peers.get(identity)?.account.clone()
    }

    /// The largest lag of all peers, and how much larger it is than the smallest.
    pub(super) fn lag_and_skew(&self, tail: log::Cursor, now_ns: u64) -> (Lag, Lag) {
        let directory = self.lock();
        let mut lags = directory.peers.values().filter_map(|peer| Some(peer.account.as_ref()?.lag(tail, now_ns)));
        let Some(first) = lags.next() else { return (Lag::default(), Lag::default()) };
        let (most, least) = lags.fold((first, first), |(most, least), lag| (most.max(lag), least.min(lag)));
        (most, most.beyond(least))
    }
}
