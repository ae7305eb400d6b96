//! How long a dialer waits before it tries again (protocol, "Connections": 0.1 s unless set; jitter and backoff are for
//! fleets).
//!
//! The base delay doubles from try to try up to a limit; what is used is the base times a random factor of 0.75 to
//! 1.25, so that a fleet that lost its server at one moment does not come back at one moment, and two sockets that dial
//! each other do not stay in step. A peer that accepts and closes right after HELLO has turned this end away (as a
//! duplicate, most often): that heals in seconds or never, and goes on at a slower pace at once.
//!
//! Called by `shard`, one per dialer, which judges how a connection ended. Never sleeps itself.

use super::rng::Rng;

/// The delays of a dialer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BackoffConfig {
    /// Nanoseconds before the first retry; before jitter.
    pub(crate) min_ns: u64,
    /// Largest delay that doubling leads to, in nanoseconds; before jitter.
    pub(crate) max_ns: u64,
    /// Least delay after a rejection, in nanoseconds, also where `max_ns` is smaller; before jitter.
    pub(crate) rejected_ns: u64,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self { min_ns: 100_000_000, max_ns: 3_000_000_000, rejected_ns: 2_000_000_000 }
    }
}

/// The delays of one dialer, from one to the next.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    config: BackoffConfig,
    /// The next delay before jitter, in nanoseconds.
    base_ns: u64,
}

impl Backoff {
    /// Starts at the smallest delay.
    pub(crate) fn new(config: BackoffConfig) -> Self {
        Self { config, base_ns: config.min_ns }
    }

    /// The delay before the next try, in nanoseconds; the one after it will be longer.
    pub(crate) fn next(&mut self, rng: &mut Rng) -> u64 {
        let base_ns = self.base_ns;
        // A rejection may have gone beyond the limit; doubling does not.
        self.base_ns = base_ns.max(base_ns.saturating_mul(2).min(self.config.max_ns));
        let quarter_ns = base_ns / 4;
        (base_ns - quarter_ns).saturating_add(rng.range(0..2 * quarter_ns + 1))
    }

    /// A connection has proved good: the next loss starts at the smallest delay again.
    pub(crate) fn reset(&mut self) {
        self.base_ns = self.config.min_ns;
    }

    /// The peer closed right after HELLO: go on in seconds.
    pub(crate) fn rejected(&mut self) {
        self.base_ns = self.base_ns.max(self.config.rejected_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn assert_about(delay_ns: u64, base_ms: u64) {
        let base_ns = base_ms * MS;
        assert!((base_ns * 3 / 4..=base_ns * 5 / 4).contains(&delay_ns), "{delay_ns} ns for a base of {base_ms} ms");
    }

    #[test]
    fn doubles_up_to_the_limit_and_starts_again() {
        let mut rng = Rng::new(7);
        let mut backoff = Backoff::new(BackoffConfig::default());
        for base_ms in [100, 200, 400, 800, 1_600, 3_000, 3_000, 3_000] {
            assert_about(backoff.next(&mut rng), base_ms);
        }
        backoff.reset();
        assert_about(backoff.next(&mut rng), 100);
    }

    #[test]
    fn a_rejection_goes_to_seconds() {
        let mut rng = Rng::new(7);
        let mut backoff = Backoff::new(BackoffConfig::default());
        backoff.rejected();
        assert_about(backoff.next(&mut rng), 2_000);
        backoff.rejected();
        assert_about(backoff.next(&mut rng), 3_000);
        let mut quick = Backoff::new(BackoffConfig { min_ns: MS, max_ns: 10 * MS, rejected_ns: 2_000 * MS });
        quick.rejected();
        assert_about(quick.next(&mut rng), 2_000);
        assert_about(quick.next(&mut rng), 2_000);
        quick.reset();
        assert_about(quick.next(&mut rng), 1);
    }

    #[test]
    fn jitter_uses_its_whole_range() {
        let mut rng = Rng::new(3);
        let config = BackoffConfig { min_ns: 100 * MS, max_ns: 100 * MS, rejected_ns: 0 };
        let mut backoff = Backoff::new(config);
        let delays: Vec<u64> = (0..1_000).map(|_| backoff.next(&mut rng)).collect();
        delays.iter().for_each(|&delay| assert_about(delay, 100));
        assert!(*delays.iter().min().unwrap() < 77 * MS && *delays.iter().max().unwrap() > 123 * MS);
    }

    #[test]
    fn any_configuration_is_safe() {
        let mut rng = Rng::new(3);
        for config in [
            BackoffConfig { min_ns: 0, max_ns: 0, rejected_ns: 0 },
            BackoffConfig { min_ns: u64::MAX, max_ns: u64::MAX, rejected_ns: u64::MAX },
            BackoffConfig { min_ns: 10, max_ns: 1, rejected_ns: 1 },
        ] {
            let mut backoff = Backoff::new(config);
            for _ in 0..5 {
                backoff.next(&mut rng);
            }
        }
    }
}
