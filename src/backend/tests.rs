//! One suite for all drivers: what the shard may rely on, over real sockets of this machine.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;

/// How long anything here may take, in ns.
const PATIENCE_NS: u64 = 5_000_000_000;

/// A backend with an inbox of what was not yet asked for.
struct Rig {
    backend: Box<dyn Backend>,
    last_token: u64,
    inbox: Vec<Completion>,
}

/// Runs a test on every driver of this machine.
fn each(test: impl Fn(&mut Rig)) {
    each_with(PoolOptions::default(), test);
}

fn each_with(pool: PoolOptions, test: impl Fn(&mut Rig)) {
    for (choice, incremental) in [(Choice::Poll, true), (Choice::Uring, true), (Choice::Uring, false)] {
        match open(&BackendOptions { choice, pool, incremental, ..BackendOptions::default() }) {
            Ok(selected) => test(&mut Rig { backend: selected.backend, last_token: 0, inbox: Vec::new() }),
            Err(error) => assert!(probe(Choice::Uring).is_err(), "{choice:?}: {error}"),
        }
    }
}

impl Rig {
    fn token(&mut self) -> Token {
        self.last_token += 1;
        Token(self.last_token)
    }

    /// The next completion of the operation.
    fn next(&mut self, token: Token) -> Outcome {
        let deadline_ns = self.backend.now_ns() + PATIENCE_NS;
        loop {
            if let Some(at) = self.inbox.iter().position(|completion| completion.token == token) {
                return self.inbox.remove(at).outcome;
            }
            let (kind, now_ns) = (self.backend.kind(), self.backend.now_ns());
            assert!(now_ns < deadline_ns, "{kind}: nothing came for {token:?}; others: {:?}", self.inbox);
            self.backend.turn(deadline_ns, &mut self.inbox).unwrap();
        }
    }

    /// Turns for a while; true when nothing came for the token.
    fn stays_silent(&mut self, token: Token, ms: u64) -> bool {
        let deadline_ns = self.backend.now_ns() + ms * 1_000_000;
        while self.backend.now_ns() < deadline_ns {
            self.backend.turn(deadline_ns, &mut self.inbox).unwrap();
        }
        self.inbox.iter().all(|completion| completion.token != token)
    }

    fn listen(&mut self) -> (Handle, Address) {
        self.listen_at(&ip("127.0.0.1:0"))
    }

    fn listen_at(&mut self, address: &Address) -> (Handle, Address) {
        self.backend.listen(address, &SocketOptions::default()).unwrap()
    }

    /// Connects to a listener that is accepting under `accepts`: the connecting and the accepted end.
    fn connect(&mut self, address: &Address, accepts: Token) -> (Handle, Handle) {
        let token = self.token();
        self.backend.connect(address, &SocketOptions::default(), token);
        let Outcome::Connected(Ok((near, peer))) = self.next(token) else { panic!("no connection") };
        assert_eq!(peer, *address);
        let Outcome::Accepted { conn: far, .. } = self.next(accepts) else { panic!("not accepted") };
        (near, far)
    }

    fn pair_at(&mut self, address: &Address) -> (Handle, Handle) {
        let (listener, address) = self.listen_at(address);
        let accepts = self.token();
        self.backend.accept(listener, accepts);
        let pair = self.connect(&address, accepts);
        self.backend.close(listener);
        pair
    }

    fn pair(&mut self) -> (Handle, Handle) {
        self.pair_at(&ip("127.0.0.1:0"))
    }

    fn send(&mut self, conn: Handle, slices: Vec<Bytes>) -> Token {
        let token = self.token();
        self.backend.send(conn, slices, token);
        token
    }

    fn send_all(&mut self, conn: Handle, bytes: &[u8]) {
        let token = self.send(conn, vec![Bytes::copy_from_slice(bytes)]);
        self.expect_sent(token, bytes.len());
    }

    fn expect_sent(&mut self, token: Token, len: usize) {
        match self.next(token) {
            Outcome::Sent { bytes, error: None, .. } => assert_eq!(bytes, len),
            other => panic!("{other:?}"),
        }
    }

    fn recv(&mut self, conn: Handle) -> Token {
        let token = self.token();
        self.backend.recv(conn, token);
        token
    }

