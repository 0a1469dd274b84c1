//! Memory that a device reads and writes.
#![allow(
    unsafe_code,
    reason = "the DMA layer: the one place that touches memory a device writes"
)]

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
/// The device may write at any moment, so accesses are volatile copies, as for
/// memory shared with a guest. Dropping it gives the pages back: the owner must
/// have taken the device off them first.
pub struct DmaBuffer {
    base: NonNull<u8>,
    len: usize,
    bus_addr: u64,
    release: Option<Box<dyn FnOnce() + Send>>,
}

// SAFETY: reached through volatile copies only, valid on any CPU; `release` is `Send`.
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

    /// Copies bytes out.
    ///
    /// # Panics
    /// If the range leaves the buffer.
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) {
        let from = self.at(offset, to.len());
        // What the device wrote before the completion we saw is read after it.
        fence(Ordering::Acquire);
        // SAFETY: `at` checked the range; the destination is a private slice. A device
        // write racing with this copy can only change the bytes copied.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If the range leaves the buffer.
    pub fn write_bytes(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: `at` checked the range; `from` is a private slice that cannot overlap it.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        // The bytes are there before the doorbell that the caller rings next.
        fence(Ordering::Release);
    }

    /// One private copy of a descriptor. Aligned 4- and 8-byte structures are read with
    /// a single load.
    ///
    /// # Panics
    /// If it leaves the buffer.
    pub fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let at = self.at(offset, size_of::<T>());
        let mut copy = T::new_zeroed();
        match (size_of::<T>(), at.addr().get() % 8) {
            // SAFETY: in range by `at`, 4 bytes and 4-aligned.
            (4, 0 | 4) => copy
                .as_mut_bytes()
                .copy_from_slice(&unsafe { at.cast::<u32>().read_volatile() }.to_ne_bytes()),
            // SAFETY: in range by `at`, 8 bytes and 8-aligned.
            (8, 0) => copy
                .as_mut_bytes()
                .copy_from_slice(&unsafe { at.cast::<u64>().read_volatile() }.to_ne_bytes()),
            _ => self.read_bytes(offset, copy.as_mut_bytes()),
        }
        fence(Ordering::Acquire);
        copy
    }

    /// Writes a descriptor.
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
