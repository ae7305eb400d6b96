//! What a seed means: who there is, who dials whom, how small the limits are, how much is sent. Everything is drawn here or by
//! the world's dice, in a fixed order.

use std::net::SocketAddr;
use std::time::Duration;

use super::report::Setup;
use crate::backend::PoolOptions;
use crate::backend::sim::{Dice, Fault, Faults, Host, Weather};
use crate::shard::{AckMode, DeliveryGuarantee, LagLimit, Replay, Retention, SendMode, SlowPolicy, Unkeyed};
use crate::socket::SocketBuilder;

/// A run.
pub(super) struct Plan {
    pub(super) faults: Faults,
    pub(super) weather: Weather,
    pub(super) nodes: Vec<NodePlan>,
    /// How long things go wrong, in virtual nanoseconds.
    pub(super) faulty_ns: u64,
}

/// A process.
#[derive(Clone)]
pub(super) struct NodePlan {
    pub(super) host: Host,
    pub(super) pool: PoolOptions,
    pub(super) shards: usize,
    /// Whether it runs on the io_uring driver, over a simulated ring.
    pub(super) ring: bool,
    /// Whether its applications drive their one shard themselves.
    pub(super) inline: bool,
    pub(super) sockets: Vec<SocketPlan>,
}

/// A socket.
#[derive(Clone)]
pub(super) struct SocketPlan {
    pub(super) mode: SendMode,
    pub(super) delivery: DeliveryGuarantee,
    pub(super) ack_mode: AckMode,
    /// Of how many messages one is sent by identity; 0: none.
    pub(super) directed_one_in: u64,
    /// Where it listens, if it does.
    pub(super) port: Option<u16>,
    /// It does so at the path of that number on its host.
    pub(super) path: Option<String>,
    /// Whom it dials: node and socket.
    pub(super) dials: Vec<(usize, usize)>,
    /// Whether it dials names instead of addresses.
    pub(super) by_name: bool,
    /// Messages that it sends while things go wrong.
    pub(super) messages: u32,
    /// Bytes of its largest message, but for the large ones.
    pub(super) size_max: usize,
    /// Of how many messages one has hundreds of kilobytes; 0: none.
    pub(super) large_one_in: u64,
    /// Whether its unacknowledged messages expire soon.
    pub(super) expires: bool,
    peers_max: Option<usize>,
    /// Nanoseconds between its bursts at most.
    pub(super) pause_ns: u64,
    pub(super) slow_consumer: bool,
    /// PUBLISH: keys of its messages, and the messages that a peer may be behind before it is conflated; 0: none have keys.
    pub(super) keys: u32,
    lag_messages: u64,
    /// PUBLISH: where peers that come late begin, and how many messages or values they get at most.
    pub(super) replay: (Replay, u64),
    /// What it does about peers that are slow, if not what is the default.
    pub(super) lag: Option<(SlowPolicy, LagLimit)>,
    log_bytes: usize,
    receive_bytes: usize,
    heartbeat: Duration,
    send_buffer: usize,
}

impl SocketPlan {
    pub(super) fn builder(&self) -> SocketBuilder {
        let (resend, attempts_max) = if self.expires { (Duration::from_millis(300), 3) } else { PATIENT };
        let builder = crate::socket::Socket::builder()
            .send_mode(self.mode)
            .delivery_guarantee(self.delivery)
            .ack_mode(self.ack_mode)
            .resend(resend, attempts_max)
            .log_bytes_max(self.log_bytes)
            .message_bytes_max(self.message_bytes_max())
            .receive_bytes_max(self.receive_bytes)
            .heartbeat_interval(self.heartbeat)
            .receive_timeout(self.heartbeat * 3)
            .send_buffer_bytes(self.send_buffer)
            .linger(LINGER);
        let builder = match self.lag {
            Some((policy, limit)) => builder.slow_policy(policy).lag_limit(limit),
            None if self.keys == 0 => builder,
            None => builder
                .slow_policy(SlowPolicy::Conflate { unkeyed: Unkeyed::default() })
                .lag_limit(LagLimit { messages: Some(self.lag_messages), ..LagLimit::default() }),
        };
        let builder = match self.replay {
            (replay @ Replay::Oldest, messages) => {
                builder.replay(replay).retain(Retention { messages: Some(messages), ..Retention::default() })
            }
            (replay, _) => builder.replay(replay),
        };
        match self.peers_max {
            Some(peers_max) => builder.peers_max(peers_max),
            None => builder,
        }
    }

    /// Where it listens, as its application says.
    pub(super) fn bound(&self) -> Option<String> {
        self.path.clone().or_else(|| self.port.map(|port| format!("0.0.0.0:{port}")))
    }

    /// Where strangers find it, on its host.
    pub(super) fn place(&self, host: Host) -> Option<SocketAddr> {
        let place = |port| if self.path.is_some() { host.file(port) } else { SocketAddr::new(host.ip(), port) };
        self.port.map(place)
    }

