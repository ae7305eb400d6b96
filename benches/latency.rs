//! One-way latency under open-loop load: `cargo bench --bench latency`, about a minute; `-- --seconds 5` for longer runs.
//!
//! A sender publishes 64-byte messages by a timetable, at 1 %, 50 % and 90 % of the highest rate that the row reaches, whatever
//! the receiver does; each message carries the time at which it was due, not that at which it was sent, so that a sender that
//! falls behind shows in the figures (no coordinated omission). The receiver, on another thread, takes the difference when `recv`
//! gives it the message. Histograms are HDR with three digits. Rows: this library inline (blocking, spinning) and sharded; libzmq
//! with the feature `bench-libzmq`. Writes `target/latency.json`, which `plot.py` draws.

#[cfg(feature = "bench-libzmq")]
#[path = "support/libzmq.rs"]
#[expect(dead_code, reason = "the rows of other benchmarks need more kinds of socket")]
mod libzmq;

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{Engine, Socket, TryRecvError, blocking, inline};
use hdrhistogram::Histogram;

const PAYLOAD_BYTES: usize = 64;
/// Due times of messages that are no part of the measurement.
const WARM_UP: u64 = 0;
/// Ends the receiver.
const END: u64 = u64::MAX;
/// Shares of the highest rate.
const SHARES: [f64; 3] = [0.01, 0.5, 0.9];
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a spinning thread looks for work before it sleeps.
const SPIN: Duration = Duration::from_millis(100);
/// The sender sleeps rather than waits busily when the next message is due later than this.
const SLEEP_FROM: Duration = Duration::from_micros(100);

/// The sending end of a row.
trait Sender {
    fn send(&mut self, payload: &[u8]);
    /// Nothing more is due now: what was sent goes out.
    fn flush(&mut self) {}
}

/// The receiving end: gives each message that is there, or waits for one.
trait Receiver {
    fn receive(&mut self, each: &mut dyn FnMut(&[u8]));
}

/// Makes the receiving end on its own thread, connected to that port.
type MakeReceiver = Box<dyn FnOnce(u16) -> Box<dyn Receiver> + Send>;

struct Row {
    name: &'static str,
    /// The sending end, and the port that it is bound to.
    sender: fn() -> (Box<dyn Sender>, u16),
    receiver: fn() -> MakeReceiver,
}

fn main() {
    let mut seconds = 2.0;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--seconds" {
            seconds = arguments.next().and_then(|value| value.parse().ok()).expect("--seconds wants a number");
        }
    }
    let rows = [
        Row { name: "inline", sender: || inline_sender(false), receiver: || inline_receiver(false) },
        Row { name: "inline spinning", sender: || inline_sender(true), receiver: || inline_receiver(true) },
        Row { name: "sharded", sender: sharded_sender, receiver: || Box::new(|port| Box::new(Sharded::new(port))) },
        #[cfg(feature = "bench-libzmq")]
        Row { name: "libzmq", sender: zmq_sender, receiver: || Box::new(|port| Box::new(ZmqReceiver::new(port))) },
    ];
    println!("one way, {PAYLOAD_BYTES} B, open loop, microseconds");
    println!("{:<16} {:>12} {:>7} {:>9} {:>9} {:>9} {:>10}", "row", "rate /s", "share", "p50", "p99", "p99.9", "max");
    let mut cases = serde_json::Map::new();
    for row in rows {
        let (messages, elapsed, _) = run(&row, f64::INFINITY, seconds / 2.0);
        let highest = messages as f64 / elapsed.as_secs_f64();
        println!("{:<16} {highest:>12.0} highest", row.name);
        for share in SHARES {
            let rate = highest * share;
            let (_, _, times) = run(&row, rate, seconds);
            let us = |ns: u64| ns as f64 / 1e3;
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| us(times.value_at_quantile(q)));
            let share = format!("{:.0} %", share * 100.0);
            println!(
                "{:<16} {rate:>12.0} {share:>7} {p50:>9.1} {p99:>9.1} {p999:>9.1} {:>10.1}",
                row.name,
                us(times.max())
            );
            let point = serde_json::json!({
                "p50_us": p50, "p99_us": p99, "p999_us": p999, "max_us": us(times.max()), "rate": rate, "n": 1
            });
            let case = cases.entry(format!("{share} of the highest rate")).or_insert_with(|| serde_json::json!({}));
            case[row.name] = point;
        }
    }
    let folder = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let file = std::path::Path::new(&folder).join("latency.json");
    let results = serde_json::json!({ "meta": { "test": "ping", "title": "one way, open loop" }, "cases": cases });
    match std::fs::write(&file, results.to_string()) {
        Ok(()) => println!("written to {}", file.display()),
        Err(error) => eprintln!("{}: {error}", file.display()),
    }
}

