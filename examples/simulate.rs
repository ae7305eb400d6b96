//! Runs the engine under every fault, from seeds: `cargo run --release --features simulation --example simulate -- --seeds 1000`.
//!
//! `--seed N` replays one seed and prints what it did; `--verbose` with it prints every event. `--seeds N` runs that many from
//! `--from` (1), `--minutes M` runs for so long. Ends with a failure if a promise was broken, or if a fault never happened.

#[cfg(feature = "simulation")]
fn main() -> std::process::ExitCode {
    simulate::main()
}

#[cfg(not(feature = "simulation"))]
fn main() {
    eprintln!("build with --features simulation");
}

#[cfg(feature = "simulation")]
mod simulate {
    use std::process::ExitCode;
    use std::time::{Duration, Instant};

    use aiomsg_uring::simulation::{self, Report};

    /// Seeds that fail are printed, up to this many.
    const FAILURES_MAX: usize = 20;

    struct Options {
        seed: Option<u64>,
        from: u64,
        seeds: u64,
        minutes: Option<f64>,
        verbose: bool,
    }

    fn options() -> Result<Options, String> {
        let mut options = Options { seed: None, from: 1, seeds: 1000, minutes: None, verbose: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if name == "--verbose" {
                options.verbose = true;
                continue;
            }
            let value = arguments.next().ok_or(format!("{name} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|error| format!("{name} {value}: {error}"));
            match name.as_str() {
                "--seed" => options.seed = Some(number()?),
                "--from" => options.from = number()?,
                "--seeds" => options.seeds = number()?,
                "--minutes" => {
                    options.minutes = Some(value.parse().map_err(|error| format!("{name} {value}: {error}"))?)
                }
                _ => return Err(format!("unknown option {name}")),
            }
        }
        Ok(options)
    }

    pub(crate) fn main() -> ExitCode {
        let options = match options() {
            Ok(options) => options,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        };
        if let Some(seed) = options.seed {
            let outcome = simulation::run(seed, options.verbose);
            println!("{outcome}");
            let again = simulation::run(seed, false);
            if again.trace != outcome.trace {
                println!("I14 violated: the second run has trace {:016x}", again.trace);
                return ExitCode::FAILURE;
            }
            return if outcome.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
        many(&options)
    }

    fn many(options: &Options) -> ExitCode {
        let begun = Instant::now();
        let budget = options.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
        let mut report = Report::default();
        let mut told = Instant::now();
        for seed in options.from.. {
            let over = match budget {
                Some(budget) => begun.elapsed() >= budget,
                None => report.seeds >= options.seeds,
            };
            if over || report.failed.len() >= FAILURES_MAX {
                break;
            }
            let started = Instant::now();
            let outcome = simulation::run(seed, false);
            if started.elapsed() > Duration::from_secs(1) {
                println!("took {:.1} s: {outcome}", started.elapsed().as_secs_f64());
            }
            if outcome.violation.is_some() {
                println!("{outcome}");
            }
            if seed % 64 == 0 && simulation::run(seed, false).trace != outcome.trace {
                println!("I14 violated: seed {seed} has two traces");
                return ExitCode::FAILURE;
            }
            report.add(outcome);
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                progress(&report, begun.elapsed());
            }
        }
        progress(&report, begun.elapsed());
        for (name, fired) in simulation::fault_names().iter().zip(&report.total.fired) {
            println!("{fired:>12} {name}");
        }
        let silent = report.silent_faults();
        if !silent.is_empty() && report.seeds >= 100 {
            println!("faults that never happened: {}", silent.join(", "));
        }
        println!("{} of {} seeds failed", report.failed.len(), report.seeds);
        let failed = !report.failed.is_empty() || (!silent.is_empty() && report.seeds >= 100);
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn progress(report: &Report, took: Duration) {
        let (total, seconds) = (&report.total, took.as_secs_f64());
        let faults: u64 = total.fired.iter().sum();
        println!(
            "{} seeds, {:.1} seeds/s, {} failed; {} messages, {} faults, {:.2} M events/s, {:.0} h of virtual time",
            report.seeds,
            report.seeds as f64 / seconds,
            report.failed.len(),
            total.sent,
            faults,
            (total.events + total.turns) as f64 / seconds / 1e6,
            total.virtual_ns as f64 / 3.6e12
        );
    }
}
