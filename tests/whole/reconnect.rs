//! Reconnection and identity in the real world: restarts of either end, storms, a peer that is
//! stopped and continued, one that stops reading.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::SendMode::{Publish, RoundRobin};
use aiomsg_uring::{Event, Identity, blocking};

use crate::common::{PATIENCE, Proxy, RawPeer, data, eventually, free_port, number};
use crate::{Row, bound, on, recv_value, wait_for_peers};

row_tests!([
    both_ends_restart,
    a_storm_comes_back_spread_out,
    the_same_identity_from_somewhere_else,
    a_half_open_link_is_replaced,
    published_meanwhile_is_for_those_who_are_there,
    a_peer_that_stops_reading,
    a_stopped_peer_is_suspect_and_recovers,
    cut_links_come_back_soon,
]);

fn both_ends_restart(row: Row) {
    let endpoint = format!("127.0.0.1:{}", free_port());
    let identity = Identity::from([0x42; 16]);
    for round in 0..4 {
        let binding = row.plain(RoundRobin);
        let connecting = row.socket(|builder| builder.send_mode(RoundRobin).identity(identity));
        // Now this one first, now that one.
        if round % 2 == 0 {
            binding.bind(&*endpoint).expect("bound");
            connecting.connect(&*endpoint).expect("connecting");
        } else {
            connecting.connect(&*endpoint).expect("connecting");
            (0..5).for_each(|value| connecting.send(&number(value)).expect("kept"));
            binding.bind(&*endpoint).expect("bound");
            (0..5).for_each(|value| assert_eq!(recv_value(&binding), value));
        }
        wait_for_peers(&binding, 1);
        assert_eq!(binding.peers(), [identity]);
        (0..100).for_each(|value| binding.send(&number(value)).expect("sent"));
        (0..100).for_each(|value| assert_eq!(recv_value(&connecting), value));
        let (first, second) = if round < 2 { (binding, connecting) } else { (connecting, binding) };
        first.close();
        second.close();
    }
}

fn a_storm_comes_back_spread_out(row: Row) {
    const DIALERS: usize = 60;
    let endpoint = format!("127.0.0.1:{}", free_port());
    let engine = row.engine();
    let dialers: Vec<_> = (0..DIALERS).map(|_| on(&engine, |builder| builder)).collect();
    let first = row.plain(Publish);
    first.bind(&*endpoint).expect("bound");
    for dialer in &dialers {
        dialer.connect(&*endpoint).expect("connecting");
    }
    wait_for_peers(&first, DIALERS);
    for dialer in &dialers {
        dialer.send("here").expect("sent");
        first.recv_timeout(PATIENCE).expect("a message in time");
    }
    first.close();
    drop(first);
    let delays: BTreeSet<_> = dialers
        .iter()
        .map(|dialer| {
            let event = event(dialer, |event| matches!(event, Event::Reconnecting { .. }));
            let Event::Reconnecting { delay, .. } = event else { unreachable!() };
            delay
        })
        .collect();
    assert!(delays.len() > DIALERS / 2, "no jitter: {delays:?}");
    let second = row.plain(Publish);
    second.bind(&*endpoint).expect("bound");
    wait_for_peers(&second, DIALERS);
    second.send("welcome back").expect("sent");
    for dialer in &dialers {
        assert_eq!(dialer.recv_timeout(PATIENCE).expect("a message in time"), "welcome back");
    }
    assert_eq!(second.stats().rejects, 0);
}

#[track_caller]
fn event(socket: &blocking::Socket, wanted: impl Fn(&Event) -> bool) -> Event {
    let until = Instant::now() + PATIENCE;
    loop {
        let event = socket.event_timeout(PATIENCE).expect("an event in time");
        if wanted(&event) {
            return event;
        }
        assert!(Instant::now() < until, "no such event");
    }
}

fn the_same_identity_from_somewhere_else(row: Row) {
    let server = row.plain(Publish);
    let addresses = [bound(&server), bound(&server)];
    for round in 0..6u64 {
        let mut peer = RawPeer::connected(&addresses[round as usize % 2], 5);
        eventually("it is there", || server.peers() == [Identity::from([5; 16])]);
        server.send_to(Identity::from([5; 16]), &number(round)).expect("sent");
        assert_eq!(peer.read_data(), number(round));
        if round % 2 == 0 {
            peer.close()
        } else {
            peer.reset()
        }
        eventually("it is gone", || server.peers().is_empty());
    }
    assert_eq!(server.stats().rejects, 0);
}

/// A peer that lost its connection without our noticing comes again: the old link is probed, which
/// ends it, and the newcomer takes its place.
fn a_half_open_link_is_replaced(row: Row) {
    let server = row.plain(Publish);
    let address = bound(&server);
    for round in 0..3 {
        let old = RawPeer::connected(&address, 5);
        wait_for_peers(&server, 1);
        let mut newcomer = RawPeer::dial(&address);
        newcomer.send(&crate::common::hello(5));
        thread::sleep(Duration::from_millis(20));
        old.reset();
        // Sent at once, it arrives when the newcomer is promoted.
        newcomer.send(&data(b"here I am"));
        assert_eq!(server.recv_timeout(PATIENCE).expect("a message in time"), "here I am");
        server.send_to(Identity::from([5; 16]), &number(round)).expect("sent");
        newcomer.expect_hello();
        assert_eq!(newcomer.read_data(), number(round));
        newcomer.close();
        eventually("it is gone", || server.peers().is_empty());
    }
}

