//! Receive memory: when it runs out receives wait for some, and many connections share it.

use super::*;

#[test]
fn without_slabs_receives_wait_for_one() {
    let pool = PoolOptions { slab_count: 4, slab_bytes: 16 * 1024 };
    each_with(pool, |rig| {
        let (near, far) = rig.pair();
        let bytes = pattern(1_000_000);
        let send = rig.send(near, vec![Bytes::copy_from_slice(&bytes)]);
        let recv = rig.recv(far);
        let mut got = Vec::new();
        let mut held: Vec<Bytes> = Vec::new();
        let mut starved = 0;
        while got.len() < bytes.len() {
            match rig.inbox.iter().position(|completion| completion.token == recv) {
                Some(at) => match rig.inbox.remove(at).outcome {
                    Outcome::Received(lease) => {
                        got.extend_from_slice(&lease);
                        held.push(lease.into_bytes());
                    }
                    other => panic!("{other:?}"),
                },
                None => {
                    let deadline_ns = rig.backend.now_ns() + 3_000_000;
                    let before = rig.inbox.len();
                    rig.backend.turn(deadline_ns, &mut rig.inbox).unwrap();
                    if rig.inbox.len() == before && rig.backend.now_ns() >= deadline_ns {
                        starved += 1;
                        assert!(!held.is_empty(), "{}: nothing held, nothing comes", rig.backend.kind());
                        assert_eq!(rig.backend.slabs().free, 0);
                        // Given back on another thread, which rings.
                        let give = std::mem::take(&mut held);
                        std::thread::spawn(move || drop(give)).join().unwrap();
                    }
                }
            }
        }
        assert!(got == bytes);
        assert!(starved > 5, "{}", rig.backend.kind());
        rig.expect_sent(send, bytes.len());
        let counters = rig.backend.counters();
        assert!(counters.enobufs >= starved && counters.enobufs < 1000, "{counters:?}");
        drop(held);
        rig.backend.close(far);
        rig.expect_cancelled(recv);
        let slabs = rig.backend.slabs();
        assert!(slabs.free >= slabs.total - 1, "{slabs:?}");
    });
}

#[test]
fn a_starved_receive_can_be_cancelled_and_closed() {
    let pool = PoolOptions { slab_count: 1, slab_bytes: 16 * 1024 };
    each_with(pool, |rig| {
        let (near, far) = rig.pair();
        rig.send_all(near, &pattern(100_000));
        let recv = rig.recv(far);
        let Outcome::Received(lease) = rig.next(recv) else { panic!() };
        let held = lease.into_bytes();
        assert!(rig.stays_silent(Token(0), 5));
        rig.inbox.retain(|completion| completion.token != recv);
        rig.backend.cancel(recv);
        rig.expect_cancelled(recv);
        let recv = rig.recv(far);
        assert!(rig.stays_silent(recv, 5));
        rig.backend.close(far);
        rig.expect_cancelled(recv);
        drop(held);
    });
}

#[test]
fn many_connections_share_slabs() {
    each(|rig| {
        let (listener, address) = rig.listen();
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        let pairs: Vec<_> = (0..300).map(|_| rig.connect(&address, accepts)).collect();
        let recvs: Vec<_> = pairs.iter().map(|&(_, far)| rig.recv(far)).collect();
        for round in 0..3u8 {
            let sends: Vec<_> = pairs
                .iter()
                .enumerate()
                .map(|(at, &(near, _))| rig.send(near, vec![Bytes::from(vec![at as u8 ^ round; 100 + at])]))
                .collect();
            for (at, (&recv, &send)) in recvs.iter().zip(&sends).enumerate() {
                assert_eq!(rig.received(recv, 100 + at), vec![at as u8 ^ round; 100 + at]);
                rig.expect_sent(send, 100 + at);
            }
            let slabs = rig.backend.slabs();
            assert!(slabs.free >= slabs.total.saturating_sub(900), "{slabs:?}");
        }
        for &(near, far) in &pairs {
            rig.backend.close(near);
            rig.backend.close(far);
        }
        for recv in recvs {
            rig.expect_cancelled(recv);
        }
    });
}
