//! AT_LEAST_ONCE, both parts: what a sender keeps, sends again and hands on; what a receiver
//! acknowledges, when, and what it knows already. The peer is a plain stream where the wire matters.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::SendMode::{Publish, RoundRobin};
use aiomsg_uring::{AckMode, BuildError, DeliveryGuarantee, Event, Identity, Socket, blocking};

use crate::common::{PATIENCE, Proxy, RawPeer, data_req, eventually, number};
use crate::{Row, at_least_once, bound, recv_value, value_of, wait_for_peers};

row_tests!([
    refused_with_publish,
    everything_is_acknowledged,
    sent_again_under_the_same_id,
    handed_over_when_a_link_dies,
    by_identity_is_not_handed_over,
    expires_with_an_event,
    acknowledged_at_the_next_recv,
    acknowledged_on_receipt,
    acknowledged_by_hand,
    acknowledged_by_hand_in_any_order,
    a_duplicate_is_delivered_once_and_acknowledged_twice,
    a_duplicate_of_what_is_in_hand_waits_for_the_hand,
    the_acknowledgement_follows_to_the_next_link,
    a_whole_batch_is_acknowledged,
    nothing_lost_while_links_are_cut,
    a_full_lane_of_duplicates_is_removed,
    a_full_lane_is_handed_over_whole,
]);

const RESEND: Duration = Duration::from_millis(250);
/// Long enough for what must not happen.
const A_WHILE: Duration = Duration::from_millis(120);

fn id(value: u64) -> [u8; 16] {
    let mut id = [0xa5; 16];
    id[8..].copy_from_slice(&number(value));
    id
}

fn refused_with_publish(row: Row) {
    let builder = Socket::builder().send_mode(Publish).delivery_guarantee(DeliveryGuarantee::AtLeastOnce);
    let error = builder.engine(&row.engine()).build().expect_err("PUBLISH cannot be AT_LEAST_ONCE");
    assert!(matches!(error, BuildError::PublishAtLeastOnce));
    let text = error.to_string();
    assert!(text.contains("PUBLISH") && text.contains("ROUNDROBIN"), "no reason, or no way out: {text}");
}

fn everything_is_acknowledged(row: Row) {
    const COUNT: u64 = 30_000;
    let sender = row.reliable(Duration::from_secs(10), 3);
    let address = bound(&sender);
    let receivers = [row.plain(RoundRobin), row.plain(Publish), row.plain(RoundRobin)];
    for receiver in &receivers {
        receiver.connect(&address).expect("connecting");
    }
    wait_for_peers(&sender, receivers.len());
    let shares: Vec<Vec<u64>> = thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|value| sender.send(&number(value)).expect("sent")));
        let receiving: Vec<_> = receivers
            .iter()
            .map(|receiver| {
                scope.spawn(move || {
                    let share = (0..COUNT / 3).map(|_| recv_value(receiver)).collect();
                    // Asking for more says that the last one is done with.
                    assert!(receiver.try_recv().is_err(), "one too many");
                    share
                })
            })
            .collect();
        receiving.into_iter().map(|share| share.join().expect("received")).collect()
    });
    assert!(shares.iter().all(|share| share.is_sorted()), "out of order");
    let mut all = shares.concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..COUNT));
    eventually("all are acknowledged", || sender.stats().messages_acknowledged == COUNT);
    let stats = sender.stats();
    assert_eq!((stats.messages_resent, stats.messages_expired), (0, 0));
    assert_eq!(sender.close().undelivered, 0);
}

fn sent_again_under_the_same_id(row: Row) {
    let sender = row.reliable(RESEND, 10);
    let mut peer = RawPeer::connected(&bound(&sender), 1);
    (0..3).for_each(|value| sender.send(&number(value)).expect("sent"));
    let first: Vec<_> = (0..3).map(|_| peer.read_data_req()).collect();
    let began = Instant::now();
    assert_eq!(first.iter().map(|(_, payload)| value_of(payload)).collect::<Vec<_>>(), [0, 1, 2]);
    peer.acknowledge(&first[1].0);
    let mut again = [peer.read_data_req(), peer.read_data_req()];
    assert!(began.elapsed() >= RESEND * 8 / 10, "again after {:?} already", began.elapsed());
    again.sort_by_key(|(_, payload)| value_of(payload));
    assert_eq!(again, [first[0].clone(), first[2].clone()], "id and payload stay");
    peer.acknowledge(&first[0].0);
    peer.acknowledge(&first[2].0);
    // Once more for the same message, and one that was never sent: neither means anything.
    peer.acknowledge(&first[2].0);
    peer.acknowledge(&id(77));
    eventually("all are acknowledged", || sender.stats().messages_acknowledged == 3);
    assert!(peer.is_silent_for(RESEND * 2), "sent again though acknowledged");
    assert_eq!(sender.stats().messages_resent, 2);
    assert_eq!(sender.close().undelivered, 0);
}

