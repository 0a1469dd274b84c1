//! Memory by machine frame number, and what a device may reach of it.

use crate::grants::Table;
use hal::{DmaAllocator, DmaBuffer, Node};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use xen_abi::{DomId, PAGE_SHIFT, PAGE_SIZE};
use xen_ring::{SharedHeap, SharedPages};

/// A device touched memory it must not touch: with a strict IOMMU, a fault; without,
/// somebody's data overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaFault {
    /// No such machine frame.
    NoFrame(u64),
    /// The pVM has given this memory back already.
    Released(u64),
    /// A guest's frame that is not mapped for a device in this direction.
    NotMapped(u64),
}

impl fmt::Display for DmaFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFrame(addr) => write!(f, "DMA to {addr:#x}, where there is no memory"),
            Self::Released(addr) => write!(f, "DMA to {addr:#x}, which was given back"),
            Self::NotMapped(addr) => write!(f, "DMA to {addr:#x} of a guest, not mapped for it"),
        }
    }
}

impl std::error::Error for DmaFault {}

enum Bytes {
    /// Memory of the pVM: the device's handle on it.
    Own {
        buffer: DmaBuffer,
        released: Arc<AtomicBool>,
    },
    /// Memory that the pVM has given back, some time ago.
    Gone,
    /// Memory of a guest.
    Guest { heap: SharedHeap, view: SharedPages },
}

pub(crate) struct Region {
    bytes: Bytes,
    pub(crate) owner: Option<DomId>,
    pub(crate) first_mfn: u64,
    pub(crate) pages: usize,
}

impl Region {
    /// A further handle on the whole of a guest's region, for a ring mapping.
    pub(crate) fn map(&self, on_drop: Box<dyn FnOnce() + Send>) -> Option<SharedPages> {
        match &self.bytes {
            Bytes::Guest { heap, .. } => Some(heap.handle(Some(on_drop))),
            Bytes::Own { .. } | Bytes::Gone => None,
        }
    }
}

/// How often a guest's frame is mapped for devices.
#[derive(Default, Clone, Copy)]
pub(crate) struct Reach {
    pub(crate) read: u32,
    pub(crate) write: u32,
}

#[derive(Default)]
pub(crate) struct State {
    regions: Vec<Rc<Region>>,
    pub(crate) reach: BTreeMap<u64, Reach>,
    pub(crate) tables: BTreeMap<u16, Table>,
    next_mfn: u64,
}

impl State {
    pub(crate) fn region(&self, mfn: u64) -> Option<Rc<Region>> {
        let at = self.regions.partition_point(|r| r.first_mfn <= mfn);
        let region = self.regions.get(at.checked_sub(1)?)?;
        (mfn < region.first_mfn + region.pages as u64).then(|| region.clone())
    }

    fn add(&mut self, bytes: impl FnOnce(u64) -> Bytes, owner: Option<DomId>, pages: usize) -> u64 {
        if self.regions.len().is_multiple_of(256) {
            self.sweep();
        }
        // A gap after each region: running over its end never hits another by chance.
        let first_mfn = self.next_mfn + 1;
        self.next_mfn = first_mfn + pages as u64;
        self.regions.push(Rc::new(Region {
            bytes: bytes(first_mfn),
            owner,
            first_mfn,
            pages,
        }));
        first_mfn
    }

    /// Frees the bytes of what was given back; its frames stay known as such.
    fn sweep(&mut self) {
        for region in &mut self.regions {
            if matches!(&region.bytes, Bytes::Own { released, .. } if released.load(Ordering::SeqCst))
            {
                *region = Rc::new(Region {
                    bytes: Bytes::Gone,
                    ..**region
                });
            }
        }
    }

    fn locate(&self, mfn: u64, offset: usize, len: usize) -> Option<(Rc<Region>, usize)> {
        let region = self.region(mfn)?;
        let at = usize::try_from(mfn - region.first_mfn).ok()? * PAGE_SIZE + offset;
        (at + len <= region.pages * PAGE_SIZE).then_some((region, at))
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({} regions)", self.0.borrow().regions.len())
    }
}

/// The simulated machine's memory; clones are handles on the same one.
#[derive(Clone, Default)]
pub struct Machine(pub(crate) Rc<RefCell<State>>);

/// Pages of a guest, adjacent in its memory.
#[derive(Debug)]
pub struct GuestPages {
    /// The guest's own view of all of them.
    pub bytes: SharedPages,
    /// Machine frame of each.
    pub mfns: Vec<u64>,
}

impl Machine {
    /// A machine without memory or guests.
    pub fn new() -> Self {
        Self::default()
    }

    /// An allocator of pVM memory on this machine.
    pub fn allocator(&self) -> SimAllocator {
        SimAllocator {
            machine: self.clone(),
            live: Arc::default(),
            limit: Arc::new(AtomicUsize::new(usize::MAX)),
        }
    }

    pub(crate) fn guest_pages(&self, owner: DomId, pages: usize) -> GuestPages {
        let heap = SharedHeap::new(pages * PAGE_SIZE);
        let (bytes, view) = (heap.handle(None), heap.handle(None));
        let first = self
            .0
            .borrow_mut()
            .add(|_| Bytes::Guest { heap, view }, Some(owner), pages);
        GuestPages {
            bytes,
            mfns: (first..first + pages as u64).collect(),
        }
    }

