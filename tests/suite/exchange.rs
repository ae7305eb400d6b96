//! Messages between two sockets: complete, unaltered, in order, to whom they should go.

use std::thread;
use std::time::Duration;

use aiomsg_uring::DeliveryGuarantee::{AtLeastOnce, AtMostOnce};
use aiomsg_uring::SendMode::{Publish, RoundRobin};
use bytes::Bytes;

use crate::common::{Kind, PATIENCE, Sock, eventually, expect_numbers, number, pattern, send_numbers};

pair_tests!([
    publish_in_order,
    publish_from_the_connecting_end,
    publish_reaches_every_subscriber,
    roundrobin_in_order,
    roundrobin_shares_fairly,
    round_trips,
    every_size,
    written_in_place,
    large_payloads,
    owned_payloads_are_given_back,
    small_and_large_keep_their_order,
    identity_of_the_sender,
    batches,
    binds_and_connects_mixed,
]);

/// A binding and a connecting socket that have found each other.
fn pair(one: Kind, other: Kind, mode: aiomsg_uring::SendMode) -> (Sock, Sock) {
    let (binding, connecting) = (one.socket(mode), other.socket(mode));
    connecting.connect(binding.bind_loopback());
    binding.wait_for_peers(1);
    connecting.wait_for_peers(1);
    (binding, connecting)
}

/// Sends and receives so many numbers, both at the same time.
fn transfer(from: &Sock, to: &Sock, count: u64) {
    thread::scope(|scope| {
        scope.spawn(|| from.run(move |socket| send_numbers(socket, 0..count)));
        to.run(move |socket| expect_numbers(socket, 0..count));
    });
}

fn publish_in_order(one: Kind, other: Kind) {
    let (publisher, subscriber) = pair(one, other, Publish);
    transfer(&publisher, &subscriber, 20_000);
}

fn publish_from_the_connecting_end(one: Kind, other: Kind) {
    let (subscriber, publisher) = pair(one, other, Publish);
    transfer(&publisher, &subscriber, 20_000);
}

fn roundrobin_in_order(one: Kind, other: Kind) {
    let (binding, connecting) = pair(one, other, RoundRobin);
    transfer(&binding, &connecting, 20_000);
    transfer(&connecting, &binding, 20_000);
}

fn publish_reaches_every_subscriber(one: Kind, other: Kind) {
    const COUNT: u64 = 3_000;
    let publisher = one.socket(Publish);
    let address = publisher.bind_loopback();
    let subscribers: Vec<_> = (0..5).map(|_| other.socket(Publish)).collect();
    for subscriber in &subscribers {
        subscriber.connect(&address);
    }
    publisher.wait_for_peers(5);
    publisher.run(|socket| send_numbers(socket, 0..COUNT));
    for subscriber in &subscribers {
        subscriber.run(|socket| expect_numbers(socket, 0..COUNT));
    }
}

fn roundrobin_shares_fairly(one: Kind, other: Kind) {
    const WORKERS: u64 = 3;
    const SHARE: u64 = 500;
    let dispatcher = one.socket(RoundRobin);
    let address = dispatcher.bind_loopback();
    let workers: Vec<_> = (0..WORKERS).map(|_| other.socket(RoundRobin)).collect();
    for worker in &workers {
        worker.connect(&address);
    }
    dispatcher.wait_for_peers(WORKERS as usize);
    dispatcher.run(|socket| send_numbers(socket, 0..WORKERS * SHARE));
    let mut turns = Vec::new();
    for worker in &workers {
        // Every third number: exactly its turn, in order.
        turns.push(worker.run(|socket| {
            let message = socket.recv_within(PATIENCE).expect("a first number");
            let first = u64::from_be_bytes(message[..].try_into().expect("a number"));
            for turn in 1..SHARE {
                let expected = number(first + turn * WORKERS);
                assert_eq!(socket.recv_within(PATIENCE).as_deref(), Some(&expected[..]));
            }
            assert_eq!(socket.recv_within(Duration::from_millis(20)), None, "more than a fair share");
            first
        }));
    }
    turns.sort_unstable();
    assert_eq!(turns, [0, 1, 2]);
}

