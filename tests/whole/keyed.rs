//! Messages with keys: a peer that lags gets the newest of each, in order, and all that has no key; a peer that comes late begins with
//! the newest of each. Every message says its number, so that order and gaps are seen; peers that lag are raw and do not read.

use std::collections::BTreeMap;
use std::time::Duration;

use aiomsg_uring::SendMode::Publish;
use aiomsg_uring::{
    DisconnectReason, Event, LagLimit, Replay, SendError, SlowPolicy, Socket, SocketBuilder, Unkeyed, blocking,
};

use crate::common::{PATIENCE, RawPeer, eventually, number};
use crate::{Row, bound, value_of, wait_for_peers};

row_tests!([
    who_lags_gets_the_newest_of_each_key,
    what_has_no_key_is_dropped_only_beyond_the_limit_and_counted,
    too_much_without_a_key_disconnects,
    a_snapshot_has_the_newest_of_each_key_and_no_gap,
    a_peer_that_goes_in_the_midst_is_accounted_for,
    ten_thousand_keys_read_at_a_percent_need_constant_memory,
]);

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const KEYS: u64 = 100;
/// Between two looks at the peer that reads.
const ROUND: u64 = 32;

fn conflating(builder: SocketBuilder, unkeyed: Unkeyed) -> SocketBuilder {
    builder
        .send_mode(Publish)
        .log_bytes_max(4 * MIB)
        .send_buffer_bytes(64 * KIB)
        .slow_policy(SlowPolicy::Conflate { unkeyed })
}

/// One that does not read by itself, and has little room to be sent to.
fn stalled(publisher: &blocking::Socket, name: u8) -> RawPeer {
    let mut peer = RawPeer::dial_narrow(&bound(publisher), 16 * KIB);
    peer.shake_hands(name);
    peer
}

/// The number, in a message of some size.
fn message(value: u64) -> Vec<u8> {
    let mut message = number(value).to_vec();
    message.resize(8 + (value as usize * 31) % 500, 0);
    message
}

/// The key of a message: one in ten has none.
fn key(value: u64) -> Option<u64> {
    (!value.is_multiple_of(10)).then_some((value * 7) % KEYS)
}

fn send(publisher: &blocking::Socket, value: u64) {
    match key(value) {
        Some(key) => publisher.send_keyed(key, message(value)).expect("sent"),
        None => publisher.send(message(value)).expect("sent"),
    }
}

/// Sends these, and sees that a peer that keeps up gets all of them.
fn publish(publisher: &blocking::Socket, healthy: &blocking::Socket, values: std::ops::Range<u64>) {
    let values: Vec<u64> = values.collect();
    for round in values.chunks(ROUND as usize) {
        round.iter().for_each(|value| send(publisher, *value));
        for value in round {
            assert_eq!(healthy.recv_timeout(PATIENCE).expect("a message in time"), message(*value));
        }
    }
}

/// What a peer finds, up to message `last`: rising numbers of whole messages.
fn read_until(peer: &mut RawPeer, last: u64) -> Vec<u64> {
    let mut values: Vec<u64> = Vec::new();
    while values.last() != Some(&last) {
        let payload = peer.read_data();
        let value = value_of(&payload[..8]);
        assert!(payload == message(value), "message {value}");
        assert!(values.last().is_none_or(|before| *before < value), "{value} after {:?}", values.last());
        values.push(value);
    }
    values
}

/// The newest message of each key among those from `from` to before `end`.
fn newest(from: u64, end: u64) -> Vec<u64> {
    let mut newest = BTreeMap::new();
    (from..end).for_each(|value| _ = key(value).map(|key| newest.insert(key, value)));
    newest.into_values().collect()
}

fn balanced(publisher: &blocking::Socket) {
    eventually("everything is counted", || {
        let stats = publisher.stats();
        stats.is_balanced() && stats.messages_queued == 0
    });
}

