//! io_uring denied in every way that a machine has: the engine falls back at once, says why once and in words that help, and
//! works. Whoever insists on io_uring gets that cause as an error.

use std::time::{Duration, Instant};

use aiomsg_uring::{Backend, BackendKind, Engine, Socket};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::child::{Child, tell};
use crate::common::{Log, PATIENCE, is_available, say_loudly, watched};

/// The quickest of so many children counts: other tests use the machine too.
const TRIES: usize = 5;
const FALLBACK_MAX: Duration = Duration::from_millis(50);
/// `IORING_REGISTER_PBUF_RING`, since Linux 5.19.
const REGISTER_BUFFER_RING: u64 = 22;
/// `IORING_ENTER_EXT_ARG`, since Linux 5.11.
const ENTER_EXT_ARG: u64 = 8;

#[test]
fn setup_forbidden() {
    falls_back("", None, "setup-eperm", "seccomp profile");
}

#[test]
fn setup_unknown() {
    falls_back("", None, "setup-enosys", "too old or built without it");
}

#[test]
fn flags_refused() {
    falls_back("", None, "flags", "lacks a flag or operation");
}

#[test]
fn operation_missing() {
    falls_back("", None, "operation", "lacks a flag or operation");
}

#[test]
fn wait_refused() {
    falls_back("", None, "wait", "lacks a flag or operation");
}

#[test]
fn enter_forbidden() {
    falls_back("", None, "enter-eperm", "seccomp profile");
}

#[test]
fn no_locked_memory() {
    // The superuser is not bound by it.
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    falls_back("ulimit -l 0;", is_root.then_some(65_534), "memory", "LimitMEMLOCK");
}

fn falls_back(limits: &'static str, user: Option<u32>, what: &'static str, cause: &'static str) {
    if !is_available(Backend::Uring) {
        return;
    }
    watched(what, move || {
        let mut quickest = Duration::MAX;
        for _ in 0..TRIES {
            let mut child = Child::restricted(limits, user, &format!("denied {what}"));
            quickest = quickest.min(Duration::from_micros(child.numbers()[0]));
            let reason = child.line();
            assert!(reason.contains(cause), "{what}: {reason}");
            assert_eq!(child.line(), "done");
        }
        say_loudly(&format!("io_uring denied ({what}): on readiness within {quickest:?}"));
        assert!(quickest < FALLBACK_MAX, "{what}: {quickest:?}");
    });
}

/// The child: denied from the start.
pub(crate) fn child(what: &str) {
    let any = |errno: i32| (errno, Vec::new());
    let argument = |index: u8, operator: SeccompCmpOp, value: u64, errno: i32| {
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value).expect("a condition");
        (errno, vec![SeccompRule::new(vec![condition]).expect("a rule")])
    };
    let (call, (errno, rules)) = match what {
        "setup-eperm" => (libc::SYS_io_uring_setup, any(libc::EPERM)),
        "setup-enosys" => (libc::SYS_io_uring_setup, any(libc::ENOSYS)),
        "enter-eperm" => (libc::SYS_io_uring_enter, any(libc::EPERM)),
        // What a kernel answers to flags that it does not know, whatever they are.
        "flags" => (libc::SYS_io_uring_setup, any(libc::EINVAL)),
        "operation" => (libc::SYS_io_uring_register, argument(1, SeccompCmpOp::Eq, REGISTER_BUFFER_RING, libc::EINVAL)),
        "wait" => {
            let mask = SeccompCmpOp::MaskedEq(ENTER_EXT_ARG);
            (libc::SYS_io_uring_enter, argument(3, mask, ENTER_EXT_ARG, libc::EINVAL))
        }
        _ => (-1, any(0)),
    };
    if errno != 0 {
        let arch = TargetArch::try_from(std::env::consts::ARCH).expect("an architecture that has filters");
        let denied = SeccompAction::Errno(errno as u32);
        let filter = SeccompFilter::new([(call, rules)].into(), SeccompAction::Allow, denied, arch).expect("a filter");
        let program: BpfProgram = filter.try_into().expect("a program");
        seccompiler::apply_filter(&program).expect("filtered");
    }
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).init();
    let began = Instant::now();
    let engine = Engine::builder().shards(2).build().expect("an engine");
    tell(began.elapsed().as_micros());
    let info = engine.info();
    tell(&info.reason);
    assert_eq!(info.backend, BackendKind::Poll);
    let text = log.text();
    assert_eq!(text.matches(&info.reason).count(), 1, "{text}");

    let error = Engine::builder().backend(Backend::Uring).build().err().expect("no io_uring").to_string();
    let cause = info.reason.split(';').next().expect("a part");
    assert!(error.contains(cause), "{error}");
    serves(&engine);
    tell("done");
}

fn serves(engine: &Engine) {
    let socket = || Socket::builder().engine(engine).build_blocking().expect("a socket");
    let (one, other) = (socket(), socket());
    other.connect(one.bind("127.0.0.1:0").expect("bound")).expect("connecting");
    one.wait_for_peers(1, PATIENCE).expect("a peer");
    for value in 0..100u64 {
        one.send(&value.to_be_bytes()).expect("sent");
        assert_eq!(other.recv_timeout(PATIENCE).expect("received")[..], value.to_be_bytes());
    }
}
