//! The manual, one page a topic.
//!
//! | you want to | read |
//! |---|---|
//! | write the first program | [`start`], then the [`cookbook`] |
//! | know exactly what is promised | [`guarantees`] |
//! | choose between threads and none, io_uring and readiness | [`choosing`] |
//! | know how much memory it can take | [`limits`] |
//! | decide what becomes of peers that do not keep up | [`flow`] |
//! | send states: newest per key, snapshots, replay | [`keyed`] |
//! | make it faster | [`tuning`], [`performance`] |
//! | talk to the rest of the family | [`interop`] |
//! | come from the family's Rust library or from ZeroMQ | [`migration`] |
//! | find out what went wrong | [`failures`] |
//! | watch it | [`metrics`] |
//! | know how it works | [`architecture`] |

#[doc = include_str!("docs/start.md")]
pub mod start {}

#[doc = include_str!("../examples/README.md")]
pub mod cookbook {}

#[doc = include_str!("docs/guarantees.md")]
pub mod guarantees {}

#[doc = include_str!("docs/choosing.md")]
pub mod choosing {}

#[doc = include_str!("docs/limits.md")]
pub mod limits {}

#[doc = include_str!("docs/flow.md")]
pub mod flow {}

#[doc = include_str!("docs/keyed.md")]
pub mod keyed {}

#[doc = include_str!("docs/tuning.md")]
pub mod tuning {}

#[doc = include_str!("docs/interop.md")]
pub mod interop {}

#[doc = include_str!("docs/migration.md")]
pub mod migration {}

#[doc = include_str!("docs/failures.md")]
pub mod failures {}

#[doc = include_str!("docs/metrics.md")]
pub mod metrics {}

#[doc = include_str!("docs/architecture.md")]
pub mod architecture {}

#[doc = include_str!("docs/performance.md")]
pub mod performance {}

#[doc = include_str!("docs/simulated.md")]
pub mod simulated {}

#[doc = include_str!("docs/testing.md")]
pub mod testing {}
