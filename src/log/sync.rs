//! The synchronisation primitives of the log, in one place, so that a model checker can replace them.
//!
//! In tests under `cfg(loom)` the atomics, the lock and the counted pointer are loom's; otherwise they are the standard
//! library's. Only this folder uses it. It adds no behaviour of its own.
//!
//! Loom cannot see reads and writes through raw pointers. [`Watch`] tells it of them: a range that is written while
//! somebody may read it, because an ordering is too weak or memory is used again too early, fails the model.

#[cfg(all(loom, test))]
pub(super) use loom::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
#[cfg(not(all(loom, test)))]
pub(super) use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// Which bytes of a block are touched, told to the model checker; nothing at all outside of models.
pub(super) struct Watch {
    /// One for each `GRAIN` bytes.
    #[cfg(all(loom, test))]
    grains: Vec<loom::cell::UnsafeCell<()>>,
}

#[cfg(all(loom, test))]
impl Watch {
    /// Bytes that are told apart; models append frames and heads whose sizes are multiples of it.
    pub(super) const GRAIN: usize = 128;

    pub(super) fn new(bytes: usize) -> Self {
        Self { grains: (0..bytes.div_ceil(Self::GRAIN)).map(|_| loom::cell::UnsafeCell::new(())).collect() }
    }

    pub(super) fn read(&self, offset: usize, bytes: usize) {
        self.touched(offset, bytes).for_each(|grain| grain.with(|_| ()));
    }

    pub(super) fn write(&self, offset: usize, bytes: usize) {
        self.touched(offset, bytes).for_each(|grain| grain.with_mut(|_| ()));
    }

    fn touched(&self, offset: usize, bytes: usize) -> impl Iterator<Item = &loom::cell::UnsafeCell<()>> {
        self.grains[offset / Self::GRAIN..(offset + bytes).div_ceil(Self::GRAIN)].iter()
    }
}

#[cfg(not(all(loom, test)))]
impl Watch {
    #[inline(always)]
    pub(super) fn new(_bytes: usize) -> Self {
        Self {}
    }

    #[inline(always)]
    pub(super) fn read(&self, _offset: usize, _bytes: usize) {}
}
