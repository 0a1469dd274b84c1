//! Grants of a guest, by hypercall: what [`xen_ring::peer::Grants`] asks for.
#![expect(unsafe_code, reason = "hands mapped pages to `SharedPages`")]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::grant_table::{
    Copy, CopyPtr, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTMAP_DEVICE_MAP, GNTMAP_HOST_MAP,
    GNTMAP_READONLY, GNTTABOP_COPY, GNTTABOP_MAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF, MapGrantRef,
    UnmapGrantRef,
};
use xen_abi::{DomId, GrantRef, PAGE_SIZE};
use xen_ring::SharedPages;
use xen_ring::peer::{Access, CopyEnd, CopyOp, DeviceMapping, GrantStatus, Grants};

use crate::arch::hypercall::system as hypercall;
use crate::mem::window::Window;

/// Operations in one hypercall: Xen continues a long list without coming back to us, so
/// lists are cut. Also the number that unmaps share one TLB flush for.
const BATCH: usize = 32;
/// The answer of an operation that Xen has not looked at.
const NOT_DONE: i16 = GrantStatus::GENERAL_ERROR.0;

/// Mappings now held of all guests: rings and device mappings. A leak shows here.
static MAPPED: AtomicU64 = AtomicU64::new(0);

/// Grant mappings that the pVM holds now.
pub fn mapped() -> u64 {
    MAPPED.load(Ordering::Relaxed)
}

/// The grants of one guest.
#[derive(Clone, Copy, Debug)]
pub struct GuestGrants {
    guest: DomId,
}

impl GuestGrants {
    /// Grants that `guest` makes to us.
    pub fn new(guest: DomId) -> Self {
        Self { guest }
    }

    fn end(&self, end: CopyEnd) -> (CopyPtr, bool) {
        let (u, domid, granted) = match end {
            CopyEnd::Granted(gref) => (u64::from(gref.0), self.guest, true),
            CopyEnd::GrantedBy(guest, gref) => (u64::from(gref.0), guest, true),
            CopyEnd::Frame(mfn) => (mfn, DomId::SELF, false),
        };
        (
            CopyPtr {
                u,
                domid: domid.0,
                ..CopyPtr::default()
            },
            granted,
        )
    }
}

impl Grants for GuestGrants {
    fn map_ring(&self, refs: &[GrantRef]) -> Result<SharedPages, GrantStatus> {
        // Host mappings are written by Xen into page-table entries that must exist.
        let window = Window::reserve(refs.len()).map_err(|_| GrantStatus::GENERAL_ERROR)?;
        let mut ops: Vec<MapGrantRef> = refs
            .iter()
            .enumerate()
            .map(|(i, gref)| MapGrantRef {
                host_addr: window.va() + (i * PAGE_SIZE) as u64,
                flags: GNTMAP_HOST_MAP,
                gref: gref.0,
                dom: self.guest.0,
                status: NOT_DONE,
                ..MapGrantRef::default()
            })
            .collect();
        for batch in ops.chunks_mut(BATCH) {
            // What a refused hypercall did not reach keeps NOT_DONE as its answer.
            // SAFETY: map operations whose host addresses are pages of the window reserved
            // above, which holds nothing else.
            let done = unsafe { hypercall::grant_table_op(GNTTABOP_MAP_GRANT_REF, batch) };
            if let Err(errno) = done {
                log::error!("domain {}: Xen refused to map grants: {errno}", self.guest);
            }
        }
        let failed = ops
            .iter()
            .map(|op| GrantStatus(op.status))
            .find(|status| !status.is_okay());
        let mapped: Vec<UnmapGrantRef> = ops
            .iter()
            .filter(|op| GrantStatus(op.status).is_okay())
            .map(|op| UnmapGrantRef {
                host_addr: op.host_addr,
                handle: op.handle,
                status: NOT_DONE,
                ..UnmapGrantRef::default()
            })
            .collect();
        MAPPED.fetch_add(mapped.len() as u64, Ordering::Relaxed);
        if let Some(status) = failed {
            unmap(mapped);
            return Err(status);
        }
        let base = window.pointer();
        let len = refs.len() * PAGE_SIZE;
        let release = Box::new(move || {
            unmap(mapped);
            // Only now may the addresses be used again.
            drop(window);
        });
        // SAFETY: every page of the window was mapped read-write above, and stays so until
        // `release` unmaps it. Nobody else knows the addresses.
        Ok(unsafe { SharedPages::from_raw(base, len, Some(release)) })
    }

