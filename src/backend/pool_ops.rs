//! A fuzz target: the pool of receive slabs against a plain copy of what each lease holds. Here because the pool is known to the
//! drivers only; called by `fuzzing`.

use std::collections::VecDeque;
use std::task::Waker;

use arbitrary::Unstructured;
use bytes::Bytes;

use super::PoolOptions;
use super::pool::Pool;

const SLABS: usize = 4;
const SLAB_BYTES: usize = 4096;

/// Slabs taken, written, lent in pieces and given back in any order: no lease ever changes, and none is lost.
pub(crate) fn pool_ops(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let options = PoolOptions { slab_count: SLABS, slab_bytes: SLAB_BYTES };
    let Ok(mut pool) = Pool::new(options, Waker::noop().clone()) else { return };
    let mut held: Vec<u16> = Vec::new();
    let mut leases: VecDeque<(u16, Vec<u8>, Bytes)> = VecDeque::new();
    let mut number = 0u8;
    while let Ok((step, amount)) = input.arbitrary::<(u8, u16)>()
        && !input.is_empty()
    {
        let pick = usize::from(step >> 4);
        match step % 8 {
            0 => {
                let busy = (0..SLABS as u16)
                    .filter(|slab| held.contains(slab) || leases.iter().any(|(leased, ..)| leased == slab));
                let free = SLABS - busy.count();
                let taken = pool.take();
                assert_eq!(taken.is_some(), free > 0);
                held.extend(taken);
            }
            1..4 if !held.is_empty() => {
                let slab = held[pick % held.len()];
                let spare = pool.spare(slab);
                if !spare.is_empty() {
                    let len = usize::from(amount) % spare.len().min(1_500) + 1;
                    number = number.wrapping_add(1);
                    spare[..len].fill(number);
                    leases.push_back((slab, vec![number; len], pool.lease(slab, len).into_bytes()));
                }
            }
            4 if !held.is_empty() => pool.release(held.swap_remove(pick % held.len())),
            5 | 6 if !leases.is_empty() => drop(leases.remove(pick % leases.len())),
            7 => assert!(!pool.starve() || pool.take().is_none()),
            _ => {}
        }
        for (_, expected, lease) in &leases {
            assert!(lease == expected, "a lease changed");
        }
    }
    held.into_iter().for_each(|slab| pool.release(slab));
    drop(leases);
    assert_eq!(pool.slabs().free, SLABS);
}