/// Sends at `rate` messages a second for so long. Answers with how many came, in what time, and how late.
fn run(row: &Row, rate: f64, seconds: f64) -> (u64, Duration, Histogram<u64>) {
    let (mut sender, port) = (row.sender)();
    let make_receiver = (row.receiver)();
    let begin = Instant::now();
    let (ready, is_ready) = mpsc::channel();
    let receiving = thread::spawn(move || {
        let mut receiver = make_receiver(port);
        let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("bounds that are in order");
        let (mut count, mut first, mut last, mut ended) = (0u64, None, begin, false);
        while !ended {
            receiver.receive(&mut |payload| match u64_at(payload, 8) {
                WARM_UP => _ = ready.send(()),
                END => ended = true,
                due_ns => {
                    last = Instant::now();
                    first.get_or_insert(last);
                    assert_eq!(u64_at(payload, 0), count, "lost or out of order");
                    count += 1;
                    times.saturating_record(
                        (last - begin).as_nanos() as u64 - due_ns.min((last - begin).as_nanos() as u64),
                    );
                }
            });
        }
        (count, last - first.unwrap_or(last), times)
    });
    let mut payload = [0x5A; PAYLOAD_BYTES];
    while is_ready.try_recv().is_err() {
        payload[8..16].copy_from_slice(&WARM_UP.to_le_bytes());
        sender.send(&payload);
        sender.flush();
        thread::sleep(Duration::from_millis(5));
    }
    let (start, length) = (Instant::now(), Duration::from_secs_f64(seconds));
    let offset = start - begin;
    let mut number = 0u64;
    loop {
        let now = start.elapsed();
        if now >= length {
            break;
        }
        let due = if rate.is_finite() { (now.as_secs_f64() * rate) as u64 } else { number + 256 };
        while number <= due {
            let due_time = if rate.is_finite() { Duration::from_secs_f64(number as f64 / rate) } else { now };
            payload[..8].copy_from_slice(&number.to_le_bytes());
            payload[8..16].copy_from_slice(&((offset + due_time).as_nanos() as u64 + 1).to_le_bytes());
            sender.send(&payload);
            number += 1;
        }
        if rate.is_finite() {
            sender.flush();
            let next = Duration::from_secs_f64(number as f64 / rate).saturating_sub(start.elapsed());
            if next > SLEEP_FROM {
                thread::sleep(next - SLEEP_FROM / 2);
            }
        }
    }
    payload[8..16].copy_from_slice(&END.to_le_bytes());
    sender.send(&payload);
    while !receiving.is_finished() {
        sender.flush();
        thread::sleep(Duration::from_millis(1));
    }
    let outcome = receiving.join().expect("the receiver has failed: see above");
    assert_eq!(outcome.0, number, "messages were lost");
    outcome
}

fn u64_at(payload: &[u8], at: usize) -> u64 {
    payload[at..].first_chunk().map_or(END, |bytes| u64::from_le_bytes(*bytes))
}

// --- inline ---------------------------------------------------------------------------------------

struct Inline {
    socket: inline::Socket,
    engine: inline::Engine,
    ready: Vec<aiomsg_uring::SocketId>,
}

