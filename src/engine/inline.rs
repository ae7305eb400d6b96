//! The engine without a thread: one shard that the application's own thread steps. Not `Send`; whoever holds it drives it.

#[cfg(any(test, feature = "simulation"))]
use std::cell::RefMut;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::{EngineError, EngineInfo, EngineOptions, OpenError};
use crate::backend::{self, Backend};
use crate::protocol::{Identity, Rng};
use crate::shard::{
    Command, Outlet, Port, Shard, ShardStats, SocketConfig, SocketId, SocketIds, SocketShared, Turn, Wait,
};

/// See the module's documentation. Clones share the shard.
#[derive(Clone)]
pub(crate) struct InlineEngine {
    inner: Rc<Inner>,
}

struct Inner {
    shard: RefCell<Shard>,
    ports: Arc<[Arc<Port>]>,
    ids: Arc<SocketIds>,
    info: EngineInfo,
    spin_ns: u64,
    /// Where the prefixes of message ids come from.
    seeds: RefCell<Rng>,
    /// The shard is being stepped, or has panicked while it was: then nobody steps it any more, least of all whoever unwinds.
    stepped: Cell<bool>,
    /// What was asked from within a step, for its end. Only so much as the application asks there.
    later: RefCell<Vec<Command>>,
    /// The backend cannot wait: see [`InlineEngine::over`].
    #[cfg(any(test, feature = "simulation"))]
    simulated: bool,
}

impl InlineEngine {
    pub(super) fn open(options: EngineOptions) -> Result<InlineEngine, EngineError> {
        let selected = backend::open(&options.backend).map_err(EngineError::Backend)?;
        let info = EngineInfo { backend: selected.backend.kind(), reason: selected.reason, shards: 0, inline: true };
        info.log();
        let inner = Inner::new(selected.backend, info, options.sockets_max, options.spin_ns, Rng::from_system());
        Ok(InlineEngine { inner: Rc::new(inner) })
    }

    /// An engine over a simulated backend. Whoever waits gives up after one turn, as if the backend had broken: the world waits in
    /// its place, and makes the call again.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn over(backend: Box<dyn Backend>, sockets_max: usize, seed: u64) -> InlineEngine {
        let info = EngineInfo { backend: backend.kind(), reason: "simulated".to_owned(), shards: 0, inline: true };
        let inner = Inner::new(backend, info, sockets_max, 0, Rng::new(seed));
        InlineEngine { inner: Rc::new(Inner { simulated: true, ..inner }) }
    }

    /// The shard, for the world that it is simulated in.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn shard(&self) -> RefMut<'_, Shard> {
        self.inner.shard.borrow_mut()
    }

    pub(crate) fn info(&self) -> &EngineInfo {
        &self.inner.info
    }

    pub(crate) fn stats(&self) -> ShardStats {
        self.inner.ports[0].counts.snapshot()
    }

    pub(crate) fn open_socket(
        &self,
        identity: Identity,
        config: SocketConfig,
    ) -> Result<(Arc<SocketShared>, Outlet), OpenError> {
        let seed = self.inner.seeds.borrow_mut().next_u64();
        let (shared, outlet, mut readers) =
            super::open(&self.inner.ids, self.inner.ports.clone(), identity, config, seed)?;
        if let Some((log, mail)) = readers.pop() {
            self.command(Command::Open { shared: shared.clone(), log, mail });
        }
        Ok((shared, outlet))
    }

    /// From within a step it is done at the end of that.
    pub(crate) fn command(&self, command: Command) {
        if self.is_within() {
            self.inner.later.borrow_mut().push(command);
        } else {
            // One that has panicked does nothing more.
            let _ = self.step(|shard| shard.command(command));
        }
    }

    /// Queues what the socket's log holds for its links; it goes out with the next turn.
    pub(crate) fn flush(&self, id: SocketId) {
        let _ = self.step(|shard| shard.flush(id));
    }

    /// How far an application is ahead of all of a socket's links, see [`Shard::ahead_bytes`].
    pub(crate) fn ahead_bytes(&self, id: SocketId) -> u64 {
        // The world of a simulation waits, nobody else.
        #[cfg(any(test, feature = "simulation"))]
        if self.inner.simulated {
            return 0;
        }
        self.inner.shard.try_borrow().map_or(0, |shard| shard.ahead_bytes(id))
    }

    /// Whether the caller has been called by the shard: by way of a log line, or of a payload that was dropped.
    fn is_within(&self) -> bool {
        self.inner.shard.try_borrow().is_err()
    }

    /// Whether the shard may be stepped.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        match self.inner.stepped.get() {
            false => Ok(()),
            true if self.is_within() => Err(EngineError::Reentered),
            true => Err(EngineError::Panicked),
        }
    }

    /// Calls `act` with the sockets to which something happened in the last turn.
    pub(crate) fn for_each_told(&self, act: impl FnMut(&SocketId)) {
        if let Ok(shard) = self.inner.shard.try_borrow() {
            shard.told().iter().for_each(act);
        }
    }

    fn step<T>(&self, act: impl FnOnce(&mut Shard) -> T) -> Result<T, EngineError> {
        self.check()?;
        self.inner.stepped.set(true);
        let mut shard = self.inner.shard.borrow_mut();
        let result = act(&mut shard);
        while !self.inner.later.borrow().is_empty() {
            self.inner.later.take().into_iter().for_each(|command| shard.command(command));
        }
        drop(shard);
        self.inner.stepped.set(false);
        Ok(result)
    }

    /// 0 from within a step, and so is the next deadline.
    pub(crate) fn now_ns(&self) -> u64 {
        self.inner.shard.try_borrow().map_or(0, |shard| shard.now_ns())
    }

    pub(crate) fn next_deadline_ns(&self) -> u64 {
        self.inner.shard.try_borrow().map_or(0, |shard| shard.next_deadline_ns())
    }

    /// Steps the shard once; waits until `deadline_ns` at most for something to happen (0: not at all).
    pub(crate) fn turn(&self, deadline_ns: u64) -> Result<Turn, EngineError> {
        let spin_ns = self.inner.spin_ns;
        let turned = self.step(|shard| {
            let result = if deadline_ns == 0 || spin_ns == 0 {
                shard.turn(if deadline_ns == 0 { Wait::No } else { Wait::Until(deadline_ns) })
            } else {
                spin(shard, deadline_ns, spin_ns)
            };
            result.inspect_err(|_| shard.abandon())
        });
        let turn = turned?.map_err(EngineError::Backend)?;
        #[cfg(any(test, feature = "simulation"))]
        if self.inner.simulated && deadline_ns != 0 {
            return Err(EngineError::Backend(std::io::ErrorKind::WouldBlock.into()));
        }
        Ok(turn)
    }
}

