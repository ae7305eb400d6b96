//! Every message that was accepted for a peer is accounted for: delivered, dropped for a cause, queued, pending or expired. Asked at
//! rest, in every mode, while links live and after they have died.

use std::time::Duration;
use std::{iter, thread};

use aiomsg_uring::SendMode::{Publish, RoundRobin};
use aiomsg_uring::{DropCause, Identity, PeerStats, Stats, blocking};

use crate::common::{DATA, PATIENCE, RawPeer, eventually, number};
use crate::{Row, at_least_once, bound, wait_for_peers};

row_tests!([
    what_is_published,
    what_goes_around_a_circle,
    what_is_kept_until_it_is_acknowledged,
    a_peer_that_comes_again,
    what_a_close_leaves,
]);

/// The counters once they say so; they add up whenever the socket is at rest, and so do those of each peer.
#[track_caller]
fn at_rest(socket: &blocking::Socket, what: &str, is_so: impl Fn(&Stats) -> bool) -> Stats {
    let mut stats = socket.stats();
    eventually(what, || {
        stats = socket.stats();
        is_so(&stats) && stats.is_balanced() && socket.peer_stats().iter().all(|peer| peer.balance() == 0)
    });
    assert_eq!(stats.drops.total(), stats.messages_dropped);
    stats
}

fn peer(socket: &blocking::Socket, name: u8) -> PeerStats {
    socket.peer_stats_of(Identity::from([name; 16])).expect("connected")
}

/// A peer with small buffers, so that what it does not read waits here.
fn narrow(socket: &blocking::Socket, address: &aiomsg_uring::Address, name: u8) -> RawPeer {
    let peers = socket.peers().len();
    let mut peer = RawPeer::dial_narrow(address, 16 << 10);
    peer.shake_hands(name);
    wait_for_peers(socket, peers + 1);
    peer
}

fn what_is_published(row: Row) {
    const COUNT: u64 = 3_000;
    let publisher = row.socket(|builder| {
        let builder = builder.send_mode(Publish).send_buffer_bytes(64 << 10).receive_timeout(4 * PATIENCE);
        builder.publish_stall_max(4 * PATIENCE)
    });
    let address = bound(&publisher);
    (0..10).for_each(|value| publisher.send(&number(value)).expect("sent"));
    let stats = at_rest(&publisher, "a backlog counts once, for whoever comes", |stats| stats.messages_queued == 10);
    assert_eq!((stats.messages_sent, stats.messages_addressed), (10, 10));
    let mut first = narrow(&publisher, &address, 1);
    (0..10).for_each(|value| assert_eq!(first.read_data(), number(value)));
    at_rest(&publisher, "the backlog is delivered", |stats| stats.messages_delivered == 10);

    let stalled = narrow(&publisher, &address, 2);
    let payload = [7; 1_000];
    for _ in 0..COUNT {
        publisher.send(&payload).expect("sent");
    }
    publisher.send_to(Identity::from([2; 16]), "for the stalled one").expect("sent");
    publisher.send_to(Identity::from([1; 16]), "for the other").expect("sent");
    for _ in 0..COUNT {
        assert_eq!(first.read_data(), payload);
    }
    assert_eq!(first.read_data(), b"for the other");
    let stats = at_rest(&publisher, "the other one has all", |_| peer(&publisher, 1).lag.messages == 0);
    let (one, other) = (peer(&publisher, 1), peer(&publisher, 2));
    assert_eq!((one.messages_addressed, one.messages_delivered), (10 + COUNT + 1, 10 + COUNT + 1));
    assert_eq!(other.messages_addressed, COUNT + 1);
    assert!(other.lag.messages > COUNT / 2 && other.lag.bytes > 1_000 * COUNT / 2, "{other:?}");
    assert!(!other.lag.age.is_zero() && other.lag.age < other.connected_for + Duration::from_secs(1), "{other:?}");
    assert_eq!(stats.messages_queued, other.lag.messages);
    assert_eq!(stats.messages_delivered, one.messages_delivered + other.messages_delivered);
    assert_eq!((stats.lag.messages, stats.skew.messages), (other.lag.messages, other.lag.messages));

    stalled.reset();
    let stats = at_rest(&publisher, "what it had not got is dropped", |stats| stats.messages_dropped > 0);
    assert_eq!(stats.drops.of(DropCause::LinkEnded), stats.messages_dropped);
    // What the kernel had taken of the send that was under way is known when that has ended.
    assert!((COUNT / 2..=other.lag.messages).contains(&stats.messages_dropped), "{stats:?}");
    assert_eq!((stats.messages_queued, stats.lag.messages), (0, 0));

    // The last one takes nothing with it: what it has not got waits for the next.
    let before = stats;
    for _ in 0..COUNT {
        publisher.send(&payload).expect("sent");
    }
    first.reset();
    let gone = at_rest(&publisher, "the rest waits", |stats| stats.disconnects == 2 && stats.messages_queued > 0);
    assert_eq!(gone.messages_dropped, before.messages_dropped);
    assert_eq!(gone.messages_delivered - before.messages_delivered + gone.messages_queued, COUNT);
    let mut last = narrow(&publisher, &address, 3);
    let reading = thread::spawn(move || {
        let frames = iter::from_fn(|| last.read_past_heartbeats());
        frames.inspect(|frame| assert_eq!(*frame, (DATA, payload.to_vec()))).count() as u64
    });
    // As above: fewer than waited, by what the kernel had taken.
    let taken = |stats: &Stats| stats.messages_queued == 0 && peer(&publisher, 3).messages_delivered > 0;
    let stats = at_rest(&publisher, "all is delivered", taken);
    assert_eq!(stats.messages_addressed, stats.messages_delivered + stats.messages_dropped);
    let delivered = peer(&publisher, 3).messages_delivered;
    assert!(delivered <= gone.messages_queued, "{delivered} of {gone:?}");
    assert_eq!((stats.connects, stats.reconnects), (3, 0));
    publisher.close();
    assert_eq!(reading.join().expect("read"), delivered);
}

