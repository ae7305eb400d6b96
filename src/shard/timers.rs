//! The deadlines of one shard. One entry per thing that waits; an entry that fires asks its owner for the next deadline, so that
//! activity on a link costs no timer operation at all. Entries of owners that are gone are recognised by their key and skipped.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Deadlines in the order in which they come due.
pub(crate) struct Timers<K> {
    heap: BinaryHeap<Reverse<(u64, K)>>,
}

impl<K: Ord + Copy> Timers<K> {
    pub(crate) fn new() -> Timers<K> {
        Timers { heap: BinaryHeap::new() }
    }

    /// Adds a deadline; an earlier one for the same key stays and fires as well.
    pub(crate) fn set(&mut self, deadline_ns: u64, key: K) {
        if deadline_ns != u64::MAX {
            self.heap.push(Reverse((deadline_ns, key)));
        }
    }

    /// The next deadline, `u64::MAX` if there is none.
    pub(crate) fn next_ns(&self) -> u64 {
        self.heap.peek().map_or(u64::MAX, |Reverse((deadline_ns, _))| *deadline_ns)
    }

    /// Takes one that is due.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<K> {
        if self.next_ns() > now_ns {
            return None;
        }
        self.heap.pop().map(|Reverse((_, key))| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_in_order_and_never_early() {
        let mut t = Timers::new();
        t.set(30, 'c');
        t.set(10, 'a');
        t.set(20, 'b');
        t.set(u64::MAX, 'z');
        assert_eq!(t.next_ns(), 10);
        assert_eq!(t.due(9), None);
        assert_eq!((t.due(25), t.due(25), t.due(25)), (Some('a'), Some('b'), None));
        assert_eq!(t.next_ns(), 30);
    }
}
