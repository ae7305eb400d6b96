//! Lock-free paths between threads: application to shard ([`command`]), shard to application ([`receive`]), the
//! [`doorbell`] that wakes a sleeping shard, the [`marks`] of what it is to look at, the [`waiters`] of the
//! application, and the [`turns`] that the handles of one socket take.
//!
//! Everything here is bounded: a full queue gives the item back, and the caller turns that into backpressure. The
//! queues themselves are crossbeam's; what is ours is the accounting around them and the two handshakes that must not
//! lose a wake-up: *publish, then ring* against *announce sleep, then look again* ([`doorbell`]), and *mark starved,
//! then try again* against *release, then look for the starved* ([`receive`]). Both are Dekker's pattern: each side
//! writes its own flag, passes a sequentially consistent fence, and reads the other's; so at least one of them sees the
//! other. Models of all of it: `tests/loom`.
//!
//! Called by `socket` (producer of commands, consumer of what was received), `shard` (the opposite ends) and `engine`.
//! Only [`waiters`] and [`turns`] block. Nothing here knows what travels through it, and queues do not allocate after construction.

pub(crate) mod command;
pub(crate) mod doorbell;
pub(crate) mod marks;
pub(crate) mod receive;
pub(crate) mod turns;
pub(crate) mod waiters;

pub(crate) use command::Commands;
pub(crate) use doorbell::Doorbell;
pub(crate) use marks::Marks;
pub(crate) use receive::ReceiveQueue;
pub(crate) use turns::Turns;
pub(crate) use waiters::{Listener, Waiters};
