//! Every toxic on every connection, both ways: what is sent at least once arrives once, whatever the network is like.

use std::thread;
use std::time::Duration;

use aiomsg_uring::{Backend, blocking};

use crate::chaos::{Chaos, End, Toxic};
use crate::common::{PATIENCE, eventually_within, number, pattern};
use crate::{engine, hasty, value_of};

on_both!([latency, bandwidth, slow_close, timeout, reset_peer, slicer, limit_data, swallowed_data]);

const COUNT: u64 = 300;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn latency(backend: Backend) {
    flows_through(backend, Toxic::Latency { delay: ms(20), jitter: ms(20) }, usize::MAX);
}

fn bandwidth(backend: Backend) {
    flows_through(backend, Toxic::Bandwidth { bytes_per_s: 150_000 }, usize::MAX);
}

fn slow_close(backend: Backend) {
    flows_through(backend, Toxic::SlowClose { delay: ms(300) }, usize::MAX);
}

fn timeout(backend: Backend) {
    flows_through(backend, Toxic::Timeout { after: ms(50) }, 5);
}

fn reset_peer(backend: Backend) {
    flows_through(backend, Toxic::ResetPeer { after: ms(30) }, 40);
}

fn slicer(backend: Backend) {
    flows_through(backend, Toxic::Slicer { bytes: 37, pause: Duration::from_micros(20) }, usize::MAX);
}

fn limit_data(backend: Backend) {
    flows_through(backend, Toxic::EndAt { bytes: 10_007, how: End::Fin }, 40);
}

fn swallowed_data(backend: Backend) {
    flows_through(backend, Toxic::EndAt { bytes: 20_011, how: End::Silence }, 10);
}

/// Two sockets send to each other through the toxic, which the first so many connections have; nothing is lost.
fn flows_through(backend: Backend, toxic: Toxic, connections: usize) {
    let engine = engine(backend);
    let (one, other) = (hasty(&engine, |builder| builder), hasty(&engine, |builder| builder));
    let address = one.bind("127.0.0.1:0").expect("bound");
    let chaos = Chaos::before(&address, move |number| [Some(toxic).filter(|_| number < connections); 2]);
    other.connect(chaos.address()).expect("connecting");
    thread::scope(|scope| {
        for (sender, receiver) in [(&one, &other), (&other, &one)] {
            scope.spawn(move || {
                for value in 0..COUNT {
                    sender.send(payload(value)).expect("sent");
                    // So that there is something to spoil for a while.
                    thread::sleep(Duration::from_micros(500));
                }
            });
            scope.spawn(move || take_all(receiver, toxic));
        }
    });
    let acknowledged = || [&one, &other].iter().all(|socket| socket.stats().messages_acknowledged == COUNT);
    eventually_within(PATIENCE * 2, &format!("{toxic:?}: all is acknowledged"), acknowledged);
    if connections < usize::MAX {
        assert!(chaos.ends() > 0, "{toxic:?}: no connection ended");
    }
}

fn payload(value: u64) -> Vec<u8> {
    [&number(value)[..], &pattern(value as usize * 7 % 1_500)].concat()
}

fn take_all(receiver: &blocking::Socket, toxic: Toxic) {
    let mut seen = vec![false; COUNT as usize];
    while seen.contains(&false) {
        let message = receiver.recv_timeout(PATIENCE * 2).unwrap_or_else(|error| {
            let missing = seen.iter().filter(|seen| !**seen).count();
            panic!("{toxic:?}: {missing} missing: {error}; {:?}", receiver.stats())
        });
        let value = value_of(&message);
        assert!(message[..] == payload(value), "{toxic:?}: {value} came altered");
        assert!(!std::mem::replace(&mut seen[value as usize], true), "{toxic:?}: {value} came twice");
    }
    // Which acknowledges the last one, too.
    assert!(receiver.try_recv().is_err(), "{toxic:?}: one too many");
}
