//! The micro cases: each a state, an untimed preparation and a timed round of a known number of operations.
//!
//! The same cases are timed by criterion and counted in instructions by callgrind; a case does the same work in every
//! round, so that the count per operation does not depend on how many rounds there are. Names are `group/what`. One
//! operation is one message unless the name says otherwise. Called by `micro.rs` only.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use aiomsg_uring::bench_support::{Bell, Deframing, Log, Queues, Reactor, ReqHeads, Route, Slabs, data_head, walk};
use aiomsg_uring::{Backend, Socket, inline};
use bytes::Bytes;

/// Messages in a round of the cases that append or receive 64 B: below the 256 KiB at which `send` sends by itself.
const ROUND: u64 = 2048;

/// One thing to measure.
pub(crate) struct Case {
    /// `group/what`.
    pub(crate) name: &'static str,
    /// Operations in one round.
    pub(crate) operations: u64,
    /// Whether an instruction count says anything: false where threads wait for each other.
    pub(crate) counted: bool,
    make: fn() -> Box<dyn Work>,
}

impl Case {
    /// Its state, made anew.
    pub(crate) fn make(&self) -> Box<dyn Work> {
        (self.make)()
    }
}

/// The state of a case.
pub(crate) trait Work {
    /// Before each round; neither timed nor counted.
    fn prepare(&mut self);
    /// What is measured.
    fn round(&mut self);
}

struct Steps<S, P, R> {
    state: S,
    prepare: P,
    round: R,
}

impl<S, P: FnMut(&mut S), R: FnMut(&mut S)> Work for Steps<S, P, R> {
    fn prepare(&mut self) {
        (self.prepare)(&mut self.state);
    }

    fn round(&mut self) {
        (self.round)(&mut self.state);
    }
}

fn work<S: 'static>(
    state: S,
    prepare: impl FnMut(&mut S) + 'static,
    round: impl FnMut(&mut S) + 'static,
) -> Box<dyn Work> {
    Box::new(Steps { state, prepare, round })
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    case("encode/data head", 4096, || work((), |_| (), |_| each(4096, data_head))),
    case("encode/data_req head", 4096, || work(ReqHeads::new(7), |_| (), |heads| each(4096, |n| heads.next(n)))),
    case("append/64 B", ROUND, || append(64, 1)),
    case("append/64 B, just made", ROUND, || {
        let log = Log::new(1).expect("a log");
        let mut payload = vec![1; 64];
        work(log, drain, move |log| {
            (0..ROUND).for_each(|number| {
                stamp(black_box(&mut payload), number);
                assert!(log.append(&payload));
            });
        })
    }),
    case("append/64 B in place", ROUND, || {
        let log = Log::new(1).expect("a log");
        work(log, drain, |log| {
            (0..ROUND).for_each(|number| assert!(log.append_with(black_box(64), |message| stamp(message, number))));
        })
    }),
    case("append/64 B, 64 links", ROUND, || append(64, 64)),
    case("append/1 KiB", ROUND, || append(1024, 1)),
    case("append/16 KiB by reference", 256, || {
        let payload = Bytes::from(vec![1; 16 << 10]);
        let log = Log::new(1).expect("a log");
        work(log, drain, move |log| (0..256).for_each(|_| assert!(log.append_bytes(payload.clone()))))
    }),
    // One operation: one link's send of 64 KiB, gathered and advanced.
    case("cursor/send of 948 x 64 B, 64 links", 64, || cursor(64)),
    case("cursor/send of 948 x 64 B, 512 links", 512, || cursor(512)),
    case("walk/64 B", 3799, || {
        let run = run_of(3799, 64);
        work((), |_| (), move |_| each(1, |_| walk(black_box(&run))))
    }),
    case("deframe/64 B in 256 KiB", 3799, || deframe(run_of(3799, 64), 3799, 256 << 10)),
    case("deframe/64 B in 8 KiB", 3799, || deframe(run_of(3799, 64), 3799, 8 << 10)),
    case("deframe/1 KiB in 8 KiB", 254, || deframe(run_of(254, 1024), 254, 8 << 10)),
    // Lengths that cannot be foretold, and four of them.
    case("deframe/16 to 111 B in 256 KiB", 3799, || deframe(mixed_run_of(3799, 96), 3799, 256 << 10)),
    case("deframe/16 to 19 B in 256 KiB", 3799, || deframe(mixed_run_of(3799, 4), 3799, 256 << 10)),
    case("route/1 peer", 4096, || route(1, None)),
    case("route/64 peers", 4096, || route(64, None)),
    case("route/64 peers, one full", 4096, || route(64, Some(9))),
    case("hop/command", 1024, || work(Queues::new(), |_| (), |queues| each(1024, |n| queues.command(n as u64)))),
    case("hop/received run", 1024, || work(Queues::new(), |_| (), |queues| each(1024, |n| queues.receive(n as u64)))),
    // One operation: to a sleeping thread and back to this one, which sleeps meanwhile.
    uncounted("hop/there and back, uring", 64, || there_and_back(Backend::Uring)),
    uncounted("hop/there and back, poll", 64, || there_and_back(Backend::Poll)),
    case("doorbell/ring, nobody sleeps", 4096, || work(Bell::new(), |_| (), |bell| each(4096, |_| bell.ring()))),
    case("doorbell/sleep and wake", 4096, || work(Bell::new(), |_| (), |bell| each(4096, |_| bell.sleep()))),
    // From the completion on: lend the slab, one slice for each message, give the slab back.
    case("slab/lend, slice, drop 64 B", 3799, || slab()),
    case("recv/64 B", ROUND, || {
        receive(|socket| {
            for _ in 0..ROUND {
                drop(black_box(socket.try_recv().expect("all have arrived")));
            }
        })
    }),
    case("recv/64 B in batches", ROUND, || {
        receive(|socket| {
            let mut left = ROUND as usize;
            while left > 0 {
                let batch = socket.try_recv_batch().expect("all have arrived");
                left -= batch.iter().map(black_box).count();
            }
        })
    }),
    case("send/64 B, 1 peer", ROUND, || send(1)),
    case("send/64 B, 64 peers", ROUND, || send(64)),
];

