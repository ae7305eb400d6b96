//! Round-trip times of the `ping` role, and its JSON line.

use std::time::Instant;

use super::options::Options;
use super::usage::{Usage, leave, print_run};

/// Collects round trips; a tenth more than asked is made first, and not counted.
pub(crate) struct RoundTrips {
    options: Options,
    times_ns: Vec<u32>,
    since: Usage,
    warm_up: u64,
    made: u64,
}

impl RoundTrips {
    /// For as many round trips as the command line says.
    pub(crate) fn new(options: &Options) -> RoundTrips {
        RoundTrips {
            options: options.clone(),
            times_ns: Vec::with_capacity(options.count as usize),
            since: Usage::now(),
            warm_up: options.count / 10,
            made: 0,
        }
    }

    /// Round trips to make.
    pub(crate) fn rounds(&self) -> u64 {
        self.options.count + self.warm_up
    }

    /// Notes a round trip that began at `began` and ends now.
    #[inline]
    pub(crate) fn add(&mut self, began: Instant) {
        let time_ns = u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX);
        self.made += 1;
        if self.made > self.warm_up {
            self.times_ns.push(time_ns);
        } else if self.made == self.warm_up {
            self.since = Usage::now();
        }
    }

    /// Prints the line of the role and leaves.
    pub(crate) fn report(mut self) -> ! {
        self.times_ns.sort_unstable();
        let times = &self.times_ns;
        let at = |share: f64| {
            let index = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
            times.get(index).map_or(0.0, |&time_ns| f64::from(time_ns) / 1e3)
        };
        let mean_us = times.iter().map(|&time_ns| f64::from(time_ns)).sum::<f64>() / times.len().max(1) as f64 / 1e3;
        let more = format!(
            ",\"p50_us\":{:.2},\"p90_us\":{:.2},\"p99_us\":{:.2},\"p999_us\":{:.2},\"max_us\":{:.2},\"mean_us\":{mean_us:.2}",
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            at(1.0)
        );
        print_run(&self.options, "ping", &self.since, &more);
        leave()
    }
}
