//! A Xen for tests, stricter than the real one.
//!
//! It keeps domains, their pages and contents, and answers the hypercalls of
//! [`Hypercalls`]. What Xen would let pass and is a mistake panics: a frame populated
//! twice, a hypercall on a domain that is running, a page given back uncleared, an
//! L4 pinned while one of its tables is mapped. [`FakeXen::fail_call`] makes the n-th
//! call fail, as out of memory.

use crate::hypercalls::{Buffer, DomainPages, Hypercalls, MAP_PAGES, NodeId};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::mem::offset_of;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::future::ready;
use xen_abi::arch_x86::VcpuGuestContext;
use xen_abi::domctl::{self, CpuidLeaf, Domctl, GetDomainInfo, cmd, v4_17, v4_19};
use xen_abi::errno::Errno;
use xen_abi::hvm::save::{CODE_CPU, CODE_END, CODE_HEADER, CODE_MTRR, Descriptor};
use xen_abi::hvm::start_info::MemmapEntry;
use xen_abi::sysctl::{self, Sysctl};
use xen_abi::{DomId, EvtchnPort, PAGE_SIZE};
use zerocopy::{FromBytes, IntoBytes};

type Page = Rc<RefCell<Box<[u8]>>>;

/// What a fresh page holds: something another guest left.
const OLD: u8 = 0x5a;

/// A domain.
#[derive(Default)]
pub(crate) struct FakeDomain {
    pub(crate) hvm: bool,
    pub(crate) max_vcpus: u32,
    pub(crate) vcpus_made: u32,
    pub(crate) affinity: BTreeMap<u32, Vec<u8>>,
    pub(crate) max_memkb: u64,
    pub(crate) pool: u64,
    pub(crate) tsc_mode: u32,
    pub(crate) cpuid: Vec<CpuidLeaf>,
    pub(crate) params: BTreeMap<u32, u64>,
    pub(crate) ports: u32,
    pub(crate) memmap: Vec<MemmapEntry>,
    pub(crate) contexts: Vec<Vec<u8>>,
    pub(crate) vcpu_context: Option<Box<VcpuGuestContext>>,
    pub(crate) hypercall_page: Option<u64>,
    pub(crate) pinned: Option<u64>,
    pub(crate) running: bool,
    /// Pages by guest frame (PVH) or machine frame (PV), with their node and contents;
    /// contents come into being when first touched.
    pages: BTreeMap<u64, (NodeId, Option<Page>)>,
    /// By guest frame, which machine frame: what was populated already.
    populated: BTreeMap<u64, u64>,
    grant_frame: Option<Page>,
    shared_info: Option<Page>,
}

pub(crate) struct FakeXen {
    version: u32,
    pub(crate) domains: RefCell<BTreeMap<u16, FakeDomain>>,
    free: RefCell<Vec<u64>>,
    next_domid: Cell<u16>,
    next_mfn: Cell<u64>,
    now: Cell<u64>,
    calls: Cell<u64>,
    fail_at: Cell<Option<u64>>,
    maps: Rc<Cell<usize>>,
    /// Nanoseconds that a page costs in a populate call.
    pub(crate) page_cost_ns: Cell<u64>,
    /// The largest order that memory is free in.
    pub(crate) largest_order: Cell<u32>,
    /// Polls that `breathe` cost.
    pub(crate) breaths: Cell<u64>,
}

/// Machine frames of shared-info pages: above all memory.
const SHARED_INFO_MFN: u64 = 1 << 40;

impl FakeXen {
    /// With so many free pages on each node.
    pub(crate) fn new(version: (u32, u32), free: &[u64]) -> Self {
        Self {
            version: version.0 << 16 | version.1,
            domains: RefCell::default(),
            free: RefCell::new(free.to_vec()),
            next_domid: Cell::new(1),
            next_mfn: Cell::new(0x1000),
            now: Cell::new(0),
            calls: Cell::new(0),
            fail_at: Cell::new(None),
            maps: Rc::default(),
            page_cost_ns: Cell::new(100),
            largest_order: Cell::new(18),
            breaths: Cell::new(0),
        }
    }

    pub(crate) fn fail_call(&self, n: u64) {
        self.calls.set(0);
        self.fail_at.set(Some(n));
    }

    /// Whether the call that was to fail came.
    pub(crate) fn failed(&self) -> bool {
        self.fail_at.get().is_some_and(|n| self.calls.get() > n)
    }

    pub(crate) fn free_pages(&self) -> Vec<u64> {
        self.free.borrow().clone()
    }

