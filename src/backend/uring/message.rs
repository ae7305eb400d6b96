//! A gathered send as the kernel wants it described: a `msghdr` that points at an array of `iovec`s.
//!
//! It does not own the bytes; the operation that owns the message owns them too. It lives in a box and does not move
//! while a request points at it.
#![allow(unsafe_code)]

use bytes::Bytes;

/// A `msghdr` with its parts.
pub(super) struct Message {
    header: libc::msghdr,
    parts: Vec<libc::iovec>,
}

impl Message {
    /// A message without parts.
    pub(super) fn new() -> Message {
        // SAFETY: `msghdr` is plain data for which zero is valid: null pointers and empty lengths.
        let header = unsafe { std::mem::zeroed() };
        Message { header, parts: Vec::new() }
    }

    /// Describes `slices` without their first `skip` bytes and returns how many bytes that is.
    pub(super) fn describe(&mut self, slices: &[Bytes], mut skip: usize) -> usize {
        self.parts.clear();
        let mut total = 0;
        for slice in slices {
            let part = &slice[skip.min(slice.len())..];
            skip -= slice.len() - part.len();
            if !part.is_empty() {
                total += part.len();
                self.parts.push(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
            }
        }
        self.header.msg_iov = self.parts.as_mut_ptr();
        self.header.msg_iovlen = self.parts.len() as _;
        total
    }

    /// The parts: memory and length of each.
    pub(super) fn parts(&self) -> impl ExactSizeIterator<Item = (*const u8, usize)> + '_ {
        self.parts.iter().map(|part| (part.iov_base.cast_const().cast(), part.iov_len))
    }

    /// The header, for the kernel.
    pub(super) fn header(&self) -> *const libc::msghdr {
        &raw const self.header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_what_was_sent() {
        let slices: Vec<Bytes> = vec!["abc".into(), "".into(), "de".into()];
        let mut message = Message::new();
        for (skip, lens) in [(0, vec![3, 2]), (1, vec![2, 2]), (3, vec![2]), (4, vec![1]), (5, vec![])] {
            assert_eq!(message.describe(&slices, skip), 5 - skip);
            assert_eq!(message.parts().map(|(_, len)| len).collect::<Vec<_>>(), lens);
        }
    }
}
