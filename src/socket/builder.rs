//! How a socket is set up. Each limit says what it bounds, what it costs and what happens beyond it.

use std::time::Duration;

use super::error::BuildError;
use super::{Socket, blocking, inline};
use crate::backend::SocketOptions;
use crate::engine::Engine;
use crate::protocol::Identity;
use crate::shard::{
    AckMode, DeliveryGuarantee, KIB, LagLimit, MIB, Replay, Retention, SendMode, SlowPolicy, SocketConfig, nanos,
};

/// Settings of a socket, to begin with the defaults.
///
/// ```
/// use aiomsg_uring::{SendMode, Socket};
///
/// let socket = Socket::builder().send_mode(SendMode::RoundRobin).log_bytes_max(64 << 20).build()?;
/// # Ok::<(), aiomsg_uring::BuildError>(())
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct SocketBuilder {
    config: SocketConfig,
    identity: Option<Identity>,
    message_bytes_max: Option<usize>,
    engine: Option<Engine>,
}

impl SocketBuilder {
    /// To whom a message goes (default [`SendMode::Publish`]).
    pub fn send_mode(mut self, mode: SendMode) -> Self {
        self.config.send_mode = mode;
        self
    }

    /// What is promised of each message (default [`DeliveryGuarantee::AtMostOnce`]).
    pub fn delivery_guarantee(mut self, guarantee: DeliveryGuarantee) -> Self {
        self.config.delivery = guarantee;
        self
    }

    /// The name by which peers know this socket, stable for its life and across reconnections (default: 16 random bytes).
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// The engine whose threads serve the socket (default [`Engine::global`]).
    pub fn engine(mut self, engine: &Engine) -> Self {
        self.engine = Some(engine.clone());
        self
    }

    /// Bytes of outbound log, framing included (default 32 MiB, at least 1 MiB): what is accepted and not yet handed to the kernel for all peers, and what is kept while there is none. Memory is taken as
    /// needed and kept for reuse. When it is full `send` waits, and `try_send` gives the message back.
    pub fn log_bytes_max(mut self, bytes: usize) -> Self {
        self.config.log_bytes_max = bytes;
        self
    }

    /// Bytes received that the application has not taken (default 16 MiB). When they are reached, the connections that go on
    /// sending are not read any more, and TCP slows their senders; what they had brought is taken in turns, so that a fast sender does
    /// not keep the others waiting. What the kernel was about to hand over still arrives: 256 KiB a connection, or what the shard's
    /// slabs hold, twice (16 MiB), where one connection alone floods.
    pub fn receive_bytes_max(mut self, bytes: usize) -> Self {
        self.config.receive_bytes_max = bytes;
        self
    }

