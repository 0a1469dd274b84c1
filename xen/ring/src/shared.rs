//! Memory that a peer can write while we look at it.
#![allow(
    unsafe_code,
    reason = "the one module that dereferences memory shared with a peer"
)]
//!
//! Invariants this home rests on:
//! - a `SharedPages` points at `len` bytes that stay mapped, readable and (unless
//!   said otherwise by its maker) writable until its `release` has run;
//! - no Rust reference into that memory is ever made, here or elsewhere; all
//!   accesses are volatile or atomic, so a peer's concurrent writes can give any
//!   value but no undefined behaviour that the compiler could build on.

use alloc::boxed::Box;
use alloc::vec;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A run of virtually contiguous bytes shared with a peer.
///
/// Offsets that leave the run are the caller's bug, never the peer's doing, and
/// panic.
pub struct SharedPages {
    base: NonNull<u8>,
    len: usize,
    /// Unmaps (or frees) the memory; runs once, on drop.
    release: Option<Box<dyn FnOnce() + Send>>,
}

// SAFETY: the memory is reached only through volatile and atomic accesses, which
// do not care on which CPU they run, and `release` is itself `Send`.
unsafe impl Send for SharedPages {}

impl fmt::Debug for SharedPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPages")
            .field("base", &self.base)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl SharedPages {
    /// Wraps `len` bytes mapped at `base`; `release` runs when the object is dropped.
    ///
    /// # Safety
    /// `base..base + len` is mapped read-write, 8-byte aligned, until `release` has
    /// run, and nobody makes a Rust reference into it meanwhile.
    pub unsafe fn from_raw(
        base: NonNull<u8>,
        len: usize,
        release: Option<Box<dyn FnOnce() + Send>>,
    ) -> Self {
        assert!(
            base.addr().get().is_multiple_of(8),
            "shared memory must be aligned"
        );
        Self { base, len, release }
    }

    /// Zeroed memory of our own, with a second handle on it for the other side.
    /// For tests and for both ends of an in-process ring.
    pub fn pair(len: usize) -> (Self, Self) {
        let heap = SharedHeap::new(len);
        (heap.handle(None), heap.handle(None))
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the run holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "access of {len} bytes at {offset} leaves a shared run of {}",
            self.len
        );
        // SAFETY: the assertion above keeps the pointer inside the run that the
        // maker of this object promised to be mapped.
        unsafe { self.base.add(offset) }
    }

    /// Copies `to.len()` bytes out. The peer may be writing them: the copy is what
    /// must be checked and used.
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) {
        let from = self.at(offset, to.len());
        let mut i = 0;
        // Whole words where both sides allow it; the frame data of a slow path only.
        if from.addr().get().is_multiple_of(8) {
            while i + 8 <= to.len() {
                // SAFETY: `at` checked `offset + to.len()`, and `i + 8` is within it.
                let word = unsafe { from.add(i) }.cast::<u64>();
                // SAFETY: as above; `from` is 8-aligned and `i` a multiple of 8.
                let word = unsafe { word.read_volatile() };
                to[i..i + 8].copy_from_slice(&word.to_ne_bytes());
                i += 8;
            }
        }
        while i < to.len() {
            // SAFETY: `at` checked `offset + to.len()`, and `i` is below it.
            let byte = unsafe { from.add(i) };
            // SAFETY: as above.
            to[i] = unsafe { byte.read_volatile() };
            i += 1;
        }
    }

    /// Copies `from` in.
    pub fn write_bytes(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        let mut i = 0;
        if to.addr().get().is_multiple_of(8) {
            while i + 8 <= from.len() {
                let mut word = [0; 8];
                word.copy_from_slice(&from[i..i + 8]);
                // SAFETY: `at` checked `offset + from.len()`, and `i + 8` is within it.
                let slot = unsafe { to.add(i) }.cast::<u64>();
                // SAFETY: as above; `to` is 8-aligned and `i` a multiple of 8.
                unsafe { slot.write_volatile(u64::from_ne_bytes(word)) };
                i += 8;
            }
        }
        while i < from.len() {
            // SAFETY: `at` checked `offset + from.len()`, and `i` is below it.
            let slot = unsafe { to.add(i) };
            // SAFETY: as above.
            unsafe { slot.write_volatile(from[i]) };
            i += 1;
        }
    }

    /// One private copy of a plain structure.
    pub fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let mut copy = T::new_zeroed();
        self.read_bytes(offset, copy.as_mut_bytes());
        copy
    }

    /// Writes a plain structure.
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        self.write_bytes(offset, value.as_bytes());
    }

    /// Loads a ring index.
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        self.atomic(offset).load(order)
    }

    /// Stores a ring index.
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.atomic(offset).store(value, order);
    }

    fn atomic(&self, offset: usize) -> &AtomicU32 {
        let at = self.at(offset, 4);
        assert!(
            at.addr().get().is_multiple_of(4),
            "ring indices are aligned"
        );
        // SAFETY: `at` checked the bounds and the line above the alignment; the
        // memory stays mapped as long as `self`, whose life the reference borrows.
        // The peer's accesses are plain hardware stores, which an atomic tolerates.
        unsafe { AtomicU32::from_ptr(at.as_ptr().cast()) }
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

/// Zeroed heap memory with any number of handles, each of which tells when it is
/// dropped: a simulated guest's pages, as `xen-sim` maps and unmaps them.
pub struct SharedHeap {
    shared: alloc::sync::Arc<Backing>,
    len: usize,
}

impl fmt::Debug for SharedHeap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedHeap({:p}+{:#x})", self.shared.0, self.len)
    }
}

impl SharedHeap {
    /// `len` zeroed bytes.
    pub fn new(len: usize) -> Self {
        let words = vec![0u64; len.div_ceil(8)].into_boxed_slice();
        Self {
            shared: alloc::sync::Arc::new(Backing(Box::into_raw(words))),
            len,
        }
    }

    /// A handle on all of it; `on_drop` runs when the handle goes.
    pub fn handle(&self, on_drop: Option<Box<dyn FnOnce() + Send>>) -> SharedPages {
        let keep = self.shared.clone();
        SharedPages {
            base: NonNull::new(keep.0.cast::<u8>()).expect("a box is never null"),
            len: self.len,
            release: Some(Box::new(move || {
                if let Some(tell) = on_drop {
                    tell();
                }
                drop(keep);
            })),
        }
    }
}

/// Heap words behind a [`SharedPages::pair`] or [`SharedHeap`].
struct Backing(*mut [u64]);

// SAFETY: the pointer is the only handle on its box and is only used to free it.
unsafe impl Send for Backing {}
// SAFETY: as above; nothing is read through a shared `Backing`.
unsafe impl Sync for Backing {}

impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` in `SharedHeap::new`, and this is its last owner:
        // every handle holds an `Arc` of it in its `release`.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "made-up test data")]
mod tests {
    use super::*;

    #[test]
    fn what_one_end_writes_the_other_reads_at_any_alignment() {
        let (a, b) = SharedPages::pair(64);
        let data: [u8; 19] = core::array::from_fn(|i| i as u8 + 1);
        for offset in 0..40 {
            a.write_bytes(offset, &data);
            let mut back = [0; 19];
            b.read_bytes(offset, &mut back);
            assert_eq!(back, data);
        }
    }

    #[test]
    #[should_panic(expected = "leaves a shared run")]
    fn an_access_past_the_end_panics() {
        SharedPages::pair(64).0.read_bytes(60, &mut [0; 5]);
    }

    #[test]
    fn release_runs_once_when_dropped() {
        use core::sync::atomic::AtomicU32;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (keep, _other) = SharedPages::pair(8);
        // SAFETY: `keep` holds the memory until the end of the test.
        let pages = unsafe {
            SharedPages::from_raw(
                keep.base,
                8,
                Some(Box::new(|| {
                    COUNT.fetch_add(1, Ordering::Relaxed);
                })),
            )
        };
        drop(pages);
        assert_eq!(COUNT.load(Ordering::Relaxed), 1);
    }
}
