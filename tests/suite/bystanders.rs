//! A peer that misbehaves changes nothing for the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aiomsg_uring::SendMode::Publish;

use crate::common::{HEARTBEAT, Kind, RawPeer, data, expect_numbers, frame, hello, send_numbers};

pair_tests!([bad_peers_beside_a_good_one]);

fn bad_peers_beside_a_good_one(one: Kind, other: Kind) {
    const COUNT: u64 = 20_000;
    let publisher = one.socket(Publish);
    let address = publisher.bind_loopback();
    let good = other.socket(Publish);
    good.connect(&address);
    publisher.wait_for_peers(1);

    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        let bad = scope.spawn(|| {
            let mut connections = Vec::new();
            let mut round: u8 = 2;
            while !finished.load(Ordering::Relaxed) && connections.len() < 500 {
                let mut peer = RawPeer::dial(&address);
                match round % 6 {
                    0 => peer.send(b"GET / HTTP/1.1\r\n\r\n"),
                    1 => peer.send(&[0xff; 1_000]),
                    2 => peer.send(&hello(round)[..7]),
                    3 => peer.send(&[hello(round), vec![0xff; 8]].concat()),
                    4 => peer.send(&[hello(round), frame(HEARTBEAT, b"").repeat(1_000)].concat()),
                    _ => peer.send(&[hello(round), data(b"unasked").repeat(10)].concat()),
                }
                round = round.wrapping_add(1).max(2);
                match round % 3 {
                    0 => peer.reset(),
                    1 => peer.close(),
                    _ => connections.push(peer),
                }
            }
        });
        scope.spawn(|| publisher.run(|socket| send_numbers(socket, 0..COUNT)));
        good.run(|socket| expect_numbers(socket, 0..COUNT));
        good.send(b"all there");
        while publisher.recv() != "all there" {}
        finished.store(true, Ordering::Relaxed);
        bad.join().expect("the bad peers ran to their end");
    });
    assert_eq!(good.stats().disconnects, 0);
}
