//! This library in the roles of a peer benchmark: `pub`, `sub`, `ping`, `pong`, `hold`, `idle`.
//! Two processes over loopback TCP, one JSON line each; a driver starts them and reads the lines.
//!
//! Switches (`--x NAME` or `--x NAME=VALUE`):
//! `inline` or `sharded` (default): who drives the reactor. `uring` or `poll`: the backend, else the
//! library's choice. `shards=N`: reactor threads. `spin`: busy waiting before parking. `publish`:
//! the push pattern through a PUBLISH socket with its one peer, else ROUNDROBIN. `alone`: each
//! message goes out by itself. `batch`: received by the borrowed batch call. `owned`: messages are sent as
//! `Bytes`, which are the application's again once sent, instead of borrowed slices. `in_place`: each
//! message is written where it is sent from. `acknowledged`: AT_LEAST_ONCE. `--pattern push` with more
//! than one `--subs`: ROUNDROBIN to so many workers, in one process.

mod support;

use std::collections::VecDeque;
use std::error::Error;
use std::ops::ControlFlow::{self, Break, Continue};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{
    Backend, Batch, DeliveryGuarantee, Engine, SendMode, Socket, SocketBuilder, SocketId, TryRecvError, blocking,
    inline,
};
use bytes::{Bytes, BytesMut};
use support::latency::RoundTrips;
use support::message::{DATA, message, stamp};
use support::options::Options;
use support::receiver::{Counter, Receiver};
use support::sender::{END_INTERVAL, PROBE_INTERVAL, Sender};
use support::usage::rss_kb;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// How long `--x spin` keeps a thread busy before it parks: some round trips.
const SPIN: Duration = Duration::from_millis(1);

fn main() -> Outcome {
    let options = Options::from_args();
    let is_inline = options.has("inline");
    match options.role.as_str() {
        "pub" if is_inline => publish_inline(&options),
        "sub" if is_inline => subscribe_inline(&options),
        "ping" if is_inline => ping_inline(&options),
        "pong" if is_inline => pong_inline(&options),
        "hold" | "idle" if is_inline => links_inline(&options),
        "pub" => publish(&options),
        "sub" => subscribe(&options),
        "ping" => ping(&options),
        "pong" => pong(&options),
        "hold" | "idle" => links(&options),
        role => Err(format!("there is no role {role:?}").into()),
    }
}

fn endpoint(options: &Options) -> (&'static str, u16) {
    ("127.0.0.1", options.port)
}

fn backend(options: &Options) -> Backend {
    match (options.has("uring"), options.has("poll")) {
        (true, _) => Backend::Uring,
        (_, true) => Backend::Poll,
        _ => Backend::Auto,
    }
}

fn spin(options: &Options) -> Duration {
    if options.has("spin") { SPIN } else { Duration::ZERO }
}

/// A socket of the pattern that the command line asks for.
fn socket(options: &Options) -> SocketBuilder {
    let publishes = options.is_fan_out() || options.has("publish");
    let builder = Socket::builder()
        .send_mode(if publishes { SendMode::Publish } else { SendMode::RoundRobin })
        .delivery_guarantee(match options.has("acknowledged") {
            true => DeliveryGuarantee::AtLeastOnce,
            false => DeliveryGuarantee::AtMostOnce,
        })
        .peers_max(options.subs + 16);
    match options.hwm {
        0 => builder,
        messages => {
            let log_bytes = (messages * (options.size + 5)).max(1 << 20).max(2 * options.size);
            builder.log_bytes_max(log_bytes).message_bytes_max(log_bytes / 2)
        }
    }
}

/// Stamps the message and sends it.
macro_rules! send {
    ($socket:expr, $message:expr, $index:expr, $how:expr, $owned:expr) => {
        match $how {
            How::Borrowed => {
                stamp(&mut $message, DATA, $index);
                $socket.send(&$message[..])
            }
            How::Owned => $socket.send($owned.stamped($index)),
            How::InPlace => $socket.send_with($message.len(), |message| stamp(message, DATA, $index)),
        }
    };
}

/// How a message is given to `send`.
#[derive(Clone, Copy)]
enum How {
    Borrowed,
    /// Out of [`Owned`].
    Owned,
    /// Zero where it is not stamped.
    InPlace,
}

