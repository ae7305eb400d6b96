//! How the [`Network`] names places: by IP address and port, and socket files by addresses in a street of their own. `/run/3/7000` is
//! port 7000 of 10.1.3.1, a file on host 3; port 0 is an end without a name.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Host, Id, Network};
use crate::backend::Address;

impl Host {
    /// Its address.
    pub(crate) fn ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, self.0, 1))
    }

    /// The place of a socket file.
    pub(crate) fn file(self, number: u16) -> SocketAddr {
        SocketAddr::from(([10, 1, self.0, 1], number))
    }

    /// The path of that file.
    pub(crate) fn path(self, number: u16) -> String {
        format!("/run/{}/{number}", self.0)
    }

    pub(super) fn of(place: SocketAddr) -> Host {
        match place.ip() {
            IpAddr::V4(ip) => Host(ip.octets()[2]),
            IpAddr::V6(_) => Host(u8::MAX),
        }
    }
}

/// Whether a place is a socket file.
pub(super) fn is_file(place: SocketAddr) -> bool {
    matches!(place.ip(), IpAddr::V4(ip) if ip.octets()[1] == 1)
}

/// The place that an application has named.
pub(in crate::backend) fn place(address: &Address) -> io::Result<SocketAddr> {
    match address {
        Address::Ip(place) => Ok(*place),
        #[cfg(unix)]
        Address::Unix(path) => {
            let named = path.to_str().and_then(|path| path.strip_prefix("/run/")?.split_once('/'));
            let parsed = named.and_then(|(host, number)| Some(Host(host.parse().ok()?).file(number.parse().ok()?)));
            parsed.ok_or_else(|| io::ErrorKind::NotFound.into())
        }
        #[cfg(target_os = "linux")]
        Address::Inherited(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// A place as a system names it.
pub(in crate::backend) fn address(place: SocketAddr) -> Address {
    #[cfg(unix)]
    if is_file(place) {
        let named = place.port() != 0;
        return Address::Unix(if named { Host::of(place).path(place.port()).into() } else { Default::default() });
    }
    Address::Ip(place)
}

impl Network {
    /// Whether a connection is one of a unix socket: its ends are on one machine, and nothing is between them.
    pub(super) fn is_local(&self, id: Id) -> bool {
        self.end(id).is_some_and(|end| is_file(end.remote))
    }
}