fn handed_over_when_a_link_dies(row: Row) {
    const COUNT: usize = 40;
    let sender = row.reliable(Duration::from_secs(20), 3);
    let address = bound(&sender);
    let mut dying = RawPeer::connected(&address, 1);
    let mut heir = RawPeer::connected(&address, 2);
    wait_for_peers(&sender, 2);
    (0..COUNT as u64).for_each(|value| sender.send(&number(value)).expect("sent"));
    let lost: BTreeSet<_> = (0..COUNT / 2).map(|_| dying.read_data_req()).collect();
    let own: BTreeSet<_> = (0..COUNT / 2).map(|_| heir.read_data_req()).collect();
    // One of them is acknowledged before the end.
    let acknowledged = lost.first().cloned().expect("some");
    dying.acknowledge(&acknowledged.0);
    eventually("the acknowledgement has come", || sender.stats().messages_acknowledged == 1);
    dying.reset();
    let inherited: BTreeSet<_> = (0..COUNT / 2 - 1).map(|_| heir.read_data_req()).collect();
    let expected: BTreeSet<_> = lost.iter().filter(|message| **message != acknowledged).cloned().collect();
    assert_eq!(inherited, expected, "the same messages under the same ids");
    own.iter().chain(&inherited).for_each(|(msg_id, _)| heir.acknowledge(msg_id));
    eventually("all are acknowledged", || sender.stats().messages_acknowledged == COUNT as u64);
    assert!(heir.is_silent_for(A_WHILE));
    assert_eq!(sender.close().undelivered, 0);
}

fn by_identity_is_not_handed_over(row: Row) {
    let sender = row.reliable(Duration::from_secs(20), 3);
    let address = bound(&sender);
    let mut dying = RawPeer::connected(&address, 1);
    let mut other = RawPeer::connected(&address, 2);
    wait_for_peers(&sender, 2);
    (0..10).for_each(|value| sender.send_to(Identity::from([1; 16]), &number(value)).expect("sent"));
    let before: Vec<_> = (0..10).map(|_| dying.read_data_req()).collect();
    dying.close();
    eventually("it is gone", || sender.peers().len() == 1);
    assert!(other.is_silent_for(A_WHILE), "a message of somebody else");
    let mut back = RawPeer::connected(&address, 1);
    let mut after: Vec<_> = (0..10).map(|_| back.read_data_req()).collect();
    after.sort_by_key(|(_, payload)| value_of(payload));
    assert_eq!(after, before, "the same messages under the same ids");
    after.iter().for_each(|(msg_id, _)| back.acknowledge(msg_id));
    eventually("all are acknowledged", || sender.stats().messages_acknowledged == 10);
}

fn expires_with_an_event(row: Row) {
    let sender = row.reliable(Duration::from_millis(100), 3);
    let mut peer = RawPeer::connected(&bound(&sender), 1);
    wait_for_peers(&sender, 1);
    sender.send("nobody says thanks").expect("sent");
    let copies: BTreeSet<_> = (0..3).map(|_| peer.read_data_req()).collect();
    assert_eq!(copies.len(), 1, "three times the same");
    eventually("the loss is told", || {
        std::iter::from_fn(|| sender.try_event()).any(|event| {
            assert!(!event.to_string().is_empty());
            event == Event::Expired { identity: Some(Identity::from([1; 16])), messages: 1 }
        })
    });
    assert!(peer.is_silent_for(Duration::from_millis(300)), "sent again though expired");
    assert_eq!(sender.stats().messages_expired, 1);
    // The connection is as good as before.
    sender.send("and on").expect("sent");
    assert_eq!(peer.read_data_req().1, b"and on");
}

