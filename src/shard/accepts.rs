//! How many connections a listener accepts from one address: a bucket of tokens for each that has connected lately, in a table that
//! is bounded. Stock peers dial again at once after a clean close (interop note 1): what is over the limit is held for a while before
//! it is closed, and costs nothing else meanwhile.
//!
//! Invariants: an address that stays within the rate is never refused; a bucket that is full is as good as none and is forgotten
//! first; at most [`HELD_MAX`] connections are held, the rest are closed at once. Used by a [`listener`](super::listener) alone.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use crate::backend::{Address, Handle};

/// Addresses that are remembered at once: 100 KiB. Beyond, those with the fullest buckets are forgotten.
const ADDRESSES_MAX: usize = 4096;
/// Connections over the limit that are held at once.
pub(super) const HELD_MAX: usize = 1024;

/// See the module's documentation. A bucket is kept as the time at which it will be full again.
pub(super) struct Accepts {
    /// Nanoseconds in which one token comes back.
    token_ns: u64,
    /// Nanoseconds in which an empty bucket fills.
    burst_ns: u64,
    full_at_ns: HashMap<Source, u64>,
    /// Connections over the limit and when they are closed, in that order.
    pub(super) held: VecDeque<(u64, Handle)>,
}

/// Who is counted as one: an IPv4 address, what one customer gets of IPv6 (a /64), or all that use a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4(u32),
    V6(u64),
    Unix,
}

impl Source {
    fn of(address: &Address) -> Source {
        match address.socket_addr().map(|address| address.ip().to_canonical()) {
            Some(IpAddr::V4(ip)) => Source::V4(ip.to_bits()),
            Some(IpAddr::V6(ip)) => Source::V6((ip.to_bits() >> 64) as u64),
            None => Source::Unix,
        }
    }
}

impl Accepts {
    /// A bucket holds `burst` tokens and gets `per_second` of them back.
    pub(super) fn new(per_second: u32, burst: u32) -> Accepts {
        let token_ns = 1_000_000_000 / u64::from(per_second.max(1));
        let burst_ns = token_ns * u64::from(burst);
        Accepts { token_ns, burst_ns, full_at_ns: HashMap::new(), held: VecDeque::new() }
    }

    /// Takes a token of this address; false if it has none.
    pub(super) fn admit(&mut self, address: &Address, now_ns: u64) -> bool {
        if self.full_at_ns.len() >= ADDRESSES_MAX {
            self.forget(now_ns);
        }
        let full_at_ns = self.full_at_ns.entry(Source::of(address)).or_insert(now_ns);
        let next_ns = (*full_at_ns).max(now_ns) + self.token_ns;
        let admitted = next_ns <= now_ns.saturating_add(self.burst_ns);
        if admitted {
            *full_at_ns = next_ns;
        }
        admitted
    }

    /// Forgets at least half of the addresses, the quietest, so that it is rarely done.
    fn forget(&mut self, now_ns: u64) {
        let mut times: Vec<u64> = self.full_at_ns.values().copied().collect();
        let (_, &mut median_ns, _) = times.select_nth_unstable(ADDRESSES_MAX / 2);
        let bound_ns = median_ns.max(now_ns);
        self.full_at_ns.retain(|_, full_at_ns| *full_at_ns > bound_ns);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::*;

    const MS: u64 = 1_000_000;

    fn from(ip: impl Into<IpAddr>) -> Address {
        Address::Ip(SocketAddr::new(ip.into(), 1))
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut accepts = Accepts::new(100, 5);
        let (one, other) = (from([127, 0, 0, 1]), from([127, 0, 0, 2]));
        let admitted =
            |accepts: &mut Accepts, address, now_ns| (0..50).filter(|_| accepts.admit(address, now_ns)).count();
        assert_eq!(admitted(&mut accepts, &one, MS), 5);
        assert_eq!(admitted(&mut accepts, &one, 12 * MS), 1);
        assert_eq!(admitted(&mut accepts, &other, 12 * MS), 5);
        // At the rate, for ever.
        assert!((2..1000).all(|n| accepts.admit(&one, n * 11 * MS)));
        // After a pause the burst is there again, and no more than that.
        assert_eq!(admitted(&mut accepts, &one, 1_000_000 * MS), 5);
    }

    #[test]
    fn who_is_one() {
        let mut accepts = Accepts::new(1, 1);
        let mapped = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped();
        assert!(accepts.admit(&from([10, 0, 0, 1]), 1) && !accepts.admit(&from(mapped), 1));
        let v6 = |subnet, host| from(Ipv6Addr::new(0x2001, 0xdb8, 0, subnet, 0, 0, 0, host));
        assert!(accepts.admit(&v6(1, 1), 1) && !accepts.admit(&v6(1, 2), 1) && accepts.admit(&v6(2, 1), 1));
    }

    #[test]
    fn the_table_is_bounded_and_remembers_the_loud() {
        let mut accepts = Accepts::new(10, 100);
        let loud = from([10, 0, 0, 1]);
        while accepts.admit(&loud, 0) {}
        for n in 0..1_000_000u32 {
            accepts.admit(&from(Ipv4Addr::from_bits(0x0B00_0000 + n)), 0);
            assert!(accepts.full_at_ns.len() <= ADDRESSES_MAX);
        }
        assert!(!accepts.admit(&loud, 0));
    }

    #[test]
    fn without_a_limit() {
        let mut accepts = Accepts::new(u32::MAX, u32::MAX);
        assert!((0..1_000_000).all(|_| accepts.admit(&from([127, 0, 0, 1]), 0)));
    }
}
