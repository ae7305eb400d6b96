//! The manual, one page a topic.

#[doc = include_str!("docs/guarantees.md")]
pub mod guarantees {}

#[doc = include_str!("docs/limits.md")]
pub mod limits {}

#[doc = include_str!("docs/interop.md")]
pub mod interop {}

#[doc = include_str!("docs/failures.md")]
pub mod failures {}

#[doc = include_str!("docs/architecture.md")]
pub mod architecture {}

#[doc = include_str!("docs/performance.md")]
pub mod performance {}
