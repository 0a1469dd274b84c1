//! `memory_op`: reservations.

use super::{Errno, address, raw};
use xen_abi::DomId;
use xen_abi::memory as abi;
use xen_abi::xen::hypercall::MEMORY_OP;

/// A `memory_op` that takes a structure.
///
/// # Errors
/// Xen's.
///
/// # Safety
/// `argument` is the command's structure, the addresses in it are valid for what Xen
/// reads and writes, and no live memory is given away.
pub unsafe fn op<T>(command: u32, argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: the caller's promise.
    unsafe { raw(MEMORY_OP, [u64::from(command), address(argument), 0, 0, 0]) }
}

/// `XENMEMF_node`, and `XENMEMF_exact_node_request` if asked.
pub fn node_flags(node: u32, exact: bool) -> u32 {
    ((node + 1) << 8)
        | if exact {
            abi::XENMEMF_EXACT_NODE_REQUEST
        } else {
            0
        }
}

/// Populates `domain` with extents of 2^`order` pages: `frames` holds guest frame numbers;
/// for a PV domain Xen replaces them by machine frame numbers. Returns how many were done.
///
/// Populating a frame that is there already leaks the old one until the domain dies.
///
/// # Errors
/// `ESRCH`, `EINVAL`; running out of memory is a short count instead.
pub fn populate(
    domain: DomId,
    frames: &mut [u64],
    order: u32,
    mem_flags: u32,
) -> Result<usize, Errno> {
    let mut argument = reservation(domain, frames, order, mem_flags);
    // SAFETY: Xen reads and writes `frames`, which is borrowed for the call; the call adds
    // memory and takes none away.
    let done = unsafe { op(abi::XENMEM_POPULATE_PHYSMAP, &mut argument)? };
    Ok(usize::try_from(done)
        .unwrap_or(frames.len())
        .min(frames.len()))
}

/// Takes frames (machine numbers for PV, guest numbers else) from `domain`, for ever.
/// Returns how many were done. Xen hands uncleared frames on with their contents.
///
/// # Errors
/// `ESRCH`, `EINVAL`.
///
/// # Safety
/// If `domain` is this one, nobody owns or maps the frames any more.
pub unsafe fn decrease(domain: DomId, frames: &mut [u64], order: u32) -> Result<usize, Errno> {
    let mut argument = reservation(domain, frames, order, 0);
    // SAFETY: Xen reads `frames`; the caller vouches for the effect.
    let done = unsafe { op(abi::XENMEM_DECREASE_RESERVATION, &mut argument)? };
    Ok(usize::try_from(done)
        .unwrap_or(frames.len())
        .min(frames.len()))
}

fn reservation(domain: DomId, frames: &mut [u64], order: u32, mem_flags: u32) -> abi::Reservation {
    abi::Reservation {
        extent_start: frames.as_mut_ptr().expose_provenance() as u64,
        nr_extents: frames.len() as u64,
        extent_order: order,
        mem_flags,
        domid: domain.0,
        pad: [0; 6],
    }
}

/// Pages that `domain` owns.
///
/// # Errors
/// `ESRCH`.
pub fn current_reservation(domain: DomId) -> Result<u64, Errno> {
    domain_query(abi::XENMEM_CURRENT_RESERVATION, domain)
}

/// Pages that `domain` may own.
///
/// # Errors
/// `ESRCH`.
pub fn maximum_reservation(domain: DomId) -> Result<u64, Errno> {
    domain_query(abi::XENMEM_MAXIMUM_RESERVATION, domain)
}

fn domain_query(command: u32, domain: DomId) -> Result<u64, Errno> {
    let mut argument = abi::MemoryDomain { domid: domain.0 };
    // SAFETY: Xen reads one domid.
    unsafe { op(command, &mut argument) }
}
