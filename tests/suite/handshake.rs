//! The handshake as the other end sees it: who speaks first, what is turned away and how.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::Event;
use aiomsg_uring::SendMode::Publish;

use crate::common::{
    DATA, HEARTBEAT, HELLO, Kind, PATIENCE, RawPeer, Sock, data, expect_numbers, frame, hello, number, send_numbers,
};

single_tests!([
    the_binding_end_waits_for_the_first_byte,
    the_connecting_end_speaks_first,
    the_identity_stays_across_reconnects,
    nothing_goes_out_before_their_hello,
    hello_and_data_in_one_segment,
    hello_split_at_every_byte,
    other_versions_are_turned_away,
    a_first_frame_must_be_hello,
    junk_is_turned_away,
    silence_is_turned_away,
    a_second_link_of_an_identity_is_turned_away,
    a_newcomer_replaces_a_dead_link,
]);

fn bound(kind: Kind) -> (Sock, aiomsg_uring::Address) {
    let socket = kind.socket(Publish);
    let address = socket.bind_loopback();
    (socket, address)
}

fn the_binding_end_waits_for_the_first_byte(kind: Kind) {
    let (socket, address) = bound(kind);
    let mut peer = RawPeer::dial(&address);
    assert!(peer.is_silent_for(Duration::from_millis(150)), "spoke first");
    peer.send(&hello(1)[..1]);
    let (kind, body) = peer.read_frame().expect("a HELLO");
    assert_eq!(kind, HELLO);
    assert_eq!(body[0], 1, "the version");
    assert_eq!(body[1..], socket.identity().as_bytes()[..]);
    peer.send(&hello(1)[1..]);
    socket.wait_for_peers(1);
    assert_eq!(socket.peers()[0].as_bytes(), &[1; 16]);
}

fn the_connecting_end_speaks_first(kind: Kind) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let socket = kind.socket(Publish);
    socket.connect(listener.local_addr().expect("an address"));
    let mut peer = RawPeer::accept(&listener);
    let (kind, body) = peer.read_frame().expect("a HELLO");
    assert_eq!((kind, &body[1..]), (HELLO, &socket.identity().as_bytes()[..]));
    assert!(socket.peers().is_empty(), "a peer before its HELLO");
    peer.send(&hello(2));
    socket.wait_for_peers(1);
}

fn the_identity_stays_across_reconnects(kind: Kind) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let socket = kind.socket_with(|builder| builder.identity([0x5c; 16].into()));
    socket.connect(listener.local_addr().expect("an address"));
    for _ in 0..3 {
        let mut peer = RawPeer::accept(&listener);
        let (_, body) = peer.read_frame().expect("a HELLO");
        assert_eq!(body[1..], [0x5c; 16]);
        peer.send(&[hello(1), data(b"no refusal, so come back soon")].concat());
        socket.recv();
        peer.close();
    }
}

fn nothing_goes_out_before_their_hello(kind: Kind) {
    let (socket, address) = bound(kind);
    socket.run(|socket| send_numbers(socket, 0..3));
    let mut peer = RawPeer::dial(&address);
    let hello = hello(1);
    peer.send(&hello[..21]);
    assert_eq!(peer.read_frame().map(|(kind, _)| kind), Some(HELLO));
    assert!(peer.is_silent_for(Duration::from_millis(150)), "spoke before the HELLO was whole");
    peer.send(&hello[21..]);
    for value in 0..3 {
        assert_eq!(peer.read_data(), number(value));
    }
}

fn hello_and_data_in_one_segment(kind: Kind) {
    let (socket, address) = bound(kind);
    let mut peer = RawPeer::dial(&address);
    let mut all = hello(1);
    for value in 0..100 {
        all.extend(data(&number(value)));
    }
    peer.send(&all);
    // Nothing more is sent, so it must not be waited for.
    socket.run(|socket| expect_numbers(socket, 0..100));
}

fn hello_split_at_every_byte(kind: Kind) {
    let (socket, address) = bound(kind);
    let mut all = hello(1);
    all.extend(data(&number(0)));
    for at in 1..all.len() {
        let mut peer = RawPeer::dial(&address);
        peer.send(&all[..at]);
        thread::sleep(Duration::from_millis(2));
        peer.send(&all[at..]);
        socket.run(|socket| expect_numbers(socket, 0..1));
        peer.close();
        crate::common::eventually("the peer is gone", || socket.peers().is_empty());
    }
    let mut peer = RawPeer::dial(&address);
    peer.trickle(&all);
    socket.run(|socket| expect_numbers(socket, 0..1));
}

