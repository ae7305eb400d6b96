//! What is done about peers that do not keep up, and where new ones begin, where it differs from what the builder said: for the peers
//! of one listener, and for single peers, at any time. The same calls for the three kinds of socket.

use super::error::{BindError, ControlError};
use super::{Endpoint, EndpointError, blocking, bound, core, inline, wait};
use crate::backend::Address;
use crate::engine::EngineError;
use crate::protocol::Identity;
use crate::shard::{Command, Flow, LagLimit, Own, Replay, Reply, SlowPolicy, SocketShared};

/// What a listener's peers have instead of what the builder said. For [`Socket::bind_with`](crate::Socket::bind_with).
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct BindOptions {
    slow: Option<(SlowPolicy, LagLimit)>,
    replay: Option<Replay>,
}

impl BindOptions {
    /// Nothing different.
    pub fn new() -> BindOptions {
        BindOptions::default()
    }

    /// PUBLISH: what is done about peers of this listener that do not keep up; no effect under ROUNDROBIN.
    pub fn slow_policy(mut self, policy: SlowPolicy, limit: LagLimit) -> BindOptions {
        self.slow = Some((policy, limit));
        self
    }

    /// PUBLISH: where peers of this listener begin; no effect under ROUNDROBIN. [`Replay::Oldest`] gives what
    /// [`retain`](crate::SocketBuilder::retain) keeps.
    pub fn replay(mut self, replay: Replay) -> BindOptions {
        self.replay = Some(replay);
        self
    }

    /// What the engine makes of them.
    pub(super) fn on(&self, shared: &SocketShared) -> Own {
        let flow = self.slow.map(|(policy, limit)| Flow::new(policy, limit, shared.config.log_bytes_max));
        Own { flow, replay: self.replay }
    }
}

/// Notes what one peer is to have. Answers with the shard that has to hear of it.
fn note(
    shared: &SocketShared,
    identity: Identity,
    slow: Option<(SlowPolicy, LagLimit)>,
) -> Result<(usize, Command), ControlError> {
    let flow = slow.map(|(policy, limit)| Flow::new(policy, limit, shared.config.log_bytes_max));
    change(shared, identity, |own| own.flow = flow)?;
    Ok((shared.shard_of(&identity), Command::Flow { socket: shared.id, identity }))
}

fn change(shared: &SocketShared, identity: Identity, change: impl FnOnce(&mut Own)) -> Result<(), ControlError> {
    core::check_open(shared).map_err(|_| ControlError::Closed)?;
    shared.change_own(identity, change).map_err(|max| ControlError::TooManyPolicies { max })
}

impl super::Socket {
    /// As [`bind`](Self::bind), with settings of its own for the peers that come in there.
    ///
    /// # Errors
    /// When the text names no place, the system refuses, or the socket is closed.
    pub async fn bind_with<E>(&self, endpoint: E, options: BindOptions) -> Result<Address, BindError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        let (pending, endpoint) = self.start_bind(endpoint, &options)?;
        wait::answer(&pending, &self.shared().ended)
            .await
            .map_or(Err(BindError::Closed), |result| bound(result, endpoint))
    }

    /// PUBLISH: what is done about one peer if it does not keep up, from now on, whether it is connected or not yet; before what its
    /// listener or the builder say. It does not change the kernel's buffers of a connection. No effect under ROUNDROBIN. Does not wait.
    ///
    /// # Errors
    /// When 16,384 peers have policies of their own, or the socket is closed.
    pub fn set_slow_policy(&self, identity: Identity, policy: SlowPolicy, limit: LagLimit) -> Result<(), ControlError> {
        self.note_flow(identity, Some((policy, limit)))
    }

    /// One peer is treated again as its listener or the builder say.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn clear_slow_policy(&self, identity: Identity) -> Result<(), ControlError> {
        self.note_flow(identity, None)
    }

    /// PUBLISH: where one peer begins whenever it connects from now on; before what its listener or the builder say, which count again
    /// after `None`. [`Replay::Oldest`] gives what [`retain`](crate::SocketBuilder::retain) keeps. No effect under ROUNDROBIN. Does not
    /// wait.
    ///
    /// # Errors
    /// As [`set_slow_policy`](Self::set_slow_policy).
    pub fn set_replay(&self, identity: Identity, replay: Option<Replay>) -> Result<(), ControlError> {
        change(self.shared(), identity, |own| own.replay = replay)
    }

    fn note_flow(&self, identity: Identity, slow: Option<(SlowPolicy, LagLimit)>) -> Result<(), ControlError> {
        let (shard, command) = note(self.shared(), identity, slow)?;
        self.shared().ports[shard].command(command).map_err(|_| ControlError::Closed)
    }
}

