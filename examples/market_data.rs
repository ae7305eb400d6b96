//! Market data: of quotes only the newest of a symbol matters, of trades every one. One subscriber keeps up and gets everything;
//! another is slow on purpose and gets every trade, in its place, and the newest quotes. The counters are on the screen while
//! it runs, and at the end they add up.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::blocking::Socket;
use aiomsg_uring::{SlowPolicy, Unkeyed};

type Failure = Box<dyn Error + Send + Sync>;

const SYMBOLS: u64 = 50;
const QUOTES: u64 = 60_000;
/// One trade after so many quotes.
const TRADE_EVERY: u64 = 30;
const PATIENCE: Duration = Duration::from_secs(25);

fn main() -> Result<(), Failure> {
    let publisher = Socket::builder()
        .slow_policy(SlowPolicy::Conflate { unkeyed: Unkeyed::Block { max_wait: PATIENCE } })
        // What the kernel has taken cannot be replaced any more: not much of it.
        .send_buffer_bytes(64 << 10)
        .build_blocking()?;
    let address = publisher.bind("127.0.0.1:0")?;
    let subscriber = |receive_bytes_max| -> Result<Socket, Failure> {
        let socket = Socket::builder().receive_bytes_max(receive_bytes_max).build_blocking()?;
        socket.connect(&address)?;
        Ok(socket)
    };
    let (fast, slow) = (subscriber(16 << 20)?, subscriber(64 << 10)?);
    publisher.wait_for_peers(2, PATIENCE)?;

    let published = AtomicBool::new(false);
    let (of_fast, of_slow) = thread::scope(|scope| -> Result<_, Failure> {
        let of_fast = scope.spawn(|| follow(&fast, || {}));
        let of_slow = scope.spawn(|| {
            // A millisecond of work for each message, until the market closes.
            follow(&slow, || {
                if !published.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                }
            })
        });
        let result = publish(&publisher, &[("fast", &fast), ("slow", &slow)]);
        published.store(true, Ordering::Relaxed);
        result?;
        Ok((of_fast.join().map_err(|_| "it panicked")??, of_slow.join().map_err(|_| "it panicked")??))
    })?;

    // What was handed over was counted before it could arrive, but for a moment.
    let until = Instant::now() + PATIENCE;
    while !publisher.stats().is_balanced() || publisher.stats().messages_queued > 0 {
        if Instant::now() > until {
            return Err(format!("the counters do not add up: {:?}", publisher.stats()).into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    println!("\n       addressed = delivered + conflated + dropped");
    for (name, socket, followed) in [("fast", &fast, &of_fast), ("slow", &slow, &of_slow)] {
        let peer = publisher.peer_stats_of(socket.identity()).ok_or("it is gone")?;
        let (addressed, delivered) = (peer.messages_addressed, peer.messages_delivered);
        println!("{name} {addressed:>11} {delivered:>11} {:>11} {:>9}", peer.messages_conflated, peer.messages_dropped);
        assert_eq!(addressed, delivered + peer.messages_conflated + peer.messages_dropped);
        assert_eq!((followed.messages, peer.messages_dropped), (delivered, 0));
        assert_eq!(followed.trades, QUOTES / TRADE_EVERY, "every trade, none twice");
        // The newest quote of each symbol is the last of the market's rounds.
        let newest = (0..SYMBOLS).map(|symbol| (symbol, QUOTES - SYMBOLS + symbol));
        assert_eq!(followed.quotes, newest.collect(), "the last quotes");
    }
    assert!(of_slow.messages < QUOTES, "who does not keep up gets less");
    if of_fast.messages < QUOTES + QUOTES / TRADE_EVERY + 1 {
        println!("This machine was too busy for the fast subscriber to keep up.");
    }
    Ok(())
}

/// Quotes for all symbols in turn, with their key; trades and the end of the market without.
fn publish(publisher: &Socket, subscribers: &[(&str, &Socket)]) -> Result<(), Failure> {
    let mut shown = Instant::now();
    for number in 0..QUOTES {
        let symbol = number % SYMBOLS;
        // A real quote has fields; here it has its number and some room.
        publisher.send_keyed(symbol, format!("quote {symbol} {number} {:200}", ""))?;
        if (number + 1) % TRADE_EVERY == 0 {
            publisher.send(format!("trade {}", number / TRADE_EVERY))?;
        }
        if number % 100 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        if shown.elapsed() > Duration::from_millis(250) {
            shown = Instant::now();
            for (name, socket) in subscribers {
                let Some(peer) = publisher.peer_stats_of(socket.identity()) else { continue };
                let (delivered, conflated) = (peer.messages_delivered, peer.messages_conflated);
                println!("{name}: {delivered} delivered, {conflated} conflated, {}", peer.lag);
            }
        }
    }
    Ok(publisher.send("closed")?)
}

/// What a subscriber has seen.
#[derive(Default)]
struct Followed {
    messages: u64,
    trades: u64,
    /// The newest quote of each symbol.
    quotes: HashMap<u64, u64>,
}

/// Receives until the market closes.
fn follow(socket: &Socket, work: impl Fn()) -> Result<Followed, Failure> {
    let mut followed = Followed::default();
    loop {
        let message = socket.recv_timeout(PATIENCE)?;
        let text = std::str::from_utf8(&message)?;
        followed.messages += 1;
        let mut words = text.split_whitespace();
        let kind = words.next();
        let mut number = || words.next().ok_or("a short message")?.parse::<u64>().map_err(Failure::from);
        match kind {
            Some("quote") => {
                let (symbol, quote) = (number()?, number()?);
                let before = followed.quotes.insert(symbol, quote);
                assert!(before.is_none_or(|before| before < quote), "an older quote after a newer one");
            }
            Some("trade") => {
                assert_eq!(number()?, followed.trades, "trades come in order, and all");
                followed.trades += 1;
            }
            _ => return Ok(followed),
        }
        work();
    }
}
