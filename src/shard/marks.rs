//! How old what lies in a log is. The log knows no clock: a shard notes now and then how far the log was, as long as one of its links has
//! a limit of age. What lies before a note is at least as old as the note; what lies behind is younger than it looks by a part of the
//! limit at most.

use std::collections::VecDeque;

use crate::log::Cursor;

/// A note and the next but one are at least this part of the shortest limit apart.
const PARTS: u64 = 64;
/// And so far: 1 ms.
const APART_NS_MIN: u64 = 1_000_000;
/// Notes at most; every second one is forgotten when there are more.
const MARKS_MAX: usize = 4096;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Marks {
    /// How far apart notes are; 0 while nobody has a limit of age.
    apart_ns: u64,
    /// The longest limit.
    longest_ns: u64,
    /// When, and the tail then; rising.
    marks: VecDeque<(u64, Cursor)>,
    /// A timer is set.
    pub(super) timed: bool,
}

impl Marks {
    /// A link has this limit of age. Limits stay known when their links are gone.
    pub(super) fn know(&mut self, age_ns: u64) {
        if age_ns < u64::MAX {
            let apart_ns = (age_ns / PARTS).max(APART_NS_MIN);
            self.apart_ns = if self.apart_ns == 0 { apart_ns } else { self.apart_ns.min(apart_ns) };
            self.longest_ns = self.longest_ns.max(age_ns);
        }
    }

    /// How often it is worth looking; `None` while nobody has a limit of age.
    pub(super) fn apart_ns(&self) -> Option<u64> {
        (self.apart_ns > 0).then_some(self.apart_ns)
    }

    /// Notes that the log is at `tail`.
    pub(super) fn note(&mut self, now_ns: u64, tail: Cursor) {
        if self.apart_ns == 0 || self.marks.back().is_some_and(|(_, last)| *last == tail) {
            return;
        }
        // The newest note is replaced while it is near the one before it; after a silence it is the one that counts, and stays.
        let before_ns = self.marks.iter().rev().nth(1).map(|(then_ns, _)| *then_ns);
        if before_ns.is_some_and(|before_ns| now_ns.saturating_sub(before_ns) < self.apart_ns) {
            self.marks.pop_back();
        }
        self.marks.push_back((now_ns, tail));
        // One that is older than all limits says where what is too old ends.
        let old = self.marks.partition_point(|(then_ns, _)| now_ns.saturating_sub(*then_ns) > self.longest_ns);
        self.marks.drain(..old.saturating_sub(1));
        if self.marks.len() > MARKS_MAX {
            let mut odd = false;
            self.marks.retain(|_| {
                odd = !odd;
                odd
            });
        }
    }

    /// What lies before the answer is older than `age_ns`.
    pub(super) fn stale(&self, now_ns: u64, age_ns: u64) -> Cursor {
        let old = self.marks.partition_point(|(then_ns, _)| now_ns.saturating_sub(*then_ns) > age_ns);
        old.checked_sub(1).and_then(|last| self.marks.get(last)).map_or(Cursor::default(), |(_, tail)| *tail)
    }

    /// When what lies at `at` becomes older than `age_ns`; `None` if nothing is known to lie there.
    pub(super) fn due_ns(&self, at: Cursor, age_ns: u64) -> Option<u64> {
        let first = self.marks.partition_point(|(_, tail)| tail.position() <= at.position());
        self.marks.get(first).map(|(then_ns, _)| then_ns.saturating_add(age_ns).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(n: u64) -> Cursor {
        Cursor::boundary(n, n)
    }

    #[test]
    fn what_is_too_old_is_known_to_a_part_of_the_limit() {
        let mut marks = Marks::default();
        marks.note(1, at(1));
        assert_eq!(marks.due_ns(at(0), 5), None, "nobody has a limit");
        marks.know(640 * MS);
        for ms in 1..=3_000 {
            marks.note(ms * MS, at(ms));
            let stale = marks.stale(ms * MS, 640 * MS).position();
            assert!(stale <= ms.saturating_sub(640), "{stale} is too old at {ms}");
            assert!(ms < 700 || stale + 640 + 20 >= ms, "{stale} is all that is too old at {ms}");
        }
        assert!(marks.marks.len() <= 2 * PARTS as usize + 4);
        let due_ns = marks.due_ns(at(2_900), 640 * MS).unwrap();
        assert!((2_900 * MS..=3_560 * MS).contains(&due_ns), "{due_ns}");
        assert_eq!(marks.due_ns(at(3_000), 640 * MS), None);
    }

    #[test]
    fn notes_are_bounded_whatever_the_limits() {
        let mut marks = Marks::default();
        marks.know(MS);
        marks.know(u64::MAX - 1);
        (1..20_000).for_each(|ms| marks.note(ms * MS, at(ms)));
        assert!(marks.marks.len() <= MARKS_MAX);
        assert!(marks.stale(20_000 * MS, 10_000 * MS).position() > 9_000);
    }
}
