//! Links that are killed again and again, and partitions that nobody is told of: both ends see each of them, come back, and
//! nothing that was sent at least once is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{Backend, blocking};

use crate::chaos::{Chaos, End};
use crate::common::{PATIENCE, eventually_within, number, say_loudly};
use crate::{engine, hasty, scale, value_of};

on_both!([killed_again_and_again, silent_partitions]);

/// Longer than the receive timeout of [`hasty`].
const PARTITION: Duration = Duration::from_millis(900);

/// What a kill or a partition is given to work on.
struct Flow<'a> {
    chaos: &'a Chaos,
    sender: &'a blocking::Socket,
    receiver: &'a blocking::Socket,
    received: &'a AtomicU64,
}

impl Flow<'_> {
    /// How long until messages arrive that were sent after now.
    fn recovery(&self) -> Duration {
        let began = Instant::now();
        // All that is on the way may have passed the fault; what is accepted from now on has not.
        let next = self.sender.stats().messages_sent;
        eventually_within(PATIENCE, "messages flow again", || self.received.load(SeqCst) > next);
        began.elapsed()
    }

    fn disconnects(&self) -> [u64; 2] {
        [self.sender, self.receiver].map(|socket| socket.stats().disconnects)
    }
}

/// A stream of messages while `faults` does its worst.
fn under_traffic(backend: Backend, faults: impl FnOnce(Flow<'_>)) {
    let engine = engine(backend);
    let (sender, receiver) = (hasty(&engine, |builder| builder), hasty(&engine, |builder| builder));
    let chaos = Chaos::clean_before(&sender.bind("127.0.0.1:0").expect("bound"));
    receiver.connect(chaos.address()).expect("connecting");
    receiver.wait_for_peers(1, PATIENCE).expect("a peer");
    let (received, finished) = (AtomicU64::new(0), AtomicBool::new(false));
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0;
            while !finished.load(SeqCst) {
                sender.send(&number(sent)).expect("sent");
                sent += 1;
                thread::sleep(Duration::from_micros(500));
            }
            sent
        });
        let receiving = scope.spawn(|| {
            let mut seen = Vec::new();
            while let Ok(message) = receiver.recv() {
                let value = value_of(&message) as usize;
                seen.resize(seen.len().max(value + 1), false);
                assert!(!std::mem::replace(&mut seen[value], true), "{value} came twice");
                received.fetch_add(1, SeqCst);
            }
            seen
        });
        let flow = Flow { chaos: &chaos, sender: &sender, receiver: &receiver, received: &received };
        // Whatever is found, the threads have to end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| faults(flow)));
        finished.store(true, SeqCst);
        let sent: u64 = sending.join().expect("all sent");
        if outcome.is_ok() {
            eventually_within(PATIENCE, "all is received", || received.load(SeqCst) == sent);
        }
        receiver.close();
        let seen = receiving.join().expect("received");
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(seen.len() as u64 == sent && !seen.contains(&false), "lost or invented");
        sent
    });
    assert_eq!(sender.stats().messages_expired, 0);
    assert!(sent > 0);
}

fn killed_again_and_again(backend: Backend) {
    let kills = 100 * scale();
    let mut recoveries = Vec::new();
    under_traffic(backend, |flow| {
        for kill in 0..kills {
            let before = flow.disconnects();
            let killed = flow.chaos.kill(if kill % 2 == 0 { End::Reset } else { End::Fin });
            assert!(killed > 0, "there was nothing to kill");
            recoveries.push(flow.recovery());
            eventually_within(PATIENCE, "both ends have seen it", || {
                flow.disconnects().iter().zip(before).all(|(now, before)| *now > before)
            });
        }
    });
    tell("kills", backend, recoveries);
}

fn silent_partitions(backend: Backend) {
    let mut recoveries = Vec::new();
    under_traffic(backend, |flow| {
        for ways in [[true, true], [true, false], [false, true]].repeat(scale()) {
            let before = flow.disconnects();
            flow.chaos.partition(ways);
            thread::sleep(PARTITION);
            flow.chaos.partition([false, false]);
            recoveries.push(flow.recovery());
            eventually_within(PATIENCE, "somebody has seen it", || flow.disconnects() != before);
        }
    });
    tell("partitions", backend, recoveries);
}

fn tell(what: &str, backend: Backend, mut recoveries: Vec<Duration>) {
    recoveries.sort_unstable();
    let at = |share: usize| recoveries[(recoveries.len() - 1) * share / 100];
    say_loudly(&format!(
        "{} {what} on {backend:?}: lost 0, recovery p50 {:?}, p99 {:?}, longest {:?}",
        recoveries.len(),
        at(50),
        at(99),
        at(100)
    ));
}