fn what_goes_around_a_circle(row: Row) {
    const COUNT: u64 = 3_000;
    let dealer =
        row.socket(|builder| builder.send_mode(RoundRobin).send_buffer_bytes(64 << 10).receive_timeout(4 * PATIENCE));
    let address = bound(&dealer);
    let payload = [7; 1_000];
    dealer.send(&payload).expect("sent");
    at_rest(&dealer, "it waits for somebody", |stats| stats.messages_queued == 1);
    let mut stays = narrow(&dealer, &address, 1);
    let goes = narrow(&dealer, &address, 2);
    (1..COUNT).for_each(|_| dealer.send(&payload).expect("sent"));
    dealer.send_to(Identity::from([2; 16]), &payload).expect("sent");
    let stats = at_rest(&dealer, "the rest waits", |stats| stats.messages_queued > 0);
    assert_eq!((stats.messages_sent, stats.messages_addressed), (COUNT + 1, COUNT + 1));
    goes.reset();
    eventually("it is gone", || dealer.peers().len() == 1);
    let reading = thread::spawn(move || iter::from_fn(|| stays.read_past_heartbeats()).count() as u64);
    let stats = at_rest(&dealer, "what was for anybody went to the other", |stats| stats.messages_queued == 0);
    // What was for the dead one alone was in its lane, or not yet.
    let causes = stats.drops.of(DropCause::LinkEnded) + stats.drops.of(DropCause::PeerGone);
    assert_eq!((stats.messages_delivered, stats.messages_dropped, causes), (COUNT, 1, 1));
    let one = peer(&dealer, 1);
    assert_eq!(one.messages_addressed, one.messages_delivered);
    dealer.close();
    assert_eq!(reading.join().expect("read"), one.messages_delivered);
}

