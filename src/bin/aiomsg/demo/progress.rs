//! The live display: a bar on a terminal, else a plain line a second, both on standard error, so that standard output
//! holds the outcome and nothing else.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal::grouped;

/// Steps of a full bar.
const STEPS: u64 = 1000;

/// What is shown while the demo runs.
pub(crate) struct Progress {
    /// `None` where standard error is no terminal.
    bar: Option<ProgressBar>,
    interval: Duration,
    shown: Instant,
    /// Deliveries when the rate was last reckoned.
    delivered: u64,
}

impl Progress {
    /// Shows nothing yet.
    pub(crate) fn new() -> Self {
        let bar = stderr().is_terminal().then(|| ProgressBar::new(STEPS).with_style(style()));
        let interval = Duration::from_millis(if bar.is_some() { 250 } else { 1000 });
        Self { bar, interval, shown: Instant::now(), delivered: 0 }
    }

    /// A phase begins.
    pub(crate) fn begin(&mut self, phase: &str) {
        self.shown = Instant::now();
        match &self.bar {
            Some(bar) => {
                bar.set_position(0);
                bar.set_prefix(phase.to_owned());
                bar.set_message("");
            }
            None => eprintln!("{phase}"),
        }
    }

    /// Whether [`Progress::show`] would show anything at `now`: asked often, so that callers gather figures seldom.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now.duration_since(self.shown) >= self.interval
    }

    /// Shows how far the phase is (`done`, 0 to 1), messages sent and deliveries so far.
    pub(crate) fn show(&mut self, now: Instant, done: f64, sent: u64, delivered: u64) {
        let elapsed = now.duration_since(self.shown).as_secs_f64().max(1e-9);
        let rate = (delivered.saturating_sub(self.delivered) as f64 / elapsed) as u64;
        (self.shown, self.delivered) = (now, delivered);
        let text = format!("{} sent, {} delivered, {}/s", grouped(sent), grouped(delivered), grouped(rate));
        match &self.bar {
            Some(bar) => {
                bar.set_position((done.clamp(0.0, 1.0) * STEPS as f64) as u64);
                bar.set_message(text);
            }
            None => eprintln!("  {text}"),
        }
    }

    /// Leaves the terminal as it was.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    // A template that does not parse would only cost the looks.
    ProgressStyle::with_template("{prefix} [{bar:24}] {msg}").unwrap_or_else(|_| ProgressStyle::default_bar())
}
