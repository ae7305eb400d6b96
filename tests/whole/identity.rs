//! Messages by identity: in order with everything else, to nobody else, and with an answer when
//! there is nobody.

use std::thread;
use std::time::Duration;

use aiomsg_uring::SendMode::{self, Publish, RoundRobin};
use aiomsg_uring::{Event, Identity, SendError, TrySendError};

use crate::common::{DATA_REQ, PATIENCE, RawPeer, data, eventually, number, pattern};
use crate::{Row, bound, on, value_of, wait_for_peers};

row_tests!([
    in_order_with_what_is_published,
    in_order_under_round_robin,
    large_ones_in_order,
    a_peer_never_seen,
    a_peer_that_is_gone,
    kept_for_its_return_at_least_once,
    expired_when_it_does_not_return,
    request_reply_with_thousands,
    replies_from_many_threads,
    one_slow_addressee_holds_nobody_else,
]);

fn named(name: u8) -> Identity {
    Identity::from([name; 16])
}

fn in_order_with_what_is_published(row: Row) {
    const COUNT: u64 = 3_000;
    let socket = row.plain(Publish);
    let address = bound(&socket);
    let mut peers: Vec<_> = (1..=6).map(|name| RawPeer::connected(&address, name)).collect();
    wait_for_peers(&socket, 6);
    let to_one = |value: u64| value % 3 == 1;
    let addressee = |value: u64| 1 + (value / 3 % 6) as u8;
    thread::scope(|scope| {
        scope.spawn(|| {
            for value in 0..COUNT {
                match to_one(value) {
                    true => socket.send_to(named(addressee(value)), &number(value)).expect("sent"),
                    false => socket.send(&number(value)).expect("sent"),
                }
            }
        });
        for (name, peer) in (1..=6).zip(&mut peers) {
            scope.spawn(move || {
                for value in (0..COUNT).filter(|&value| !to_one(value) || addressee(value) == name) {
                    assert_eq!(value_of(&peer.read_data()), value, "at peer {name}");
                }
            });
        }
    });
}

fn in_order_under_round_robin(row: Row) {
    const COUNT: u64 = 3_000;
    let socket = row.plain(RoundRobin);
    let address = bound(&socket);
    let mut peers: Vec<_> = (1..=3).map(|name| RawPeer::connected(&address, name)).collect();
    wait_for_peers(&socket, 3);
    // Even numbers to whose turn it is, odd ones to the second peer.
    thread::scope(|scope| {
        scope.spawn(|| {
            for value in 0..COUNT {
                match value % 2 {
                    0 => socket.send(&number(value)).expect("sent"),
                    _ => socket.send_to(named(2), &number(value)).expect("sent"),
                }
            }
        });
        let counts = [500, 500 + 1_500, 500];
        let mut all = Vec::new();
        for (name, (peer, count)) in peers.iter_mut().zip(counts).enumerate() {
            let got: Vec<_> = (0..count).map(|_| value_of(&peer.read_data())).collect();
            assert!(got.is_sorted(), "out of order");
            assert!(name == 1 || got.iter().all(|value| value % 2 == 0), "a message of somebody else");
            all.extend(got);
        }
        all.sort_unstable();
        assert!(all.into_iter().eq(0..COUNT));
    });
}

fn large_ones_in_order(row: Row) {
    let socket = row.plain(Publish);
    let address = bound(&socket);
    let mut peers: Vec<_> = (1..=4).map(|name| RawPeer::connected(&address, name)).collect();
    wait_for_peers(&socket, 4);
    let length_of = |index: usize| [10, 30_000, 400, 300_000, 0][index % 5] + index;
    thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0..60 {
                match index % 2 {
                    0 => socket.send(pattern(length_of(index))).expect("sent"),
                    _ => socket.send_to(named(3), pattern(length_of(index))).expect("sent"),
                }
            }
        });
        for (name, peer) in (1..=4).zip(&mut peers) {
            scope.spawn(move || {
                for index in (0..60).filter(|index| index % 2 == 0 || name == 3) {
                    assert!(peer.read_data() == pattern(length_of(index)), "message {index} came altered");
                }
            });
        }
    });
}

