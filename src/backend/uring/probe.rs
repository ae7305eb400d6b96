//! The self-test that decides whether io_uring is used: what the driver needs is done once on a socket pair, because
//! version numbers say little about patched, sandboxed and half-configured kernels. It takes about a millisecond.

use std::io;

use bytes::Bytes;
use socket2::{Domain, Socket, Type};

use crate::backend::options::{BackendOptions, PoolOptions};
use crate::backend::sockets::Stream;
use crate::backend::{Backend, Completion, Outcome, Token, is_cancelled};

/// How long each step may take, in ns; a working ring needs microseconds.
const STEP_NS: u64 = 500_000_000;

const RECV: Token = Token(1);
const SEND: Token = Token(2);

/// Receives, sends, cancels, waits and rings once.
///
/// # Errors
/// The error of the step that failed, or one that describes what it did instead.
pub(in crate::backend) fn self_test() -> io::Result<()> {
    let options = BackendOptions {
        ring_entries: 8,
        pool: PoolOptions { slab_count: 4, slab_bytes: 16 * 1024 },
        ..BackendOptions::default()
    };
    let mut backend = super::open(&options)?;
    let (near, far) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
    let near = backend.attach(Stream::System { socket: near, nonblocking: false })?;
    let far = backend.attach(Stream::System { socket: far, nonblocking: false })?;

    // A multishot receive delivers several times, in order, small messages sharing a buffer where that is supported.
    backend.recv(far, RECV);
    let mut received = Vec::new();
    for slices in [vec!["one"], vec!["two", "three"]] {
        let before = received.len();
        let expected: usize = slices.iter().map(|slice| slice.len()).sum();
        backend.send(near, slices.into_iter().map(|slice| Bytes::from_static(slice.as_bytes())).collect(), SEND);
        let mut sent = false;
        step(&mut *backend, |completion| {
            match completion.outcome {
                Outcome::Sent { error: None, .. } => sent = true,
                Outcome::Sent { error: Some(error), .. } => return Err(error),
                Outcome::Received(lease) => received.extend_from_slice(&lease),
                Outcome::RecvEnded(result) => return Err(result.err().unwrap_or_else(|| wrong("ended a receive"))),
                _ => return Err(wrong("mixed up operations")),
            }
            Ok(sent && received.len() >= before + expected)
        })?;
    }
    if received != b"onetwothree" {
        return Err(wrong("delivered other bytes than were sent"));
    }

    // A cancellation ends it.
    backend.cancel(RECV);
    step(&mut *backend, |completion| match completion.outcome {
        Outcome::RecvEnded(Err(error)) if is_cancelled(&error) => Ok(true),
        _ => Err(wrong("did not cancel a receive")),
    })?;

    // A wait ends at its deadline, and before it when the doorbell rings.
    let mut out = Vec::new();
    let deadline_ns = backend.now_ns() + 20_000;
    while backend.now_ns() < deadline_ns {
        backend.turn(deadline_ns, &mut out)?;
    }
    backend.waker().wake();
    let started_ns = backend.now_ns();
    backend.turn(started_ns + STEP_NS, &mut out)?;
    if backend.now_ns() >= started_ns + STEP_NS {
        return Err(wrong("did not hear the doorbell"));
    }
    Ok(())
}

/// Turns until `on` says that the step is done.
fn step(backend: &mut dyn Backend, mut on: impl FnMut(Completion) -> io::Result<bool>) -> io::Result<()> {
    let deadline_ns = backend.now_ns() + STEP_NS;
    let mut out = Vec::new();
    loop {
        backend.turn(deadline_ns, &mut out)?;
        for completion in out.drain(..) {
            if on(completion)? {
                return Ok(());
            }
        }
        if backend.now_ns() >= deadline_ns {
            return Err(wrong("left an operation hanging"));
        }
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::other(format!("the ring {what}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn passes_or_names_an_error_quickly() {
        let started = std::time::Instant::now();
        let result = super::self_test();
        assert!(started.elapsed().as_millis() < 500, "{result:?}");
    }
}
