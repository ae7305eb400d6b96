//! What can be set about an engine, and what it says about itself.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use super::Engine;
use super::inline::InlineEngine;
use crate::backend::{BackendOptions, Choice as Backend, Kind as BackendKind, PoolOptions};
use crate::shard::nanos;

/// Settings of an [`Engine`] or an [`inline::Engine`](crate::inline::Engine): `E` is what `build` makes.
#[must_use]
pub struct EngineBuilder<E = Engine> {
    options: EngineOptions,
    builds: PhantomData<fn() -> E>,
}

impl<E> Clone for EngineBuilder<E> {
    fn clone(&self) -> Self {
        EngineBuilder { options: self.options.clone(), builds: PhantomData }
    }
}

impl<E> Default for EngineBuilder<E> {
    fn default() -> Self {
        EngineBuilder { options: EngineOptions::default(), builds: PhantomData }
    }
}

impl<E> fmt::Debug for EngineBuilder<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBuilder").field("options", &self.options).finish()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct EngineOptions {
    pub(crate) backend: BackendOptions,
    pub(crate) shards: usize,
    pub(crate) pin: bool,
    pub(crate) spin_ns: u64,
    pub(crate) sockets_max: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { backend: BackendOptions::default(), shards: 1, pin: false, spin_ns: 0, sockets_max: 16_384 }
    }
}

impl EngineBuilder {
    /// Reactor threads, at least 1 (default 1). One moves millions of messages a second; more help when there are cores to spare
    /// and links enough to share out.
    pub fn shards(mut self, shards: usize) -> Self {
        self.options.shards = shards.max(1);
        self
    }

    /// Pins each reactor to a core of its own (default off). For machines where those cores are set apart: two pinned processes
    /// that know nothing of each other take the same cores. Without effect if there are not more cores than shards.
    pub fn pin(mut self, pin: bool) -> Self {
        self.options.pin = pin;
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// When a forced backend is not to be had, a thread cannot be started, or memory or descriptors run out.
    pub fn build(self) -> Result<Engine, EngineError> {
        Engine::start(self.with_environment()?)
    }
}

impl<E> EngineBuilder<E> {
    /// Which backend; by default io_uring if its self-test succeeds, else readiness. The environment variable `AIOMSG_BACKEND`
    /// (`uring`, `poll` or `auto`) decides where this is [`Backend::Auto`].
    pub fn backend(mut self, choice: Backend) -> Self {
        self.options.backend.choice = choice;
        self
    }

    /// How long a reactor, or an inline engine that waits, looks for work before it sleeps (default 0). Saves the 10 to 20
    /// microseconds of a wake-up and costs a core.
    pub fn spin(mut self, spin: Duration) -> Self {
        self.options.spin_ns = nanos(spin);
        self
    }

    /// Receive slabs of each shard (default 32, from 2 to 32,768); with [`slab_bytes`](Self::slab_bytes) the memory that received bytes are lent
    /// from: 8 MiB a shard by default, of which only what is used becomes resident.
    pub fn slabs(mut self, slabs: usize) -> Self {
        self.options.backend.pool.slab_count = slabs.clamp(2, 32 * 1024);
        self
    }

    /// Bytes of one receive slab (default 256 KiB, from 4 KiB to 64 MiB): the most that one receive takes.
    pub fn slab_bytes(mut self, bytes: usize) -> Self {
        self.options.backend.pool.slab_bytes = bytes.clamp(4096, 64 << 20);
        self
    }

    /// Sockets that may live on the engine at once, at least 1 (default 16,384, 16 bytes each).
    pub fn sockets_max(mut self, sockets: usize) -> Self {
        self.options.sockets_max = sockets.max(1);
        self
    }

    pub(crate) fn open_inline(self) -> Result<InlineEngine, EngineError> {
        InlineEngine::open(self.with_environment()?)
    }

    fn with_environment(self) -> Result<EngineOptions, EngineError> {
        let mut options = self.options;
        if options.backend.choice == Backend::Auto
            && let Ok(name) = std::env::var("AIOMSG_BACKEND")
        {
            options.backend.choice = match name.as_str() {
                "uring" => Backend::Uring,
                "poll" => Backend::Poll,
                "auto" | "" => Backend::Auto,
                _ => return Err(EngineError::UnknownBackend(name)),
            };
        }
        debug_assert!(options.backend.pool != PoolOptions { slab_count: 0, ..options.backend.pool });
        Ok(options)
    }
}

/// What an engine runs on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EngineInfo {
    /// The backend in use.
    pub backend: BackendKind,
    /// Why that one, in words for an operator.
    pub reason: String,
    /// Reactor threads; 0 for an inline engine.
    pub shards: usize,
    /// Whether the application's own thread drives it.
    pub inline: bool,
}

impl EngineInfo {
    /// Says it in the log.
    pub(super) fn log(&self) {
        tracing::info!(backend = %self.backend, reason = %self.reason, shards = self.shards, "engine started");
    }
}

/// Why an engine did not start, or cannot go on.
#[derive(Debug)]
#[non_exhaustive]
pub enum EngineError {
    /// The backend could not be opened, or broke.
    Backend(std::io::Error),
    /// A thread could not be started.
    Thread(std::io::Error),
    /// `AIOMSG_BACKEND` names no backend.
    UnknownBackend(String),
    /// An engine without shards.
    NoShards,
    /// Inline: the engine is being driven, and the call came from within that.
    Reentered,
    /// Inline: the engine panicked while it was driven, and its sockets have ended.
    Panicked,
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // ENFILE and EMFILE, which are the same numbers on all systems that have them.
            Self::Backend(error) if cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24)) => {
                write!(f, "the I/O backend does not work: {error}; raise the limit of descriptors (ulimit -n)")
            }
            Self::Backend(error) => write!(f, "the I/O backend does not work: {error}"),
            Self::Thread(error) => {
                write!(f, "a reactor thread cannot be started: {error}; look at the limits of processes and memory")
            }
            Self::UnknownBackend(name) => {
                write!(f, "AIOMSG_BACKEND is {name:?}: set it to uring, poll or auto, or unset it")
            }
            Self::NoShards => f.write_str("an engine needs at least one shard"),
            Self::Reentered => f.write_str(
                "the engine is being driven, and this call came from within (a tracing subscriber, or the drop of a \
                 payload's owner): make it when the call that drives has returned",
            ),
            Self::Panicked => f.write_str("the engine has panicked, and its sockets have ended"),
        }
    }
}

// The texts hold what the system said: there is no further source to print.
impl std::error::Error for EngineError {}
