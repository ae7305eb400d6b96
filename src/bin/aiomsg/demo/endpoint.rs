//! One set of calls over the two engines, so that publisher and subscriber are written once. It adds nothing to them
//! but the text of errors: what it shows is how the inline and the sharded socket differ for their caller.

use std::time::{Duration, Instant};

use aiomsg_uring::{Address, Backend, Batch, Engine, EngineInfo, Payload, Socket, SocketId, blocking, inline};
use anyhow::{Context, Result};

use super::{BackendChoice, EngineKind};

/// A subscriber that the machine does not run for a while (nine processes may share two cores) is no slow subscriber:
/// the demo waits for it for longer than the library's default of 1 s.
const PUBLISH_STALL_MAX: Duration = Duration::from_secs(10);

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
    /// Starts an engine with one PUBLISH socket. `shards`: reactor threads of the sharded engine, `None` for its default.
    pub(crate) fn new(kind: EngineKind, backend: BackendChoice, shards: Option<usize>) -> Result<Self> {
        let backend = match backend {
            BackendChoice::Auto => Backend::Auto,
            BackendChoice::Uring => Backend::Uring,
            BackendChoice::Poll => Backend::Poll,
        };
        let socket = Socket::builder().publish_stall_max(PUBLISH_STALL_MAX);
        match kind {
            EngineKind::Inline => {
                let engine = inline::Engine::builder().backend(backend).build()?;
                let socket = socket.build_inline(&engine)?;
                Ok(Self::Inline { engine, socket, ready: Vec::new() })
            }
            EngineKind::Sharded => {
                // Unpinned: every process of the demo would choose the same core.
                let mut builder = Engine::builder().backend(backend).pin(false);
                if let Some(shards) = shards {
                    builder = builder.shards(shards);
                }
                let engine = builder.build()?;
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
    pub(crate) fn bind(&mut self, endpoint: &str) -> Result<Address> {
        Ok(match self {
            Self::Inline { socket, .. } => socket.bind(endpoint)?,
            Self::Sharded { socket, .. } => socket.bind(endpoint)?,
        })
    }

    /// Registers a dialer.
    pub(crate) fn connect(&mut self, endpoint: &str) -> Result<()> {
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
}
