//! The bytes after the handshake: what goes out, and what is taken in however it arrives.

use std::thread;
use std::time::Duration;

use aiomsg_uring::SendMode::{Publish, RoundRobin};

use crate::common::{
    ACK, DATA_REQ, HEARTBEAT, HELLO, Kind, PATIENCE, RawPeer, data, eventually, expect_numbers, frame, hello, number,
    pattern,
};

single_tests!([
    frames_as_they_should_be,
    split_at_every_byte,
    what_means_nothing_is_skipped,
    acknowledgement_on_the_same_connection,
    acknowledged_when_the_next_one_is_taken,
    acknowledged_before_closing,
    impossible_lengths_close,
    a_large_frame_in_pieces,
    control_frames_between_messages,
]);

fn frames_as_they_should_be(kind: Kind) {
    for mode in [Publish, RoundRobin] {
        let socket = kind.socket(mode);
        let mut peer = RawPeer::connected(&socket.bind_loopback(), 1);
        socket.wait_for_peers(1);
        for payload in [&b""[..], b"abc", &pattern(70_000), &[0; 300]] {
            socket.send(payload);
            assert_eq!(peer.read_data(), payload);
        }
        eventually("all are counted", || socket.stats().messages_delivered == 4);
    }
}

/// Every kind of frame, between numbers that must arrive.
fn mixture() -> Vec<u8> {
    let mut bytes = data(&number(0));
    bytes.extend(frame(HEARTBEAT, b""));
    bytes.extend(data(&number(1)));
    bytes.extend(frame(0x7f, b"from a later version"));
    bytes.extend(data(&number(2)));
    bytes
}

fn split_at_every_byte(kind: Kind) {
    let socket = kind.socket(Publish);
    let mut peer = RawPeer::connected(&socket.bind_loopback(), 1);
    let bytes = mixture();
    for at in 1..bytes.len() {
        peer.send(&bytes[..at]);
        thread::sleep(Duration::from_micros(500));
        peer.send(&bytes[at..]);
        socket.run(|socket| expect_numbers(socket, 0..3));
    }
    peer.trickle(&bytes);
    socket.run(|socket| expect_numbers(socket, 0..3));
}

fn what_means_nothing_is_skipped(kind: Kind) {
    let socket = kind.socket(Publish);
    let mut peer = RawPeer::connected(&socket.bind_loopback(), 1);
    let mut bytes = Vec::new();
    let nothings = [
        vec![0, 0, 0, 0],
        hello(1),
        hello(9),
        frame(HELLO, b""),
        frame(HEARTBEAT, b"with a body"),
        frame(DATA_REQ, b"too short"),
        frame(ACK, b"too short"),
        frame(ACK, &[7; 16]),
        frame(0, b""),
        frame(0xe0, &[0; 100]),
        frame(0xff, &pattern(40_000)),
    ];
    for (value, nothing) in (0..).zip(&nothings) {
        bytes.extend_from_slice(nothing);
        bytes.extend(data(&number(value)));
    }
    let count = nothings.len() as u64;
    // All at once, and again in small pieces.
    peer.send(&bytes);
    socket.run(move |socket| expect_numbers(socket, 0..count));
    for piece in bytes.chunks(1_001) {
        peer.send(piece);
        thread::sleep(Duration::from_micros(300));
    }
    socket.run(move |socket| expect_numbers(socket, 0..count));
    assert_eq!(socket.peers()[0].as_bytes(), &[1; 16], "a second HELLO changes nothing");
    assert_eq!(socket.stats().disconnects, 0);
}

