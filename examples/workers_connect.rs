//! Round-robin work, workers connecting: the dispatcher binds, each worker connects to it, takes
//! jobs in turn and sends results back over the same connection. See `workers_bind` for the other
//! way round. Blocking sockets on plain threads.

use std::collections::HashMap;
use std::error::Error;
use std::thread;
use std::time::Duration;

use aiomsg_uring::{Address, SendMode, Socket, blocking};

const WORKERS: usize = 4;
const JOBS: u64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let dispatcher = Socket::builder().send_mode(SendMode::RoundRobin).build_blocking()?;
    let address = dispatcher.bind("127.0.0.1:0")?;
    println!("jobs are to be had at {address}");
    for _ in 0..WORKERS {
        let address = address.clone();
        thread::spawn(move || {
            if let Err(error) = work(address) {
                eprintln!("a worker failed: {error}");
            }
        });
    }
    dispatcher.wait_for_peers(WORKERS, PATIENCE)?;
    for job in 0..JOBS {
        dispatcher.send(&job.to_be_bytes())?;
    }

    let mut sum = 0;
    let mut jobs_by_worker = HashMap::new();
    for _ in 0..JOBS {
        let result = dispatcher.recv_timeout(PATIENCE)?;
        // A result: who worked, and the square of the job's number.
        let (worker, square) = result.split_at(16);
        *jobs_by_worker.entry(worker.to_vec()).or_insert(0) += 1;
        sum += u64::from_be_bytes(square.try_into()?);
    }
    let shares: Vec<u64> = jobs_by_worker.into_values().collect();
    println!("{JOBS} results; jobs per worker: {shares:?}");
    dispatcher.close();

    let fair = shares.len() == WORKERS && shares.iter().all(|&share| share.abs_diff(JOBS / WORKERS as u64) <= 1);
    let right = sum == (0..JOBS).map(|job| job * job).sum::<u64>();
    if fair && right { Ok(()) } else { Err("the work was not shared out or not done as it should be".into()) }
}

/// Squares numbers until the dispatcher is gone.
fn work(address: Address) -> Result<(), Box<dyn Error>> {
    let socket: blocking::Socket = Socket::builder().send_mode(SendMode::RoundRobin).build_blocking()?;
    socket.connect(address)?;
    for job in socket.messages() {
        let number = u64::from_be_bytes(job[..].try_into()?);
        let mut result = socket.identity().as_bytes().to_vec();
        result.extend_from_slice(&(number * number).to_be_bytes());
        socket.send(result)?;
    }
    Ok(())
}
