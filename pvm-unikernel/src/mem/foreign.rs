//! Other domains' memory, mapped page by page into adjacent addresses.
//!
//! A mapping keeps its pages alive, so nothing here faults when the domain dies; but the
//! domain stays as a zombie until the last mapping goes. Xen flushes no TLB when an entry
//! is cleared, so dropping a map flushes: on every CPU, or only here for a map that never
//! left this vCPU, whose addresses come from ranges that only this vCPU uses.

use super::paging;
use super::window::Window;
use crate::arch::hypercall::{Errno, mmu};
use crate::arch::{MAX_VCPUS, PerCpu};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::marker::PhantomData;
use xen_abi::DomId;
use xen_ring::SharedPages;

/// Why pages could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapError {
    /// Which page of the list.
    pub index: u64,
    /// `EINVAL`: the guest has a hole there; `ESRCH`: no such domain; `ENOMEM`: no table.
    pub errno: Errno,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} of the list: {}", self.index, self.errno)
    }
}

impl core::error::Error for MapError {}

/// Maps `frames` (guest numbers for PVH, machine numbers for PV) of `domain` into `window`.
fn map_into(
    window: &Window,
    domain: DomId,
    frames: &[u64],
    writable: bool,
) -> Result<(), MapError> {
    let entry = if writable {
        paging::data
    } else {
        paging::constant
    };
    let pages = frames.len() as u64;
    let frame_at = |i: u64| frames[usize::try_from(i).unwrap_or(usize::MAX)];
    // SAFETY: the window is empty and ours; what it will show belongs to another domain and
    // is reached through `SharedPages` only.
    let mapped = unsafe { paging::set(window.va(), pages, domain, |i| entry(frame_at(i))) };
    mapped.map_err(|(index, errno)| {
        clear(window, index);
        mmu::flush_all();
        MapError { index, errno }
    })
}

/// Clears the first `pages` entries of a window.
fn clear(window: &Window, pages: u64) {
    // SAFETY: the caller drops the object through which the pages were reached.
    let cleared = unsafe { paging::set(window.va(), pages, DomId::SELF, |_| 0) };
    cleared.expect("an own entry can be cleared");
}

/// Clears bytes of a mapped page run fast.
fn zero(pages: &SharedPages, base: *mut u8, offset: usize, len: usize) {
    assert!(
        offset
            .checked_add(len)
            .is_some_and(|end| end <= pages.len()),
        "{len} bytes at {offset} leave the mapping"
    );
    // SAFETY: inside the mapping; it is another domain's memory, to which no Rust reference
    // exists, and `rep stosb` does not care who else writes.
    unsafe {
        core::arch::asm!(
            "rep stosb",
            inout("rdi") base.wrapping_add(offset) => _,
            inout("rcx") len => _,
            in("al") 0u8,
            options(nostack, preserves_flags),
        );
    }
}

/// Foreign pages, reachable from every vCPU until dropped.
#[derive(Debug)]
pub struct ForeignMap {
    pages: SharedPages,
    va: u64,
}

impl ForeignMap {
    /// Maps all of `frames` (guest frame numbers for PVH, machine ones for PV) of `domain`,
    /// adjacent and in order, or none.
    ///
    /// # Errors
    /// Which page failed, and why.
    pub fn new(domain: DomId, frames: &[u64], writable: bool) -> Result<Self, MapError> {
        let window = Window::reserve(frames.len()).map_err(|errno| MapError { index: 0, errno })?;
        map_into(&window, domain, frames, writable)?;
        let (va, base, len) = (window.va(), window.pointer(), frames.len() * 4096);
        let release = Box::new(move || {
            clear(&window, window.pages());
            mmu::flush_all();
            drop(window);
        });
        // SAFETY: mapped until `release` runs. A read-only map faults on writes, which is a
        // bug of the caller and ends in a panic, not in undefined behaviour.
        let pages = unsafe { SharedPages::from_raw(base, len, Some(release)) };
        Ok(Self { pages, va })
    }

    /// The memory.
    pub fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// Writes zeroes, as fast as the CPU can.
    ///
    /// # Panics
    /// If the range leaves the mapping.
    pub fn zero(&self, offset: usize, len: usize) {
        zero(&self.pages, super::layout::pointer(self.va), offset, len);
    }

