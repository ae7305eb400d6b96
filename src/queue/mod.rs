//! Lock-free paths between threads: application to shard ([`command`]), shard to application ([`receive`]), and the
//! [`doorbell`] that wakes a sleeping shard.
//!
//! Everything here is bounded: a full queue gives the item back, and the caller turns that into backpressure. The
//! queues themselves are crossbeam's; what is ours is the accounting around them and the two handshakes that must not
//! lose a wake-up: *publish, then ring* against *announce sleep, then look again* ([`doorbell`]), and *mark starved,
//! then try again* against *release, then look for the starved* ([`receive`]). Both are Dekker's pattern: each side
//! writes its own flag, passes a sequentially consistent fence, and reads the other's; so at least one of them sees the
//! other.
//!
//! Called by `socket` (producer of commands, consumer of what was received), `shard` (the opposite ends) and `engine`.
//! Nothing here blocks, allocates after construction, or knows what travels through it.

pub(crate) mod command;
pub(crate) mod doorbell;
pub(crate) mod receive;

pub(crate) use command::Commands;
pub(crate) use doorbell::Doorbell;
pub(crate) use receive::ReceiveQueue;
