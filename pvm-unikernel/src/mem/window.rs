//! Address ranges for mappings of what is not ours: foreign memory, grants, devices.

use super::layout::{PAGE, WINDOW_BASE, WINDOW_END, pointer};
use super::paging;
use crate::arch::SpinLock;
use crate::arch::hypercall::Errno;
use alloc::collections::BTreeMap;
use core::ptr::NonNull;

/// Free ranges by start, with their length in pages, and where the unused rest begins.
struct Space {
    free: BTreeMap<u64, u64>,
    next: u64,
}

static SPACE: SpinLock<Space> = SpinLock::new(Space {
    free: BTreeMap::new(),
    next: WINDOW_BASE,
});

impl Space {
    fn take(&mut self, pages: u64) -> Option<u64> {
        let found = self.free.iter().find(|(_, len)| **len >= pages);
        if let Some((&start, &len)) = found {
            self.free.remove(&start);
            if len > pages {
                self.free.insert(start + pages * PAGE, len - pages);
            }
            return Some(start);
        }
        let start = self.next;
        let end = start.checked_add(pages.checked_mul(PAGE)?)?;
        if end > WINDOW_END {
            return None;
        }
        self.next = end;
        Some(start)
    }

    fn put(&mut self, mut start: u64, mut pages: u64) {
        if let Some((&before, &len)) = self.free.range(..start).next_back()
            && before + len * PAGE == start
        {
            self.free.remove(&before);
            start = before;
            pages += len;
        }
        if let Some(after) = self.free.remove(&(start + pages * PAGE)) {
            pages += after;
        }
        self.free.insert(start, pages);
    }
}

/// A reserved range whose page tables exist and whose entries are empty. Whoever maps into
/// it unmaps and flushes before dropping it.
#[derive(Debug)]
pub struct Window {
    va: u64,
    pages: u64,
}

impl Window {
    /// Reserves `pages` pages.
    ///
    /// # Errors
    /// `ENOMEM`: no address space, or no frame for a page table; `EINVAL`: no page asked for.
    pub fn reserve(pages: usize) -> Result<Self, Errno> {
        let pages = u64::try_from(pages).map_err(|_| Errno::ENOMEM)?;
        if pages == 0 {
            return Err(Errno::EINVAL);
        }
        let va = SPACE.lock().take(pages).ok_or(Errno::ENOMEM)?;
        let window = Self { va, pages };
        paging::ensure(va, pages)?;
        Ok(window)
    }

    /// First address.
    pub fn va(&self) -> u64 {
        self.va
    }

    /// First address, as a pointer.
    pub fn pointer(&self) -> NonNull<u8> {
        NonNull::new(pointer(self.va)).expect("windows are not at 0")
    }

    /// Pages reserved.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The machine frame that is mapped at page `index`.
    pub fn frame(&self, index: u64) -> Option<u64> {
        assert!(index < self.pages);
        paging::frame_of(self.va + index * PAGE)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        SPACE.lock().put(self.va, self.pages);
    }
}

/// A range that is never given back.
///
/// # Panics
/// If 1 TiB of windows is used up.
pub(super) fn reserve_permanent(pages: u64) -> u64 {
    let taken = SPACE.lock().take(pages);
    taken.expect("windows are used up")
}
