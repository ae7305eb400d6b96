//! What a peer that does not read costs those who do: `cargo run --release --example slow_peers -- [--healthy N] [--seconds S]`.
//!
//! One publisher; N subscribers (99), driven by one other thread; then the same with one more that has shaken hands and never reads
//! again; then ten of those at full rate. Shows for each: messages per second that a subscriber got, the 99th percentile of the time
//! from `send` to `recv` at a tenth of that rate, and the memory of the process. Those who read must get everything.
//!
//! `-- --keys 10000 [--seconds S]`: quotes of so many keys at full rate instead, to one who takes a message for each hundred that are
//! sent. Shows the memory over time, which must stay where it is; and in the end that one must have the newest quote of each key.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{Address, BindOptions, LagLimit, SlowPolicy, Socket, Unkeyed, blocking, inline};

const PAYLOAD_BYTES: usize = 64;
const PATIENCE: Duration = Duration::from_secs(20);
const MIB: f64 = 1048576.0;
/// Memory may grow by so much after the first tenth: the log's chunks, what allocators keep.
const GROWTH_MIB: f64 = 16.0;

/// What the subscribers' thread has seen.
struct Seen {
    messages: AtomicU64,
    /// Nanoseconds on the way, by powers of two of a sixteenth.
    buckets: [AtomicU64; 64 * 16],
    stop: AtomicBool,
}

impl Seen {
    fn note(&self, ns: u64) {
        let log = 63 - (ns | 16).leading_zeros() as usize;
        let part = (ns >> (log - 4)) as usize & 15;
        self.buckets[log * 16 + part].fetch_add(1, Relaxed);
    }

    /// The 99th percentile since the last call.
    fn p99(&self) -> Duration {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.swap(0, Relaxed)).collect();
        let mut left = counts.iter().sum::<u64>() / 100;
        let at = (0..counts.len()).rev().find(|&at| {
            let found = counts[at] > left;
            left = left.saturating_sub(counts[at]);
            found
        });
        let (log, part) = at.map_or((4, 0), |at| (at / 16, at % 16));
        Duration::from_nanos((16 + part as u64) << (log.max(4) - 4))
    }
}

/// Drives the subscribers until it is told to stop; each must see every number once, in order.
fn subscribe(address: &Address, healthy: usize, begun: Instant, seen: &Seen) -> Result<(), String> {
    let engine = inline::Engine::new().map_err(|error| error.to_string())?;
    let sockets: Vec<_> = (0..healthy)
        .map(|_| {
            let socket = Socket::builder().build_inline(&engine).map_err(|error| error.to_string())?;
            socket.connect(address).map_err(|error| error.to_string())?;
            Ok(socket)
        })
        .collect::<Result<_, String>>()?;
    let mut next = vec![0_u64; healthy];
    let mut ready = Vec::new();
    while !seen.stop.load(Relaxed) {
        engine.poll(Some(Duration::from_millis(10)), &mut ready).map_err(|error| error.to_string())?;
        for (socket, next) in sockets.iter().zip(&mut next).filter(|(socket, _)| ready.contains(&socket.id())) {
            while let Ok(message) = socket.try_recv() {
                let number = |at: usize| message[at..at + 8].try_into().map_or(0, u64::from_be_bytes);
                if number(0) != *next {
                    return Err(format!("message {} came where {next} was due", number(0)));
                }
                *next += 1;
                seen.note((begun.elapsed().as_nanos() as u64).saturating_sub(number(8)));
                seen.messages.fetch_add(1, Relaxed);
            }
        }
    }
    Ok(())
}

/// A peer that says HELLO and never reads again.
fn stalled(address: &Address, name: u8) -> Result<TcpStream, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address.socket_addr().ok_or("an IP address")?)?;
    let hello = [&[0, 0, 0, 18, 1, 1][..], &[name; 16]].concat();
    stream.write_all(&hello)?;
    stream.read_exact(&mut [0; 22])?;
    // It is heard, so that it is slow and not dead.
    let mut beats = stream.try_clone()?;
    thread::spawn(move || {
        while beats.write_all(&[0, 0, 0, 1, 2]).is_ok() {
            thread::sleep(Duration::from_secs(3));
        }
    });
    Ok(stream)
}

struct Publisher {
    socket: blocking::Socket,
    begun: Instant,
    sent: u64,
}

