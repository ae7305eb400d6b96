//! Taking back what `bind` and `connect` did, and parting from a peer: the same three calls for the three kinds of socket.

use super::error::ControlError;
use super::{Endpoint, EndpointError, blocking, core, inline, wait};
use crate::engine::EngineError;
use crate::protocol::Identity;
use crate::shard::{Answer, Command, Reply, SocketId, SocketShared, Target};

/// A request, for which shard it is, and what its answer means.
pub(super) struct Request {
    shard: usize,
    command: Command,
    reply: Reply<Answer>,
    /// What becomes of an answer that says what there is instead.
    instead: Box<dyn FnOnce(Vec<String>) -> ControlError + Send>,
}

impl Request {
    /// About an endpoint by its name; the home shard knows what there is of that kind.
    fn named<E>(
        shared: &SocketShared,
        endpoint: E,
        command: fn(SocketId, Target, Reply<Answer>) -> Command,
        instead: fn(String, Vec<String>) -> ControlError,
    ) -> Result<Request, ControlError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        let Endpoint(target) = endpoint.try_into().map_err(|error| ControlError::Endpoint(error.into()))?;
        core::check_open(shared).map_err(|_| ControlError::Closed)?;
        let (endpoint, reply) = (target.to_string(), Reply::new());
        Ok(Request {
            shard: shared.home(),
            command: command(shared.id, target, reply.clone()),
            reply,
            instead: Box::new(move |there| instead(endpoint, there)),
        })
    }

    fn unbind<E>(shared: &SocketShared, endpoint: E) -> Result<Request, ControlError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        let command = |socket, target, reply| Command::Unbind { socket, target, reply };
        Request::named(shared, endpoint, command, |endpoint, bound| ControlError::NotBound { endpoint, bound })
    }

    fn disconnect_from<E>(shared: &SocketShared, endpoint: E) -> Result<Request, ControlError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        let command = |socket, target, reply| Command::DisconnectFrom { socket, target, reply };
        let instead = |endpoint, connecting| ControlError::NotConnecting { endpoint, connecting };
        Request::named(shared, endpoint, command, instead)
    }

    fn disconnect(shared: &SocketShared, identity: Identity) -> Result<Request, ControlError> {
        core::check_open(shared).map_err(|_| ControlError::Closed)?;
        if !shared.peers.find(&identity).is_some_and(|peer| peer.connected) {
            return Err(ControlError::NotConnected(identity));
        }
        let reply = Reply::new();
        Ok(Request {
            shard: shared.shard_of(&identity),
            command: Command::Disconnect { socket: shared.id, identity, reply: reply.clone() },
            reply,
            instead: Box::new(move |_| ControlError::NotConnected(identity)),
        })
    }
}

impl super::Socket {
    /// Stops listening at an address that [`bind`](Self::bind) answered with, or at a name as `bind` was given it. Peers that have
    /// come in stay. Answers when the address is free; if the future is dropped it is done all the same.
    ///
    /// # Errors
    /// When this socket does not listen there (the error says where it does), or is closed.
    pub async fn unbind<E>(&self, endpoint: E) -> Result<(), ControlError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        self.control(Request::unbind(self.shared(), endpoint)?).await
    }

    /// Stops connecting to an endpoint, named as [`connect`](Self::connect) was given it, and parts from the peer that was found
    /// there as [`disconnect`](Self::disconnect) does. Answers when the connection has ended.
    ///
    /// # Errors
    /// When this socket was not told to connect there (the error says where it was), or is closed.
    pub async fn disconnect_from<E>(&self, endpoint: E) -> Result<(), ControlError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        self.control(Request::disconnect_from(self.shared(), endpoint)?).await
    }

    /// Parts from a peer: it is not in [`peers`](Self::peers) any more, what was sent for it before is delivered for as long as the
    /// linger time lasts, and its connection gets an orderly end, told as
    /// [`DisconnectReason::DisconnectedHere`](crate::DisconnectReason::DisconnectedHere). What it did not get is dropped and told
    /// ([`Event::Dropped`](crate::Event::Dropped)), goes to others (ROUNDROBIN), or is kept for its return (AT_LEAST_ONCE, by identity).
    ///
    /// Nothing keeps a peer from coming back: one that connects here does so by itself, and one that this socket connects to is found
    /// again. See [`unbind`](Self::unbind) and [`disconnect_from`](Self::disconnect_from). Answers when the connection has ended,
    /// which takes the linger time and a second at most; if the future is dropped it ends all the same.
    ///
    /// # Errors
    /// When the peer is not connected, or the socket is closed.
    pub async fn disconnect(&self, identity: Identity) -> Result<(), ControlError> {
        self.control(Request::disconnect(self.shared(), identity)?).await
    }

    async fn control(&self, request: Request) -> Result<(), ControlError> {
        let Request { shard, command, reply, instead } = request;
        self.shared().ports[shard].command(command).map_err(|_| ControlError::Closed)?;
        let answer = wait::answer(&reply, &self.shared().ended).await;
        answer.ok_or(ControlError::Closed)?.map_err(instead)
    }
}

