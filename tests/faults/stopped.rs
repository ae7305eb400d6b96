//! Processes that are stopped and continued, or killed and started anew, at either end.

use std::time::Duration;

use aiomsg_uring::{Backend, DeliveryGuarantee, Engine, Event, SendMode, Socket, blocking};

use crate::child::{Child, tell};
use crate::common::{PATIENCE, eventually, free_port, number};
use crate::{engine, hasty, value_of};

on_both!([a_stopped_peer_comes_back, a_short_stop_ends_no_link, both_ends_start_anew]);

const COUNT: u64 = 200;

/// Its answers, each once; whatever was sent again.
#[track_caller]
fn expect_answers(socket: &blocking::Socket, values: std::ops::Range<u64>) {
    let mut missing: std::collections::BTreeSet<u64> = values.collect();
    while !missing.is_empty() {
        let answer = socket.recv_timeout(PATIENCE * 2).unwrap_or_else(|error| panic!("{missing:?}: {error}"));
        // What it answered before it was stopped may come again: the other end has restarted nothing.
        missing.remove(&value_of(&answer));
    }
}

/// Stopped for longer than anybody is patient: its link ends, and when it goes on, all that waited for it arrives.
fn a_stopped_peer_comes_back(backend: Backend) {
    let engine = engine(backend);
    let socket = hasty(&engine, |builder| builder);
    let address = socket.bind("127.0.0.1:0").expect("bound");
    let child = Child::start(backend, &format!("echo connect {address} 60000"));
    socket.wait_for_peers(1, PATIENCE).expect("a peer");
    (0..COUNT).for_each(|value| socket.send(&number(value)).expect("sent"));
    expect_answers(&socket, 0..COUNT);
    child.signal("STOP");
    (COUNT..COUNT * 2).for_each(|value| socket.send(&number(value)).expect("accepted"));
    eventually("it is told and let go", || socket.peers().is_empty());
    let events: Vec<Event> = std::iter::from_fn(|| socket.try_event()).collect();
    assert!(events.iter().any(|event| matches!(event, Event::Suspect { .. })), "{events:?}");
    child.signal("CONT");
    expect_answers(&socket, COUNT..COUNT * 2);
    assert_eq!(socket.stats().messages_expired, 0);
}

/// Stopped for longer than its own receive timeout, while this end is patient: it must not take its own absence for ours.
fn a_short_stop_ends_no_link(backend: Backend) {
    let engine = engine(backend);
    let socket = hasty(&engine, |builder| builder.receive_timeout(PATIENCE * 2).resend(PATIENCE, 10));
    let address = socket.bind("127.0.0.1:0").expect("bound");
    let child = Child::start(backend, &format!("echo connect {address} 1200"));
    socket.wait_for_peers(1, PATIENCE).expect("a peer");
    for round in 0..2 {
        let values = round * COUNT..(round + 1) * COUNT;
        child.signal("STOP");
        if round == 0 {
            values.clone().for_each(|value| socket.send(&number(value)).expect("sent"));
        }
        std::thread::sleep(Duration::from_millis(2_600));
        child.signal("CONT");
        if round > 0 {
            values.clone().for_each(|value| socket.send(&number(value)).expect("sent"));
        }
        expect_answers(&socket, values);
    }
    let stats = socket.stats();
    assert_eq!((stats.connects, stats.disconnects), (1, 0), "{stats:?}");
}

/// Two processes, of which now one, now the other, now both are killed and started anew.
fn both_ends_start_anew(backend: Backend) {
    let endpoint = format!("127.0.0.1:{}", free_port());
    let start = |binds: bool| {
        let role = if binds { format!("echo bind {endpoint} 2000") } else { format!("ask connect {endpoint}") };
        Child::start(backend, &role)
    };
    let mut server = start(true);
    let mut client = start(false);
    for round in 0..6 {
        assert_eq!(client.line(), "answered", "round {round}");
        client.go_on();
        match round % 3 {
            0 => {
                drop(server);
                server = start(true);
            }
            1 => {
                drop(client);
                client = start(false);
            }
            _ => {
                drop((server, client));
                // The one that dials is there first.
                client = start(false);
                server = start(true);
            }
        }
    }
    assert_eq!(client.line(), "answered");
}

fn connected(how: &str, endpoint: &str, socket: &blocking::Socket) {
    match how {
        "bind" => _ = socket.bind(endpoint).expect("bound"),
        _ => socket.connect(endpoint).expect("connecting"),
    }
}

/// A child that sends every message back to whom it is from.
pub(crate) fn echo(how: &str, endpoint: &str, timeout_ms: &str) {
    let engine = Engine::new().expect("an engine");
    let timeout = Duration::from_millis(timeout_ms.parse().expect("a number"));
    let builder = Socket::builder()
        .engine(&engine)
        .send_mode(SendMode::RoundRobin)
        .delivery_guarantee(DeliveryGuarantee::AtLeastOnce)
        .heartbeat_interval(Duration::from_millis(100))
        .receive_timeout(timeout)
        .reconnect_delay(Duration::from_millis(10), Duration::from_millis(100));
    let socket = builder.build_blocking().expect("a socket");
    connected(how, endpoint, &socket);
    while let Ok((from, message)) = socket.recv_identity() {
        socket.send_to(from, message).expect("it was here a moment ago");
    }
}

/// A child that asks until it is killed; it tells of ten answers in a row, and then waits to be told to go on.
pub(crate) fn ask(how: &str, endpoint: &str) {
    let engine = Engine::new().expect("an engine");
    let socket = hasty(&engine, |builder| builder);
    connected(how, endpoint, &socket);
    let mut value = 0;
    loop {
        for _ in 0..10 {
            socket.send(&number(value)).expect("sent");
            while value_of(&socket.recv_timeout(PATIENCE * 2).expect("an answer")) != value {}
            value += 1;
        }
        tell("answered");
        if !crate::child::waits() {
            return;
        }
    }
}
