//! Owned runs of frames.

use super::layout::{PAGE, direct, pointer};
use super::{buddy, reservation};
use alloc::boxed::Box;
use core::ptr::NonNull;
use hal::{DmaAllocator, DmaBuffer, Node};
use xen_ring::SharedPages;

/// A machine-contiguous run of frames; dropping it frees them.
#[derive(Debug)]
pub struct Frames {
    mfn: u64,
    pages: usize,
}

impl Frames {
    /// The most pages in one run.
    pub const MAX_PAGES: usize = 1 << (buddy::ORDERS - 1);

    /// `pages` zeroed frames, from `node` if it has any, else from Xen on that node, else
    /// from wherever there are some. `None`: no memory, or a run longer than
    /// [`Self::MAX_PAGES`].
    pub fn alloc(pages: usize, node: Node) -> Option<Self> {
        let frames = Self::alloc_dirty(pages, node)?;
        // SAFETY: the run was just taken, so this is its only owner.
        unsafe { pointer::<u8>(direct(frames.mfn)).write_bytes(0, frames.len()) };
        Some(frames)
    }

    /// The same with whatever the frames hold.
    pub(crate) fn alloc_dirty(pages: usize, node: Node) -> Option<Self> {
        let count = u64::try_from(pages).ok()?;
        // Before the nodes are known, all frames count for node 0.
        let node = if buddy::knows_nodes() { node } else { Node(0) };
        let taken = buddy::take(node.0, count).or_else(|| {
            reservation::grow_for(node, count, buddy::knows_nodes());
            buddy::take(node.0, count).or_else(|| buddy::take_anywhere(count))
        });
        let taken = taken.or_else(|| {
            // Guests may have all of one node.
            reservation::grow_for(node, count, false);
            buddy::take_anywhere(count)
        });
        taken.map(|mfn| Self { mfn, pages })
    }

    /// Takes over a run that the allocator or `into_raw` gave.
    ///
    /// # Safety
    /// The run is owned by the caller.
    pub(super) unsafe fn from_raw(mfn: u64, pages: usize) -> Self {
        Self { mfn, pages }
    }

    /// Gives the run up without freeing it.
    pub(super) fn into_raw(self) -> (u64, usize) {
        let raw = (self.mfn, self.pages);
        core::mem::forget(self);
        raw
    }

    /// First machine frame number.
    pub fn mfn(&self) -> u64 {
        self.mfn
    }

    /// Frames in the run.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes in the run.
    pub fn len(&self) -> usize {
        self.pages * 4096
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// First byte.
    pub fn va(&self) -> NonNull<u8> {
        NonNull::new(pointer(direct(self.mfn))).expect("the direct map is not at 0")
    }

    /// The node the run lies on.
    pub fn node(&self) -> Node {
        Node(buddy::node_of(self.mfn))
    }

    /// The bytes, while neither a guest nor a device can reach them.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: this value owns the run, which is mapped writable; sharing it with a peer
        // goes through `into_shared_pages` or `into_dma`, which consume it.
        unsafe { core::slice::from_raw_parts_mut(self.va().as_ptr(), self.len()) }
    }

    /// Lends the run to a device; freed when the buffer is dropped.
    pub fn into_dma(self) -> DmaBuffer {
        let (base, len, bus) = (self.va(), self.len(), self.mfn * PAGE);
        let release = Box::new(move || drop(self));
        // SAFETY: the run is mapped, machine-contiguous and owned until `release` drops it.
        unsafe { DmaBuffer::from_raw(base, len, bus, Some(release)) }
    }

    /// Shares the run with a domain; freed when the object is dropped, by when the owner
    /// must have ended the grant.
    pub fn into_shared_pages(self) -> SharedPages {
        let (base, len) = (self.va(), self.len());
        let release = Box::new(move || drop(self));
        // SAFETY: the run is mapped and owned until `release` drops it.
        unsafe { SharedPages::from_raw(base, len, Some(release)) }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: this was the owner.
        unsafe { buddy::free(self.mfn, self.pages as u64) };
    }
}

/// DMA memory from the frame allocator.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeFrames;

impl DmaAllocator for NodeFrames {
    fn alloc(&self, pages: usize, node: Node) -> Option<DmaBuffer> {
        Frames::alloc(pages, node).map(Frames::into_dma)
    }
}
