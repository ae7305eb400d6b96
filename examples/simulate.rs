//! Runs the engine under every fault, from seeds: `cargo run --release --features simulation --example simulate -- --seeds 1000`.
//!
//! ```text
//! --seeds N      so many seeds (1000)            --seed N          one seed, twice, with its trace
//! --from N       beginning with this one (1)     --verbose         with it: every event
//! --minutes M    as many as fit instead          --without A,B     these faults are left out
//! --threads N    at once (all processors)        --messages N      a socket sends at most so many while things go wrong
//! --record FILE  appends what came of it to a    --leaves N        so many dialling processes at most
//!                table, and sums the table up    --keep FILE       appends seeds that fail
//! ```
//! A run that fails is shrunk: what can be left out of it is, and the command that replays the rest is printed. Ends with a failure
//! if a promise was broken, or if in 500 seeds or more a fault never happened.

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
    use std::fs;
    use std::io::Write;
    use std::process::{Command, ExitCode};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use aiomsg_uring::simulation::{self, Outcome, Report, Setup};

    /// Seeds that fail are printed, up to this many; then it ends.
    const FAILURES_MAX: usize = 20;
    /// So many of them are shrunk.
    const SHRUNK_MAX: usize = 3;
    /// One seed of so many is run twice.
    const TWICE_ONE_IN: u64 = 64;
    /// From so many on every fault must have happened.
    const SEEDS_ENOUGH: u64 = 500;
    const PROGRESS_EVERY: Duration = Duration::from_secs(5);

    #[derive(Clone)]
    struct Options {
        seed: Option<u64>,
        from: u64,
        seeds: u64,
        minutes: Option<f64>,
        threads: usize,
        record: Option<String>,
        keep: Option<String>,
        setup: Setup,
    }

    fn options() -> Result<Options, String> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (setup, record, keep) = (Setup::default(), None, None);
        let mut options = Options { seed: None, from: 1, seeds: 1000, minutes: None, threads, record, keep, setup };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if name == "--verbose" {
                options.setup.verbose = true;
                continue;
            }
            let value = arguments.next().ok_or(format!("{name} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|error| format!("{name} {value}: {error}"));
            match name.as_str() {
                "--seed" => options.seed = Some(number()?),
                "--from" => options.from = number()?,
                "--seeds" => options.seeds = number()?,
                "--threads" => options.threads = number()?.max(1) as usize,
                "--messages" => options.setup.messages_max = Some(number()? as u32),
                "--leaves" => options.setup.leaves_max = Some(number()? as usize),
                "--record" => options.record = Some(value),
                "--keep" => options.keep = Some(value),
                "--without" => {
                    options.setup.without = value.split(',').map(str::to_owned).collect();
                    let names = simulation::fault_names();
                    if let Some(unknown) = options.setup.without.iter().find(|name| !names.contains(name)) {
                        return Err(format!("there is no fault {unknown}; there are {}", names.join(", ")));
                    }
                }
                "--minutes" => {
                    options.minutes = Some(value.parse().map_err(|error| format!("{name} {value}: {error}"))?)
                }
                _ => return Err(format!("unknown option {name}")),
            }
        }
        Ok(options)
    }

    pub(crate) fn main() -> ExitCode {
        let done = options().and_then(|options| match options.seed {
            Some(seed) => Ok(one(seed, &options.setup)),
            None => many(&options),
        });
        match done {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        }
    }

    /// True if all promises were kept.
    fn one(seed: u64, setup: &Setup) -> bool {
        let outcome = simulation::run_with(seed, setup);
        println!("{outcome}");
        let again = simulation::run_with(seed, &Setup { verbose: false, ..setup.clone() });
        if again.trace != outcome.trace {
            println!("I14 violated: the second run has trace {:016x}", again.trace);
        }
        again.trace == outcome.trace && outcome.violation.is_none()
    }

    fn many(options: &Options) -> Result<bool, String> {
        let begun = Instant::now();
        let until = options.minutes.map(|minutes| begun + Duration::from_secs_f64(minutes * 60.0));
        let end = if until.is_some() { u64::MAX } else { options.from + options.seeds };
        let (next, (tell, told)) = (AtomicU64::new(options.from), mpsc::channel::<Outcome>());
        let mut report = Report::default();
        std::thread::scope(|scope| {
            for _ in 0..options.threads {
                let (tell, next) = (tell.clone(), &next);
                scope.spawn(move || {
                    while until.is_none_or(|until| Instant::now() < until) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end || tell.send(checked(seed, &options.setup)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(tell);
            let mut shown = Instant::now();
            for outcome in told {
                if outcome.violation.is_some() {
                    println!("{outcome}");
                }
                report.add(outcome);
                if shown.elapsed() > PROGRESS_EVERY {
                    shown = Instant::now();
                    progress(&report, begun.elapsed());
                }
                if report.failed.len() >= FAILURES_MAX {
                    // Whoever still runs finds nobody to tell.
                    break;
                }
            }
        });
        progress(&report, begun.elapsed());
        for (name, fired) in simulation::fault_names().iter().zip(&report.total.fired) {
            println!("{fired:>12} {name}");
        }
        // Where it panicked has been printed once.
        std::panic::set_hook(Box::new(|_| {}));
        for outcome in report.failed.iter().take(SHRUNK_MAX) {
            println!("made smaller: {}", simulation::shrink(outcome.clone()));
        }
        let silent = report.silent_faults();
        let silent_matters = report.seeds >= SEEDS_ENOUGH && options.setup.without.is_empty();
        if !silent.is_empty() {
            println!("faults that never happened: {}", silent.join(", "));
        }
        println!("{} of {} seeds failed", report.failed.len(), report.seeds);
        keep(options, &report).and_then(|()| record(options, &report)).map_err(|error| error.to_string())?;
        Ok(report.failed.is_empty() && (silent.is_empty() || !silent_matters))
    }

    /// Runs a seed, now and then twice.
    fn checked(seed: u64, setup: &Setup) -> Outcome {
        let mut outcome = simulation::run_with(seed, setup);
        if seed.is_multiple_of(TWICE_ONE_IN) && simulation::run_with(seed, setup).trace != outcome.trace {
            let text = "the same seed has two traces".to_owned();
            outcome.violation.get_or_insert(simulation::Violation { invariant: "I14", text });
        }
        outcome
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

    /// Appends the seeds that have failed to the list of those that are run again.
    fn keep(options: &Options, report: &Report) -> std::io::Result<()> {
        let Some(path) = &options.keep else { return Ok(()) };
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path)?;
        for outcome in &report.failed {
            let invariant = outcome.violation.as_ref().map_or("", |violation| violation.invariant);
            writeln!(file, "{} {invariant}", outcome.seed)?;
        }
        Ok(())
    }

    /// Appends a row to the table of all runs, before the row of their sums, and sums up anew.
    fn record(options: &Options, report: &Report) -> std::io::Result<()> {
        let Some(path) = &options.record else { return Ok(()) };
        let said = |program: &str, arguments: &[&str]| -> std::io::Result<String> {
            let output = Command::new(program).args(arguments).output()?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let (date, commit) = (said("date", &["-u", "+%F"])?, said("git", &["rev-parse", "--short", "HEAD"])?);
        let (from, failed, total) = (options.from, report.failed.len(), &report.total);
        let faults: u64 = total.fired.iter().sum();
        let text = fs::read_to_string(path)?;
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with("| all |")).map(str::to_owned).collect();
        let (seeds, sent) = (report.seeds, total.sent);
        lines.push(format!("| {date} | {commit} | {from} | {seeds} | {sent} | {faults} | {failed} |"));
        let column =
            |line: &String, at: usize| line.split('|').nth(at).and_then(|cell| cell.trim().parse::<u64>().ok());
        let sum = |at: usize| lines.iter().filter_map(|line| column(line, at)).sum::<u64>();
        let sums = format!("| all | | | {} | {} | {} | {} |", sum(4), sum(5), sum(6), sum(7));
        println!("{sums}");
        lines.push(sums);
        fs::write(path, lines.join("\n") + "\n")
    }
}
