//! Two creators of jobs and a pool of workers: every worker connects to both creators with one
//! socket, takes jobs from either as one stream, and sends each result back to whom the job came
//! from.

use std::error::Error;
use std::thread;
use std::time::Duration;

use aiomsg_uring::{SendMode, TryRecvError, blocking::Socket};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const WORKERS: usize = 3;
const JOBS: u64 = 600;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Outcome {
    let mut creators = Vec::new();
    for _ in 0..2 {
        let socket = Socket::builder().send_mode(SendMode::RoundRobin).build_blocking()?;
        let endpoint = socket.bind("127.0.0.1:0")?.to_string();
        creators.push((socket, endpoint));
    }
    let endpoints: Vec<String> = creators.iter().map(|(_, endpoint)| endpoint.clone()).collect();
    for _ in 0..WORKERS {
        let endpoints = endpoints.clone();
        thread::spawn(move || worker(&endpoints));
    }
    let creators: Vec<_> =
        (1..).zip(creators).map(|(factor, (socket, _))| thread::spawn(move || creator(&socket, factor))).collect();
    for creator in creators {
        creator.join().map_err(|_| "a creator panicked")??;
    }
    Ok(())
}

/// Gives out its jobs, in turn over all workers, and collects its own results.
fn creator(socket: &Socket, factor: u64) -> Outcome {
    socket.wait_for_peers(WORKERS, PATIENCE)?;
    for job in 0..JOBS {
        socket.send(&(job * factor).to_be_bytes())?;
    }
    let mut results = Vec::new();
    while results.len() < JOBS as usize {
        results.push(u64::from_be_bytes(socket.recv_timeout(PATIENCE)?[..].try_into()?));
    }
    results.sort_unstable();
    if !results.into_iter().eq((0..JOBS).map(|job| job * factor + 1)) {
        return Err("a result of somebody else, or not every result".into());
    }
    match socket.try_recv() {
        Err(TryRecvError::Empty) => println!("creator {factor}: {JOBS} results of its own"),
        other => return Err(format!("one result too many: {other:?}").into()),
    }
    Ok(())
}

fn worker(creators: &[String]) -> Outcome {
    let socket = Socket::new()?;
    for creator in creators {
        socket.connect(&**creator)?;
    }
    loop {
        let (creator, job) = socket.recv_identity()?;
        let job = u64::from_be_bytes(job[..].try_into()?);
        socket.send_to(creator, &(job + 1).to_be_bytes())?;
    }
}
