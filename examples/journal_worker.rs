//! A worker that may be killed at any moment: it appends each message to a journal, and only then
//! acknowledges it. What it had not acknowledged goes to another worker, so that nothing is lost.
//!
//! `journal_worker ENDPOINT JOURNAL [PAUSE_US]` works until it is killed. Without arguments the
//! program shows all of it by itself: a dispatcher, and two workers of which one goes half-way.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{AckMode, DeliveryGuarantee, SendMode, TryRecvError, blocking::Socket};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const JOBS: u64 = 2_000;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Outcome {
    match &std::env::args().skip(1).collect::<Vec<_>>()[..] {
        [] => demonstration(),
        [endpoint, journal] => work(endpoint, Path::new(journal), Duration::ZERO, u64::MAX),
        [endpoint, journal, pause_us] => {
            work(endpoint, Path::new(journal), Duration::from_micros(pause_us.parse()?), u64::MAX)
        }
        _ => Err("journal_worker [ENDPOINT JOURNAL [PAUSE_US]]".into()),
    }
}

/// Works off messages, until there have been `jobs_max` or the dispatcher closes.
fn work(endpoint: &str, journal: &Path, pause: Duration, jobs_max: u64) -> Outcome {
    let mut journal: File = OpenOptions::new().create(true).append(true).open(journal)?;
    let socket = Socket::builder().ack_mode(AckMode::Manual).build_blocking()?;
    socket.connect(endpoint)?;
    for _ in 0..jobs_max {
        let job = socket.recv_message()?;
        if !pause.is_zero() {
            thread::sleep(pause);
        }
        // One write, which the system keeps even if this process is killed right after. Against a loss of power
        // `journal.sync_data()` would belong here.
        journal.write_all(job.payload())?;
        job.ack();
    }
    Ok(())
}

fn demonstration() -> Outcome {
    let folder = std::env::temp_dir().join(format!("journal-worker-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let dispatcher = Socket::builder()
        .send_mode(SendMode::RoundRobin)
        .delivery_guarantee(DeliveryGuarantee::AtLeastOnce)
        .resend(Duration::from_secs(1), 10)
        .build_blocking()?;
    let endpoint = dispatcher.bind("127.0.0.1:0")?.to_string();
    let journals: Vec<PathBuf> = ["going", "staying"].iter().map(|name| folder.join(name)).collect();
    // The first one leaves after a quarter of the jobs, with its share of the others not done.
    for (journal, jobs_max) in journals.iter().cloned().zip([JOBS / 4, u64::MAX]) {
        let endpoint = endpoint.clone();
        thread::spawn(move || work(&endpoint, &journal, Duration::ZERO, jobs_max));
    }
    dispatcher.wait_for_peers(2, PATIENCE)?;
    for job in 0..JOBS {
        dispatcher.send(&job.to_be_bytes())?;
    }
    let until = Instant::now() + PATIENCE;
    while dispatcher.stats().messages_acknowledged < JOBS {
        if Instant::now() > until {
            return Err(format!("not done in time: {:?}", dispatcher.stats()).into());
        }
        // Nothing comes back but acknowledgements, which the socket itself takes.
        match dispatcher.recv_timeout(Duration::from_millis(10)) {
            Err(TryRecvError::Empty) => {}
            other => return Err(format!("unexpected: {other:?}").into()),
        }
    }
    let mut jobs = Vec::new();
    for journal in &journals {
        let entries = std::fs::read(journal)?;
        println!("{}: {} jobs", journal.display(), entries.len() / 8);
        jobs.extend(entries.chunks_exact(8).map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default())));
    }
    std::fs::remove_dir_all(&folder)?;
    jobs.sort_unstable();
    let before = jobs.len();
    jobs.dedup();
    println!("{JOBS} jobs, {} done, {} of them twice", jobs.len(), before - jobs.len());
    if jobs.into_iter().eq(0..JOBS) { Ok(()) } else { Err("jobs were lost".into()) }
}
