//! Counts that do not depend on how fast or how busy the machine is: allocations and system calls per message, doorbells
//! per sleep, and that `send` has no work with peers.
//!
//! Allocations are counted by this program's allocator, for the thread that asks. System calls are the engine's own count
//! of its visits to the kernel. Doorbells are writes of the sending thread, as the kernel accounts them (Linux).
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{Backend, Engine, SendMode, Socket, inline};

/// Passes everything on and counts, for each thread.
struct Counting;

thread_local!(static ALLOCATIONS: Cell<u64> = const { Cell::new(0) });

// SAFETY: all is passed on to the system's allocator; counting touches only a cell that needs no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

const PATIENCE: Duration = Duration::from_secs(15);
/// Messages of a round: with 64 B payloads a little less than the 256 KiB at which `send` sends by itself.
const ROUND: u64 = 3_700;
const PAYLOAD: [u8; 64] = [0x5A; 64];

/// The backends of this machine.
fn backends() -> Vec<Backend> {
    match inline::Engine::builder().backend(Backend::Uring).build() {
        Ok(_) => vec![Backend::Uring, Backend::Poll],
        Err(problem) => {
            say(&format!("SKIPPED: counts on io_uring, because {problem}"));
            vec![Backend::Poll]
        }
    }
}

/// Past the harness, which keeps back what passing tests print.
fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").ok();
}

fn engine(backend: Backend) -> inline::Engine {
    inline::Engine::builder().backend(backend).build().expect("an engine")
}

/// Two sockets on one engine and one thread, which send and receive in rounds.
struct Pair {
    engine: inline::Engine,
    sender: inline::Socket,
    receiver: inline::Socket,
}

impl Pair {
    fn new(backend: Backend, mode: SendMode) -> Pair {
        let engine = engine(backend);
        let socket = || Socket::builder().send_mode(mode).build_inline(&engine).expect("a socket");
        let (sender, receiver) = (socket(), socket());
        receiver.connect(sender.bind("127.0.0.1:0").expect("bound")).expect("connecting");
        sender.wait_for_peers(1, PATIENCE).expect("a peer");
        receiver.wait_for_peers(1, PATIENCE).expect("a peer");
        Pair { engine, sender, receiver }
    }

    fn rounds(&self, rounds: u64) {
        for _ in 0..rounds {
            for number in 0..ROUND {
                match number % 2 {
                    0 => self.sender.send(&PAYLOAD),
                    _ => self.sender.send_with(PAYLOAD.len(), |to| to.copy_from_slice(&PAYLOAD)),
                }
                .expect("sent");
            }
            for _ in 0..ROUND {
                assert_eq!(self.receiver.recv(Some(PATIENCE)).expect("received"), &PAYLOAD[..]);
            }
        }
    }
}

#[test]
fn allocations_per_small_message() {
    for backend in backends() {
        for mode in [SendMode::Publish, SendMode::RoundRobin] {
            let pair = Pair::new(backend, mode);
            // Chunks, queues and vectors reach their sizes.
            pair.rounds(50);
            let before = allocations();
            pair.rounds(100);
            let per_message = (allocations() - before) as f64 / (100 * ROUND) as f64;
            say(&format!("{backend:?} {mode}: {per_message:.5} allocations a message"));
            assert!(per_message < 0.01, "{backend:?} {mode}: {per_message} allocations a message");
        }
    }
}

#[test]
fn system_calls_per_small_message() {
    for backend in backends() {
        for mode in [SendMode::Publish, SendMode::RoundRobin] {
            let pair = Pair::new(backend, mode);
            pair.rounds(10);
            let before = pair.engine.stats().syscalls;
            pair.rounds(100);
            let per_message = (pair.engine.stats().syscalls - before) as f64 / (100 * ROUND) as f64;
            say(&format!("{backend:?} {mode}: {per_message:.5} system calls a message, both ends"));
            // Readiness polling asks, reads and asks again where one visit to the ring does all; neither goes by messages.
            let most = if backend == Backend::Uring { 0.002 } else { 0.006 };
            assert!(per_message < most, "{backend:?} {mode}: {per_message} system calls a message");
        }
    }
}

/// What one burst of `send` did, with nobody driving the engine.
#[derive(Debug, PartialEq)]
struct Cost {
    log_bytes: u64,
    allocations: u64,
    syscalls: u64,
    submissions: u64,
    turns: u64,
    delivered: u64,
}

/// A peer that only says HELLO: a connection is all that it costs.
fn raw_peer(address: std::net::SocketAddr, number: u16) -> TcpStream {
    let mut identity = [0x77; 16];
    identity[..2].copy_from_slice(&number.to_be_bytes());
    let mut peer = TcpStream::connect(address).expect("connected");
    peer.write_all(&[&[0, 0, 0, 18, 1, 1], &identity[..]].concat()).expect("a HELLO");
    peer
}

