//! A subscriber that never sleeps: one thread drives its engine in a loop and takes what has arrived, so that no message
//! waits for a wake-up. It costs a core; what it gains is shown beside a subscriber that waits in the kernel.

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{Address, Socket, TryRecvError, inline};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const TICKS: usize = 500;
const INTERVAL: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Outcome {
    let start = Instant::now();
    for (name, poll_timeout) in [("waiting", Some(PATIENCE)), ("busy", Some(Duration::ZERO))] {
        // Both ends are inline, so that no other thread is on the way of a tick.
        let engine = inline::Engine::new()?;
        let subscriber = Socket::builder().build_inline(&engine)?;
        let address = subscriber.bind("127.0.0.1:0")?;
        let feed = thread::spawn(move || publish(&address, start));

        let mut latencies_us = Vec::with_capacity(TICKS);
        // Which of the engine's sockets have something: here there is only one.
        let mut ready = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while latencies_us.len() < TICKS {
            engine.poll(poll_timeout, &mut ready)?;
            loop {
                match subscriber.try_recv() {
                    Ok(tick) => {
                        let sent = Duration::from_nanos(u64::from_be_bytes(tick[..].try_into()?));
                        latencies_us.push((start.elapsed() - sent).as_micros());
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            if Instant::now() > deadline {
                return Err("the ticks did not come".into());
            }
        }
        feed.join().map_err(|_| "the feed panicked")??;
        latencies_us.sort_unstable();
        let [p50, p99] = [50, 99].map(|percent| latencies_us[TICKS * percent / 100]);
        println!("{name:>8}: p50 {p50} us, p99 {p99} us");
    }
    Ok(())
}

/// A tick each millisecond; its content is when it was sent.
fn publish(address: &Address, start: Instant) -> Outcome {
    let engine = inline::Engine::new()?;
    let publisher = Socket::builder().build_inline(&engine)?;
    publisher.connect(address)?;
    publisher.wait_for_peers(1, PATIENCE)?;
    for _ in 0..TICKS {
        thread::sleep(INTERVAL);
        publisher.send(&(start.elapsed().as_nanos() as u64).to_be_bytes())?;
        // An inline socket only appends: what is to go out now is flushed.
        publisher.flush()?;
    }
    publisher.close();
    Ok(())
}
