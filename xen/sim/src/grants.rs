//! Guests that grant pages, and the backend's way to those grants.

use crate::memory::{GuestPages, Machine, State};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use xen_abi::{DomId, GrantRef, PAGE_SHIFT, PAGE_SIZE};
use xen_ring::SharedPages;
use xen_ring::peer::{Access, CopyEnd, CopyOp, DeviceMapping, GrantStatus, Grants};

/// `GNTST_permission_denied`, grant_table.h.
const PERMISSION_DENIED: GrantStatus = GrantStatus(-8);
/// `GNTST_bad_handle`'s neighbour for a domain that is gone: `GNTST_bad_domain`.
const BAD_DOMAIN: GrantStatus = GrantStatus(-2);
/// Pins of one kind that Xen allows on one grant (8-bit counters, trap 5).
const MAX_PINS: u32 = 128;

/// One guest's grant table.
#[derive(Default)]
pub(crate) struct Table {
    entries: BTreeMap<u32, Entry>,
    next_ref: u32,
}

struct Entry {
    mfn: u64,
    access: Access,
    /// Ring mappings and device mappings in use.
    ring_pins: Arc<AtomicU32>,
    device_reads: u32,
    device_writes: u32,
}

impl Entry {
    fn in_use(&self) -> bool {
        self.ring_pins.load(Ordering::SeqCst) + self.device_reads + self.device_writes > 0
    }
}

/// What a backend did with grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Copy hypercalls.
    pub copy_calls: u64,
    /// Copy operations.
    pub copies: u64,
    /// Device-map hypercalls.
    pub map_calls: u64,
    /// Pages mapped for devices.
    pub maps: u64,
    /// Unmap hypercalls.
    pub unmap_calls: u64,
    /// Pages unmapped.
    pub unmaps: u64,
}

/// The guest tried to take back a page that somebody still maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StillInUse;

/// A guest on a [`Machine`]: has pages, and grants them to the pVM.
#[derive(Clone, Debug)]
pub struct SimGuest {
    machine: Machine,
    domid: DomId,
}

impl SimGuest {
    /// A guest with an empty grant table.
    pub fn new(machine: &Machine, domid: DomId) -> Self {
        let table = Table {
            // As Linux: the first refs are reserved for console and xenstore.
            next_ref: 8,
            ..Table::default()
        };
        machine.0.borrow_mut().tables.insert(domid.0, table);
        Self {
            machine: machine.clone(),
            domid,
        }
    }

    /// The guest's number.
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// Zeroed pages of its own.
    pub fn alloc(&self, pages: usize) -> GuestPages {
        self.machine.guest_pages(self.domid, pages)
    }

    /// Grants a frame to the pVM, for reading only or for writing too.
    pub fn grant(&self, mfn: u64, access: Access) -> GrantRef {
        self.with(|table| {
            let gref = table.next_ref;
            table.next_ref += 1;
            table.entries.insert(
                gref,
                Entry {
                    mfn,
                    access,
                    ring_pins: Arc::default(),
                    device_reads: 0,
                    device_writes: 0,
                },
            );
            GrantRef(gref)
        })
    }

    /// Takes a grant back, as a frontend does once it has the response.
    pub fn end(&self, gref: GrantRef) -> Result<(), StillInUse> {
        self.with(|table| match table.entries.get(&gref.0) {
            Some(entry) if entry.in_use() => Err(StillInUse),
            _ => {
                table.entries.remove(&gref.0);
                Ok(())
            }
        })
    }

    /// The pVM's way to this guest's grants.
    pub fn grants(&self) -> SimGrants {
        SimGrants {
            machine: self.machine.clone(),
            domid: self.domid,
            inner: Rc::default(),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Table) -> T) -> T {
        let mut state = self.machine.0.borrow_mut();
        f(state
            .tables
            .get_mut(&self.domid.0)
            .expect("a guest has a table"))
    }
}

struct Mapping {
    gref: u32,
    mfn: u64,
    access: Access,
}

#[derive(Default)]
struct Inner {
    mappings: BTreeMap<u32, Mapping>,
    next_handle: u32,
    counters: Counters,
    rings: Arc<AtomicU32>,
    /// Statuses that the next operations answer with instead of being carried out.
    failures: Vec<GrantStatus>,
    unmappable: BTreeSet<u32>,
}

