//! Limits: full logs, full receive queues, peers that hold everything up, messages that are too
//! long, too many peers, too few buffers.

use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::SendMode::{Publish, RoundRobin};
use aiomsg_uring::{BuildError, Event, Payload, SendError, Socket, SocketBuilder, TrySendError};

use crate::common::{Kind, RawPeer, data, eventually, expect_numbers, number, pattern, send_numbers};

pair_tests!([
    slow_reader_loses_nothing,
    full_log_makes_send_wait,
    stalled_subscriber_is_disconnected,
    few_small_slabs_suffice,
]);

single_tests!([
    full_log_gives_the_message_back,
    full_log_gives_what_was_filled_back,
    who_panics_while_filling_sends_nothing,
    too_long_messages_are_refused,
    too_many_peers_are_turned_away,
    many_peers_at_once,
]);

const MIB: usize = 1 << 20;

#[test]
fn settings_with_which_nothing_would_work_are_refused_by_name() {
    let zero = Duration::ZERO;
    type Set = fn(SocketBuilder, Duration) -> SocketBuilder;
    let cases: [(Set, &str); 4] = [
        (|builder, zero| builder.handshake_timeout(zero), "handshake_timeout"),
        (|builder, zero| builder.heartbeat_interval(zero), "heartbeat_interval"),
        (|builder, zero| builder.receive_timeout(zero), "receive_timeout"),
        (|builder, zero| builder.reconnect_delay(zero, zero), "reconnect_delay"),
    ];
    for (set, name) in cases {
        let error = set(Socket::builder(), zero).build().expect_err("refused");
        assert!(matches!(error, BuildError::Limit { setting, .. } if setting == name), "{error}");
    }
}

fn slow_reader_loses_nothing(one: Kind, other: Kind) {
    const COUNT: u64 = 200_000;
    let sender = one.socket_with(|builder| builder.send_mode(RoundRobin).log_bytes_max(MIB).message_bytes_max(MIB / 2));
    let receiver = other.socket_with(|builder| builder.send_mode(RoundRobin).receive_bytes_max(MIB));
    receiver.connect(sender.bind_loopback());
    thread::scope(|scope| {
        scope.spawn(|| sender.run(|socket| send_numbers(socket, 0..COUNT)));
        receiver.run(|socket| {
            for start in (0..COUNT).step_by(20_000) {
                thread::sleep(Duration::from_millis(20));
                expect_numbers(socket, start..start + 20_000);
            }
        });
    });
    assert_eq!(receiver.stats().messages_received, COUNT);
}

fn full_log_makes_send_wait(one: Kind, other: Kind) {
    const COUNT: usize = 30_000;
    let sender = one.socket_with(|builder| builder.send_mode(RoundRobin).log_bytes_max(MIB).message_bytes_max(MIB / 2));
    let receiver = other.socket_with(|builder| builder.send_mode(RoundRobin).receive_bytes_max(MIB));
    receiver.connect(sender.bind_loopback());
    receiver.wait_for_peers(1);
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            sender.run(|socket| {
                (0..COUNT).for_each(|index| socket.send(&pattern(1_000 + index % 7)));
                socket.flush();
            });
        });
        // 30 MB do not fit into log, kernel and receive queue together.
        thread::sleep(Duration::from_millis(300));
        assert!(!sending.is_finished(), "nothing held the sender");
        receiver.run(|socket| {
            for index in 0..COUNT {
                let message = socket.recv_within(crate::common::PATIENCE).expect("a message");
                assert!(message == pattern(1_000 + index % 7), "message {index} came altered");
            }
        });
    });
}

