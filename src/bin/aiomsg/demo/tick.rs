//! The demo's message: a header of four little-endian words, then the body.
//!
//! ```text
//! | sequence u64 | time_ns u64 | checksum u64 | kind u64 | body ... |
//! ```
//!
//! `sequence` counts ticks from 0; in a mark it is the number of ticks sent before it. `time_ns` is the publisher's
//! system clock: of the clocks in the standard library the only one that two processes can compare, at the price that
//! a clock set during the run spoils the latencies of that run (and nothing else). The checksum covers the rest of the
//! header, the body and its length. No I/O here; called by the publisher and the subscriber.

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes before the body.
pub(crate) const HEADER_BYTES: usize = 32;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A tick whose time is exact: latency is measured with it.
    Timed = 1,
    /// A tick sent at full speed, its time read once per block.
    Untimed = 2,
    /// A mark: a phase ends here, another follows.
    PhaseEnd = 3,
    /// A mark: nothing follows.
    StreamEnd = 4,
}

impl Kind {
    fn from_word(word: u64) -> Option<Self> {
        [Self::Timed, Self::Untimed, Self::PhaseEnd, Self::StreamEnd].into_iter().find(|kind| *kind as u64 == word)
    }
}

/// The header of a message whose checksum was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick {
    /// Number of this tick, from 0; of a mark: ticks sent before it.
    pub(crate) sequence: u64,
    /// When it was published: nanoseconds since 1970 on the publisher's system clock.
    pub(crate) time_ns: u64,
    /// What it is.
    pub(crate) kind: Kind,
}

impl Tick {
    /// Writes the header into the first [`HEADER_BYTES`] of `message`, the rest of which is the body.
    pub(crate) fn encode(&self, message: &mut [u8]) {
        let (header, body) = message.split_at_mut(HEADER_BYTES);
        let words = [self.sequence, self.time_ns, checksum(self, body), self.kind as u64];
        for (bytes, word) in header.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Reads and checks a message; `None` when it is too short, of no known kind, or its checksum is wrong.
    pub(crate) fn decode(message: &[u8]) -> Option<Self> {
        let (header, body) = message.split_at_checked(HEADER_BYTES)?;
        let word = |index: usize| load(&header[index * 8..]);
        let tick = Self { sequence: word(0), time_ns: word(1), kind: Kind::from_word(word(3))? };
        (word(2) == checksum(&tick, body)).then_some(tick)
    }
}

/// Nanoseconds since 1970 on the system clock; 0 on a clock that stands before that.
pub(crate) fn system_time_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Up to 8 bytes as a little-endian word, zeros after the last.
fn load(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    let len = bytes.len().min(8);
    word[..len].copy_from_slice(&bytes[..len]);
    u64::from_le_bytes(word)
}

/// Each word times an odd number of its own position, so that any change of one word shows, and so do swaps. The
/// products do not wait for one another: this runs once per delivery at full speed.
fn checksum(tick: &Tick, body: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let head = [tick.sequence, tick.time_ns, tick.kind as u64, body.len() as u64];
    let words = body.chunks_exact(8);
    let tail = load(words.remainder());
    let mut sum = 0_u64;
    let mut multiplier = ODD;
    for word in head.into_iter().chain(words.map(load)).chain([tail]) {
        sum = sum.rotate_left(5).wrapping_add(word.wrapping_mul(multiplier));
        multiplier = multiplier.wrapping_add(ODD << 1);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> (Tick, Vec<u8>) {
        let tick = Tick { sequence: 7, time_ns: 1_700_000_000_000_000_123, kind: Kind::Timed };
        let mut message = vec![0; HEADER_BYTES];
        message.extend_from_slice(body);
        tick.encode(&mut message);
        (tick, message)
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for body in [&b""[..], b"x", b"12345678", b"a line of a recording, of some length"] {
            let (tick, message) = message(body);
            assert_eq!(Tick::decode(&message), Some(tick));
            assert_eq!(&message[HEADER_BYTES..], body);
        }
    }

    #[test]
    fn every_flipped_bit_shows() {
        let (_, message) = message(b"1703462400000000000,682,A,B");
        for bit in 0..message.len() * 8 {
            let mut damaged = message.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Tick::decode(&damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn cut_grown_and_reordered_messages_show() {
        let (_, message) = message(b"abcdefgh12345678");
        for len in 0..message.len() {
            assert_eq!(Tick::decode(&message[..len]), None, "cut to {len}");
        }
        let mut grown = message.clone();
        grown.push(0);
        assert_eq!(Tick::decode(&grown), None);
        let mut swapped = message;
        swapped[HEADER_BYTES..].rotate_left(8);
        assert_eq!(Tick::decode(&swapped), None);
    }
}