impl Inner {
    fn new(backend: Box<dyn Backend>, info: EngineInfo, sockets_max: usize, spin_ns: u64, mut seeds: Rng) -> Inner {
        let ports: Arc<[Arc<Port>]> = Arc::new([Arc::new(Port::new(16, sockets_max))]);
        Inner {
            shard: RefCell::new(Shard::new(backend, ports.clone(), 0, seeds.next_u64())),
            ports,
            ids: Arc::new(SocketIds::new(sockets_max)),
            info,
            spin_ns,
            seeds: RefCell::new(seeds),
            stepped: Cell::new(false),
            later: RefCell::default(),
            #[cfg(any(test, feature = "simulation"))]
            simulated: false,
        }
    }
}

/// Looks for work for a while before it waits.
fn spin(shard: &mut Shard, deadline_ns: u64, spin_ns: u64) -> std::io::Result<Turn> {
    let mut until_ns = None;
    loop {
        let turn = shard.turn(Wait::Spin)?;
        if turn != Turn::Idle {
            return Ok(turn);
        }
        let now_ns = shard.turned_ns();
        if now_ns >= *until_ns.get_or_insert(now_ns.saturating_add(spin_ns).min(deadline_ns)) {
            return shard.turn(Wait::Until(deadline_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// What a socket does that is dropped while its thread unwinds.
    struct Unwinding(InlineEngine);

    impl Drop for Unwinding {
        fn drop(&mut self) {
            let mut stepped = false;
            let _ = self.0.step(|_| stepped = true);
            assert!(!stepped && self.0.turn(0).is_err(), "a second panic, which ends the process");
        }
    }

    #[test]
    fn who_unwinds_does_not_step_a_shard_that_has_panicked() {
        let engine = InlineEngine::open(EngineOptions::default()).expect("a backend");
        assert!(engine.turn(0).is_ok());
        let unwinding = Unwinding(engine.clone());
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _unwinding = unwinding;
            engine.command(Command::Panic);
        }));
        assert!(unwound.is_err());
        // Nor does anybody later.
        assert!(matches!(engine.turn(0), Err(EngineError::Panicked)));
    }
}
