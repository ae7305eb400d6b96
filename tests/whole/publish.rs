//! PUBLISH with links on every shard, and what is received from all of them.

use std::collections::BTreeMap;
use std::thread;

use aiomsg_uring::SendMode::Publish;
use aiomsg_uring::{Identity, blocking};

use crate::common::{PATIENCE, RawPeer, data, eventually, number, pattern};
use crate::{Row, bound, on, recv_value, value_of, wait_for_peers};

row_tests!([
    links_on_every_shard_in_order,
    received_from_all_shards,
    subscribers_come_and_go_under_traffic,
    sizes_keep_their_order,
    bound_and_connected_on_every_shard,
    one_engine_for_both_ends,
]);

/// So many that every one of four shards has some: were identities shared out badly, the chance of
/// an empty shard would be below 1 %.
const PEERS: usize = 20;

fn links_on_every_shard_in_order(row: Row) {
    const COUNT: u64 = 5_000;
    let publisher = row.plain(Publish);
    let address = bound(&publisher);
    let engine = row.engine();
    let subscribers: Vec<_> = (0..PEERS).map(|_| on(&engine, |builder| builder.send_mode(Publish))).collect();
    for subscriber in &subscribers {
        subscriber.connect(&address).expect("connecting");
    }
    wait_for_peers(&publisher, PEERS);
    thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|value| publisher.send(&number(value)).expect("sent")));
        for subscriber in &subscribers {
            scope.spawn(move || (0..COUNT).for_each(|value| assert_eq!(recv_value(subscriber), value)));
        }
    });
    eventually("every delivery is counted", || publisher.stats().messages_delivered == COUNT * PEERS as u64);
    let stats = publisher.stats();
    assert_eq!((stats.messages_sent, stats.messages_dropped, stats.disconnects), (COUNT, 0, 0));
    subscribers.iter().for_each(|subscriber| assert!(subscriber.try_recv().is_err(), "one too many"));
    assert_eq!(publisher.close().undelivered, 0);
}

fn received_from_all_shards(row: Row) {
    const COUNT: u64 = 2_000;
    let receiver = row.plain(Publish);
    let address = bound(&receiver);
    let mut peers: Vec<_> = (1..=PEERS as u8).map(|name| RawPeer::connected(&address, name)).collect();
    thread::scope(|scope| {
        for peer in &mut peers {
            scope.spawn(move || {
                for values in (0..COUNT).collect::<Vec<_>>().chunks(50) {
                    let frames: Vec<u8> = values.iter().flat_map(|&value| data(&number(value))).collect();
                    peer.send(&frames);
                }
            });
        }
        let mut next: BTreeMap<Identity, u64> = BTreeMap::new();
        for _ in 0..COUNT * PEERS as u64 {
            let (from, message) = receiver.recv_identity_timeout(PATIENCE).expect("a message in time");
            let expected = next.entry(from).or_default();
            assert_eq!(value_of(&message), *expected, "from {from}");
            *expected += 1;
        }
        assert_eq!(next.len(), PEERS);
    });
    assert!(receiver.try_recv().is_err());
}

fn subscribers_come_and_go_under_traffic(row: Row) {
    const COUNT: u64 = 30_000;
    let publisher = row.plain(Publish);
    let address = bound(&publisher);
    let staying: Vec<_> = (0..6).map(|_| row.plain(Publish)).collect();
    for subscriber in &staying {
        subscriber.connect(&address).expect("connecting");
    }
    wait_for_peers(&publisher, staying.len());
    let engine = row.engine();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            for value in 0..COUNT {
                publisher.send(&number(value)).expect("sent");
                if value % 100 == 0 {
                    thread::yield_now();
                }
            }
        });
        for subscriber in &staying {
            scope.spawn(move || (0..COUNT).for_each(|value| assert_eq!(recv_value(subscriber), value)));
        }
        // Each takes a stretch out of the middle, without a gap in it.
        while !sending.is_finished() {
            let passing = on(&engine, |builder| builder.send_mode(Publish));
            passing.connect(&address).expect("connecting");
            let Ok(first) = passing.recv_timeout(PATIENCE / 30) else { continue };
            let mut next = value_of(&first) + 1;
            while next < COUNT && !next.is_multiple_of(997) {
                assert_eq!(recv_value(&passing), next);
                next += 1;
            }
        }
    });
    eventually("those who passed are gone", || publisher.peers().len() == staying.len());
    let stats = publisher.stats();
    assert!(stats.messages_delivered >= COUNT * staying.len() as u64);
    assert!(staying.iter().all(|subscriber| subscriber.stats().disconnects == 0));
}

fn sizes_keep_their_order(row: Row) {
    let length_of = |index: usize| if index.is_multiple_of(5) { 17_000 + 131 * index } else { index % 200 };
    let publisher = row.plain(Publish);
    let address = bound(&publisher);
    let subscribers: Vec<_> = (0..5).map(|_| row.plain(Publish)).collect();
    for subscriber in &subscribers {
        subscriber.connect(&address).expect("connecting");
    }
    wait_for_peers(&publisher, subscribers.len());
    thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0..500 {
                match index % 2 {
                    0 => publisher.send(pattern(length_of(index))).expect("sent"),
                    _ => publisher.send(pattern(length_of(index))).expect("sent"),
                }
            }
        });
        for subscriber in &subscribers {
            scope.spawn(move || {
                for index in 0..500 {
                    let message = subscriber.recv_timeout(PATIENCE).expect("a message in time");
                    assert!(message == pattern(length_of(index)), "message {index} came altered");
                }
            });
        }
    });
}

fn bound_and_connected_on_every_shard(row: Row) {
    let middle = row.plain(Publish);
    let address = bound(&middle);
    let around: Vec<_> = (0..12).map(|_| row.plain(Publish)).collect();
    for (index, peer) in around.iter().enumerate() {
        match index % 2 {
            0 => peer.connect(&address).expect("connecting"),
            _ => middle.connect(bound(peer)).expect("connecting"),
        }
    }
    wait_for_peers(&middle, around.len());
    middle.send("to all").expect("sent");
    for peer in &around {
        assert_eq!(peer.recv_timeout(PATIENCE).expect("a message in time"), "to all");
        peer.send("to the middle").expect("sent");
    }
    let mut senders: Vec<_> =
        around.iter().map(|_| middle.recv_identity_timeout(PATIENCE).expect("a message in time").0).collect();
    let mut peers: Vec<_> = around.iter().map(blocking::Socket::identity).collect();
    senders.sort_unstable();
    peers.sort_unstable();
    assert_eq!(senders, peers);
}

fn one_engine_for_both_ends(row: Row) {
    let engine = row.engine();
    assert_eq!(engine.info().shards, row.shards);
    let sockets: Vec<_> = (0..40).map(|_| on(&engine, |builder| builder)).collect();
    // A chain: each socket publishes to the next one.
    for pair in sockets.windows(2) {
        pair[1].connect(bound(&pair[0])).expect("connecting");
        wait_for_peers(&pair[0], 1);
    }
    for round in 0..20 {
        sockets[0].send(&number(round)).expect("sent");
        for pair in sockets.windows(2) {
            let value = recv_value(&pair[1]);
            assert_eq!(value, round);
            if pair[1].identity() != sockets[39].identity() {
                pair[1].send(&number(value)).expect("sent");
                // It goes back too: PUBLISH is to every peer.
                assert_eq!(recv_value(&pair[0]), round);
            }
        }
    }
}