fn cost_of_send(backend: Backend, mode: SendMode, peers: u16) -> Cost {
    let engine = engine(backend);
    let socket = Socket::builder().send_mode(mode).build_inline(&engine).expect("a socket");
    let address = socket.bind("127.0.0.1:0").expect("bound").socket_addr().expect("an IP address");
    let mut connections = Vec::new();
    for number in 0..peers {
        connections.push(raw_peer(address, number));
        if number % 100 == 99 || number + 1 == peers {
            socket.wait_for_peers(connections.len(), PATIENCE).expect("peers");
        }
    }
    // The log's first chunk is there, and everything that belongs to joining is over.
    let mut ready = Vec::new();
    socket.send(&PAYLOAD).expect("sent");
    socket.flush().expect("flushed");
    let until = Instant::now() + PATIENCE;
    let addressed = if mode == SendMode::Publish { u64::from(peers) } else { 1 };
    while socket.stats().messages_delivered < addressed {
        assert!(Instant::now() < until, "the first message does not go out");
        engine.poll(Some(Duration::from_millis(10)), &mut ready).expect("driven");
    }

    let (stats, shard, allocated) = (socket.stats(), engine.stats(), allocations());
    for _ in 0..1_000 {
        socket.send(&PAYLOAD).expect("sent");
    }
    let allocated = allocations() - allocated;
    let (stats_after, shard_after) = (socket.stats(), engine.stats());
    Cost {
        log_bytes: stats_after.log_bytes - stats.log_bytes,
        allocations: allocated,
        syscalls: shard_after.syscalls - shard.syscalls,
        submissions: shard_after.submissions - shard.submissions,
        turns: shard_after.turns - shard.turns,
        delivered: stats_after.messages_delivered - stats.messages_delivered,
    }
}

#[test]
fn send_has_no_work_with_peers() {
    let peers_max = open_files().map_or(1_000, |files| (files.saturating_sub(200) / 2).min(1_000) as u16);
    for backend in backends() {
        for mode in [SendMode::Publish, SendMode::RoundRobin] {
            let one = cost_of_send(backend, mode, 1);
            let many = cost_of_send(backend, mode, peers_max);
            assert_eq!(one, many, "{backend:?} {mode}: 1 peer and {peers_max} peers");
            let nothing = Cost { log_bytes: 0, allocations: 0, syscalls: 0, submissions: 0, turns: 0, delivered: 0 };
            assert_eq!(one, nothing, "{backend:?} {mode}: 1,000 messages fit into the chunk that was open");
        }
    }
}

/// How many files the process may open, each connection of a test being two.
fn open_files() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Writes of this thread so far; `None` where the kernel does not say. A ring of the doorbell is one; what the reactors
/// write is on other threads, and the output of tests is not written meanwhile.
fn writes_of_this_thread() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("syscw: ")?.trim().parse().ok())
}

#[test]
fn doorbells_per_sleep() {
    if writes_of_this_thread().is_none() {
        return say("SKIPPED: doorbells per sleep, because /proc/thread-self/io does not tell system calls");
    }
    let writes = || writes_of_this_thread().expect("told a moment ago");
    for backend in backends() {
        let reactor = Engine::builder().backend(backend).build().expect("an engine");
        let sender = Socket::builder().engine(&reactor).build_blocking().expect("a socket");
        let address = sender.bind("127.0.0.1:0").expect("bound");
        let receiving = thread::spawn(move || {
            let engine = engine(backend);
            let receiver = Socket::builder().build_inline(&engine).expect("a socket");
            receiver.connect(address).expect("connecting");
            // An empty message ends it.
            while !receiver.recv(Some(PATIENCE)).expect("received").is_empty() {}
        });
        sender.wait_for_peers(1, PATIENCE).expect("a peer");
        let sleeps = || reactor.stats().iter().map(|shard| shard.waits).sum::<u64>();

        // A quiet sender: the reactor sleeps between the messages, so each message rings, and only once.
        const SINGLE: u64 = 50;
        thread::sleep(Duration::from_millis(50));
        let (before, slept_before) = (writes(), sleeps());
        for _ in 0..SINGLE {
            sender.send(&PAYLOAD).expect("sent");
            thread::sleep(Duration::from_millis(3));
        }
        let (rung, slept) = (writes() - before, sleeps() - slept_before);
        // Fewer than messages where the machine is so busy that the reactor does not get to sleep in between.
        assert!((1..=SINGLE).contains(&rung), "{backend:?}: {rung} doorbells for {SINGLE} single messages");
        assert!(rung <= slept + 1, "{backend:?}: {rung} doorbells, {slept} sleeps");

        // Load: never more rings than sleeps. (One sleep may have begun before the first look at the count.)
        const MANY: u64 = 500_000;
        let (rings, slept) = (writes(), sleeps());
        for _ in 0..MANY {
            sender.send(&PAYLOAD).expect("sent");
        }
        let rings = writes() - rings;
        sender.send(b"").expect("sent");
        receiving.join().expect("received everything");
        let slept = sleeps() - slept;
        say(&format!(
            "{backend:?}: {rung} doorbells for {SINGLE} single messages; {rings} for {MANY} at once, {slept} sleeps"
        ));
        assert!(rings <= slept + 1, "{backend:?}: {rings} doorbells, {slept} sleeps");
        assert!(rings * 50 < MANY, "{backend:?}: {rings} doorbells for {MANY} messages");
    }
}
