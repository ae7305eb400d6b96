//! What is done about a peer that does not keep up, for each policy: one that does not read among some that do. Those get everything, in order;
//! that one, when it reads again, sees whole frames in rising order, and what it missed was counted to the message.

use std::time::{Duration, Instant};

use aiomsg_uring::SendMode::Publish;
use aiomsg_uring::{
    Address, BindOptions, DisconnectReason, DropCause, Event, Identity, LagLimit, SlowPolicy, SocketBuilder, blocking,
};

use crate::common::{PATIENCE, RawPeer, eventually};
use crate::{Row, bound, wait_for_peers};

row_tests!([
    drop_oldest_skips_to_the_newest,
    drop_newest_keeps_the_oldest,
    large_messages_are_skipped_whole,
    disconnected_after_a_while,
    the_publisher_waits_at_the_limit_and_no_longer_than_allowed,
    a_limit_in_messages,
    what_is_too_old_is_dropped,
    policies_of_single_peers_and_listeners,
    a_policy_is_changed_while_the_peer_is_stalled,
    messages_by_identity_are_not_skipped_and_keep_their_place,
]);

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const HEALTHY: usize = 3;
/// Messages between two looks at those that read.
const ROUND: u64 = 32;

/// A publisher, those who read, and one that does not.
struct Scene {
    publisher: blocking::Socket,
    healthy: Vec<blocking::Socket>,
    stalled: RawPeer,
    sent: u64,
    bytes: fn(u64) -> usize,
    log_bytes_max: usize,
}

impl Scene {
    fn new(row: Row, policy: SlowPolicy, limit: LagLimit, bytes: fn(u64) -> usize) -> Scene {
        let log_bytes_max = 8 * MIB;
        let publisher =
            row.socket(|builder| publisher(builder).slow_policy(policy).lag_limit(limit).log_bytes_max(log_bytes_max));
        let address = bound(&publisher);
        let healthy: Vec<_> = (0..HEALTHY).map(|_| row.plain(Publish)).collect();
        healthy.iter().for_each(|healthy| healthy.connect(&address).expect("connecting"));
        let stalled = stalled(&address);
        wait_for_peers(&publisher, HEALTHY + 1);
        Scene { publisher, healthy, stalled, sent: 0, bytes, log_bytes_max }
    }

    /// Publishes, and sees that all who read get each message.
    fn publish(&mut self, messages: u64) {
        let end = self.sent + messages;
        while self.sent < end {
            // Those who read are not to be over the limit by themselves.
            let messages = if (self.bytes)(self.sent) > MIB { 1 } else { ROUND };
            let round = self.sent..(self.sent + messages).min(end);
            for number in round.clone() {
                self.publisher.send(message(number, (self.bytes)(number))).expect("sent");
            }
            for healthy in &self.healthy {
                for number in round.clone() {
                    let got = healthy.recv_timeout(PATIENCE).expect("a message in time");
                    assert!(got == message(number, (self.bytes)(number)), "message {number}");
                }
            }
            self.sent = round.end;
            let held = self.publisher.stats().log_bytes as usize;
            assert!(held <= self.log_bytes_max, "{held} bytes of log");
        }
    }

    /// What the stalled peer finds, up to message `last`; each must be whole and later than the one before.
    fn read_until(&mut self, last: u64) -> Vec<u64> {
        let mut numbers: Vec<u64> = Vec::new();
        while numbers.last() != Some(&last) {
            let (_, payload) = self.stalled.read_past_heartbeats().expect("a frame, not the end");
            let number = u64::from_be_bytes(*payload.first_chunk().expect("a number"));
            assert!(payload == message(number, (self.bytes)(number)), "message {number}");
            assert!(numbers.last().is_none_or(|before| *before < number), "{number} after {:?}", numbers.last());
            numbers.push(number);
        }
        numbers
    }

    /// Everything that the stalled peer was to get it has got, or was counted.
    fn account(&self, received: usize) {
        // A send is counted when it has ended, which may be after what it sent was read.
        eventually("everything is counted", || {
            let stats = self.publisher.stats();
            stats.is_balanced() && stats.messages_queued == 0
        });
        let stats = self.publisher.stats();
        assert_eq!((received as u64 + stats.messages_dropped, stats.disconnects), (self.sent, 0), "{stats:?}");
        assert_eq!(stats.messages_addressed, self.sent * (HEALTHY as u64 + 1));
    }

    fn events(&self) -> Vec<Event> {
        std::iter::from_fn(|| self.publisher.try_event()).collect()
    }
}

