//! How a turn waits: the doorbell, deadlines, and nothing to do.

use super::*;

#[test]
fn the_doorbell_ends_a_wait() {
    each(|rig| {
        for _ in 0..20 {
            let waker = rig.backend.waker();
            let started = Instant::now();
            let ringer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(2));
                waker.wake();
            });
            let mut rounds = 0;
            while started.elapsed() < Duration::from_millis(2) {
                rig.backend.turn(u64::MAX, &mut rig.inbox).unwrap();
                rounds += 1;
            }
            assert!(rounds < 10, "{}: {rounds} rounds", rig.backend.kind());
            ringer.join().unwrap();
        }
        // Rung before the wait, and several times: heard, once.
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        for _ in 0..3 {
            rig.backend.waker().wake_by_ref();
        }
        rig.backend.turn(u64::MAX, &mut rig.inbox).unwrap();
        assert!(rig.inbox.is_empty());
    });
}

#[test]
fn deadlines() {
    each(|rig| {
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        let started = Instant::now();
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        rig.backend.turn(rig.backend.now_ns() - 1, &mut rig.inbox).unwrap();
        assert!(started.elapsed() < Duration::from_millis(50));
        let deadline_ns = rig.backend.now_ns() + 3_000_000;
        let mut rounds = 0;
        while rig.backend.now_ns() < deadline_ns {
            rig.backend.turn(deadline_ns, &mut rig.inbox).unwrap();
            rounds += 1;
        }
        assert!(rounds < 5 && rig.inbox.is_empty(), "{}: {rounds} rounds", rig.backend.kind());
    });
}

#[test]
fn an_idle_backend_stays_idle() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        rig.send_all(near, b"x");
        rig.received(recv, 1);
        // Hung up and unread: must not be reported over and over to nobody.
        rig.backend.cancel(recv);
        rig.expect_cancelled(recv);
        rig.send_all(near, b"y");
        rig.backend.close(near);
        assert!(rig.stays_silent(recv, 5));
        let before = rig.backend.counters().syscalls;
        assert!(rig.stays_silent(recv, 20));
        let calls = rig.backend.counters().syscalls - before;
        assert!(calls < 10, "{}: {calls} calls", rig.backend.kind());
    });
}
