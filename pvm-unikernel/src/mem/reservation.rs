//! Taking memory from Xen on a chosen node, and giving it back clean.

use super::layout::{DIRECT_FRAMES, direct};
use super::{Frames, buddy, paging};
use crate::arch::hypercall::{Errno, memory, mmu};
use core::sync::atomic::{AtomicU64, Ordering};
use hal::Node;
use xen_abi::DomId;

/// Guest frame numbers for new pages: they end up in Xen's machine-to-frame table, which
/// nothing here reads, so any that the boot reservation did not use will do.
static NEXT_GPFN: AtomicU64 = AtomicU64::new(1 << 40 >> 12);

/// log2 of pages asked for at once, best first.
const ORDERS: [u32; 3] = [9, 4, 0];

/// Asks Xen for `pages` pages on `node` exactly, and frees them into the allocator.
/// Returns how many came: fewer if the node, or dom0's `dom0_mem=max:`, has no more.
///
/// # Errors
/// Xen's reason if none came for another reason.
pub fn grow(node: Node, pages: u64) -> Result<u64, Errno> {
    let mut got = 0;
    for order in ORDERS {
        while pages - got >= 1 << order {
            let gpfn = NEXT_GPFN.fetch_add(1 << order, Ordering::Relaxed);
            let mut extent = [gpfn];
            let flags = memory::node_flags(node.0, true);
            if memory::populate(DomId::SELF, &mut extent, order, flags)? == 0 {
                break;
            }
            adopt(extent[0], 1 << order)?;
            got += 1 << order;
        }
    }
    Ok(got)
}

/// Grows by what an allocation of a run of `pages` wants: 2 MiB if Xen has them in one
/// piece, else just the run; on `node`, or if not `exact` elsewhere rather than not at all.
pub(super) fn grow_for(node: Node, pages: u64, exact: bool) {
    let needed = pages.next_power_of_two().trailing_zeros();
    let flags = memory::node_flags(node.0, exact);
    for order in [needed.max(9), needed] {
        let mut extent = [NEXT_GPFN.fetch_add(1 << order, Ordering::Relaxed)];
        if memory::populate(DomId::SELF, &mut extent, order, flags) == Ok(1) {
            if let Err(errno) = adopt(extent[0], 1 << order) {
                log::error!("memory: a new run cannot be mapped: {errno}");
            }
            return;
        }
        if order == needed {
            return;
        }
    }
}

/// Gives free memory of `node` back to Xen, in blocks of 2 MiB, but for `keep` pages.
/// Returns how many pages went.
///
/// # Errors
/// As for [`give_back`]; what went before stays given.
pub fn shrink(node: Node, keep: u64) -> Result<u64, Errno> {
    const BLOCK: u64 = 512;
    let mut gone = 0;
    while buddy::free_on(node.0) >= keep + BLOCK {
        let Some(mfn) = buddy::take(node.0, BLOCK) else {
            break;
        };
        // SAFETY: `take` gave the run to us.
        give_back(unsafe { Frames::from_raw(mfn, 512) })?;
        gone += BLOCK;
    }
    Ok(gone)
}

/// Maps a new run and puts it on the free lists.
fn adopt(mfn: u64, pages: u64) -> Result<(), Errno> {
    let add = || -> Result<(), Errno> {
        if mfn + pages > DIRECT_FRAMES {
            return Err(Errno::ERANGE);
        }
        // SAFETY: the frames are new; their place in the direct map is empty.
        unsafe { paging::set(direct(mfn), pages, DomId::SELF, |i| paging::data(mfn + i)) }
            .map_err(|(_, errno)| errno)?;
        buddy::note(mfn, pages)
    };
    if let Err(errno) = add() {
        // SAFETY: clears what was mapped; entries that were not are empty anyway.
        let cleared = unsafe { paging::set(direct(mfn), pages, DomId::SELF, |_| 0) };
        mmu::flush_all();
        if cleared.is_ok() {
            // SAFETY: nobody has the run.
            unsafe { return_run(mfn, pages) };
        }
        return Err(errno);
    }
    // SAFETY: mapped and noted just now, owned by nobody.
    unsafe { buddy::free(mfn, pages) };
    Ok(())
}

/// Gives frames back to Xen: cleared, because Xen hands them to the next guest as they
/// are, then unmapped everywhere.
///
/// # Errors
/// Xen's reason; the frames are lost to both sides then, which is logged.
pub fn give_back(mut frames: Frames) -> Result<(), Errno> {
    frames.bytes().fill(0);
    let (mfn, pages) = frames.into_raw();
    let pages = pages as u64;
    // SAFETY: the owner gave them up just now.
    unsafe { paging::set(direct(mfn), pages, DomId::SELF, |_| 0) }.map_err(|(done, errno)| {
        log::error!("memory: {done} of {pages} frames at {mfn:#x} unmapped: {errno}");
        errno
    })?;
    mmu::flush_all();
    buddy::forget(mfn, pages);
    // SAFETY: unmapped above, and off the allocator.
    let back = unsafe { return_run(mfn, pages) };
    if back < pages {
        log::error!("memory: Xen took back {back} of {pages} frames at {mfn:#x}");
        return Err(Errno::EBUSY);
    }
    Ok(())
}

/// Takes a run out of the reservation. Returns how many frames Xen took.
///
/// # Safety
/// Nobody owns or maps the run.
unsafe fn return_run(mfn: u64, pages: u64) -> u64 {
    let mut list = [0; 64];
    let mut done = 0;
    while done < pages {
        let count = (pages - done).min(list.len() as u64);
        let batch = &mut list[..usize::try_from(count).unwrap_or(0)];
        for (entry, i) in batch.iter_mut().zip(0..) {
            *entry = mfn + done + i;
        }
        // SAFETY: the caller's promise.
        let taken = unsafe { memory::decrease(DomId::SELF, batch, 0) }.unwrap_or(0) as u64;
        done += taken;
        if taken < count {
            break;
        }
    }
    done
}

/// Pages that Xen says this domain owns, and may own.
pub fn of_domain() -> (u64, u64) {
    let ask = |answer: Result<u64, Errno>| answer.unwrap_or(0);
    (
        ask(memory::current_reservation(DomId::SELF)),
        ask(memory::maximum_reservation(DomId::SELF)),
    )
}
