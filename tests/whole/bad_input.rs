//! Bad input of every class: each has a defined answer, and changes nothing for a good peer that is
//! served beside it all the time. What a peer announces reserves no memory: `bounds`.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{Address, BindError, Event, RejectReason, SendError, blocking};

use crate::common::{
    ACK, DATA, DATA_REQ, HEARTBEAT, HELLO, PATIENCE, RawPeer, data, data_req, eventually, frame, hello, number,
    pattern, socket_addr,
};
use crate::{Row, bound, value_of, wait_for_peers};

row_tests!([
    lengths_that_cannot_be,
    short_lengths_are_skipped,
    truncated_at_every_byte,
    split_at_every_byte,
    unknown_types_and_second_hellos,
    no_hello,
    one_byte_a_second,
    connect_flood,
    a_flood_from_one_address,
    ack_and_heartbeat_floods,
    an_announcement_reserves_nothing,
    over_the_message_limit,
    too_many_peers,
    a_stolen_identity,
    address_in_use,
    a_name_that_does_not_resolve,
    out_of_descriptors,
]);

/// The good peer's longest wait for an answer beside all that is bad, on a machine that other tests
/// use too.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Runs `bad` against a socket that serves a good peer all the while: that one gets every answer,
/// in time, over one connection. `bad` is given the address and a socket that echoes by identity.
fn beside_a_good_peer(row: Row, bad: impl FnOnce(&Address, &blocking::Socket)) {
    beside_a_good_peer_of(
        row.socket(|builder| {
            let builder = builder.handshake_timeout(Duration::from_millis(500)).peers_max(400);
            builder.message_bytes_max(100_000).heartbeat_interval(Duration::from_secs(2)).events_max(100_000)
        }),
        row,
        bad,
    );
}

