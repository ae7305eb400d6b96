//! ROUNDROBIN: one strict circle, whatever shards there are.

use std::thread;

use aiomsg_uring::SendMode::RoundRobin;

use crate::common::{PATIENCE, RawPeer, eventually, number};
use crate::{Row, bound, recv_value, value_of, wait_for_peers};

row_tests!([
    strictly_in_turn,
    workers_get_equal_shares,
    a_member_that_leaves_and_comes_back,
    a_full_member_is_passed_over,
    results_come_back_from_all,
]);

fn strictly_in_turn(row: Row) {
    const PEERS: u64 = 7;
    const ROUNDS: u64 = 150;
    let sender = row.plain(RoundRobin);
    let address = bound(&sender);
    let mut peers: Vec<_> = (1..=PEERS as u8).map(|name| RawPeer::connected(&address, name)).collect();
    wait_for_peers(&sender, peers.len());
    (0..PEERS * ROUNDS).for_each(|value| sender.send(&number(value)).expect("sent"));
    let mut turns = Vec::new();
    for peer in &mut peers {
        let first = value_of(&peer.read_data());
        turns.push(first);
        for round in 1..ROUNDS {
            assert_eq!(value_of(&peer.read_data()), first + round * PEERS, "out of turn");
        }
    }
    turns.sort_unstable();
    assert_eq!(turns, (0..PEERS).collect::<Vec<_>>(), "one of them had two turns");
}

fn workers_get_equal_shares(row: Row) {
    const WORKERS: usize = 5;
    const COUNT: u64 = 20_003;
    let sender = row.plain(RoundRobin);
    let address = bound(&sender);
    let workers: Vec<_> = (0..WORKERS).map(|_| row.plain(RoundRobin)).collect();
    for worker in &workers {
        worker.connect(&address).expect("connecting");
    }
    wait_for_peers(&sender, WORKERS);
    let shares: Vec<Vec<u64>> = thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|value| sender.send(&number(value)).expect("sent")));
        let receiving: Vec<_> = workers
            .iter()
            .map(|worker| {
                scope.spawn(move || {
                    let few = COUNT / WORKERS as u64;
                    let mut share: Vec<u64> = (0..few).map(|_| recv_value(worker)).collect();
                    share.extend(worker.recv_timeout(PATIENCE / 30).iter().map(|message| value_of(message)));
                    share
                })
            })
            .collect();
        receiving.into_iter().map(|share| share.join().expect("received")).collect()
    });
    let counts: Vec<_> = shares.iter().map(Vec::len).collect();
    let (most, least) = (counts.iter().max().expect("some"), counts.iter().min().expect("some"));
    assert!(most - least <= 1, "{counts:?}");
    assert!(shares.iter().all(|share| share.is_sorted()), "out of order");
    let mut all = shares.concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..COUNT), "lost, doubled or invented");
}

fn a_member_that_leaves_and_comes_back(row: Row) {
    let sender = row.plain(RoundRobin);
    let address = bound(&sender);
    let mut peers: Vec<_> = (1..=3).map(|name| RawPeer::connected(&address, name)).collect();
    wait_for_peers(&sender, 3);
    for round in 0..10 {
        (0..3).for_each(|value| sender.send(&number(round * 10 + value)).expect("sent"));
        let mut got: Vec<_> = peers.iter_mut().map(|peer| value_of(&peer.read_data()) - round * 10).collect();
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2]);
        // All was read, so nothing is lost with the connection.
        peers.remove(0).close();
        eventually("it is gone", || sender.peers().len() == 2);
        (0..4).for_each(|value| sender.send(&number(value)).expect("sent"));
        for peer in &mut peers {
            let (one, two) = (value_of(&peer.read_data()), value_of(&peer.read_data()));
            assert_eq!(two - one, 2, "two members, four messages: every second one");
        }
        peers.push(RawPeer::connected(&address, 10 + round as u8));
        wait_for_peers(&sender, 3);
    }
}

fn a_full_member_is_passed_over(row: Row) {
    const COUNT: u64 = 40_000;
    let sender = row.socket(|builder| builder.send_mode(RoundRobin).send_buffer_bytes(64 << 10));
    let address = bound(&sender);
    let mut full = RawPeer::dial_narrow(&address, 16 << 10);
    full.shake_hands(9);
    let good = row.plain(RoundRobin);
    good.connect(&address).expect("connecting");
    wait_for_peers(&sender, 2);
    let payload = |value: u64| [&number(value)[..], &[0; 992]].concat();
    let mut got: Vec<u64> = thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|value| sender.send(payload(value)).expect("sent")));
        // 40 MB are more than what waits for the one that does not read; the rest must come here.
        let mut got = Vec::new();
        while let Ok(message) = good.recv_timeout(PATIENCE / 10) {
            got.push(value_of(&message[..8]));
        }
        got
    });
    let here = got.len() as u64;
    assert!(here > COUNT * 9 / 10, "only {here} of {COUNT} went to the one that reads");
    assert!(got.is_sorted());
    // And nothing was lost on the way: the other one has the rest.
    got.extend((here..COUNT).map(|_| value_of(&full.read_data()[..8])));
    got.sort_unstable();
    assert!(got.into_iter().eq(0..COUNT), "lost, doubled or invented");
}

fn results_come_back_from_all(row: Row) {
    const COUNT: u64 = 4_000;
    let sender = row.plain(RoundRobin);
    let address = bound(&sender);
    let workers: Vec<_> = (0..4).map(|_| row.plain(RoundRobin)).collect();
    for worker in &workers {
        worker.connect(&address).expect("connecting");
    }
    wait_for_peers(&sender, workers.len());
    thread::scope(|scope| {
        for worker in &workers {
            scope.spawn(move || {
                for _ in 0..COUNT / 4 {
                    let value = recv_value(worker);
                    worker.send(&number(value * 2)).expect("sent");
                }
            });
        }
        scope.spawn(|| (0..COUNT).for_each(|value| sender.send(&number(value)).expect("sent")));
        let mut results: Vec<_> = (0..COUNT).map(|_| recv_value(&sender)).collect();
        results.sort_unstable();
        assert!(results.into_iter().eq((0..COUNT).map(|value| value * 2)));
    });
}
