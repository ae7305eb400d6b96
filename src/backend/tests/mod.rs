//! One suite for all drivers: what the shard may rely on, over real sockets of this machine.
//!
//! ```text
//!   streams       bytes, both ways: order, exact reads, buffers, ends and resets
//!   cancels       operations cancelled, closed or dropped while they are under way
//!   connections   addresses, names, connects that fail, connections that move
//!   slabs         receive memory that runs out, many connections that share it
//!   waits         the doorbell, deadlines, idleness
//! ```

mod cancels;
mod connections;
mod slabs;
mod streams;
mod waits;

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
