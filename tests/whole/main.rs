//! The whole socket: many shards, messages by identity, delivery at least once, bad company. Each
//! test runs once per row, a backend and a number of shards; rows on io_uring are skipped, loudly,
//! where there is none. What needs no more than one shard and one guarantee is in `suite`.

#[path = "../common/mod.rs"]
mod common;

use std::time::Duration;

use aiomsg_uring::{AckMode, Address, Backend, DeliveryGuarantee, Engine, SendMode, Socket, SocketBuilder, blocking};

use common::{PATIENCE, is_available, watched};

/// On what a test runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) backend: Backend,
    pub(crate) shards: usize,
}

impl Row {
    pub(crate) fn engine(self) -> Engine {
        Engine::builder().backend(self.backend).shards(self.shards).build().expect("an engine")
    }

    /// A socket on an engine of its own.
    pub(crate) fn socket(self, set: impl FnOnce(SocketBuilder) -> SocketBuilder) -> blocking::Socket {
        on(&self.engine(), set)
    }

    /// One that sends at most once, in this mode.
    pub(crate) fn plain(self, mode: SendMode) -> blocking::Socket {
        self.socket(|builder| builder.send_mode(mode))
    }

    /// One that sends at least once, and asks again after `resend`.
    pub(crate) fn reliable(self, resend: Duration, attempts_max: u32) -> blocking::Socket {
        self.socket(|builder| at_least_once(builder).resend(resend, attempts_max))
    }

    /// One whose application acknowledges by itself.
    pub(crate) fn manual(self) -> blocking::Socket {
        self.socket(|builder| builder.ack_mode(AckMode::Manual))
    }
}

/// A socket on this engine.
pub(crate) fn on(engine: &Engine, set: impl FnOnce(SocketBuilder) -> SocketBuilder) -> blocking::Socket {
    set(Socket::builder()).engine(engine).build_blocking().expect("a socket")
}

pub(crate) fn at_least_once(builder: SocketBuilder) -> SocketBuilder {
    builder.send_mode(SendMode::RoundRobin).delivery_guarantee(DeliveryGuarantee::AtLeastOnce)
}

/// Binds to a free port of loopback.
pub(crate) fn bound(socket: &blocking::Socket) -> Address {
    socket.bind("127.0.0.1:0").expect("bound")
}

#[track_caller]
pub(crate) fn wait_for_peers(socket: &blocking::Socket, peers: usize) {
    socket.wait_for_peers(peers, PATIENCE).expect("peers in time");
}

/// The number in a message.
#[track_caller]
pub(crate) fn value_of(message: &[u8]) -> u64 {
    u64::from_be_bytes(message.try_into().expect("a number"))
}

/// The number in the next message, which must come in time.
#[track_caller]
pub(crate) fn recv_value(socket: &blocking::Socket) -> u64 {
    value_of(&socket.recv_timeout(PATIENCE).expect("a message in time"))
}

pub(crate) fn run_row(name: &'static str, row: Row, test: fn(Row)) {
    if is_available(row.backend) {
        watched(name, move || test(row));
    }
}

/// Declares tests `fn(Row)`, run for every row.
macro_rules! row_tests {
    ($tests:tt) => {
        row_tests!(@row uring_1, Uring, 1, $tests);
        row_tests!(@row uring_2, Uring, 2, $tests);
        row_tests!(@row uring_4, Uring, 4, $tests);
        row_tests!(@row poll_1, Poll, 1, $tests);
        row_tests!(@row poll_2, Poll, 2, $tests);
        row_tests!(@row poll_4, Poll, 4, $tests);
    };
    (@row $row:ident, $backend:ident, $shards:literal, [$($test:ident),* $(,)?]) => {
        mod $row {
            $(
                #[test]
                fn $test() {
                    let row = crate::Row { backend: aiomsg_uring::Backend::$backend, shards: $shards };
                    crate::run_row(concat!(module_path!(), "::", stringify!($test)), row, super::$test);
                }
            )*
        }
    };
}

mod accounts;
mod at_once;
mod bad_input;
mod bounds;
mod circle;
mod control;
mod identity;
mod keyed;
mod late;
mod least_once;
mod publish;
mod reconnect;
mod slow;
