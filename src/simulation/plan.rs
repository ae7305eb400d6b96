//! What a seed means: who there is, who dials whom, how small the limits are, how much is sent. Everything is drawn here or by
//! the world's dice, in a fixed order.

use std::time::Duration;

use crate::backend::PoolOptions;
use crate::backend::sim::{Dice, Fault, Faults, Host, Weather};
use crate::shard::{AckMode, DeliveryGuarantee, SendMode};
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
    /// Whom it dials: node and socket.
    pub(super) dials: Vec<(usize, usize)>,
    /// Whether it dials names instead of addresses.
    pub(super) by_name: bool,
    /// Messages that it sends while things go wrong.
    pub(super) messages: u32,
    /// Bytes of its largest message.
    pub(super) size_max: usize,
    /// Nanoseconds between its bursts at most.
    pub(super) pause_ns: u64,
    pub(super) slow_consumer: bool,
    log_bytes: usize,
    receive_bytes: usize,
    heartbeat: Duration,
    send_buffer: usize,
}

impl SocketPlan {
    pub(super) fn builder(&self) -> SocketBuilder {
        crate::socket::Socket::builder()
            .send_mode(self.mode)
            .delivery_guarantee(self.delivery)
            .ack_mode(self.ack_mode)
            .resend(Duration::from_secs(2), ATTEMPTS_MAX)
            .log_bytes_max(self.log_bytes)
            .message_bytes_max(self.log_bytes / 2)
            .receive_bytes_max(self.receive_bytes)
            .heartbeat_interval(self.heartbeat)
            .receive_timeout(self.heartbeat * 3)
            .send_buffer_bytes(self.send_buffer)
            .linger(Duration::from_secs(2))
    }

    pub(super) fn receive_bytes(&self) -> usize {
        self.receive_bytes
    }

    pub(super) fn log_bytes(&self) -> usize {
        self.log_bytes
    }
}

/// So many that nothing expires within a run, unless its peer is gone for good.
const ATTEMPTS_MAX: u32 = 1000;

const MS: u64 = 1_000_000;

impl Plan {
    pub(super) fn draw(dice: &mut Dice) -> Plan {
        let mut faults = Faults::draw(dice);
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
        let few_slabs = faults.has(Fault::FewSlabs);
        let heartbeat = Duration::from_millis(dice.pick(500, 5000));
        let nodes = (0..node_count)
            .map(|at| {
                let pool = if few_slabs {
                    PoolOptions { slab_count: dice.pick(2, 8) as usize, slab_bytes: 4096 }
                } else {
                    PoolOptions { slab_count: 32, slab_bytes: 16 * 1024 }
                };
                let socket = socket(dice, &mut faults, at, binders, node_count - binders, size_cap, heartbeat);
                let shards = if dice.once_in(2) { 1 } else { dice.pick(2, 3) as usize };
                NodePlan { host: Host(at as u8 + 1), pool, shards, ring: dice.once_in(2), sockets: vec![socket] }
            })
            .collect();
        Plan { faults, weather, nodes, faulty_ns: dice.pick(5_000, 60_000) * MS }
    }
}

fn socket(
    dice: &mut Dice,
    faults: &mut Faults,
    at: usize,
    binders: usize,
    leaves: usize,
    size_cap: usize,
    heartbeat: Duration,
) -> SocketPlan {
    let is_binder = at < binders;
    let mut dials = Vec::new();
    if !is_binder {
        // Nobody is left alone.
        let first = at % binders;
        dials.push((first, 0));
        if binders > 1 && (leaves < binders || dice.once_in(2)) {
            dials.push(((first + 1) % binders, 0));
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
    SocketPlan {
        mode,
        delivery: if at_least_once { DeliveryGuarantee::AtLeastOnce } else { DeliveryGuarantee::AtMostOnce },
        ack_mode: [AckMode::Automatic, AckMode::Manual, AckMode::OnReceipt][dice.index(3)],
        directed_one_in: if dice.once_in(2) { dice.magnitude(1, 30) } else { 0 },
        port: is_binder.then_some(7000 + at as u16),
        dials,
        by_name: dice.once_in(3),
        messages: if dice.once_in(4) { 0 } else { dice.pick(100, 600) as u32 },
        size_max: dice.magnitude(16, size_cap as u64) as usize,
        pause_ns: dice.pick(1, 400) * MS,
        slow_consumer: faults.has(Fault::SlowConsumer) && dice.once_in(2),
        log_bytes,
        receive_bytes: if small_queue { 64 * 1024 } else { 4 << 20 },
        heartbeat,
        send_buffer: 4096,
    }
}