fn round_trips(one: Kind, other: Kind) {
    const COUNT: u64 = 500;
    let (server, client) = pair(one, other, RoundRobin);
    thread::scope(|scope| {
        scope.spawn(|| {
            server.run(|socket| {
                for _ in 0..COUNT {
                    let request = socket.recv_within(PATIENCE).expect("a request");
                    socket.send_bytes(request);
                    socket.flush();
                }
            });
        });
        client.run(|socket| {
            for value in 0..COUNT {
                socket.send(&number(value));
                expect_numbers(socket, value..value + 1);
            }
        });
    });
}

fn every_size(one: Kind, other: Kind) {
    // All small ones, those around powers of two, and some in between, up to 70,000.
    let powers = (9..17).flat_map(|power| (1 << power) - 12..(1 << power) + 4);
    let sizes: Vec<usize> = (0..300).chain(powers).chain((300..70_001).step_by(997)).collect();
    let (sender, receiver) = pair(one, other, Publish);
    let lengths = sizes.clone();
    thread::scope(|scope| {
        scope.spawn(|| {
            sender.run(|socket| {
                lengths.into_iter().for_each(|length| socket.send(&pattern(length)));
                socket.flush();
            });
        });
        receiver.run(move |socket| {
            for length in sizes {
                let message = socket.recv_within(PATIENCE).expect("a message");
                assert_eq!(message.len(), length);
                assert!(message == pattern(length), "{length} bytes came altered");
            }
        });
    });
}

fn written_in_place(one: Kind, other: Kind) {
    for guarantee in [AtMostOnce, AtLeastOnce] {
        // Small ones through several chunks of the log, with others of every way between them.
        let sizes = || (0..12_000_usize).map(|number| number % 131).chain([4_000, 70_000, 0, 300_000, 64]);
        let set = move |kind: Kind| {
            kind.socket_with(move |builder| builder.send_mode(RoundRobin).delivery_guarantee(guarantee))
        };
        let (sender, receiver) = (set(one), set(other));
        receiver.connect(sender.bind_loopback());
        sender.wait_for_peers(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                sender.run(move |socket| {
                    for (number, size) in sizes().enumerate() {
                        let mut fill = |to: &mut [u8]| {
                            assert_eq!((to.len(), to.iter().all(|byte| *byte == 0)), (size, true), "zero at first");
                            to.copy_from_slice(&pattern(size));
                        };
                        match number % 5 {
                            0 => socket.send(&pattern(size)),
                            1 => socket.send_bytes(Bytes::from(pattern(size))),
                            2 => {
                                while socket.try_send_with(size, &mut fill).is_err() {
                                    socket.flush();
                                }
                            }
                            _ => socket.send_with(size, &mut fill).expect("sent"),
                        }
                    }
                    socket.flush();
                });
            });
            receiver.run(move |socket| {
                for size in sizes() {
                    let message = socket.recv_within(PATIENCE).expect("a message");
                    assert!(message == pattern(size), "{size} bytes came altered, or out of order");
                }
            });
        });
    }
}

fn large_payloads(one: Kind, other: Kind) {
    const SIZES: [usize; 7] = [0, 1 << 20, 0, 300_000, 3 << 20, 1, 5 << 20];
    for by_reference in [false, true] {
        let (sender, receiver) = pair(one, other, RoundRobin);
        thread::scope(|scope| {
            scope.spawn(|| {
                sender.run(move |socket| {
                    for size in SIZES {
                        match by_reference {
                            true => socket.send_bytes(Bytes::from(pattern(size))),
                            false => socket.send(&pattern(size)),
                        }
                    }
                    socket.flush();
                });
            });
            receiver.run(|socket| {
                for size in SIZES {
                    let message = socket.recv_within(PATIENCE).expect("a message");
                    assert_eq!(message.len(), size);
                    assert!(message == pattern(size), "{size} bytes came altered");
                }
            });
        });
    }
}

