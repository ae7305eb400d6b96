//! The manual, one page a topic.

#[doc = include_str!("docs/architecture.md")]
pub mod architecture {}
