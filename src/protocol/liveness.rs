//! When a link must show life, and what to think of a peer that does not (protocol, "Liveness").
//!
//! ```text
//!   last sent      --- heartbeat_ns (5 s) --> Heartbeat        any frame counts as life, in both directions
//!   last received  --- suspect_ns   (6 s) --> Suspect          heard again: recovered
//!                  --- timeout_ns  (15 s) --> Dead             for good
//! ```
//! Two things are not the peer's silence, and its timers do not run for them: the time in which *we* had paused reading
//! (a full receive queue; heartbeats still go out), and a gap in our own running (SIGSTOP, a suspended machine). A poll
//! that comes more than [`GAP_NS`] after it was due is taken for such a gap and restarts the receive timers.
//! A suspect stays suspect until something is received: neither pause nor gap clears it.
//!
//! Called by `shard`, one per link after its handshake: completions first, then `poll`. Never closes anything itself.

/// A poll that is later than this, in nanoseconds, means that this end did not run.
pub(crate) const GAP_NS: u64 = 1_000_000_000;

/// The local times of the protocol; they are not negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LivenessConfig {
    /// Nanoseconds without a send after which a HEARTBEAT is due.
    pub(crate) heartbeat_ns: u64,
    /// Nanoseconds without anything received after which the link is dead.
    pub(crate) timeout_ns: u64,
    /// Nanoseconds without anything received after which the peer is suspect; stock peers beat every 5 s.
    pub(crate) suspect_ns: u64,
}

impl Default for LivenessConfig {
    fn default() -> Self {
        Self { heartbeat_ns: 5_000_000_000, timeout_ns: 15_000_000_000, suspect_ns: 6_000_000_000 }
    }
}

/// What a poll finds to be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Send a HEARTBEAT. Not reported again before another interval has passed.
    Heartbeat,
    /// The peer has been silent for longer than its heartbeats allow. Reported once per silence.
    Suspect,
    /// The peer is taken for dead: close the link. Reported once; nothing is due afterwards.
    Dead,
}

/// The timers of one link.
#[derive(Debug, Clone)]
pub(crate) struct Liveness {
    config: LivenessConfig,
    /// When something was last sent, or a heartbeat was last asked for, in nanoseconds.
    sent_ns: u64,
    /// When something was last received, moved forward by the time that does not count, in nanoseconds.
    received_ns: u64,
    /// Since when the peer's silence does not count because we do not read, in nanoseconds.
    paused_ns: Option<u64>,
    suspect: bool,
    dead: bool,
}

impl Liveness {
    /// Starts all timers at `now_ns`, when the handshake has just completed.
    pub(crate) fn new(config: LivenessConfig, now_ns: u64) -> Self {
        Self { config, sent_ns: now_ns, received_ns: now_ns, paused_ns: None, suspect: false, dead: false }
    }

    /// Bytes were received. True if the peer was suspect and has recovered.
    #[inline]
    pub(crate) fn handle_received(&mut self, now_ns: u64) -> bool {
        self.restart_silence(now_ns);
        std::mem::take(&mut self.suspect)
    }

    /// Bytes were sent.
    #[inline]
    pub(crate) fn handle_sent(&mut self, now_ns: u64) {
        self.sent_ns = self.sent_ns.max(now_ns);
    }

    /// This end stops reading the link: from now on the peer's silence is ours.
    pub(crate) fn pause(&mut self, now_ns: u64) {
        self.paused_ns.get_or_insert(now_ns);
    }

    /// This end reads the link again: the receive timers go on from where they stood.
    pub(crate) fn resume(&mut self, now_ns: u64) {
        if let Some(paused_ns) = self.paused_ns.take() {
            self.received_ns += now_ns.saturating_sub(paused_ns);
        }
    }

    /// This end did not run for a while: what the peer sent meanwhile could not be seen, so its silence starts anew.
    pub(crate) fn handle_gap(&mut self, now_ns: u64) {
        self.restart_silence(now_ns);
    }

    /// What is due, the gravest first. To be asked until `None`, after the completions of the turn were handled.
    pub(crate) fn poll(&mut self, now_ns: u64) -> Option<Due> {
        let due_ns = self.deadline_ns();
        if now_ns < due_ns {
            return None;
        }
        if now_ns - due_ns > GAP_NS {
            self.handle_gap(now_ns);
        }
        if now_ns >= self.silence_ends_ns(self.config.timeout_ns) {
            self.dead = true;
            return Some(Due::Dead);
        }
        if !self.suspect && now_ns >= self.silence_ends_ns(self.config.suspect_ns) {
            self.suspect = true;
            return Some(Due::Suspect);
        }
        if now_ns >= self.heartbeat_at_ns() {
            // Asked for now, although it may be sent later: a link that cannot send must not be asked in every turn.
            self.sent_ns = now_ns;
            return Some(Due::Heartbeat);
        }
        None
    }

    /// When to poll next, in nanoseconds; `u64::MAX` for never. Moves with every call above.
    pub(crate) fn deadline_ns(&self) -> u64 {
        if self.dead {
            return u64::MAX;
        }
        let silence_ns =
            if self.suspect { self.config.timeout_ns } else { self.config.suspect_ns.min(self.config.timeout_ns) };
        self.heartbeat_at_ns().min(self.silence_ends_ns(silence_ns))
    }

    fn heartbeat_at_ns(&self) -> u64 {
        self.sent_ns.saturating_add(self.config.heartbeat_ns)
    }

    /// When the peer will have been silent for `silence_ns`; never, while it is we who do not read.
    fn silence_ends_ns(&self, silence_ns: u64) -> u64 {
        if self.paused_ns.is_some() || self.dead { u64::MAX } else { self.received_ns.saturating_add(silence_ns) }
    }

