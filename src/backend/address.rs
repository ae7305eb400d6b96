//! Where a socket binds or connects: an IP address with a port, (on unix) the path of a socket file, or (on Linux) a listening socket
//! that the process was started with.
//!
//! Names are not addresses: `Backend::resolve` turns them into some.

use std::fmt;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::PathBuf;

/// A transport address.
///
/// Shown as `127.0.0.1:25000`, `[::1]:25000` or `unix:/run/feed.sock`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Address {
    /// TCP over IPv4 or IPv6.
    Ip(SocketAddr),
    /// A unix stream socket. The path of an accepted peer is usually empty: connecting ends are not bound to a file.
    #[cfg(unix)]
    Unix(PathBuf),
    /// A listening socket that the process was started with, by the number of its descriptor: see
    /// [`Endpoint`](crate::Endpoint). To bind only.
    #[cfg(target_os = "linux")]
    Inherited(u32),
}

impl Address {
    /// The IP address and port, if it is one.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Address::Ip(address) => Some(*address),
            #[cfg(unix)]
            _ => None,
        }
    }

    /// The port, if it has one.
    pub fn port(&self) -> Option<u16> {
        self.socket_addr().map(|address| address.port())
    }

    /// Its form for the socket calls.
    pub(super) fn to_sockaddr(&self) -> std::io::Result<socket2::SockAddr> {
        match self {
            Address::Ip(address) => Ok(socket2::SockAddr::from(*address)),
            #[cfg(unix)]
            Address::Unix(path) => socket2::SockAddr::unix(path),
            #[cfg(target_os = "linux")]
            Address::Inherited(_) => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }

    /// What the socket calls said; an unnamed unix peer gets the empty path.
    pub(super) fn from_sockaddr(address: &socket2::SockAddr) -> std::io::Result<Address> {
        if let Some(ip) = address.as_socket() {
            return Ok(Address::Ip(ip));
        }
        #[cfg(unix)]
        if address.is_unix() {
            return Ok(Address::Unix(address.as_pathname().map(PathBuf::from).unwrap_or_default()));
        }
        Err(std::io::Error::from(std::io::ErrorKind::Unsupported))
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Ip(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            #[cfg(unix)]
            Address::Unix(path) => {
                // The first two slashes of three or more are read as part of the scheme.
                let authority = if path.as_os_str().as_encoded_bytes().starts_with(b"//") { "//" } else { "" };
                write!(f, "unix:{authority}{}", path.display())
            }
            #[cfg(target_os = "linux")]
            Address::Inherited(fd) => write!(f, "fd:{fd}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_and_converts() {
        let v4 = Address::from("127.0.0.1:80".parse::<SocketAddr>().unwrap());
        let v6 = Address::from("[::1]:80".parse::<SocketAddr>().unwrap());
        assert_eq!((v4.to_string(), v6.to_string()), ("127.0.0.1:80".into(), "[::1]:80".into()));
        for address in [v4, v6] {
            assert_eq!(Address::from_sockaddr(&address.to_sockaddr().unwrap()).unwrap(), address);
        }
    }

    #[cfg(unix)]
    #[test]
    fn unix_paths() {
        let address = Address::Unix("/tmp/x".into());
        assert_eq!((address.to_string(), address.socket_addr()), ("unix:/tmp/x".into(), None));
        assert_eq!(Address::from_sockaddr(&address.to_sockaddr().unwrap()).unwrap(), address);
        assert!(Address::Unix("x".repeat(200).into()).to_sockaddr().is_err());
    }
}
