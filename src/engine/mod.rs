//! The engine owns the threads that sockets live on: N shards, each with a reactor of its own ([`Engine`]), or no thread at all
//! ([`inline`]: the application's thread drives). It decides which backend, how threads are pinned and when they sleep, and it knows
//! nothing of messages.

pub(crate) mod inline;
mod options;
mod thread;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::log::{self, LogOptions};
use crate::protocol::{Identity, MsgIds, Rng};
use crate::shard::{Command, DeliveryGuarantee, KIB, Outlet, Port, ShardStats, SocketConfig, SocketIds, SocketShared};

pub(crate) use options::EngineOptions;
pub use options::{EngineBuilder, EngineError, EngineInfo};

/// Payloads of at least this many bytes that come as [`Bytes`](bytes::Bytes) are kept by reference.
const SHARE_FROM_BYTES: usize = 16 * KIB;
/// Bytes of one chunk of a socket's log: what one send takes.
const CHUNK_BYTES: usize = 256 * KIB;
/// Requests that wait for a shard at most; more make their callers yield.
const COMMANDS_MAX: usize = 1024;

/// The threads that any number of [`Socket`](crate::Socket)s share. Clones are handles to the same engine; it ends when the last
/// handle and the last socket on it are gone and what they sent has drained.
///
/// ```
/// use aiomsg_uring::{Backend, Engine, Socket};
///
/// let engine = Engine::builder().backend(Backend::Auto).shards(1).build()?;
/// println!("{} because {}", engine.info().backend, engine.info().reason);
/// let socket = Socket::builder().engine(&engine).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    ports: Arc<[Arc<Port>]>,
    ids: Arc<SocketIds>,
    info: EngineInfo,
    /// Where the prefixes of message ids come from.
    seeds: Mutex<Rng>,
}

impl Engine {
    /// Settings, to begin with the defaults.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// An engine with all defaults: one shard, the best backend there is.
    pub fn new() -> Result<Engine, EngineError> {
        Engine::builder().build()
    }

    /// The engine that sockets live on which were not given one: all defaults, started at its first use, never stopped.
    pub fn global() -> Result<Engine, EngineError> {
        static GLOBAL: OnceLock<Engine> = OnceLock::new();
        if let Some(engine) = GLOBAL.get() {
            return Ok(engine.clone());
        }
        // Two threads may both start one; the second's ends unused.
        let engine = Engine::new()?;
        Ok(GLOBAL.get_or_init(|| engine).clone())
    }

    /// Which backend was chosen, and why.
    pub fn info(&self) -> &EngineInfo {
        &self.inner.info
    }

    /// What each shard has done since the start.
    pub fn stats(&self) -> Vec<ShardStats> {
        self.inner.ports.iter().map(|port| port.counts.snapshot()).collect()
    }

    pub(super) fn start(options: EngineOptions) -> Result<Engine, EngineError> {
        let ports: Arc<[Arc<Port>]> =
            (0..options.shards).map(|_| Arc::new(Port::new(COMMANDS_MAX, options.sockets_max))).collect();
        let mut seeds = Rng::from_system();
        let mut chosen = None;
        for index in 0..ports.len() {
            match thread::spawn(index as u32, ports.clone(), &options, seeds.next_u64()) {
                Ok(started) => chosen = Some(started),
                Err(error) => {
                    for started in &ports[..index] {
                        let _ = started.command(Command::Stop);
                    }
                    return Err(error);
                }
            }
        }
        let (backend, reason) = chosen.ok_or(EngineError::NoShards)?;
        let info = EngineInfo { backend, reason, shards: options.shards, inline: false };
        info.log();
        Ok(Engine::of(ports, options.sockets_max, info, seeds))
    }

    fn of(ports: Arc<[Arc<Port>]>, sockets_max: usize, info: EngineInfo, seeds: Rng) -> Engine {
        let ids = Arc::new(SocketIds::new(sockets_max));
        Engine { inner: Arc::new(Inner { ports, ids, info, seeds: Mutex::new(seeds) }) }
    }

