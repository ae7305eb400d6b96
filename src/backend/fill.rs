//! Appending to a `BytesMut` what a system call or the kernel wrote into its spare capacity.
#![allow(unsafe_code)]

use std::io;

use bytes::{BufMut, BytesMut};
use socket2::Socket;

/// Receives once into the spare capacity of `buffer`, which grows by the result.
pub(super) fn recv_append(socket: &Socket, buffer: &mut BytesMut) -> io::Result<usize> {
    let received = socket.recv(buffer.spare_capacity_mut())?;
    // SAFETY: the call has written the first `received` bytes of the spare capacity.
    unsafe { buffer.advance_mut(received) };
    Ok(received)
}

/// Makes the next `len` bytes of the spare capacity part of `buffer`.
///
/// # Safety
/// They have been written.
#[cfg(all(target_os = "linux", feature = "uring"))]
pub(super) unsafe fn append_written(buffer: &mut BytesMut, len: usize) {
    assert!(len <= buffer.capacity() - buffer.len(), "no more was written than there was room");
    // SAFETY: inside the capacity, and written: the caller's promise.
    unsafe { buffer.advance_mut(len) };
}
