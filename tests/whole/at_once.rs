//! Many at once: threads on clones, futures of one task, futures that are dropped half-way, sockets
//! that end in the middle of everything.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use aiomsg_uring::SendMode::{Publish, RoundRobin};
use aiomsg_uring::{Backend, RecvError, SendError, Socket, TryRecvError};
use futures_lite::{FutureExt, future};
use pollster::block_on;

use crate::common::{PATIENCE, RawPeer, data, number};
use crate::{Row, at_least_once, bound, on, recv_value, value_of, wait_for_peers};

row_tests!([
    threads_send_and_receive_on_clones,
    senders_keep_their_own_order,
    one_task_sends_and_receives,
    dropped_receives_lose_nothing,
    dropped_sends_are_all_or_nothing,
    closed_at_any_moment,
    closed_while_a_bind_waits,
    dropped_at_any_moment,
    many_sockets_on_one_engine,
    a_dropped_engine_handle_stops_nothing,
    a_flood_lets_the_others_through,
]);

fn threads_send_and_receive_on_clones(row: Row) {
    const THREADS: u64 = 4;
    const COUNT: u64 = 5_000;
    for reliable in [false, true] {
        let sender = row.socket(|builder| match reliable {
            true => at_least_once(builder),
            false => builder.send_mode(RoundRobin),
        });
        let receiver = row.plain(Publish);
        receiver.connect(bound(&sender)).expect("connecting");
        wait_for_peers(&sender, 1);
        let left = AtomicU64::new(THREADS * COUNT);
        let mut all: Vec<u64> = thread::scope(|scope| {
            for thread in 0..THREADS {
                let sender = sender.clone();
                scope.spawn(move || {
                    (0..COUNT).for_each(|value| sender.send(&number(thread * COUNT + value)).expect("sent"));
                });
            }
            let receiving: Vec<_> = (0..THREADS)
                .map(|_| {
                    let (receiver, left) = (receiver.clone(), &left);
                    scope.spawn(move || {
                        let mut got = Vec::new();
                        while left.load(Ordering::SeqCst) > 0 {
                            match receiver.recv_timeout(Duration::from_millis(50)) {
                                Ok(message) => got.push(value_of(&message)),
                                Err(TryRecvError::Empty) => continue,
                                Err(error) => panic!("{error}"),
                            }
                            left.fetch_sub(1, Ordering::SeqCst);
                        }
                        got
                    })
                })
                .collect();
            receiving.into_iter().flat_map(|got| got.join().expect("received")).collect()
        });
        all.sort_unstable();
        assert!(all.into_iter().eq(0..THREADS * COUNT), "lost, doubled or invented");
    }
}

fn senders_keep_their_own_order(row: Row) {
    const THREADS: usize = 4;
    const COUNT: u64 = 5_000;
    let publisher = row.plain(Publish);
    let address = bound(&publisher);
    let receivers: Vec<_> = (0..4).map(|_| row.plain(Publish)).collect();
    for receiver in &receivers {
        receiver.connect(&address).expect("connecting");
    }
    wait_for_peers(&publisher, receivers.len());
    let orders: Vec<Vec<u64>> = thread::scope(|scope| {
        for thread in 0..THREADS as u64 {
            let publisher = publisher.clone();
            scope.spawn(move || {
                (0..COUNT).for_each(|value| publisher.send(&number(thread * COUNT + value)).expect("sent"));
            });
        }
        let receive = |receiver| (0..THREADS as u64 * COUNT).map(|_| recv_value(receiver)).collect();
        let receiving: Vec<_> = receivers.iter().map(|receiver| scope.spawn(move || receive(receiver))).collect();
        receiving.into_iter().map(|order| order.join().expect("received")).collect()
    });
    let mut next = [0; THREADS];
    for value in &orders[0] {
        let (thread, value) = ((value / COUNT) as usize, value % COUNT);
        assert_eq!(next[thread], value, "thread {thread}");
        next[thread] += 1;
    }
    // The sends of all threads have one order, which is the same for every peer.
    assert!(orders.iter().all(|order| *order == orders[0]));
}

fn one_task_sends_and_receives(row: Row) {
    const COUNT: u64 = 20_000;
    let one: Socket = row.plain(Publish).into();
    let other: Socket = row.plain(Publish).into();
    block_on(async {
        other.connect(one.bind("127.0.0.1:0").await.expect("bound")).await.expect("connecting");
        one.wait_for_peers(1, PATIENCE).await.expect("a peer in time");
        let send = |socket: Socket| async move {
            for value in 0..COUNT {
                socket.send(&number(value)).await.expect("sent");
            }
        };
        let receive = |socket: Socket| async move {
            for value in 0..COUNT {
                assert_eq!(value_of(&socket.recv().await.expect("received")), value);
            }
        };
        let sending = future::zip(send(one.clone()), send(other.clone()));
        let receiving = future::zip(receive(one.clone()), receive(other.clone()));
        future::zip(sending, receiving).await;
    });
}