/// What `opening` gets: the connection is closed, the rejection is counted and told, and no peer
/// or message came of it.
#[track_caller]
fn assert_turned_away(kind: Kind, opening: &[u8]) {
    let (socket, address) = bound(kind);
    let mut peer = RawPeer::dial(&address);
    peer.send(opening);
    peer.wait_until_closed();
    socket.event("rejected", |event| matches!(event, Event::Rejected { .. }));
    assert_eq!(socket.stats().rejects, 1);
    assert!(socket.peers().is_empty());
    assert!(socket.run(|socket| socket.try_recv()).is_err());
    // Whoever comes next is served.
    let mut next = RawPeer::connected(&address, 2);
    next.send(&data(b"good"));
    assert_eq!(socket.recv(), "good");
}

fn other_versions_are_turned_away(kind: Kind) {
    for version in [0, 2, 255] {
        let mut opening = hello(1);
        opening[5] = version;
        assert_turned_away(kind, &opening);
    }
}

fn a_first_frame_must_be_hello(kind: Kind) {
    assert_turned_away(kind, &data(b"no handshake"));
    assert_turned_away(kind, &frame(HEARTBEAT, b""));
    assert_turned_away(kind, &frame(HELLO, &[1; 12]));
}

fn junk_is_turned_away(kind: Kind) {
    assert_turned_away(kind, b"SSH-2.0-OpenSSH_9.6\r\n");
    assert_turned_away(kind, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    assert_turned_away(kind, &[0xff; 64]);
    assert_turned_away(kind, &[0; 4]);
    assert_turned_away(kind, &[0, 0xff, 0xff, 0xff, HELLO]);
}

fn silence_is_turned_away(kind: Kind) {
    let socket = kind.socket_with(|builder| builder.handshake_timeout(Duration::from_millis(200)));
    let address = socket.bind_loopback();
    let mut silent = RawPeer::dial(&address);
    let mut stuck = RawPeer::dial(&address);
    stuck.send(&hello(1)[..10]);
    silent.wait_until_closed();
    stuck.wait_until_closed();
    assert_eq!(socket.stats().rejects, 2);
    assert!(socket.peers().is_empty());
}

fn a_second_link_of_an_identity_is_turned_away(kind: Kind) {
    let (socket, address) = bound(kind);
    let mut old = RawPeer::connected(&address, 1);
    socket.wait_for_peers(1);
    let began = Instant::now();
    let mut second = RawPeer::dial(&address);
    second.send(&hello(1));
    // The old link is asked whether it lives.
    assert_eq!(old.read_frame(), Some((HEARTBEAT, vec![])));
    old.send(&frame(HEARTBEAT, b""));
    socket.send(b"to the old link");
    // The newcomer is held, so that it cannot come back thousands of times a second; of messages it gets none.
    while let Some((kind, _)) = second.read_frame() {
        assert_ne!(kind, DATA, "a message to the second link");
    }
    let held = began.elapsed();
    assert!(held >= Duration::from_millis(90), "held for {held:?} only");
    assert!(held < Duration::from_secs(5), "held for {held:?}");
    assert_eq!(old.read_data(), b"to the old link");
    old.send(&data(b"from the old link"));
    assert_eq!(socket.recv(), "from the old link");
    assert_eq!(socket.stats().rejects, 1);
    assert_eq!(socket.peers().len(), 1);
}

fn a_newcomer_replaces_a_dead_link(kind: Kind) {
    let (socket, address) = bound(kind);
    let old = RawPeer::connected(&address, 1);
    socket.wait_for_peers(1);
    let mut newcomer = RawPeer::dial(&address);
    newcomer.send(&hello(1));
    thread::sleep(Duration::from_millis(30));
    old.close();
    socket.event("disconnected", |event| matches!(event, Event::Disconnected { .. }));
    socket.wait_for_peers(1);
    socket.send(b"to the newcomer");
    let began = Instant::now();
    assert_eq!(newcomer.read_frame().map(|(kind, _)| kind), Some(HELLO));
    assert_eq!(newcomer.read_data(), b"to the newcomer");
    assert!(began.elapsed() < PATIENCE);
    newcomer.send(&data(b"it is me"));
    assert_eq!(socket.recv(), "it is me");
}