impl Inline {
    fn new(spinning: bool) -> Inline {
        let spin = if spinning { SPIN } else { Duration::ZERO };
        let engine = inline::Engine::builder().spin(spin).build().expect("an engine");
        let socket = Socket::builder().build_inline(&engine).expect("a socket");
        Inline { socket, engine, ready: Vec::new() }
    }
}

fn inline_sender(spinning: bool) -> (Box<dyn Sender>, u16) {
    let end = Inline::new(spinning);
    let port = end.socket.bind("127.0.0.1:0").expect("bound").port().expect("a TCP port");
    (Box::new(end), port)
}

fn inline_receiver(spinning: bool) -> MakeReceiver {
    Box::new(move |port| {
        let end = Inline::new(spinning);
        end.socket.connect(("127.0.0.1", port)).expect("connecting");
        Box::new(end)
    })
}

impl Sender for Inline {
    fn send(&mut self, payload: &[u8]) {
        self.socket.send(payload).expect("sent");
    }

    fn flush(&mut self) {
        self.socket.flush().expect("flushed");
        self.engine.poll(Some(Duration::ZERO), &mut self.ready).expect("driven");
    }
}

impl Receiver for Inline {
    fn receive(&mut self, each: &mut dyn FnMut(&[u8])) {
        each(&self.socket.recv(Some(PATIENCE)).expect("received"));
        loop {
            match self.socket.try_recv() {
                Ok(message) => each(&message),
                Err(TryRecvError::Empty) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

// --- sharded --------------------------------------------------------------------------------------

struct Sharded {
    socket: blocking::Socket,
}

fn sharded_sender() -> (Box<dyn Sender>, u16) {
    let engine = Engine::builder().build().expect("an engine");
    let socket = Socket::builder().engine(&engine).build_blocking().expect("a socket");
    let port = socket.bind("127.0.0.1:0").expect("bound").port().expect("a TCP port");
    (Box::new(Sharded { socket }), port)
}

impl Sharded {
    fn new(port: u16) -> Sharded {
        let engine = Engine::builder().build().expect("an engine");
        let socket = Socket::builder().engine(&engine).build_blocking().expect("a socket");
        socket.connect(("127.0.0.1", port)).expect("connecting");
        Sharded { socket }
    }
}

impl Sender for Sharded {
    fn send(&mut self, payload: &[u8]) {
        self.socket.send(payload).expect("sent");
    }
}

impl Receiver for Sharded {
    fn receive(&mut self, each: &mut dyn FnMut(&[u8])) {
        each(&self.socket.recv_timeout(PATIENCE).expect("received"));
    }
}

// --- libzmq ---------------------------------------------------------------------------------------

#[cfg(feature = "bench-libzmq")]
struct ZmqReceiver {
    socket: libzmq::Zmq,
    buffer: [u8; PAYLOAD_BYTES],
}

#[cfg(feature = "bench-libzmq")]
fn zmq_sender() -> (Box<dyn Sender>, u16) {
    let mut socket = libzmq::Zmq::new(libzmq::PUSH);
    let port = socket.bind();
    (Box::new(socket), port)
}

#[cfg(feature = "bench-libzmq")]
impl ZmqReceiver {
    fn new(port: u16) -> ZmqReceiver {
        let mut socket = libzmq::Zmq::new(libzmq::PULL);
        socket.connect(port, 0);
        ZmqReceiver { socket, buffer: [0; PAYLOAD_BYTES] }
    }
}

#[cfg(feature = "bench-libzmq")]
impl Sender for libzmq::Zmq {
    fn send(&mut self, payload: &[u8]) {
        libzmq::Zmq::send(self, payload);
    }
}

#[cfg(feature = "bench-libzmq")]
impl Receiver for ZmqReceiver {
    fn receive(&mut self, each: &mut dyn FnMut(&[u8])) {
        each(self.socket.recv(&mut self.buffer));
    }
}
