//! Receive memory: slabs of one allocation, lent out as [`Lease`]s and handed back from whatever thread drops the last.
//!
//! ```text
//! slab:  | leased to A | leased to B | leased to A |  spare: the driver's (or the kernel's) to write  |
//!        0                                         filled                                     slab_bytes
//! ```
//! Invariants on which all unsafe blocks here rest:
//! - a slab counts its leases, plus one while the driver holds it; it goes back to the free list only at zero;
//! - bytes below `filled` are only ever read, bytes at or above it belong to the driver alone; `filled` goes back to 0
//!   only when no lease of the slab is left;
//! - the allocation lives as long as the pool or any lease; it is zeroed, so every byte is initialised. (Large zeroed
//!   allocations are mapped lazily: a slab costs memory when it is first used.)
//!
//! The drivers call in here. Nothing here blocks or knows what the bytes mean.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicUsize, fence};
use std::task::Waker;

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicUsize, fence};

use super::Slabs;
use super::options::PoolOptions;
use crate::sabotage::{Bug, planted};

/// The slabs of one backend, on its thread.
pub(super) struct Pool {
    shared: Arc<Shared>,
    /// Free slabs, the most recently used (the warmest in the caches) last.
    free: Vec<u16>,
    /// Bytes of each slab that were leased out since it was taken.
    filled: Box<[usize]>,
    /// Slabs that the driver holds and that have `filled == 0`.
    untouched: usize,
}

impl Pool {
    /// Allocates the slabs; `bell` is rung when a slab comes back after [`Pool::starve`].
    pub(super) fn new(options: PoolOptions, bell: Waker) -> io::Result<Pool> {
        let PoolOptions { slab_count: count, slab_bytes } = options;
        if count == 0 || count > 32768 || slab_bytes < 4096 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "slab_count or slab_bytes out of range"));
        }
        let layout = count
            .checked_mul(slab_bytes)
            .and_then(|bytes| Layout::from_size_align(bytes, 16).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the layout is not empty: both factors were checked.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(io::ErrorKind::OutOfMemory)?;
        let shared = Shared {
            memory,
            layout,
            slab_bytes,
            holds: (0..count).map(|_| CachePadded::new(AtomicUsize::new(0))).collect(),
            returned: ArrayQueue::new(count),
            starved: AtomicBool::new(false),
            bell,
        };
        Ok(Pool {
            shared: Arc::new(shared),
            free: (0..count as u16).rev().collect(),
            filled: vec![0; count].into(),
            untouched: 0,
        })
    }

    /// Bytes of each slab.
    pub(super) fn slab_bytes(&self) -> usize {
        self.shared.slab_bytes
    }

    /// Takes the warmest free slab; the driver holds it until [`Pool::release`].
    pub(super) fn take(&mut self) -> Option<u16> {
        if self.free.is_empty() || !self.shared.returned.is_empty() {
            self.collect();
        }
        let slab = self.free.pop()?;
        let before = self.shared.holds[usize::from(slab)].swap(1, Ordering::Relaxed);
        assert_eq!(before, 0, "a free slab has no leases");
        self.filled[usize::from(slab)] = 0;
        self.untouched += 1;
        Some(slab)
    }

    /// The part of a held slab that may still be written, from the start again once nobody reads the rest any more.
    pub(super) fn spare(&mut self, slab: u16) -> &mut [u8] {
        let index = usize::from(slab);
        // Acquire: the reads of whoever dropped the last lease came before our writes.
        let holds = self.shared.holds[index].load(Ordering::Acquire);
        assert!(holds > 0, "only a held slab is written");
        if holds == 1 && self.filled[index] > 0 {
            self.filled[index] = 0;
            self.untouched += 1;
        }
        let filled = self.filled[index];
        // SAFETY: the range is inside the slab and at or above `filled`: no lease covers it, and `&mut self` keeps this
        // slice the only one.
        unsafe {
            let start = self.shared.slab(slab).add(filled);
            std::slice::from_raw_parts_mut(start.as_ptr(), self.shared.slab_bytes - filled)
        }
    }

    /// The memory of a held slab, for a kernel that writes it front to back and says how much ([`Pool::lease`]).
    #[cfg(all(target_os = "linux", feature = "uring"))]
    pub(super) fn memory(&self, slab: u16) -> NonNull<u8> {
        self.shared.slab(slab)
    }

    /// How many bytes of a held slab can still be leased.
    pub(super) fn spare_bytes(&self, slab: u16) -> usize {
        self.shared.slab_bytes - self.filled[usize::from(slab)]
    }

    /// Lends the next `len` bytes of a held slab, which have just been written.
    pub(super) fn lease(&mut self, slab: u16, len: usize) -> Lease {
        assert!(len > 0 && len <= self.spare_bytes(slab), "a lease lies inside its slab");
        let index = usize::from(slab);
        let start = self.filled[index];
        if start == 0 {
            self.untouched -= 1;
        }
        self.filled[index] = start + len;
        let before = self.shared.holds[index].fetch_add(1, Ordering::Relaxed);
        assert!(before > 0, "only a held slab is lent");
        Lease { shared: Arc::clone(&self.shared), start: index * self.shared.slab_bytes + start, len, slab }
    }

    /// Ends the driver's hold on a slab: nothing more is written to it until it is taken again.
    pub(super) fn release(&mut self, slab: u16) {
        if self.filled[usize::from(slab)] == 0 {
            self.untouched -= 1;
        }
        self.shared.unhold(slab);
    }

    /// Notes that somebody waits for a slab, so that the next one that comes back rings the bell. False when there is
    /// a free slab after all.
    pub(super) fn starve(&mut self) -> bool {
        self.collect();
        if !self.free.is_empty() {
            return false;
        }
        self.shared.starved.store(true, Ordering::SeqCst);
        // Pairs with the fence in `unhold`: either we see the slab or its giver sees the flag.
        fence(Ordering::SeqCst);
        self.collect();
        if self.free.is_empty() {
            return true;
        }
        self.shared.starved.store(false, Ordering::Relaxed);
        false
    }

    /// Whether [`Pool::take`] would succeed.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty() || !self.shared.returned.is_empty()
    }

    /// Free and total slabs.
    pub(super) fn slabs(&self) -> Slabs {
        let free = self.free.len() + self.shared.returned.len() + self.untouched;
        Slabs { free, total: self.filled.len() }
    }

    /// Never frees the memory: for a kernel that may still write it.
    #[cfg(all(target_os = "linux", feature = "uring"))]
    pub(super) fn leak(&self) {
        std::mem::forget(Arc::clone(&self.shared));
    }

    /// Moves what came back to the free list.
    fn collect(&mut self) {
        // Bounded: no more than there are slabs.
        for _ in 0..self.filled.len() {
            match self.shared.returned.pop() {
                Some(slab) => self.free.push(slab),
                None => break,
            }
        }
    }
}

