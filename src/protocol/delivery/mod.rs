//! AT_LEAST_ONCE (protocol, "Delivery guarantee"): fresh message ids, what waits for its ACK, and what was seen before.
//!
//! ```text
//!   sender                                        receiver
//!   MsgIds::next, Pending::insert --- DATA_REQ --> Windows::insert: fresh? deliver
//!   Pending::acknowledge          <-- ACK --------                  seen?  only acknowledge again
//!   Pending::poll after resend_ns --- DATA_REQ, same msg_id -->
//! ```
//! Stock senders resend under a new id, so their duplicates cannot be recognised; ours keep the id.
//! Everything is bounded: a full table refuses, a full window forgets its oldest ids, a full set of windows the peer that
//! was not heard of for longest. Called by `shard`. Never sends and never holds time of its own.

pub(crate) mod ids;
pub(crate) mod pending;
pub(crate) mod window;

use std::hash::{BuildHasher, Hasher, RandomState};

use super::frame::MsgId;

/// A source of message ids that no other source repeats: eight bytes that are random per source, then a counter.
#[derive(Debug, Clone)]
pub(crate) struct MsgIds {
    prefix: u64,
    count: u64,
}

impl MsgIds {
    /// A source with a random `prefix`, one per socket and process.
    pub(crate) const fn new(prefix: u64) -> Self {
        Self { prefix, count: 0 }
    }

    /// The next id.
    #[inline]
    pub(crate) fn next(&mut self) -> MsgId {
        let id = u128::from(self.prefix) << 64 | u128::from(self.count);
        self.count = self.count.wrapping_add(1);
        MsgId(id.to_be_bytes())
    }
}

/// Hashes ids for the tables here: one multiplication for 16 bytes, several times faster than the standard hasher.
///
/// Peers choose ids, so the hash is keyed: who does not know the keys cannot aim at collisions, and who found some would
/// slow down one table whose size is bounded. (Folded multiplication, as in wyhash by Wang Yi.) No answer of a table
/// depends on the keys.
#[derive(Debug, Clone)]
pub(crate) struct IdHash {
    keys: [u64; 2],
}

impl Default for IdHash {
    /// Fresh keys, from where the standard library's tables have theirs.
    fn default() -> Self {
        let source = RandomState::new();
        Self { keys: [source.hash_one(0), source.hash_one(1)] }
    }
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher { state: self.keys[0], key: self.keys[1] }
    }
}

/// One hash in progress.
#[derive(Debug)]
pub(crate) struct IdHasher {
    state: u64,
    key: u64,
}

impl Hasher for IdHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        // Ids are 16 bytes: one round.
        for piece in bytes.chunks(16) {
            let mut padded = [0; 16];
            padded[..piece.len()].copy_from_slice(piece);
            self.write_u128(u128::from_le_bytes(padded));
        }
    }

    #[inline]
    fn write_u128(&mut self, id: u128) {
        let product = u128::from(id as u64 ^ self.state) * u128::from((id >> 64) as u64 ^ self.key);
        self.state = product as u64 ^ (product >> 64) as u64;
    }

    #[inline]
    fn finish(&self) -> u64 {
        // One round alone leaves its mark on ids that differ in one byte, for some keys.
        let product = u128::from(self.state ^ self.key) * 0x9E37_79B9_7F4A_7C15_u128;
        product as u64 ^ (product >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_fresh() {
        let (mut one, mut two) = (MsgIds::new(1), MsgIds::new(2));
        let ids: HashSet<MsgId> = (0..100).flat_map(|_| [one.next(), two.next()]).collect();
        assert_eq!(ids.len(), 200);
        assert_eq!(MsgIds::new(0x0102_0304_0506_0708).next().0, [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Tables use the low bits for the place and the top seven as a tag: ids that count up must spread over both.
    #[test]
    fn the_hash_spreads_ids_that_count_up() {
        for _ in 0..100 {
            let (hash, mut ids) = (IdHash::default(), MsgIds::new(77));
            let mut low = [0u32; 256];
            let mut high = [0u32; 128];
            for _ in 0..25_600 {
                let bits = hash.hash_one(ids.next());
                low[(bits & 255) as usize] += 1;
                high[(bits >> 57) as usize] += 1;
            }
            assert!(low.iter().all(|&count| (20..400).contains(&count)), "{low:?}");
            assert!(high.iter().all(|&count| (40..800).contains(&count)), "{high:?}");
        }
    }
}