fn what_is_kept_until_it_is_acknowledged(row: Row) {
    let sender = row
        .socket(|builder| at_least_once(builder).resend(Duration::from_millis(300), 3).receive_timeout(4 * PATIENCE));
    let address = bound(&sender);
    let mut one = RawPeer::connected(&address, 1);
    wait_for_peers(&sender, 1);
    (0..5).for_each(|value| sender.send(&number(value)).expect("sent"));
    sender.send_to(Identity::from([1; 16]), "for this one").expect("sent");
    let sent: Vec<_> = (0..6).map(|_| one.read_data_req().0).collect();
    at_rest(&sender, "all wait for their acknowledgement", |stats| stats.messages_pending == 6);
    one.acknowledge(&sent[0]);
    let stats = at_rest(&sender, "one is acknowledged", |stats| stats.messages_delivered == 1);
    assert_eq!((stats.messages_acknowledged, stats.messages_pending), (1, 5));
    if stats.messages_resent == 0 {
        assert_eq!(stats.round_trips.count, 1);
        assert!(stats.round_trips.longest > Duration::ZERO && stats.round_trips.buckets().any(|(_, count)| count == 1));
        assert_eq!(peer(&sender, 1).round_trips, stats.round_trips);
    }
    // Copies do not count once more.
    at_rest(&sender, "the others are sent again", |stats| stats.messages_resent >= 5 && stats.messages_pending == 5);
    let mut other = RawPeer::connected(&address, 2);
    wait_for_peers(&sender, 2);
    one.reset();
    let handed: Vec<_> = (1..5).map(|_| other.read_data_req().0).collect();
    let stats = at_rest(&sender, "the other has what was for anybody", |stats| stats.messages_pending == 4);
    assert_eq!(
        stats.messages_queued + stats.messages_expired,
        1,
        "one waits for its peer's return, or has waited: {stats:?}"
    );
    handed.iter().for_each(|id| other.acknowledge(id));
    let stats = at_rest(&sender, "what nobody can get has expired", |stats| stats.messages_expired == 1);
    assert_eq!((stats.messages_delivered, stats.messages_pending, stats.messages_queued), (5, 0, 0));
    assert_eq!((stats.messages_addressed, stats.messages_dropped), (6, 0));
}

fn a_peer_that_comes_again(row: Row) {
    let socket = row.plain(Publish);
    let address = bound(&socket);
    for round in 0..3 {
        let mut raw = RawPeer::connected(&address, 1);
        wait_for_peers(&socket, 1);
        socket.send(&number(round)).expect("sent");
        assert_eq!(raw.read_data(), number(round));
        at_rest(&socket, "it is delivered", |stats| stats.messages_delivered == round + 1);
        let peer = peer(&socket, 1);
        assert_eq!((peer.reconnects, peer.messages_addressed, peer.messages_delivered), (round, 1, 1));
        assert!(!peer.suspect && !peer.slow);
        raw.close();
        eventually("it is gone", || socket.peers().is_empty());
        assert_eq!(socket.peer_stats_of(Identity::from([1; 16])), None);
    }
    let stats = at_rest(&socket, "what has gone stays counted", |_| true);
    assert_eq!((stats.messages_delivered, stats.connects, stats.reconnects), (3, 3, 2));
}

fn what_a_close_leaves(row: Row) {
    for mode in [Publish, RoundRobin] {
        let socket = row.socket(|builder| builder.send_mode(mode).linger(Duration::from_millis(50)));
        (0..7).for_each(|value| socket.send(&number(value)).expect("sent"));
        assert_eq!(socket.close().undelivered, 7);
        let stats = at_rest(&socket, "nothing is left", |_| true);
        assert_eq!((stats.drops.of(DropCause::Closed), stats.messages_queued), (7, 0), "{mode}");
    }
    let socket = row.socket(|builder| {
        let builder = builder.send_buffer_bytes(64 << 10).linger(Duration::from_millis(50));
        builder.send_mode(Publish)
    });
    let address = bound(&socket);
    let _stalled = narrow(&socket, &address, 1);
    let _other = narrow(&socket, &address, 2);
    (0..3_000).for_each(|_| socket.send(&[7; 1_000]).expect("sent"));
    let undelivered = socket.close().undelivered;
    let stats = at_rest(&socket, "nothing is left", |_| true);
    assert_eq!(stats.messages_addressed, 6_000);
    assert!(undelivered > 0 && stats.drops.of(DropCause::Closed) > 0 && stats.messages_queued == 0, "{stats:?}");
}
