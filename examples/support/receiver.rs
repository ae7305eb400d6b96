//! The receiving side of a run: the connecting end of the control connection, and one
//! [`Counter`] per connection that checks numbers and order.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::message::{DATA, END, PROBE, number_of};
use super::options::Options;
use super::usage::{Usage, leave, print_run};

/// Every connection has seen a probe.
pub(crate) const TAG_READY: u8 = b'R';
/// So many deliveries were counted.
pub(crate) const TAG_CREDIT: u8 = b'C';
/// Everything came, or an end message did.
pub(crate) const TAG_DONE: u8 = b'D';

/// A record of the control connection: tag, then a value, little-endian.
pub(crate) fn control_record(tag: u8, value: u64) -> [u8; 9] {
    let mut record = [tag; 9];
    record[1..].copy_from_slice(&value.to_le_bytes());
    record
}

/// What the counters of one process share.
struct Shared {
    options: Options,
    control: Mutex<TcpStream>,
    /// Counters that have not seen a probe yet.
    waiting: AtomicU64,
    /// Deliveries counted by all.
    total: AtomicU64,
    /// Deliveries between two credit records.
    credit_step: u64,
    /// Resources used when the data began.
    since: Mutex<Option<Usage>>,
}

impl Shared {
    fn tell(&self, tag: u8, value: u64) {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        // A sender that is gone is noticed by whoever waits for its messages.
        _ = control.write_all(&control_record(tag, value));
    }
}

/// The receiver's part of a run; makes the counters and reports.
pub(crate) struct Receiver {
    shared: Arc<Shared>,
}

impl Receiver {
    /// Connects to the sender's control port, waiting up to 10 s for it to come up.
    /// `counters` is how many will be made.
    pub(crate) fn new(options: &Options, counters: usize) -> std::io::Result<Receiver> {
        let control = connect_within(options.port + 1, Duration::from_secs(10))?;
        control.set_nodelay(true)?;
        let shared = Shared {
            options: options.clone(),
            control: Mutex::new(control),
            waiting: AtomicU64::new(counters as u64),
            total: AtomicU64::new(0),
            credit_step: (options.window * options.copies() / 4).max(1),
            since: Mutex::new(None),
        };
        Ok(Receiver { shared: Arc::new(shared) })
    }

    /// A counter of one connection.
    pub(crate) fn counter(&self) -> Counter {
        let options = &self.shared.options;
        let now = Instant::now();
        Counter {
            expected: options.count,
            warm_up: (options.count / 10 / if options.is_shared() { options.subs as u64 } else { 1 }).max(1),
            is_shared: options.is_shared(),
            step: if options.window == 0 { 4096 } else { (options.window / 8).clamp(1, 256) },
            shared: self.shared.clone(),
            received: 0,
            told: 0,
            number_next: 0,
            disorder: 0,
            is_ready: false,
            first: None,
            warm: None,
            last: now,
        }
    }

    /// Prints the receiver's line, says done, and leaves. The rate is that of the last 90 %
    /// of each connection's messages, from the earliest warm point to the last message; the skew
    /// is the time between the first connection that has everything and the last.
    pub(crate) fn report(self, counters: Vec<Counter>) -> ! {
        let since = self.shared.since.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Usage::now);
        let sum = |of: fn(&Counter) -> u64| counters.iter().map(of).sum::<u64>();
        let delivered = sum(|counter| counter.received);
        let expected = if self.shared.options.is_shared() { self.shared.options.count } else { sum(|c| c.expected) };
        let lost = expected.saturating_sub(delivered);
        let disorder = sum(|counter| counter.disorder);
        let counted = sum(|counter| counter.counted());
        let begin = counters.iter().filter_map(|counter| counter.warm.map(|(at, _)| at)).min();
        let end = counters.iter().map(|counter| counter.last).max();
        let secs = begin.zip(end).map_or(0.0, |(begin, end)| end.duration_since(begin).as_secs_f64());
        let rate = if secs > 0.0 { counted as f64 / secs } else { 0.0 };
        let first_end = counters.iter().map(|counter| counter.last).min();
        let skew_ms = first_end.zip(end).map_or(0.0, |(first, last)| last.duration_since(first).as_secs_f64() * 1e3);
        let more = format!(
            ",\"delivered\":{delivered},\"lost\":{lost},\"disorder\":{disorder},\"secs\":{secs:.6},\"rate\":{rate:.1},\
             \"skew_ms\":{skew_ms:.3}"
        );
        print_run(&self.shared.options, "rx", &since, &more);
        self.shared.tell(TAG_DONE, 0);
        // The record must be read before this end of the control connection disappears.
        thread::sleep(Duration::from_millis(100));
        leave()
    }
}

/// Counts and checks what one connection brings.
pub(crate) struct Counter {
    shared: Arc<Shared>,
    expected: u64,
    /// Messages after which the measured part begins.
    warm_up: u64,
    /// Messages between two looks at the clock.
    step: u64,
    received: u64,
    /// Messages that are in the shared total.
    told: u64,
    number_next: u64,
    disorder: u64,
    /// Others get some of the messages.
    is_shared: bool,
    is_ready: bool,
    first: Option<Instant>,
    /// When the measured part began, and after how many messages.
    warm: Option<(Instant, u64)>,
    last: Instant,
}

impl Counter {
    /// Counts one message. False once there is nothing more to wait for.
    #[inline]
    pub(crate) fn count(&mut self, message: &[u8]) -> bool {
        if message[0] != DATA {
            return self.count_control(message);
        }
        let number = number_of(message);
        self.disorder += u64::from(if self.is_shared { number < self.number_next } else { number != self.number_next });
        self.number_next = number.wrapping_add(1);
        self.received += 1;
        if self.received.is_multiple_of(self.step) || self.received == self.warm_up || self.received == self.expected {
            self.take_time();
        }
        self.received != self.expected
    }

    /// Whether everything came.
    pub(crate) fn is_complete(&self) -> bool {
        self.received >= self.expected
    }

    #[cold]
    fn take_time(&mut self) {
        let now = Instant::now();
        if self.received >= self.warm_up {
            self.warm.get_or_insert((now, self.received));
        }
        self.first.get_or_insert(now);
        self.last = now;
        let more = self.received - self.told;
        self.told = self.received;
        let shared = &self.shared;
        let before = shared.total.fetch_add(more, Ordering::AcqRel);
        let after = before + more;
        if shared.options.window != 0 && before / shared.credit_step != after / shared.credit_step {
            shared.tell(TAG_CREDIT, after);
        }
    }

    #[cold]
    fn count_control(&mut self, message: &[u8]) -> bool {
        match message[0] {
            PROBE if !self.is_ready => {
                self.is_ready = true;
                if self.shared.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
                    *self.shared.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Usage::now());
                    self.shared.tell(TAG_READY, 0);
                }
                true
            }
            END => {
                if !self.is_complete() {
                    self.take_time();
                    // So much was lost that the warm point never came: all of it counts.
                    self.warm = self.warm.or(self.first.map(|at| (at, 0)));
                }
                false
            }
            _ => true,
        }
    }

    /// Messages of the measured part.
    fn counted(&self) -> u64 {
        self.warm.map_or(0, |(_, after)| self.received - after)
    }
}

fn connect_within(port: u16, patience: Duration) -> std::io::Result<TcpStream> {
    let until = Instant::now() + patience;
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Err(_) if Instant::now() < until => thread::sleep(Duration::from_millis(10)),
            outcome => return outcome,
        }
    }
}