fn who_lags_gets_the_newest_of_each_key(row: Row) {
    const COUNT: u64 = 20_001;
    let publisher = row.socket(|builder| conflating(builder, Unkeyed::default()));
    let healthy = row.plain(Publish);
    healthy.connect(bound(&publisher)).expect("connecting");
    let mut slow = stalled(&publisher, 200);
    wait_for_peers(&publisher, 2);
    let identity = publisher.peers().into_iter().find(|peer| *peer != healthy.identity()).expect("the slow one");
    publish(&publisher, &healthy, 0..COUNT / 2);
    // What is sent by identity keeps its place too.
    publisher.send_to(identity, message(COUNT / 2)).expect("sent");
    publish(&publisher, &healthy, COUNT / 2 + 1..COUNT);
    assert!(publisher.stats().log_bytes <= 4 * MIB as u64);
    assert_eq!(publisher.stats().keys as usize, newest(0, COUNT).len());
    let values = read_until(&mut slow, COUNT - 1);
    balanced(&publisher);
    let unkeyed: Vec<u64> = values.iter().copied().filter(|value| key(*value).is_none()).collect();
    assert_eq!(unkeyed, (0..COUNT).filter(|value| key(*value).is_none()).collect::<Vec<_>>(), "in order, all of them");
    assert!(newest(0, COUNT).iter().all(|value| values.binary_search(value).is_ok()));
    assert!(values.binary_search(&(COUNT / 2)).is_ok());
    let stats = publisher.stats();
    assert_eq!(stats.messages_conflated, COUNT - values.len() as u64);
    assert!(stats.messages_conflated > COUNT / 2, "{stats:?}");
    assert_eq!((stats.messages_dropped, stats.disconnects), (0, 0));
    let events: Vec<Event> = std::iter::from_fn(|| publisher.try_event()).collect();
    assert!(events.iter().any(|event| matches!(event, Event::Slow { .. })));
    assert!(events.iter().any(|event| matches!(event, Event::Conflated { messages, .. } if *messages > 0)));
}

fn what_has_no_key_is_dropped_only_beyond_the_limit_and_counted(row: Row) {
    const COUNT: u64 = 20_001;
    for unkeyed in [Unkeyed::DropOldest, Unkeyed::DropNewest] {
        let publisher = row.socket(|builder| {
            conflating(builder, unkeyed).lag_limit(LagLimit { bytes: Some(100 * KIB), ..LagLimit::default() })
        });
        let healthy = row.plain(Publish);
        healthy.connect(bound(&publisher)).expect("connecting");
        let mut slow = stalled(&publisher, 200);
        wait_for_peers(&publisher, 2);
        publish(&publisher, &healthy, 0..COUNT);
        // The last has no key, and may be among the newest that are dropped; the next will not be.
        publisher.send_keyed(1, message(COUNT)).expect("sent");
        let values = read_until(&mut slow, COUNT);
        balanced(&publisher);
        let unkeyed = values.iter().filter(|value| key(**value).is_none()).count() as u64;
        let stats = publisher.stats();
        assert_eq!(stats.messages_dropped, COUNT.div_ceil(10) - unkeyed, "{stats:?}");
        assert!(stats.messages_dropped > 0 && stats.messages_conflated > 0);
        assert_eq!(stats.messages_conflated + stats.messages_dropped, COUNT + 1 - values.len() as u64);
        let newest = newest(0, COUNT);
        assert!(newest.iter().all(|value| key(*value) == Some(1) || values.binary_search(value).is_ok()));
    }
}

fn too_much_without_a_key_disconnects(row: Row) {
    let publisher = row.socket(|builder| {
        conflating(builder, Unkeyed::Disconnect).lag_limit(LagLimit { bytes: Some(100 * KIB), ..LagLimit::default() })
    });
    let healthy = row.plain(Publish);
    healthy.connect(bound(&publisher)).expect("connecting");
    let _slow = stalled(&publisher, 200);
    wait_for_peers(&publisher, 2);
    publish(&publisher, &healthy, 0..20_000);
    eventually("the slow one is gone", || publisher.peers() == [healthy.identity()]);
    let mut events = std::iter::from_fn(|| publisher.try_event());
    assert!(events.any(|event| matches!(event, Event::Disconnected { reason: DisconnectReason::Slow, .. })));
    balanced(&publisher);
}

