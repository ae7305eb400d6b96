//! One set of calls over the two engines, so that a command which lets the user choose is written once. It adds nothing
//! to them but the text of errors: what it shows is how the inline and the sharded socket differ for their caller.
//! Called by `demo`, `echo` and `bench`.

use std::time::{Duration, Instant};

use aiomsg_uring::{
    Address, Backend, Batch, Endpoint as Place, Engine, EngineInfo, Event, Identity, Metrics, Payload, SendError,
    SocketBuilder, SocketId, Stats, TryRecvError, blocking, inline,
};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

/// Who drives the sockets.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineKind {
    /// The calling thread.
    Inline,
    /// Reactor threads of their own.
    Sharded,
}

/// Which backend is asked for.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendChoice {
    /// io_uring where its self-test passes, else readiness.
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Readiness (epoll, kqueue).
    Poll,
}

impl From<BackendChoice> for Backend {
    fn from(choice: BackendChoice) -> Backend {
        match choice {
            BackendChoice::Auto => Backend::Auto,
            BackendChoice::Uring => Backend::Uring,
            BackendChoice::Poll => Backend::Poll,
        }
    }
}

/// Which of them a command uses.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Drive {
    /// Who drives the sockets: the calling threads, or reactor threads
    #[arg(long, value_enum, default_value_t = EngineKind::Inline)]
    pub(crate) engine: EngineKind,
    /// What the sockets stand on; auto takes io_uring where it works
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub(crate) backend: BackendChoice,
}

/// What low latency costs cores for.
#[derive(Args, Clone, Debug)]
pub(crate) struct Cores {
    /// How long to look for work before sleeping; saves wake-ups where each end has a core to itself, and costs all of it
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub(crate) spin: u64,
    /// Keep what drives each socket on a core of its own: the first of these, separated by commas, is this end's (Linux)
    #[arg(long, value_name = "CORES", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(..1024))]
    pub(crate) pin: Vec<u16>,
}

impl Cores {
    /// Starts an engine with this one socket, on the `nth` of the cores (in turn, if they are fewer). What drives it stays there:
    /// the calling thread, or the reactor.
    pub(crate) fn open(&self, drive: Drive, nth: usize, socket: SocketBuilder) -> Result<Endpoint> {
        let spin = Duration::from_micros(self.spin);
        let Some(&core) = self.pin.iter().cycle().nth(nth) else { return Endpoint::new(drive, spin, socket) };
        let unpinned = pin(core)?;
        let endpoint = Endpoint::new(drive, spin, socket)?;
        if drive.engine == EngineKind::Sharded {
            // The reactor has inherited it.
            unpinned();
        }
        Ok(endpoint)
    }
}

impl std::fmt::Display for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.spin > 0 {
            write!(f, ", spinning {} us", self.spin)?;
        }
        if !self.pin.is_empty() {
            let cores: Vec<_> = self.pin.iter().map(u16::to_string).collect();
            write!(f, ", on cores {}", cores.join(","))?;
        }
        Ok(())
    }
}

/// Keeps this thread, and those that it starts, on the core; what it answers with takes that back.
#[cfg(target_os = "linux")]
fn pin(core: u16) -> Result<impl FnOnce()> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let cannot =
        || format!("cannot stay on core {core}: Cpus_allowed_list in /proc/self/status has those that there are");
    let allowed = sched_getaffinity(None).with_context(cannot)?;
    let mut one = CpuSet::new();
    one.set(core.into());
    sched_setaffinity(None, &one).with_context(cannot)?;
    Ok(move || {
        // It was allowed before.
        let _ = sched_setaffinity(None, &allowed);
    })
}

#[cfg(not(target_os = "linux"))]
fn pin(_core: u16) -> Result<fn()> {
    anyhow::bail!("--pin works on Linux only")
}

/// A socket and the engine that it stands on.
pub(crate) enum Endpoint {
    /// This thread drives.
    Inline {
        /// The engine's one socket.
        socket: inline::Socket,
        /// What this thread drives.
        engine: inline::Engine,
        /// Room for the ids of ready sockets; there is only one, so that nobody reads them.
        ready: Vec<SocketId>,
    },
    /// Reactor threads drive.
    Sharded {
        /// The engine's one socket.
        socket: blocking::Socket,
        /// Owns the threads.
        engine: Engine,
    },
}

impl Endpoint {
    /// Starts an engine with this one socket.
    pub(crate) fn new(drive: Drive, spin: Duration, socket: SocketBuilder) -> Result<Self> {
        match drive.engine {
            EngineKind::Inline => {
                let engine = inline::Engine::builder().backend(drive.backend.into()).spin(spin).build()?;
                let socket = socket.build_inline(&engine)?;
                Ok(Self::Inline { engine, socket, ready: Vec::new() })
            }
            EngineKind::Sharded => {
                let engine = Engine::builder().backend(drive.backend.into()).spin(spin).build()?;
                let socket = socket.engine(&engine).build_blocking()?;
                Ok(Self::Sharded { engine, socket })
            }
        }
    }

