//! What the builder settled for one socket: modes, limits, times. Plain data, read by every layer above the five lowest; nothing
//! here changes after the socket is built.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::late::{Replay, Retention};
use super::policy::{Flow, LagLimit, SlowPolicy};
use crate::backend::SocketOptions;
use crate::log::LatestOptions;

/// To whom a message sent with `send` goes. Chosen by the sender; nothing on the wire shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SendMode {
    /// To every connected peer.
    #[default]
    Publish,
    /// To one peer after another, in a circle.
    RoundRobin,
}

impl fmt::Display for SendMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendMode::Publish => "publish",
            SendMode::RoundRobin => "roundrobin",
        })
    }
}

impl FromStr for SendMode {
    type Err = UnknownName;

    fn from_str(s: &str) -> Result<Self, UnknownName> {
        match s {
            "publish" => Ok(SendMode::Publish),
            "roundrobin" => Ok(SendMode::RoundRobin),
            _ => Err(UnknownName { given: s.to_owned(), known: "publish, roundrobin" }),
        }
    }
}

/// What is promised of each message. Chosen by the sender, never negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeliveryGuarantee {
    /// Sent once, never again: no acknowledgement, no duplicate.
    #[default]
    AtMostOnce,
    /// Kept until the receiver has acknowledged it, sent again until then: never lost while the sending process lives, perhaps
    /// received twice.
    AtLeastOnce,
}

impl fmt::Display for DeliveryGuarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeliveryGuarantee::AtMostOnce => "at-most-once",
            DeliveryGuarantee::AtLeastOnce => "at-least-once",
        })
    }
}

impl FromStr for DeliveryGuarantee {
    type Err = UnknownName;

    fn from_str(s: &str) -> Result<Self, UnknownName> {
        match s {
            "at-most-once" => Ok(DeliveryGuarantee::AtMostOnce),
            "at-least-once" => Ok(DeliveryGuarantee::AtLeastOnce),
            _ => Err(UnknownName { given: s.to_owned(), known: "at-most-once, at-least-once" }),
        }
    }
}

/// When a message that wants an acknowledgement (its sender is AT_LEAST_ONCE) gets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AckMode {
    /// When the application asks for the next one, or waits for it: it has had this one in hand.
    #[default]
    Automatic,
    /// When the application calls [`Received::ack`](crate::Received::ack): after a journal write, say. The only mode that
    /// survives `kill -9` of the receiver.
    Manual,
    /// When it arrives. For applications that let messages wait for longer than stock senders are patient (5 s).
    OnReceipt,
}

/// A name that is none of the known ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    given: String,
    known: &'static str,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown name {:?}: use one of {}", self.given, self.known)
    }
}

impl std::error::Error for UnknownName {}

/// Everything that is fixed when a socket is built. The builder's methods document each field.
#[derive(Clone, Debug)]
pub(crate) struct SocketConfig {
    pub(crate) send_mode: SendMode,
    pub(crate) delivery: DeliveryGuarantee,
    /// Bytes of outbound log: chunks in use, kept for a peer, or free for reuse.
    pub(crate) log_bytes_max: usize,
    /// Bytes received and not yet taken by the application.
    pub(crate) receive_bytes_max: usize,
    /// Bytes of one payload, either way.
    pub(crate) message_bytes_max: usize,
    /// Connections of this socket, those that still shake hands included.
    pub(crate) peers_max: usize,
    /// Connections that a listener takes from one address: at this rate, after a burst.
    pub(crate) accepts_per_second: u32,
    pub(crate) accepts_burst: u32,
    /// Events kept for a reader that is slow.
    pub(crate) events_max: usize,
    pub(crate) handshake_ns: u64,
    pub(crate) heartbeat_ns: u64,
    pub(crate) timeout_ns: u64,
    pub(crate) linger_ns: u64,
    /// PUBLISH: what is done about peers that do not keep up, unless they have a policy of their own.
    pub(crate) slow_policy: SlowPolicy,
    pub(crate) lag_limit: LagLimit,
    pub(crate) reconnect_min_ns: u64,
    pub(crate) reconnect_max_ns: u64,
    pub(crate) ack_mode: AckMode,
    /// AT_LEAST_ONCE: how long without an ACK before a message is sent again.
    pub(crate) resend_ns: u64,
    /// AT_LEAST_ONCE: how often a message is sent on one link before it expires.
    pub(crate) attempts_max: u32,
    pub(crate) options: SocketOptions,
    /// PUBLISH: keys with a last value, and bytes of these.
    pub(crate) keys: LatestOptions,
    /// PUBLISH: where a new peer begins.
    pub(crate) replay: Replay,
    /// PUBLISH: what is kept for those that begin further back.
    pub(crate) retention: Retention,
}

impl SocketConfig {
    /// How long a message is kept for a peer that is gone.
    pub(crate) fn expiry_ns(&self) -> u64 {
        self.resend_ns.saturating_mul(u64::from(self.attempts_max))
    }

    pub(crate) fn flow(&self) -> Flow {
        Flow::new(self.slow_policy, self.lag_limit, self.log_bytes_max)
    }

    /// Bytes of a frame before its payload.
    pub(crate) fn head_bytes(&self) -> usize {
        match self.delivery {
            DeliveryGuarantee::AtMostOnce => 5,
            DeliveryGuarantee::AtLeastOnce => 21,
        }
    }

    /// Bytes sent by identity that may wait for one peer.
    pub(crate) fn directed_bytes_max(&self) -> usize {
        (self.log_bytes_max / 8).max(self.message_bytes_max)
    }
}

pub(crate) const KIB: usize = 1024;
pub(crate) const MIB: usize = 1024 * KIB;

/// A span of time in the unit of the engine's clock; longer than 584 years is as good as never.
pub(crate) fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Default for SocketConfig {
    fn default() -> Self {
        SocketConfig {
            send_mode: SendMode::default(),
            delivery: DeliveryGuarantee::default(),
            log_bytes_max: 32 * MIB,
            receive_bytes_max: 16 * MIB,
            message_bytes_max: 16 * MIB,
            peers_max: 20_000,
            accepts_per_second: 2_000,
            accepts_burst: 20_000,
            events_max: 1024,
            handshake_ns: nanos(Duration::from_secs(5)),
            heartbeat_ns: nanos(Duration::from_secs(5)),
            timeout_ns: nanos(Duration::from_secs(15)),
            linger_ns: nanos(Duration::from_secs(1)),
            slow_policy: SlowPolicy::default(),
            lag_limit: LagLimit::default(),
            reconnect_min_ns: nanos(Duration::from_millis(100)),
            reconnect_max_ns: nanos(Duration::from_secs(3)),
            ack_mode: AckMode::default(),
            resend_ns: nanos(Duration::from_secs(5)),
            attempts_max: 6,
            options: SocketOptions::default(),
            keys: LatestOptions { keys_max: 65_536, bytes_max: 64 * MIB },
            replay: Replay::default(),
            retention: Retention::default(),
        }
    }
}