/// The identity of the peer that does not read.
fn stalled_identity() -> Identity {
    Identity::from_bytes([200; 16])
}

fn publisher(builder: SocketBuilder) -> SocketBuilder {
    let builder = builder.send_mode(Publish).message_bytes_max(4 * MIB).send_buffer_bytes(64 * KIB);
    // The peer that does not read says nothing either, for as long as the test takes.
    builder.receive_timeout(PATIENCE * 10)
}

fn stalled(address: &Address) -> RawPeer {
    let mut peer = RawPeer::dial_narrow(address, 16 * KIB);
    peer.shake_hands(200);
    peer
}

/// Says its number, again and again.
fn message(number: u64, bytes: usize) -> Vec<u8> {
    number.to_be_bytes().into_iter().cycle().take(bytes.max(8)).collect()
}

fn mixed(number: u64) -> usize {
    match number % 50 {
        7 => 40 * KIB,
        8 => 300 * KIB,
        rest => 8 + (rest as usize * 97) % 3000,
    }
}

fn limit(bytes: usize) -> LagLimit {
    LagLimit { bytes: Some(bytes), ..LagLimit::default() }
}

fn dropped(events: &[Event], wanted: DropCause) -> u64 {
    let of = |event: &Event| match event {
        Event::Dropped { messages, cause, .. } if *cause == wanted => *messages,
        _ => 0,
    };
    events.iter().map(of).sum()
}

fn drop_oldest_skips_to_the_newest(row: Row) {
    let mut scene = Scene::new(row, SlowPolicy::DropOldest, limit(MIB), mixed);
    let began = Instant::now();
    scene.publish(3_000);
    let last = scene.sent - 1;
    let received = scene.read_until(last);
    assert!(received.len() > 2, "what was under way has to arrive, {received:?}");
    scene.account(received.len());
    // In step again: nothing more is dropped.
    scene.publish(20);
    assert_eq!(scene.read_until(scene.sent - 1), (last + 1..scene.sent).collect::<Vec<_>>());
    eventually("all drops are told", || {
        let events = scene.events();
        let slow = events.iter().filter(|event| matches!(event, Event::Slow { .. })).count() as u64;
        // At most one per second.
        assert!(slow <= 1 + began.elapsed().as_secs(), "{events:?}");
        dropped(&events, DropCause::Oldest) > 0
    });
}

fn drop_newest_keeps_the_oldest(row: Row) {
    let mut scene = Scene::new(row, SlowPolicy::DropNewest, limit(MIB), mixed);
    scene.publish(2_000);
    let dropped_at_first = scene.publisher.stats().messages_dropped;
    assert!(dropped_at_first > 0);
    // All that was kept is a beginning without a gap.
    let kept = scene.sent - dropped_at_first;
    let received = scene.read_until(kept - 1);
    assert_eq!(received, (0..kept).collect::<Vec<_>>());
    eventually("it is told as in step again", || {
        scene.publisher.try_event().is_some_and(|event| matches!(event, Event::CaughtUp { .. }))
    });
    scene.publish(20);
    let more = scene.read_until(scene.sent - 1);
    assert_eq!(more, (scene.sent - 20..scene.sent).collect::<Vec<_>>());
    scene.account(received.len() + more.len());
}

fn large_messages_are_skipped_whole(row: Row) {
    // Larger than the limit, and than all buffers on the way: each is partly sent for a while.
    let mut scene = Scene::new(row, SlowPolicy::DropOldest, limit(MIB), |number| 2 * MIB + number as usize);
    scene.publish(40);
    let received = scene.read_until(scene.sent - 1);
    scene.account(received.len());
    assert_eq!(received.first(), Some(&0), "one that has begun is finished");
    assert!(received.len() <= 4, "{received:?}");
}

fn a_limit_in_messages(row: Row) {
    let limit = LagLimit { messages: Some(100), ..LagLimit::default() };
    let mut scene = Scene::new(row, SlowPolicy::DropOldest, limit, |_| 5 * KIB);
    scene.publish(2_000);
    // Its shard may look at the last ones a while later; and what a send has taken, 256 KiB at most, is not dropped any more.
    let in_hand = 256 / 5 + 1;
    eventually("it is within its limit", || scene.publisher.stats().messages_queued <= 100 + in_hand);
    let received = scene.read_until(scene.sent - 1);
    scene.account(received.len());
    let gap = received.windows(2).rposition(|pair| pair[1] != pair[0] + 1).expect("a gap");
    // What comes after the last gap was within the limit, or was handed over while more was published.
    let after = received.len() - 1 - gap;
    assert!((50..200).contains(&after), "{after} after the gap: {received:?}");
}

