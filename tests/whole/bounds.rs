//! Memory stays within the limits whatever a peer does not do. Each case is a process of its own,
//! so that its peak of resident memory is its own too: what a socket before it gave back may still be resident.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::SendMode::{Publish, RoundRobin};
use aiomsg_uring::{Backend, Identity, SendError, SendMode, TrySendError};

use crate::common::{RawPeer, data, data_req, eventually, number, pattern};
use crate::{Row, at_least_once, bound, value_of, wait_for_peers};

row_tests!([
    a_peer_that_never_reads,
    a_peer_that_never_acknowledges,
    a_peer_by_identity_that_never_reads,
    an_application_that_never_receives,
    a_log_that_nobody_reads,
    send_waits_and_goes_on,
]);

const MIB: usize = 1 << 20;
const LOG_BYTES: usize = 8 * MIB;
const RECEIVE_BYTES: usize = 4 * MIB;
/// What the issue allows beyond the limits.
const SLACK_BYTES: usize = 32 * MIB;
const FLOOD_TIME: Duration = Duration::from_secs(2);

fn a_peer_that_never_reads(row: Row) {
    in_child(row, "never_reads");
    in_child(row, "never_reads_reliable");
}

fn a_peer_that_never_acknowledges(row: Row) {
    in_child(row, "never_acknowledges");
}

fn a_peer_by_identity_that_never_reads(row: Row) {
    in_child(row, "by_identity_published");
    in_child(row, "by_identity_dealt");
}

fn an_application_that_never_receives(row: Row) {
    in_child(row, "never_receives");
}

fn a_log_that_nobody_reads(row: Row) {
    in_child(row, "nobody");
}

/// Runs this program again for one case.
fn in_child(row: Row, case: &str) {
    if !cfg!(target_os = "linux") {
        return;
    }
    let program = std::env::current_exe().expect("this program's path");
    let mut command = Command::new(program);
    command.args(["--exact", "bounds::child", "--ignored", "--nocapture"]);
    command.env("AIOMSG_TEST_CASE", format!("{case} {:?} {}", row.backend, row.shards));
    let output = command.stdin(Stdio::null()).output().expect("started");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("peak"), "{case}: {}\n{out}\n{err}", output.status);
}

#[test]
#[ignore = "a part of the tests above, which run it in a process of its own"]
fn child() {
    let case = std::env::var("AIOMSG_TEST_CASE").expect("run by the tests above");
    let [case, backend, shards] = case.split(' ').collect::<Vec<_>>()[..] else { panic!("{case}: three words") };
    let backend = if backend == "Uring" { Backend::Uring } else { Backend::Poll };
    let row = Row { backend, shards: shards.parse().expect("a number") };
    let before = resident("VmRSS");
    match case {
        "never_reads" => never_reads(row, false),
        "never_reads_reliable" => never_reads(row, true),
        "never_acknowledges" => never_acknowledges(row),
        "by_identity_published" => by_identity(row, Publish),
        "by_identity_dealt" => by_identity(row, RoundRobin),
        "never_receives" => never_receives(row),
        "nobody" => nobody(row),
        _ => panic!("no case {case}"),
    }
    let grown = resident("VmHWM") - before;
    println!("peak of {case}: {} KiB above the start", grown >> 10);
    let allowed = LOG_BYTES + RECEIVE_BYTES + SLACK_BYTES;
    assert!(grown <= allowed, "{case}: {} MiB above the start, {} are allowed", grown >> 20, allowed >> 20);
}

/// Bytes, by their name in /proc.
fn resident(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a known name");
    let kib = line.split_whitespace().nth(1).expect("a number");
    kib.parse::<usize>().expect("a number") << 10
}

fn limited(builder: aiomsg_uring::SocketBuilder) -> aiomsg_uring::SocketBuilder {
    let builder = builder.log_bytes_max(LOG_BYTES).receive_bytes_max(RECEIVE_BYTES).message_bytes_max(MIB);
    builder.linger(Duration::ZERO)
}

/// Tries to send for a while, in several sizes; how often there was no room.
fn flood(mut try_send: impl FnMut(&[u8]) -> Result<(), TrySendError<'_>>) -> u64 {
    let payloads = [10, 100, 3_000, 20_000, 200_000].map(pattern);
    let began = Instant::now();
    let mut full = 0;
    for payload in payloads.iter().cycle() {
        if began.elapsed() > FLOOD_TIME {
            break;
        }
        match try_send(payload) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                full += 1;
                thread::sleep(Duration::from_micros(100));
            }
            Err(error) => panic!("{error}"),
        }
    }
    full
}

