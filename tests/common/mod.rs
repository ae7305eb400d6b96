//! What the test programs share: sockets of every kind behind one face, a watchdog, ports, raw
//! protocol peers. Each program uses a part of it.
#![allow(dead_code, unused_imports)]

mod proxy;
mod python;
mod raw;
mod sockets;

use std::io::Write;
use std::net::TcpListener;
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{Backend, inline};

pub(crate) use proxy::Proxy;
pub(crate) use python::{PythonPeer, python};
pub(crate) use raw::{
    ACK, DATA, DATA_REQ, HEARTBEAT, HELLO, RawPeer, data, data_req, frame, hello, hello_as, socket_addr,
};
pub(crate) use sockets::{Calls, Kind, Sock};

/// How long a test waits for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// How long a whole test may take before it counts as hung; on a busy machine most of it goes by without the processor.
const TEST_TIME_MAX: Duration = Duration::from_secs(120);

/// Runs a test under a watchdog: a test that hangs fails, under its name.
pub(crate) fn watched(name: &str, test: impl FnOnce() + Send + 'static) {
    watched_for(name, TEST_TIME_MAX, test);
}

/// The same for a test that may take longer.
pub(crate) fn watched_for(name: &str, time_max: Duration, test: impl FnOnce() + Send + 'static) {
    let (finished, wait) = mpsc::channel();
    let body = thread::Builder::new().name(name.into()).spawn(move || {
        test();
        finished.send(()).ok();
    });
    let body = body.expect("a thread");
    if wait.recv_timeout(time_max) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("{name} hangs: not finished after {time_max:?}");
    }
    if let Err(panic) = body.join() {
        resume_unwind(panic);
    }
}

/// Runs a test on one kind of socket, if this machine has it.
pub(crate) fn run_single(name: &'static str, kind: Kind, test: fn(Kind)) {
    if is_available(kind.backend) {
        watched(name, move || test(kind));
    }
}

/// Runs a test on two kinds of socket, if this machine has them.
pub(crate) fn run_pair(name: &'static str, one: Kind, other: Kind, test: fn(Kind, Kind)) {
    if is_available(one.backend) && is_available(other.backend) {
        watched(name, move || test(one, other));
    }
}

/// Runs a test on one backend, if this machine has it.
pub(crate) fn run_backend(name: &'static str, backend: Backend, test: fn(Backend)) {
    if is_available(backend) {
        watched(name, move || test(backend));
    }
}

/// Whether this machine has a backend; says so once, past the harness's capture, if not.
pub(crate) fn is_available(backend: Backend) -> bool {
    static SAID: Once = Once::new();
    let problem = match backend {
        Backend::Uring => uring_problem(),
        _ => None,
    };
    if let Some(problem) = problem {
        SAID.call_once(|| say_loudly(&format!("SKIPPED: every test on io_uring, because {problem}")));
    }
    problem.is_none()
}

/// Why there is no io_uring here; `None` if there is.
pub(crate) fn uring_problem() -> Option<&'static str> {
    static PROBLEM: OnceLock<Option<String>> = OnceLock::new();
    let probe = || inline::Engine::builder().backend(Backend::Uring).build().err().map(|error| error.to_string());
    PROBLEM.get_or_init(probe).as_deref()
}

/// Writes to standard error although the harness captures what tests print.
pub(crate) fn say_loudly(text: &str) {
    writeln!(std::io::stderr(), "\n{text}").ok();
}

/// Whether a missing part of the environment is an error instead of a reason to skip.
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// Waits until something is so; fails if it does not become so in time.
#[track_caller]
pub(crate) fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, is_so);
}

/// The same for what may take longer.
#[track_caller]
pub(crate) fn eventually_within(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < until, "not in {patience:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The built example of this name.
pub(crate) fn example(name: &str) -> PathBuf {
    let program = std::env::current_exe().expect("this program's path");
    // target/PROFILE/deps/this -> target/PROFILE/examples/name
    let folder = program.parent().and_then(|deps| deps.parent()).expect("a target folder");
    let path = folder.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is not built: `cargo test`, or `cargo build --examples`", path.display());
    path
}

/// A port of loopback on which nothing listens. Below the range of which systems give ports to
/// connecting sockets, so that it stays free until the test binds it. The one after it is the caller's too: some programs
/// take a second port.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let spread = std::process::id() as u16 % 400 * 25;
        let port = 20_000 + (spread + NEXT.fetch_add(2, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Numbers as messages.
pub(crate) fn number(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

/// A payload of so many bytes whose content depends on length and place.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ length) as u8).collect()
}

/// Sends the numbers of a range.
pub(crate) fn send_numbers(socket: &dyn Calls, numbers: Range<u64>) {
    for value in numbers {
        socket.send(&number(value));
    }
    socket.flush();
}

/// Receives the numbers of a range, in order and nothing else.
#[track_caller]
pub(crate) fn expect_numbers(socket: &dyn Calls, numbers: Range<u64>) {
    for value in numbers {
        let message = socket.recv_within(PATIENCE);
        assert_eq!(message.as_deref(), Some(&number(value)[..]), "number {value} was expected");
    }
}

/// What was logged: where a subscriber of `tracing` writes to.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("whole").clone()).expect("text")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("whole").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
