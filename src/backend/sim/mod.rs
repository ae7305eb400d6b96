//! The simulated network of tests: byte streams between hosts under a virtual clock, with every fault that a real network and
//! a real system are known for, drawn from one seed.
//!
//! ```text
//!   network   hosts, listeners, connections, arrivals in the order of virtual time; what happens is hashed
//!   faults    the named faults: which are on in this run, how often each has happened
//!   driver    the plain `Backend` over the network; the io_uring driver runs over the same network by a simulated ring
//!   dice      the seeded randomness of all of it
//! ```
//! Nothing here reads a clock, sleeps, or starts a thread: who owns the network moves its time. The same seed and the same
//! calls give the same run. Compiled for tests and for the feature `simulation` only.

mod dice;
mod driver;
mod faults;
mod network;

pub(crate) use dice::Dice;
pub(crate) use driver::SimBackend;
pub(crate) use faults::{FAULTS, Fault, Faults, Weather};
pub(crate) use network::{BackendId, Host, Id, Network, SharedNetwork, SimStream};
#[cfg(all(target_os = "linux", feature = "uring"))]
pub(super) use network::{address, place};

/// The io_uring driver over a simulated kernel ring.
#[cfg(all(target_os = "linux", feature = "uring"))]
pub(crate) fn open_ring(
    network: SharedNetwork,
    host: Host,
    pool: super::PoolOptions,
) -> std::io::Result<(Box<dyn super::Backend>, BackendId)> {
    super::uring::open_simulated(network, host, pool)
}

/// Where there is no io_uring driver, the plain one.
#[cfg(not(all(target_os = "linux", feature = "uring")))]
pub(crate) fn open_ring(
    network: SharedNetwork,
    host: Host,
    pool: super::PoolOptions,
) -> std::io::Result<(Box<dyn super::Backend>, BackendId)> {
    let (backend, seat) = SimBackend::new(network, host, pool)?;
    Ok((Box::new(backend), seat))
}
