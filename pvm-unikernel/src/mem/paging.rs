//! Page tables after boot: read through the direct map, changed by hypercalls.
//!
//! Tables are made on demand and kept for ever. A new entry needs no flush; whoever
//! changes or removes one flushes.

use super::buddy;
use super::layout::{PAGE, direct, pointer};
use crate::arch::SpinLock;
use crate::arch::hypercall::{Errno, mmu};
use core::sync::atomic::{AtomicU64, Ordering};
use xen_abi::DomId;
use xen_abi::xen::{MMU_PT_UPDATE_NO_TRANSLATE, MmuUpdate};

/// Present, user (a PV kernel runs outside ring 0), accessed, dirty.
const BASE_FLAGS: u64 = 0x65;
/// Writable.
const WRITABLE: u64 = 2;
/// Not executable.
const NO_EXECUTE: u64 = 1 << 63;
/// Cache disabled, write through.
const UNCACHED: u64 = 0x18;
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;

/// Frame mapped for reading and writing.
pub const fn data(mfn: u64) -> u64 {
    mfn << 12 | BASE_FLAGS | WRITABLE | NO_EXECUTE
}

/// Frame mapped for reading.
pub const fn constant(mfn: u64) -> u64 {
    mfn << 12 | BASE_FLAGS | NO_EXECUTE
}

/// Frame mapped for reading and executing.
pub const fn code(mfn: u64) -> u64 {
    mfn << 12 | BASE_FLAGS
}

/// Device registers.
pub const fn registers(mfn: u64) -> u64 {
    mfn << 12 | BASE_FLAGS | WRITABLE | UNCACHED | NO_EXECUTE
}

/// A lower table.
pub const fn table(mfn: u64) -> u64 {
    mfn << 12 | BASE_FLAGS | WRITABLE
}

/// The frame an entry names, if it is present.
pub const fn frame(entry: u64) -> Option<u64> {
    if entry & 1 == 0 {
        None
    } else {
        Some((entry & FRAME_MASK) >> 12)
    }
}

static ROOT: AtomicU64 = AtomicU64::new(0);
/// Held while a missing table is made.
static MAKING: SpinLock<()> = SpinLock::new(());

/// Frame of the root table, which all vCPUs share.
pub fn root() -> u64 {
    ROOT.load(Ordering::Relaxed)
}

/// Says where the root is, once the direct map stands.
pub(super) fn set_root(mfn: u64) {
    ROOT.store(mfn, Ordering::Relaxed);
}

fn index(va: u64, level: u32) -> u64 {
    va >> (12 + 9 * (level - 1)) & 511
}

fn read(table_mfn: u64, index: u64) -> u64 {
    // SAFETY: `table_mfn` came from the root or an entry above: a page table, which the
    // direct map shows read-only and which is never given back; Xen writes it atomically.
    unsafe { pointer::<u64>(direct(table_mfn) + index * 8).read_volatile() }
}

/// The table of `level` (1 to 3) that `va` goes through, if it is there.
fn table_at(va: u64, level: u32) -> Option<u64> {
    let mut mfn = root();
    for above in (level + 1..=4).rev() {
        mfn = frame(read(mfn, index(va, above)))?;
    }
    Some(mfn)
}

/// The L1 entry for `va`; 0 if there is none.
pub fn lookup(va: u64) -> u64 {
    table_at(va, 1).map_or(0, |l1| read(l1, index(va, 1)))
}

/// The machine frame behind an address of ours.
pub fn frame_of(va: u64) -> Option<u64> {
    frame(lookup(va))
}

/// The L1 table for `va`, made if missing.
fn ensure_l1(va: u64) -> Result<u64, Errno> {
    if let Some(l1) = table_at(va, 1) {
        return Ok(l1);
    }
    let _making = MAKING.lock();
    let mut mfn = root();
    for level in (2..=4).rev() {
        let at = index(va, level);
        mfn = match frame(read(mfn, at)) {
            Some(below) => below,
            None => {
                let new = buddy::table_frame().ok_or(Errno::ENOMEM)?;
                make_table(new)?;
                let hook = MmuUpdate {
                    ptr: (mfn << 12) + at * 8,
                    val: table(new),
                };
                // SAFETY: fills an empty slot with an empty table: maps nothing.
                unsafe { mmu::update(&[hook], DomId::SELF) }.map_err(|(_, errno)| errno)?;
                new
            }
        };
    }
    Ok(mfn)
}

/// Turns an unused frame into an empty table: cleared, then read-only for good.
fn make_table(mfn: u64) -> Result<(), Errno> {
    let page = pointer::<u8>(direct(mfn));
    // SAFETY: `table_frame` gave the frame away, so nobody else has it.
    unsafe { page.write_bytes(0, 4096) };
    // SAFETY: as above; the kernel only reads it from now on.
    unsafe { mmu::update_va_mapping(direct(mfn), constant(mfn), mmu::Flush::Local) }
}

/// Makes the tables for a range, so that entries can be set by anyone.
pub fn ensure(va: u64, pages: u64) -> Result<(), Errno> {
    let mut at = va;
    while at < va + pages * PAGE {
        ensure_l1(at)?;
        at = (at | 0x1f_ffff) + 1;
    }
    Ok(())
}

/// Updates in one hypercall: about 60 us under emulation.
const BATCH: usize = 128;

/// Sets `pages` entries from `va` up to what `entry` says; `owner` owns the frames.
/// On failure says how many were set.
///
/// # Safety
/// No entry unmaps or remaps memory that a Rust reference or owner still covers; the caller
/// flushes if an entry was present before.
pub unsafe fn set(
    va: u64,
    pages: u64,
    owner: DomId,
    mut entry: impl FnMut(u64) -> u64,
) -> Result<(), (u64, Errno)> {
    let mut updates = [MmuUpdate::default(); BATCH];
    let mut done = 0;
    while done < pages {
        let at = va + done * PAGE;
        let l1 = ensure_l1(at).map_err(|errno| (done, errno))?;
        let first = index(at, 1);
        let count = (512 - first).min(pages - done).min(BATCH as u64);
        let batch = &mut updates[..usize::try_from(count).unwrap_or(BATCH)];
        for (update, i) in batch.iter_mut().zip(0..) {
            *update = MmuUpdate {
                ptr: (l1 << 12) + (first + i) * 8,
                val: entry(done + i),
            };
        }
        // SAFETY: the caller's promise.
        unsafe { mmu::update(batch, owner) }
            .map_err(|(some, errno)| (done + some as u64, errno))?;
        done += count;
    }
    Ok(())
}

/// Sets one entry to a machine frame of a translated domain (PVH), whose frames
/// [`set`] would take for guest frame numbers.
///
/// # Safety
/// As for [`set`].
pub unsafe fn set_machine_frame(va: u64, owner: DomId, mfn: u64) -> Result<(), Errno> {
    let l1 = ensure_l1(va)?;
    let update = MmuUpdate {
        ptr: ((l1 << 12) + index(va, 1) * 8) | MMU_PT_UPDATE_NO_TRANSLATE,
        val: data(mfn),
    };
    // SAFETY: the caller's promise.
    unsafe { mmu::update(&[update], owner) }.map_err(|(_, errno)| errno)
}
