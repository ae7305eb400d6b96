//! A peer that sends anything at all, in any order and at any time, to a real socket on a real shard over the simulated network: the
//! engine neither panics nor spins nor exceeds its bounds, and a good peer beside it is served.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arbitrary::Unstructured;

use super::next;
use crate::backend::sim::{BackendId, Host, Id};
use crate::protocol::frame::{self, MsgId, frame_len};
use crate::protocol::{HEARTBEAT, Identity, data_head, data_req_head, payload_of};
use crate::shard::{AckMode, DeliveryGuarantee, MIB, SendMode};
use crate::simulation::lone::LoneShard;
use crate::socket::{Received, Socket};

const MS: u64 = 1_000_000;
const LOG_BYTES: usize = MIB;
const RECEIVE_BYTES: usize = 64 << 10;
/// A completion more per connection may arrive beyond the limit.
const RECEIVE_SLACK_BYTES: usize = MIB;
const MESSAGE_BYTES: usize = 50_000;
const LINKS_MAX: usize = 8;
const STEPS_MAX: usize = 200;
const HEARTBEAT_NS: u64 = 4_000 * MS;
const GOOD: u8 = 200;
const ANSWER: &[u8] = b"I am, and so are you";

struct World {
    lone: LoneShard,
    /// Where the peers are.
    peers: BackendId,
    good: Option<Id>,
    /// Where reads go: kept, since a sanitizer makes a new one dear.
    buffer: Vec<u8>,
    /// What the good peer has received of a frame.
    arriving: Vec<u8>,
    /// It has received [`ANSWER`].
    is_answered: bool,
    /// When it says next that it lives.
    beats_ns: u64,
}

/// Bytes, frames and ends on several connections, with calls of the application and time in between.
pub(super) fn link(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(kind) = input.arbitrary::<u8>() else { return };
    let (mut world, socket) = World::new(kind);
    let to = world.run(socket.bind("0.0.0.0:0"), 100).and_then(|bound| bound.ok()?.socket_addr());
    let Some(to) = to else { panic!("a simulated port is free") };
    let dial = |world: &World| world.lone.network.borrow_mut().connect(world.peers, to).ok();
    world.good = dial(&world);
    world.pass(10 * MS);
    world.write(world.good, &frame::hello(&Identity::from([GOOD; 16])));
    world.beats_ns = 0;
    world.pass(10 * MS);
    assert_eq!(socket.peers(), [Identity::from([GOOD; 16])]);

    let mut links = vec![dial(&world)];
    world.pass(10 * MS);
    let mut in_hand: Vec<Received> = Vec::new();
    for _ in 0..STEPS_MAX {
        let (step, pick, amount) = next!(input, (u8, u8, u8));
        let at = usize::from(pick) % links.len();
        let length = (usize::from(amount) * usize::from(pick)).min(input.len());
        match step % 16 {
            0..3 => world.write(links[at], input.bytes(usize::from(amount).min(input.len())).unwrap_or_default()),
            3 => world.write(links[at], &frame::hello(&Identity::from([pick % 16; 16]))),
            4 => {
                let body = input.bytes(length).unwrap_or_default();
                let head = (body.len() as u32 + 1).to_be_bytes();
                world.write(links[at], &[&head, &[amount % 8][..], body].concat());
            }
            5 => {
                let body = input.bytes(length).unwrap_or_default();
                world.write(links[at], &[&data_req_head(MsgId([amount; 16]), body.len())[..], body].concat());
            }
            6 => world.write(links[at], &frame::ack(MsgId([amount; 16]))),
            7 => {
                let id = std::mem::take(&mut links[at]);
                id.into_iter().for_each(|id| world.lone.network.borrow_mut().close(id));
            }
            8 if links.len() < LINKS_MAX => links.push(dial(&world)),
            8 => links[at] = links[at].or_else(|| dial(&world)),
            9 => world.pass(MS << (amount % 16)),
            10 => in_hand.extend(socket.try_recv_message()),
            11 => in_hand.drain(..in_hand.len().min(usize::from(amount))).for_each(|message| message.ack()),
            12 => _ = socket.try_send(&vec![amount; usize::from(pick) * usize::from(amount)][..]),
            13 => _ = socket.try_send_to(Identity::from([pick % 16; 16]), &[amount; 100][..]),
            14 => world.read_away(links[at]),
            _ => world.lone.turns(),
        }
        world.pass(u64::from(amount % 4) * MS);
        let stats = socket.stats();
        assert!(stats.log_bytes as usize <= LOG_BYTES, "{stats:?}");
        assert!(stats.receive_bytes as usize <= RECEIVE_BYTES + RECEIVE_SLACK_BYTES, "{stats:?}");
        assert!(stats.peers as usize <= LINKS_MAX + 1, "{stats:?}");
    }

    // The others go, and the good one is served as ever.
    links.into_iter().flatten().for_each(|id| world.lone.network.borrow_mut().close(id));
    drop(in_hand);
    let question = b"are you there?";
    world.write(world.good, &[&data_head(question.len())[..], question].concat());
    let mut asked = false;
    for _ in 0..1_000 {
        while let Ok((from, message)) = socket.try_recv_identity() {
            asked |= from == Identity::from([GOOD; 16]) && message == question[..];
        }
        if asked {
            break;
        }
        world.pass(10 * MS);
    }
    assert!(asked, "the good peer is not heard");
    socket.try_send_to(Identity::from([GOOD; 16]), ANSWER).expect("there is room for one more");
    for _ in 0..1_000 {
        world.pass(10 * MS);
        if world.is_answered {
            return;
        }
    }
    panic!("the good peer is not answered");
}

