//! A peer made of a plain TCP stream, for tests of what goes over the wire. Shares no code with
//! the library.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::Address;

use super::PATIENCE;

pub(crate) const HELLO: u8 = 1;
pub(crate) const HEARTBEAT: u8 = 2;
pub(crate) const DATA: u8 = 3;
pub(crate) const DATA_REQ: u8 = 4;
pub(crate) const ACK: u8 = 5;

/// A whole frame.
pub(crate) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32 + 1).to_be_bytes().to_vec();
    frame.push(kind);
    frame.extend_from_slice(body);
    frame
}

/// The HELLO of the peer whose identity is 16 times this byte.
pub(crate) fn hello(name: u8) -> Vec<u8> {
    hello_as([name; 16])
}

/// The HELLO of the peer of this identity.
pub(crate) fn hello_as(name: [u8; 16]) -> Vec<u8> {
    let mut body = vec![1];
    body.extend_from_slice(&name);
    frame(HELLO, &body)
}

/// A DATA_REQ frame.
pub(crate) fn data_req(msg_id: [u8; 16], payload: &[u8]) -> Vec<u8> {
    frame(DATA_REQ, &[&msg_id[..], payload].concat())
}

/// A DATA frame.
pub(crate) fn data(payload: &[u8]) -> Vec<u8> {
    frame(DATA, payload)
}

/// One connection.
pub(crate) struct RawPeer {
    stream: TcpStream,
}

impl RawPeer {
    /// Connects; says nothing.
    pub(crate) fn dial(address: &Address) -> RawPeer {
        RawPeer::from_stream(TcpStream::connect(socket_addr(address)).expect("connected"))
    }

    /// Connects with a receive buffer of so many bytes, so that it is full soon.
    pub(crate) fn dial_narrow(address: &Address, buffer_bytes: usize) -> RawPeer {
        let address = socket_addr(address);
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(buffer_bytes).expect("a small buffer");
        socket.connect(&address.into()).expect("connected");
        RawPeer::from_stream(socket.into())
    }

    /// Connects from this address of the machine.
    pub(crate) fn dial_from(ip: std::net::IpAddr, address: &Address) -> RawPeer {
        let address = socket_addr(address);
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::new(ip, 0).into()).expect("an address of this machine");
        socket.connect(&address.into()).expect("connected");
        RawPeer::from_stream(socket.into())
    }

    /// After the handshake under this name.
    pub(crate) fn greeted(mut self, name: u8) -> RawPeer {
        self.shake_hands(name);
        self
    }

    /// Connects and shakes hands under this name.
    pub(crate) fn connected(address: &Address, name: u8) -> RawPeer {
        let mut peer = RawPeer::dial(address);
        peer.shake_hands(name);
        peer
    }

    /// Connects and shakes hands under this identity.
    pub(crate) fn connected_as(address: &Address, name: [u8; 16]) -> RawPeer {
        let mut peer = RawPeer::dial(address);
        peer.send(&hello_as(name));
        peer.expect_hello();
        peer
    }

    /// Takes a connection.
    pub(crate) fn accept(listener: &TcpListener) -> RawPeer {
        RawPeer::from_stream(listener.accept().expect("a connection").0)
    }

    /// Over a connection that the test has made.
    pub(crate) fn from_stream(stream: TcpStream) -> RawPeer {
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        RawPeer { stream }
    }

    /// Sends HELLO and reads the other end's.
    #[track_caller]
    pub(crate) fn shake_hands(&mut self, name: u8) {
        self.send(&hello(name));
        self.expect_hello();
    }

    /// Reads the other end's HELLO; its identity.
    #[track_caller]
    pub(crate) fn expect_hello(&mut self) -> [u8; 16] {
        let (kind, body) = self.read_frame().expect("a HELLO");
        assert_eq!((kind, body.len(), body[0]), (HELLO, 17, 1), "a HELLO of version 1");
        body[1..].try_into().expect("16 bytes")
    }

    /// The next DATA_REQ, which nothing but heartbeats may precede: its id and payload.
    #[track_caller]
    pub(crate) fn read_data_req(&mut self) -> ([u8; 16], Vec<u8>) {
        let (kind, mut body) = self.read_past_heartbeats().expect("DATA_REQ, not the end");
        assert_eq!(kind, DATA_REQ);
        let payload = body.split_off(16);
        (body.try_into().expect("16 bytes"), payload)
    }

    /// The id in the next ACK, which nothing but heartbeats may precede.
    #[track_caller]
    pub(crate) fn read_ack(&mut self) -> [u8; 16] {
        let (kind, body) = self.read_past_heartbeats().expect("ACK, not the end");
        assert_eq!(kind, ACK);
        body.try_into().expect("16 bytes")
    }

    #[track_caller]
    pub(crate) fn acknowledge(&mut self, msg_id: &[u8]) {
        self.send(&frame(ACK, msg_id));
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("written");
    }

    /// Fails when the connection is closed, waits when the other end does not read.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame; `None` when the connection is closed.
    #[track_caller]
    pub(crate) fn read_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut length = [0; 4];
        if !self.fill(&mut length) {
            return None;
        }
        let mut envelope = vec![0; u32::from_be_bytes(length) as usize];
        assert!(!envelope.is_empty(), "an empty envelope is never sent");
        if !self.fill(&mut envelope) {
            return None;
        }
        Some((envelope[0], envelope.split_off(1)))
    }

    /// The next frame that is no HEARTBEAT; `None` when the connection is closed.
    #[track_caller]
    pub(crate) fn read_past_heartbeats(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            match self.read_frame() {
                Some((HEARTBEAT, _)) => {}
                other => return other,
            }
        }
    }

    /// The payload of the next DATA frame, which nothing but heartbeats may precede.
    #[track_caller]
    pub(crate) fn read_data(&mut self) -> Vec<u8> {
        let (kind, payload) = self.read_past_heartbeats().expect("DATA, not the end");
        assert_eq!(kind, DATA);
        payload
    }

    /// Reads to the end of the connection, which must come in time; how long that took.
    #[track_caller]
    pub(crate) fn wait_until_closed(&mut self) -> Duration {
        let began = Instant::now();
        while self.read_frame().is_some() {}
        // Before the 15 s after which a silent peer is closed whatever it did.
        assert!(began.elapsed() < Duration::from_secs(10), "the connection was closed too late");
        began.elapsed()
    }

    /// Whether not a single byte comes for so long.
    #[track_caller]
    pub(crate) fn is_silent_for(&mut self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).expect("a timeout");
        let outcome = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        match outcome {
            Ok(_) => false,
            Err(error) => is_timeout(&error),
        }
    }

    /// Ends the connection in both directions.
    pub(crate) fn close(self) {
        self.stream.shutdown(Shutdown::Both).ok();
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("a reset on close");
    }

    /// Writes byte by byte, each by itself.
    pub(crate) fn trickle(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.send(&[*byte]);
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// False when the connection ends first.
    #[track_caller]
    fn fill(&mut self, buffer: &mut [u8]) -> bool {
        match self.stream.read_exact(buffer) {
            Ok(()) => true,
            Err(error) if is_timeout(&error) => panic!("nothing came for {PATIENCE:?}"),
            Err(_) => false,
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The address as the standard library has it.
#[track_caller]
pub(crate) fn socket_addr(address: &Address) -> SocketAddr {
    address.socket_addr().expect("an IP address")
}
