//! Memory that a device reads and writes.
#![allow(
    unsafe_code,
    reason = "the DMA layer: the one place that touches memory a device writes"
)]
//!
//! Invariants this home rests on:
//! - a [`DmaBuffer`] points at `len` bytes that stay mapped, readable and writable until its
//!   `release` has run;
//! - no Rust reference into that memory is ever made: what is in it is copied out and in
//!   through raw pointers, and only the copy is looked at;
//! - where the device may be writing while we look (descriptors: is it done yet?), the copy
//!   is made of volatile loads: [`DmaBuffer::read`];
//! - all other bytes change hands. The device has them from the doorbell on, until its
//!   completion is seen; we have them else, and copy them then, as fast as memory is copied.
//!   The fences of [`DmaBuffer::read_bytes`] and [`DmaBuffer::write_bytes`] keep the copy on
//!   its side of completion and doorbell, and let the compiler assume nothing of the bytes
//!   past them: it can't read them a second time in place of the copy. A device that breaks
//!   this (it is trusted with more) gives bytes of any value, which is all that callers
//!   count on.

use crate::Node;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// One contiguous run of bus addresses, as a scatter list holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaSegment {
    /// Bus (machine) address.
    pub bus_addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// Pages of ours that a device may read and write: machine-contiguous, on one
/// node, zeroed when handed out, mapped write-back (x86 DMA is coherent).
///
/// It is only copied from and to. Bytes are copied while the device does not use them:
/// after its completion, before the doorbell. Words that it may write at any moment, as
/// those that say whether it is done, are for [`Self::read`]. Dropping it gives the pages
/// back: the owner must have taken the device off them first.
pub struct DmaBuffer {
    base: NonNull<u8>,
    len: usize,
    bus_addr: u64,
    release: Option<Box<dyn FnOnce() + Send>>,
}

// SAFETY: the memory is reached only by copying through `base`, from one CPU at a time (it
// is not `Sync`) and valid on any; `release` is `Send`.
unsafe impl Send for DmaBuffer {}

impl fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuffer({:#x}+{:#x})", self.bus_addr, self.len)
    }
}

impl DmaBuffer {
    /// Wraps `len` bytes at `base` whose bus address is `bus_addr`.
    ///
    /// # Safety
    /// The bytes are mapped read-write and machine-contiguous from `bus_addr` until
    /// `release` has run, page-aligned, and nobody else uses them.
    pub unsafe fn from_raw(
        base: NonNull<u8>,
        len: usize,
        bus_addr: u64,
        release: Option<Box<dyn FnOnce() + Send>>,
    ) -> Self {
        Self {
            base,
            len,
            bus_addr,
            release,
        }
    }

    /// Two handles on the same `pages` of zeroed heap memory that a test calls
    /// `bus_addr`: one for the driver, one for the fake device.
    pub fn pair(pages: usize, bus_addr: u64) -> (Self, Self) {
        let heap: Box<[HeapPage]> = (0..pages).map(|_| HeapPage([0; 4096])).collect();
        let shared = Arc::new(Heap(Box::into_raw(heap)));
        let base = NonNull::new(shared.0.cast::<u8>()).expect("a box is never null");
        let handle = |keep: Arc<Heap>| Self {
            base,
            len: pages * 4096,
            bus_addr,
            release: Some(Box::new(move || drop(keep))),
        };
        (handle(shared.clone()), handle(shared))
    }

    /// The same buffer, which also calls `then` once it has been released: how a fake
    /// machine learns that its driver let go of the memory.
    pub fn when_released(mut self, then: Box<dyn FnOnce() + Send>) -> Self {
        let first = self.release.take();
        self.release = Some(Box::new(move || {
            if let Some(release) = first {
                release();
            }
            then();
        }));
        self
    }

    /// Length in bytes, a multiple of the page size.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bus address of the first byte.
    pub fn bus_addr(&self) -> u64 {
        self.bus_addr
    }

    /// A part as a scatter-list entry.
    ///
    /// # Panics
    /// If it leaves the buffer.
    pub fn segment(&self, offset: usize, len: usize) -> DmaSegment {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        DmaSegment {
            bus_addr: self.bus_addr + offset as u64,
            len: u32::try_from(len).expect("a DMA buffer is far below 4 GiB"),
        }
    }