    /// What a device does that reads memory.
    pub fn dma_read(&self, bus_addr: u64, to: &mut [u8]) -> Result<(), DmaFault> {
        self.each_page(bus_addr, to.len(), false, |region, at, done, len| {
            region.read(at, &mut to[done..done + len]);
        })
    }

    /// What a device does that writes memory.
    pub fn dma_write(&self, bus_addr: u64, from: &[u8]) -> Result<(), DmaFault> {
        self.each_page(bus_addr, from.len(), true, |region, at, done, len| {
            region.write(at, &from[done..done + len]);
        })
    }

    fn each_page(
        &self,
        bus_addr: u64,
        len: usize,
        write: bool,
        mut step: impl FnMut(&Region, usize, usize, usize),
    ) -> Result<(), DmaFault> {
        let state = self.0.borrow();
        let mut done = 0;
        while done < len {
            let addr = bus_addr + done as u64;
            let offset = usize::try_from(addr % PAGE_SIZE as u64).expect("below a page");
            let now = (PAGE_SIZE - offset).min(len - done);
            let mfn = addr >> PAGE_SHIFT;
            let (region, at) = state
                .locate(mfn, offset, now)
                .ok_or(DmaFault::NoFrame(addr))?;
            match &region.bytes {
                Bytes::Own { released, .. } if released.load(Ordering::SeqCst) => {
                    return Err(DmaFault::Released(addr));
                }
                Bytes::Gone => return Err(DmaFault::Released(addr)),
                Bytes::Own { .. } => {}
                Bytes::Guest { .. } => {
                    let reach = state.reach.get(&mfn).copied().unwrap_or_default();
                    // A writable mapping may be read too, as with page-table bits.
                    if reach.write == 0 && (write || reach.read == 0) {
                        return Err(DmaFault::NotMapped(addr));
                    }
                }
            }
            step(&region, at, done, now);
            done += now;
        }
        Ok(())
    }

    /// Reads one frame as Xen can, whoever owns it.
    pub(crate) fn frame_read(&self, mfn: u64, offset: usize, to: &mut [u8]) {
        let (region, at) =
            (self.0.borrow().locate(mfn, offset, to.len())).expect("a checked frame");
        region.read(at, to);
    }

    /// Writes one frame as Xen can, whoever owns it.
    pub(crate) fn frame_write(&self, mfn: u64, offset: usize, from: &[u8]) {
        let found = self.0.borrow().locate(mfn, offset, from.len());
        let (region, at) = found.expect("a checked frame");
        region.write(at, from);
    }

    /// Whether a frame is the pVM's and not given back.
    pub(crate) fn is_own(&self, mfn: u64) -> bool {
        self.0.borrow().region(mfn).is_some_and(|region| {
            matches!(&region.bytes, Bytes::Own { released, .. } if !released.load(Ordering::SeqCst))
        })
    }
}

impl Region {
    fn read(&self, at: usize, to: &mut [u8]) {
        match &self.bytes {
            Bytes::Own { buffer, .. } => buffer.read_bytes(at, to),
            Bytes::Gone => unreachable!("checked by the caller"),
            Bytes::Guest { view, .. } => view.read_bytes(at, to),
        }
    }

    fn write(&self, at: usize, from: &[u8]) {
        match &self.bytes {
            Bytes::Own { buffer, .. } => buffer.write_bytes(at, from),
            Bytes::Gone => unreachable!("checked by the caller"),
            Bytes::Guest { view, .. } => view.write_bytes(at, from),
        }
    }
}

/// Hands out pVM memory of a [`Machine`], counts what is out, and can run dry.
#[derive(Clone, Debug)]
pub struct SimAllocator {
    machine: Machine,
    live: Arc<AtomicUsize>,
    /// Pages that may be out at once.
    limit: Arc<AtomicUsize>,
}

impl SimAllocator {
    /// From now on at most so many pages are out at once: memory is short.
    pub fn limit(&self, pages: usize) {
        self.limit.store(pages, Ordering::SeqCst);
    }

    /// Pages handed out and not dropped.
    pub fn live_pages(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }
}

impl DmaAllocator for SimAllocator {
    fn alloc(&self, pages: usize, _node: Node) -> Option<DmaBuffer> {
        if self.live_pages() + pages > self.limit.load(Ordering::SeqCst) {
            return None;
        }
        let released = Arc::new(AtomicBool::new(false));
        let mut ours = None;
        self.machine.0.borrow_mut().add(
            |mfn| {
                let (driver, device) = DmaBuffer::pair(pages, mfn << PAGE_SHIFT);
                ours = Some(driver);
                Bytes::Own {
                    buffer: device,
                    released: released.clone(),
                }
            },
            None,
            pages,
        );
        self.live.fetch_add(pages, Ordering::SeqCst);
        let live = self.live.clone();
        ours.map(|buffer| {
            buffer.when_released(Box::new(move || {
                released.store(true, Ordering::SeqCst);
                live.fetch_sub(pages, Ordering::SeqCst);
            }))
        })
    }
}
