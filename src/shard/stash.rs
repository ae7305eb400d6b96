//! Runs of one socket that found its receive queue full. They go on in turns: of each peer one, then of each peer the next, so that
//! one that sends as fast as it can does not keep the others waiting. What one peer sent stays in order.
//!
//! Bounded by what links that are not stopped yet bring in one turn of the reactor. Used by the way in alone.

use std::collections::{HashSet, VecDeque};

use super::Inbound;
use crate::protocol::Identity;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Stash {
    /// In order of their turns. One that comes while there are others has its turn with the first, or after its peer's last.
    runs: VecDeque<(u64, Inbound)>,
}

impl Stash {
    pub(super) fn push(&mut self, run: Inbound) {
        let Some(&(first, _)) = self.runs.front() else { return self.runs.push_back((0, run)) };
        let of_peer = self.runs.iter().rev().find(|(_, other)| other.identity == run.identity);
        let turn = of_peer.map_or(first, |(last, _)| last + 1);
        let at = self.runs.partition_point(|(other, _)| *other <= turn);
        self.runs.insert(at, (turn, run));
    }

    /// Gives the first one away, unless `give` gives it back; then its place is kept.
    pub(super) fn give(&mut self, give: impl FnOnce(Inbound) -> Result<(), Inbound>) -> bool {
        let Some((turn, run)) = self.runs.pop_front() else { return false };
        match give(run) {
            Ok(()) => true,
            Err(run) => {
                self.runs.push_front((turn, run));
                false
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }

    /// Whose runs there are.
    pub(super) fn peers(&self) -> HashSet<Identity> {
        self.runs.iter().map(|(_, run)| run.identity).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::LinkKey;

    fn run(peer: u8, number: u8) -> Inbound {
        let link = LinkKey { slot: 0, generation: 0 };
        Inbound { identity: Identity::from_bytes([peer; 16]), link, shard: 0, frames: vec![number].into() }
    }

    fn drain(stash: &mut Stash, n: usize) -> Vec<(u8, u8)> {
        let mut given = Vec::new();
        for _ in 0..n {
            stash.give(|run| {
                given.push((run.identity.as_bytes()[0], run.frames[0]));
                Ok(())
            });
        }
        given
    }

    #[test]
    fn in_turns_and_in_order() {
        let mut stash = Stash::default();
        (0..5).for_each(|number| stash.push(run(1, number)));
        stash.push(run(2, 0));
        assert_eq!(drain(&mut stash, 3), [(1, 0), (2, 0), (1, 1)]);
        // One that is given back keeps its place; newcomers have their turn with it.
        assert!(!stash.give(Err));
        stash.push(run(3, 0));
        (1..3).for_each(|number| stash.push(run(2, number)));
        assert_eq!(stash.peers().len(), 3);
        assert_eq!(drain(&mut stash, 9), [(1, 2), (3, 0), (2, 1), (1, 3), (2, 2), (1, 4)]);
        assert!(stash.is_empty() && !stash.give(|_| Ok(())));
    }
}
