//! Sets of message ids (parent module). Our sources count their ids, so neighbours are kept together: sixty-four of them are one block,
//! and blocks are looked up in the table only when others than the last ones are needed. Ids that are random take a block each.

use std::collections::HashMap;

use super::IdHash;
use crate::protocol::frame::MsgId;

/// Ids of one block: as many as a word has bits.
const BLOCK_BITS: u32 = u64::BITS.ilog2();

/// A set of message ids. It has no bound of its own.
#[derive(Debug, Default)]
pub(crate) struct IdSet {
    /// The block where an id was inserted last, and the one where one was removed last; they are not in the table.
    inserted: Block,
    removed: Block,
    /// By all of an id but its last bits, which ids of that block are there.
    table: HashMap<u128, u64, IdHash>,
    len: usize,
}

#[derive(Debug)]
struct Block {
    number: u128,
    bits: u64,
}

impl Default for Block {
    /// A block that no id has.
    fn default() -> Self {
        Self { number: u128::MAX, bits: 0 }
    }
}

impl Block {
    /// Goes on to another block.
    #[cold]
    fn turn_to(&mut self, number: u128, table: &mut HashMap<u128, u64, IdHash>) {
        let bits = table.remove(&number).unwrap_or(0);
        if self.bits != 0 {
            table.insert(self.number, self.bits);
        }
        *self = Block { number, bits };
    }
}

/// The number of an id's block, and its bit there.
#[inline]
fn place(id: &MsgId) -> (u128, u64) {
    let number = u128::from_be_bytes(id.0);
    (number >> BLOCK_BITS, 1 << (number as u64 % u64::from(u64::BITS)))
}

impl IdSet {
    /// True if it was not there.
    #[inline]
    pub(crate) fn insert(&mut self, id: &MsgId) -> bool {
        let (number, bit) = place(id);
        let block = if self.removed.number == number { &mut self.removed } else { &mut self.inserted };
        if block.number != number {
            block.turn_to(number, &mut self.table);
        }
        let fresh = block.bits & bit == 0;
        block.bits |= bit;
        self.len += usize::from(fresh);
        fresh
    }

    /// True if it was there.
    #[inline]
    pub(crate) fn remove(&mut self, id: &MsgId) -> bool {
        let (number, bit) = place(id);
        let block = if self.inserted.number == number { &mut self.inserted } else { &mut self.removed };
        if block.number != number {
            block.turn_to(number, &mut self.table);
        }
        let known = block.bits & bit != 0;
        block.bits &= !bit;
        self.len -= usize::from(known);
        known
    }

    pub(crate) fn contains(&self, id: &MsgId) -> bool {
        let (number, bit) = place(id);
        let at_hand = [&self.inserted, &self.removed].into_iter().find(|block| block.number == number);
        at_hand.map(|block| &block.bits).or_else(|| self.table.get(&number)).is_some_and(|bits| bits & bit != 0)
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
            let at_hand = [&ids.inserted, &ids.removed].into_iter().filter(|block| block.bits != 0).count();
            prop_assert_eq!(ids.table.len() + at_hand, blocks.len());
        }
    }
}