impl How {
    fn of(options: &Options) -> How {
        match (options.has("in_place"), options.has("owned")) {
            (true, _) => How::InPlace,
            (_, true) => How::Owned,
            _ => How::Borrowed,
        }
    }
}

/// Messages in memory of the application's, each of which is stamped again once the library has given it back.
struct Owned {
    messages: VecDeque<Bytes>,
}

impl Owned {
    /// 512 KiB of them: while one half is being sent the other is stamped. None if they are not asked for.
    fn new(options: &Options) -> Owned {
        let count = if options.has("owned") { ((512 << 10) / options.size).max(2) } else { 0 };
        Owned { messages: (0..count).map(|_| message(DATA, 0, options.size).into()).collect() }
    }

    /// Whether the library still has the one that is next.
    fn is_lent(&self) -> bool {
        self.messages.front().is_some_and(|message| !message.is_unique())
    }

    fn stamped(&mut self, index: u64) -> Bytes {
        let next = self.messages.pop_front().unwrap_or_default();
        let mut message = next.try_into_mut().unwrap_or_else(|lent| BytesMut::from(&lent[..]));
        stamp(&mut message, DATA, index);
        let message = message.freeze();
        self.messages.push_back(message.clone());
        message
    }
}

// --- inline: this thread drives the engine ---------------------------------------------------

fn engine_inline(options: &Options) -> Outcome<inline::Engine> {
    Ok(inline::Engine::builder().backend(backend(options)).spin(spin(options)).build()?)
}

fn publish_inline(options: &Options) -> Outcome {
    let mut sender = Sender::new(options)?;
    let engine = engine_inline(options)?;
    let socket = socket(options).build_inline(&engine)?;
    socket.bind(endpoint(options))?;
    let (how, alone) = (How::of(options), options.has("alone"));
    // Each worker gets one of what every peer has to get.
    let rounds = if options.is_shared() { options.subs } else { 1 };
    let mut ready = Vec::new();
    while let Some(probe) = sender.probe() {
        for _ in 0..rounds {
            socket.send(&probe)?;
        }
        socket.flush()?;
        drive(&engine, PROBE_INTERVAL, &mut ready)?;
    }
    let mut owned = Owned::new(options);
    let mut data = message(DATA, 0, options.size);
    sender.start();
    for index in 0..options.count {
        while !sender.is_open(index) || owned.is_lent() {
            socket.flush()?;
            engine.poll(Some(Duration::from_micros(100)), &mut ready)?;
        }
        send!(socket, data, index, how, owned)?;
        if alone {
            socket.flush()?;
        }
    }
    socket.flush()?;
    sender.sent();
    while let Some(end) = sender.end() {
        for _ in 0..rounds {
            socket.send(&end)?;
        }
        socket.flush()?;
        drive(&engine, END_INTERVAL, &mut ready)?;
    }
    sender.report()
}

/// Drives the engine for so long.
fn drive(engine: &inline::Engine, time: Duration, ready: &mut Vec<SocketId>) -> Outcome {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        engine.poll(Some(left), ready)?;
        if left.is_zero() {
            return Ok(());
        }
    }
}

fn subscribe_inline(options: &Options) -> Outcome {
    let links = options.subs;
    let receiver = Receiver::new(options, links)?;
    let engine = engine_inline(options)?;
    let mut sockets = Vec::with_capacity(links);
    for _ in 0..links {
        let socket = socket(options).build_inline(&engine)?;
        socket.connect(endpoint(options))?;
        sockets.push((socket, receiver.counter(), true));
    }
    let batch = options.has("batch");
    let mut ready = Vec::new();
    let mut waiting = links;
    while waiting > 0 {
        engine.poll(None, &mut ready)?;
        for id in &ready {
            // Ids count from 0 in the order in which the sockets were built.
            let (socket, counter, is_waiting) = &mut sockets[id.index()];
            let outcome = if batch { drain_batches(socket, counter)? } else { drain(socket, counter)? };
            if outcome.is_break() && std::mem::take(is_waiting) {
                waiting -= 1;
            }
        }
    }
    receiver.report(sockets.into_iter().map(|(_, counter, _)| counter).collect())
}