fn stalled_subscriber_is_disconnected(one: Kind, other: Kind) {
    const COUNT: usize = 40_000;
    let publisher = one.socket_with(|builder| {
        let builder =
            builder.send_mode(Publish).log_bytes_max(2 * MIB).message_bytes_max(MIB).send_buffer_bytes(64 << 10);
        builder.publish_stall_max(Duration::from_millis(300))
    });
    let address = publisher.bind_loopback();
    let good = other.socket(Publish);
    good.connect(&address);
    let mut stalled = RawPeer::dial_narrow(&address, 16 << 10);
    stalled.shake_hands(9);
    publisher.wait_for_peers(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            publisher.run(|socket| {
                (0..COUNT).for_each(|index| socket.send(&pattern(1_000 + index % 7)));
                socket.flush();
            });
        });
        good.run(|socket| {
            for index in 0..COUNT {
                let message = socket.recv_within(crate::common::PATIENCE).expect("a message");
                assert!(message == pattern(1_000 + index % 7), "message {index} came altered");
            }
        });
    });
    let event = publisher.event("dropped", |event| matches!(event, Event::Dropped { .. }));
    assert!(matches!(event, Event::Dropped { messages, .. } if messages > 0), "{event}");
    eventually("all are counted", || publisher.stats().messages_delivered >= COUNT as u64);
    let stats = publisher.stats();
    // What it missed is what filled the log while it held the publisher.
    assert!((1..=3_000).contains(&stats.messages_dropped), "{stats:?}");
    assert_eq!(stats.disconnects, 1);
    assert_eq!(publisher.peers(), [good.identity()]);
}

fn few_small_slabs_suffice(one: Kind, other: Kind) {
    const COUNT: u64 = 20_000;
    let sender = one.socket_on(Some((2, 4 << 10)), |builder| builder.send_mode(Publish));
    let receivers: Vec<_> =
        (0..3).map(|_| other.socket_on(Some((2, 4 << 10)), |builder| builder.send_mode(Publish))).collect();
    let address = sender.bind_loopback();
    for receiver in &receivers {
        receiver.connect(&address);
    }
    sender.wait_for_peers(3);
    thread::scope(|scope| {
        scope.spawn(|| {
            sender.run(|socket| {
                send_numbers(socket, 0..COUNT);
                socket.send(&pattern(100_000));
                socket.flush();
            });
        });
        for receiver in &receivers {
            scope.spawn(|| {
                receiver.run(|socket| {
                    expect_numbers(socket, 0..COUNT);
                    let large = socket.recv_within(crate::common::PATIENCE).expect("a message");
                    assert!(large == pattern(100_000), "the large one came altered");
                });
            });
        }
    });
}

fn full_log_gives_the_message_back(kind: Kind) {
    let socket =
        kind.socket_with(|builder| builder.log_bytes_max(MIB).message_bytes_max(MIB / 2).linger(Duration::ZERO));
    socket.bind_loopback();
    socket.run(|socket| {
        let message = pattern(1_000);
        let began = Instant::now();
        let mut accepted = 0;
        let given_back = loop {
            match socket.try_send(&message) {
                Ok(()) => accepted += 1,
                Err(outcome) => break outcome,
            }
            assert!(accepted < 10_000, "1 MiB took 10 MB");
        };
        assert!(accepted > 100, "1 MiB was full after {accepted} kB");
        assert!(began.elapsed() < Duration::from_secs(5), "try_send waited");
        let text = given_back.to_string();
        assert!(!text.is_empty());
        match given_back {
            TrySendError::Full(Payload::Borrowed(payload)) => assert!(std::ptr::eq(payload, &message[..])),
            TrySendError::Full(Payload::Owned(payload)) => assert_eq!(payload, message),
            other => panic!("full, not: {other}"),
        }
        assert_eq!(socket.stats().messages_sent, accepted);
    });
}