fn beside_a_good_peer_of(server: blocking::Socket, row: Row, bad: impl FnOnce(&Address, &blocking::Socket)) {
    let address = bound(&server);
    let good = row.socket(|builder| builder);
    good.connect(&address).expect("connecting");
    wait_for_peers(&server, 1);
    let (finished, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok((from, message)) = server.recv_identity() {
                match server.send_to(from, message) {
                    Ok(()) | Err(SendError::PeerGone(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let asking = scope.spawn(|| {
            while !finished.load(Ordering::SeqCst) {
                let value = answers.load(Ordering::SeqCst);
                let began = Instant::now();
                good.send(&number(value)).expect("sent");
                let answer = good.recv_timeout(PATIENCE).expect("an answer");
                assert_eq!(value_of(&answer), value);
                assert!(began.elapsed() < ANSWER_MAX, "an answer took {:?}", began.elapsed());
                answers.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(1));
            }
        });
        // Whatever `bad` finds, the threads have to end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bad(&address, &server)));
        let before = answers.load(Ordering::SeqCst);
        if outcome.is_ok() && !asking.is_finished() {
            eventually("it is served as before", || answers.load(Ordering::SeqCst) > before + 5);
        }
        finished.store(true, Ordering::SeqCst);
        asking.join().expect("the good peer was served");
        server.close();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(good.stats().connects, 1, "the good peer's connection did not last");
}

fn lengths_that_cannot_be(row: Row) {
    beside_a_good_peer(row, |address, _| {
        for length in [1 << 31, u32::MAX, 200_000] {
            // Before the handshake and after it.
            let mut early = RawPeer::dial(address);
            early.send(&[&u32::to_be_bytes(length)[..], &[HELLO]].concat());
            early.wait_until_closed();
            let mut late = RawPeer::connected(address, 1);
            late.send(&data(b"before"));
            assert_eq!(late.read_data(), b"before");
            late.send(&[&u32::to_be_bytes(length)[..], &[DATA]].concat());
            late.wait_until_closed();
        }
    });
}

fn short_lengths_are_skipped(row: Row) {
    beside_a_good_peer(row, |address, _| {
        // Before the handshake they are no HELLO.
        for opening in [vec![0; 4], frame(HELLO, b""), frame(HEARTBEAT, b""), vec![0, 0, 0, 1]] {
            let mut peer = RawPeer::dial(address);
            peer.send(&opening);
            peer.wait_until_closed();
        }
        let mut peer = RawPeer::connected(address, 1);
        for nothing in [vec![0; 4], frame(HELLO, b""), frame(DATA_REQ, b"short"), frame(ACK, b"short")] {
            peer.send(&[nothing, data(b"after nothing")].concat());
            assert_eq!(peer.read_data(), b"after nothing");
        }
    });
}

/// What a lively peer says; each time under another message id, or it would be a duplicate.
fn conversation(msg_id: u8) -> Vec<u8> {
    let frames = [hello(1), data(b"one"), frame(HEARTBEAT, b""), data_req([msg_id; 16], b"two"), data(b"")];
    frames.concat()
}

fn truncated_at_every_byte(row: Row) {
    beside_a_good_peer(row, |address, server| {
        let all = conversation(0);
        for at in 0..all.len() {
            let mut peer = RawPeer::dial(address);
            peer.send(&all[..at]);
            if at % 2 == 0 { peer.close() } else { peer.reset() }
        }
        eventually("all of them are gone", || server.peers().len() == 1);
    });
}

fn split_at_every_byte(row: Row) {
    beside_a_good_peer(row, |address, server| {
        for at in 1..conversation(0).len() {
            let all = conversation(at as u8);
            let mut peer = RawPeer::dial(address);
            peer.send(&all[..at]);
            thread::sleep(Duration::from_millis(1));
            peer.send(&all[at..]);
            peer.expect_hello();
            // Answers and the ACK, which goes between any two of them.
            let mut frames: Vec<_> = (0..4)
                .map(|_| {
                    peer.read_past_heartbeats().unwrap_or_else(|| {
                        panic!(
                            "an answer at {at}, {:?}",
                            std::iter::from_fn(|| server.try_event()).map(|e| e.to_string()).collect::<Vec<_>>()
                        )
                    })
                })
                .collect();
            frames.retain(|(kind, _)| *kind == DATA);
            assert_eq!(frames.iter().map(|(_, body)| &body[..]).collect::<Vec<_>>(), [&b"one"[..], b"two", b""]);
            peer.close();
            eventually("it is gone", || server.peers().len() == 1);
        }
    });
}

fn unknown_types_and_second_hellos(row: Row) {
    beside_a_good_peer(row, |address, server| {
        let mut peer = RawPeer::connected(address, 1);
        for kind in (0..=255).filter(|kind| ![HEARTBEAT, DATA, DATA_REQ, ACK].contains(kind)) {
            peer.send(&[frame(kind, &pattern(usize::from(kind))), data(&[kind])].concat());
            assert_eq!(peer.read_data(), [kind]);
        }
        peer.send(&[hello(1), hello(2), data(b"still the first")].concat());
        assert_eq!(peer.read_data(), b"still the first");
        assert!(server.peers().contains(&[1; 16].into()) && server.peers().len() == 2);
    });
}

fn no_hello(row: Row) {
    beside_a_good_peer(row, |address, server| {
        let mut silent: Vec<_> = (0..20).map(|_| RawPeer::dial(address)).collect();
        let mut wrong = RawPeer::dial(address);
        wrong.send(&data(b"no HELLO"));
        wrong.wait_until_closed();
        for peer in &mut silent {
            peer.wait_until_closed();
        }
        eventually("all are counted", || server.stats().rejects == 21);
        let too_slow = std::iter::from_fn(|| server.try_event())
            .filter(|event| matches!(event, Event::Rejected { reason: RejectReason::TooSlow, .. }))
            .count();
        assert_eq!(too_slow, 20);
    });
}

fn one_byte_a_second(row: Row) {
    beside_a_good_peer(row, |address, _| {
        // Of a HELLO, at a pace that the deadline does not allow; of a message, which has no deadline.
        let mut slow_hello = RawPeer::dial(address);
        let began = Instant::now();
        for byte in hello(1) {
            if slow_hello.try_send(&[byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        slow_hello.wait_until_closed();
        assert!(began.elapsed() < PATIENCE, "bytes that trickle in put the deadline off");
        let mut slow_data = RawPeer::connected(address, 2);
        for byte in data(b"slow") {
            slow_data.send(&[byte]);
            thread::sleep(Duration::from_millis(400));
        }
        assert_eq!(slow_data.read_data(), b"slow");
    });
}

fn connect_flood(row: Row) {
    beside_a_good_peer(row, |address, server| {
        let mut held = Vec::new();
        for round in 0..1_500u32 {
            let Ok(stream) = std::net::TcpStream::connect(socket_addr(address)) else { continue };
            match round % 3 {
                0 => drop(stream),
                _ => held.push(stream),
            }
            if held.len() > 600 {
                held.drain(..300);
            }
        }
        drop(held);
        eventually("all of them are gone", || {
            let stats = server.stats();
            stats.peers == 1 && stats.rejects > 0
        });
        thread::sleep(Duration::from_millis(700));
        let mut next = RawPeer::connected(address, 1);
        next.send(&data(b"room again"));
        assert_eq!(next.read_data(), b"room again");
    });
}

/// Who comes too often is held without being served; the good peer, who connects from elsewhere while that goes on, is not.
fn a_flood_from_one_address(row: Row) {
    const BURST: usize = 50;
    if !cfg!(target_os = "linux") {
        return;
    }
    let server = row.socket(|builder| builder.accepts_per_second(1, BURST as u32).peers_max(1_000).events_max(100_000));
    beside_a_good_peer_of(server, row, |address, server| {
        let flood: Vec<_> = (0..3_000).map(|_| RawPeer::dial(address)).collect();
        let mut elsewhere = RawPeer::dial_from([127, 0, 0, 2].into(), address);
        elsewhere.shake_hands(9);
        elsewhere.send(&data(b"let in"));
        assert_eq!(elsewhere.read_data(), b"let in");
        let mut told = 0;
        eventually("they are counted and told", || {
            let refused = |event: &Event| matches!(event, Event::Rejected { reason: RejectReason::TooManyAccepts, .. });
            told += std::iter::from_fn(|| server.try_event()).filter(refused).count();
            // The good peer took one of the burst; while this goes on, a few come back.
            (2_900..=3_001 - BURST).contains(&told) && server.stats().rejects >= told as u64
        });
        // Held, not served: no HELLO, and the end after a while.
        let mut late = RawPeer::dial(address);
        late.try_send(&hello(8)).ok();
        assert!(late.read_frame().is_none());
        for mut peer in flood.into_iter().skip(BURST) {
            assert!(peer.read_frame().is_none());
        }
    });
}

fn ack_and_heartbeat_floods(row: Row) {
    beside_a_good_peer(row, |address, _| {
        let mut peer = RawPeer::connected(address, 1);
        let floods = [frame(ACK, &[7; 16]), frame(HEARTBEAT, b""), vec![0; 4]];
        for flood in floods {
            (0..50).for_each(|_| peer.send(&flood.repeat(2_000)));
        }
        peer.send(&data(b"done"));
        assert_eq!(peer.read_data(), b"done");
    });
}

fn an_announcement_reserves_nothing(row: Row) {
    let server = row.socket(|builder| builder.peers_max(400));
    beside_a_good_peer_of(server, row, |address, server| {
        // 200 frames of 16 MB, of each a few bytes: 3.2 GB, had they been reserved.
        let before = memory();
        let peers: Vec<_> = (1..=200)
            .map(|name| {
                let mut peer = RawPeer::connected(address, name);
                peer.send(&[&16_000_000u32.to_be_bytes()[..], &[DATA], &[1; 100]].concat());
                peer
            })
            .collect();
        eventually("all are there", || server.peers().len() == 201);
        thread::sleep(Duration::from_millis(100));
        let grown = memory().saturating_sub(before);
        assert!(grown < 200 << 20, "{} MiB for 20 kB received", grown >> 20);
        drop(peers);
    });
}

/// Bytes of memory that this process has asked for, resident or not; 0 where that is not to be had.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) << 10
}

fn over_the_message_limit(row: Row) {
    beside_a_good_peer(row, |address, server| {
        let error = server.send(pattern(100_001)).expect_err("over the limit");
        assert_eq!(error, SendError::TooLong { bytes: 100_001, bytes_max: 100_000 });
        assert!(error.to_string().contains("message_bytes_max"), "no way out: {error}");
        let mut peer = RawPeer::connected(address, 1);
        peer.send(&data(&pattern(100_000)));
        assert!(peer.read_data() == pattern(100_000));
        for too_long in [data(&pattern(100_001)), data_req([1; 16], &pattern(100_001)), frame(0x77, &[0; 100_100])] {
            let mut peer = RawPeer::connected(address, 2);
            peer.try_send(&too_long).ok();
            peer.wait_until_closed();
            eventually("it is gone", || server.peers().len() == 2);
        }
        let told = std::iter::from_fn(|| server.try_event())
            .filter(|event| event.to_string().contains("over message_bytes_max"))
            .count();
        assert_eq!(told, 3);
    });
}

fn too_many_peers(row: Row) {
    let server = row.socket(|builder| builder.peers_max(6));
    beside_a_good_peer_of(server, row, |address, server| {
        let _admitted: Vec<_> = (1..=5).map(|name| RawPeer::connected(address, name)).collect();
        wait_for_peers(server, 6);
        for name in 10..20 {
            let mut peer = RawPeer::dial(address);
            peer.try_send(&hello(name)).ok();
            peer.wait_until_closed();
        }
        assert_eq!(server.peers().len(), 6);
        let told = |event: &Event| matches!(event, Event::Rejected { reason: RejectReason::TooManyPeers, .. });
        eventually("it is told", || std::iter::from_fn(|| server.try_event()).any(|event| told(&event)));
    });
}

fn a_stolen_identity(row: Row) {
    beside_a_good_peer(row, |address, server| {
        let good = server.peers()[0];
        for _ in 0..5 {
            let mut thief = RawPeer::dial(address);
            thief.send(&crate::common::hello_as(*good.as_bytes()));
            thief.try_send(&data(b"in your name")).ok();
            while let Some((kind, _)) = thief.read_frame() {
                assert_ne!(kind, DATA, "a message for somebody else");
            }
        }
        assert_eq!(server.peers(), [good]);
    });
}

fn address_in_use(row: Row) {
    beside_a_good_peer(row, |address, _| {
        let second = row.socket(|builder| builder);
        let error = second.bind(address.to_string()).expect_err("in use");
        assert!(matches!(&error, BindError::Io { error, .. } if error.kind() == std::io::ErrorKind::AddrInUse));
        assert!(error.to_string().contains("another port"), "no way out: {error}");
        // The socket is as good as before.
        let mut peer = RawPeer::connected(&bound(&second), 1);
        peer.send(&data(b"here instead"));
        assert_eq!(second.recv_timeout(PATIENCE).expect("a message in time"), "here instead");
    });
}

fn a_name_that_does_not_resolve(row: Row) {
    beside_a_good_peer(row, |_, server| {
        // A name that is reserved for not being there.
        server.connect("nowhere.invalid:25000").expect("it is tried for ever");
        eventually("it is told", || {
            std::iter::from_fn(|| server.try_event()).any(|event| {
                matches!(&event, Event::Reconnecting { endpoint, error, .. }
                    if endpoint.contains("nowhere.invalid") && error.contains("resolve"))
            })
        });
        assert!(server.bind("nowhere.invalid:25000").is_err());
    });
}

fn out_of_descriptors(row: Row) {
    if !cfg!(unix) {
        return;
    }
    let program = std::env::current_exe().expect("this program's path");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64; exec \"$0\" --exact bad_input::child --ignored --nocapture"]).arg(program);
    command.env("AIOMSG_TEST_CASE", format!("{:?} {}", row.backend, row.shards));
    let output = command.stdin(Stdio::null()).output().expect("started");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{}\n{out}\n{err}", output.status);
}

#[test]
#[ignore = "a part of the test above, which runs it in a process with few descriptors"]
fn child() {
    let row = std::env::var("AIOMSG_TEST_CASE").expect("run by the test above");
    let (backend, shards) = row.split_once(' ').expect("two words");
    let backend = if backend == "Uring" { aiomsg_uring::Backend::Uring } else { aiomsg_uring::Backend::Poll };
    let row = Row { backend, shards: shards.parse().expect("a number") };
    beside_a_good_peer(row, |address, server| {
        for _ in 0..3 {
            // Until there are none left; then some for a while, so that the listener meets the limit.
            let mut taken = Vec::new();
            while let Ok(stream) = std::net::TcpStream::connect(socket_addr(address)) {
                taken.push(stream);
            }
            assert!(!taken.is_empty(), "64 descriptors were too few to begin with");
            thread::sleep(Duration::from_millis(300));
            drop(taken);
            eventually("those are gone", || server.peers().len() == 1);
            // The listener may still take what had waited in the kernel, and with it what was just free.
            let mut stream = None;
            eventually("there are some again", || {
                stream = std::net::TcpStream::connect(socket_addr(address)).ok();
                stream.is_some()
            });
            let mut next = RawPeer::from_stream(stream.expect("a connection"));
            next.shake_hands(1);
            next.send(&data(b"served again"));
            assert_eq!(next.read_data(), b"served again");
            next.close();
            eventually("it is gone", || server.peers().len() == 1);
        }
    });
}