    pub(super) fn message_bytes_max(&self) -> usize {
        self.log_bytes / 2
    }

    pub(super) fn peers_max(&self) -> usize {
        self.peers_max.unwrap_or(usize::MAX)
    }

    /// The most that one entry of a peer's receive queue may hold.
    pub(super) fn entry_bytes_max(&self) -> usize {
        if self.large_one_in > 0 { LARGE_BYTES_MAX } else { self.size_max }
    }

    pub(super) fn receive_bytes(&self) -> usize {
        self.receive_bytes
    }

    pub(super) fn log_bytes(&self) -> usize {
        self.log_bytes
    }
}

/// After how long a message is sent again, and how often: nothing expires within a run.
const PATIENT: (Duration, u32) = (Duration::from_secs(2), 1000);
/// Of large messages.
pub(super) const LARGE_BYTES_MIN: usize = 200 * 1024;
pub(super) const LARGE_BYTES_MAX: usize = 1024 * 1024;
const LINGER: Duration = Duration::from_secs(2);

const MS: u64 = 1_000_000;

impl Plan {
    pub(super) fn draw(dice: &mut Dice, setup: &Setup) -> Plan {
        let mut faults = Faults::draw(dice);
        faults.leave_out(&setup.without);
        let node_count = dice.pick(2, 5) as usize;
        let binders = dice.pick(1, (node_count as u64 - 1).min(2)) as usize;
        let small_window = faults.has(Fault::SmallWindow);
        let window_bytes = if small_window { dice.pick(128, 4096) } else { 64 << dice.pick(10, 13) } as usize;
        if small_window {
            faults.note(Fault::SmallWindow);
        }
        let fast = dice.pick(1, 200) * 1000;
        let weather = Weather { latency_ns: (fast / 2, fast + dice.magnitude(0, 20 * MS)), window_bytes };
        let chunky = [Fault::ShortRead, Fault::ShortWrite].into_iter().any(|fault| faults.has(fault));
        let size_cap = if small_window || chunky { 16 * 1024 } else { 512 * 1024 };
        // All of a run allow the same: a small log takes no large message.
        let large = faults.has(Fault::LargeMessages) && size_cap > 16 * 1024 && !faults.has(Fault::SmallLog);
        let few_slabs = faults.has(Fault::FewSlabs);
        let heartbeat = Duration::from_millis(dice.pick(500, 5000));
        let common = Common { binders: (0..binders).map(|_| socket_count(dice)).collect(), size_cap, large, heartbeat };
        let mut nodes: Vec<NodePlan> = (0..node_count)
            .map(|at| {
                let pool = if few_slabs {
                    PoolOptions { slab_count: dice.pick(2, 8) as usize, slab_bytes: 4096 }
                } else {
                    PoolOptions { slab_count: 32, slab_bytes: 16 * 1024 }
                };
                let count = common.binders.get(at).copied().unwrap_or_else(|| socket_count(dice));
                let sockets = (0..count)
                    .map(|which| socket(dice, &mut faults, &common, at, which, node_count - binders))
                    .collect();
                let shards = if dice.once_in(2) { 1 } else { dice.pick(2, 3) as usize };
                NodePlan { host: Host(at as u8 + 1), pool, shards, ring: dice.once_in(2), inline: false, sockets }
            })
            .collect();
        // Drawn apart, so that the first seeds keep their meaning.
        let mut apart = Dice::new(dice.clone().next());
        for node in nodes.iter_mut().filter(|_| faults.has(Fault::InlineEngine) && apart.once_in(2)) {
            (node.inline, node.shards) = (true, 1);
        }
        let paths = cfg!(unix) && faults.has(Fault::UnixEndpoint);
        for NodePlan { host, sockets, .. } in nodes.iter_mut().filter(|_| paths) {
            for socket in sockets {
                if let Some(port) = socket.port.filter(|_| apart.once_in(2)) {
                    faults.note(Fault::UnixEndpoint);
                    socket.path = Some(format!("unix:{}", host.path(port)));
                }
            }
        }
        if faults.has(Fault::MutualDial) && binders == 2 {
            faults.note(Fault::MutualDial);
            nodes[0].sockets[0].dials.push((1, 0));
            nodes[1].sockets[0].dials.push((0, 0));
        }
        for at in 0..binders {
            for which in 0..common.binders[at] {
                let dialled = nodes.iter().flat_map(|node| &node.sockets).flat_map(|socket| &socket.dials);
                let dialers = dialled.filter(|dial| **dial == (at, which)).count();
                let socket = &mut nodes[at].sockets[which];
                match dialers {
                    // Whom nobody dials has nobody to send to.
                    0 => socket.messages = 0,
                    _ if socket.dials.is_empty() && faults.has(Fault::FewPeers) && dice.once_in(2) => {
                        faults.note(Fault::FewPeers);
                        socket.peers_max = Some(dialers);
                    }
                    _ => {}
                }
            }
        }
        nodes.truncate(setup.leaves_max.map_or(nodes.len(), |leaves| binders + leaves.max(1)));
        let messages_max = setup.messages_max.unwrap_or(u32::MAX);
        let sockets = nodes.iter_mut().flat_map(|node| &mut node.sockets);
        sockets.for_each(|socket| socket.messages = socket.messages.min(messages_max));
        Plan { faults, weather, nodes, faulty_ns: dice.pick(5_000, 60_000) * MS }
    }
}