const fn case(name: &'static str, operations: u64, make: fn() -> Box<dyn Work>) -> Case {
    Case { name, operations, counted: true, make }
}

const fn uncounted(name: &'static str, operations: u64, make: fn() -> Box<dyn Work>) -> Case {
    Case { name, operations, counted: false, make }
}

/// Does something so many times; the compiler knows neither what goes in nor what becomes of the answer.
fn each<T>(times: usize, mut operation: impl FnMut(usize) -> T) {
    for n in 0..times {
        black_box(operation(black_box(n)));
    }
}

/// Makes a message, as applications do: field by field.
fn stamp(message: &mut [u8], number: u64) {
    message[0] = 1;
    message[8..16].copy_from_slice(&number.to_le_bytes());
}

fn append(payload_bytes: usize, links: usize) -> Box<dyn Work> {
    let payload = vec![1; payload_bytes];
    let log = Log::new(links).expect("a log");
    work(log, drain, move |log| (0..ROUND).for_each(|_| assert!(log.append(black_box(&payload)))))
}

/// Has all links send all that there is: a send takes 256 KiB or more.
fn drain(log: &mut Log) {
    while log.send_all() > 0 {}
}

fn cursor(links: usize) -> Box<dyn Work> {
    let refill = |log: &mut Log| {
        drain(log);
        (0..948).for_each(|_| assert!(log.append(&[1; 64])));
    };
    let log = Log::new(links).expect("a log");
    work(log, refill, |log| assert!(black_box(log.send_all()) > 0))
}

/// So many DATA frames.
fn run_of(messages: usize, payload_bytes: usize) -> Vec<u8> {
    let frame = [&data_head(payload_bytes)[..], &vec![1; payload_bytes]].concat();
    frame.repeat(messages)
}

/// So many DATA frames of `lengths` different lengths, from 16 bytes on, in no order.
fn mixed_run_of(messages: usize, lengths: usize) -> Vec<u8> {
    let mut random = 1_u32;
    let frame = |_| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        run_of(1, 16 + (random >> 16) as usize % lengths)
    };
    (0..messages).flat_map(frame).collect()
}

