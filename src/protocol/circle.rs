//! Whose turn it is under ROUNDROBIN (protocol, "Connections": to the next peer in a circle).
//!
//! Invariant: `next` is the member whose turn it is (0 for an empty circle). Members are visited in one fixed circular
//! order; one that cannot take a message at its turn is passed over and has lost that turn. So between two members that
//! could take one all the time, the counts differ by at most one, whoever comes, goes or is passed over meanwhile.
//!
//! Called by the `shard` that is home to the socket. Knows nothing of links: a member is whatever key the caller uses.

use crate::sabotage::{Bug, planted};

/// The members of a circle and the place that the turn has come to.
#[derive(Debug, Clone)]
pub(crate) struct Circle<K> {
    members: Vec<K>,
    next: usize,
}

impl<K: Copy + Eq> Circle<K> {
    /// A circle without members.
    pub(crate) const fn new() -> Self {
        Self { members: Vec::new(), next: 0 }
    }

    /// Adds a member; its first turn comes within one round. False if it is one already.
    pub(crate) fn insert(&mut self, key: K) -> bool {
        let fresh = !self.members.contains(&key);
        if fresh {
            self.members.push(key);
        }
        fresh
    }

    /// Takes a member out; the order of the others stays. False if it was none.
    pub(crate) fn remove(&mut self, key: K) -> bool {
        let Some(at) = self.members.iter().position(|&member| member == key) else { return false };
        self.members.remove(at);
        if at < self.next {
            self.next -= 1;
        }
        if self.next == self.members.len() {
            self.next = 0;
        }
        true
    }

    /// The next member in order that is `usable`; `None`, and the turn stays, when none is. One look per member passed
    /// over, so one in all while every peer keeps up.
    #[inline]
    pub(crate) fn next(&mut self, usable: impl Fn(K) -> bool) -> Option<K> {
        let mut at = self.next;
        for _ in 0..self.members.len() {
            let key = self.members[at];
            at = if at + 1 == self.members.len() { 0 } else { at + 1 };
            if usable(key) {
                if !planted(Bug::CircleSkew) || at.is_multiple_of(2) {
                    self.next = at;
                }
                return Some(key);
            }
        }
        None
    }

    /// How many members there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// The member, if there is just one.
    #[inline]
    pub(crate) fn only(&self) -> Option<K> {
        match self.members.as_slice() {
            [only] => Some(*only),
            _ => None,
        }
    }

    /// Whether nobody is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The members, in order of their turns from some place on.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = K> + '_ {
        self.members.iter().copied()
    }
}

impl<K: Copy + Eq> Default for Circle<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strict_order() {
        let mut circle = Circle::new();
        assert_eq!(circle.next(|_: char| true), None);
        assert!("abc".chars().all(|key| circle.insert(key)));
        assert!(!circle.insert('b'));
        let turns: String = (0..7).filter_map(|_| circle.next(|_| true)).collect();
        assert_eq!(turns, "abcabca");
        assert_eq!(circle.next(|key| key != 'b'), Some('c'));
        assert_eq!(circle.next(|_| false), None);
        assert!(circle.remove('a') && !circle.remove('a'));
        let turns: String = (0..3).filter_map(|_| circle.next(|_| true)).collect();
        assert_eq!(turns, "bcb");
        assert_eq!((circle.len(), circle.is_empty(), circle.iter().collect::<String>()), (2, false, "bc".into()));
    }

    #[test]
    fn removal_at_every_place_keeps_the_turn() {
        for taken in 0..5 {
            for gone in 0..5 {
                let mut circle = Circle::new();
                (0..5).for_each(|key| assert!(circle.insert(key)));
                (0..taken).for_each(|_| assert!(circle.next(|_| true).is_some()));
                circle.remove(gone);
                let expected = (taken..taken + 5).map(|key| key % 5).find(|&key| key != gone);
                assert_eq!(circle.next(|_| true), expected, "{taken} taken, {gone} gone");
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8),
        Remove(u8),
        SetUsable(u8, bool),
        Next,
    }

    proptest! {
        /// Whoever was a usable member without interruption differs by at most one from everyone else who was, however
        /// the rest came, went and stalled.
        #[test]
        fn fair_to_all_who_could_take(
            steps in prop::collection::vec(prop_oneof![
                2 => (3u8..10).prop_map(Step::Insert),
                1 => (3u8..10).prop_map(Step::Remove),
                2 => (3u8..10, any::<bool>()).prop_map(|(key, usable)| Step::SetUsable(key, usable)),
                10 => Just(Step::Next),
            ], 0..300),
        ) {
            let mut circle = Circle::new();
            let mut members = BTreeSet::new();
            let mut stalled = BTreeSet::new();
            let mut counts: BTreeMap<u8, u32> = BTreeMap::new();
            for key in 0..3 {
                circle.insert(key);
                members.insert(key);
            }
            for step in steps {
                match step {
                    Step::Insert(key) => prop_assert_eq!(circle.insert(key), members.insert(key)),
                    Step::Remove(key) => prop_assert_eq!(circle.remove(key), members.remove(&key)),
                    Step::SetUsable(key, true) => { stalled.remove(&key); }
                    Step::SetUsable(key, false) => { stalled.insert(key); }
                    Step::Next => {
                        let key = circle.next(|key| !stalled.contains(&key)).unwrap();
                        prop_assert!(members.contains(&key) && !stalled.contains(&key));
                        *counts.entry(key).or_default() += 1;
                    }
                }
                let steady = (0..3).map(|key| counts.get(&key).copied().unwrap_or(0));
                prop_assert!(steady.clone().max().unwrap() - steady.min().unwrap() <= 1);
            }
        }
    }
}
