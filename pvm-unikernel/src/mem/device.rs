//! Device registers and firmware tables.

use super::layout::{PAGE, pointer};
use super::{paging, window};
use crate::arch::hypercall::Errno;
use core::ptr::NonNull;
use xen_abi::DomId;

/// Maps `len` bytes of device registers at a machine address, uncached, for ever.
///
/// Pages with an MSI-X table come out read-only, whatever is asked: Xen owns them.
///
/// # Errors
/// `EPERM`, `EINVAL`: not memory that dom0 may map.
pub fn map_mmio(phys: u64, len: usize) -> Result<NonNull<u8>, Errno> {
    map(phys, len, paging::registers)
}

/// Maps `len` bytes of firmware tables at a machine address, read-only, for ever.
/// The address need not be aligned.
///
/// # Errors
/// As for [`map_mmio`].
pub fn map_phys_ro(phys: u64, len: usize) -> Result<NonNull<u8>, Errno> {
    map(phys, len, paging::constant)
}

fn map(phys: u64, len: usize, entry: fn(u64) -> u64) -> Result<NonNull<u8>, Errno> {
    let offset = phys % PAGE;
    let end = u64::try_from(len)
        .ok()
        .and_then(|len| phys.checked_add(len))
        .filter(|end| *end < 1 << 52 && len > 0)
        .ok_or(Errno::EINVAL)?;
    let first = phys / PAGE;
    let pages = end.div_ceil(PAGE) - first;
    let va = window::reserve_permanent(pages);
    // SAFETY: a fresh range; the frames belong to devices or firmware, never to Rust.
    unsafe { paging::set(va, pages, DomId::IO, |i| entry(first + i)) }
        .map_err(|(_, errno)| errno)?;
    Ok(NonNull::new(pointer(va + offset)).expect("windows are not at 0"))
}
