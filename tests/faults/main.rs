//! The library under real faults: connections through a proxy that spoils them, processes that are stopped, killed or
//! denied what they ask for, thousands of connections, futures dropped half-way. Each test runs on both backends.
//!
//! What is done here in seconds is a share. `AIOMSG_FAULTS=10 cargo test --test faults` does ten times as much, which is
//! 1,000 link kills, 10,000 connections held, 100,000 connected and closed, 100,000 futures dropped.

#[path = "../common/mod.rs"]
mod common;

/// Declares tests `fn(Backend)`, run on both.
macro_rules! on_both {
    ([$($test:ident),* $(,)?]) => {
        on_both!(@backend uring, Uring, [$($test),*]);
        on_both!(@backend poll, Poll, [$($test),*]);
    };
    (@backend $name:ident, $backend:ident, [$($test:ident),*]) => {
        mod $name {
            $(
                #[test]
                fn $test() {
                    let name = concat!(module_path!(), "::", stringify!($test));
                    crate::run(name, aiomsg_uring::Backend::$backend, super::$test);
                }
            )*
        }
    };
}

mod abandoned;
mod chaos;
#[cfg(unix)]
mod child;
#[cfg(target_os = "linux")]
mod crowd;
#[cfg(target_os = "linux")]
mod denied;
mod links;
#[cfg(unix)]
mod names;
mod offsets;
mod stock;
#[cfg(unix)]
mod stopped;
#[cfg(unix)]
mod storm;
mod toxics;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use aiomsg_uring::{Backend, DeliveryGuarantee, Engine, SendMode, Socket, SocketBuilder, blocking};

/// Times the share of `cargo test`, at least 1.
pub(crate) fn scale() -> usize {
    std::env::var("AIOMSG_FAULTS").ok().and_then(|value| value.parse().ok()).unwrap_or(1).max(1)
}

pub(crate) fn run(name: &'static str, backend: Backend, test: fn(Backend)) {
    if common::is_available(backend) {
        common::watched_for(name, Duration::from_secs(150) * scale() as u32, move || test(backend));
    }
}

/// Does all cases, so many at once.
pub(crate) fn at_once<T: Sync>(threads: usize, cases: &[T], each: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    each(case);
                }
            });
        }
    });
}

pub(crate) fn engine(backend: Backend) -> Engine {
    Engine::builder().backend(backend).build().expect("an engine")
}

/// A socket that sends at least once in a circle, and whose times are short, so that faults are noticed soon.
pub(crate) fn hasty(engine: &Engine, set: impl FnOnce(SocketBuilder) -> SocketBuilder) -> blocking::Socket {
    let builder = Socket::builder()
        .engine(engine)
        .send_mode(SendMode::RoundRobin)
        .delivery_guarantee(DeliveryGuarantee::AtLeastOnce)
        .resend(Duration::from_millis(500), 1_000)
        .handshake_timeout(Duration::from_millis(500))
        .heartbeat_interval(Duration::from_millis(100))
        .receive_timeout(Duration::from_millis(600))
        .reconnect_delay(Duration::from_millis(5), Duration::from_millis(100));
    set(builder).build_blocking().expect("a socket")
}

/// The number that a message begins with.
#[track_caller]
pub(crate) fn value_of(message: &[u8]) -> u64 {
    u64::from_be_bytes(message[..8].try_into().expect("a number"))
}
