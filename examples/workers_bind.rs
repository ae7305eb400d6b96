//! Round-robin work, workers binding: each worker listens, the dispatcher connects to all of them
//! and hands jobs out in turn. One thread and no other: all sockets are on an inline engine, which
//! this thread drives, and which says which sockets have something to receive.

use std::error::Error;
use std::time::{Duration, Instant};

use aiomsg_uring::{SendMode, Socket, TryRecvError, inline};

const WORKERS: usize = 4;
const JOBS: u64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let engine = inline::Engine::new()?;
    let new_socket = || Socket::builder().send_mode(SendMode::RoundRobin).build_inline(&engine);
    let dispatcher = new_socket()?;
    let mut workers = Vec::new();
    for index in 0..WORKERS {
        let worker = new_socket()?;
        let address = worker.bind("127.0.0.1:0")?;
        println!("worker {index} listens at {address}");
        dispatcher.connect(address)?;
        workers.push((worker, 0));
    }
    dispatcher.wait_for_peers(WORKERS, PATIENCE)?;
    for job in 0..JOBS {
        dispatcher.send(&job.to_be_bytes())?;
    }
    dispatcher.flush()?;

    let (mut results, mut sum) = (0, 0);
    let mut ready = Vec::new();
    let until = Instant::now() + PATIENCE;
    while results < JOBS {
        if Instant::now() > until {
            return Err(format!("only {results} of {JOBS} results came").into());
        }
        engine.poll(Some(Duration::from_millis(100)), &mut ready)?;
        for (worker, jobs) in &mut workers {
            if ready.contains(&worker.id()) {
                *jobs += work(worker)?;
            }
        }
        if ready.contains(&dispatcher.id()) {
            while let Some(result) = next(&dispatcher)? {
                results += 1;
                sum += result;
            }
        }
    }
    let shares: Vec<u64> = workers.iter().map(|&(_, jobs)| jobs).collect();
    println!("{JOBS} results; jobs per worker: {shares:?}");

    let fair = shares.iter().all(|&share| share.abs_diff(JOBS / WORKERS as u64) <= 1);
    let right = sum == (0..JOBS).map(|job| job * job).sum::<u64>();
    if fair && right { Ok(()) } else { Err("the work was not shared out or not done as it should be".into()) }
}

/// Does the jobs that are there; how many.
fn work(worker: &inline::Socket) -> Result<u64, Box<dyn Error>> {
    let mut jobs = 0;
    while let Some(job) = next(worker)? {
        worker.send(&(job * job).to_be_bytes())?;
        jobs += 1;
    }
    worker.flush()?;
    Ok(jobs)
}

/// The number in the next message, if there is one.
fn next(socket: &inline::Socket) -> Result<Option<u64>, Box<dyn Error>> {
    match socket.try_recv() {
        Ok(message) => Ok(Some(u64::from_be_bytes(message[..].try_into()?))),
        Err(TryRecvError::Empty) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
