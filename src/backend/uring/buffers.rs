//! The ring of provided receive buffers: memory shared with the kernel, in which slabs are offered in order.
//!
//! With incremental consumption (Linux 6.12) a buffer is a whole slab that many receives share, front to back. Without
//! it each receive uses up a buffer, so the pool is cut into smaller ones.
//!
//! Invariant: the entries' memory is registered with the ring until the ring is closed, and is unmapped after that; only
//! the tail and entries behind it are written while the kernel looks.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, types};

use crate::backend::options::{BackendOptions, PoolOptions};

/// The only buffer group.
pub(super) const GROUP: u16 = 0;

/// Slab size without incremental consumption.
const PLAIN_BYTES: usize = 16 * 1024;

/// IOU_PBUF_RING_INC of the kernel's interface.
const INCREMENTAL: u16 = 2;

/// The ring of provided buffers.
pub(super) struct BufferRing {
    entries: NonNull<types::BufRingEntry>,
    /// Entries, a power of two, at least the pool's slabs: it never runs full.
    capacity: u16,
    tail: u16,
    pool: PoolOptions,
    slabs_wanted: usize,
}

impl BufferRing {
    /// Registers an empty buffer ring, incremental when that is wanted and known here.
    pub(super) fn register(ring: &IoUring, options: &BackendOptions) -> io::Result<BufferRing> {
        if options.incremental {
            let wanted = options.ring_slabs.clamp(1, options.pool.slab_count);
            match BufferRing::try_register(ring, options.pool, wanted, INCREMENTAL) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => return other,
            }
        }
        let slab_bytes = PLAIN_BYTES.min(options.pool.slab_bytes);
        let per_slab = options.pool.slab_bytes / slab_bytes;
        let slab_count = (options.pool.slab_count * per_slab).min(32768);
        let wanted = (options.ring_slabs * per_slab).clamp(1, slab_count);
        BufferRing::try_register(ring, PoolOptions { slab_count, slab_bytes }, wanted, 0)
    }

    fn try_register(ring: &IoUring, pool: PoolOptions, slabs_wanted: usize, flags: u16) -> io::Result<BufferRing> {
        let capacity = pool.slab_count.next_power_of_two();
        if pool.slab_count == 0 || capacity > 32768 || u32::try_from(pool.slab_bytes).is_err() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "slab_count or slab_bytes out of range"));
        }
        let capacity = capacity as u16;
        // SAFETY: a new private mapping, of zeroes.
        let memory = unsafe {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), bytes_of(capacity), access, kind, -1, 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let buffers = BufferRing { entries, capacity, tail: 0, pool, slabs_wanted };
        // SAFETY: the mapping has `capacity` entries and outlives the ring: see the struct that owns both.
        unsafe { ring.submitter().register_buf_ring_with_flags(memory as u64, capacity, GROUP, flags)? };
        Ok(buffers)
    }

    /// The pool that fits.
    pub(super) fn pool_options(&self) -> PoolOptions {
        self.pool
    }

    /// How many slabs to keep in the ring.
    pub(super) fn slabs_wanted(&self) -> usize {
        self.slabs_wanted
    }

    /// Offers a slab to the kernel.
    pub(super) fn provide(&mut self, slab: u16, memory: NonNull<u8>, len: usize) {
        assert!(len <= self.pool.slab_bytes && usize::from(slab) < self.pool.slab_count);
        let index = usize::from(self.tail & (self.capacity - 1));
        // SAFETY: inside the mapping; the entry is behind the tail and free: no slab is offered twice, and there are
        // at least as many entries as slabs. The tail (which lies in the first entry's reserved bytes, not written
        // here) is published last, with release.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(index);
            entry.set_addr(memory.as_ptr() as u64);
            entry.set_len(len as u32);
            entry.set_bid(slab);
            self.tail = self.tail.wrapping_add(1);
            let tail = types::BufRingEntry::tail(self.entries.as_ptr()).cast_mut().cast::<u16>();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: mapped in `try_register` with this length. The ring is closed or never knew of it, and the kernel
        // holds its own reference to the pages.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), bytes_of(self.capacity)) };
    }
}

fn bytes_of(capacity: u16) -> usize {
    usize::from(capacity) * size_of::<types::BufRingEntry>()
}