fn a_peer_never_seen(row: Row) {
    for mode in [Publish, RoundRobin] {
        let socket = row.plain(mode);
        let _peer = RawPeer::connected(&bound(&socket), 1);
        wait_for_peers(&socket, 1);
        let error = socket.send_to(named(2), "who?").expect_err("nobody of that name");
        assert_eq!(error, SendError::UnknownPeer(named(2)));
        assert!(error.to_string().contains(&named(2).to_string()), "does not say who: {error}");
        assert_eq!(socket.try_send_to(named(2), "who?"), Err(TrySendError::Never(error)));
    }
    let reliable = row.reliable(Duration::from_secs(1), 3);
    assert_eq!(reliable.send_to(named(2), "who?"), Err(SendError::UnknownPeer(named(2))));
}

fn a_peer_that_is_gone(row: Row) {
    for mode in [Publish, RoundRobin] {
        let socket = row.plain(mode);
        let address = bound(&socket);
        let mut peer = RawPeer::connected(&address, 1);
        let mut other = RawPeer::connected(&address, 2);
        wait_for_peers(&socket, 2);
        socket.send_to(named(1), "while here").expect("sent");
        assert_eq!(peer.read_data(), b"while here");
        peer.close();
        eventually("it is gone", || socket.peers() == [named(2)]);
        assert_eq!(socket.send_to(named(1), "too late"), Err(SendError::PeerGone(named(1))));
        let mut peer = RawPeer::connected(&address, 1);
        eventually("it is back", || socket.peers().len() == 2);
        socket.send_to(named(1), "here again").expect("sent");
        assert_eq!(peer.read_data(), b"here again");
        assert!(other.is_silent_for(Duration::from_millis(50)), "a message of somebody else");
    }
}

fn kept_for_its_return_at_least_once(row: Row) {
    let socket = row.reliable(Duration::from_secs(3), 5);
    let address = bound(&socket);
    let peer = RawPeer::connected(&address, 1);
    let mut other = RawPeer::connected(&address, 2);
    wait_for_peers(&socket, 2);
    peer.close();
    eventually("it is gone", || socket.peers() == [named(2)]);
    (0..20).for_each(|value| socket.send_to(named(1), &number(value)).expect("kept"));
    assert!(other.is_silent_for(Duration::from_millis(100)), "a message of somebody else");
    let mut peer = RawPeer::connected(&address, 1);
    for value in 0..20 {
        let (kind, body) = peer.read_past_heartbeats().expect("a message");
        assert_eq!((kind, value_of(&body[16..])), (DATA_REQ, value));
        peer.acknowledge(&body[..16]);
    }
    eventually("all are acknowledged", || socket.stats().messages_acknowledged == 20);
    assert_eq!(socket.close().undelivered, 0);
}

fn expired_when_it_does_not_return(row: Row) {
    let socket = row.reliable(Duration::from_millis(100), 3);
    let address = bound(&socket);
    let peer = RawPeer::connected(&address, 1);
    wait_for_peers(&socket, 1);
    peer.close();
    eventually("it is gone", || socket.peers().is_empty());
    (0..5).for_each(|value| socket.send_to(named(1), &number(value)).expect("kept"));
    let mut expired = 0;
    eventually("the loss is told", || {
        while let Some(event) = socket.try_event() {
            if let Event::Expired { identity, messages } = event {
                assert_eq!(identity, Some(named(1)));
                expired += messages;
            }
        }
        expired == 5
    });
    assert_eq!(socket.stats().messages_expired, 5);
    let mut peer = RawPeer::connected(&address, 1);
    assert!(peer.is_silent_for(Duration::from_millis(100)), "an expired message went out");
}