/// Fed in pieces, so that at each end of a piece a frame straddles.
fn deframe(run: Vec<u8>, messages: usize, piece_bytes: usize) -> Box<dyn Work> {
    let feed = move |deframer: &mut Deframing| {
        let found: u32 = run.chunks(piece_bytes).map(|piece| deframer.feed(piece).expect("short frames")).sum();
        assert_eq!(found as usize, messages);
    };
    work(Deframing::new(), |_| (), feed)
}

fn route(peers: u32, full: Option<u32>) -> Box<dyn Work> {
    work(Route::new(peers, full), |_| (), |route| each(4096, |_| route.turn()))
}

fn there_and_back(backend: Backend) -> Box<dyn Work> {
    let round = |reactor: &mut Reactor| (0..64).for_each(|n| assert_eq!(reactor.round_trip(n), Some(n)));
    work(Reactor::start(backend), |_| (), round)
}

fn slab() -> Box<dyn Work> {
    let run = run_of(3799, 64);
    let slabs = Slabs::new(Backend::Poll).expect("a connection");
    let round = |slabs: &mut Slabs| {
        for piece in slabs.take() {
            let mut at = 0;
            while at + 69 <= piece.len() {
                drop(black_box(piece.slice(at + 5..at + 69)));
                at += 69;
            }
        }
    };
    work(slabs, move |slabs| slabs.fill(&run).expect("received"), round)
}

/// An inline socket and what it needs to live; `peers` speak the protocol on plain connections.
struct Place {
    engine: inline::Engine,
    socket: inline::Socket,
    peers: Vec<TcpStream>,
    buffer: Vec<u8>,
}

impl Place {
    fn new(peers: u8) -> Place {
        let engine = inline::Engine::builder().backend(Backend::Poll).build().expect("an engine");
        let socket = Socket::builder().build_inline(&engine).expect("a socket");
        let address = socket.bind("127.0.0.1:0").expect("bound").socket_addr().expect("an IP address");
        let dial = |number: u8| {
            let mut peer = TcpStream::connect(address).expect("connected");
            peer.write_all(&[&[0, 0, 0, 18, 1, 1], &[number; 16][..]].concat()).expect("a HELLO");
            peer
        };
        let mut place = Place { peers: (1..=peers).map(dial).collect(), engine, socket, buffer: vec![0; 256 << 10] };
        place.socket.wait_for_peers(peers.into(), Duration::from_secs(10)).expect("peers");
        for peer in &mut place.peers {
            peer.read_exact(&mut [0; 22]).expect("a HELLO");
        }
        place
    }

    /// Everybody reads what was sent.
    fn drain(&mut self, bytes: usize) {
        let mut ready = Vec::new();
        self.socket.flush().expect("flushed");
        for peer in &mut self.peers {
            let mut left = bytes;
            while left > 0 {
                self.engine.poll(Some(Duration::ZERO), &mut ready).expect("driven");
                let most = left.min(self.buffer.len());
                left -= peer.read(&mut self.buffer[..most]).expect("read");
            }
        }
    }
}

fn send(peers: u8) -> Box<dyn Work> {
    let mut first = true;
    let prepare = move |place: &mut Place| {
        if !std::mem::take(&mut first) {
            place.drain(ROUND as usize * 69);
        }
    };
    work(Place::new(peers), prepare, |place| {
        (0..ROUND).for_each(|_| place.socket.send(black_box(&[1; 64])).expect("sent"))
    })
}

fn receive(take: impl Fn(&inline::Socket) + 'static) -> Box<dyn Work> {
    let run = run_of(ROUND as usize, 64);
    let mut expected = 0;
    let prepare = move |place: &mut Place| {
        expected += ROUND;
        place.peers[0].write_all(&run).expect("sent");
        let mut ready = Vec::new();
        while place.socket.stats().messages_received < expected {
            place.engine.poll(Some(Duration::from_millis(1)), &mut ready).expect("driven");
        }
    };
    work(Place::new(1), prepare, move |place| take(&place.socket))
}