fn disconnected_after_a_while(row: Row) {
    let after = Duration::from_millis(400);
    let mut scene = Scene::new(row, SlowPolicy::Disconnect { after }, limit(MIB), mixed);
    let began = Instant::now();
    let mut gone = None;
    while gone.is_none() {
        assert!(began.elapsed() < PATIENCE, "still connected");
        scene.publish(100);
        gone = scene.events().into_iter().find_map(|event| match event {
            Event::Disconnected { reason, .. } => Some(reason),
            _ => None,
        });
    }
    assert_eq!(gone, Some(DisconnectReason::Slow));
    assert!(began.elapsed() >= after);
    eventually("all is counted", || {
        let stats = scene.publisher.stats();
        stats.messages_delivered + stats.messages_dropped >= scene.sent * HEALTHY as u64 + 100
    });
    assert_eq!(scene.publisher.peers().len(), HEALTHY);
}

fn the_publisher_waits_at_the_limit_and_no_longer_than_allowed(row: Row) {
    // Longer than a busy machine keeps one of those who read from doing so.
    let max_wait = Duration::from_secs(2);
    let mut scene = Scene::new(row, SlowPolicy::Block { max_wait }, limit(MIB), |_| 1_000);
    let mut longest = Duration::ZERO;
    let began = Instant::now();
    while scene.publisher.peers().len() > HEALTHY {
        assert!(began.elapsed() < PATIENCE, "still connected");
        let before = Instant::now();
        scene.publisher.send(message(scene.sent, 1_000)).expect("sent");
        longest = longest.max(before.elapsed());
        scene.sent += 1;
    }
    assert!(longest >= max_wait / 2, "it never waited: {longest:?}");
    for healthy in &scene.healthy {
        for number in 0..scene.sent {
            assert!(healthy.recv_timeout(PATIENCE).expect("a message in time") == message(number, 1_000));
        }
    }
    // Far from the log's 8 MiB: what was in the kernel, and the limit, and what was sent before it was noticed.
    let stats = scene.publisher.stats();
    assert!(scene.sent < 6_000, "{} messages, {stats:?}", scene.sent);
    let stalled = |event: &Event| matches!(event, Event::Disconnected { reason: DisconnectReason::Stalled, .. });
    eventually("it is told", || scene.publisher.try_event().is_some_and(|event| stalled(&event)));
}

fn what_is_too_old_is_dropped(row: Row) {
    let age = Duration::from_secs(2);
    let limit = LagLimit { age: Some(age), ..LagLimit::default() };
    let mut scene = Scene::new(row, SlowPolicy::DropOldest, limit, |_| 20 * KIB);
    // More than the kernel holds: what follows waits, and grows old with nobody sending anything.
    scene.publish(50);
    eventually("all that waits becomes too old, but for the frame that has begun", || {
        let stats = scene.publisher.stats();
        stats.is_balanced() && stats.drops.of(DropCause::TooOld) > 0 && stats.messages_queued <= 1
    });
    let drops = scene.publisher.stats().drops;
    assert_eq!(drops.of(DropCause::TooOld), drops.total(), "{drops:?}");
    let dropped = drops.total();
    // Fresh ones go out.
    scene.publish(1);
    let received = scene.read_until(scene.sent - 1);
    assert_eq!(received.len() as u64 + dropped, scene.sent);
    scene.account(received.len());
}

