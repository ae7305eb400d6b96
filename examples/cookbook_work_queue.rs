//! A work queue that loses nothing: jobs are sent AT_LEAST_ONCE, and a worker acknowledges a job by
//! hand when it has done it. A worker that goes away in the middle of a job leaves that job, and all
//! that waited behind it, to the others.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{AckMode, DeliveryGuarantee, SendMode, blocking::Socket};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const WORKERS: u64 = 3;
const JOBS: u64 = 900;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Outcome {
    let queue = Socket::builder()
        .send_mode(SendMode::RoundRobin)
        .delivery_guarantee(DeliveryGuarantee::AtLeastOnce)
        .resend(Duration::from_secs(2), 10)
        .build_blocking()?;
    let endpoint = queue.bind("127.0.0.1:0")?.to_string();
    let (done, results) = mpsc::channel();
    for worker in 0..WORKERS {
        let (endpoint, done) = (endpoint.clone(), done.clone());
        thread::spawn(move || work(&endpoint, worker, &done));
    }
    queue.wait_for_peers(WORKERS as usize, PATIENCE)?;
    for job in 0..JOBS {
        queue.send(&job.to_be_bytes())?;
    }
    let until = Instant::now() + PATIENCE;
    while queue.stats().messages_acknowledged < JOBS {
        if Instant::now() > until {
            return Err(format!("not done in time: {:?}", queue.stats()).into());
        }
        thread::sleep(Duration::from_millis(5));
    }

    // How often each job was done: a job can be done twice, if its worker goes between doing and acknowledging it.
    let mut times: BTreeMap<u64, u64> = BTreeMap::new();
    let mut shares = [0; WORKERS as usize];
    for (worker, job) in results.try_iter() {
        *times.entry(job).or_default() += 1;
        shares[worker as usize] += 1;
    }
    let twice = times.values().filter(|times| **times > 1).count();
    println!("{JOBS} jobs done, {twice} of them twice; jobs per worker: {shares:?}");
    if times.into_keys().eq(0..JOBS) { Ok(()) } else { Err("jobs were lost".into()) }
}

/// Works until it is sent no more; the first worker goes away in its fiftieth job.
fn work(endpoint: &str, worker: u64, done: &mpsc::Sender<(u64, u64)>) -> Outcome {
    let socket = Socket::builder().ack_mode(AckMode::Manual).build_blocking()?;
    socket.connect(endpoint)?;
    for count in 0u64.. {
        let job = socket.recv_message()?;
        if worker == 0 && count == 49 {
            println!("worker {worker} goes away in the middle of a job");
            return Ok(());
        }
        let number = u64::from_be_bytes(job.payload()[..].try_into()?);
        done.send((worker, number))?;
        job.ack();
    }
    Ok(())
}