    pub(crate) fn mapped(&self) -> usize {
        self.maps.get()
    }

    pub(crate) fn with<R>(&self, id: DomId, f: impl FnOnce(&mut FakeDomain) -> R) -> R {
        f(self.domains.borrow_mut().get_mut(&id.0).expect("domain"))
    }

    /// A byte of a domain's memory, by frame number as it is mapped.
    pub(crate) fn peek(&self, id: DomId, frame: u64, offset: usize, to: &mut [u8]) {
        self.with(id, |domain| {
            let (_, page) = domain.pages.get(&frame).expect("populated");
            match page {
                Some(page) => to.copy_from_slice(&page.borrow()[offset..][..to.len()]),
                None => to.fill(OLD),
            }
        });
    }

    pub(crate) fn grants(&self, id: DomId) -> Vec<u8> {
        self.with(id, |domain| {
            domain.grant_frame.as_ref().expect("made").borrow().to_vec()
        })
    }

    pub(crate) fn shared_info(&self, id: DomId) -> Vec<u8> {
        self.with(id, |domain| {
            domain.shared_info.as_ref().expect("made").borrow().to_vec()
        })
    }

    pub(crate) fn node_of(&self, id: DomId, frame: u64) -> Option<NodeId> {
        self.with(id, |domain| domain.pages.get(&frame).map(|page| page.0))
    }

    pub(crate) fn frames(&self, id: DomId) -> Vec<u64> {
        self.with(id, |domain| domain.pages.keys().copied().collect())
    }

    /// A guest that gives one of its frames back (ballooning).
    pub(crate) fn balloon_out(&self, id: DomId, frame: u64) {
        let (node, _) = self
            .with(id, |domain| domain.pages.remove(&frame))
            .expect("populated");
        self.free.borrow_mut()[node.0 as usize] += 1;
    }

    /// Counts a call; whether it is to fail.
    fn tick(&self) -> bool {
        let n = self.calls.get();
        self.calls.set(n + 1);
        self.now.set(self.now.get() + 1000);
        self.fail_at.get() == Some(n)
    }

    fn destroy(&self, id: u16) -> Result<(), Errno> {
        let domain = self.domains.borrow_mut().remove(&id).ok_or(Errno::ESRCH)?;
        assert_eq!(self.maps.get(), 0, "destroyed while its memory is mapped");
        for (node, _) in domain.pages.values() {
            self.free.borrow_mut()[node.0 as usize] += 1;
        }
        Ok(())
    }

    fn create(&self, op: &mut Domctl) -> Result<(), Errno> {
        let (flags, max_vcpus, emulation, grants, frames, maptrack) = if self.version & 0xffff < 19
        {
            let (new, rest) = v4_17::CreateDomain::read_from_prefix(&op.u).expect("fits");
            assert!(rest.iter().all(|&byte| byte == 0));
            (
                new.flags,
                new.max_vcpus,
                new.emulation_flags,
                new.grant_opts,
                new.max_grant_frames,
                new.max_maptrack_frames,
            )
        } else {
            let (new, rest) = v4_19::CreateDomain::read_from_prefix(&op.u).expect("fits");
            assert!(rest.iter().all(|&byte| byte == 0));
            assert_eq!(new.altp2m_opts, 0);
            (
                new.flags,
                new.max_vcpus,
                new.emulation_flags,
                new.grant_opts,
                new.max_grant_frames,
                new.max_maptrack_frames,
            )
        };
        assert!((0..=16).contains(&maptrack), "a default costs Xen 4 MiB");
        assert_eq!(frames, -1, "4.17 refuses more than its own limit");
        let hvm = flags & domctl::CDF_HVM != 0;
        if emulation != u32::from(hvm) || !(1..=2).contains(&grants) || max_vcpus == 0 {
            return Err(Errno::EINVAL);
        }
        let id = self.next_domid.get();
        self.next_domid.set(id + 1);
        op.domain = id;
        let domain = FakeDomain {
            hvm,
            max_vcpus,
            ..FakeDomain::default()
        };
        self.domains.borrow_mut().insert(id, domain);
        Ok(())
    }

    /// The full hardware state that Xen gives.
    fn hvm_context() -> Vec<u8> {
        let mut all = Vec::new();
        for (typecode, len) in [
            (CODE_HEADER, 24),
            (CODE_CPU, 1032),
            (CODE_MTRR, 240),
            (CODE_END, 0),
        ] {
            let descriptor = Descriptor {
                typecode,
                instance: 0,
                length: len,
            };
            all.extend_from_slice(descriptor.as_bytes());
            all.resize(all.len() + len as usize, 3);
        }
        all
    }
}