/// Received bytes where the kernel put them. The slab is reused when its last lease is dropped, on any thread.
pub(crate) struct Lease {
    shared: Arc<Shared>,
    /// Position in the pool's memory.
    start: usize,
    len: usize,
    slab: u16,
}

impl Lease {
    /// The same bytes as a reference-counted slice; they keep their slab busy until the last clone is dropped.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Lease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range was written before it was lent, is below `filled`, and this lease keeps the slab from reuse
        // and the memory alive.
        unsafe { std::slice::from_raw_parts(self.shared.memory.add(self.start).as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.unhold(self.slab);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease(slab {}, {} bytes)", self.slab, self.len)
    }
}

struct Shared {
    memory: NonNull<u8>,
    layout: Layout,
    slab_bytes: usize,
    /// For each slab its leases, plus one while the driver holds it. Written by the driver and by whoever drops leases.
    holds: Box<[CachePadded<AtomicUsize>]>,
    /// Slabs whose count fell to zero. Pushed by whoever dropped the last hold, popped by the driver.
    returned: ArrayQueue<u16>,
    /// Set by the driver when it waits for a slab, cleared by the giver that rings.
    starved: AtomicBool,
    bell: Waker,
}

// SAFETY: the memory is written only by the one `Pool` (which is not shared) and above `filled`; everything else that
// several threads touch is atomic.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn slab(&self, slab: u16) -> NonNull<u8> {
        assert!(usize::from(slab) < self.holds.len());
        // SAFETY: the slab was checked to be inside the allocation.
        unsafe { self.memory.add(usize::from(slab) * self.slab_bytes) }
    }

    fn unhold(&self, slab: u16) {
        // AcqRel: all reads of this slab come before its reuse, whoever was last.
        if self.holds[usize::from(slab)].fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        if planted(Bug::SlabLost) {
            return;
        }
        let pushed = self.returned.push(slab);
        let pushed = if planted(Bug::SlabTwice) { self.returned.push(slab) } else { pushed };
        assert!(pushed.is_ok(), "the queue has room for every slab");
        fence(Ordering::SeqCst);
        if self.starved.load(Ordering::Relaxed) && self.starved.swap(false, Ordering::Relaxed) {
            self.bell.wake_by_ref();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: allocated in `Pool::new` with this layout; no pool and no lease is left.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// Every interleaving of our own words, to be run by `tests/loom/run` (crossbeam's queue is taken to be sequentially consistent).
/// Taking either fence away must make the model fail.
#[cfg(all(test, loom))]
mod models {
    use std::task::Wake;

    use loom::sync::Notify;

    use super::*;

    struct Bed(Notify);

    impl Wake for Bed {
        fn wake(self: Arc<Self>) {
            self.0.notify();
        }
    }

    #[test]
    fn a_starved_driver_is_told() {
        loom::model(|| {
            let bed = Arc::new(Bed(Notify::new()));
            let options = PoolOptions { slab_count: 1, slab_bytes: 4096 };
            let mut pool = Pool::new(options, Waker::from(bed.clone())).unwrap();
            let slab = pool.take().unwrap();
            let leases = [pool.lease(slab, 1), pool.lease(slab, 1)];
            pool.release(slab);
            for lease in leases {
                loom::thread::spawn(move || drop(lease));
            }
            // A bell that is not rung leaves this thread asleep with nobody to run: loom reports the deadlock.
            while pool.starve() {
                bed.0.wait();
            }
            assert_eq!(pool.take(), Some(slab));
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;

    struct Rings(AtomicU32);
    impl Wake for Rings {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pool(slab_count: usize) -> (Pool, Arc<Rings>) {
        let rings = Arc::new(Rings(AtomicU32::new(0)));
        let pool = Pool::new(PoolOptions { slab_count, slab_bytes: 4096 }, Waker::from(Arc::clone(&rings))).unwrap();
        (pool, rings)
    }

    fn fill(pool: &mut Pool, slab: u16, bytes: &[u8]) -> Lease {
        pool.spare(slab)[..bytes.len()].copy_from_slice(bytes);
        pool.lease(slab, bytes.len())
    }

    #[test]
    fn several_leases_share_a_slab() {
        let (mut pool, _) = pool(2);
        let slab = pool.take().unwrap();
        assert_eq!(pool.slabs(), Slabs { free: 2, total: 2 });
        let a = fill(&mut pool, slab, b"abc");
        let b = fill(&mut pool, slab, b"de").into_bytes();
        assert_eq!((&*a, &*b, pool.slabs().free), (&b"abc"[..], &b"de"[..], 1));
        pool.release(slab);
        drop(a);
        assert_eq!(pool.slabs().free, 1);
        drop(b);
        assert_eq!(pool.slabs().free, 2);
    }

    #[test]
    fn the_warmest_slab_is_taken_again() {
        let (mut pool, _) = pool(4);
        let first = pool.take().unwrap();
        let second = pool.take().unwrap();
        pool.release(first);
        pool.release(second);
        assert_eq!(pool.take(), Some(second));
        assert_eq!(pool.take(), Some(first));
    }

    #[test]
    fn a_held_slab_starts_again_when_nobody_reads_it() {
        let (mut pool, _) = pool(1);
        let slab = pool.take().unwrap();
        let lease = fill(&mut pool, slab, b"abc");
        assert_eq!(pool.spare(slab).len(), 4093);
        drop(lease);
        assert_eq!(pool.spare(slab).len(), 4096);
        assert_eq!(pool.slabs().free, 1);
    }

    #[test]
    fn starving_rings_once_for_the_next_slab() {
        let (mut pool, rings) = pool(1);
        assert!(!pool.starve());
        let slab = pool.take().unwrap();
        let lease = fill(&mut pool, slab, b"abc");
        pool.release(slab);
        assert!(pool.take().is_none() && pool.starve() && !pool.has_free());
        std::thread::spawn(move || drop(lease)).join().unwrap();
        assert_eq!(rings.0.load(Ordering::Relaxed), 1);
        assert!(pool.has_free() && !pool.starve());
    }

    #[test]
    fn leases_outlive_the_pool() {
        let (mut pool, _) = pool(1);
        let slab = pool.take().unwrap();
        let lease = fill(&mut pool, slab, b"abc");
        drop(pool);
        assert_eq!(&*lease.into_bytes().slice(1..), b"bc");
    }

    #[test]
    fn slabs_come_back_from_many_threads() {
        let (mut pool, _) = pool(8);
        let (give, take) = std::sync::mpsc::channel::<Lease>();
        let take = std::sync::Mutex::new(take);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let lease = take.lock().unwrap().recv();
                        let Ok(lease) = lease else { break };
                        assert!(lease.iter().all(|&byte| byte == lease[0]));
                    }
                });
            }
            for round in 0..5000u32 {
                let slab = loop {
                    match pool.take() {
                        Some(slab) => break slab,
                        None => std::thread::yield_now(),
                    }
                };
                for part in 0..3 {
                    give.send(fill(&mut pool, slab, &[(round + part) as u8; 100])).unwrap();
                }
                pool.release(slab);
            }
            drop(give);
        });
        assert_eq!(pool.slabs(), Slabs { free: 8, total: 8 });
    }

    #[test]
    fn bad_sizes_are_refused() {
        for (slab_count, slab_bytes) in [(0, 4096), (1, 100), (40000, 4096), (32768, usize::MAX / 2)] {
            let options = PoolOptions { slab_count, slab_bytes };
            assert!(Pool::new(options, Waker::noop().clone()).is_err());
        }
    }
}
