//! Peers that come late: what is kept for them, and where they begin.

use std::time::Duration;

use aiomsg_uring::SendMode::Publish;
use aiomsg_uring::{Address, BindOptions, Identity, Replay, Retention, blocking};

use crate::common::{PATIENCE, eventually, number};
use crate::{Row, bound, recv_value, wait_for_peers};

row_tests!([
    a_late_peer_gets_what_is_retained_then_what_follows,
    what_is_retained_gives_way_to_what_is_sent,
    what_is_too_old_is_not_replayed,
    listeners_and_single_peers_begin_where_theirs_do,
]);

/// A publisher that keeps this much, and one peer that is there from the beginning.
fn begun(row: Row, retention: Retention) -> (blocking::Socket, blocking::Socket) {
    let publisher = row
        .socket(|builder| builder.send_mode(Publish).log_bytes_max(1 << 20).replay(Replay::Oldest).retain(retention));
    let first = row.plain(Publish);
    first.connect(bound(&publisher)).expect("connecting");
    wait_for_peers(&publisher, 1);
    (publisher, first)
}

/// A peer that comes now, and the first number that it gets.
fn come(row: Row, publisher: &blocking::Socket) -> (blocking::Socket, u64) {
    let late = row.plain(Publish);
    late.connect(bound(publisher)).expect("connecting");
    let first = recv_value(&late);
    (late, first)
}

fn a_late_peer_gets_what_is_retained_then_what_follows(row: Row) {
    const COUNT: u64 = 10_000;
    let (publisher, first) = begun(row, Retention { messages: Some(1000), ..Retention::default() });
    (0..COUNT).for_each(|value| publisher.send(&number(value)).expect("sent"));
    (0..COUNT).for_each(|value| assert_eq!(recv_value(&first), value));
    let mut came = Vec::new();
    for peers in 2..5 {
        let (late, began) = come(row, &publisher);
        wait_for_peers(&publisher, peers);
        let sent = publisher.stats().messages_sent;
        assert_eq!(began, sent - 1000, "the thousand messages before it came");
        publisher.send(&number(sent)).expect("sent");
        (began + 1..=sent).for_each(|value| assert_eq!(recv_value(&late), value));
        assert_eq!(recv_value(&first), sent);
        came.push(late);
    }
    eventually("all is counted", || publisher.stats().messages_delivered == COUNT + 3 + 3 * 1000 + 3 + 2 + 1);
    assert_eq!(publisher.stats().messages_dropped, 0);
}

fn what_is_retained_gives_way_to_what_is_sent(row: Row) {
    const COUNT: u64 = 400;
    let (publisher, first) = begun(row, Retention { bytes: Some(usize::MAX), ..Retention::default() });
    for value in 0..COUNT {
        let mut message = number(value).to_vec();
        message.resize(1000 + 8 * (value as usize * 37 % 2000), 0);
        publisher.send(message).expect("sent");
        let got = first.recv_timeout(PATIENCE).expect("a message in time");
        assert_eq!(got[..8], number(value));
    }
    assert!(publisher.stats().log_bytes <= 1 << 20);
    assert_eq!(publisher.stats().disconnects, 0);
    let late = row.plain(Publish);
    late.connect(bound(&publisher)).expect("connecting");
    let began = late.recv_timeout(PATIENCE).expect("a message in time")[..8].to_vec();
    let began = u64::from_be_bytes(began.try_into().expect("eight bytes"));
    assert!((1..COUNT - 10).contains(&began), "some of it, not all: {began}");
    (began + 1..COUNT).for_each(|value| assert_eq!(late.recv_timeout(PATIENCE).expect("in time")[..8], number(value)));
}

fn what_is_too_old_is_not_replayed(row: Row) {
    let age = Duration::from_millis(300);
    let (publisher, _first) = begun(row, Retention { age: Some(age), ..Retention::default() });
    publisher.send(&number(1)).expect("sent");
    eventually("it has gone out", || publisher.stats().messages_delivered == 1);
    std::thread::sleep(3 * age);
    publisher.send(&number(2)).expect("sent");
    eventually("it has gone out", || publisher.stats().messages_delivered == 2);
    let late = row.plain(Publish);
    late.connect(bound(&publisher)).expect("connecting");
    wait_for_peers(&publisher, 2);
    publisher.send(&number(3)).expect("sent");
    // On a machine that stands still for a while the second is too old as well.
    assert!(matches!(recv_value(&late), 2 | 3));
}

fn listeners_and_single_peers_begin_where_theirs_do(row: Row) {
    let retention = Retention { messages: Some(100), ..Retention::default() };
    let publisher = row.socket(|builder| builder.send_mode(Publish).retain(retention));
    let live = bound(&publisher);
    let bind = |replay| publisher.bind_with("127.0.0.1:0", BindOptions::new().replay(replay)).expect("bound");
    let (oldest, snapshot) = (bind(Replay::Oldest), bind(Replay::Snapshot));
    let first = row.plain(Publish);
    first.connect(&live).expect("connecting");
    wait_for_peers(&publisher, 1);
    for value in 0..1000 {
        publisher.send_keyed(value % 10, &number(value)).expect("sent");
        assert_eq!(recv_value(&first), value);
    }
    let named = Identity::from_bytes([77; 16]);
    // Each of them begins at one of these, and gets what follows.
    let comes = |address: &Address, identity: Option<Identity>, begins: &[u64]| {
        let late = row.socket(|builder| match identity {
            Some(identity) => builder.send_mode(Publish).identity(identity),
            None => builder.send_mode(Publish),
        });
        late.connect(address).expect("connecting");
        wait_for_peers(&publisher, 2);
        let last = publisher.stats().messages_sent;
        publisher.send(&number(last)).expect("sent");
        assert_eq!(recv_value(&first), last);
        let mut got = Vec::new();
        while got.last() != Some(&last) {
            got.push(recv_value(&late));
        }
        got.pop();
        assert!(begins.is_empty() && got.is_empty() || got.starts_with(begins), "{begins:?}: {got:?}");
        drop(late);
        eventually("it is gone", || publisher.peers().len() == 1);
    };
    comes(&live, Some(named), &[]);
    comes(&oldest, None, &[901, 902]);
    comes(&snapshot, None, &(990..1000).collect::<Vec<_>>());
    // By its identity, wherever it comes in; and as everybody again.
    publisher.set_replay(named, Some(Replay::Snapshot)).expect("set");
    comes(&live, Some(named), &(990..1000).collect::<Vec<_>>());
    comes(&oldest, Some(named), &(990..1000).collect::<Vec<_>>());
    publisher.set_replay(named, Some(Replay::Live)).expect("set");
    comes(&oldest, Some(named), &[]);
    publisher.set_replay(named, None).expect("cleared");
    comes(&oldest, Some(named), &[906, 907]);
    comes(&live, Some(named), &[]);
}
