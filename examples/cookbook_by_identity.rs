//! Work on request: workers ask for a job when they are free, and the job goes by identity to the
//! one that asked. So a slow worker gets few jobs, and none waits behind it while others are idle.

use std::error::Error;
use std::thread;
use std::time::Duration;

use aiomsg_uring::blocking::Socket;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const JOBS: u64 = 300;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Outcome {
    let office = Socket::new()?;
    let endpoint = office.bind("127.0.0.1:0")?.to_string();
    // One of them takes ten times as long as the others.
    let workers = [200, 200, 2_000].map(|pause_us| {
        let endpoint = endpoint.clone();
        thread::spawn(move || worker(&endpoint, Duration::from_micros(pause_us)))
    });

    let (mut given, mut sum, mut working) = (0, 0, workers.len());
    while working > 0 {
        // What comes is either empty, which asks for a first job, or a result, which asks for the next.
        let (worker, message) = office.recv_identity_timeout(PATIENCE)?;
        if !message.is_empty() {
            sum += number(&message)?;
        }
        if given < JOBS {
            office.send_to(worker, &given.to_be_bytes())?;
            given += 1;
        } else {
            // Nothing left: an empty job ends the worker.
            office.send_to(worker, "")?;
            working -= 1;
        }
    }
    let mut shares = Vec::new();
    for worker in workers {
        shares.push(worker.join().map_err(|_| "a worker panicked")??);
    }
    println!("{JOBS} jobs; jobs per worker: {shares:?}");
    let right = sum == (0..JOBS).map(|job| job * job).sum::<u64>() && shares.iter().sum::<u64>() == JOBS;
    if right && shares[2] < shares[0] { Ok(()) } else { Err("not every job was done once".into()) }
}

/// Does jobs until an empty one comes; how many.
fn worker(endpoint: &str, pause: Duration) -> Outcome<u64> {
    let socket = Socket::new()?;
    socket.connect(endpoint)?;
    socket.send("")?;
    let mut jobs = 0;
    loop {
        let job = socket.recv_timeout(PATIENCE)?;
        if job.is_empty() {
            return Ok(jobs);
        }
        thread::sleep(pause);
        jobs += 1;
        let job = number(&job)?;
        socket.send(&(job * job).to_be_bytes())?;
    }
}

fn number(message: &[u8]) -> Outcome<u64> {
    Ok(u64::from_be_bytes(message.try_into()?))
}
