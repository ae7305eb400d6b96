//! Seeded randomness for jitter, ids and simulation: the same seed gives the same sequence on every platform.
//!
//! SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): one addition and a
//! mixing function; every seed is good. Not for secrets: identities come from [`fill_from_system`].

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

/// A small generator of pseudo-random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The generator whose sequence `seed` determines.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator that nobody can foresee; for real engines, never in simulation.
    pub(crate) fn from_system() -> Self {
        let mut seed = [0; 8];
        fill_from_system(&mut seed);
        Self(u64::from_ne_bytes(seed))
    }

    /// The next 64 bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// A number in `range`, evenly up to a bias below `width / 2^64`; the start of an empty range.
    pub(crate) fn range(&mut self, range: Range<u64>) -> u64 {
        let width = range.end.saturating_sub(range.start);
        let scaled = (u128::from(self.next_u64()) * u128::from(width)) >> 64;
        range.start + scaled as u64
    }

    /// Random bytes.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        for piece in out.chunks_mut(8) {
            piece.copy_from_slice(&self.next_u64().to_le_bytes()[..piece.len()]);
        }
    }
}

/// Unforeseeable bytes from the operating system.
pub(crate) fn fill_from_system(out: &mut [u8]) {
    if getrandom::fill(out).is_err() {
        // A sandbox may deny the system call. The standard library seeds its hashers from the system by its own ways;
        // where these fail too, it ends the process with its own message.
        for (index, piece) in out.chunks_mut(8).enumerate() {
            let bits = RandomState::new().hash_one(index);
            piece.copy_from_slice(&bits.to_le_bytes()[..piece.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_reference_sequence() {
        // The first outputs of the authors' C code for seed 1234567.
        let mut rng = Rng::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(std::array::from_fn(|_| rng.next_u64()), expected);
    }

    #[test]
    fn ranges_are_kept_and_filled() {
        let mut rng = Rng::new(1);
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            seen[(rng.range(5..15) - 5) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
        assert_eq!(rng.range(3..3), 3);
        assert!(rng.range(0..u64::MAX) < u64::MAX);
    }

    #[test]
    fn fill_covers_every_byte() {
        for len in 0..20 {
            let mut ever = vec![0u8; len];
            let mut rng = Rng::new(len as u64);
            for _ in 0..8 {
                let mut bytes = vec![0; len];
                rng.fill(&mut bytes);
                ever.iter_mut().zip(bytes).for_each(|(ever, byte)| *ever |= byte);
            }
            assert!(ever.iter().all(|&byte| byte != 0));
        }
        let (mut one, mut two) = ([0; 32], [0; 32]);
        fill_from_system(&mut one);
        fill_from_system(&mut two);
        assert_ne!(one, two);
    }
}
