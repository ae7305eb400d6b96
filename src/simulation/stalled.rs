//! Who is in the way of a publisher under [`SlowPolicy::Block`](crate::SlowPolicy::Block), and for how long, in virtual time: a
//! publisher that never stops on a real shard, and peers that read as the test says.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::lone::LoneShard;
use crate::backend::sim::{Host, Id};
use crate::protocol::{HEARTBEAT, Identity, frame};
use crate::shard::{DisconnectReason, Event, LagLimit, MIB, SlowPolicy};
use crate::socket::Socket;

const MS: u64 = 1_000_000;
/// How long a publisher waits.
const MAX_MS: u64 = 1_000;
/// What the kernels of a connection hold.
const WINDOW_BYTES: usize = 16 << 10;

struct World {
    lone: LoneShard,
    socket: Socket,
    /// The publisher's `send` that waits.
    sending: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// Peers, with what each reads at a time and how often (ms).
    peers: Vec<(Id, usize, u64)>,
    ms: u64,
}

impl World {
    /// A publisher to peers that each read so many bytes every so many milliseconds.
    fn new(ring: bool, limit: LagLimit, habits: &[(usize, u64)]) -> World {
        let (lone, engine) = LoneShard::new(ring, WINDOW_BYTES, 8);
        let socket = Socket::builder()
            .engine(&engine)
            .log_bytes_max(MIB)
            .slow_policy(SlowPolicy::Block { max_wait: Duration::from_millis(MAX_MS) })
            .lag_limit(limit);
        let socket = socket.build().expect("settings that go together");
        let strangers = lone.network.borrow_mut().sit(Host(1));
        let mut world = World { lone, socket, sending: None, peers: Vec::new(), ms: 0 };
        let bound = {
            let socket = world.socket.clone();
            let mut bind = pin!(socket.bind("0.0.0.0:0"));
            loop {
                match bind.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(bound) => break bound.expect("a free port").socket_addr().expect("an address"),
                    Poll::Pending => world.lone.turns(),
                }
            }
        };
        for (at, &(bytes, every_ms)) in habits.iter().enumerate() {
            let id = world.lone.network.borrow_mut().connect(strangers, bound).expect("a listener");
            world.pass(5);
            world.write(id, &frame::hello(&Identity::from([at as u8 + 1; 16])));
            world.peers.push((id, bytes, every_ms));
        }
        world.pass(20);
        assert_eq!(world.socket.peers().len(), habits.len());
        world
    }

    fn write(&self, id: Id, bytes: &[u8]) {
        // Somebody who was disconnected says nothing more.
        let _ = self.lone.network.borrow_mut().write(id, std::iter::once(bytes));
    }

    /// Lets peers do what they do, the publisher send, and time pass.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            self.advance(true);
            self.publish();
        }
    }

    /// A millisecond, in which the shard runs or not.
    fn advance(&mut self, runs: bool) {
        self.ms += 1;
        for &(id, bytes, every_ms) in &self.peers {
            if self.ms.is_multiple_of(every_ms) {
                // As much as has arrived.
                let _ = self.lone.network.borrow_mut().read(id, &mut vec![0; bytes]);
            }
            if self.ms.is_multiple_of(2_000) {
                self.write(id, &HEARTBEAT);
            }
        }
        let until_ns = self.lone.network.borrow().now_ns() + MS;
        loop {
            if runs {
                self.lone.turns();
            }
            let waits_until_ns = if runs { self.lone.waits_until_ns() } else { u64::MAX };
            let mut network = self.lone.network.borrow_mut();
            let now_ns = network.now_ns();
            if now_ns >= until_ns {
                return;
            }
            let next_ns = network.next_event_ns().min(waits_until_ns);
            network.close_dropped();
            network.advance(next_ns.clamp(now_ns + 1, until_ns));
        }
    }

    /// The publisher sends until it has to wait.
    fn publish(&mut self) {
        for _ in 0..10_000 * usize::from(!self.peers.is_empty()) {
            let send = self.sending.get_or_insert_with(|| {
                let socket = self.socket.clone();
                Box::pin(async move { socket.send(vec![7; 1000]).await.expect("an open socket") })
            });
            match send.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(()) => self.sending = None,
                Poll::Pending => return self.lone.turns(),
            }
        }
    }

    /// Who was disconnected, and why.
    fn gone(&self) -> Vec<(Identity, DisconnectReason)> {
        let gone = |event| match event {
            Event::Disconnected { identity, reason, .. } => Some((identity, reason)),
            _ => None,
        };
        std::iter::from_fn(|| self.socket.try_event()).filter_map(gone).collect()
    }

    /// Waits for somebody's end, so many milliseconds at most; answers with how many it took.
    fn until_gone(&mut self, ms: u64) -> Option<(u64, Identity)> {
        (0..ms).find_map(|ms| {
            self.pass(1);
            let (identity, reason) = self.gone().pop()?;
            assert_eq!(reason, DisconnectReason::Stalled);
            Some((ms, identity))
        })
    }
}