fn put<T: IntoBytes + zerocopy::Immutable>(u: &mut [u8; 128], value: &T) {
    u[..size_of::<T>()].copy_from_slice(value.as_bytes());
}

fn get<T: FromBytes>(u: &[u8; 128]) -> T {
    T::read_from_prefix(u).expect("fits").0
}

fn one<'a, 'b>(buffers: &'a mut [Buffer<'b>], pointer_at: usize) -> &'a mut [u8] {
    let [buffer] = buffers else {
        panic!("one buffer expected")
    };
    assert_eq!(buffer.pointer_at, pointer_at);
    buffer.bytes
}

impl Hypercalls for FakeXen {
    type Map = FakeMap;

    fn version(&self) -> u32 {
        self.version
    }

    fn domctl(&self, op: &mut Domctl, buffers: &mut [Buffer<'_>]) -> Result<u64, Errno> {
        let expected = match self.version & 0xffff {
            17 => 0x15,
            18 => 0x16,
            _ => 0x17,
        };
        if op.interface_version != expected {
            return Err(Errno::EACCES);
        }
        if op.cmd == cmd::DESTROYDOMAIN {
            // Never made to fail: it is what the error paths rest on.
            return self.destroy(op.domain).map(|()| 0);
        }
        if self.tick() {
            return Err(Errno::ENOMEM);
        }
        if op.cmd == cmd::CREATEDOMAIN {
            return self.create(op).map(|()| 0);
        }
        let mut domains = self.domains.borrow_mut();
        let domain = domains.get_mut(&op.domain).ok_or(Errno::ESRCH)?;
        let hvm_only = |domain: &FakeDomain| {
            if domain.hvm {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            }
        };
        match op.cmd {
            cmd::MAX_VCPUS => {
                let max = get::<domctl::MaxVcpus>(&op.u).max;
                assert_eq!(max, domain.max_vcpus, "must match createdomain");
                domain.vcpus_made = max;
            }
            cmd::SETVCPUAFFINITY => {
                let affinity: domctl::VcpuAffinity = get(&op.u);
                if affinity.vcpu >= domain.vcpus_made {
                    return Err(Errno::ESRCH);
                }
                let at = offset_of!(domctl::VcpuAffinity, cpumap_hard);
                let bits = one(buffers, at);
                assert!(bits.len() * 8 >= affinity.cpumap_hard.nr_bits as usize);
                domain.affinity.insert(affinity.vcpu, bits.to_vec());
            }
            cmd::MAX_MEM => domain.max_memkb = get::<domctl::MaxMem>(&op.u).max_memkb,
            cmd::SET_PAGING_MEMPOOL_SIZE => {
                hvm_only(domain)?;
                assert!(domain.pages.is_empty(), "the pool comes before memory");
                domain.pool = get::<domctl::PagingMempool>(&op.u).size;
            }
            cmd::SETTSCINFO => {
                assert!(domain.vcpus_made > 0, "Xen sets it in the vCPUs");
                domain.tsc_mode = get::<domctl::TscInfo>(&op.u).tsc_mode;
            }
            cmd::SET_CPU_POLICY => {
                let at = offset_of!(domctl::CpuPolicy, leaves);
                let leaves = one(buffers, at);
                domain.cpuid = leaves
                    .chunks(24)
                    .map(|leaf| CpuidLeaf::read_from_bytes(leaf).expect("24 bytes"))
                    .collect();
            }
            cmd::GETHVMCONTEXT => {
                hvm_only(domain)?;
                let all = Self::hvm_context();
                let mut context: domctl::HvmContext = get(&op.u);
                if !buffers.is_empty() {
                    let at = offset_of!(domctl::HvmContext, buffer);
                    one(buffers, at)[..all.len()].copy_from_slice(&all);
                }
                context.size = u32::try_from(all.len()).expect("small");
                put(&mut op.u, &context);
            }
            cmd::SETHVMCONTEXT => {
                hvm_only(domain)?;
                let at = offset_of!(domctl::HvmContext, buffer);
                domain.contexts.push(one(buffers, at).to_vec());
            }
            cmd::SETVCPUCONTEXT => {
                let at = offset_of!(domctl::VcpuContext, ctxt);
                let context = VcpuGuestContext::read_from_bytes(one(buffers, at)).expect("size");
                if domain.pinned != Some(context.ctrlreg[3] >> 12) {
                    return Err(Errno::EINVAL);
                }
                domain.vcpu_context = Some(Box::new(context));
            }
            cmd::HYPERCALL_INIT => {
                let frame = get::<domctl::HypercallInit>(&op.u).gmfn;
                if !domain.pages.contains_key(&frame) {
                    return Err(Errno::EINVAL);
                }
                domain.hypercall_page = Some(frame);
            }
            cmd::GETDOMAININFO => put(
                &mut op.u,
                &GetDomainInfo {
                    domain: op.domain,
                    flags: if domain.hvm {
                        domctl::DOMINF_HVM_GUEST
                    } else {
                        0
                    },
                    tot_pages: domain.pages.len() as u64,
                    shared_info_frame: SHARED_INFO_MFN,
                    ..GetDomainInfo::default()
                },
            ),
            cmd::PAUSEDOMAIN => domain.running = false,
            cmd::UNPAUSEDOMAIN => domain.running = true,
            other => panic!("domctl {other} is not simulated"),
        }
        Ok(0)
    }

    fn sysctl(&self, op: &mut Sysctl, buffers: &mut [Buffer<'_>]) -> Result<u64, Errno> {
        assert_eq!(op.interface_version, 0x15);
        if self.tick() {
            return Err(Errno::ENOMEM);
        }
        assert_eq!(op.cmd, sysctl::cmd::GET_CPU_POLICY);
        let mut policy: sysctl::CpuPolicy = get(&op.u);
        assert_eq!(policy.index, sysctl::CPU_POLICY_HVM_DEFAULT);
        let leaf = CpuidLeaf {
            leaf: 1,
            subleaf: domctl::CPUID_NO_SUBLEAF,
            a: 0,
            b: 1 << 16,
            c: 0,
            d: 0,
        };
        if buffers.is_empty() {
            // Room for more than there is.
            policy.nr_leaves = 3;
        } else {
            let at = offset_of!(sysctl::CpuPolicy, leaves);
            one(buffers, at)[..24].copy_from_slice(leaf.as_bytes());
            policy.nr_leaves = 1;
        }
        put(&mut op.u, &policy);
        Ok(0)
    }

    fn populate_physmap(
        &self,
        id: DomId,
        extents: &mut [u64],
        order: u32,
        node: Option<NodeId>,
    ) -> usize {
        if self.tick() || order > self.largest_order.get() {
            return 0;
        }
        let mut domains = self.domains.borrow_mut();
        let domain = domains.get_mut(&id.0).expect("domain");
        let pages = 1u64 << order;
        let node = node.unwrap_or(NodeId(0));
        for (done, extent) in extents.iter_mut().enumerate() {
            let free = &mut self.free.borrow_mut()[node.0 as usize];
            let limit = domain.max_memkb / 4;
            if *free < pages || domain.pages.len() as u64 + pages > limit {
                return done;
            }
            *free -= pages;
            let mfn = self.next_mfn.get().next_multiple_of(pages);
            // A hole between extents, so that a mix-up of frame numbers shows.
            self.next_mfn.set(mfn + pages + 1);
            assert!(extent.is_multiple_of(pages), "an extent is aligned");
            for i in 0..pages {
                assert!(
                    domain.populated.insert(*extent + i, mfn + i).is_none(),
                    "frame {:#x} populated twice",
                    *extent + i
                );
                let name = if domain.hvm { *extent + i } else { mfn + i };
                domain.pages.insert(name, (node, None));
            }
            if !domain.hvm {
                *extent = mfn;
            }
            self.now
                .set(self.now.get() + pages * self.page_cost_ns.get());
        }
        extents.len()
    }

    fn decrease_reservation(&self, id: DomId, extents: &[u64]) -> usize {
        if self.tick() {
            return 0;
        }
        for (done, frame) in extents.iter().enumerate() {
            let page = self.with(id, |domain| domain.pages.remove(frame));
            let Some((node, contents)) = page else {
                return done;
            };
            let contents = contents.expect("a page given back was cleared");
            assert!(contents.borrow().iter().all(|&byte| byte == 0));
            self.free.borrow_mut()[node.0 as usize] += 1;
        }
        extents.len()
    }

    fn set_memory_map(&self, id: DomId, entries: &[MemmapEntry]) -> Result<(), Errno> {
        if self.tick() {
            return Err(Errno::ENOMEM);
        }
        self.with(id, |domain| domain.memmap = entries.to_vec());
        Ok(())
    }

    fn set_hvm_param(&self, id: DomId, index: u32, value: u64) -> Result<(), Errno> {
        if self.tick() {
            return Err(Errno::ENOMEM);
        }
        self.with(id, |domain| {
            assert!(domain.hvm);
            domain.params.insert(index, value);
        });
        Ok(())
    }

    fn hvm_param(&self, id: DomId, index: u32) -> Result<u64, Errno> {
        self.with(id, |domain| {
            domain.params.get(&index).copied().ok_or(Errno::EINVAL)
        })
    }

    fn alloc_unbound(&self, id: DomId) -> Result<EvtchnPort, Errno> {
        if self.tick() {
            return Err(Errno::ENOSPC);
        }
        Ok(self.with(id, |domain| {
            domain.ports += 1;
            EvtchnPort(domain.ports)
        }))
    }

    fn map_foreign(&self, id: DomId, frames: &[u64]) -> Result<FakeMap, Errno> {
        assert!((1..=MAP_PAGES).contains(&frames.len()));
        if self.tick() {
            return Err(Errno::ENOMEM);
        }
        let mut pages = Vec::new();
        self.with(id, |domain| {
            assert!(!domain.running, "mapped for writing while it runs");
            for frame in frames {
                if *frame == SHARED_INFO_MFN && !domain.hvm {
                    pages.push(domain.shared_info.get_or_insert_with(new_page).clone());
                    continue;
                }
                let (_, page) = domain.pages.get_mut(frame).ok_or(Errno::EINVAL)?;
                pages.push(page.get_or_insert_with(new_page).clone());
            }
            Ok(())
        })?;
        Ok(FakeMap::new(pages, &self.maps))
    }

    fn map_grant_frame(&self, id: DomId) -> Result<FakeMap, Errno> {
        if self.tick() {
            return Err(Errno::ENOMEM);
        }
        let page = self.with(id, |domain| {
            domain
                .grant_frame
                .get_or_insert_with(|| Rc::new(RefCell::new(vec![0; PAGE_SIZE].into_boxed_slice())))
                .clone()
        });
        Ok(FakeMap::new(vec![page], &self.maps))
    }

    fn pin_l4(&self, id: DomId, mfn: u64) -> Result<(), Errno> {
        if self.tick() {
            return Err(Errno::ENOMEM);
        }
        assert_eq!(self.maps.get(), 0, "pinned while a table may be mapped");
        self.with(id, |domain| {
            assert!(!domain.hvm);
            domain.pinned = Some(mfn);
        });
        Ok(())
    }

    fn own_domid(&self) -> DomId {
        DomId(0)
    }

    fn now_ns(&self) -> u64 {
        self.now.get()
    }

    fn sleep_ms(&self, ms: u32) -> impl Future<Output = ()> {
        self.now.set(self.now.get() + u64::from(ms) * 1_000_000);
        ready(())
    }

    fn breathe(&self) -> impl Future<Output = ()> {
        self.breaths.set(self.breaths.get() + 1);
        ready(())
    }
}

fn new_page() -> Page {
    Rc::new(RefCell::new(vec![OLD; PAGE_SIZE].into_boxed_slice()))
}

/// Mapped pages; counted, so that what stays mapped shows.
pub(crate) struct FakeMap {
    pages: Vec<Page>,
    count: Rc<Cell<usize>>,
}

impl FakeMap {
    fn new(pages: Vec<Page>, count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + pages.len());
        Self {
            pages,
            count: count.clone(),
        }
    }

    fn each(&self, mut offset: usize, len: usize, mut f: impl FnMut(&mut [u8], usize)) {
        let end = offset + len;
        assert!(end <= self.pages.len() * PAGE_SIZE, "outside of the window");
        let start = offset;
        while offset < end {
            let at = offset % PAGE_SIZE;
            let piece = (PAGE_SIZE - at).min(end - offset);
            let mut page = self.pages[offset / PAGE_SIZE].borrow_mut();
            f(&mut page[at..at + piece], offset - start);
            offset += piece;
        }
    }
}

impl Drop for FakeMap {
    fn drop(&mut self) {
        self.count.set(self.count.get() - self.pages.len());
    }
}

impl DomainPages for FakeMap {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.each(offset, bytes.len(), |to, at| {
            to.copy_from_slice(&bytes[at..at + to.len()]);
        });
    }

    fn zero(&mut self, offset: usize, len: usize) {
        self.each(offset, len, |to, _| to.fill(0));
    }

    fn read(&self, offset: usize, to: &mut [u8]) {
        let len = to.len();
        self.each(offset, len, |from, at| {
            to[at..at + from.len()].copy_from_slice(from);
        });
    }
}

/// Runs a future that never waits for anybody else.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
    panic!("the future does not end");
}