    /// The machine frame of page `index`, which tells its node.
    pub fn frame(&self, index: usize) -> Option<u64> {
        assert!(index * 4096 < self.pages.len());
        paging::frame_of(self.va + index as u64 * 4096)
    }

    /// The memory alone, unmapped when it is dropped.
    pub fn into_shared(self) -> SharedPages {
        self.pages
    }
}

/// Ranges that only the running vCPU uses, by length, most recently used last.
static LOCAL: PerCpu<RefCell<Vec<Window>>> =
    PerCpu::new([const { RefCell::new(Vec::new()) }; MAX_VCPUS]);
/// Ranges a vCPU keeps for itself at most.
const LOCAL_WINDOWS: usize = 8;

/// Foreign pages that are mapped and unmapped on one vCPU, with a flush of its TLB only.
#[derive(Debug)]
pub struct LocalForeignMap {
    pages: SharedPages,
    window: Option<Window>,
    mapped: u64,
    /// Not `Send`: other vCPUs may hold stale translations of the range.
    here: PhantomData<*const ()>,
}

impl LocalForeignMap {
    /// As [`ForeignMap::new`].
    ///
    /// # Errors
    /// As there.
    pub fn new(domain: DomId, frames: &[u64], writable: bool) -> Result<Self, MapError> {
        let kept = {
            let mut local = LOCAL.here().borrow_mut();
            let fits = |window: &Window| window.pages() >= frames.len() as u64;
            local.iter().rposition(fits).map(|at| local.remove(at))
        };
        let window = match kept {
            Some(window) => window,
            // Lengths in steps, so that a kept range fits the next map too.
            None => Window::reserve(frames.len().next_power_of_two())
                .map_err(|errno| MapError { index: 0, errno })?,
        };
        map_into(&window, domain, frames, writable)?;
        // SAFETY: mapped until `drop` below, which ends `pages` too.
        let pages = unsafe { SharedPages::from_raw(window.pointer(), frames.len() * 4096, None) };
        Ok(Self {
            pages,
            mapped: frames.len() as u64,
            window: Some(window),
            here: PhantomData,
        })
    }

    /// Maps one machine frame that belongs to `domain`, whatever its type: what
    /// `XENMEM_acquire_resource` gives.
    ///
    /// # Errors
    /// As for [`ForeignMap::new`].
    pub fn of_machine_frame(domain: DomId, mfn: u64) -> Result<Self, MapError> {
        let failed = |errno| MapError { index: 0, errno };
        let window = Window::reserve(1).map_err(failed)?;
        // SAFETY: the window is empty and ours; the frame belongs to another domain.
        unsafe { paging::set_machine_frame(window.va(), domain, mfn) }.map_err(failed)?;
        // SAFETY: mapped until `drop` below, which ends `pages` too.
        let pages = unsafe { SharedPages::from_raw(window.pointer(), 4096, None) };
        Ok(Self {
            pages,
            mapped: 1,
            window: Some(window),
            here: PhantomData,
        })
    }

    /// The memory.
    pub fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// Writes zeroes, as fast as the CPU can.
    ///
    /// # Panics
    /// If the range leaves the mapping.
    pub fn zero(&self, offset: usize, len: usize) {
        let base = self.window.as_ref().map(|window| window.pointer().as_ptr());
        zero(&self.pages, base.expect("kept until drop"), offset, len);
    }

    /// The machine frame of page `index`, which tells its node.
    pub fn frame(&self, index: usize) -> Option<u64> {
        self.window
            .as_ref()
            .and_then(|window| window.frame(index as u64))
    }
}

impl Drop for LocalForeignMap {
    fn drop(&mut self) {
        let Some(window) = self.window.take() else {
            return;
        };
        clear(&window, self.mapped);
        mmu::flush_local();
        let mut local = LOCAL.here().borrow_mut();
        if local.len() < LOCAL_WINDOWS {
            local.push(window);
        } else {
            // Back to ranges that any vCPU may use: none may hold a stale translation.
            mmu::flush_all();
            drop(window);
        }
    }
}
