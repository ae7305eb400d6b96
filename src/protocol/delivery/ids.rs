//! Sets of message ids (parent module). Our sources count their ids, so neighbours are kept together: sixty-four of them are one entry
//! of a table, which stays in the caches while they come and go. Ids that are random take an entry each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::IdHash;
use crate::protocol::frame::MsgId;

/// Ids of one block: as many as a word has bits.
const BLOCK_BITS: u32 = u64::BITS.ilog2();

/// A set of message ids. It has no bound of its own.
#[derive(Debug, Default)]
pub(crate) struct IdSet {
    /// By all of an id but its last bits, which ids of that block are there.
    blocks: HashMap<u128, u64, IdHash>,
    len: usize,
}

/// The block of an id, and its bit there.
#[inline]
fn place(id: &MsgId) -> (u128, u64) {
    let number = u128::from_be_bytes(id.0);
    (number >> BLOCK_BITS, 1 << (number as u64 % u64::from(u64::BITS)))
}

impl IdSet {
    /// True if it was not there.
    #[inline]
    pub(crate) fn insert(&mut self, id: &MsgId) -> bool {
        let (block, bit) = place(id);
        let bits = self.blocks.entry(block).or_default();
        let fresh = *bits & bit == 0;
        *bits |= bit;
        self.len += usize::from(fresh);
        fresh
    }

    /// True if it was there.
    #[inline]
    pub(crate) fn remove(&mut self, id: &MsgId) -> bool {
        let (block, bit) = place(id);
        let Entry::Occupied(mut bits) = self.blocks.entry(block) else { return false };
        let known = bits.get() & bit != 0;
        *bits.get_mut() &= !bit;
        if *bits.get() == 0 {
            bits.remove();
        }
        self.len -= usize::from(known);
        known
    }

    pub(crate) fn contains(&self, id: &MsgId) -> bool {
        let (block, bit) = place(id);
        self.blocks.get(&block).is_some_and(|bits| bits & bit != 0)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(steps in prop::collection::vec((any::<bool>(), 0u128..200, any::<bool>()), 0..400)) {
            let (mut ids, mut model) = (IdSet::default(), BTreeSet::new());
            for (insert, number, far) in steps {
                let number = if far { u128::MAX - number * 1000 } else { number };
                let id = MsgId(number.to_be_bytes());
                prop_assert_eq!(ids.contains(&id), model.contains(&number));
                if insert {
                    prop_assert_eq!(ids.insert(&id), model.insert(number));
                } else {
                    prop_assert_eq!(ids.remove(&id), model.remove(&number));
                }
                prop_assert_eq!(ids.len(), model.len());
            }
            // Nothing is kept of what has gone.
            let blocks: BTreeSet<u128> = model.iter().map(|number| number >> BLOCK_BITS).collect();
            prop_assert_eq!(ids.blocks.len(), blocks.len());
        }
    }
}