impl Publisher {
    /// Sends for so long, at this rate or as fast as it goes, and waits until everybody who reads has it all. Answers with messages
    /// per second.
    fn publish(
        &mut self,
        time: Duration,
        rate: Option<f64>,
        healthy: usize,
        seen: &Seen,
    ) -> Result<f64, Box<dyn Error>> {
        let (began, first) = (Instant::now(), self.sent);
        let mut payload = [0; PAYLOAD_BYTES];
        while began.elapsed() < time {
            if let Some(rate) = rate {
                let due = began + Duration::from_secs_f64((self.sent - first) as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            // A burst of what is due, or a look at the clock now and then.
            for _ in 0..32 {
                payload[..8].copy_from_slice(&self.sent.to_be_bytes());
                payload[8..16].copy_from_slice(&(self.begun.elapsed().as_nanos() as u64).to_be_bytes());
                self.socket.send(&payload[..])?;
                self.sent += 1;
            }
        }
        let patience = Instant::now();
        while seen.messages.load(Relaxed) < self.sent * healthy as u64 {
            if patience.elapsed() > PATIENCE {
                let (seen, stats) = (seen.messages.load(Relaxed), self.socket.stats());
                let owed = self.sent * healthy as u64;
                return Err(format!("those who read got {seen} of {owed} messages: {stats:?}").into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok((self.sent - first) as f64 / began.elapsed().as_secs_f64())
    }
}

/// Memory of this process, MiB (Linux; else 0).
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Takes one message for each hundred that are sent, and once all are, the rest; answers with the newest number of each key.
fn read_slowly(socket: &blocking::Socket, keys: u64, sent: &AtomicU64, done: &AtomicBool) -> Result<Vec<u64>, String> {
    let mut newest = vec![0; keys as usize];
    let mut read = 0;
    loop {
        // In this order: what was sent before the end is known then.
        let (done, sent) = (done.load(SeqCst), sent.load(SeqCst));
        if !done && read * 100 >= sent {
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        let message = socket.recv_timeout(PATIENCE).map_err(|error| format!("after {read} messages: {error}"))?;
        let number = message[..8].try_into().map_or(0, u64::from_be_bytes);
        newest[(number % keys) as usize] = number;
        read += 1;
        if done && number == sent - 1 {
            return Ok(newest);
        }
    }
}

/// Quotes of many keys to one who reads slowly.
fn quotes(keys: u64, time: Duration) -> Result<(), Box<dyn Error>> {
    let policy = SlowPolicy::Conflate { unkeyed: Unkeyed::default() };
    let publisher = Socket::builder().slow_policy(policy).keys_max(keys as usize).build_blocking()?;
    let address = publisher.bind("127.0.0.1:0")?;
    // What lies in its buffers it has read, in a way: they are small.
    let subscriber =
        Socket::builder().message_bytes_max(1 << 10).receive_bytes_max(64 << 10).recv_buffer_bytes(64 << 10);
    let subscriber = subscriber.build_blocking()?;
    subscriber.connect(&address)?;
    publisher.wait_for_peers(1, PATIENCE)?;
    let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
    println!("{:>8} {:>12} {:>12} {:>8} {:>10} {:>10}", "seconds", "sent", "delivered", "MiB", "log MiB", "keyed MiB");
    let newest = thread::scope(|scope| -> Result<_, Box<dyn Error>> {
        let reader = scope.spawn(|| read_slowly(&subscriber, keys, &sent, &done));
        let began = Instant::now();
        let (mut number, mut first_mib) = (0_u64, None);
        let mut payload = [0; PAYLOAD_BYTES];
        for step in 1..=10 {
            while began.elapsed() < time * step / 10 || number < keys * u64::from(step) {
                for _ in 0..100 {
                    payload[..8].copy_from_slice(&number.to_be_bytes());
                    publisher.send_keyed(number % keys, &payload[..])?;
                    number += 1;
                }
                sent.store(number, SeqCst);
            }
            let (stats, mib) = (publisher.stats(), resident_mib());
            let (log, keyed) = (stats.log_bytes as f64 / MIB, stats.keyed_bytes as f64 / MIB);
            let (seconds, delivered) = (began.elapsed().as_secs_f64(), stats.messages_delivered);
            println!("{seconds:>8.1} {number:>12} {delivered:>12} {mib:>8.1} {log:>10.1} {keyed:>10.1}");
            if mib > *first_mib.get_or_insert(mib) + GROWTH_MIB {
                done.store(true, SeqCst);
                return Err(format!("memory grows: {mib:.1} MiB").into());
            }
        }
        done.store(true, SeqCst);
        Ok(reader.join().map_err(|_| "the subscriber's thread has panicked")??)
    })?;
    let sent = sent.load(SeqCst);
    if newest.iter().any(|number| *number < sent - keys) {
        return Err("some key's newest quote has not arrived".into());
    }
    let stats = publisher.stats();
    println!(
        "the newest of each of {keys} keys arrived; {} of {sent} messages were sent to it",
        stats.messages_delivered
    );
    Ok(())
}

/// The values of `--NAME VALUE`, for these names, or their defaults.
fn options<const N: usize>(known: [(&str, f64); N]) -> Result<[f64; N], String> {
    let mut values = known.map(|(_, default)| default);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let Some(at) = known.iter().position(|(known, _)| *known == name) else {
            return Err(format!("{name} is not one of {}", known.map(|(known, _)| known).join(", ")));
        };
        let value = arguments.next().and_then(|value| value.parse().ok());
        values[at] = value.ok_or_else(|| format!("{name} wants a number"))?;
    }
    Ok(values)
}

fn main() -> Result<(), Box<dyn Error>> {
    let [healthy, seconds, keys] = options([("--healthy", 99.0), ("--seconds", 1.0), ("--keys", 0.0)])?;
    let (healthy, seconds, keys) = (healthy as usize, Duration::try_from_secs_f64(seconds)?, keys as u64);
    if keys > 0 {
        return quotes(keys, seconds);
    }
    // Whoever reads is waited for, for long: one thread drives all of them, and has few cores here, perhaps.
    let patient = SlowPolicy::Block { max_wait: PATIENCE / 2 };
    let socket = Socket::builder().slow_policy(patient).build_blocking()?;
    // Whoever comes in at the other address misses what is more than 4 MiB back.
    let address = socket.bind("127.0.0.1:0")?;
    let lossy = LagLimit { bytes: Some(4 << 20), ..LagLimit::default() };
    let lossy = socket.bind_with("127.0.0.1:0", BindOptions::new().slow_policy(SlowPolicy::DropOldest, lossy))?;
    let seen = Arc::new(Seen {
        messages: AtomicU64::new(0),
        buckets: [const { AtomicU64::new(0) }; 64 * 16],
        stop: AtomicBool::new(false),
    });
    let begun = Instant::now();
    let subscribers = thread::spawn({
        let seen = seen.clone();
        move || subscribe(&address, healthy, begun, &seen).inspect_err(|error| eprintln!("a subscriber: {error}"))
    });
    socket.wait_for_peers(healthy, PATIENCE)?;
    let mut publisher = Publisher { socket, begun, sent: 0 };
    publisher.publish(seconds / 4, None, healthy, &seen)?;
    println!("{:>8} {:>14} {:>10} {:>10} {:>12}", "stalled", "msgs/s each", "p99 us", "MiB", "skipped");
    let mut peers = Vec::new();
    let mut first_rate = None;
    for count in [0, 1, 10] {
        while peers.len() < count {
            peers.push(stalled(&lossy, 100 + peers.len() as u8)?);
        }
        publisher.socket.wait_for_peers(healthy + count, PATIENCE)?;
        let rate = publisher.publish(seconds, None, healthy, &seen)?;
        seen.p99();
        let paced = *first_rate.get_or_insert(rate) / 10.0;
        publisher.publish(seconds, Some(paced), healthy, &seen)?;
        let dropped = publisher.socket.stats().messages_dropped;
        let p99 = seen.p99().as_secs_f64() * 1e6;
        println!("{count:>8} {rate:>14.0} {p99:>10.0} {:>10.1} {dropped:>12}", resident_mib());
    }
    let stats = publisher.socket.stats();
    if stats.disconnects != 0 {
        return Err(format!("somebody was disconnected: {stats:?}").into());
    }
    seen.stop.store(true, Relaxed);
    subscribers.join().map_err(|_| "the subscribers' thread has panicked")??;
    println!("those who read got all {} messages, in order", publisher.sent);
    Ok(())
}