fn request_reply_with_thousands(row: Row) {
    const PEERS: u64 = 2_000;
    const ROUNDS: u64 = 200;
    let server = row.socket(|builder| {
        builder.send_mode(Publish).heartbeat_interval(PATIENCE * 4).receive_timeout(PATIENCE * 8).events_max(10_000)
    });
    let address = bound(&server);
    let name_of = |index: u64| {
        let mut name = [7; 16];
        name[8..].copy_from_slice(&number(index));
        name
    };
    let mut peers: Vec<_> = (0..PEERS).map(|index| RawPeer::connected_as(&address, name_of(index))).collect();
    wait_for_peers(&server, peers.len());
    // Everybody once.
    for (index, peer) in (0..).zip(&mut peers) {
        peer.send(&data(&number(index)));
    }
    for _ in 0..PEERS {
        let (from, request) = server.recv_identity_timeout(PATIENCE).expect("a request");
        assert_eq!(from, Identity::from(name_of(value_of(&request))), "a request under another name");
        server.send_to(from, request).expect("replied");
    }
    for (index, peer) in (0..).zip(&mut peers) {
        assert_eq!(value_of(&peer.read_data()), index);
    }
    // Then one alone: not a byte goes to the others.
    eventually("all replies are counted", || server.stats().messages_delivered == PEERS);
    let before = server.stats().bytes_sent;
    let alone = &mut peers[1_234];
    for round in 0..ROUNDS {
        alone.send(&data(&number(round)));
        let (from, request) = server.recv_identity_timeout(PATIENCE).expect("a request");
        server.send_to(from, request).expect("replied");
        assert_eq!(value_of(&alone.read_data()), round);
    }
    eventually("all replies are counted", || server.stats().messages_delivered == PEERS + ROUNDS);
    assert_eq!(server.stats().bytes_sent - before, ROUNDS * data(&number(0)).len() as u64);
}

fn replies_from_many_threads(row: Row) {
    const COUNT: u64 = 2_000;
    let server = row.plain(Publish);
    let address = bound(&server);
    let engine = row.engine();
    let clients: Vec<_> = (0..8).map(|_| on(&engine, |builder| builder.send_mode(Publish))).collect();
    for client in &clients {
        client.connect(&address).expect("connecting");
    }
    wait_for_peers(&server, clients.len());
    thread::scope(|scope| {
        for _ in 0..3 {
            let server = server.clone();
            scope.spawn(move || {
                while let Ok((from, request)) = server.recv_identity() {
                    server.send_to(from, request).expect("replied");
                }
            });
        }
        let asking: Vec<_> = clients
            .iter()
            .map(|client| {
                scope.spawn(move || {
                    (0..COUNT / 8).for_each(|value| client.send(&number(value)).expect("sent"));
                    let mut replies: Vec<_> = (0..COUNT / 8).map(|_| crate::recv_value(client)).collect();
                    // Three threads reply in any order.
                    replies.sort_unstable();
                    assert!(replies.into_iter().eq(0..COUNT / 8));
                })
            })
            .collect();
        asking.into_iter().for_each(|client| client.join().expect("all replies"));
        server.close();
    });
}

fn one_slow_addressee_holds_nobody_else(row: Row) {
    let set = |mode: SendMode| {
        row.socket(|builder| {
            let builder = builder.send_mode(mode).log_bytes_max(8 << 20).message_bytes_max(1 << 20);
            builder.send_buffer_bytes(64 << 10)
        })
    };
    for server in [set(Publish), set(RoundRobin)] {
        let address = bound(&server);
        let mut slow = RawPeer::dial_narrow(&address, 16 << 10);
        slow.shake_hands(1);
        let mut good = RawPeer::connected(&address, 2);
        wait_for_peers(&server, 2);
        let message = pattern(10_000);
        let mut to_slow = 0;
        while let Ok(()) = server.try_send_to(named(1), &message) {
            to_slow += 1;
            assert!(to_slow < 10_000, "8 MiB took 100 MB");
        }
        for value in 0..200 {
            server.send_to(named(2), &number(value)).expect("sent");
            assert_eq!(value_of(&good.read_data()), value);
        }
        (0..to_slow).for_each(|_| assert!(slow.read_data() == message, "came altered"));
    }
}
