//! The publishing side: sends the phases, marks their ends in-band, and keeps an eye on progress and on subscribers
//! that die. Times in ticks are those of the `send` call and not of the schedule: what is measured is publish to
//! receive, and a publisher that the machine ran late is not the socket's latency.

use std::time::{Duration, Instant};

use aiomsg_uring::Stats;
use anyhow::{Result, bail};

use super::children::Children;
use super::progress::Progress;
use super::replay::Recording;
use super::report::Report;
use super::tick::{HEADER_BYTES, Kind, Tick, system_time_ns};
use crate::endpoint::Endpoint;
use crate::metrics::Board;
use crate::terminal::grouped;

/// Messages between two looks at the clock and the subscribers. At full speed a look per message would be measured.
const BLOCK: u64 = 256;
/// The longest time without a look at the subscribers, however quiet the market.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Publishes, and hears the subscribers.
pub(crate) struct Publisher {
    /// Before the endpoint, so that an error ends the subscribers first and closing does not wait for them.
    children: Children,
    endpoint: Endpoint,
    progress: Progress,
    /// Where the counters are put up, if they are asked for.
    board: Option<Board>,
    /// Ticks sent, which is also the next tick's number.
    sent: u64,
    /// When the first tick of the run, and of its last phase, was sent: nanoseconds since 1970.
    started_ns: u64,
    phase_started_ns: u64,
    /// Room for the message: header and body.
    message: Vec<u8>,
}

/// What publisher and subscribers together know at the end.
pub(crate) struct Reports {
    /// Ticks sent.
    pub(crate) sent: u64,
    /// When the first tick of the run was sent: nanoseconds since 1970.
    pub(crate) started_ns: u64,
    /// When the first tick of the last phase was sent: nanoseconds since 1970.
    pub(crate) phase_started_ns: u64,
    /// One of each subscriber.
    pub(crate) subscribers: Vec<Report>,
    /// What the publishing socket counted.
    pub(crate) stats: Stats,
}

impl Publisher {
    /// Everything is connected; nothing has been sent.
    pub(crate) fn new(endpoint: Endpoint, children: Children, progress: Progress, board: Option<Board>) -> Self {
        let message = vec![0; HEADER_BYTES];
        Self { endpoint, children, progress, board, sent: 0, started_ns: 0, phase_started_ns: 0, message }
    }

    /// Sends `rate` messages of `size` bytes a second, evenly, each timed. Falls behind rather than running over.
    pub(crate) fn paced(&mut self, size: usize, rate: u64, duration: Duration) -> Result<()> {
        self.begin(&format!("paced, {}/s", grouped(rate)));
        self.fill(size);
        let start = Instant::now();
        let mut count = 0_u64;
        loop {
            let elapsed = start.elapsed();
            if elapsed >= duration {
                return Ok(());
            }
            let due = (elapsed.as_secs_f64() * rate as f64) as u64 + 1;
            let block = due.saturating_sub(count).min(BLOCK);
            for _ in 0..block {
                self.send(Kind::Timed, system_time_ns())?;
            }
            count += block;
            let next = start + Duration::from_secs_f64(count as f64 / rate as f64);
            self.endpoint.idle_until(next.min(start + elapsed + LOOK_INTERVAL))?;
            self.look(|| elapsed.as_secs_f64() / duration.as_secs_f64())?;
        }
    }

    /// Sends messages of `size` bytes as fast as they go.
    pub(crate) fn full_speed(&mut self, size: usize, duration: Duration) -> Result<()> {
        self.mark(Kind::PhaseEnd)?;
        self.begin("full speed");
        self.fill(size);
        let start = Instant::now();
        loop {
            let elapsed = start.elapsed();
            if elapsed >= duration {
                return Ok(());
            }
            let time_ns = system_time_ns();
            for _ in 0..BLOCK {
                self.send(Kind::Untimed, time_ns)?;
            }
            self.look(|| elapsed.as_secs_f64() / duration.as_secs_f64())?;
        }
    }

    /// Sends the lines of a recording at their own times, `speed` times as fast.
    pub(crate) fn replay(&mut self, mut recording: Recording, speed: f64) -> Result<()> {
        self.begin(&format!("replay, x{speed}"));
        let start = Instant::now();
        let mut now = start;
        let mut since_look = 0;
        while let Some(line) = recording.next_line()? {
            let due = start + line.offset.div_f64(speed);
            self.message.truncate(HEADER_BYTES);
            self.message.extend_from_slice(line.text);
            while now < due || since_look >= BLOCK {
                self.endpoint.idle_until(due.min(now + LOOK_INTERVAL))?;
                self.look(|| recording.progress())?;
                now = Instant::now();
                since_look = 0;
            }
            self.send(Kind::Timed, system_time_ns())?;
            since_look += 1;
        }
        if self.sent == 0 {
            bail!("the recording has no line after its header line: there is nothing to replay");
        }
        Ok(())
    }

    /// Marks the end, and waits until every subscriber has reported and exited.
    pub(crate) fn finish(mut self, timeout: Duration) -> Result<Reports> {
        self.mark(Kind::StreamEnd)?;
        let deadline = Instant::now() + timeout;
        while !self.children.all_reported() {
            self.endpoint.idle_until(Instant::now() + Duration::from_millis(5))?;
            self.look(|| 1.0)?;
            if Instant::now() >= deadline {
                let (silent, seconds) = (self.children.silent(), timeout.as_secs());
                bail!("no report from subscriber {silent} within {seconds} s of the last message");
            }
        }
        self.progress.end();
        // Subscribers that have all may be ahead of the counters for a moment.
        while !self.endpoint.stats().is_balanced() && Instant::now() < deadline {
            self.endpoint.idle_until(Instant::now() + Duration::from_millis(5))?;
        }
        let stats = self.endpoint.stats();
        let Self { sent, started_ns, phase_started_ns, .. } = self;
        Ok(Reports { sent, started_ns, phase_started_ns, subscribers: self.children.into_reports()?, stats })
    }

    fn begin(&mut self, phase: &str) {
        self.progress.begin(phase);
        self.phase_started_ns = system_time_ns();
        if self.sent == 0 {
            self.started_ns = self.phase_started_ns;
        }
    }

    /// Makes the message `size` bytes long, its body something else than zeros.
    fn fill(&mut self, size: usize) {
        self.message.truncate(HEADER_BYTES);
        self.message.extend((HEADER_BYTES..size).map(|index| index as u8));
    }

    #[inline]
    fn send(&mut self, kind: Kind, time_ns: u64) -> Result<()> {
        Tick { sequence: self.sent, time_ns, kind }.encode(&mut self.message);
        self.endpoint.send(&self.message)?;
        self.sent += 1;
        Ok(())
    }

    /// Tells the subscribers in-band that a phase, or everything, ends here, and how many ticks there were.
    fn mark(&mut self, kind: Kind) -> Result<()> {
        let mut message = [0; HEADER_BYTES];
        Tick { sequence: self.sent, time_ns: system_time_ns(), kind }.encode(&mut message);
        self.endpoint.send(&message)?;
        self.endpoint.flush()
    }

    /// Hears the subscribers, and shows progress when it is time. `done`: how far the phase is, 0 to 1.
    fn look(&mut self, done: impl FnOnce() -> f64) -> Result<()> {
        self.children.observe()?;
        if let Some(board) = &mut self.board {
            board.put(|| self.endpoint.metrics("demo"));
        }
        let now = Instant::now();
        if self.progress.is_due(now) {
            self.progress.show(now, done(), self.sent, self.children.delivered());
        }
        Ok(())
    }
}