    /// Copies out bytes that the device is done with.
    ///
    /// # Panics
    /// If the range leaves the buffer.
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) {
        let from = self.at(offset, to.len());
        // What the device wrote before the completion we saw is read after it.
        fence(Ordering::Acquire);
        // SAFETY: `at` checked the range, and `to` is a private slice that cannot overlap it.
        // By the invariants at the top the device does not write there now, and no reference
        // says otherwise.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
        // From here on the compiler takes the bytes for changed: what is checked is the copy.
        fence(Ordering::Acquire);
    }

    /// Copies in bytes that the device does not use yet.
    ///
    /// # Panics
    /// If the range leaves the buffer.
    pub fn write_bytes(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: `at` checked the range, and `from` is a private slice that cannot overlap
        // it. By the invariants at the top the device does not use the bytes now.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        // The bytes are there before the doorbell that the caller rings next.
        fence(Ordering::Release);
    }

    /// One private copy of a descriptor or a part of it, which the device may be writing:
    /// made of one volatile load for each 4 bytes (8 where it is 8 bytes at a multiple of 8).
    ///
    /// # Panics
    /// If it leaves the buffer, or is not made of aligned words of 4 bytes.
    pub fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let at = self.at(offset, size_of::<T>());
        let address = at.addr().get();
        assert!(
            address.is_multiple_of(4) && size_of::<T>().is_multiple_of(4),
            "descriptors are made of aligned words"
        );
        let mut copy = T::new_zeroed();
        let to = copy.as_mut_bytes();
        if to.len() == 8 && address.is_multiple_of(8) {
            // SAFETY: in range by `at`, 8 bytes and 8-aligned by the line above.
            let word = unsafe { at.cast::<u64>().read_volatile() };
            to.copy_from_slice(&word.to_ne_bytes());
        } else {
            for (n, to) in to.chunks_exact_mut(4).enumerate() {
                // SAFETY: `at` checked `size_of::<T>()` bytes, and `4 * n + 4` is within them.
                let word = unsafe { at.cast::<u32>().add(n) };
                // SAFETY: as above; 4-aligned by the assertion.
                to.copy_from_slice(&unsafe { word.read_volatile() }.to_ne_bytes());
            }
        }
        // What the device wrote before this is read after it.
        fence(Ordering::Acquire);
        copy
    }

    /// Writes a descriptor that the device does not use yet.
    ///
    /// # Panics
    /// If it leaves the buffer.
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        self.write_bytes(offset, value.as_bytes());
    }

    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} leave a DMA buffer of {}",
            self.len
        );
        // SAFETY: inside the buffer by the assertion above.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

/// A page of heap memory, aligned as a device's memory is.
#[repr(align(4096))]
struct HeapPage(#[expect(dead_code, reason = "reached through raw pointers only")] [u8; 4096]);

/// The memory behind a [`DmaBuffer::pair`].
struct Heap(*mut [HeapPage]);

// SAFETY: the pointer is only used to free the box, by the last owner.
unsafe impl Send for Heap {}
// SAFETY: as above; nothing is read through a shared `Heap`.
unsafe impl Sync for Heap {}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` in `pair`; both handles hold an `Arc` of it in
        // their `release`, so no handle is left.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// Where DMA memory comes from.
pub trait DmaAllocator {
    /// `pages` machine-contiguous pages (a power of two is cheapest), zeroed, on `node` if
    /// it has any left, else anywhere. `None`: no memory.
    fn alloc(&self, pages: usize, node: Node) -> Option<DmaBuffer>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_any_length_are_read_at_any_word() {
        let (driver, device) = DmaBuffer::pair(1, 0x1000);
        let words: [u32; 8] = core::array::from_fn(|n| 0x0101_0101 << n);
        for offset in [0, 4, 8, 4096 - 32] {
            device.write(offset, &words);
            assert_eq!(driver.read::<u32>(offset + 8), words[2]);
            let long = u64::from(words[2]) | u64::from(words[3]) << 32;
            assert_eq!(driver.read::<u64>(offset + 8), long);
            assert_eq!(driver.read::<[u32; 8]>(offset), words);
        }
    }

    #[test]
    #[should_panic(expected = "aligned words")]
    fn a_descriptor_between_words_is_refused() {
        DmaBuffer::pair(1, 0).0.read::<u32>(2);
    }
}