    fn restart_silence(&mut self, now_ns: u64) {
        self.received_ns = self.received_ns.max(now_ns);
        if let Some(paused_ns) = &mut self.paused_ns {
            // The pause counts from here: what came before it is forgotten with the silence.
            *paused_ns = self.received_ns;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[derive(Debug)]
    enum Step {
        Sent,
        Received { recovers: bool },
        Pause,
        Resume,
        Gap,
        Polls(&'static [Due]),
    }
    use Due::*;
    use Step::*;

    /// Runs a table of (time in seconds, step) and checks every answer.
    fn run(name: &str, steps: &[(u64, Step)]) {
        let start = 1_000 * S;
        let mut liveness = Liveness::new(LivenessConfig::default(), start);
        for (row, (at, step)) in steps.iter().enumerate() {
            let now_ns = start + at * S;
            match step {
                Sent => liveness.handle_sent(now_ns),
                Received { recovers } => assert_eq!(liveness.handle_received(now_ns), *recovers, "{name}, row {row}"),
                Pause => liveness.pause(now_ns),
                Resume => liveness.resume(now_ns),
                Gap => liveness.handle_gap(now_ns),
                Polls(expected) => {
                    let due: Vec<Due> = std::iter::from_fn(|| liveness.poll(now_ns)).collect();
                    assert_eq!(&due, expected, "{name}, row {row}");
                    assert!(liveness.deadline_ns() > now_ns, "{name}, row {row}: polled to the end and still due");
                }
            }
        }
    }

    #[test]
    fn the_table() {
        run(
            "a silent peer",
            &[
                (4, Polls(&[])),
                (5, Polls(&[Heartbeat])),
                (6, Polls(&[Suspect])),
                (9, Polls(&[])),
                (10, Polls(&[Heartbeat])),
                (14, Polls(&[])),
                (15, Polls(&[Dead])),
                (100, Polls(&[])),
            ],
        );
        run(
            "a peer that beats",
            &[
                (5, Received { recovers: false }),
                (5, Polls(&[Heartbeat])),
                (10, Received { recovers: false }),
                (10, Polls(&[Heartbeat])),
                (15, Polls(&[Heartbeat])),
                (15, Received { recovers: false }),
                (20, Polls(&[Heartbeat])),
            ],
        );
        run(
            "a send puts the heartbeat off",
            &[(3, Sent), (5, Polls(&[])), (6, Polls(&[Suspect])), (8, Polls(&[Heartbeat]))],
        );
        run(
            "a suspect recovers, and may become one again",
            &[
                (5, Polls(&[Heartbeat])),
                (6, Polls(&[Suspect])),
                (7, Received { recovers: true }),
                (7, Received { recovers: false }),
                (10, Polls(&[Heartbeat])),
                (13, Polls(&[Suspect])),
            ],
        );
        run("both at once, gravest first", &[(6, Polls(&[Suspect, Heartbeat]))]);
        run(
            "our own pause is not silence",
            &[
                (4, Pause),
                (5, Polls(&[Heartbeat])),
                (10, Polls(&[Heartbeat])),
                (15, Polls(&[Heartbeat])),
                (20, Polls(&[Heartbeat])),
                (20, Resume),
                (21, Polls(&[])),
                (22, Polls(&[Suspect])),
                (25, Polls(&[Heartbeat])),
                (30, Polls(&[Heartbeat])),
                (31, Polls(&[Dead])),
            ],
        );
        run(
            "what comes in during a pause counts",
            &[
                (2, Pause),
                (4, Received { recovers: false }),
                (5, Polls(&[Heartbeat])),
                (8, Pause),
                (9, Resume),
                (10, Polls(&[Heartbeat])),
                (14, Polls(&[])),
                (15, Polls(&[Suspect, Heartbeat])),
            ],
        );
        run(
            "a late poll is a gap of ours",
            &[
                (5, Polls(&[Heartbeat])),
                (6, Polls(&[Suspect])),
                (30, Polls(&[Heartbeat])),
                (35, Polls(&[Heartbeat])),
                (40, Polls(&[Heartbeat])),
                (45, Polls(&[Dead])),
            ],
        );
        run(
            "a gap told by the shard",
            &[(4, Gap), (5, Polls(&[Heartbeat])), (9, Polls(&[])), (10, Polls(&[Suspect, Heartbeat]))],
        );
    }

    #[test]
    fn polled_when_it_asks_it_reports_everything_in_time() {
        let config = LivenessConfig { heartbeat_ns: 70, timeout_ns: 500, suspect_ns: 200 };
        let mut liveness = Liveness::new(config, 0);
        let mut reports = Vec::new();
        while liveness.deadline_ns() != u64::MAX {
            let now_ns = liveness.deadline_ns();
            while let Some(due) = liveness.poll(now_ns) {
                reports.push((now_ns, due));
            }
        }
        let expected =
            [(70, Heartbeat), (140, Heartbeat), (200, Suspect), (210, Heartbeat), (280, Heartbeat), (350, Heartbeat)];
        assert_eq!(reports[..6], expected);
        assert_eq!(reports.last(), Some(&(500, Dead)));
    }

    #[test]
    fn a_clock_that_stands_or_steps_back_is_harmless() {
        let mut liveness = Liveness::new(LivenessConfig::default(), 10 * S);
        liveness.pause(10 * S);
        liveness.resume(9 * S);
        liveness.handle_received(8 * S);
        liveness.handle_sent(8 * S);
        assert_eq!(liveness.deadline_ns(), 15 * S);
    }
}
