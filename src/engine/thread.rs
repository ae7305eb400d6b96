//! A reactor thread: opens its backend, steps its shard until that ends, and decides between spinning, yielding and sleeping.
//! A shard that panics or whose backend breaks ends its sockets with an error; nobody is left waiting.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;

use super::{EngineError, EngineOptions};
use crate::backend::{self, Kind};
use crate::shard::{Port, Shard, Turn, Wait};

/// Times that an idle reactor lets others run before it sleeps. Where application and reactor share a core, the application then
/// fills the log meanwhile instead of waking the reactor for each message; where they do not, it costs a microsecond.
const YIELDS: u32 = 3;

/// Starts the thread; answers when its backend is open.
pub(super) fn spawn(
    index: u32,
    ports: Arc<[Arc<Port>]>,
    options: &EngineOptions,
    seed: u64,
) -> Result<(Kind, String), EngineError> {
    let (tell, told) = mpsc::channel();
    let options = options.clone();
    std::thread::Builder::new()
        .name(format!("aiomsg-{index}"))
        .spawn(move || {
            if options.pin {
                pin(index as usize, options.shards);
            }
            let selected = match backend::open(&options.backend) {
                Ok(selected) => selected,
                Err(error) => {
                    let _ = tell.send(Err(EngineError::Backend(error)));
                    return;
                }
            };
            let kind = selected.backend.kind();
            let mut shard = Shard::new(selected.backend, ports, index, seed);
            let _ = tell.send(Ok((kind, selected.reason)));
            let end = catch_unwind(AssertUnwindSafe(|| run(&mut shard, options.spin_ns)));
            match end {
                Ok(Ok(())) => tracing::debug!(shard = index, "reactor ended"),
                Ok(Err(error)) => tracing::error!(shard = index, %error, "the backend broke: its sockets end"),
                Err(_) => tracing::error!(shard = index, "the reactor panicked: its sockets end"),
            }
            shard.abandon();
        })
        .map_err(EngineError::Thread)?;
    told.recv().unwrap_or_else(|_| Err(EngineError::Thread(std::io::Error::other("the thread ended at once"))))
}

fn run(shard: &mut Shard, spin_ns: u64) -> std::io::Result<()> {
    let mut yields = 0;
    let mut idle_since_ns = shard.now_ns();
    loop {
        let may_wait = yields > YIELDS;
        let wait = match may_wait {
            true => Wait::Until(u64::MAX),
            false if spin_ns > 0 => Wait::Spin,
            false => Wait::No,
        };
        match shard.turn(wait)? {
            Turn::Stopped => return Ok(()),
            Turn::Busy => {
                yields = 0;
                idle_since_ns = 0;
                if shard.is_ahead() {
                    std::thread::yield_now();
                }
            }
            Turn::Idle if may_wait => {}
            Turn::Idle => {
                if spin_ns > 0 {
                    let now_ns = shard.turned_ns();
                    if idle_since_ns == 0 {
                        idle_since_ns = now_ns;
                    }
                    if now_ns - idle_since_ns < spin_ns {
                        std::hint::spin_loop();
                        continue;
                    }
                }
                yields += 1;
                std::thread::yield_now();
            }
        }
    }
}

/// Keeps this thread on one of the cores that the process may use.
#[cfg(target_os = "linux")]
fn pin(index: usize, shards: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    if cores.len() <= shards {
        tracing::warn!(cores = cores.len(), shards, "not pinned: there are not more cores than shards");
        return;
    }
    let mut one = CpuSet::new();
    one.set(cores[index % cores.len()]);
    if let Err(error) = sched_setaffinity(None, &one) {
        tracing::warn!(%error, "not pinned");
    }
}

#[cfg(not(target_os = "linux"))]
fn pin(_index: usize, _shards: usize) {
    tracing::warn!("pinning is not supported on this platform");
}