    /// Bytes of one message, either way (default 16 MiB, or half of `log_bytes_max` if that is less, which is also the most). A longer one is refused by `send`; a
    /// peer that announces one is disconnected. Memory for a received message grows as its bytes arrive, never on a peer's word.
    pub fn message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = Some(bytes);
        self
    }

    /// Connections, those that still shake hands included (default 20,000; less than 4 KiB each while idle). More are closed at
    /// the door.
    pub fn peers_max(mut self, peers: usize) -> Self {
        self.config.peers_max = peers;
        self
    }

    /// Connections that each listener takes from one address (an IPv6 /64; of a unix socket: in all): `rate` a second, after a burst
    /// of `burst` (default 2,000 and 20,000: far above what good peers do). More are held for half a second without being served,
    /// closed, counted, and told as [`RejectReason::TooManyAccepts`](crate::RejectReason::TooManyAccepts), which slows peers that
    /// dial again at once. Up to 4,096 addresses are remembered (100 KiB a listener) and 1,024 connections held. `u32::MAX` for both
    /// lifts the limit.
    pub fn accepts_per_second(mut self, rate: u32, burst: u32) -> Self {
        self.config.accepts_per_second = rate;
        self.config.accepts_burst = burst;
        self
    }

    /// Events kept for a slow reader (default 1024, about 150 bytes each); more are counted as missed.
    pub fn events_max(mut self, events: usize) -> Self {
        self.config.events_max = events;
        self
    }

    /// How long a connection may take for its HELLO (default 5 s); then it is closed.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.config.handshake_ns = nanos(timeout);
        self
    }

    /// After how long without sending anything a HEARTBEAT goes out (default 5 s). A peer silent for 1.2 times this is suspect.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.config.heartbeat_ns = nanos(interval);
        self
    }

    /// After how long without receiving anything a connection is dead (default 15 s).
    pub fn receive_timeout(mut self, timeout: Duration) -> Self {
        self.config.timeout_ns = nanos(timeout);
        self
    }

    /// How long `close`, and the drop of the last handle, let what was sent drain (default 1 s). Messages kept for a peer that is
    /// not there count.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.config.linger_ns = nanos(linger);
        self
    }

    /// Under PUBLISH: what is done about a peer that does not keep up (default: the publisher waits for it for one second at most, then it
    /// is disconnected). Single peers can have another, see [`Socket::set_slow_policy`] and [`BindOptions`](super::BindOptions).
    pub fn slow_policy(mut self, policy: SlowPolicy) -> Self {
        self.config.slow_policy = policy;
        self
    }

    /// Under PUBLISH: keys that have a last value (default 65,536), see [`Socket::send_keyed`]. A message with one more is refused with
    /// [`SendError::KeysFull`](super::SendError::KeysFull), so that nobody relies on a conflation or a snapshot that is not complete;
    /// [`Socket::forget_key`] makes room.
    pub fn keys_max(mut self, keys: usize) -> Self {
        self.config.keys.keys_max = keys;
        self
    }

    /// Under PUBLISH: bytes of keys and their last values (default 64 MiB; about 160 for each key beside its own and its value's).
    /// Memory is taken as needed, however many peers there are and however slow. Beyond it a message is refused as under
    /// [`keys_max`](Self::keys_max).
    pub fn keyed_bytes_max(mut self, bytes: usize) -> Self {
        self.config.keys.bytes_max = bytes;
        self
    }

    /// Under PUBLISH: where a new peer begins (default [`Replay::Live`]: at what is sent next). What was sent while nobody was connected
    /// goes to the first peer in any case.
    pub fn replay(mut self, replay: Replay) -> Self {
        self.config.replay = replay;
        self
    }

    /// Under PUBLISH: how much of what was sent is kept for peers that begin at [`Replay::Oldest`] (default: nothing).
    pub fn retain(mut self, retention: Retention) -> Self {
        self.config.retention = retention;
        self
    }

    /// Under PUBLISH: how far a peer may be behind before the [`slow_policy`](Self::slow_policy) applies.
    pub fn lag_limit(mut self, limit: LagLimit) -> Self {
        self.config.lag_limit = limit;
        self
    }

    /// Short for [`slow_policy`](Self::slow_policy) with [`SlowPolicy::Block`] for `bound`: then whoever held the publisher is disconnected,
    /// what it misses is counted and told, and all others go on.
    pub fn publish_stall_max(self, bound: Duration) -> Self {
        self.slow_policy(SlowPolicy::Block { max_wait: bound })
    }

    /// The delay before a connecting end tries again (default 100 ms), doubling up to a maximum (default 3 s), with jitter.
    pub fn reconnect_delay(mut self, min: Duration, max: Duration) -> Self {
        self.config.reconnect_min_ns = nanos(min);
        self.config.reconnect_max_ns = nanos(max);
        self
    }

    /// When messages that want to be acknowledged are (default [`AckMode::Automatic`]).
    pub fn ack_mode(mut self, mode: AckMode) -> Self {
        self.config.ack_mode = mode;
        self
    }

    /// AT_LEAST_ONCE: after how long without an acknowledgement a message is sent again (default 5 s), and how often it is sent on
    /// one connection in all (default 6) before it counts as expired and is told as [`Event::Expired`](crate::Event::Expired).
    pub fn resend(mut self, delay: Duration, attempts_max: u32) -> Self {
        self.config.resend_ns = nanos(delay);
        self.config.attempts_max = attempts_max;
        self
    }

    /// Options of the connections, all at once: see [`SocketOptions`]. The two buffer sizes have methods of their own.
    pub fn socket_options(mut self, options: SocketOptions) -> Self {
        self.config.options = options;
        self
    }

    /// The kernel's send buffer of each connection, in bytes. By default the system sizes it (Linux: up to `net.ipv4.tcp_wmem`'s
    /// maximum, often 4 MiB, which is what a stalled peer can hold).
    pub fn send_buffer_bytes(mut self, bytes: usize) -> Self {
        self.config.options.send_buffer_bytes = Some(bytes);
        self
    }

    /// The kernel's receive buffer of each connection, in bytes. By default the system sizes it.
    pub fn recv_buffer_bytes(mut self, bytes: usize) -> Self {
        self.config.options.recv_buffer_bytes = Some(bytes);
        self
    }

    /// Builds the socket.
    ///
    /// # Errors
    /// When settings contradict each other, or the engine has no room or does not start.
    pub fn build(self) -> Result<Socket, BuildError> {
        let engine = match &self.engine {
            Some(engine) => engine.clone(),
            None => Engine::global().map_err(BuildError::Engine)?,
        };
        let (identity, config) = self.checked()?;
        let (shared, outlet) = engine.open(identity, config)?;
        Ok(Socket::new_on(engine, shared, outlet))
    }

    /// Builds the socket with blocking calls.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_blocking(self) -> Result<blocking::Socket, BuildError> {
        self.build().map(blocking::Socket::from)
    }

    /// Builds the socket on an engine that the calling thread drives.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_inline(self, engine: &inline::Engine) -> Result<inline::Socket, BuildError> {
        let (identity, config) = self.checked()?;
        inline::Socket::open(engine, identity, config)
    }

    fn checked(self) -> Result<(Identity, SocketConfig), BuildError> {
        let mut config = self.config;
        config.message_bytes_max =
            self.message_bytes_max.unwrap_or(config.message_bytes_max.min(config.log_bytes_max / 2));
        let limit = |setting, problem: &str| Err(BuildError::Limit { setting, problem: problem.to_owned() });
        if config.delivery == DeliveryGuarantee::AtLeastOnce && config.send_mode == SendMode::Publish {
            return Err(BuildError::PublishAtLeastOnce);
        }
        let plain = config.replay == Replay::Live && config.retention.is_nothing();
        if config.send_mode == SendMode::RoundRobin && !plain {
            return limit("replay", "is for PUBLISH: under ROUNDROBIN a message is for one peer and goes once");
        }
        if config.replay == Replay::Oldest && config.retention.is_nothing() {
            return limit("replay", "from the oldest message needs something to be kept: say how much with retain");
        }
        if config.send_mode == SendMode::RoundRobin && config.flow().watched {
            return limit(
                "slow_policy",
                "is for PUBLISH: under ROUNDROBIN a peer that is slow gets less, and the others more",
            );
        }
        if config.resend_ns == 0 || config.attempts_max == 0 {
            return limit("resend", "needs a delay and a number of attempts above zero");
        }
        if config.log_bytes_max < MIB {
            return limit(
                "log_bytes_max",
                "is below 1 MiB: a log works in chunks of up to 256 KiB and needs four of them",
            );
        }
        if config.message_bytes_max == 0 || config.message_bytes_max > config.log_bytes_max / 2 {
            return limit(
                "message_bytes_max",
                "must be from 1 to half of log_bytes_max, so that a message always fits",
            );
        }
        if config.receive_bytes_max < 64 * KIB {
            return limit("receive_bytes_max", "is below 64 KiB");
        }
        if config.peers_max == 0 {
            return limit("peers_max", "is 0");
        }
        if config.accepts_per_second == 0 || config.accepts_burst == 0 {
            return limit("accepts_per_second", "needs a rate and a burst above zero, or nobody could connect");
        }
        if config.handshake_ns == 0 {
            return limit("handshake_timeout", "is 0: nobody could connect");
        }
        if config.heartbeat_ns == 0 {
            return limit("heartbeat_interval", "is 0: nothing but heartbeats would be sent");
        }
        if config.timeout_ns <= config.heartbeat_ns {
            return limit("receive_timeout", "must be longer than heartbeat_interval, or live peers would be cut off");
        }
        if config.reconnect_min_ns == 0 || config.reconnect_max_ns < config.reconnect_min_ns {
            return limit("reconnect_delay", "needs a minimum above zero and a maximum not below it");
        }
        Ok((self.identity.unwrap_or_else(Identity::random), config))
    }
}