fn dropped_receives_lose_nothing(row: Row) {
    const COUNT: u64 = 10_000;
    let sender = row.plain(RoundRobin);
    let receiver: Socket = row.plain(Publish).into();
    let mut dropped = 0;
    thread::scope(|scope| {
        block_on(receiver.connect(bound(&sender))).expect("connecting");
        scope.spawn(|| {
            for value in 0..COUNT {
                sender.send(&number(value)).expect("sent");
                if value % 64 == 0 {
                    thread::sleep(Duration::from_micros(200));
                }
            }
        });
        let mut next = 0;
        while next < COUNT {
            // Asked for and dropped, now before and now after it had to wait.
            let taken = block_on(async { future::poll_once(receiver.recv()).await });
            match taken {
                Some(message) => {
                    assert_eq!(value_of(&message.expect("received")), next);
                    next += 1;
                }
                None => {
                    dropped += 1;
                    let given_up = async {
                        future::yield_now().await;
                        None
                    };
                    let taken = block_on(async { Some(receiver.recv().await) }.or(given_up));
                    if let Some(message) = taken {
                        assert_eq!(value_of(&message.expect("received")), next);
                        next += 1;
                    }
                }
            }
        }
    });
    assert!(dropped > 10, "hardly anything had to wait: {dropped}");
}

fn dropped_sends_are_all_or_nothing(row: Row) {
    const MIB: usize = 1 << 20;
    let sender: Socket =
        row.socket(|builder| builder.send_mode(RoundRobin).log_bytes_max(MIB).message_bytes_max(MIB / 4)).into();
    let receiver = row.socket(|builder| builder.receive_bytes_max(64 << 10));
    let address = block_on(sender.bind("127.0.0.1:0")).expect("bound");
    receiver.connect(address).expect("connecting");
    let message = |value: u64| [&number(value)[..], &[7; 5_000]].concat();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let (mut accepted, mut given_up) = (Vec::new(), 0);
            for value in 0..6_000 {
                let sent = block_on(async {
                    let give_up = async {
                        for _ in 0..value % 4 {
                            future::yield_now().await;
                        }
                        None
                    };
                    async { Some(sender.send(message(value)).await) }.or(give_up).await
                });
                match sent {
                    Some(outcome) => {
                        outcome.expect("sent");
                        accepted.push(value);
                    }
                    None => given_up += 1,
                }
            }
            block_on(sender.send(message(u64::MAX))).expect("the last one waits for its turn");
            (accepted, given_up)
        });
        let mut got = Vec::new();
        loop {
            let message = receiver.recv_timeout(PATIENCE).expect("a message in time");
            match value_of(&message[..8]) {
                u64::MAX => break,
                value => got.push(value),
            }
            if got.len() % 20 == 0 {
                thread::sleep(Duration::from_micros(500));
            }
        }
        let (accepted, given_up) = sending.join().expect("sent");
        assert_eq!(got, accepted, "what was accepted, and nothing else");
        assert!(given_up > 10, "nothing was given up");
    });
}

fn closed_at_any_moment(row: Row) {
    for round in 0..30 {
        let sender = row.socket(|builder| builder.send_mode(RoundRobin).linger(Duration::from_millis(50)));
        let receiver = row.plain(Publish);
        let address = bound(&sender);
        receiver.connect(&address).expect("connecting");
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Ok(()) = sender.send(&number(round)) {}
                    assert_eq!(sender.send("too late"), Err(SendError::Closed));
                });
                scope.spawn(|| {
                    while receiver.recv().is_ok() {}
                    assert_eq!(receiver.recv(), Err(RecvError::Closed));
                });
            }
            scope.spawn(|| sender.wait_for_peers(9, PATIENCE).expect_err("closed before nine have come"));
            thread::sleep(Duration::from_micros(round * 700));
            let (one, other) = if round % 2 == 0 { (&sender, &receiver) } else { (&receiver, &sender) };
            let closing = one.clone();
            let second = scope.spawn(move || closing.close());
            one.close();
            other.close();
            second.join().expect("closing twice is no error");
        });
        assert!(sender.peers().is_empty() && receiver.peers().is_empty());
    }
}

