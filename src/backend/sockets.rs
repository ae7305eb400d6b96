//! What both drivers do to sockets with direct calls: create, bind, listen, set options, look up addresses.
//!
//! A driver says whether its sockets are non-blocking: readiness needs them so, io_uring must not have them so (it would
//! report "would block" instead of waiting). Nothing here waits, except that a unix connect probes a stale socket file.

use std::io;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::address::Address;
use super::options::SocketOptions;

/// A connection between two backends: detached from one, not yet attached to the other. Dropping it closes it.
#[derive(Debug)]
pub(crate) enum Stream {
    /// A socket of the operating system.
    System {
        /// The socket.
        socket: Socket,
        /// The mode that it is in.
        nonblocking: bool,
    },
    /// An end of the simulated network.
    #[cfg(any(test, feature = "simulation"))]
    Simulated(super::sim::SimStream),
}

impl Stream {
    /// The socket in the mode that the driver needs.
    pub(super) fn into_socket(self, wanted: bool) -> io::Result<Socket> {
        match self {
            Stream::System { socket, nonblocking } => {
                if nonblocking != wanted {
                    socket.set_nonblocking(wanted)?;
                }
                Ok(socket)
            }
            #[cfg(any(test, feature = "simulation"))]
            Stream::Simulated(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// A bound, listening socket. Removes the socket file that it has made, if any, when dropped.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: Socket,
    /// What to set on accepted sockets where they do not inherit it.
    pub(super) options: SocketOptions,
    #[cfg(unix)]
    file: Option<std::path::PathBuf>,
}

impl Listener {
    /// Opens a listener and says where it is bound.
    pub(super) fn open(
        address: &Address,
        options: &SocketOptions,
        nonblocking: bool,
    ) -> io::Result<(Listener, Address)> {
        #[cfg(target_os = "linux")]
        if let Address::Inherited(fd) = address {
            let socket = super::inherited::listener(*fd)?;
            socket.set_nonblocking(nonblocking)?;
            apply(&socket, socket.domain()?, options)?;
            let bound = Address::from_sockaddr(&socket.local_addr()?)?;
            // Its file, if it has one, is of whoever bound it.
            return Ok((Listener { socket, options: options.clone(), file: None }, bound));
        }
        let at = address.to_sockaddr()?;
        let socket = new_socket(&at, nonblocking)?;
        apply(&socket, at.domain(), options)?;
        #[cfg(unix)]
        if !at.is_unix() {
            // Elsewhere the option lets two listeners share a port.
            socket.set_reuse_address(true)?;
        }
        match socket.bind(&at) {
            #[cfg(unix)]
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && at.is_unix() => {
                remove_stale_file(address, &at)?;
                socket.bind(&at)?;
            }
            other => other?,
        }
        let listener = Listener {
            socket,
            options: options.clone(),
            #[cfg(unix)]
            file: match address {
                Address::Unix(path) => Some(path.clone()),
                _ => None,
            },
        };
        listener.socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        let bound = Address::from_sockaddr(&listener.socket.local_addr()?)?;
        Ok((listener, bound))
    }
}

#[cfg(unix)]
impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // Already gone is as good.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Removes a socket file that nobody listens on; an error when somebody does, or when it is another kind of file.
#[cfg(unix)]
fn remove_stale_file(address: &Address, at: &SockAddr) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let Address::Unix(path) = address else { return Err(io::ErrorKind::AddrInUse.into()) };
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // Non-blocking: a listener whose backlog is full is alive, and is not waited for.
    match new_socket(at, true)?.connect(at) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// A new stream socket that can connect to `to`.
pub(super) fn open_stream(to: &SockAddr, options: &SocketOptions, nonblocking: bool) -> io::Result<Socket> {
    let socket = new_socket(to, nonblocking)?;
    apply(&socket, to.domain(), options)?;
    Ok(socket)
}

fn new_socket(address: &SockAddr, nonblocking: bool) -> io::Result<Socket> {
    let domain = address.domain();
    let protocol = if domain == Domain::UNIX { None } else { Some(Protocol::TCP) };
    let socket = Socket::new(domain, Type::STREAM, protocol)?;
    if nonblocking {
        socket.set_nonblocking(true)?;
    }
    Ok(socket)
}

/// Sets what the options ask for.
pub(super) fn apply(socket: &Socket, domain: Domain, options: &SocketOptions) -> io::Result<()> {
    if let Some(bytes) = options.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.recv_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    if domain == Domain::UNIX {
        return Ok(());
    }
    if options.nodelay {
        socket.set_tcp_nodelay(true)?;
    }
    if let Some(idle) = options.keepalive {
        let interval = (idle / 3).max(std::time::Duration::from_secs(1));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval))?;
    }
    #[cfg(target_os = "linux")]
    if let Some(timeout) = options.user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    #[cfg(target_os = "linux")]
    if let Some(bytes) = options.notsent_lowat_bytes {
        socket.set_tcp_notsent_lowat(bytes)?;
    }
    Ok(())
}

/// Sets on an accepted socket what the listener asked for, where it is not inherited (Linux inherits all of it).
pub(super) fn apply_accepted(socket: &Socket, options: &SocketOptions) -> io::Result<()> {
    if cfg!(target_os = "linux") {
        return Ok(());
    }
    apply(socket, socket.local_addr()?.domain(), options)
}

/// The remote address of a connection.
pub(super) fn peer_address(socket: &Socket) -> io::Result<Address> {
    Address::from_sockaddr(&socket.peer_addr()?)
}

/// The outcome of a connect that the system has finished. A socket that TCP connected to itself (dialling an unused
/// local port can do that) counts as refused: it would keep the real listener from binding.
pub(super) fn connected(socket: &Socket) -> io::Result<Address> {
    let remote = socket.peer_addr()?;
    if remote.as_socket().is_some() && remote.as_socket() == socket.local_addr()?.as_socket() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Address::from_sockaddr(&remote)
}

/// Whether an accept error concerns only the connection that was about to be accepted.
pub(super) fn is_passing_accept_error(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    // Linux reports errors that were pending on the new connection, those below without a kind of their own among them.
    #[cfg(target_os = "linux")]
    {
        use rustix::io::Errno;
        const PENDING: [Errno; 4] = [Errno::PROTO, Errno::NOPROTOOPT, Errno::HOSTDOWN, Errno::NONET];
        if PENDING.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) {
            return true;
        }
    }
    matches!(
        error.kind(),
        K::ConnectionAborted
            | K::ConnectionReset
            | K::Interrupted
            | K::TimedOut
            | K::NetworkDown
            | K::NetworkUnreachable
            | K::HostUnreachable
            | K::PermissionDenied
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_arrive() {
        let options = SocketOptions {
            keepalive: Some(std::time::Duration::from_secs(30)),
            send_buffer_bytes: Some(65536),
            user_timeout: Some(std::time::Duration::from_secs(7)),
            ..SocketOptions::default()
        };
        let address = Address::Ip("127.0.0.1:0".parse().unwrap());
        let (listener, bound) = Listener::open(&address, &options, false).unwrap();
        let _client = std::net::TcpStream::connect(bound.socket_addr().unwrap()).unwrap();
        let (socket, _) = listener.socket.accept().unwrap();
        apply_accepted(&socket, &options).unwrap();
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert!(socket.send_buffer_size().unwrap() <= 2 * 65536);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), options.user_timeout);
    }

    #[cfg(unix)]
    #[test]
    fn stale_socket_files_are_replaced_and_live_ones_kept() {
        let path = std::env::temp_dir().join(format!("aiomsg-listener-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let address = Address::Unix(path.clone());
        // A std listener leaves its file behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (listener, bound) = Listener::open(&address, &SocketOptions::default(), true).unwrap();
        assert_eq!(bound, address);
        let second = Listener::open(&address, &SocketOptions::default(), true);
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, b"no socket").unwrap();
        assert!(Listener::open(&address, &SocketOptions::default(), true).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"no socket");
        std::fs::remove_file(&path).unwrap();
    }
}