fn acknowledged_at_the_next_recv(row: Row) {
    let receiver = row.plain(Publish);
    let mut peer = RawPeer::connected(&bound(&receiver), 1);
    (0..5).for_each(|value| peer.send(&data_req(id(value), &number(value))));
    for value in 0..5 {
        assert_eq!(recv_value(&receiver), value);
    }
    // It has the fifth one in hand, and perhaps it still has to tell of the others.
    assert!(receiver.try_recv().is_err());
    let acknowledged: Vec<_> = (0..5).map(|_| peer.read_ack()).collect();
    assert_eq!(acknowledged, (0..5).map(id).collect::<Vec<_>>());
    assert!(peer.is_silent_for(A_WHILE));
    // One that is in hand is not acknowledged.
    peer.send(&data_req(id(5), &number(5)));
    assert_eq!(recv_value(&receiver), 5);
    assert!(peer.is_silent_for(A_WHILE), "acknowledged while in hand");
}

fn acknowledged_on_receipt(row: Row) {
    let receiver = row.socket(|builder| builder.ack_mode(AckMode::OnReceipt));
    let mut peer = RawPeer::connected(&bound(&receiver), 1);
    (0..5).for_each(|value| peer.send(&data_req(id(value), &number(value))));
    let acknowledged: Vec<_> = (0..5).map(|_| peer.read_ack()).collect();
    assert_eq!(acknowledged, (0..5).map(id).collect::<Vec<_>>());
    (0..5).for_each(|value| assert_eq!(recv_value(&receiver), value));
    assert!(peer.is_silent_for(A_WHILE), "acknowledged twice");
}

fn acknowledged_by_hand(row: Row) {
    let receiver = row.manual();
    let mut peer = RawPeer::connected(&bound(&receiver), 1);
    (0..3).for_each(|value| peer.send(&data_req(id(value), &number(value))));
    for value in 0..3 {
        let message = receiver.recv_message_timeout(PATIENCE).expect("a message in time");
        assert_eq!((message.identity(), value_of(message.payload())), (Identity::from([1; 16]), value));
        assert!(peer.is_silent_for(A_WHILE), "acknowledged by itself");
        message.ack();
        assert_eq!(peer.read_ack(), id(value));
    }
    // A message that wants no acknowledgement gets none.
    peer.send(&crate::common::data(b"plain"));
    let plain = receiver.recv_message_timeout(PATIENCE).expect("a message in time");
    plain.ack();
    assert!(peer.is_silent_for(A_WHILE), "an ACK for DATA");
}

fn acknowledged_by_hand_in_any_order(row: Row) {
    let receiver = row.manual();
    let address = bound(&receiver);
    let mut peers: Vec<_> = (1..=4).map(|name| RawPeer::connected(&address, name)).collect();
    for (name, peer) in (0..).zip(&mut peers) {
        (0..10).for_each(|value| peer.send(&data_req(id(name * 10 + value), &number(name * 10 + value))));
    }
    let mut messages: Vec<_> =
        (0..40).map(|_| receiver.recv_message_timeout(PATIENCE).expect("a message in time")).collect();
    messages.sort_by_key(|message| std::cmp::Reverse(value_of(message.payload())));
    // From another thread, as a pool of workers would.
    thread::scope(|scope| scope.spawn(|| messages.iter().for_each(|message| message.ack())).join()).expect("done");
    for (name, peer) in (0..).zip(&mut peers) {
        let mut acknowledged: Vec<_> = (0..10).map(|_| peer.read_ack()).collect();
        acknowledged.sort_unstable();
        assert_eq!(acknowledged, (0..10).map(|value| id(name * 10 + value)).collect::<Vec<_>>());
    }
}

fn a_duplicate_is_delivered_once_and_acknowledged_twice(row: Row) {
    for ack_mode in [AckMode::Automatic, AckMode::Manual, AckMode::OnReceipt] {
        let receiver = row.socket(|builder| builder.ack_mode(ack_mode));
        let mut peer = RawPeer::connected(&bound(&receiver), 1);
        peer.send(&data_req(id(1), &number(1)));
        let message = receiver.recv_message_timeout(PATIENCE).expect("a message in time");
        assert_eq!(value_of(message.payload()), 1);
        message.ack();
        assert!(receiver.try_recv().is_err(), "one too many");
        assert_eq!(peer.read_ack(), id(1));
        // The ACK was lost, say: the same again, between two others.
        let frames = [data_req(id(2), &number(2)), data_req(id(1), &number(1)), data_req(id(3), &number(3))];
        peer.send(&frames.concat());
        for value in [2, 3] {
            let message = receiver.recv_message_timeout(PATIENCE).expect("a message in time");
            assert_eq!(value_of(message.payload()), value, "delivered twice, or not at all");
            message.ack();
        }
        assert!(receiver.try_recv().is_err(), "one too many");
        let acknowledged: BTreeSet<_> = (0..3).map(|_| peer.read_ack()).collect();
        assert_eq!(acknowledged, BTreeSet::from([id(1), id(2), id(3)]), "{ack_mode:?}");
        assert_eq!(receiver.stats().duplicates_removed, 1);
    }
}