fn never_reads(row: Row, reliable: bool) {
    let sender = row.socket(|builder| match reliable {
        true => limited(at_least_once(builder)).resend(Duration::from_millis(200), 1_000),
        false => limited(builder.send_mode(RoundRobin)),
    });
    let _peers: Vec<_> = (1..=3).map(|name| RawPeer::connected(&bound(&sender), name)).collect();
    wait_for_peers(&sender, 3);
    let full = flood(|payload| sender.try_send(payload));
    assert!(full > 0, "nothing held the sender");
    assert!(sender.stats().log_bytes as usize <= LOG_BYTES, "{:?}", sender.stats());
}

fn never_acknowledges(row: Row) {
    let sender = row.socket(|builder| limited(at_least_once(builder)).resend(Duration::from_millis(200), 1_000));
    let address = bound(&sender);
    let mut peer = RawPeer::connected(&address, 1);
    thread::spawn(move || while peer.read_frame().is_some() {});
    wait_for_peers(&sender, 1);
    let full = flood(|payload| sender.try_send(payload));
    assert!(full > 0, "nothing held the sender");
    assert_eq!(sender.stats().messages_acknowledged, 0);
}

fn by_identity(row: Row, mode: SendMode) {
    let sender = row.socket(|builder| limited(builder.send_mode(mode)));
    let address = bound(&sender);
    let _peers: Vec<_> = (1..=20).map(|name| RawPeer::connected(&address, name)).collect();
    wait_for_peers(&sender, 20);
    let mut next = 0;
    let full = flood(|payload| {
        next = next % 20 + 1;
        sender.try_send_to(Identity::from([next; 16]), payload)
    });
    assert!(full > 0, "nothing held the sender");
}

fn never_receives(row: Row) {
    let receiver = row.socket(limited);
    let address = bound(&receiver);
    let flooding: Vec<_> = (1..=8)
        .map(|name| {
            let mut peer = RawPeer::connected(&address, name);
            thread::spawn(move || {
                let frames = [data(&pattern(100)), data_req([name; 16], &pattern(5_000)), data(&pattern(300_000))];
                // Ends when the test does, or is stuck until then.
                while peer.try_send(&frames.concat()).is_ok() {}
            })
        })
        .collect();
    thread::sleep(FLOOD_TIME);
    assert!(receiver.stats().receive_bytes as usize <= RECEIVE_BYTES + 8 * 512 * 1024, "{:?}", receiver.stats());
    assert!(receiver.stats().receive_pauses > 0, "nobody was made to wait");
    assert!(flooding.iter().all(|peer| !peer.is_finished()), "cut off instead of being made to wait");
}

fn nobody(row: Row) {
    for sender in [row.socket(limited), row.socket(|builder| limited(at_least_once(builder)))] {
        bound(&sender);
        let full = flood(|payload| sender.try_send(payload));
        assert!(full > 0, "nothing held the sender");
    }
}

/// At the bound `send` waits; nothing is lost, and it goes on when there is room.
fn send_waits_and_goes_on(row: Row) {
    const COUNT: u64 = 6_000;
    let sender = row.socket(|builder| limited(at_least_once(builder)).resend(Duration::from_secs(30), 2));
    let mut peer = RawPeer::connected(&bound(&sender), 1);
    wait_for_peers(&sender, 1);
    let payload = |value: u64| [&number(value)[..], &[3; 4_992]].concat();
    thread::scope(|scope| {
        let sending = scope.spawn(|| (0..COUNT).for_each(|value| sender.send(payload(value)).expect("sent")));
        eventually("the sender waits", || sender.stats().send_waits > 0);
        let at = sender.stats().messages_sent;
        thread::sleep(Duration::from_millis(200));
        assert_eq!(sender.stats().messages_sent, at, "30 MB fit into 8 MiB");
        let patience = Duration::from_millis(50);
        assert_eq!(sender.send_timeout(payload(0), patience), Err(SendError::TimedOut));
        for value in 0..COUNT {
            let (msg_id, payload) = peer.read_data_req();
            assert_eq!(value_of(&payload[..8]), value);
            peer.acknowledge(&msg_id);
        }
        sending.join().expect("all sent");
    });
    eventually("all are acknowledged", || sender.stats().messages_acknowledged == COUNT);
    assert_eq!(sender.stats().messages_resent, 0);
}