/// Counts what is there; breaks when there is nothing more to wait for.
fn drain(socket: &inline::Socket, counter: &mut Counter) -> Outcome<ControlFlow<()>> {
    loop {
        match socket.try_recv() {
            Ok(message) if counter.count(&message) => {}
            Ok(_) => return Ok(Break(())),
            Err(TryRecvError::Empty) => return Ok(Continue(())),
            Err(error) => return Err(error.into()),
        }
    }
}

fn drain_batches(socket: &inline::Socket, counter: &mut Counter) -> Outcome<ControlFlow<()>> {
    loop {
        match socket.try_recv_batch() {
            Ok(batch) if count_batch(&batch, counter) => {}
            Ok(_) => return Ok(Break(())),
            Err(TryRecvError::Empty) => return Ok(Continue(())),
            Err(error) => return Err(error.into()),
        }
    }
}

/// False once there is nothing more to wait for.
fn count_batch(batch: &Batch, counter: &mut Counter) -> bool {
    batch.into_iter().all(|message| counter.count(message))
}

fn ping_inline(options: &Options) -> Outcome {
    let engine = engine_inline(options)?;
    let socket = socket(options).build_inline(&engine)?;
    socket.connect(endpoint(options))?;
    socket.wait_for_peers(1, Duration::from_secs(10))?;
    let ping = message(DATA, 0, options.size);
    let mut times = RoundTrips::new(options);
    for _ in 0..times.rounds() {
        let began = Instant::now();
        socket.send(&ping)?;
        let pong = socket.recv(None)?;
        times.add(began);
        check_pong(&ping, &pong)?;
    }
    times.report()
}

fn check_pong(ping: &[u8], pong: &[u8]) -> Outcome {
    if ping == pong { Ok(()) } else { Err(format!("{} bytes came back, not what was sent", pong.len()).into()) }
}

fn pong_inline(options: &Options) -> Outcome {
    let engine = engine_inline(options)?;
    let socket = socket(options).build_inline(&engine)?;
    socket.bind(endpoint(options))?;
    loop {
        // The answer goes out when the next message is waited for.
        socket.send(socket.recv(None)?)?;
    }
}

fn links_inline(options: &Options) -> Outcome {
    let engine = engine_inline(options)?;
    let before_kb = rss_kb();
    let holds = options.role == "hold";
    let mut sockets = Vec::new();
    for _ in 0..if holds { 1 } else { options.subs } {
        let socket = socket(options).build_inline(&engine)?;
        if holds {
            socket.bind(endpoint(options))?;
        } else {
            socket.connect(endpoint(options))?;
        }
        sockets.push(socket);
    }
    let mut ready = Vec::new();
    support::links::report(options, &options.role, before_kb, stay(options), |time| {
        if let Err(error) = drive(&engine, time, &mut ready) {
            eprintln!("the engine stopped: {error}");
            std::process::exit(1);
        }
    })
}

/// How long the process stays after its line: the holding side until the connecting side has
/// written its own.
fn stay(options: &Options) -> Duration {
    Duration::from_secs(if options.role == "hold" { 2 } else { 30 })
}

// --- sharded: reactors on threads of their own ------------------------------------------------

fn engine(options: &Options) -> Outcome<Engine> {
    let builder = Engine::builder().backend(backend(options)).spin(spin(options));
    Ok(match options.number_of("shards") {
        Some(shards) => builder.shards(shards).build()?,
        None => builder.build()?,
    })
}

fn publish(options: &Options) -> Outcome {
    let mut sender = Sender::new(options)?;
    let engine = engine(options)?;
    let socket = socket(options).engine(&engine).build_blocking()?;
    socket.bind(endpoint(options))?;
    let (how, alone) = (How::of(options), options.has("alone"));
    // Each worker gets one of what every peer has to get.
    let rounds = if options.is_shared() { options.subs } else { 1 };
    while let Some(probe) = sender.probe() {
        for _ in 0..rounds {
            socket.send(&probe)?;
        }
        thread::sleep(PROBE_INTERVAL);
    }
    let mut owned = Owned::new(options);
    let mut data = message(DATA, 0, options.size);
    sender.start();
    let mut delivered = socket.stats().messages_addressed;
    for index in 0..options.count {
        while !sender.is_open(index) || owned.is_lent() {
            thread::yield_now();
        }
        send!(socket, data, index, how, owned)?;
        delivered += options.copies();
        while alone && socket.stats().messages_delivered < delivered {
            thread::yield_now();
        }
    }
    sender.sent();
    while let Some(end) = sender.end() {
        for _ in 0..rounds {
            socket.send(&end)?;
        }
        thread::sleep(END_INTERVAL);
    }
    sender.report()
}