/// The strict [`Grants`] of one guest; clones share their counts.
#[derive(Clone)]
pub struct SimGrants {
    machine: Machine,
    domid: DomId,
    inner: Rc<RefCell<Inner>>,
}

impl fmt::Debug for SimGrants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimGrants(d{}, {:?})", self.domid, self.counters())
    }
}

impl SimGrants {
    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.inner.borrow().counters
    }

    /// Device mappings not ended yet.
    pub fn live_mappings(&self) -> usize {
        self.inner.borrow().mappings.len()
    }

    /// Ring mappings not dropped yet.
    pub fn live_rings(&self) -> u32 {
        self.inner.borrow().rings.load(Ordering::SeqCst)
    }

    /// Lets the next `count` copies or maps fail with `status`.
    pub fn fail_next(&self, count: usize, status: GrantStatus) {
        let mut inner = self.inner.borrow_mut();
        inner.failures.extend(std::iter::repeat_n(status, count));
    }

    /// Device maps of this grant fail from now on, copies do not: as for a page of a PV
    /// guest's page tables, or one that is granted in part.
    pub fn refuse_map(&self, gref: GrantRef) {
        self.inner.borrow_mut().unmappable.insert(gref.0);
    }

    /// # Panics
    /// If any mapping is left.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.live_mappings(), 0, "device mappings left");
        assert_eq!(self.live_rings(), 0, "ring mappings left");
    }

    fn failure(&self) -> Option<GrantStatus> {
        self.inner.borrow_mut().failures.pop()
    }

    /// The frame behind one end of a copy.
    fn resolve(&self, end: CopyEnd, access: Access) -> Result<u64, GrantStatus> {
        let (domid, gref) = match end {
            CopyEnd::Frame(mfn) => {
                assert!(self.machine.is_own(mfn), "frame {mfn:#x} is not the pVM's");
                return Ok(mfn);
            }
            CopyEnd::Granted(gref) => (self.domid, gref),
            CopyEnd::GrantedBy(domid, gref) => (domid, gref),
        };
        let state = self.machine.0.borrow();
        let table = state.tables.get(&domid.0).ok_or(BAD_DOMAIN)?;
        let entry = table.entries.get(&gref.0).ok_or(GrantStatus::BAD_GNTREF)?;
        if access == Access::Write && entry.access == Access::Read {
            return Err(PERMISSION_DENIED);
        }
        owned(&state, entry.mfn, domid)?;
        Ok(entry.mfn)
    }

    fn copy_one(&self, op: &CopyOp) -> Result<(), GrantStatus> {
        if let Some(status) = self.failure() {
            return Err(status);
        }
        let len = usize::from(op.len);
        let ends = [op.source_offset, op.dest_offset];
        if ends.iter().any(|o| usize::from(*o) + len > PAGE_SIZE) {
            return Err(GrantStatus::BAD_COPY_ARG);
        }
        let from = self.resolve(op.source, Access::Read)?;
        let to = self.resolve(op.dest, Access::Write)?;
        let mut bytes = vec![0; len];
        self.machine
            .frame_read(from, op.source_offset.into(), &mut bytes);
        self.machine.frame_write(to, op.dest_offset.into(), &bytes);
        Ok(())
    }

    fn map_one(&self, gref: GrantRef, access: Access) -> Result<DeviceMapping, GrantStatus> {
        if let Some(status) = self.failure() {
            return Err(status);
        }
        if self.inner.borrow().unmappable.contains(&gref.0) {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let mut guard = self.machine.0.borrow_mut();
        let state = &mut *guard;
        let table = state.tables.get_mut(&self.domid.0).ok_or(BAD_DOMAIN)?;
        let entry = table
            .entries
            .get_mut(&gref.0)
            .ok_or(GrantStatus::BAD_GNTREF)?;
        let mfn = entry.mfn;
        let pins = match access {
            Access::Write if entry.access == Access::Read => {
                return Err(GrantStatus::GENERAL_ERROR);
            }
            Access::Write => &mut entry.device_writes,
            Access::Read => &mut entry.device_reads,
        };
        if *pins >= MAX_PINS {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        *pins += 1;
        let reach = state.reach.entry(mfn).or_default();
        match access {
            Access::Read => reach.read += 1,
            Access::Write => reach.write += 1,
        }
        let mut inner = self.inner.borrow_mut();
        let handle = inner.next_handle;
        inner.next_handle += 1;
        inner.mappings.insert(
            handle,
            Mapping {
                gref: gref.0,
                mfn,
                access,
            },
        );
        Ok(DeviceMapping {
            handle,
            bus_addr: mfn << PAGE_SHIFT,
        })
    }
}

/// A guest can only grant what it owns.
fn owned(state: &State, mfn: u64, domid: DomId) -> Result<(), GrantStatus> {
    match state.region(mfn) {
        Some(region) if region.owner == Some(domid) => Ok(()),
        _ => Err(GrantStatus::GENERAL_ERROR),
    }
}

impl Grants for SimGrants {
    /// Only a whole allocation of the guest can be mapped as a ring, its pages in order:
    /// what a real frontend grants. Anything else is `GNTST_general_error`.
    fn map_ring(&self, refs: &[GrantRef]) -> Result<SharedPages, GrantStatus> {
        if let Some(status) = self.failure() {
            return Err(status);
        }
        let state = self.machine.0.borrow();
        let table = state.tables.get(&self.domid.0).ok_or(BAD_DOMAIN)?;
        let mut mfns = Vec::new();
        let mut pins = Vec::new();
        for gref in refs {
            let entry = table.entries.get(&gref.0).ok_or(GrantStatus::BAD_GNTREF)?;
            if entry.access == Access::Read {
                return Err(GrantStatus::GENERAL_ERROR);
            }
            mfns.push(entry.mfn);
            pins.push(entry.ring_pins.clone());
        }
        let first = *mfns.first().ok_or(GrantStatus::GENERAL_ERROR)?;
        let region = state.region(first).ok_or(GrantStatus::GENERAL_ERROR)?;
        owned(&state, first, self.domid)?;
        let whole = region.first_mfn..region.first_mfn + region.pages as u64;
        if !whole.eq(mfns.iter().copied()) {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let rings = self.inner.borrow().rings.clone();
        for count in pins.iter().chain([&rings]) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        region
            .map(Box::new(move || {
                for count in pins.iter().chain([&rings]) {
                    count.fetch_sub(1, Ordering::SeqCst);
                }
            }))
            .ok_or(GrantStatus::GENERAL_ERROR)
    }

    fn copy(&self, ops: &mut [CopyOp]) {
        assert!(!ops.is_empty(), "a hypercall for nothing");
        {
            let counters = &mut self.inner.borrow_mut().counters;
            counters.copy_calls += 1;
            counters.copies += ops.len() as u64;
        }
        for op in ops {
            op.status = match self.copy_one(op) {
                Ok(()) => GrantStatus::OKAY,
                Err(status) => status,
            };
        }
    }

    fn map_device(
        &self,
        refs: &[GrantRef],
        access: Access,
        out: &mut Vec<Result<DeviceMapping, GrantStatus>>,
    ) {
        assert!(!refs.is_empty(), "a hypercall for nothing");
        for gref in refs {
            let result = self.map_one(*gref, access);
            self.inner.borrow_mut().counters.maps += u64::from(result.is_ok());
            out.push(result);
        }
        self.inner.borrow_mut().counters.map_calls += 1;
    }

    fn unmap_device(&self, mappings: Vec<DeviceMapping>) {
        assert!(!mappings.is_empty(), "a hypercall for nothing");
        let mut guard = self.machine.0.borrow_mut();
        let state = &mut *guard;
        let mut inner = self.inner.borrow_mut();
        inner.counters.unmap_calls += 1;
        for DeviceMapping { handle, bus_addr } in mappings {
            let mapping = inner.mappings.remove(&handle);
            let mapping = mapping.unwrap_or_else(|| panic!("handle {handle} is not mapped"));
            // Xen says okay and unmaps nothing when the address differs (trap 3).
            assert_eq!(
                bus_addr,
                mapping.mfn << PAGE_SHIFT,
                "unmapped by another address"
            );
            let entry = state
                .tables
                .get_mut(&self.domid.0)
                .and_then(|table| table.entries.get_mut(&mapping.gref))
                .expect("a mapped grant cannot be ended");
            let reach = state
                .reach
                .get_mut(&mapping.mfn)
                .expect("mapped frames have a reach");
            match mapping.access {
                Access::Read => {
                    entry.device_reads -= 1;
                    reach.read -= 1;
                }
                Access::Write => {
                    entry.device_writes -= 1;
                    reach.write -= 1;
                }
            }
            inner.counters.unmaps += 1;
        }
    }
}
