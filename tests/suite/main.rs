//! The integration suite: the public API over real sockets, the same tests for every kind of
//! socket. A test of pairs runs once per row below, a test of single sockets once per kind, a test of
//! calls that only one kind has once per backend; rows on io_uring are skipped, loudly, where there is none.

#[path = "../common/mod.rs"]
mod common;

/// Declares tests of two sockets: `fn(Kind, Kind)` each, run for every row.
macro_rules! pair_tests {
    ($tests:tt) => {
        pair_row!(sharded_uring, SHARDED_URING, SHARDED_URING, $tests);
        pair_row!(sharded_poll, SHARDED_POLL, SHARDED_POLL, $tests);
        pair_row!(inline_uring, INLINE_URING, INLINE_URING, $tests);
        pair_row!(inline_poll, INLINE_POLL, INLINE_POLL, $tests);
        pair_row!(sharded_uring_with_sharded_poll, SHARDED_URING, SHARDED_POLL, $tests);
        pair_row!(sharded_poll_with_inline_uring, SHARDED_POLL, INLINE_URING, $tests);
        pair_row!(inline_poll_with_sharded_uring, INLINE_POLL, SHARDED_URING, $tests);
        pair_row!(inline_uring_with_inline_poll, INLINE_URING, INLINE_POLL, $tests);
    };
}

macro_rules! pair_row {
    ($row:ident, $one:ident, $other:ident, [$($test:ident),* $(,)?]) => {
        mod $row {
            use crate::common::{Kind, run_pair};
            $(
                #[test]
                fn $test() {
                    let name = concat!(module_path!(), "::", stringify!($test));
                    run_pair(name, Kind::$one, Kind::$other, super::$test);
                }
            )*
        }
    };
}

/// Declares tests of one socket: `fn(Kind)` each, run for every kind.
macro_rules! single_tests {
    ($tests:tt) => {
        single_row!(sharded_uring_alone, SHARDED_URING, $tests);
        single_row!(sharded_poll_alone, SHARDED_POLL, $tests);
        single_row!(inline_uring_alone, INLINE_URING, $tests);
        single_row!(inline_poll_alone, INLINE_POLL, $tests);
    };
}

macro_rules! single_row {
    ($row:ident, $kind:ident, [$($test:ident),* $(,)?]) => {
        mod $row {
            use crate::common::{Kind, run_single};
            $(
                #[test]
                fn $test() {
                    let name = concat!(module_path!(), "::", stringify!($test));
                    run_single(name, Kind::$kind, super::$test);
                }
            )*
        }
    };
}

/// Declares tests of one backend: `fn(Backend)` each, run on both.
macro_rules! backend_tests {
    ($tests:tt) => {
        backend_row!(uring, Uring, $tests);
        backend_row!(poll, Poll, $tests);
    };
}

macro_rules! backend_row {
    ($row:ident, $backend:ident, [$($test:ident),* $(,)?]) => {
        mod $row {
            use crate::common::run_backend;
            $(
                #[test]
                fn $test() {
                    let name = concat!(module_path!(), "::", stringify!($test));
                    run_backend(name, aiomsg_uring::Backend::$backend, super::$test);
                }
            )*
        }
    };
}

mod addresses;
mod asynchronous;
mod bystanders;
mod control;
mod exchange;
mod handshake;
mod inline_engine;
mod kept;
mod life;
mod limits;
mod runtimes;
mod wire;