    /// Collects received bytes until there are `len`.
    fn received(&mut self, token: Token, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            match self.next(token) {
                Outcome::Received(lease) => bytes.extend_from_slice(&lease),
                other => panic!("{other:?} after {} bytes", bytes.len()),
            }
        }
        bytes
    }

    fn expect_cancelled(&mut self, token: Token) {
        let error = match self.next(token) {
            Outcome::AcceptEnded(error)
            | Outcome::Connected(Err(error))
            | Outcome::Resolved(Err(error))
            | Outcome::Read(Err(error))
            | Outcome::RecvEnded(Err(error))
            | Outcome::Filled { result: Err(error), .. }
            | Outcome::Sent { error: Some(error), .. } => error,
            other => panic!("{other:?}"),
        };
        assert!(is_cancelled(&error), "{error:?}");
    }
}

fn ip(text: &str) -> Address {
    Address::Ip(text.parse().unwrap())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn both_ways() {
    each(|rig| {
        let (near, far) = rig.pair();
        let (near_recv, far_recv) = (rig.recv(near), rig.recv(far));
        for round in 0..50 {
            let bytes = pattern(1 + round * 97);
            rig.send_all(near, &bytes);
            assert_eq!(rig.received(far_recv, bytes.len()), bytes);
            rig.send_all(far, &bytes);
            assert_eq!(rig.received(near_recv, bytes.len()), bytes);
        }
    });
}

#[test]
fn many_slices_in_order() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        let bytes = pattern(64 * 5000);
        let slices = bytes.chunks(5000).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        assert_eq!(slices.len(), SEND_SLICES_MAX);
        let send = rig.send(near, slices.clone());
        assert_eq!(rig.received(recv, bytes.len()), bytes);
        match rig.next(send) {
            Outcome::Sent { slices: back, bytes: sent, error: None } => assert_eq!((back, sent), (slices, bytes.len())),
            other => panic!("{other:?}"),
        }
        for slices in [vec![], vec![Bytes::new()]] {
            let send = rig.send(near, slices);
            rig.expect_sent(send, 0);
        }
    });
}

#[test]
fn a_large_send_to_a_slow_reader() {
    each(|rig| {
        let (near, far) = rig.pair();
        let bytes = pattern(4 * 1024 * 1024);
        let slices = bytes.chunks(100_000).map(Bytes::copy_from_slice).collect();
        let send = rig.send(near, slices);
        assert!(rig.stays_silent(send, 20), "4 MiB do not fit in the kernel");
        let recv = rig.recv(far);
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            match rig.next(recv) {
                Outcome::Received(lease) => got.extend_from_slice(&lease),
                other => panic!("{other:?}"),
            }
            if got.len() % 7 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(got == bytes);
        rig.expect_sent(send, bytes.len());
    });
}