fn subscribe(options: &Options) -> Outcome {
    let links = options.subs;
    let receiver = Receiver::new(options, links)?;
    let engine = engine(options)?;
    let mut sockets = Vec::with_capacity(links);
    for _ in 0..links {
        let socket = socket(options).engine(&engine).build_blocking()?;
        socket.connect(endpoint(options))?;
        sockets.push(socket);
    }
    let batch = options.has("batch");
    if let [socket] = &sockets[..] {
        let mut counter = receiver.counter();
        if batch {
            while count_batch(&socket.recv_batch()?, &mut counter) {}
        } else {
            while counter.count(&socket.recv()?) {}
        }
        receiver.report(vec![counter]);
    }
    // Many sockets: one task each, all on this thread.
    let executor = smol::LocalExecutor::new();
    let tasks = sockets.into_iter().map(|socket| executor.spawn(count_all(socket.into(), receiver.counter(), batch)));
    let tasks: Vec<_> = tasks.collect();
    let mut counters = Vec::with_capacity(links);
    smol::block_on(executor.run(async {
        for task in tasks {
            counters.push(task.await?);
        }
        Outcome::Ok(())
    }))?;
    receiver.report(counters)
}

/// Receives until there is nothing more to wait for.
async fn count_all(socket: Socket, mut counter: Counter, batch: bool) -> Outcome<Counter> {
    /// Messages after which a task lets the others have their turn.
    const TURN_MESSAGES: usize = 4096;
    loop {
        let mut taken = 0;
        while taken < TURN_MESSAGES {
            let more = if batch {
                let batch = socket.recv_batch().await?;
                taken += batch.iter().count();
                count_batch(&batch, &mut counter)
            } else {
                taken += 1;
                counter.count(&socket.recv().await?)
            };
            if !more {
                return Ok(counter);
            }
        }
        smol::future::yield_now().await;
    }
}

fn ping(options: &Options) -> Outcome {
    let engine = engine(options)?;
    let socket = socket(options).engine(&engine).build_blocking()?;
    socket.connect(endpoint(options))?;
    socket.wait_for_peers(1, Duration::from_secs(10))?;
    let spins = options.has("spin");
    let ping = message(DATA, 0, options.size);
    let mut times = RoundTrips::new(options);
    for _ in 0..times.rounds() {
        let began = Instant::now();
        socket.send(&ping)?;
        let pong = recv(&socket, spins)?;
        times.add(began);
        check_pong(&ping, &pong)?;
    }
    times.report()
}

fn pong(options: &Options) -> Outcome {
    let engine = engine(options)?;
    let socket = socket(options).engine(&engine).build_blocking()?;
    socket.bind(endpoint(options))?;
    let spins = options.has("spin");
    loop {
        socket.send(recv(&socket, spins)?)?;
    }
}

/// Waits for a message, busily for a while if `spins`; lets the reactor run where there is one core for both.
fn recv(socket: &blocking::Socket, spins: bool) -> Outcome<Bytes> {
    let until = Instant::now() + SPIN;
    while spins && Instant::now() < until {
        match socket.try_recv() {
            Err(TryRecvError::Empty) => thread::yield_now(),
            outcome => return Ok(outcome?),
        }
    }
    Ok(socket.recv()?)
}

fn links(options: &Options) -> Outcome {
    let engine = engine(options)?;
    let before_kb = rss_kb();
    let holds = options.role == "hold";
    let mut sockets = Vec::new();
    for _ in 0..if holds { 1 } else { options.subs } {
        let socket = socket(options).engine(&engine).build_blocking()?;
        if holds {
            socket.bind(endpoint(options))?;
        } else {
            socket.connect(endpoint(options))?;
        }
        sockets.push(socket);
    }
    support::links::report(options, &options.role, before_kb, stay(options), thread::sleep)
}