/// Both drivers.
fn each(test: impl Fn(bool)) {
    test(false);
    test(true);
}

/// Takes 16 KiB every 0.1 s: a send of 256 KiB takes it longer than the publisher waits for who does not get on.
#[test]
fn who_gets_on_is_never_called_stalled() {
    for limit in [LagLimit::default(), LagLimit { bytes: Some(64 << 10), ..LagLimit::default() }] {
        each(|ring| {
            let mut world = World::new(ring, limit, &[(16 << 10, 100), (64 << 10, 1)]);
            world.pass(20_000);
            assert!(world.socket.stats().send_waits > 0 && world.sending.is_some(), "the publisher waits");
            assert_eq!(world.gone(), [], "ring: {ring}, {limit:?}");
            // It stops: the second counts from its last progress.
            world.peers[0].1 = 0;
            let stopped_ms = world.ms;
            let (ms, who) = world.until_gone(5_000).expect("it holds the publisher");
            assert_eq!(who, Identity::from([1; 16]));
            let since_ms = ms + (stopped_ms - stopped_ms / 100 * 100);
            assert!((MAX_MS..=MAX_MS * 5 / 2).contains(&since_ms), "after {since_ms} ms");
            world.pass(3_000);
            assert_eq!(world.gone(), [], "the other one is free");
        });
    }
}

/// Takes 4 KiB every 0.8 s: enough to be alive, and too little for a publisher to go at its pace.
#[test]
fn who_creeps_goes_after_four_times_as_long() {
    for limit in [LagLimit::default(), LagLimit { bytes: Some(64 << 10), ..LagLimit::default() }] {
        each(|ring| {
            let mut world = World::new(ring, limit, &[(4 << 10, 800), (64 << 10, 1)]);
            let waits_from_ms = world.ms;
            let (ms, who) = world.until_gone(20_000).expect("it holds the publisher");
            assert_eq!(who, Identity::from([1; 16]));
            assert!(
                (4 * MAX_MS..=6 * MAX_MS).contains(&ms),
                "after {ms} ms from {waits_from_ms}, ring: {ring}, {limit:?}"
            );
            world.pass(6_000);
            assert_eq!(world.gone(), [], "the other one is free");
        });
    }
}

/// Two that read by turns, each for 0.7 s: the publisher waits for one or the other for most of the time.
#[test]
fn several_who_are_in_the_way_in_turn_are_each_given_their_time() {
    each(|ring| {
        let mut world = World::new(ring, LagLimit::default(), &[(64 << 10, 1), (64 << 10, 1)]);
        for round in 0..20 {
            (world.peers[round % 2].1, world.peers[(round + 1) % 2].1) = (0, 64 << 10);
            world.pass(700);
        }
        assert_eq!(world.gone(), []);
        assert!(world.socket.stats().send_waits > 10);
    });
}

/// The shard does not run for three seconds; the peers read what the kernel had meanwhile, and go on as soon as it does.
#[test]
fn what_the_reactor_is_late_by_is_not_charged_to_the_peers() {
    each(|ring| {
        let mut world = World::new(ring, LagLimit::default(), &[(16 << 10, 100), (64 << 10, 1)]);
        for _ in 0..5 {
            world.pass(2_000);
            assert!(world.sending.is_some(), "the publisher waits");
            (0..3_000).for_each(|_| world.advance(false));
        }
        world.pass(1_000);
        assert_eq!(world.gone(), []);
    });
}

/// One that has stopped is found in time, also if senders give up and try again all the time.
#[test]
fn who_has_stopped_goes_however_short_each_send_waits() {
    each(|ring| {
        let mut world = World::new(ring, LagLimit::default(), &[(64 << 10, 1)]);
        world.pass(100);
        world.peers[0].1 = 0;
        for ms in 0..5_000 {
            world.pass(1);
            if ms % 50 == 0 {
                world.sending = None;
            }
            if let Some((_, reason)) = world.gone().pop() {
                assert_eq!(reason, DisconnectReason::Stalled);
                return assert!(ms >= MAX_MS, "after {ms} ms");
            }
        }
        panic!("it is still connected");
    });
}