#[test]
fn reads_are_exact() {
    each(|rig| {
        let (near, far) = rig.pair();
        rig.send_all(near, b"0123456789");
        let mut got = Vec::new();
        for len in [4, 1, 3] {
            let token = rig.token();
            rig.backend.read(far, len, token);
            let Outcome::Read(Ok(bytes)) = rig.next(token) else { panic!() };
            assert!(!bytes.is_empty() && bytes.len() <= len);
            got.extend_from_slice(&bytes);
        }
        // What was not asked for is still there.
        let recv = rig.recv(far);
        got.extend(rig.received(recv, 10 - got.len()));
        assert_eq!(got, b"0123456789");
        rig.backend.cancel(recv);
        rig.expect_cancelled(recv);
        // A read waits for bytes, and sees the end.
        let token = rig.token();
        rig.backend.read(far, READ_MAX, token);
        assert!(rig.stays_silent(token, 5));
        rig.backend.close(near);
        match rig.next(token) {
            Outcome::Read(Ok(bytes)) => assert!(bytes.is_empty()),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn receives_into_a_buffer() {
    each(|rig| {
        let (near, far) = rig.pair();
        let bytes = pattern(300_000);
        let send = rig.send(near, vec![Bytes::copy_from_slice(&bytes)]);
        let mut buffer = BytesMut::with_capacity(bytes.len() + 10);
        buffer.extend_from_slice(b"head");
        while buffer.len() < bytes.len() + 4 {
            let token = rig.token();
            rig.backend.recv_into(far, buffer, token);
            match rig.next(token) {
                Outcome::Filled { buffer: back, result: Ok(len) } => {
                    assert!(len > 0);
                    buffer = back;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(&buffer[..4] == b"head" && buffer[4..] == bytes[..]);
        rig.expect_sent(send, bytes.len());
        // Cancelled, it gives the buffer back as it was.
        let token = rig.token();
        rig.backend.recv_into(far, buffer, token);
        assert!(rig.stays_silent(token, 5));
        rig.backend.cancel(token);
        match rig.next(token) {
            Outcome::Filled { buffer, result: Err(error) } => {
                assert!(is_cancelled(&error) && buffer.len() == bytes.len() + 4);
            }
            other => panic!("{other:?}"),
        }
        rig.backend.close(near);
        let token = rig.token();
        rig.backend.recv_into(far, BytesMut::with_capacity(1), token);
        assert!(matches!(rig.next(token), Outcome::Filled { result: Ok(0), .. }));
    });
}

#[test]
fn a_cancelled_receive_loses_nothing() {
    each(|rig| {
        let (near, far) = rig.pair();
        let bytes = pattern(2_000_000);
        let send = rig.send(near, vec![Bytes::copy_from_slice(&bytes)]);
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            let recv = rig.recv(far);
            if let Outcome::Received(lease) = rig.next(recv) {
                got.extend_from_slice(&lease);
            }
            rig.backend.cancel(recv);
            loop {
                match rig.next(recv) {
                    Outcome::Received(lease) => got.extend_from_slice(&lease),
                    Outcome::RecvEnded(Err(error)) if is_cancelled(&error) => break,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(got == bytes);
        rig.expect_sent(send, bytes.len());
    });
}

#[test]
fn cancels_at_any_time() {
    each(|rig| {
        let (listener, address) = rig.listen();
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        // Before it was submitted.
        rig.backend.cancel(accepts);
        rig.expect_cancelled(accepts);
        // And after, with an unknown and a finished token thrown in.
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        assert!(rig.stays_silent(accepts, 2));
        let (near, _far) = rig.connect(&address, accepts);
        rig.backend.cancel(accepts);
        rig.backend.cancel(Token(u64::MAX));
        rig.expect_cancelled(accepts);
        rig.backend.cancel(accepts);
        // A send that the peer does not read reports what went.
        let send = rig.send(near, vec![Bytes::from(pattern(32 * 1024 * 1024))]);
        assert!(rig.stays_silent(send, 20));
        rig.backend.cancel(send);
        rig.backend.cancel(send);
        match rig.next(send) {
            Outcome::Sent { bytes, error: Some(error), slices } => {
                assert!(is_cancelled(&error) && bytes > 0 && bytes < 32 * 1024 * 1024 && slices.len() == 1);
            }
            other => panic!("{other:?}"),
        }
        assert!(rig.stays_silent(send, 2));
    });
}

#[test]
fn a_cancelled_send_says_how_much_the_peer_will_get() {
    each(|rig| {
        let (near, far) = rig.pair();
        let bytes = pattern(32 * 1024 * 1024);
        let send = rig.send(near, bytes.chunks(1024 * 1024).map(Bytes::copy_from_slice).collect());
        assert!(rig.stays_silent(send, 20));
        rig.backend.cancel(send);
        let Outcome::Sent { bytes: sent, error: Some(_), .. } = rig.next(send) else { panic!() };
        rig.backend.shutdown(near);
        let recv = rig.recv(far);
        assert!(rig.received(recv, sent) == bytes[..sent]);
        assert!(matches!(rig.next(recv), Outcome::RecvEnded(Ok(()))));
    });
}

#[test]
fn ends_of_streams() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        rig.send_all(near, b"last words");
        rig.backend.shutdown(near);
        assert_eq!(rig.received(recv, 10), b"last words");
        assert!(matches!(rig.next(recv), Outcome::RecvEnded(Ok(()))));
        // The other direction goes on.
        let recv = rig.recv(near);
        rig.send_all(far, b"answer");
        assert_eq!(rig.received(recv, 6), b"answer");
        // A reset: unread data makes it one.
        rig.send_all(near_or(far), b"unread");
        rig.backend.close(near);
        assert!(matches!(rig.next(recv), Outcome::Received(_) | Outcome::RecvEnded(Err(_))));
    });

    fn near_or(conn: Handle) -> Handle {
        conn
    }
}

#[test]
fn a_reset_is_an_error() {
    each(|rig| {
        let (near, far) = rig.pair();
        rig.send_all(far, b"unread");
        let recv = rig.recv(far);
        assert!(rig.stays_silent(recv, 5));
        rig.backend.close(near);
        match rig.next(recv) {
            Outcome::RecvEnded(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
            other => panic!("{other:?}"),
        }
        let send = rig.send(far, vec![Bytes::from_static(b"x")]);
        assert!(matches!(rig.next(send), Outcome::Sent { error: Some(_), bytes: 0, .. }));
    });
}

#[test]
fn closing_ends_what_is_pending() {
    each(|rig| {
        let (listener, _) = rig.listen();
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        let (near, far) = rig.pair();
        let recv = rig.recv(near);
        let send = rig.send(near, vec![Bytes::from(pattern(32 * 1024 * 1024))]);
        assert!(rig.stays_silent(send, 10));
        rig.backend.close(near);
        rig.backend.close(listener);
        // Dead at once, and closing again does nothing.
        let dead = rig.recv(near);
        rig.backend.close(near);
        rig.expect_cancelled(recv);
        rig.expect_cancelled(send);
        rig.expect_cancelled(accepts);
        match rig.next(dead) {
            Outcome::RecvEnded(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::NotConnected),
            other => panic!("{other:?}"),
        }
        // The peer notices: the descriptor is really closed.
        let recv = rig.recv(far);
        loop {
            match rig.next(recv) {
                Outcome::Received(_) => {}
                Outcome::RecvEnded(_) => break,
                other => panic!("{other:?}"),
            }
        }
        let dead = rig.send(near, vec![Bytes::from_static(b"x")]);
        assert!(matches!(rig.next(dead), Outcome::Sent { error: Some(_), .. }));
    });
}

#[test]
fn connect_errors_are_specific() {
    each(|rig| {
        let (listener, address) = rig.listen();
        rig.backend.close(listener);
        let token = rig.token();
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        rig.backend.connect(&address, &SocketOptions::default(), token);
        match rig.next(token) {
            Outcome::Connected(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
            other => panic!("{other:?}"),
        }
        // A connect that nobody answers can be cancelled (or is refused at once where there is no such route).
        let token = rig.token();
        rig.backend.connect(&ip("192.0.2.1:9"), &SocketOptions::default(), token);
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        rig.backend.cancel(token);
        assert!(matches!(rig.next(token), Outcome::Connected(Err(_))));
    });
}

#[test]
fn the_doorbell_ends_a_wait() {
    each(|rig| {
        for _ in 0..20 {
            let waker = rig.backend.waker();
            let started = Instant::now();
            let ringer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(2));
                waker.wake();
            });
            let mut rounds = 0;
            while started.elapsed() < Duration::from_millis(2) {
                rig.backend.turn(u64::MAX, &mut rig.inbox).unwrap();
                rounds += 1;
            }
            assert!(rounds < 10, "{}: {rounds} rounds", rig.backend.kind());
            ringer.join().unwrap();
        }
        // Rung before the wait, and several times: heard, once.
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        for _ in 0..3 {
            rig.backend.waker().wake_by_ref();
        }
        rig.backend.turn(u64::MAX, &mut rig.inbox).unwrap();
        assert!(rig.inbox.is_empty());
    });
}

#[test]
fn deadlines() {
    each(|rig| {
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        let started = Instant::now();
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        rig.backend.turn(rig.backend.now_ns() - 1, &mut rig.inbox).unwrap();
        assert!(started.elapsed() < Duration::from_millis(50));
        let deadline_ns = rig.backend.now_ns() + 3_000_000;
        let mut rounds = 0;
        while rig.backend.now_ns() < deadline_ns {
            rig.backend.turn(deadline_ns, &mut rig.inbox).unwrap();
            rounds += 1;
        }
        assert!(rounds < 5 && rig.inbox.is_empty(), "{}: {rounds} rounds", rig.backend.kind());
    });
}

#[test]
fn an_idle_backend_stays_idle() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        rig.send_all(near, b"x");
        rig.received(recv, 1);
        // Hung up and unread: must not be reported over and over to nobody.
        rig.backend.cancel(recv);
        rig.expect_cancelled(recv);
        rig.send_all(near, b"y");
        rig.backend.close(near);
        assert!(rig.stays_silent(recv, 5));
        let before = rig.backend.counters().syscalls;
        assert!(rig.stays_silent(recv, 20));
        let calls = rig.backend.counters().syscalls - before;
        assert!(calls < 10, "{}: {calls} calls", rig.backend.kind());
    });
}

#[test]
fn without_slabs_receives_wait_for_one() {
    let pool = PoolOptions { slab_count: 4, slab_bytes: 16 * 1024 };
    each_with(pool, |rig| {
        let (near, far) = rig.pair();
        let bytes = pattern(1_000_000);
        let send = rig.send(near, vec![Bytes::copy_from_slice(&bytes)]);
        let recv = rig.recv(far);
        let mut got = Vec::new();
        let mut held: Vec<Bytes> = Vec::new();
        let mut starved = 0;
        while got.len() < bytes.len() {
            match rig.inbox.iter().position(|completion| completion.token == recv) {
                Some(at) => match rig.inbox.remove(at).outcome {
                    Outcome::Received(lease) => {
                        got.extend_from_slice(&lease);
                        held.push(lease.into_bytes());
                    }
                    other => panic!("{other:?}"),
                },
                None => {
                    let deadline_ns = rig.backend.now_ns() + 3_000_000;
                    let before = rig.inbox.len();
                    rig.backend.turn(deadline_ns, &mut rig.inbox).unwrap();
                    if rig.inbox.len() == before && rig.backend.now_ns() >= deadline_ns {
                        starved += 1;
                        assert!(!held.is_empty(), "{}: nothing held, nothing comes", rig.backend.kind());
                        assert_eq!(rig.backend.slabs().free, 0);
                        // Given back on another thread, which rings.
                        let give = std::mem::take(&mut held);
                        std::thread::spawn(move || drop(give)).join().unwrap();
                    }
                }
            }
        }
        assert!(got == bytes);
        assert!(starved > 5, "{}", rig.backend.kind());
        rig.expect_sent(send, bytes.len());
        let counters = rig.backend.counters();
        assert!(counters.enobufs >= starved && counters.enobufs < 1000, "{counters:?}");
        drop(held);
        rig.backend.close(far);
        rig.expect_cancelled(recv);
        let slabs = rig.backend.slabs();
        assert!(slabs.free >= slabs.total - 1, "{slabs:?}");
    });
}

#[test]
fn a_starved_receive_can_be_cancelled_and_closed() {
    let pool = PoolOptions { slab_count: 1, slab_bytes: 16 * 1024 };
    each_with(pool, |rig| {
        let (near, far) = rig.pair();
        rig.send_all(near, &pattern(100_000));
        let recv = rig.recv(far);
        let Outcome::Received(lease) = rig.next(recv) else { panic!() };
        let held = lease.into_bytes();
        assert!(rig.stays_silent(Token(0), 5));
        rig.inbox.retain(|completion| completion.token != recv);
        rig.backend.cancel(recv);
        rig.expect_cancelled(recv);
        let recv = rig.recv(far);
        assert!(rig.stays_silent(recv, 5));
        rig.backend.close(far);
        rig.expect_cancelled(recv);
        drop(held);
    });
}

#[test]
fn many_connections_share_slabs() {
    each(|rig| {
        let (listener, address) = rig.listen();
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        let pairs: Vec<_> = (0..300).map(|_| rig.connect(&address, accepts)).collect();
        let recvs: Vec<_> = pairs.iter().map(|&(_, far)| rig.recv(far)).collect();
        for round in 0..3u8 {
            let sends: Vec<_> = pairs
                .iter()
                .enumerate()
                .map(|(at, &(near, _))| rig.send(near, vec![Bytes::from(vec![at as u8 ^ round; 100 + at])]))
                .collect();
            for (at, (&recv, &send)) in recvs.iter().zip(&sends).enumerate() {
                assert_eq!(rig.received(recv, 100 + at), vec![at as u8 ^ round; 100 + at]);
                rig.expect_sent(send, 100 + at);
            }
            let slabs = rig.backend.slabs();
            assert!(slabs.free >= slabs.total.saturating_sub(900), "{slabs:?}");
        }
        for &(near, far) in &pairs {
            rig.backend.close(near);
            rig.backend.close(far);
        }
        for recv in recvs {
            rig.expect_cancelled(recv);
        }
    });
}

#[test]
fn connections_move_between_backends() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        assert!(rig.backend.detach(far).is_none(), "not while an operation is pending");
        rig.backend.cancel(recv);
        rig.expect_cancelled(recv);
        rig.send_all(near, b"sent before the move");
        let stream = rig.backend.detach(far).unwrap();
        assert!(rig.backend.detach(far).is_none());
        each(|other| {
            // To every driver in turn, by way of a duplicate.
            let Stream::System { socket, nonblocking } = &stream else { panic!("a real one") };
            let socket = socket.try_clone().unwrap();
            socket.set_nonblocking(*nonblocking).unwrap();
            let stream = Stream::System { socket, nonblocking: *nonblocking };
            let conn = other.backend.attach(stream).unwrap();
            let token = other.token();
            other.backend.read(conn, 4, token);
            assert!(matches!(other.next(token), Outcome::Read(Ok(bytes)) if bytes.len() == 4));
            let send = other.send(conn, vec![Bytes::from_static(b"reply")]);
            other.expect_sent(send, 5);
        });
        let replies = if probe(Choice::Uring).is_ok() { 15 } else { 5 };
        let recv = rig.recv(near);
        assert_eq!(rig.received(recv, replies), b"reply".repeat(replies / 5));
        // Moved back, its handle is a new one and works.
        let far = rig.backend.attach(stream).unwrap();
        rig.send_all(far, b"again");
        assert_eq!(rig.received(recv, 5), b"again");
    });
}