impl blocking::Socket {
    /// As [`bind`](Self::bind), with settings of its own for the peers that come in there.
    ///
    /// # Errors
    /// When the text names no place, the system refuses, or the socket is closed.
    pub fn bind_with<E>(&self, endpoint: E, options: BindOptions) -> Result<Address, BindError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        let (reply, endpoint) = self.socket.start_bind(endpoint, &options)?;
        wait::answer_blocking(&reply, self.socket.shared())
            .map_or(Err(BindError::Closed), |result| bound(result, endpoint))
    }

    /// What is done about one peer, see [`Socket::set_slow_policy`](crate::Socket::set_slow_policy).
    ///
    /// # Errors
    /// When 16,384 peers have policies of their own, or the socket is closed.
    pub fn set_slow_policy(&self, identity: Identity, policy: SlowPolicy, limit: LagLimit) -> Result<(), ControlError> {
        self.socket.set_slow_policy(identity, policy, limit)
    }

    /// One peer is treated again as its listener or the builder say.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn clear_slow_policy(&self, identity: Identity) -> Result<(), ControlError> {
        self.socket.clear_slow_policy(identity)
    }

    /// Where one peer begins, see [`Socket::set_replay`](crate::Socket::set_replay).
    ///
    /// # Errors
    /// As [`set_slow_policy`](Self::set_slow_policy).
    pub fn set_replay(&self, identity: Identity, replay: Option<Replay>) -> Result<(), ControlError> {
        self.socket.set_replay(identity, replay)
    }
}

impl inline::Socket {
    /// As [`bind`](Self::bind), with settings of its own for the peers that come in there.
    ///
    /// # Errors
    /// When the text names no place, the system refuses, or the socket is closed.
    pub fn bind_with<E>(&self, endpoint: E, options: BindOptions) -> Result<Address, BindError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        let endpoint = endpoint.try_into().map_err(|error| BindError::Endpoint(error.into()))?;
        let reply = self.start_bind(&endpoint, &options)?;
        loop {
            if let Some(result) = reply.take() {
                return bound(result, endpoint);
            }
            self.engine.drive(u64::MAX).map_err(|_| BindError::Closed)?;
        }
    }

    /// The answer comes at once, or after some turns where the address is in use or has a name.
    pub(crate) fn start_bind(
        &self,
        endpoint: &Endpoint,
        options: &BindOptions,
    ) -> Result<Reply<std::io::Result<Address>>, BindError> {
        core::check_open(self.shared()).map_err(|_| BindError::Closed)?;
        if let Err(EngineError::Reentered) = self.engine.inner.check() {
            return Err(BindError::Reentered);
        }
        let (socket, own, reply) = (self.id(), options.on(self.shared()), Reply::new());
        self.engine.inner.command(Command::Bind { socket, target: endpoint.0.clone(), own, reply: reply.clone() });
        Ok(reply)
    }

    /// What is done about one peer, see [`Socket::set_slow_policy`](crate::Socket::set_slow_policy).
    ///
    /// # Errors
    /// When 16,384 peers have policies of their own, or the socket is closed.
    pub fn set_slow_policy(&self, identity: Identity, policy: SlowPolicy, limit: LagLimit) -> Result<(), ControlError> {
        self.note_flow(identity, Some((policy, limit)))
    }

    /// One peer is treated again as its listener or the builder say.
    ///
    /// # Errors
    /// When the socket is closed.
    pub fn clear_slow_policy(&self, identity: Identity) -> Result<(), ControlError> {
        self.note_flow(identity, None)
    }

    /// Where one peer begins, see [`Socket::set_replay`](crate::Socket::set_replay).
    ///
    /// # Errors
    /// As [`set_slow_policy`](Self::set_slow_policy).
    pub fn set_replay(&self, identity: Identity, replay: Option<Replay>) -> Result<(), ControlError> {
        change(self.shared(), identity, |own| own.replay = replay)
    }

    fn note_flow(&self, identity: Identity, slow: Option<(SlowPolicy, LagLimit)>) -> Result<(), ControlError> {
        let (_, command) = note(self.shared(), identity, slow)?;
        self.engine.inner.command(command);
        Ok(())
    }
}
