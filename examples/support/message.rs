//! The messages of a run: kind in byte 0, sequence number (little-endian) in bytes 8..16,
//! filling elsewhere.

/// Smallest payload: kind, padding, sequence number.
pub(crate) const PAYLOAD_BYTES_MIN: usize = 16;

/// Sent before the data until the receiver is ready; its number is the round.
pub(crate) const PROBE: u8 = 0;
/// The measured messages, numbered from 0.
pub(crate) const DATA: u8 = 1;
/// Sent after the data until the receiver is done; its number is the round.
pub(crate) const END: u8 = 2;

/// A whole message of `size` bytes.
pub(crate) fn message(kind: u8, number: u64, size: usize) -> Vec<u8> {
    let mut message = vec![0x5a; size];
    stamp(&mut message, kind, number);
    message
}

/// Writes kind and number into a message.
#[inline]
pub(crate) fn stamp(message: &mut [u8], kind: u8, number: u64) {
    message[0] = kind;
    message[8..16].copy_from_slice(&number.to_le_bytes());
}

/// The number that [`stamp`] wrote.
#[inline]
pub(crate) fn number_of(message: &[u8]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&message[8..16]);
    u64::from_le_bytes(number)
}
