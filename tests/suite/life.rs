//! Connections and sockets from beginning to end: peers, events, heartbeats, closing.

use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::SendMode::{Publish, RoundRobin};
use aiomsg_uring::{Event, SendMode, SocketBuilder};

use crate::common::{
    HEARTBEAT, Kind, PATIENCE, RawPeer, data, eventually, expect_numbers, number, send_numbers, socket_addr,
};

pair_tests!([
    peers_come_and_go,
    events_tell_what_happens,
    idle_connections_live_by_heartbeats,
    closing_delivers_first,
    dropping_delivers_first,
]);

single_tests!([
    waiting_for_peers_ends,
    closing_tells_what_was_not_delivered,
    a_closed_socket_says_so,
    heartbeats_go_out_when_idle,
    heartbeats_count_as_life,
    a_silent_peer_is_dead,
    a_reset_connection_is_noticed,
    dialing_goes_on,
]);

fn peers_come_and_go(one: Kind, other: Kind) {
    let middle = one.socket(Publish);
    let address = middle.bind_loopback();
    let around = [other.socket(Publish), other.socket(Publish)];
    for peer in &around {
        peer.connect(&address);
        peer.wait_for_peers(1);
    }
    middle.wait_for_peers(2);
    let [staying, leaving] = around;
    leaving.close();
    eventually("one peer is left", || middle.peers() == [staying.identity()]);
    drop(staying);
    eventually("no peer is left", || middle.peers().is_empty());
    let stats = middle.stats();
    assert_eq!((stats.connects, stats.disconnects), (2, 2));
}

fn events_tell_what_happens(one: Kind, other: Kind) {
    let binding = one.socket(Publish);
    let connecting = other.socket(Publish);
    connecting.connect(binding.bind_loopback());
    for (socket, peer) in [(&binding, connecting.identity()), (&connecting, binding.identity())] {
        let event = socket.event("connected", |event| matches!(event, Event::Connected { .. }));
        assert!(matches!(event, Event::Connected { identity, .. } if identity == peer), "{event}");
        assert!(event.to_string().contains(&peer.to_string()), "does not say who: {event}");
    }
    let peer = binding.identity();
    binding.close();
    let event = connecting.event("disconnected", |event| matches!(event, Event::Disconnected { .. }));
    assert!(matches!(event, Event::Disconnected { identity, .. } if identity == peer), "{event}");
    connecting.event("trying again", |event| matches!(event, Event::Reconnecting { .. }));
}

/// Intervals that let a test see in seconds what otherwise takes a minute. The timeout is longer than what counts as a gap in our
/// own running, so that a machine that stands still ends nothing.
fn lively(mode: SendMode) -> impl Fn(SocketBuilder) -> SocketBuilder + Send + 'static {
    move |builder| {
        let builder = builder.send_mode(mode).heartbeat_interval(Duration::from_millis(100));
        builder.receive_timeout(Duration::from_millis(1_200))
    }
}

fn idle_connections_live_by_heartbeats(one: Kind, other: Kind) {
    let binding = one.socket_with(lively(Publish));
    let connecting = other.socket_with(lively(Publish));
    connecting.connect(binding.bind_loopback());
    binding.wait_for_peers(1);
    thread::sleep(Duration::from_millis(3_000));
    binding.send(b"still there?");
    assert_eq!(connecting.recv(), "still there?");
    assert_eq!(binding.stats().disconnects + connecting.stats().disconnects, 0);
}

fn closing_delivers_first(one: Kind, other: Kind) {
    const COUNT: u64 = 30_000;
    let sender = one.socket(RoundRobin);
    let receiver = other.socket(RoundRobin);
    receiver.connect(sender.bind_loopback());
    sender.wait_for_peers(1);
    thread::scope(|scope| {
        scope.spawn(|| receiver.run(|socket| expect_numbers(socket, 0..COUNT)));
        let undelivered = sender.run(|socket| {
            send_numbers(socket, 0..COUNT);
            socket.close()
        });
        assert_eq!(undelivered, 0);
    });
}

fn dropping_delivers_first(one: Kind, other: Kind) {
    const COUNT: u64 = 10_000;
    let sender = one.socket(Publish);
    let receiver = other.socket(Publish);
    receiver.connect(sender.bind_loopback());
    sender.wait_for_peers(1);
    sender.run(|socket| (0..COUNT).for_each(|value| socket.send(&number(value))));
    drop(sender);
    receiver.run(|socket| expect_numbers(socket, 0..COUNT));
}