impl World {
    fn new(kind: u8) -> (World, Socket) {
        let (lone, engine) = LoneShard::new(kind & 1 == 0, 256 << 10, 4 + usize::from(kind) % 5);
        let builder = Socket::builder()
            .engine(&engine)
            .log_bytes_max(LOG_BYTES)
            .message_bytes_max(MESSAGE_BYTES)
            .receive_bytes_max(RECEIVE_BYTES)
            .peers_max(LINKS_MAX + 1)
            .handshake_timeout(Duration::from_millis(500))
            .publish_stall_max(Duration::from_secs(3600))
            .ack_mode([AckMode::Automatic, AckMode::Manual, AckMode::OnReceipt][usize::from(kind >> 1) % 3]);
        let builder = match kind & 0x80 {
            0 => builder.send_mode(SendMode::Publish),
            _ => builder.send_mode(SendMode::RoundRobin).delivery_guarantee(DeliveryGuarantee::AtLeastOnce),
        };
        let socket = builder.build().expect("settings that go together");
        let peers = lone.network.borrow_mut().sit(Host(1));
        let (buffer, arriving) = (vec![0; 4096], Vec::new());
        (World { lone, peers, good: None, buffer, arriving, is_answered: false, beats_ns: u64::MAX }, socket)
    }

    /// Waits for a call of the application, for so many milliseconds.
    fn run<T>(&mut self, call: impl Future<Output = T>, wait_ms: u64) -> Option<T> {
        let mut call = pin!(call);
        for _ in 0..wait_ms {
            if let Poll::Ready(value) = call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return Some(value);
            }
            self.pass(MS);
        }
        None
    }

    fn write(&self, link: Option<Id>, bytes: &[u8]) {
        if let Some(id) = link {
            // What does not fit, or comes after the end, is not sent.
            let _ = self.lone.network.borrow_mut().write(id, std::iter::once(bytes));
        }
    }

    fn read_away(&mut self, link: Option<Id>) {
        let Some(id) = link else { return };
        // Bounded: what has arrived.
        while let Ok(count @ 1..) = self.lone.network.borrow_mut().read(id, &mut self.buffer) {
            if link == self.good {
                self.arriving.extend_from_slice(&self.buffer[..count]);
            }
        }
        // It acknowledges whatever it is asked to.
        let mut at = 0;
        while let Some(frame) = frame_len(&self.arriving[at..]).and_then(|whole| self.arriving.get(at..at + whole)) {
            at += frame.len();
            if let Some((msg_id, payload)) = payload_of(frame) {
                self.is_answered |= &frame[payload] == ANSWER;
                msg_id.into_iter().for_each(|id| self.write(self.good, &frame::ack(id)));
            }
        }
        self.arriving.drain(..at);
    }

    /// Lets virtual time pass. The good peer reads, and says now and then that it lives.
    fn pass(&mut self, for_ns: u64) {
        let until_ns = self.lone.network.borrow().now_ns() + for_ns;
        loop {
            self.lone.turns();
            self.read_away(self.good);
            if self.lone.network.borrow().now_ns() >= self.beats_ns {
                self.write(self.good, &HEARTBEAT);
                self.beats_ns = self.lone.network.borrow().now_ns() + HEARTBEAT_NS;
            }
            let waits_until_ns = self.lone.waits_until_ns();
            let mut network = self.lone.network.borrow_mut();
            let now_ns = network.now_ns();
            if now_ns >= until_ns {
                return;
            }
            let next_ns = network.next_event_ns().min(waits_until_ns).min(self.beats_ns);
            network.close_dropped();
            network.advance(next_ns.clamp(now_ns + 1, until_ns));
        }
    }
}