    /// The backend, and why it was chosen.
    pub(crate) fn info(&self) -> &EngineInfo {
        match self {
            Self::Inline { engine, .. } => engine.info(),
            Self::Sharded { engine, .. } => engine.info(),
        }
    }

    /// Listens; returns the address with the port that the system chose.
    pub(crate) fn bind(&mut self, endpoint: Place) -> Result<Address> {
        Ok(match self {
            Self::Inline { socket, .. } => socket.bind(endpoint)?,
            Self::Sharded { socket, .. } => socket.bind(endpoint)?,
        })
    }

    /// Registers a dialer.
    pub(crate) fn connect(&mut self, endpoint: Place) -> Result<()> {
        match self {
            Self::Inline { socket, .. } => socket.connect(endpoint)?,
            Self::Sharded { socket, .. } => socket.connect(endpoint)?,
        }
        Ok(())
    }

    /// Connected peers.
    pub(crate) fn peers(&self) -> usize {
        match self {
            Self::Inline { socket, .. } => socket.peers().len(),
            Self::Sharded { socket, .. } => socket.peers().len(),
        }
    }

    /// The socket's counters.
    pub(crate) fn stats(&self) -> Stats {
        match self {
            Self::Inline { socket, .. } => socket.stats(),
            Self::Sharded { socket, .. } => socket.stats(),
        }
    }

    /// Waits until `count` peers are connected; false when they were not within `timeout`.
    pub(crate) fn wait_for_peers(&mut self, count: usize, timeout: Duration) -> bool {
        match self {
            Self::Inline { socket, .. } => socket.wait_for_peers(count, timeout).is_ok(),
            Self::Sharded { socket, .. } => socket.wait_for_peers(count, timeout).is_ok(),
        }
    }

    /// Publishes one message; waits while the log is full.
    #[inline]
    pub(crate) fn send(&mut self, message: &[u8]) -> Result<()> {
        match self {
            Self::Inline { socket, .. } => socket.send(Payload::Borrowed(message)).context("cannot publish"),
            Self::Sharded { socket, .. } => socket.send(Payload::Borrowed(message)).context("cannot publish"),
        }
    }

    /// Sends what was only appended so far. Reactor threads do so by themselves.
    pub(crate) fn flush(&mut self) -> Result<()> {
        match self {
            Self::Inline { socket, .. } => socket.flush().context("cannot flush"),
            Self::Sharded { .. } => Ok(()),
        }
    }

    /// Flushes, and passes the time until `deadline`, which for the inline engine means to drive it.
    pub(crate) fn idle_until(&mut self, deadline: Instant) -> Result<()> {
        self.flush()?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            match self {
                Self::Inline { engine, ready, .. } => engine.poll(Some(left), ready)?,
                Self::Sharded { .. } => std::thread::sleep(left),
            }
        }
    }

    /// Waits for messages: as many as one completion brought, all from one peer.
    pub(crate) fn recv_batch(&mut self) -> Result<Batch> {
        match self {
            Self::Inline { socket, .. } => socket.recv_batch(None).context("cannot receive"),
            Self::Sharded { socket, .. } => socket.recv_batch().context("cannot receive"),
        }
    }

    /// Waits for messages for at most `timeout`; `None` when none came.
    pub(crate) fn recv_batch_timeout(&mut self, timeout: Duration) -> Result<Option<Batch>> {
        let batch = match self {
            Self::Inline { socket, .. } => socket.recv_batch(Some(timeout)),
            Self::Sharded { socket, .. } => socket.recv_batch_timeout(timeout),
        };
        match batch {
            Ok(batch) => Ok(Some(batch)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(error) => Err(error).context("cannot receive"),
        }
    }

    /// The next event of the socket, if there is one.
    pub(crate) fn try_event(&self) -> Option<Event> {
        match self {
            Self::Inline { socket, .. } => socket.try_event(),
            Self::Sharded { socket, .. } => socket.try_event(),
        }
    }

    /// Sends one message to one peer; waits while too much is under way to it.
    pub(crate) fn send_to(&mut self, identity: Identity, message: &[u8]) -> Result<(), SendError> {
        match self {
            Self::Inline { socket, .. } => socket.send_to(identity, message),
            Self::Sharded { socket, .. } => socket.send_to(identity, message),
        }
    }

    /// The counters of the socket, under this name, and of its engine.
    pub(crate) fn metrics(&self, name: &str) -> Metrics {
        match self {
            Self::Inline { socket, engine, .. } => {
                Metrics::new().socket(name, socket.stats(), socket.peer_stats()).shards([engine.stats()])
            }
            Self::Sharded { socket, engine } => {
                Metrics::new().socket(name, socket.stats(), socket.peer_stats()).shards(engine.stats())
            }
        }
    }

    /// Drains and ends the socket; the messages that were not delivered.
    pub(crate) fn close(self) -> u64 {
        match self {
            Self::Inline { socket, .. } => socket.close().undelivered,
            Self::Sharded { socket, .. } => socket.close().undelivered,
        }
    }
}