fn full_log_gives_what_was_filled_back(kind: Kind) {
    let socket =
        kind.socket_with(|builder| builder.log_bytes_max(MIB).message_bytes_max(MIB / 2).linger(Duration::ZERO));
    socket.bind_loopback();
    socket.run(|socket| {
        let mut fill = |to: &mut [u8]| to.copy_from_slice(&pattern(1_000));
        let mut accepted = 0;
        let given_back = loop {
            match socket.try_send_with(1_000, &mut fill) {
                Ok(()) => accepted += 1,
                Err(outcome) => break outcome,
            }
            assert!(accepted < 10_000, "1 MiB took 10 MB");
        };
        let TrySendError::Full(payload) = given_back else { panic!("full, not: {given_back}") };
        assert_eq!(payload.as_ref(), pattern(1_000));
        assert_eq!(socket.stats().messages_sent, accepted);
    });
}

fn who_panics_while_filling_sends_nothing(kind: Kind) {
    let socket = kind.socket(Publish);
    let address = socket.bind_loopback();
    let mut peer = RawPeer::connected(&address, 1);
    socket.run(|socket| {
        let mut panics = |_: &mut [u8]| panic!("on purpose");
        let sending = std::panic::AssertUnwindSafe(|| socket.send_with(20, &mut panics));
        assert!(std::panic::catch_unwind(sending).is_err());
        socket.send_with(20, &mut |to| to.copy_from_slice(&pattern(20))).expect("sent");
        socket.flush();
        assert_eq!(socket.stats().messages_sent, 1);
    });
    assert_eq!(peer.read_data(), pattern(20));
}

fn too_long_messages_are_refused(kind: Kind) {
    let socket = kind.socket_with(|builder| builder.message_bytes_max(1_000));
    let address = socket.bind_loopback();
    socket.run(|socket| {
        let mut unasked = |_: &mut [u8]| panic!("asked for a message that is refused");
        assert!(matches!(socket.send_with(1_001, &mut unasked), Err(SendError::TooLong { .. })));
        let longest = pattern(1_000);
        let too_long = pattern(1_001);
        socket.send(&longest);
        assert!(matches!(socket.try_to_send(&too_long), Err(SendError::TooLong { .. })));
        assert!(matches!(socket.try_send(&too_long), Err(TrySendError::Never(SendError::TooLong { .. }))));
        socket.flush();
    });
    let mut peer = RawPeer::connected(&address, 1);
    assert_eq!(peer.read_data(), pattern(1_000));
    peer.send(&data(&pattern(1_000)));
    assert_eq!(socket.recv(), pattern(1_000));
    peer.send(&data(&pattern(1_001)));
    peer.wait_until_closed();
}

fn too_many_peers_are_turned_away(kind: Kind) {
    let socket = kind.socket_with(|builder| builder.peers_max(2));
    let address = socket.bind_loopback();
    let mut admitted = [RawPeer::connected(&address, 1), RawPeer::connected(&address, 2)];
    socket.wait_for_peers(2);
    let mut third = RawPeer::dial(&address);
    third.send(&crate::common::hello(3));
    third.wait_until_closed();
    socket.event("rejected", |event| matches!(event, Event::Rejected { .. }));
    assert!(socket.stats().rejects >= 1);
    socket.send(b"to the admitted");
    for peer in &mut admitted {
        assert_eq!(peer.read_data(), b"to the admitted");
    }
}

fn many_peers_at_once(kind: Kind) {
    const PEERS: u8 = 100;
    let socket = kind.socket(Publish);
    let address = socket.bind_loopback();
    let mut peers: Vec<_> = (1..=PEERS).map(|_| RawPeer::dial(&address)).collect();
    for (name, peer) in (1..=PEERS).zip(&mut peers) {
        peer.send(&crate::common::hello(name));
    }
    socket.wait_for_peers(PEERS.into());
    socket.run(|socket| send_numbers(socket, 0..100));
    for peer in &mut peers {
        assert!(peer.read_frame().is_some(), "a HELLO");
        for value in 0..100 {
            assert_eq!(peer.read_data(), number(value));
        }
        peer.send(&data(b"mine"));
    }
    for _ in 0..PEERS {
        assert_eq!(socket.recv(), "mine");
    }
}
