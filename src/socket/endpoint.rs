//! Where to bind or connect: the texts and types that people write, checked when they are given and not when they are used.

use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::backend::Address;
use crate::shard::Target;

/// A place to bind or connect to: `host:port`, `tcp://host:port`, `[v6]:port`, a [`SocketAddr`], a `(host, port)` pair, an
/// [`Address`], or `unix:/path` where the platform has such sockets. `*` as the host means all IPv4 interfaces.
///
/// On Linux, `fd:3` is a listening socket that the process was started with, to bind only: systemd's socket activation, which keeps
/// the address open while the program restarts. Descriptors count from 3, in the order of the unit's `Listen` lines.
///
/// ```
/// use aiomsg_uring::Endpoint;
///
/// let endpoint: Endpoint = "market.example.org:25000".parse()?;
/// assert_eq!(endpoint.to_string(), "market.example.org:25000");
/// assert!("market.example.org".parse::<Endpoint>().is_err());
/// # Ok::<(), aiomsg_uring::EndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(pub(crate) Target);

impl Endpoint {
    /// Nobody can be reached at port 0.
    pub(super) fn check_reachable(&self) -> Result<(), EndpointError> {
        let port = match &self.0 {
            #[cfg(target_os = "linux")]
            Target::Address(Address::Inherited(_)) => {
                return Err(EndpointError::new(&self.to_string(), "is a listening socket: bind it"));
            }
            Target::Address(address) => address.port(),
            Target::Name { port, .. } => Some(*port),
        };
        match port {
            Some(0) => {
                Err(EndpointError::new(&self.to_string(), "has port 0: connect to the port that bind answered with"))
            }
            _ => Ok(()),
        }
    }

    fn new(host: &str, port: u16) -> Result<Endpoint, EndpointError> {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if bare == "*" {
            return Ok(SocketAddr::from(([0, 0, 0, 0], port)).into());
        }
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, port).into());
        }
        if bare.is_empty() {
            return Err(EndpointError::new(
                &format!(":{port}"),
                "has no host: write host:port, or *:port for all interfaces",
            ));
        }
        if bare.len() > 253 || bare.chars().any(|c| c.is_whitespace() || ":/[]@".contains(c)) {
            return Err(EndpointError::new(host, "is no host name and no address"));
        }
        Ok(Endpoint(Target::Name { host: bare.to_owned(), port }))
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return unix(text, path);
        }
        if let Some(fd) = text.strip_prefix("fd:") {
            return inherited(text, fd);
        }
        let rest = text.strip_prefix("tcp://").unwrap_or(text);
        if rest.contains("://") {
            return Err(EndpointError::new(text, "has an unknown scheme: use tcp:// or none, unix:PATH or fd:NUMBER"));
        }
        let Some((host, port)) = rest.rsplit_once(':') else {
            return Err(EndpointError::new(text, "has no port: write host:port"));
        };
        if host.contains(':') && !host.starts_with('[') {
            return Err(EndpointError::new(text, "is ambiguous: write an IPv6 address as [address]:port"));
        }
        let Ok(port) = port.parse::<u16>() else {
            return Err(EndpointError::new(text, "has a port that is no number from 0 to 65535"));
        };
        Endpoint::new(host, port)
    }
}

#[cfg(unix)]
fn unix(text: &str, path: &str) -> Result<Endpoint, EndpointError> {
    if path.is_empty() || path.len() > 100 {
        return Err(EndpointError::new(text, "needs a path of 1 to 100 bytes"));
    }
    Ok(Endpoint(Target::Address(Address::Unix(path.into()))))
}

#[cfg(not(unix))]
fn unix(text: &str, _path: &str) -> Result<Endpoint, EndpointError> {
    Err(EndpointError::new(text, "is a unix-domain socket, which this platform does not have"))
}

#[cfg(target_os = "linux")]
fn inherited(text: &str, fd: &str) -> Result<Endpoint, EndpointError> {
    match fd.parse() {
        Ok(fd) => Ok(Endpoint(Target::Address(Address::Inherited(fd)))),
        Err(_) => Err(EndpointError::new(text, "needs the number of a descriptor, from 3 on")),
    }
}

#[cfg(not(target_os = "linux"))]
fn inherited(text: &str, _fd: &str) -> Result<Endpoint, EndpointError> {
    Err(EndpointError::new(text, "is an inherited socket, which only Linux has here"))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Endpoint {
        Endpoint(Target::Address(Address::Ip(address)))
    }
}

impl From<Address> for Endpoint {
    fn from(address: Address) -> Endpoint {
        Endpoint(Target::Address(address))
    }
}

impl From<&Address> for Endpoint {
    fn from(address: &Address) -> Endpoint {
        Endpoint(Target::Address(address.clone()))
    }
}

impl TryFrom<&str> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: &str) -> Result<Endpoint, EndpointError> {
        text.parse()
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Endpoint, EndpointError> {
        text.parse()
    }
}

impl TryFrom<&String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: &String) -> Result<Endpoint, EndpointError> {
        text.parse()
    }
}

impl TryFrom<(&str, u16)> for Endpoint {
    type Error = EndpointError;

    fn try_from((host, port): (&str, u16)) -> Result<Endpoint, EndpointError> {
        Endpoint::new(host, port)
    }
}

/// A text that names no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointError {
    text: String,
    problem: &'static str,
}

impl EndpointError {
    fn new(text: &str, problem: &'static str) -> EndpointError {
        EndpointError { text: text.to_owned(), problem }
    }
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "endpoint {:?} {}", self.text, self.problem)
    }
}

impl std::error::Error for EndpointError {}

impl From<Infallible> for EndpointError {
    fn from(never: Infallible) -> EndpointError {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        for (text, shown) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("tcp://127.0.0.1:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("localhost:0", "localhost:0"),
            ("*:9", "0.0.0.0:9"),
            ("tcp://fd:80", "tcp://fd:80"),
            ("tcp://unix:80", "tcp://unix:80"),
            ("unix:/tmp/a", "unix:/tmp/a"),
            ("unix:///tmp/a", "unix:/tmp/a"),
            ("unix:////tmp/a", "unix:////tmp/a"),
        ] {
            assert_eq!(text.parse::<Endpoint>().map(|e| e.to_string()), Ok(shown.to_owned()));
        }
        for text in ["", "localhost", "a:b", "a:70000", ":80", "::1:80", "http://a:80", "a b:80", "unix:", "fd:x"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        assert_eq!(Endpoint::try_from(("::1", 5)).map(|e| e.to_string()), Ok("[::1]:5".into()));
    }
}
