//! Tells lost, duplicated and late sequence numbers apart. A number that was skipped is missing until it comes (then
//! it was out of order) or until the stream ends (then it was lost); one that is not missing and was passed came twice.
//! Pure; called by the subscriber once per tick, for which the usual case is one comparison.

use std::collections::BTreeMap;

/// Ranges of missing numbers that are remembered. Past it the oldest range is given up as lost.
const GAPS_MAX: usize = 65_536;

/// The sequence numbers seen so far.
#[derive(Default, Debug)]
pub(crate) struct SequenceCheck {
    /// The lowest number above all seen.
    next: u64,
    /// Missing ranges below `next`: first number to the number after the last.
    gaps: BTreeMap<u64, u64>,
    /// Different numbers seen.
    pub(crate) delivered: u64,
    /// Numbers seen again.
    pub(crate) duplicated: u64,
    /// Numbers seen after a higher one.
    pub(crate) out_of_order: u64,
}

impl SequenceCheck {
    /// Notes one number.
    pub(crate) fn note(&mut self, sequence: u64) {
        if sequence == self.next {
            self.next += 1;
            self.delivered += 1;
        } else {
            self.note_unexpected(sequence);
        }
    }

    /// Numbers below `sent` that have not been seen. `sent` is what the publisher says that it sent.
    pub(crate) fn lost(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.delivered)
    }

    #[cold]
    fn note_unexpected(&mut self, sequence: u64) {
        if sequence > self.next {
            self.gaps.insert(self.next, sequence);
            self.next = sequence + 1;
            self.delivered += 1;
            if self.gaps.len() > GAPS_MAX {
                self.gaps.pop_first();
            }
        } else if self.take_missing(sequence) {
            self.delivered += 1;
            self.out_of_order += 1;
        } else {
            self.duplicated += 1;
        }
    }

    /// Removes a number from the gaps; false when it was in none.
    fn take_missing(&mut self, sequence: u64) -> bool {
        let Some((&start, &end)) = self.gaps.range(..=sequence).next_back() else { return false };
        if sequence >= end {
            return false;
        }
        self.gaps.remove(&start);
        if start < sequence {
            self.gaps.insert(start, sequence);
        }
        if sequence + 1 < end {
            self.gaps.insert(sequence + 1, end);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(numbers: impl IntoIterator<Item = u64>) -> SequenceCheck {
        let mut check = SequenceCheck::default();
        numbers.into_iter().for_each(|number| check.note(number));
        check
    }

    fn counts(check: &SequenceCheck, sent: u64) -> [u64; 4] {
        [check.delivered, check.lost(sent), check.duplicated, check.out_of_order]
    }

    #[test]
    fn an_unbroken_stream_is_clean() {
        assert_eq!(counts(&seen(0..1000), 1000), [1000, 0, 0, 0]);
    }

    #[test]
    fn gaps_at_start_middle_and_end_are_lost() {
        assert_eq!(counts(&seen([2, 3, 7]), 10), [3, 7, 0, 0]);
        assert_eq!(counts(&seen([]), 5), [0, 5, 0, 0]);
    }

    #[test]
    fn late_numbers_are_out_of_order_and_not_lost() {
        assert_eq!(counts(&seen([0, 3, 2, 1, 4]), 5), [5, 0, 0, 2]);
    }

    #[test]
    fn repeated_numbers_are_duplicates_also_when_they_were_late() {
        assert_eq!(counts(&seen([0, 0, 3, 1, 1, 3, 2]), 4), [4, 0, 3, 2]);
    }

    #[test]
    fn a_gap_is_split_by_what_arrives_in_it() {
        let check = seen([10, 5]);
        assert_eq!(check.gaps.into_iter().collect::<Vec<_>>(), [(0, 5), (6, 10)]);
    }

    #[test]
    fn the_memory_of_gaps_is_bounded() {
        let check = seen((0..GAPS_MAX as u64 + 10).map(|n| n * 2 + 1));
        assert_eq!(check.gaps.len(), GAPS_MAX);
        assert_eq!(check.lost(2 * (GAPS_MAX as u64 + 10)), GAPS_MAX as u64 + 10);
    }
}