/// An ACK says that the application is done. While it is not, a resend must not get one, or a
/// receiver that is killed now has lost the message.
fn a_duplicate_of_what_is_in_hand_waits_for_the_hand(row: Row) {
    for ack_mode in [AckMode::Automatic, AckMode::Manual] {
        let receiver = row.socket(|builder| builder.ack_mode(ack_mode));
        let mut peer = RawPeer::connected(&bound(&receiver), 1);
        // One in hand, one that waits in the receive queue; both come again.
        (1..=2).for_each(|value| peer.send(&data_req(id(value), &number(value))));
        let in_hand = receiver.recv_message_timeout(PATIENCE).expect("a message in time");
        (1..=2).for_each(|value| peer.send(&data_req(id(value), &number(value))));
        assert!(peer.is_silent_for(A_WHILE), "{ack_mode:?}: acknowledged while the application works on it");
        in_hand.ack();
        let second = receiver.recv_message_timeout(PATIENCE).expect("a message in time");
        assert_eq!(value_of(second.payload()), 2);
        second.ack();
        assert!(receiver.try_recv().is_err(), "one too many");
        // Each at least once: the sender needs no more.
        let mut acknowledged = BTreeSet::new();
        while acknowledged.len() < 2 {
            acknowledged.insert(peer.read_ack());
        }
        assert_eq!(acknowledged, BTreeSet::from([id(1), id(2)]));
    }
}

fn the_acknowledgement_follows_to_the_next_link(row: Row) {
    let receiver = row.manual();
    let address = bound(&receiver);
    let mut peer = RawPeer::connected(&address, 1);
    peer.send(&data_req(id(1), &number(1)));
    let message = receiver.recv_message_timeout(PATIENCE).expect("a message in time");
    peer.close();
    eventually("it is gone", || receiver.peers().is_empty());
    // It comes back, and has seen no ACK.
    let mut peer = RawPeer::connected(&address, 1);
    peer.send(&data_req(id(1), &number(1)));
    peer.send(&data_req(id(2), &number(2)));
    let second = receiver.recv_message_timeout(PATIENCE).expect("a message in time");
    assert_eq!(value_of(second.payload()), 2, "delivered twice");
    assert!(peer.is_silent_for(A_WHILE), "acknowledged while the application works on it");
    message.ack();
    assert_eq!(peer.read_ack(), id(1), "on the link where it arrived last");
    second.ack();
    assert_eq!(peer.read_ack(), id(2));
}

fn a_whole_batch_is_acknowledged(row: Row) {
    const COUNT: u64 = 1_000;
    let receiver = row.plain(Publish);
    let mut peer = RawPeer::connected(&bound(&receiver), 1);
    let frames: Vec<u8> = (0..COUNT).flat_map(|value| data_req(id(value), &number(value))).collect();
    peer.send(&frames);
    let mut next = 0;
    while next < COUNT {
        for payload in &receiver.recv_batch_timeout(PATIENCE).expect("messages in time") {
            assert_eq!(value_of(payload), next);
            next += 1;
        }
    }
    assert!(receiver.recv_batch_timeout(A_WHILE).is_err());
    for value in 0..COUNT {
        assert_eq!(peer.read_ack(), id(value));
    }
}

