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
    /// The rest of a round, from the first member on that was passed over: the places of those that were not, and which of them is
    /// next. Who is full is not looked at again and again.
    rest: Option<(Vec<usize>, usize)>,
    /// Memory for the next one.
    spare: Vec<usize>,
}

impl<K: Copy + Eq> Circle<K> {
    /// A circle without members.
    pub(crate) const fn new() -> Self {
        Self { members: Vec::new(), next: 0, rest: None, spare: Vec::new() }
    }

    /// Adds a member; its first turn comes within one round. False if it is one already.
    pub(crate) fn insert(&mut self, key: K) -> bool {
        let fresh = !self.members.contains(&key);
        if fresh {
            self.begin_round();
            self.members.push(key);
        }
        fresh
    }

    /// Takes a member out; the order of the others stays. False if it was none.
    pub(crate) fn remove(&mut self, key: K) -> bool {
        let Some(at) = self.members.iter().position(|&member| member == key) else { return false };
        self.begin_round();
        self.members.remove(at);
        if at < self.next {
            self.next -= 1;
        }
        if self.next == self.members.len() {
            self.next = 0;
        }
        true
    }

    /// From here on members may be usable again that were not.
    pub(crate) fn begin_round(&mut self) {
        if let Some((places, _)) = self.rest.take() {
            self.spare = places;
        }
    }

    /// The next member in order that is `usable`; `None`, and the turn stays, when none is. Who was not usable counts as such for
    /// the rest of the round: so each member is passed over once, and there is one look in all while every peer keeps up.
    #[inline]
    pub(crate) fn next(&mut self, usable: impl Fn(K) -> bool) -> Option<K> {
        match self.members.get(self.next) {
            Some(&key) if self.rest.is_none() && usable(key) => {
                self.turn_passes(self.next);
                Some(key)
            }
            _ => self.next_of_rest(usable),
        }
    }

    fn next_of_rest(&mut self, usable: impl Fn(K) -> bool) -> Option<K> {
        let Self { members, next, rest, spare } = self;
        let (places, turn) = rest.get_or_insert_with(|| {
            let mut places = std::mem::take(spare);
            places.clear();
            places.extend((*next..members.len()).chain(0..*next));
            (places, 0)
        });
        while !places.is_empty() {
            if *turn == places.len() {
                *turn = 0;
            }
            let at = places[*turn];
            if usable(members[at]) {
                *turn += 1;
                self.turn_passes(at);
                return Some(self.members[at]);
            }
            places.remove(*turn);
        }
        None
    }

    /// The member at `at` has had its turn.
    #[inline]
    fn turn_passes(&mut self, at: usize) {
        let at = if at + 1 == self.members.len() { 0 } else { at + 1 };
        if !planted(Bug::CircleSkew) || at.is_multiple_of(2) {
            self.next = at;
        }
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

    proptest! {
        /// In a round in which members become full, each turn is that of the next who is not.
        #[test]
        fn a_round_is_as_if_all_were_looked_at(
            count in 1usize..8, start in 0usize..8, full in prop::collection::vec((0usize..40, 0usize..8), 0..12),
        ) {
            let mut circle = Circle::new();
            (0..count).for_each(|key| assert!(circle.insert(key)));
            (0..start).for_each(|_| assert!(circle.next(|_| true).is_some()));
            let mut turn = start % count;
            for step in 0..40 {
                let usable = |key: usize| !full.iter().any(|(from, who)| *from <= step && *who == key);
                let expected = (turn..turn + count).map(|at| at % count).find(|at| usable(*at));
                prop_assert_eq!(circle.next(usable), expected);
                turn = expected.map_or(turn, |at| (at + 1) % count);
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
                    Step::SetUsable(key, true) => {
                        stalled.remove(&key);
                        circle.begin_round();
                    }
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