fn policies_of_single_peers_and_listeners(row: Row) {
    const COUNT: u64 = 3_000;
    let publisher = row.socket(|builder| publisher(builder).log_bytes_max(8 * MIB).publish_stall_max(PATIENCE));
    let address = bound(&publisher);
    let lossy = BindOptions::new().slow_policy(SlowPolicy::DropOldest, limit(256 * KIB));
    let lossy = publisher.bind_with("127.0.0.1:0", lossy).expect("bound");
    // One that is known by its identity before it comes, one that comes in at the second address, one that is as all are.
    publisher.set_slow_policy(stalled_identity(), SlowPolicy::DropNewest, limit(512 * KIB)).expect("set");
    let mut named = stalled(&address);
    let mut by_listener = RawPeer::dial_narrow(&lossy, 16 * KIB);
    by_listener.shake_hands(201);
    let healthy = row.plain(Publish);
    healthy.connect(&address).expect("connecting");
    wait_for_peers(&publisher, 3);
    // At full rate, and with no message lost for the one who waits to be waited for.
    std::thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|number| publisher.send(message(number, 5 * KIB)).expect("sent")));
        for number in 0..COUNT {
            assert!(healthy.recv_timeout(PATIENCE).expect("a message in time") == message(number, 5 * KIB));
        }
    });
    let first = u64::from_be_bytes(*named.read_data().first_chunk().expect("a number"));
    assert_eq!(first, 0);
    let mut last = 0;
    while last < COUNT - 1 {
        let number = u64::from_be_bytes(*by_listener.read_data().first_chunk().expect("a number"));
        assert!(number > last || number == 0, "{number} after {last}");
        last = number;
    }
    eventually("all is accounted for", || publisher.stats().is_balanced());
    let of = |name: u8| {
        let name = Identity::from_bytes([name; 16]);
        publisher.peer_stats().into_iter().find(|peer| peer.identity == name).expect("a peer").drops
    };
    let (named, by_listener) = (of(200), of(201));
    assert!(named.of(DropCause::Newest) > 0 && named.of(DropCause::Oldest) == 0, "{named:?}");
    assert!(by_listener.of(DropCause::Oldest) > 0 && by_listener.of(DropCause::Newest) == 0, "{by_listener:?}");
    assert_eq!(publisher.stats().messages_dropped, named.total() + by_listener.total());
    assert_eq!(publisher.stats().disconnects, 0);
}

fn a_policy_is_changed_while_the_peer_is_stalled(row: Row) {
    let mut scene = Scene::new(row, SlowPolicy::DropNewest, limit(MIB), mixed);
    scene.publish(1_500);
    let dropped = scene.publisher.stats().drops;
    assert!(dropped.of(DropCause::Newest) > 0 && dropped.of(DropCause::Oldest) == 0, "{dropped:?}");
    let set = |policy| scene.publisher.set_slow_policy(stalled_identity(), policy, limit(MIB)).expect("set");
    set(SlowPolicy::DropOldest);
    scene.publish(1_500);
    assert!(scene.publisher.stats().drops.of(DropCause::Oldest) > 0);
    let received = scene.read_until(scene.sent - 1);
    scene.account(received.len());
    // Back to what was said for all, and to another one that ends it.
    scene.publisher.clear_slow_policy(stalled_identity()).expect("cleared");
    scene.publish(1_000);
    let policy = SlowPolicy::Disconnect { after: Duration::from_millis(50) };
    scene.publisher.set_slow_policy(stalled_identity(), policy, limit(KIB)).expect("set");
    scene.publish(1_000);
    eventually("it is disconnected", || scene.publisher.peers().len() == HEALTHY);
    eventually("all is accounted for", || scene.publisher.stats().is_balanced());
}

fn messages_by_identity_are_not_skipped_and_keep_their_place(row: Row) {
    for policy in [SlowPolicy::DropOldest, SlowPolicy::DropNewest] {
        let mut scene = Scene::new(row, policy, limit(MIB), mixed);
        let mut by_identity = Vec::new();
        for _ in 0..30 {
            scene.publish(64);
            // It comes after all that was published before, and before the rest.
            let mark = scene.sent;
            let message = [&b"only you "[..], &mark.to_be_bytes()].concat();
            scene.publisher.send_to(stalled_identity(), message).expect("sent");
            by_identity.push(mark);
        }
        // The peer reads while more comes, so that the newest arrive under both policies.
        let mut marks = Vec::new();
        let mut last = None;
        let mut received = 0;
        while marks.len() < by_identity.len() {
            let payload = scene.stalled.read_data();
            match payload.strip_prefix(b"only you ") {
                Some(mark) => {
                    let mark = u64::from_be_bytes(mark.try_into().expect("a number"));
                    assert!(last.is_none_or(|last| last < mark), "{mark} came after {last:?}");
                    marks.push(mark);
                }
                None => {
                    let number = u64::from_be_bytes(*payload.first_chunk().expect("a number"));
                    assert!(payload == message(number, mixed(number)), "message {number}");
                    assert!(last.is_none_or(|last| last < number), "{number} came after {last:?}");
                    assert!(marks.last().is_none_or(|mark| *mark <= number), "{number} came after {marks:?}");
                    last = Some(number);
                    received += 1;
                }
            }
        }
        assert_eq!(marks, by_identity);
        let stats = scene.publisher.stats();
        assert!(stats.messages_dropped > 0 && received > 0, "{stats:?}");
    }
}
