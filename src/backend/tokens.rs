//! From an operation's token to where it is kept: a hash table with a hash of one multiplication.
//!
//! Tokens are chosen by the shard, not by peers, so nobody can aim for collisions.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::Token;

/// A table keyed by token.
pub(super) type TokenMap<V> = HashMap<Token, V, BuildHasherDefault<TokenHasher>>;

/// Spreads a `u64` over all bits (Fibonacci hashing).
#[derive(Default)]
pub(super) struct TokenHasher(u64);

impl Hasher for TokenHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