#[cfg(unix)]
#[test]
fn unix_sockets() {
    each(|rig| {
        let path = std::env::temp_dir().join(format!("aiomsg-backend-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let (near, far) = rig.pair_at(&Address::Unix(path.clone()));
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        assert!(!path.exists(), "the listener is closed");
        let recv = rig.recv(far);
        let bytes = pattern(500_000);
        let send = rig.send(near, vec![Bytes::copy_from_slice(&bytes)]);
        assert!(rig.received(recv, bytes.len()) == bytes);
        rig.expect_sent(send, bytes.len());
        let token = rig.token();
        rig.backend.connect(&Address::Unix(path), &SocketOptions::default(), token);
        assert!(matches!(rig.next(token), Outcome::Connected(Err(_))));
    });
}

#[test]
fn ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    each(|rig| {
        let (near, far) = rig.pair_at(&ip("[::1]:0"));
        let recv = rig.recv(near);
        rig.send_all(far, b"six");
        assert_eq!(rig.received(recv, 3), b"six");
    });
}

#[test]
fn names_resolve() {
    each(|rig| {
        for host in ["127.0.0.1", "localhost", "::1", "[::1]"] {
            let token = rig.token();
            rig.backend.resolve(host, 25000, token);
            match rig.next(token) {
                Outcome::Resolved(Ok(addresses)) => {
                    assert!(addresses.iter().all(|address: &SocketAddr| address.ip().is_loopback()), "{addresses:?}");
                    assert!(!addresses.is_empty() && addresses[0].port() == 25000);
                }
                other => panic!("{other:?}"),
            }
        }
        let token = rig.token();
        rig.backend.resolve("not a host name", 1, token);
        assert!(matches!(rig.next(token), Outcome::Resolved(Err(_))));
        let token = rig.token();
        rig.backend.resolve("localhost", 1, token);
        rig.backend.cancel(token);
        rig.expect_cancelled(token);
        assert!(rig.stays_silent(token, 10));
    });
}

#[test]
fn dropped_with_everything_pending() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        rig.send_all(near, b"abc");
        let Outcome::Received(lease) = rig.next(recv) else { panic!() };
        let bytes = lease.into_bytes();
        rig.send(near, vec![Bytes::from(pattern(32 * 1024 * 1024))]);
        let token = rig.token();
        rig.backend.recv_into(near, BytesMut::with_capacity(4096), token);
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        let started = Instant::now();
        let replacement = open(&BackendOptions { choice: Choice::Poll, ..BackendOptions::default() }).unwrap();
        drop(std::mem::replace(&mut rig.backend, replacement.backend));
        assert!(started.elapsed() < Duration::from_millis(900));
        assert_eq!(&*bytes, b"abc", "leases outlive the backend");
    });
}

