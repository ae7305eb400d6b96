//! Seeded randomness of the simulation: xorshift64* (Vigna, 2014). It shares no code with the engine's own generator.

/// A generator; the seed determines the sequence.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The generator of a seed; seeds that differ in one bit give unrelated sequences.
    pub(crate) fn new(seed: u64) -> Dice {
        let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Dice((mixed ^ (mixed >> 31)) | 1)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn pick(&mut self, low: u64, high: u64) -> u64 {
        debug_assert!(low <= high);
        let width = u128::from(high - low) + 1;
        low + ((u128::from(self.next()) * width) >> 64) as u64
    }

    /// An index into something of `len` elements (at least 1).
    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.pick(0, len as u64 - 1) as usize
    }

    /// True once in `one_in` times on average.
    pub(crate) fn once_in(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.pick(1, one_in) == 1
    }

    /// A number whose magnitude is as random as its digits: small ones are as likely as large ones.
    pub(crate) fn magnitude(&mut self, low: u64, high: u64) -> u64 {
        let bits = self.pick(0, u64::from(64 - high.leading_zeros()));
        let ceiling = if bits >= 64 { high } else { ((1u64 << bits) - 1).clamp(low, high) };
        self.pick(low, ceiling.max(low))
    }
}
