//! Copies of large payloads.
//!
//! libc copies more than some KiB with `rep movsb`. Processors of AMD's Zen family then go byte by byte where the target lies 1 to 15
//! bytes after the source, as places within pages: 16 KiB take 4.6 us instead of 0.17 (Zen 4;
//! <https://sourceware.org/bugzilla/show_bug.cgi?id=30994>). Frames of equal length step through a log by 5 bytes a page, so that who
//! sends out of one buffer at the start of a page would meet this in every fifth message of 16 KiB. Such copies go in pieces for
//! which libc loads and stores.

use std::slice::Chunks;

use bytes::{Bytes, BytesMut};

/// Shorter copies take no `rep movsb`: libc does so from 2 KiB with SSE2, from 4 or 8 KiB with AVX.
pub(crate) const LARGE_BYTES: usize = 2048;
const PAGE_BYTES: usize = 4096;
/// Up to here behind its source a target is close; `rep movsb` takes twice its time from 16 on.
const CLOSE_BYTES: usize = 32;

/// `bytes` in pieces to copy one after another to `to`: one, unless that would be slow.
pub(crate) fn pieces(bytes: &[u8], to: *const u8) -> Chunks<'_, u8> {
    let behind = to.addr().wrapping_sub(bytes.as_ptr().addr()) % PAGE_BYTES;
    bytes.chunks(if (1..CLOSE_BYTES).contains(&behind) { LARGE_BYTES - 1 } else { bytes.len().max(1) })
}

/// Appends `bytes` to `buffer`.
pub(crate) fn extend(buffer: &mut BytesMut, bytes: &[u8]) {
    buffer.reserve(bytes.len());
    let to = buffer.spare_capacity_mut().as_ptr().cast();
    pieces(bytes, to).for_each(|piece| buffer.extend_from_slice(piece));
}

/// `bytes` in memory of their own.
pub(crate) fn owned(bytes: &[u8]) -> Bytes {
    let mut buffer = BytesMut::with_capacity(bytes.len());
    extend(&mut buffer, bytes);
    buffer.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_target_close_behind_its_source_is_reached_in_pieces() {
        let source = vec![7; 3 * PAGE_BYTES];
        let count = |behind: usize| pieces(&source, source.as_ptr().wrapping_add(PAGE_BYTES + behind)).count();
        assert_eq!([0, CLOSE_BYTES, PAGE_BYTES / 2, PAGE_BYTES - 1].map(count), [1; 4]);
        assert_eq!([1, 15, CLOSE_BYTES - 1].map(count), [7; 3]);
        assert_eq!(pieces(&[], source.as_ptr()).count(), 0);
    }

    #[test]
    fn a_copy_is_the_same_wherever_it_lies() {
        let source: Vec<u8> = (0..3 * PAGE_BYTES).map(|at| ((at * 31) >> 3) as u8).collect();
        for length in [0, 1, LARGE_BYTES - 1, LARGE_BYTES, 2 * PAGE_BYTES] {
            for behind in [0, 1, 5, CLOSE_BYTES, PAGE_BYTES - 1] {
                let mut buffer = BytesMut::with_capacity(5 * PAGE_BYTES);
                let before = source.as_ptr().addr().wrapping_sub(buffer.as_ptr().addr()) % PAGE_BYTES + behind;
                buffer.resize(before, 9);
                extend(&mut buffer, &source[..length]);
                assert!(buffer[..before].iter().all(|&byte| byte == 9));
                assert_eq!(buffer[before..], source[..length], "{length} bytes, {behind} behind");
                assert_eq!(owned(&source[behind..behind + length]), source[behind..behind + length]);
            }
        }
    }
}