#[test]
fn more_sends_than_the_ring_holds() {
    for choice in [Choice::Poll, Choice::Uring] {
        let options = BackendOptions { choice, ring_entries: 4, ..BackendOptions::default() };
        let Ok(selected) = open(&options) else { continue };
        let mut rig = Rig { backend: selected.backend, last_token: 0, inbox: Vec::new() };
        let (listener, address) = rig.listen();
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        let pairs: Vec<_> = (0..200).map(|_| rig.connect(&address, accepts)).collect();
        let recvs: Vec<_> = pairs.iter().map(|&(_, far)| rig.recv(far)).collect();
        let sends: Vec<_> = pairs.iter().map(|&(near, _)| rig.send(near, vec![Bytes::from(pattern(5000))])).collect();
        for (recv, send) in recvs.into_iter().zip(sends) {
            assert!(rig.received(recv, 5000) == pattern(5000));
            rig.expect_sent(send, 5000);
        }
    }
}

/// Not tests of correctness: `cargo test --release -- --ignored --nocapture flow`.
const FLOW_BLOCK: usize = 256 * 1024;
const FLOW_BYTES: usize = 4 << 30;

#[test]
#[ignore = "a measurement"]
fn flow_of_one_connection() {
    for _ in 0..3 {
        println!("blocking calls: {:.2} GB/s", blocking_flow());
        for choice in [Choice::Poll, Choice::Uring] {
            let options = BackendOptions { choice, ..BackendOptions::default() };
            let (rate, receiver, sender) = flow(options);
            println!("{choice:?}: {rate:.2} GB/s\n  receiver {receiver:?}\n  sender   {sender:?}");
        }
    }
}

