//! The program `aiomsg` run as users run it: processes, pipes, signals and exit codes, and the stock Python library at
//! the other end. `tests/demo.rs` has the demo.
#![cfg(all(feature = "cli", unix))]

#[path = "../common/mod.rs"]
mod common;

mod codes;
#[cfg(target_os = "linux")]
mod doctor;
mod measured;
mod pages;
mod passing;
mod pipes;
mod process;
mod watched;
