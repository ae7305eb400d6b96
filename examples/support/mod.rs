//! Plumbing of the `peer` example: its command line, the messages it sends, what a
//! process used, the control connection between the two processes of a run, counting,
//! and the JSON lines that a driver reads.
//!
//! A run has two processes. The sender (`pub`) listens for the control connection on the
//! port after the data port; the receiver (`sub`) connects to it and says three things
//! there: that it is ready, how much it has received (windowed runs only), and that it is
//! done. Both ends of a run are probed in band: the sender repeats probe messages until the
//! receiver has seen one round on every connection, and end messages until the receiver
//! says that it is done. So nothing depends on what a library knows about its peers.

pub(crate) mod latency;
pub(crate) mod links;
pub(crate) mod message;
pub(crate) mod options;
pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod usage;