fn waiting_for_peers_ends(kind: Kind) {
    let socket = kind.socket(Publish);
    socket.run(|socket| assert!(socket.wait_for_peers(0, Duration::ZERO).is_ok()));
    let address = socket.bind_loopback();
    let _one = RawPeer::connected(&address, 1);
    socket.wait_for_peers(1);
    let began = Instant::now();
    let outcome = socket.run(|socket| socket.wait_for_peers(2, Duration::from_millis(100)));
    let text = outcome.expect_err("there is one peer only").to_string();
    assert!(began.elapsed() >= Duration::from_millis(100), "gave up early");
    assert!(!text.is_empty());
}

fn closing_tells_what_was_not_delivered(kind: Kind) {
    let socket = kind.socket_with(|builder| builder.linger(Duration::from_millis(200)));
    socket.bind_loopback();
    let began = Instant::now();
    let undelivered = socket.run(|socket| {
        send_numbers(socket, 0..7);
        socket.close()
    });
    assert_eq!(undelivered, 7);
    assert!(began.elapsed() < PATIENCE, "stayed too long");
}

fn a_closed_socket_says_so(kind: Kind) {
    let socket = kind.socket(Publish);
    let address = socket.bind_loopback();
    let mut peer = RawPeer::connected(&address, 1);
    peer.send(&data(b"unread"));
    socket.wait_for_peers(1);
    assert_eq!(socket.close(), 0);
    peer.wait_until_closed();
    // Closing an inline socket consumes it.
    if !kind.inline {
        socket.run(|socket| {
            assert!(socket.try_to_send(b"too late").is_err());
            assert!(socket.peers().is_empty());
            assert_eq!(socket.close(), 0, "closing twice is no error");
        });
    }
    let address = socket_addr(&address);
    eventually("nothing listens any more", || TcpStream::connect(address).is_err());
}

fn heartbeats_go_out_when_idle(kind: Kind) {
    let socket = kind.socket_with(lively(Publish));
    let mut peer = RawPeer::connected(&socket.bind_loopback(), 1);
    for _ in 0..3 {
        assert_eq!(peer.read_frame(), Some((HEARTBEAT, vec![])));
        peer.send(&crate::common::frame(HEARTBEAT, b""));
    }
}

fn heartbeats_count_as_life(kind: Kind) {
    let socket = kind.socket_with(lively(Publish));
    let mut peer = RawPeer::connected(&socket.bind_loopback(), 1);
    for _ in 0..30 {
        peer.send(&crate::common::frame(HEARTBEAT, b""));
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(socket.stats().disconnects, 0);
    assert_eq!(socket.run(|socket| socket.try_recv().ok()), None, "a heartbeat is no message");
    socket.send(b"alive");
    assert_eq!(peer.read_data(), b"alive");
}

fn a_silent_peer_is_dead(kind: Kind) {
    let socket = kind.socket_with(lively(Publish));
    let mut peer = RawPeer::connected(&socket.bind_loopback(), 1);
    socket.wait_for_peers(1);
    let alive = peer.wait_until_closed();
    assert!(alive >= Duration::from_millis(1_000), "declared dead after {alive:?}");
    socket.event("disconnected", |event| matches!(event, Event::Disconnected { .. }));
    assert!(socket.peers().is_empty());
}

fn a_reset_connection_is_noticed(kind: Kind) {
    let socket = kind.socket(Publish);
    let address = socket.bind_loopback();
    let peer = RawPeer::connected(&address, 1);
    socket.wait_for_peers(1);
    peer.reset();
    eventually("the peer is gone", || socket.peers().is_empty());
    let mut peer = RawPeer::connected(&address, 1);
    peer.send(&data(b"back again"));
    assert_eq!(socket.recv(), "back again");
}

fn dialing_goes_on(kind: Kind) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let socket = kind.socket(Publish);
    socket.connect(listener.local_addr().expect("an address"));
    // Closed within and after the handshake; each time the socket comes back.
    let mut peer = RawPeer::accept(&listener);
    assert!(peer.read_frame().is_some());
    drop(peer);
    for round in 0..3 {
        let mut peer = RawPeer::accept(&listener);
        peer.shake_hands(7);
        peer.send(&data(&number(round)));
        socket.run(move |socket| expect_numbers(socket, round..round + 1));
        peer.close();
    }
}
