//! Page tables: `mmu_update`, `mmuext_op`, `update_va_mapping`.

use super::{Errno, raw};
use xen_abi::DomId;
use xen_abi::xen::{MmuUpdate, MmuextOp, hypercall, mmuext};

/// How far a change of one mapping reaches at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing is flushed: the entry was empty, or the caller flushes later.
    None,
    /// The address on this CPU.
    Local,
    /// The address on every CPU.
    All,
}

impl Flush {
    fn flags(self) -> u64 {
        use xen_abi::xen::{UVMF_ALL, UVMF_INVLPG};
        match self {
            Self::None => 0,
            Self::Local => UVMF_INVLPG,
            Self::All => UVMF_INVLPG | UVMF_ALL,
        }
    }
}

/// Carries out page-table updates in order; `owner` owns the frames in the new values.
///
/// # Errors
/// How many were done, and why the next was not.
///
/// # Safety
/// No update unmaps or remaps memory that a Rust reference or owner still covers.
pub unsafe fn update(updates: &[MmuUpdate], owner: DomId) -> Result<(), (usize, Errno)> {
    let mut done = 0u32;
    // SAFETY: the list is valid for its length, Xen writes `done`; the caller vouches for
    // the effect.
    let answer = unsafe {
        raw(
            hypercall::MMU_UPDATE,
            [
                updates.as_ptr().expose_provenance() as u64,
                updates.len() as u64,
                (&raw mut done).expose_provenance() as u64,
                u64::from(owner.0),
                0,
            ],
        )
    };
    answer.map(|_| ()).map_err(|errno| (done as usize, errno))
}

/// Sets the L1 entry for `va`, whose tables exist.
///
/// # Errors
/// Xen's reason for refusing the entry.
///
/// # Safety
/// As for [`update`].
pub unsafe fn update_va_mapping(va: u64, entry: u64, flush: Flush) -> Result<(), Errno> {
    // SAFETY: no pointers; the caller vouches for the effect.
    let answer = unsafe {
        raw(
            hypercall::UPDATE_VA_MAPPING,
            [va, entry, flush.flags(), 0, 0],
        )
    };
    answer.map(|_| ())
}

/// The same, with a frame of `owner`.
///
/// # Errors
/// As above; `EINVAL`: the guest has a hole there.
///
/// # Safety
/// As for [`update`].
pub unsafe fn update_va_mapping_other(
    va: u64,
    entry: u64,
    flush: Flush,
    owner: DomId,
) -> Result<(), Errno> {
    // SAFETY: no pointers; the caller vouches for the effect.
    let answer = unsafe {
        raw(
            hypercall::UPDATE_VA_MAPPING_OTHERDOMAIN,
            [va, entry, flush.flags(), u64::from(owner.0), 0],
        )
    };
    answer.map(|_| ())
}

fn extended(operation: MmuextOp, owner: DomId) -> Result<(), Errno> {
    let mut operation = operation;
    // SAFETY: one operation; callers below pass only ones that flush, or clear a page of
    // another domain that they may clear.
    let answer = unsafe {
        raw(
            hypercall::MMUEXT_OP,
            [super::address(&mut operation), 1, 0, u64::from(owner.0), 0],
        )
    };
    answer.map(|_| ())
}

fn flush(cmd: u32, va: u64) {
    let operation = MmuextOp {
        cmd,
        arg1: va,
        ..MmuextOp::default()
    };
    let answer = extended(operation, DomId::SELF);
    debug_assert!(answer.is_ok(), "a flush cannot fail");
}

/// Flushes this CPU's TLB.
pub fn flush_local() {
    flush(mmuext::TLB_FLUSH_LOCAL, 0);
}

/// Flushes one address on this CPU.
pub fn flush_address_local(va: u64) {
    flush(mmuext::INVLPG_LOCAL, va);
}

/// Flushes the TLB of every CPU this domain runs on.
pub fn flush_all() {
    flush(mmuext::TLB_FLUSH_ALL, 0);
}

/// Clears a page of a PV domain by its machine frame number. Not for PVH (`EINVAL`), nor for our own pages.
///
/// # Errors
/// `EINVAL`: not that domain's page, or the domain is not PV.
///
/// # Panics
/// If `domain` is this one: its memory has Rust owners.
pub fn clear_page_of(domain: DomId, mfn: u64) -> Result<(), Errno> {
    assert!(domain != DomId::SELF && domain != DomId(0));
    extended(
        MmuextOp {
            cmd: mmuext::CLEAR_PAGE,
            arg1: mfn,
            ..MmuextOp::default()
        },
        domain,
    )
}

/// Has Xen check the page tables of a PV domain below `mfn`, and hold them.
///
/// # Errors
/// `EINVAL`: they are no valid tables.
///
/// # Panics
/// If `domain` is this one: the kernel's tables are not pinned by hand.
pub fn pin_l4_of(domain: DomId, mfn: u64) -> Result<(), Errno> {
    assert!(domain != DomId::SELF && domain != DomId(0));
    extended(
        MmuextOp {
            cmd: mmuext::PIN_L4_TABLE,
            arg1: mfn,
            ..MmuextOp::default()
        },
        domain,
    )
}
