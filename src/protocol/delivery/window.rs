//! What a receiver has seen: the last message ids of each peer, so that a resend is recognised (parent module).
//!
//! A window holds its ids twice, in order and as a set, and forgets the oldest when it is full; so a duplicate is
//! recognised as long as it comes within `ids_per_peer` messages of that peer. The windows outlive links.

use std::collections::{HashMap, VecDeque};

use super::IdHash;
use super::ids::IdSet;
use crate::protocol::frame::MsgId;
use crate::protocol::identity::Identity;

/// The last ids that one peer has used.
#[derive(Debug)]
pub(crate) struct Window {
    capacity: usize,
    /// Oldest first; the same ids as in `seen`.
    order: VecDeque<Stretch>,
    seen: IdSet,
}

/// Ids that count up and came one after the other: all that a source of ours sends over a link.
#[derive(Debug)]
struct Stretch {
    first: MsgId,
    count: u32,
}

impl Stretch {
    /// The id `count` places further on.
    #[inline]
    fn after(&self, count: u32) -> MsgId {
        MsgId(u128::from_be_bytes(self.first.0).wrapping_add(count.into()).to_be_bytes())
    }
}

impl Window {
    /// A window over at most `capacity` ids (at least 1); it takes memory as they come.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), order: VecDeque::new(), seen: IdSet::default() }
    }

    /// Remembers an id. True if it is fresh: not among those remembered.
    pub(crate) fn insert(&mut self, msg_id: MsgId) -> bool {
        if !self.seen.insert(&msg_id) {
            return false;
        }
        match self.order.back_mut() {
            Some(last) if last.count < u32::MAX && last.after(last.count) == msg_id => last.count += 1,
            _ => self.order.push_back(Stretch { first: msg_id, count: 1 }),
        }
        if self.seen.len() > self.capacity {
            self.forget_oldest();
        }
        true
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.order.front_mut() else { return };
        self.seen.remove(&oldest.first);
        (oldest.first, oldest.count) = (oldest.after(1), oldest.count - 1);
        if oldest.count == 0 {
            self.order.pop_front();
        }
    }
}

/// The windows of all peers of a socket. They outlive links: a resend comes on the next one.
#[derive(Debug)]
pub(crate) struct Windows {
    ids_per_peer: usize,
    peers_max: usize,
    /// With each window, when it was last used, counted in uses.
    peers: HashMap<Identity, (u64, Window), IdHash>,
    uses: u64,
}

impl Windows {
    /// Windows over `ids_per_peer` ids each (at least 1), for at most `peers_max` peers (at least 1).
    pub(crate) fn new(ids_per_peer: usize, peers_max: usize) -> Self {
        Self { ids_per_peer, peers_max: peers_max.max(1), peers: HashMap::default(), uses: 0 }
    }

    /// The ids that `peer` has used. A new peer may displace the one that was not heard of for longest.
    pub(crate) fn of(&mut self, peer: &Identity) -> &mut Window {
        self.uses += 1;
        if !self.peers.contains_key(peer) && self.peers.len() == self.peers_max {
            // One look at every peer, but only when a new one comes.
            let oldest = self.peers.iter().min_by_key(|(_, (used, _))| *used).map(|(identity, _)| *identity);
            oldest.map(|identity| self.peers.remove(&identity));
        }
        let (used, window) = self.peers.entry(*peer).or_insert_with(|| (0, Window::new(self.ids_per_peer)));
        *used = self.uses;
        window
    }

    /// How many peers are remembered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> MsgId {
        MsgId((u128::from(number)).to_be_bytes())
    }

    #[test]
    fn a_window_forgets_its_oldest() {
        let mut window = Window::new(3);
        for number in [1, 2, 3] {
            assert!(window.insert(id(number)));
        }
        assert!(!window.insert(id(1)));
        assert!(window.insert(id(4)));
        assert!(window.insert(id(1)), "the oldest was forgotten");
        assert!(!window.insert(id(3)));
        assert_eq!(window.seen.len(), 3);
    }

    /// Whether ids come in order or not, and wherever stretches of them end.
    #[test]
    fn exactly_the_last_ones_are_remembered() {
        let mut window = Window::new(5);
        let ids = [1, 2, 3, 9, 4, 5, u64::MAX, 0, 7, 6, 8, 10, 11, 12, 13, 14, 15];
        for (at, &number) in ids.iter().enumerate() {
            assert!(window.insert(id(number)));
            let remembered = &ids[at.saturating_sub(4)..=at];
            assert_eq!(window.seen.len(), remembered.len());
            assert!(ids[..=at].iter().all(|number| window.seen.contains(&id(*number)) == remembered.contains(number)));
            assert_eq!(window.order.iter().map(|stretch| stretch.count as usize).sum::<usize>(), remembered.len());
        }
    }

    #[test]
    fn windows_are_kept_per_peer_and_bounded() {
        let peers = [1, 2, 3].map(Identity::from_seed);
        let mut windows = Windows::new(10, 2);
        assert!(windows.of(&peers[0]).insert(id(1)));
        assert!(windows.of(&peers[1]).insert(id(1)));
        assert!(!windows.of(&peers[0]).insert(id(1)));
        assert!(windows.of(&peers[2]).insert(id(1)), "displaces the second, which was quiet for longest");
        assert!(!windows.of(&peers[0]).insert(id(1)));
        assert!(windows.of(&peers[1]).insert(id(1)));
        assert_eq!(windows.len(), 2);
    }
}