fn owned_payloads_are_given_back(one: Kind, other: Kind) {
    for (mode, guarantee) in [(Publish, AtMostOnce), (RoundRobin, AtMostOnce), (RoundRobin, AtLeastOnce)] {
        let set =
            move |kind: Kind| kind.socket_with(move |builder| builder.send_mode(mode).delivery_guarantee(guarantee));
        let (sender, receiver) = (set(one), set(other));
        receiver.connect(sender.bind_loopback());
        sender.wait_for_peers(1);
        let payloads: Vec<_> = [16, 20, 300].map(|kib| Bytes::from(pattern(kib * 1024))).into();
        let sent = payloads.clone();
        sender.run(move |socket| {
            sent.into_iter().for_each(|payload| socket.send_bytes(payload));
            socket.flush();
        });
        for payload in &payloads {
            assert_eq!(receiver.recv(), payload);
        }
        // Without anything sent after it that needs the memory.
        eventually("all are the application's own again", || payloads.iter().all(Bytes::is_unique));
    }
}

fn small_and_large_keep_their_order(one: Kind, other: Kind) {
    let length_of = |index: usize| if index.is_multiple_of(3) { 20_000 + index } else { index % 100 };
    let (sender, receiver) = pair(one, other, Publish);
    thread::scope(|scope| {
        scope.spawn(|| {
            sender.run(move |socket| {
                for index in 0..1_000 {
                    socket.send_bytes(Bytes::from(pattern(length_of(index))));
                }
                socket.flush();
            });
        });
        receiver.run(move |socket| {
            for index in 0..1_000 {
                let message = socket.recv_within(PATIENCE).expect("a message");
                assert!(message == pattern(length_of(index)), "message {index}: {} bytes came", message.len());
            }
        });
    });
}

fn identity_of_the_sender(one: Kind, other: Kind) {
    let (binding, connecting) = pair(one, other, Publish);
    assert_ne!(binding.identity(), connecting.identity());
    assert_eq!(binding.peers(), [connecting.identity()]);
    assert_eq!(connecting.peers(), [binding.identity()]);
    connecting.send(b"who am I");
    let (identity, message) = binding.run(|socket| socket.recv_identity());
    assert_eq!((identity, &message[..]), (connecting.identity(), &b"who am I"[..]));
}

fn batches(one: Kind, other: Kind) {
    const COUNT: u64 = 5_000;
    let (sender, receiver) = pair(one, other, Publish);
    let identity = sender.identity();
    thread::scope(|scope| {
        scope.spawn(|| sender.run(|socket| send_numbers(socket, 0..COUNT)));
        receiver.run(move |socket| {
            let mut next = 0;
            while next < COUNT {
                let batch = socket.recv_batch();
                assert_eq!(batch.identity(), identity);
                let before = next;
                // By slices and by `Bytes`, which must agree.
                for (slice, bytes) in (&batch).into_iter().zip(batch.bytes()) {
                    assert_eq!(slice, number(next));
                    assert_eq!(bytes, slice);
                    next += 1;
                }
                assert!(next > before, "an empty batch");
                assert_eq!(next - before, batch.len() as u64);
            }
        });
    });
}

fn binds_and_connects_mixed(one: Kind, other: Kind) {
    // Bound twice, connecting twice.
    let middle = one.socket(Publish);
    let addresses = [middle.bind_loopback(), middle.bind_loopback()];
    let around: Vec<_> = (0..4).map(|_| other.socket(Publish)).collect();
    around[0].connect(&addresses[0]);
    around[1].connect(&addresses[1]);
    middle.connect(around[2].bind_loopback());
    middle.connect(around[3].bind_loopback());
    middle.wait_for_peers(4);
    middle.send(b"to all");
    for peer in &around {
        assert_eq!(peer.recv(), "to all");
        peer.send(b"to the middle");
    }
    let mut senders: Vec<_> = (0..4).map(|_| middle.run(|socket| socket.recv_identity()).0).collect();
    let mut peers: Vec<_> = around.iter().map(Sock::identity).collect();
    senders.sort_unstable();
    peers.sort_unstable();
    assert_eq!(senders, peers);
}