fn acknowledgement_on_the_same_connection(kind: Kind) {
    let socket = kind.socket(Publish);
    let address = socket.bind_loopback();
    let mut asking = RawPeer::connected(&address, 1);
    let mut other = RawPeer::connected(&address, 2);
    socket.wait_for_peers(2);
    for value in 0..10 {
        let msg_id = [value as u8; 16];
        asking.send(&frame(DATA_REQ, &[&msg_id[..], &number(value)].concat()));
        socket.run(move |socket| {
            expect_numbers(socket, value..value + 1);
            // Done with the message: the acknowledgement may go.
            assert!(socket.try_recv().is_err());
            socket.flush();
        });
        assert_eq!(asking.read_past_heartbeats(), Some((ACK, msg_id.to_vec())));
    }
    assert!(other.is_silent_for(Duration::from_millis(50)), "an ACK went elsewhere");
}

/// Frames that ask for acknowledgements; the ids are 16 times the number.
fn requests(numbers: std::ops::Range<u8>) -> Vec<u8> {
    numbers.flat_map(|value| frame(DATA_REQ, &[&[value; 16][..], &number(value.into())].concat())).collect()
}

fn acknowledged_when_the_next_one_is_taken(kind: Kind) {
    let socket = kind.socket(Publish);
    let mut peer = RawPeer::connected(&socket.bind_loopback(), 1);
    // All in one segment, so that nothing but the application's calls tells how far it is.
    peer.send(&requests(0..10));
    socket.run(|socket| expect_numbers(socket, 0..6));
    for value in 0..5 {
        assert_eq!(peer.read_past_heartbeats(), Some((ACK, vec![value; 16])));
    }
    assert!(peer.is_silent_for(Duration::from_millis(100)), "acknowledged what is still in hand, or was not taken");
}

fn acknowledged_before_closing(kind: Kind) {
    let socket = kind.socket(Publish);
    let mut peer = RawPeer::connected(&socket.bind_loopback(), 1);
    peer.send(&requests(0..10));
    socket.run(|socket| {
        expect_numbers(socket, 0..6);
        socket.close()
    });
    // What was taken was done with; what was not goes back to whoever sent it.
    for value in 0..6 {
        assert_eq!(peer.read_past_heartbeats(), Some((ACK, vec![value; 16])));
    }
    assert_eq!(peer.read_past_heartbeats(), None);
}

fn impossible_lengths_close(kind: Kind) {
    let socket = kind.socket(Publish);
    let address = socket.bind_loopback();
    for length in [u32::MAX, 1 << 31] {
        let mut peer = RawPeer::connected(&address, 1);
        peer.send(&data(b"before"));
        assert_eq!(socket.recv(), "before");
        peer.send(&length.to_be_bytes());
        peer.send(&[3]);
        peer.wait_until_closed();
        eventually("the peer is gone", || socket.peers().is_empty());
    }
}

fn a_large_frame_in_pieces(kind: Kind) {
    let socket = kind.socket(Publish);
    let mut peer = RawPeer::connected(&socket.bind_loopback(), 1);
    let large = pattern(2_000_000);
    let mut bytes = data(b"before");
    bytes.extend(data(&large));
    bytes.extend(data(b"after"));
    for (index, piece) in bytes.chunks(77_777).enumerate() {
        peer.send(piece);
        if index % 5 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(socket.recv(), "before");
    let received = socket.run(|socket| socket.recv_within(PATIENCE)).expect("a message");
    assert!(received == large, "{} bytes came", received.len());
    assert_eq!(socket.recv(), "after");
}

fn control_frames_between_messages(kind: Kind) {
    // Heartbeats towards a peer that reads slowly must not land inside a frame.
    let socket = kind.socket_with(|builder| {
        builder.heartbeat_interval(Duration::from_millis(20)).receive_timeout(Duration::from_secs(20))
    });
    let address = socket.bind_loopback();
    let mut peer = RawPeer::dial_narrow(&address, 8 << 10);
    peer.shake_hands(1);
    socket.wait_for_peers(1);
    socket.run(|socket| {
        (0..5).for_each(|index| socket.send(&pattern(200_000 + index)));
        socket.flush();
    });
    thread::sleep(Duration::from_millis(200));
    for index in 0..5 {
        assert!(peer.read_data() == pattern(200_000 + index), "message {index} came altered");
    }
}
