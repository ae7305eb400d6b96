//! Taking back: `unbind`, `disconnect_from`, `disconnect`, on every kind of socket.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use aiomsg_uring::SendMode::Publish;
use aiomsg_uring::{ControlError, DisconnectReason, Event, Identity};

use crate::common::{Kind, Sock, eventually, number, socket_addr};

pair_tests!([
    unbind_keeps_who_is_there,
    disconnect_from_sends_the_rest_and_stays_away,
    disconnect_sends_the_rest_and_lets_it_come_back,
]);
single_tests!([what_is_not_there]);

fn is_gone(event: &Event, reason: &DisconnectReason) -> bool {
    matches!(event, Event::Disconnected { reason: told, .. } if told == reason)
}

fn unbind(socket: &Sock, endpoint: &str) -> Result<(), ControlError> {
    let endpoint = endpoint.to_owned();
    socket.run(move |socket| socket.unbind(&endpoint))
}

fn unbind_keeps_who_is_there(one: Kind, other: Kind) {
    let (binding, connecting) = (one.socket(Publish), other.socket(Publish));
    let (first, second) = (binding.bind_loopback(), binding.bind_loopback());
    connecting.connect(&first);
    binding.wait_for_peers(1);
    unbind(&binding, &first.to_string()).expect("it listens there");
    assert!(TcpStream::connect(socket_addr(&first)).is_err(), "still open");
    assert!(TcpStream::connect(socket_addr(&second)).is_ok(), "the wrong one was closed");
    binding.send(b"still");
    assert_eq!(connecting.recv(), "still");
    connecting.wait_for_peers(1);
    connecting.send(b"here");
    assert_eq!(binding.recv(), "here");
    let error = unbind(&binding, &first.to_string()).expect_err("it does not any more");
    assert_eq!(error, ControlError::NotBound { endpoint: first.to_string(), bound: vec![second.to_string()] });
    // The address is free.
    assert_eq!(binding.bind(&first.to_string()), first);
    assert_eq!(binding.stats().connects, 1);
}

fn disconnect_from_sends_the_rest_and_stays_away(one: Kind, other: Kind) {
    const MESSAGES: u64 = 2_000;
    let (binding, connecting) = (one.socket(Publish), other.socket(Publish));
    let address = binding.bind_loopback();
    let again = binding.bind_loopback();
    connecting.connect(&address);
    connecting.wait_for_peers(1);
    let endpoint = address.to_string();
    connecting
        .run(move |socket| {
            (0..MESSAGES).for_each(|value| socket.send(&number(value)));
            socket.disconnect_from(&endpoint)
        })
        .expect("it connects there");
    connecting.event("it is told", |event| is_gone(event, &DisconnectReason::DisconnectedHere));
    (0..MESSAGES).for_each(|value| assert_eq!(binding.recv(), &number(value)[..]));
    binding.event("the peer sees an orderly end", |event| is_gone(event, &DisconnectReason::ClosedByPeer));
    thread::sleep(Duration::from_millis(400));
    assert_eq!((connecting.stats().connects, connecting.stats().messages_dropped), (1, 0));
    connecting.connect(&again);
    binding.wait_for_peers(1);
}

fn disconnect_sends_the_rest_and_lets_it_come_back(one: Kind, other: Kind) {
    const MESSAGES: u64 = 2_000;
    let (binding, connecting) = (one.socket(Publish), other.socket(Publish));
    connecting.connect(binding.bind_loopback());
    binding.wait_for_peers(1);
    let peer = connecting.identity();
    let peers = binding.run(move |socket| {
        (0..MESSAGES).for_each(|value| socket.send(&number(value)));
        socket.disconnect(peer).expect("it is there");
        socket.stats().disconnects
    });
    assert_eq!(peers, 1, "answered before it was gone");
    (0..MESSAGES).for_each(|value| assert_eq!(connecting.recv(), &number(value)[..]));
    binding.event("it is told", |event| is_gone(event, &DisconnectReason::DisconnectedHere));
    eventually("it comes back", || connecting.stats().connects == 2);
    binding.wait_for_peers(1);
    binding.send(b"welcome back");
    assert_eq!(connecting.recv(), "welcome back");
    assert_eq!(binding.stats().messages_dropped, 0);
}

fn what_is_not_there(kind: Kind) {
    let socket = kind.socket(Publish);
    socket.connect("127.0.0.1:9");
    let wrong = socket.run(|socket| socket.disconnect_from("127.0.0.1:10")).expect_err("never connected");
    assert_eq!(
        wrong,
        ControlError::NotConnecting { endpoint: "127.0.0.1:10".into(), connecting: vec!["127.0.0.1:9".into()] }
    );
    // While it waits for its next attempt, or is at one.
    socket.run(|socket| socket.disconnect_from("127.0.0.1:9")).expect("it connects there");
    assert!(socket.run(|socket| socket.disconnect_from("127.0.0.1:9")).is_err());
    let nobody = Identity::from([7; 16]);
    let error = socket.run(move |socket| socket.disconnect(nobody)).expect_err("never there");
    assert_eq!(error, ControlError::NotConnected(nobody));
    let error = unbind(&socket, "127.0.0.1:10").expect_err("never bound");
    assert!(error.to_string().contains("(none)"), "no help: {error}");
    assert!(matches!(unbind(&socket, "nonsense"), Err(ControlError::Endpoint(_))));
}