    /// An engine over shards that somebody else steps.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn over(ports: Arc<[Arc<Port>]>, sockets_max: usize, seed: u64) -> Engine {
        let shards = ports.len();
        let info =
            EngineInfo { backend: crate::backend::Kind::Sim, reason: "simulated".to_owned(), shards, inline: false };
        Engine::of(ports, sockets_max, info, Rng::new(seed))
    }

    /// Opens a socket on all shards.
    pub(crate) fn open(
        &self,
        identity: Identity,
        config: SocketConfig,
    ) -> Result<(Arc<SocketShared>, Outlet), OpenError> {
        let ports = self.inner.ports.clone();
        let seed = self.inner.seeds.lock().unwrap_or_else(PoisonError::into_inner).next_u64();
        let (shared, outlet, readers) = open(&self.inner.ids, ports.clone(), identity, config, seed)?;
        for (port, (log, mail)) in ports.iter().zip(readers) {
            let command = Command::Open { shared: shared.clone(), log, mail };
            port.command(command).map_err(|_| OpenError::EngineStopped)?;
        }
        Ok((shared, outlet))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for port in self.ports.iter() {
            let _ = port.command(Command::Stop);
        }
    }
}

/// Why a socket could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    TooManySockets(usize),
    EngineStopped,
}

/// Each shard's view of a socket's log and of its own mail.
type Readers = Vec<(log::Reader, log::Reader)>;

/// What is the same for engines with threads and without.
fn open(
    ids: &Arc<SocketIds>,
    ports: Arc<[Arc<Port>]>,
    identity: Identity,
    config: SocketConfig,
    seed: u64,
) -> Result<(Arc<SocketShared>, Outlet, Readers), OpenError> {
    let taken = ids.take().map_err(OpenError::TooManySockets)?;
    let options = LogOptions {
        retain: config.retention.in_log(),
        chunk_bytes: CHUNK_BYTES.min(config.log_bytes_max / 4),
        limit_bytes: config.log_bytes_max,
        share_from_bytes: SHARE_FROM_BYTES,
    };
    let (log, logs) = log::open(options, ports.len());
    let options = LogOptions { retain: log::Retain::NOTHING, ..options };
    // What is in the mail is on its way: it waits in the lane of a link, within bounds that senders keep.
    let (mail, mails): (Vec<_>, Vec<_>) = ports.iter().map(|_| log::open(options, 1)).unzip();
    let ids = (config.delivery == DeliveryGuarantee::AtLeastOnce).then(|| MsgIds::new(seed));
    let shared = Arc::new(SocketShared::new(taken, identity, config, log.handle(), ports));
    let readers = logs.into_iter().zip(mails.into_iter().flatten()).collect();
    Ok((shared, Outlet::new(log, mail, ids), readers))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{RecvError, SendError, Socket, TryRecvError};

    #[test]
    fn a_reactor_that_panics_ends_its_sockets_with_an_error() {
        let engine = Engine::new().unwrap();
        let build = || Socket::builder().engine(&engine).build_blocking().unwrap();
        let (one, other) = (build(), build());
        let address = one.bind("127.0.0.1:0").unwrap();
        other.connect(&address).unwrap();
        one.wait_for_peers(1, Duration::from_secs(10)).unwrap();
        let waiting = std::thread::spawn({
            let other = other.clone();
            move || other.recv()
        });
        engine.inner.ports[0].command(Command::Panic).unwrap();
        assert_eq!(waiting.join().unwrap(), Err(RecvError::EngineStopped));
        assert_eq!(one.send("x"), Err(SendError::EngineStopped));
        assert_eq!(one.try_recv(), Err(TryRecvError::Never(RecvError::EngineStopped)));
        assert!(one.bind("127.0.0.1:0").is_err());
        assert_eq!(one.close().undelivered, 0);
    }
}