/// What all sockets of a run share.
struct Common {
    /// How many sockets each of the listening nodes has.
    binders: Vec<usize>,
    size_cap: usize,
    large: bool,
    heartbeat: Duration,
}

fn socket_count(dice: &mut Dice) -> usize {
    if dice.once_in(3) { 2 } else { 1 }
}

fn socket(dice: &mut Dice, faults: &mut Faults, common: &Common, at: usize, which: usize, leaves: usize) -> SocketPlan {
    let Common { size_cap, large, heartbeat, .. } = *common;
    let binders = common.binders.len();
    let is_binder = at < binders;
    let mut dials = Vec::new();
    if !is_binder {
        // Nobody is left alone.
        let first = at % binders;
        dials.push((first, dice.index(common.binders[first])));
        if binders > 1 && (leaves < binders || dice.once_in(2)) {
            let second = (first + 1) % binders;
            dials.push((second, dice.index(common.binders[second])));
        }
    }
    let small_log = faults.has(Fault::SmallLog) && dice.once_in(2);
    if small_log {
        faults.note(Fault::SmallLog);
    }
    let small_queue = faults.has(Fault::SmallReceiveQueue) && dice.once_in(2);
    if small_queue {
        faults.note(Fault::SmallReceiveQueue);
    }
    let log_bytes = if small_log { 1 << 20 } else { 4 << 20 };
    let mode = if dice.once_in(2) { SendMode::Publish } else { SendMode::RoundRobin };
    let at_least_once = mode == SendMode::RoundRobin && dice.once_in(2);
    let large_one_in = if large && dice.once_in(2) { dice.pick(3, 10) } else { 0 };
    let conflates = mode == SendMode::Publish && dice.once_in(3);
    let messages = if dice.once_in(4) { 0 } else { dice.pick(100, 600) as u32 };
    let limited = mode == SendMode::Publish && !conflates && faults.has(Fault::LagLimit) && dice.once_in(2);
    let lag = limited.then(|| lag(dice));
    let keys = if conflates { dice.magnitude(1, 30) } else { 0 };
    let plain = mode == SendMode::Publish && !conflates && !limited;
    let replay = match conflates {
        true if faults.has(Fault::Snapshot) && dice.once_in(2) => (Replay::Snapshot, keys),
        false if plain && faults.has(Fault::Retained) && dice.once_in(2) => (Replay::Oldest, dice.magnitude(1, 300)),
        _ => (Replay::Live, 0),
    };
    SocketPlan {
        keys: keys as u32,
        replay,
        lag_messages: dice.magnitude(1, 100),
        mode,
        delivery: if at_least_once { DeliveryGuarantee::AtLeastOnce } else { DeliveryGuarantee::AtMostOnce },
        ack_mode: [AckMode::Automatic, AckMode::Manual, AckMode::OnReceipt][dice.index(3)],
        directed_one_in: if dice.once_in(2) { dice.magnitude(1, 30) } else { 0 },
        path: None,
        port: is_binder.then_some(7000 + 100 * which as u16 + at as u16),
        dials,
        by_name: dice.once_in(3),
        messages: if large_one_in > 0 { messages.min(100) } else { messages },
        size_max: dice.magnitude(16, size_cap as u64) as usize,
        large_one_in,
        expires: at_least_once && faults.has(Fault::ShortPatience) && dice.once_in(2),
        peers_max: None,
        pause_ns: dice.pick(1, 400) * MS,
        slow_consumer: faults.has(Fault::SlowConsumer) && dice.once_in(2),
        lag,
        log_bytes,
        receive_bytes: if small_queue { 64 * 1024 } else { 4 << 20 },
        heartbeat,
        send_buffer: 4096,
    }
}

/// A policy and limits that are soon exceeded.
fn lag(dice: &mut Dice) -> (SlowPolicy, LagLimit) {
    let time = Duration::from_millis(dice.pick(50, 2000));
    let policy = match dice.index(5) {
        0 => SlowPolicy::Block { max_wait: time },
        1 => SlowPolicy::Disconnect { after: time },
        2 => SlowPolicy::DropNewest,
        _ => SlowPolicy::DropOldest,
    };
    let limit = LagLimit {
        bytes: dice.once_in(2).then(|| dice.magnitude(1024, 512 * 1024) as usize),
        messages: dice.once_in(2).then(|| dice.magnitude(1, 100)),
        age: dice.once_in(3).then(|| Duration::from_millis(dice.pick(2, 500))),
    };
    (policy, limit)
}