    fn copy(&self, ops: &mut [CopyOp]) {
        let mut batch = [Copy::default(); BATCH];
        for chunk in ops.chunks_mut(BATCH) {
            for (raw, op) in batch.iter_mut().zip(chunk.iter()) {
                let (mut source, from_grant) = self.end(op.source);
                let (mut dest, to_grant) = self.end(op.dest);
                source.offset = op.source_offset;
                dest.offset = op.dest_offset;
                let flags = if from_grant { GNTCOPY_SOURCE_GREF } else { 0 }
                    | if to_grant { GNTCOPY_DEST_GREF } else { 0 };
                *raw = Copy {
                    source,
                    dest,
                    len: op.len,
                    flags,
                    status: NOT_DONE,
                    ..Copy::default()
                };
            }
            let raw = &mut batch[..chunk.len()];
            // SAFETY: copy operations. Frames in them are ours: callers get frame numbers only
            // from DMA buffers that they own, and hold them until this call returns.
            let done = unsafe { hypercall::grant_table_op(GNTTABOP_COPY, raw) };
            if let Err(errno) = done {
                log::error!("domain {}: Xen refused to copy: {errno}", self.guest);
            }
            for (raw, op) in raw.iter().zip(chunk.iter_mut()) {
                op.status = GrantStatus(raw.status);
            }
        }
    }

    fn map_device(
        &self,
        refs: &[GrantRef],
        access: Access,
        out: &mut Vec<Result<DeviceMapping, GrantStatus>>,
    ) {
        let read_only = match access {
            Access::Read => GNTMAP_READONLY,
            Access::Write => 0,
        };
        for chunk in refs.chunks(BATCH) {
            let mut ops = [MapGrantRef::default(); BATCH];
            for (op, gref) in ops.iter_mut().zip(chunk) {
                op.flags = GNTMAP_DEVICE_MAP | read_only;
                op.gref = gref.0;
                op.dom = self.guest.0;
                op.status = NOT_DONE;
            }
            let ops = &mut ops[..chunk.len()];
            // SAFETY: map operations without a host address: nothing of ours changes.
            let done = unsafe { hypercall::grant_table_op(GNTTABOP_MAP_GRANT_REF, ops) };
            if let Err(errno) = done {
                log::error!("domain {}: Xen refused to map grants: {errno}", self.guest);
            }
            out.extend(ops.iter().map(|op| {
                let status = GrantStatus(op.status);
                if !status.is_okay() {
                    return Err(status);
                }
                MAPPED.fetch_add(1, Ordering::Relaxed);
                Ok(DeviceMapping {
                    handle: op.handle,
                    bus_addr: op.dev_bus_addr,
                })
            }));
        }
    }

    fn unmap_device(&self, mappings: Vec<DeviceMapping>) {
        // With bus address 0 Xen says okay and unmaps nothing; no mapping has that address,
        // because frame 0 is never a guest's.
        unmap(
            mappings
                .into_iter()
                .map(|m| UnmapGrantRef {
                    dev_bus_addr: m.bus_addr,
                    handle: m.handle,
                    status: NOT_DONE,
                    ..UnmapGrantRef::default()
                })
                .collect(),
        );
    }
}

fn unmap(mut ops: Vec<UnmapGrantRef>) {
    for batch in ops.chunks_mut(BATCH) {
        // SAFETY: unmap operations with handles of mappings that their owner gave up: the
        // `SharedPages` that used a host address is being dropped.
        let done = unsafe { hypercall::grant_table_op(GNTTABOP_UNMAP_GRANT_REF, batch) };
        if let Err(errno) = done {
            log::error!("grants: Xen refused to end mappings: {errno}");
        }
        let failed = batch
            .iter()
            .filter(|op| !GrantStatus(op.status).is_okay())
            .count();
        MAPPED.fetch_sub((batch.len() - failed) as u64, Ordering::Relaxed);
        if failed > 0 {
            // Our handles are private and used once: this is a bug of ours, and the count of
            // `mapped` keeps it visible.
            log::error!(
                "grants: {failed} of {} mappings could not be ended",
                batch.len()
            );
        }
    }
}