fn closed_while_a_bind_waits(row: Row) {
    // Where there is one: an address that no other test takes as soon as it is free.
    let taken = TcpListener::bind("127.9.9.9:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).expect("a listener");
    let address = taken.local_addr().expect("an address");
    let socket = row.plain(Publish);
    let binding = socket.clone();
    // It is tried for a moment, in case whoever has the address is about to go.
    let binding = thread::spawn(move || binding.bind(address));
    thread::sleep(Duration::from_millis(50));
    socket.close();
    drop(taken);
    binding.join().expect("no panic").expect_err("bound after its end");
    thread::sleep(Duration::from_millis(500));
    TcpStream::connect(address).expect_err("a closed socket listens");
}

fn dropped_at_any_moment(row: Row) {
    let engine = row.engine();
    let staying = on(&engine, |builder| builder);
    let address = bound(&staying);
    for round in 0..60 {
        let passing = on(&engine, |builder| builder.send_mode(RoundRobin).linger(Duration::from_millis(20)));
        passing.connect(&address).expect("connecting");
        if round % 3 > 0 {
            (0..100).for_each(|value| passing.send(&number(value)).expect("sent"));
        }
        if round % 3 == 2 {
            thread::sleep(Duration::from_millis(round % 7));
        }
    }
    let last = on(&engine, |builder| builder);
    last.connect(&address).expect("connecting");
    last.send("still here").expect("sent");
    while staying.recv_timeout(PATIENCE).expect("a message in time") != "still here" {}
    crate::common::eventually("the others are gone", || staying.peers() == [last.identity()]);
}

fn many_sockets_on_one_engine(row: Row) {
    const PAIRS: usize = 150;
    let engine = row.engine();
    let pairs: Vec<_> = (0..PAIRS)
        .map(|index| {
            let mode = if index % 2 == 0 { Publish } else { RoundRobin };
            let pair = [(); 2].map(|()| on(&engine, |builder| builder.send_mode(mode)));
            pair[1].connect(bound(&pair[0])).expect("connecting");
            pair
        })
        .collect();
    for [one, other] in &pairs {
        wait_for_peers(one, 1);
        wait_for_peers(other, 1);
    }
    for round in 0..50 {
        for (index, [one, other]) in (0..).zip(&pairs) {
            one.send(&number(round * 1_000 + index)).expect("sent");
            other.send_to(one.identity(), &number(round * 2_000 + index)).expect("sent");
        }
        for (index, [one, other]) in (0..).zip(&pairs) {
            assert_eq!(recv_value(other), round * 1_000 + index);
            assert_eq!(recv_value(one), round * 2_000 + index);
        }
    }
    let identities: BTreeSet<_> = pairs.iter().flatten().map(|socket| socket.identity()).collect();
    assert_eq!(identities.len(), 2 * PAIRS);
}

fn a_dropped_engine_handle_stops_nothing(row: Row) {
    let engine = row.engine();
    let [one, other] = [(); 2].map(|()| on(&engine, |builder| builder));
    drop(engine);
    other.connect(bound(&one)).expect("connecting");
    wait_for_peers(&one, 1);
    one.send("on and on").expect("sent");
    assert_eq!(other.recv_timeout(PATIENCE).expect("a message in time"), "on and on");
}

/// A peer that sends as fast as the connection takes it does not keep the others waiting: between what they send and its arrival
/// there is no more of the flood than the receive queue and a few reads hold, however long it goes on.
fn a_flood_lets_the_others_through(row: Row) {
    const RECEIVE_BYTES: usize = 256 << 10;
    const FRAME: usize = 1024;
    let server = row.socket(|builder| builder.receive_bytes_max(RECEIVE_BYTES));
    let address = bound(&server);
    let mut flooder = RawPeer::connected(&address, 99);
    let mut slow: Vec<_> = (1..=10).map(|name| RawPeer::connected(&address, name)).collect();
    wait_for_peers(&server, 11);
    let finished = std::sync::atomic::AtomicBool::new(false);
    let (mut flood, mut longest) = (0u64, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let block = data(&[b'x'; FRAME - 5]).repeat(64);
            while !finished.load(Ordering::Relaxed) {
                if flooder.try_send(&block).is_err() {
                    break;
                }
            }
        });
        for round in 0..60u64 {
            slow.iter_mut().for_each(|peer| peer.send(&data(&number(round))));
            // All ten are in the kernel now.
            let (mut left, mut gap) = (slow.len(), 0);
            while left > 0 {
                match server.recv_timeout(PATIENCE).expect("a message in time").len() {
                    8 => left -= 1,
                    len => gap += (len + 5) as u64,
                }
            }
            (flood, longest) = (flood + gap, longest.max(gap));
        }
        // Some more of it, so that it was not over before.
        for _ in 0..10_000 {
            flood += server.recv_timeout(PATIENCE).expect("the flood goes on").len() as u64;
        }
        finished.store(true, Ordering::Relaxed);
        server.close();
    });
    println!("{row:?}: {flood} bytes of the flood, {longest} at most before all others were served");
    // The queue and one read; over io_uring what one visit to the kernel brings, a few times the slabs. With several shards it is the
    // system that decides whose thread runs.
    let bound = if row.backend == Backend::Poll { 4 << 20 } else { 32 << 20 };
    assert!(row.shards > 1 || longest <= bound, "{longest} bytes came first");
}