impl blocking::Socket {
    /// Stops listening at an address, see [`Socket::unbind`](crate::Socket::unbind).
    ///
    /// # Errors
    /// When this socket does not listen there (the error says where it does), or is closed.
    pub fn unbind<E>(&self, endpoint: E) -> Result<(), ControlError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        self.control(Request::unbind(self.socket.shared(), endpoint)?)
    }

    /// Stops connecting to an endpoint and parts from the peer there, see
    /// [`Socket::disconnect_from`](crate::Socket::disconnect_from).
    ///
    /// # Errors
    /// When this socket was not told to connect there (the error says where it was), or is closed.
    pub fn disconnect_from<E>(&self, endpoint: E) -> Result<(), ControlError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        self.control(Request::disconnect_from(self.socket.shared(), endpoint)?)
    }

    /// Parts from a peer, see [`Socket::disconnect`](crate::Socket::disconnect); blocks until its connection has ended.
    ///
    /// # Errors
    /// When the peer is not connected, or the socket is closed.
    pub fn disconnect(&self, identity: Identity) -> Result<(), ControlError> {
        self.control(Request::disconnect(self.socket.shared(), identity)?)
    }

    fn control(&self, request: Request) -> Result<(), ControlError> {
        let Request { shard, command, reply, instead } = request;
        let shared = self.socket.shared();
        shared.ports[shard].command(command).map_err(|_| ControlError::Closed)?;
        wait::answer_blocking(&reply, shared).ok_or(ControlError::Closed)?.map_err(instead)
    }
}

impl inline::Socket {
    /// Stops listening at an address, see [`Socket::unbind`](crate::Socket::unbind).
    ///
    /// # Errors
    /// When this socket does not listen there (the error says where it does), or its engine has ended.
    pub fn unbind<E>(&self, endpoint: E) -> Result<(), ControlError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        self.control(Request::unbind(self.shared(), endpoint)?)
    }

    /// Stops connecting to an endpoint and parts from the peer there, see
    /// [`Socket::disconnect_from`](crate::Socket::disconnect_from).
    ///
    /// # Errors
    /// When this socket was not told to connect there (the error says where it was), or its engine has ended.
    pub fn disconnect_from<E>(&self, endpoint: E) -> Result<(), ControlError>
    where
        E: TryInto<Endpoint>,
        EndpointError: From<E::Error>,
    {
        self.control(Request::disconnect_from(self.shared(), endpoint)?)
    }

    /// Parts from a peer, see [`Socket::disconnect`](crate::Socket::disconnect); drives the engine until its connection has ended.
    ///
    /// # Errors
    /// When the peer is not connected, or the engine has ended.
    pub fn disconnect(&self, identity: Identity) -> Result<(), ControlError> {
        self.control(Request::disconnect(self.shared(), identity)?)
    }

    fn control(&self, Request { command, reply, instead, .. }: Request) -> Result<(), ControlError> {
        if let Err(EngineError::Reentered) = self.engine.inner.check() {
            return Err(ControlError::Reentered);
        }
        self.engine.inner.command(command);
        loop {
            if let Some(answer) = reply.take() {
                return answer.map_err(instead);
            }
            self.engine.drive(u64::MAX).map_err(|_| ControlError::Closed)?;
        }
    }
}