fn a_snapshot_has_the_newest_of_each_key_and_no_gap(row: Row) {
    const COUNT: u64 = 20_000;
    let publisher = row.socket(|builder| builder.send_mode(Publish).replay(Replay::Snapshot));
    // What was sent while nobody was there belongs to the first.
    (0..50).for_each(|value| send(&publisher, value));
    let mut first = stalled(&publisher, 200);
    assert_eq!(read_until(&mut first, 49), (0..50).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        scope.spawn(|| (50..COUNT).for_each(|value| send(&publisher, value)));
        scope.spawn(|| assert_eq!(read_until(&mut first, COUNT - 1), (50..COUNT).collect::<Vec<_>>()));
        for name in 1..20 {
            std::thread::sleep(Duration::from_millis(2));
            let mut late = stalled(&publisher, name);
            scope.spawn(move || {
                let values = read_until(&mut late, COUNT - 1);
                let live = values.chunk_by(|a, b| a + 1 == *b).next_back().expect("something")[0];
                let snapshot = &values[..values.partition_point(|value| *value < live)];
                let newest = newest(0, live);
                assert!(snapshot.iter().all(|value| newest.contains(value)), "nothing that was superseded: {values:?}");
                let missing = newest.iter().filter(|value| !snapshot.contains(value));
                for value in missing {
                    let again = values.iter().any(|later| *later >= live && key(*later) == key(*value));
                    assert!(again, "{value} of key {:?}, live from {live}", key(*value));
                }
            });
        }
    });
    let mut late = stalled(&publisher, 100);
    let mut in_order = newest(0, COUNT);
    in_order.sort_unstable();
    assert_eq!(read_until(&mut late, COUNT - 1), in_order, "in the order of their last updates");
    balanced(&publisher);
    assert!(publisher.forget_key(key(COUNT - 1).expect("a key")) && !publisher.forget_key("no such key"));
    let mut late = stalled(&publisher, 101);
    in_order.pop();
    assert_eq!(read_until(&mut late, in_order[in_order.len() - 1]), in_order);
    balanced(&publisher);
}

fn a_peer_that_goes_in_the_midst_is_accounted_for(row: Row) {
    let publisher = row.socket(|builder| conflating(builder, Unkeyed::DropOldest).replay(Replay::Snapshot));
    let healthy = row.plain(Publish);
    healthy.connect(bound(&publisher)).expect("connecting");
    wait_for_peers(&publisher, 1);
    for round in 0..3 {
        publish(&publisher, &healthy, round * 6000..round * 6000 + 3000);
        let slow = stalled(&publisher, 200);
        wait_for_peers(&publisher, 2);
        publish(&publisher, &healthy, round * 6000 + 3000..round * 6000 + 6000);
        slow.reset();
        eventually("it is gone", || publisher.peers().len() == 1);
        balanced(&publisher);
    }
    let stats = publisher.stats();
    assert!(stats.messages_conflated > 0 && stats.messages_dropped > 0, "{stats:?}");
    assert_eq!(publisher.close().undelivered, 0);
}

fn ten_thousand_keys_read_at_a_percent_need_constant_memory(row: Row) {
    const KEYS: u64 = 10_000;
    const ROUNDS: u64 = 10;
    let publisher = row.socket(|builder| conflating(builder, Unkeyed::default()));
    let mut slow = stalled(&publisher, 200);
    wait_for_peers(&publisher, 1);
    let mut bytes = 0;
    let mut got = Vec::new();
    for round in 0..ROUNDS {
        for key in 0..KEYS {
            let value = round * KEYS + key;
            let mut message = [0; 100];
            message[..8].copy_from_slice(&number(value));
            publisher.send_keyed(key, &message).expect("sent");
            if value.is_multiple_of(100) {
                got.push(value_of(&slow.read_data()[..8]));
            }
        }
        let stats = publisher.stats();
        assert_eq!((stats.keys, stats.disconnects), (KEYS, 0));
        assert!(stats.log_bytes <= 4 * MIB as u64);
        if round == 0 {
            bytes = stats.keyed_bytes;
        }
        assert_eq!(stats.keyed_bytes, bytes, "the table does not grow");
    }
    while got.last() != Some(&(ROUNDS * KEYS - 1)) {
        got.push(value_of(&slow.read_data()[..8]));
    }
    assert!(got.is_sorted_by(|a, b| a < b), "in order");
    assert_eq!(got[got.len() - KEYS as usize..], ((ROUNDS - 1) * KEYS..ROUNDS * KEYS).collect::<Vec<_>>());
    balanced(&publisher);
    assert!(publisher.stats().messages_conflated > KEYS);
}

#[test]
fn keys_are_bounded() {
    let socket = Socket::builder().keys_max(2).keyed_bytes_max(1000).build_blocking().expect("a socket");
    socket.send_keyed("a", "1").expect("sent");
    socket.send_keyed("b", "1").expect("sent");
    let full = SendError::KeysFull { keys_max: 2, bytes_max: 1000 };
    assert_eq!(socket.send_keyed("c", "1"), Err(full));
    assert!(full.to_string().contains("forget"));
    socket.send_keyed("a", "2").expect("sent");
    assert_eq!(socket.send_keyed("a", vec![0; 1000]), Err(full));
    socket.send(vec![0; 1000]).expect("sent");
    assert!(socket.forget_key("b"));
    socket.send_keyed("c", "1").expect("sent");
    assert_eq!(socket.stats().keys, 2);
}