fn published_meanwhile_is_for_those_who_are_there(row: Row) {
    let publisher = row.plain(Publish);
    let address = bound(&publisher);
    let mut staying = RawPeer::connected(&address, 1);
    for round in 0..5 {
        let mut passing = RawPeer::connected(&address, 2);
        wait_for_peers(&publisher, 2);
        publisher.send(&number(round * 10)).expect("sent");
        assert_eq!(passing.read_data(), number(round * 10));
        passing.close();
        eventually("it is gone", || publisher.peers().len() == 1);
        publisher.send(&number(round * 10 + 1)).expect("sent");
        assert_eq!(staying.read_data(), number(round * 10));
        assert_eq!(staying.read_data(), number(round * 10 + 1));
    }
    let mut late = RawPeer::connected(&address, 2);
    assert!(late.is_silent_for(Duration::from_millis(50)), "later ones start live");
}

fn a_peer_that_stops_reading(row: Row) {
    const MIB: usize = 1 << 20;
    let publisher = row.socket(|builder| {
        let builder = builder.log_bytes_max(2 * MIB).message_bytes_max(MIB / 2).send_buffer_bytes(64 << 10);
        // Longer than a busy machine keeps one of the good ones from reading; those say nothing, too.
        builder.publish_stall_max(Duration::from_secs(3)).receive_timeout(PATIENCE * 10)
    });
    let address = bound(&publisher);
    let mut good: Vec<_> = (1..=4).map(|name| RawPeer::connected(&address, name)).collect();
    let mut stalled = RawPeer::dial_narrow(&address, 16 << 10);
    stalled.shake_hands(9);
    wait_for_peers(&publisher, 5);
    let payload = |value: u64| [&number(value)[..], &[1; 1_992]].concat();
    const COUNT: u64 = 10_000;
    thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|value| publisher.send(payload(value)).expect("sent")));
        for peer in &mut good {
            scope.spawn(move || (0..COUNT).for_each(|value| assert_eq!(peer.read_data()[..8], number(value))));
        }
    });
    let stalled = Identity::from([9; 16]);
    let told = event(&publisher, |event| matches!(event, Event::Dropped { .. }));
    assert!(matches!(told, Event::Dropped { identity, messages, .. } if identity == stalled && messages > 0), "{told}");
    assert_eq!(publisher.peers().len(), 4);
    eventually("every delivery is counted", || publisher.stats().messages_delivered >= COUNT * 4);
    // What it missed is what filled the log while it held the publisher.
    let dropped = publisher.stats().messages_dropped;
    assert!((1..=2 * MIB as u64 / 2_000).contains(&dropped), "{dropped}");
}

/// A process that is stopped: its kernel still takes what is sent to it, but it says nothing.
fn a_stopped_peer_is_suspect_and_recovers(row: Row) {
    let server = row.socket(|builder| {
        builder.send_mode(RoundRobin).heartbeat_interval(Duration::from_millis(200)).receive_timeout(PATIENCE)
    });
    let address = bound(&server);
    let mut stopped = RawPeer::connected(&address, 1);
    let mut lively = RawPeer::connected(&address, 2);
    wait_for_peers(&server, 2);
    let beat = crate::common::frame(crate::common::HEARTBEAT, b"");
    let suspect = Event::Suspect { identity: Identity::from([1; 16]) };
    eventually("it is suspect", || {
        lively.send(&beat);
        std::iter::from_fn(|| server.try_event()).any(|event| event == suspect)
    });
    // Out of the circle: all work goes to the other one.
    (0..10).for_each(|value| server.send(&number(value)).expect("sent"));
    (0..10).for_each(|value| assert_eq!(lively.read_data(), number(value)));
    stopped.send(&beat);
    event(&server, |event| *event == Event::Recovered { identity: Identity::from([1; 16]) });
    lively.send(&beat);
    (0..4).for_each(|value| server.send(&number(value)).expect("sent"));
    let mut got: Vec<_> = [&mut stopped, &mut lively].map(|peer| [peer.read_data(), peer.read_data()]).concat();
    got.sort_unstable();
    assert_eq!(got, (0..4).map(|value| number(value).to_vec()).collect::<Vec<_>>());
    assert_eq!(server.stats().disconnects, 0);
}

fn cut_links_come_back_soon(row: Row) {
    let server = row.plain(Publish);
    let proxy = Proxy::before(&bound(&server));
    let client = row.plain(Publish);
    client.connect(proxy.address()).expect("connecting");
    let mut delays = Vec::new();
    for round in 0..10 {
        wait_for_peers(&client, 1);
        wait_for_peers(&server, 1);
        client.send(&number(round)).expect("sent");
        assert_eq!(recv_value(&server), round);
        server.send(&number(round)).expect("sent");
        assert_eq!(recv_value(&client), round);
        proxy.cut();
        eventually("both ends have noticed", || {
            server.stats().disconnects > round && client.stats().disconnects > round
        });
        let began = Instant::now();
        wait_for_peers(&client, 1);
        delays.push(began.elapsed());
    }
    // A connection that has lived does not wait for longer each time; a busy machine may make a few.
    delays.sort();
    assert!(delays[4] < Duration::from_secs(1), "back after {delays:?}");
}