/// Two receivers of ours behind proxies that cut every connection, again and again.
fn nothing_lost_while_links_are_cut(row: Row) {
    const COUNT: u64 = 20_000;
    let sender = row.socket(|builder| {
        let builder = at_least_once(builder).resend(Duration::from_millis(500), 100);
        builder.reconnect_delay(Duration::from_millis(5), Duration::from_millis(50))
    });
    let receivers: Vec<blocking::Socket> = (0..2).map(|_| row.plain(RoundRobin)).collect();
    let proxies: Vec<_> = receivers.iter().map(|receiver| Proxy::before(&bound(receiver))).collect();
    for proxy in &proxies {
        sender.connect(proxy.address()).expect("connecting");
    }
    wait_for_peers(&sender, 2);
    let got: Vec<Vec<u64>> = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            for value in 0..COUNT {
                sender.send(&number(value)).expect("sent");
                if value % 10 == 0 {
                    thread::sleep(Duration::from_micros(500));
                }
            }
        });
        let receive = |receiver: &blocking::Socket| {
            let message = || receiver.recv_timeout(PATIENCE / 3).ok();
            std::iter::from_fn(message).map(|message| value_of(&message)).collect()
        };
        let receiving: Vec<_> = receivers.iter().map(|receiver| scope.spawn(move || receive(receiver))).collect();
        for cut in 0..20 {
            thread::sleep(Duration::from_millis(50));
            proxies[cut % 2].cut();
        }
        sending.join().expect("all sent");
        receiving.into_iter().map(|got| got.join().expect("received")).collect()
    });
    let all: BTreeSet<u64> = got.iter().flatten().copied().collect();
    assert!(all.into_iter().eq(0..COUNT), "lost or invented");
    for got in &got {
        let different = got.iter().collect::<BTreeSet<_>>().len();
        assert_eq!(got.len(), different, "what comes twice to the same receiver is recognised");
    }
    eventually("all are acknowledged", || sender.stats().messages_acknowledged == COUNT);
    assert_eq!(sender.stats().messages_expired, 0);
    let cuts: usize = proxies.iter().map(Proxy::cuts).sum();
    assert!(cuts > 8, "{cuts} connections were cut, hardly any");
}

/// As many as one link can have under way, all of them received, none acknowledged: then the link
/// is cut, and all of them come again.
fn a_full_lane_of_duplicates_is_removed(row: Row) {
    const COUNT: u64 = 10_000;
    let sender = row.reliable(Duration::from_secs(30), 3);
    let receiver = row.manual();
    let proxy = Proxy::before(&bound(&receiver));
    sender.connect(proxy.address()).expect("connecting");
    (0..COUNT).for_each(|value| sender.send(&number(value)).expect("sent"));
    // A sender may hold some back until others are acknowledged.
    let mut held = Vec::new();
    while let Ok(message) = receiver.recv_message_timeout(Duration::from_secs(1)) {
        assert_eq!(value_of(message.payload()), held.len() as u64);
        held.push(message);
    }
    assert!(!held.is_empty());
    proxy.cut();
    eventually("they come again", || receiver.stats().duplicates_removed as usize >= held.len());
    held.iter().for_each(|message| message.ack());
    for value in held.len() as u64..COUNT {
        let message = receiver.recv_message_timeout(PATIENCE).expect("a message in time");
        assert_eq!(value_of(message.payload()), value, "delivered twice, or not at all");
        message.ack();
    }
    eventually("all are acknowledged", || sender.stats().messages_acknowledged == COUNT);
    assert!(receiver.try_recv().is_err(), "one too many");
}

/// As many as one link can have under way, none acknowledged: when it dies, its heir gets all.
fn a_full_lane_is_handed_over_whole(row: Row) {
    const COUNT: u64 = 10_000;
    let sender = row.reliable(Duration::from_secs(30), 3);
    let address = bound(&sender);
    let mut dying = RawPeer::connected(&address, 1);
    wait_for_peers(&sender, 1);
    (0..COUNT).for_each(|value| sender.send(&number(value)).expect("sent"));
    let mut received = 0;
    while !dying.is_silent_for(Duration::from_millis(500)) {
        dying.read_data_req();
        received += 1;
    }
    dying.reset();
    eventually("it is gone", || sender.peers().is_empty());
    let mut heir = RawPeer::connected(&address, 2);
    let mut inherited = BTreeSet::new();
    while (inherited.len() as u64) < COUNT && !heir.is_silent_for(Duration::from_secs(2)) {
        let (msg_id, payload) = heir.read_data_req();
        inherited.insert(value_of(&payload));
        heir.acknowledge(&msg_id);
    }
    let lost = COUNT - inherited.len() as u64;
    assert_eq!(lost, 0, "lost of the {received} that the dead link had: {:?}", sender.stats());
}
