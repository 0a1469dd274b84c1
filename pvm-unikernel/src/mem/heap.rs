//! The heap: talc over blocks of frames, which it takes when it needs and gives back to
//! the frame allocator when they are empty.

use super::buddy;
use super::frames::Frames;
use super::layout::{DIRECT_BASE, PAGE};
use crate::arch::SpinLock;
use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicUsize, Ordering};
use hal::Node;
use talc::{TalcLock, source::GlobalAllocSource};

/// Where the heap takes its blocks from.
#[derive(Debug)]
struct Blocks;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: blocks are whole runs of frames, page-aligned, owned by the heap until `dealloc`.
unsafe impl GlobalAlloc for Blocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > 4096 {
            return core::ptr::null_mut();
        }
        let pages = layout.size().div_ceil(4096);
        let Some(frames) = Frames::alloc_dirty(pages, Node(0)) else {
            return core::ptr::null_mut();
        };
        HELD.fetch_add(frames.len(), Ordering::Relaxed);
        let at = frames.va();
        frames.into_raw();
        at.as_ptr()
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let pages = layout.size().div_ceil(4096);
        let mfn = (block.addr() as u64 - DIRECT_BASE) / PAGE;
        HELD.fetch_sub(pages * 4096, Ordering::Relaxed);
        // SAFETY: the run that `alloc` gave for the same layout.
        drop(unsafe { Frames::from_raw(mfn, pages) });
    }
}

/// 64 KiB: small enough for `dom0_mem=64M`, big enough to be rare.
const BLOCK: usize = 64 << 10;

#[global_allocator]
static HEAP: TalcLock<SpinLock<()>, GlobalAllocSource<Blocks>> =
    TalcLock::new(GlobalAllocSource::with_block_size(Blocks, BLOCK));

/// Bytes of frames that the heap holds.
pub fn heap_held_bytes() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// Bytes of them that are allocated, as asked for: to the byte, for leaks to show.
pub fn heap_used_bytes() -> usize {
    HEAP.lock().counters().allocated_bytes
}

const _: () = assert!(BLOCK.div_ceil(4096) <= 1 << (buddy::ORDERS - 1));