/// GB/s of plain blocking calls with the same block: what the machine gives.
fn blocking_flow() -> f64 {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sender = std::thread::spawn(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let block = pattern(FLOW_BLOCK);
        for _ in 0..FLOW_BYTES / FLOW_BLOCK {
            stream.write_all(&block).unwrap();
        }
    });
    let mut stream = listener.accept().unwrap().0;
    let (mut buffer, started) = (vec![0; FLOW_BLOCK], Instant::now());
    while stream.read(&mut buffer).unwrap() > 0 {}
    sender.join().unwrap();
    FLOW_BYTES as f64 / started.elapsed().as_secs_f64() / 1e9
}

fn flow(options: BackendOptions) -> (f64, Counters, Counters) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Ip(listener.local_addr().unwrap());
    let sender = std::thread::spawn(move || {
        let mut rig = Rig { backend: open(&options).unwrap().backend, last_token: 0, inbox: Vec::new() };
        let token = rig.token();
        rig.backend.connect(&address, &SocketOptions::default(), token);
        let Outcome::Connected(Ok((conn, _))) = rig.next(token) else { panic!() };
        let block = Bytes::from(pattern(FLOW_BLOCK));
        for _ in 0..FLOW_BYTES / FLOW_BLOCK {
            let send = rig.send(conn, vec![block.clone()]);
            rig.expect_sent(send, FLOW_BLOCK);
        }
        rig.backend.counters()
    });
    let mut rig = Rig { backend: open(&options).unwrap().backend, last_token: 0, inbox: Vec::new() };
    let socket = socket2::Socket::from(listener.accept().unwrap().0);
    let conn = rig.backend.attach(Stream::System { socket, nonblocking: false }).unwrap();
    let recv = rig.recv(conn);
    let (mut got, started) = (0, Instant::now());
    'run: loop {
        rig.backend.turn(u64::MAX, &mut rig.inbox).unwrap();
        for completion in rig.inbox.drain(..) {
            assert_eq!(completion.token, recv);
            match completion.outcome {
                Outcome::Received(lease) => got += lease.len(),
                Outcome::RecvEnded(result) => break 'run result.unwrap(),
                other => panic!("{other:?}"),
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(got, FLOW_BYTES);
    (FLOW_BYTES as f64 / seconds / 1e9, rig.backend.counters(), sender.join().unwrap())
}
