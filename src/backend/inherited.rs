//! Listening sockets that the process was started with: systemd's socket activation, and whoever else keeps its protocol
//! (`LISTEN_PID`, `LISTEN_FDS`, descriptors from 3 on; sd_listen_fds(3)). Called by `sockets`. Never touches a descriptor that the
//! protocol does not name, and never closes the one that was given: what is used is a duplicate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use socket2::{Socket, Type};

/// The first descriptor of the protocol.
const FIRST: u32 = 3;

/// A duplicate of the inherited descriptor `fd`.
///
/// # Errors
/// When the environment does not name the descriptor, or it is no listening stream socket.
pub(super) fn listener(fd: u32) -> io::Result<Socket> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok()).unwrap_or(0);
    let count = if number("LISTEN_PID") == std::process::id() { number("LISTEN_FDS") } else { 0 };
    if fd < FIRST || fd - FIRST >= count {
        let text = format!("{count} sockets were passed to this process (LISTEN_FDS, from fd:{FIRST} on)");
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let raw = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: whoever started this process opened the descriptor for it, and says so in a way that no other process inherits;
    // nothing here closes it.
    let given = unsafe { BorrowedFd::borrow_raw(raw) };
    let socket = Socket::from(given.try_clone_to_owned()?);
    if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the inherited socket does not listen for streams"));
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_passed() {
        for fd in [0, 2, 3, 4, u32::MAX] {
            assert_eq!(listener(fd).unwrap_err().kind(), io::ErrorKind::NotFound, "{fd}");
        }
    }
}
