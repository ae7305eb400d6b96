//! Peers that have to go, wherever their links live, and what a closed socket says of each peer.

use std::time::{Duration, Instant};

use aiomsg_uring::SendMode::{Publish, RoundRobin};
use aiomsg_uring::{DisconnectReason, DropCause, Event, Identity};

use crate::common::{PATIENCE, RawPeer, eventually, number, pattern};
use crate::{Row, at_least_once, bound, recv_value, wait_for_peers};

row_tests!([
    each_of_many_goes_by_itself,
    one_that_does_not_read_goes_at_the_deadline,
    what_it_had_goes_to_others,
    what_was_for_it_alone_waits_for_its_return,
    a_report_of_what_each_peer_did_not_get,
]);

fn each_of_many_goes_by_itself(row: Row) {
    const PEERS: usize = 12;
    let publisher = row.plain(Publish);
    let subscribers: Vec<_> = (0..PEERS).map(|_| row.plain(Publish)).collect();
    let addresses: Vec<_> = subscribers.iter().map(bound).collect();
    for address in &addresses {
        publisher.connect(address).expect("connecting");
    }
    wait_for_peers(&publisher, PEERS);
    for (gone, address) in addresses.iter().enumerate() {
        publisher.send(&number(gone as u64)).expect("sent");
        publisher.disconnect_from(address).expect("it connects there");
        assert_eq!(publisher.peers().len(), PEERS - gone - 1);
    }
    for (last, subscriber) in subscribers.iter().enumerate() {
        (0..=last as u64).for_each(|value| assert_eq!(recv_value(subscriber), value));
        eventually("it is gone", || subscriber.peers().is_empty());
        assert!(subscriber.try_recv().is_err());
    }
    let stats = publisher.stats();
    assert_eq!((stats.connects, stats.disconnects, stats.messages_dropped), (PEERS as u64, PEERS as u64, 0));
}

/// A publisher that goes on does not wait for it, and neither do the others.
fn one_that_does_not_read_goes_at_the_deadline(row: Row) {
    let publisher = row.socket(|builder| builder.linger(Duration::from_millis(300)).send_buffer_bytes(16 << 10));
    let address = bound(&publisher);
    let _stuck = RawPeer::dial_narrow(&address, 16 << 10).greeted(7);
    let good = row.plain(Publish);
    good.connect(&address).expect("connecting");
    wait_for_peers(&publisher, 2);
    let sent = 400;
    (0..sent).for_each(|_| publisher.send(pattern(10_000)).expect("sent"));
    let began = Instant::now();
    publisher.disconnect(Identity::from([7; 16])).expect("it is there");
    assert!(began.elapsed() >= Duration::from_millis(290), "it was not given the linger time");
    assert_eq!(publisher.peers(), [good.identity()]);
    // What comes later is not for it, and not counted as lost for it.
    (0..100).for_each(|_| publisher.send(pattern(10_000)).expect("sent"));
    (0..sent + 100).for_each(|_| assert!(good.recv_timeout(PATIENCE).expect("a message in time") == pattern(10_000)));
    let mut dropped = 0;
    let mut reasons = Vec::new();
    for event in std::iter::from_fn(|| publisher.try_event()) {
        match event {
            Event::Dropped { messages, cause: DropCause::LinkEnded, .. } => dropped += messages,
            Event::Disconnected { reason, .. } => reasons.push(reason),
            _ => {}
        }
    }
    assert_eq!(reasons, [DisconnectReason::DisconnectedHere]);
    eventually("all are accounted for", || publisher.stats().messages_delivered + dropped == 2 * sent + 100);
    assert!(dropped > 0 && dropped <= sent);
    eventually("the account balances", || publisher.stats().is_balanced());
}

fn what_it_had_goes_to_others(row: Row) {
    const MESSAGES: u64 = 100;
    let sender = row.socket(|builder| at_least_once(builder).linger(Duration::from_millis(200)));
    let address = bound(&sender);
    let (idle, busy) = (row.manual(), row.plain(RoundRobin));
    for receiver in [&idle, &busy] {
        receiver.connect(&address).expect("connecting");
    }
    wait_for_peers(&sender, 2);
    (0..MESSAGES).for_each(|value| sender.send(&number(value)).expect("sent"));
    let mut values: Vec<_> = (0..MESSAGES / 2).map(|_| recv_value(&busy)).collect();
    // It takes them, and never says so.
    (0..MESSAGES / 2).for_each(|_| drop(idle.recv_message_timeout(PATIENCE).expect("a message in time")));
    // Or it would be back at once, and be sent some of them again.
    idle.disconnect_from(&address).expect("it connects there");
    eventually("it is gone", || sender.peers() == [busy.identity()]);
    values.extend((0..MESSAGES / 2).map(|_| recv_value(&busy)));
    values.sort_unstable();
    assert!(values.into_iter().eq(0..MESSAGES));
}

fn what_was_for_it_alone_waits_for_its_return(row: Row) {
    let sender = row.socket(|builder| at_least_once(builder).linger(Duration::from_millis(200)));
    let address = bound(&sender);
    let mut peer = RawPeer::connected(&address, 5);
    wait_for_peers(&sender, 1);
    let identity = Identity::from([5; 16]);
    sender.send_to(identity, "for you").expect("sent");
    let (first, _) = peer.read_data_req();
    sender.disconnect(identity).expect("it is there");
    peer.wait_until_closed();
    let mut peer = RawPeer::connected(&address, 5);
    let (second, payload) = peer.read_data_req();
    assert_eq!((first, &payload[..]), (second, &b"for you"[..]));
    // And of what is left in the end each peer is named.
    let report = sender.close();
    assert_eq!((report.undelivered, report.peers.len()), (1, 1));
    assert_eq!((report.peers[0].identity, report.peers[0].messages, report.peers[0].bytes), (identity, 1, 28));
}

fn a_report_of_what_each_peer_did_not_get(row: Row) {
    let sent = 400;
    let publisher = row.socket(|builder| builder.linger(Duration::from_millis(300)).send_buffer_bytes(16 << 10));
    let address = bound(&publisher);
    let stuck: Vec<_> = (1..=3).map(|name| RawPeer::dial_narrow(&address, 16 << 10).greeted(name)).collect();
    let good = row.plain(Publish);
    good.connect(&address).expect("connecting");
    wait_for_peers(&publisher, 4);
    (0..sent).for_each(|_| publisher.send(pattern(10_000)).expect("sent"));
    (0..sent).for_each(|_| drop(good.recv_timeout(PATIENCE).expect("a message in time")));
    let report = publisher.close();
    let mut names: Vec<_> = report.peers.iter().map(|peer| peer.identity).collect();
    names.sort_unstable();
    assert_eq!(names, [1, 2, 3].map(|name| Identity::from([name; 16])));
    assert_eq!(report.peers.iter().map(|peer| peer.messages).sum::<u64>(), report.undelivered);
    assert_eq!(publisher.stats().messages_delivered + report.undelivered, 4 * sent);
    for peer in &report.peers {
        let whole = 10_005 * peer.messages;
        assert!(peer.messages > 0 && peer.bytes <= whole && peer.bytes + 10_005 > whole, "{peer:?}");
    }
    drop(stuck);
}
