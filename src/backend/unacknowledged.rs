//! How much of what was sent on a connection the other end's kernel has not taken yet: from the outside the only sign of a peer that
//! reads slowly, while the kernel accepts nothing more (it waits until a third of its buffer is free). One direct call; for those that
//! a publisher waits for, never on the way of a message. Called by both drivers.
#![cfg_attr(target_os = "linux", allow(unsafe_code))]

use socket2::Socket;

/// TIOCOUTQ, also called SIOCOUTQ, where the kernel has its generic number.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const OUTQ: rustix::ioctl::Opcode = 0x5411;

/// In bytes; `None` where the system does not tell.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
pub(super) fn unacknowledged(socket: &Socket) -> Option<u64> {
    // SAFETY: on a socket this request writes one `int`, which the getter has room for; on anything else it fails.
    let bytes = unsafe { rustix::ioctl::ioctl(socket, rustix::ioctl::Getter::<OUTQ, i32>::new()) };
    bytes.ok().and_then(|bytes| u64::try_from(bytes).ok())
}

/// Not known here.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))))]
pub(super) fn unacknowledged(_socket: &Socket) -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn falls_as_the_other_end_reads() {
        let (mut one, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
        let probe = Socket::from(std::os::fd::OwnedFd::from(one.try_clone().unwrap()));
        assert_eq!(unacknowledged(&probe), Some(0));
        one.write_all(&[1; 1000]).unwrap();
        assert!(unacknowledged(&probe) > Some(0));
        other.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(unacknowledged(&probe), Some(0));
    }
}
