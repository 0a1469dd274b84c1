//! What the domain code asks of the kernel: hypercalls, and windows on a guest's
//! memory.
//!
//! One method is one hypercall; the comment names it and its structure. The kernel
//! adds nothing but pointers: no retries, no policy. All calls are synchronous;
//! [`Hypercalls::breathe`] is where a long build lets other tasks run.

use core::future::Future;
use xen_abi::domctl::Domctl;
use xen_abi::errno::Errno;
use xen_abi::hvm::start_info::MemmapEntry;
use xen_abi::sysctl::Sysctl;
use xen_abi::{DomId, EvtchnPort};

/// A NUMA node, counted from 0 as Xen does.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct NodeId(pub u32);

impl core::fmt::Display for NodeId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}

/// A list that a domctl or sysctl points at.
#[derive(Debug)]
pub struct Buffer<'a> {
    /// Offset in `u` of the 64-bit pointer that the kernel fills in.
    pub pointer_at: usize,
    /// What it points at, for the length of the call.
    pub bytes: &'a mut [u8],
}

/// Pages of a guest, mapped one after the other, until dropped.
///
/// Dropping must unmap them (and flush the TLB) before the domain is destroyed, or
/// it stays as a zombie. The guest is paused or not yet started in all uses here;
/// still, no Rust reference into the pages may be made.
///
/// Offsets that leave the run are a bug of the caller and may panic.
pub trait DomainPages {
    /// Copies `bytes` to `offset`.
    fn write(&mut self, offset: usize, bytes: &[u8]);
    /// Clears `len` bytes at `offset`.
    fn zero(&mut self, offset: usize, len: usize);
    /// Copies out.
    fn read(&self, offset: usize, to: &mut [u8]);
}

/// The hypercalls that build, watch and end domains.
pub trait Hypercalls {
    /// See [`DomainPages`].
    type Map: DomainPages;

    /// `xen_version(XENVER_version)`: major << 16 | minor.
    fn version(&self) -> u32;

    /// `domctl` (36) with `op`, after writing the address of each buffer at its
    /// `pointer_at` in `op.u`. Returns Xen's answer, if not negative.
    fn domctl(&self, op: &mut Domctl, buffers: &mut [Buffer<'_>]) -> Result<u64, Errno>;

    /// `sysctl` (35), likewise.
    fn sysctl(&self, op: &mut Sysctl, buffers: &mut [Buffer<'_>]) -> Result<u64, Errno>;

    /// `memory_op(XENMEM_populate_physmap)`, `struct xen_memory_reservation`: extents of
    /// `1 << order` pages for `domain`, from `node` alone if given (`mem_flags` =
    /// `(node + 1) << 8 | XENMEMF_exact_node_request`). In: guest frame of each extent;
    /// out, for a PV domain: its machine frame. Returns how many were done, from the
    /// first on; negative answers count as 0.
    fn populate_physmap(
        &self,
        domain: DomId,
        extents: &mut [u64],
        order: u32,
        node: Option<NodeId>,
    ) -> usize;

    /// `memory_op(XENMEM_decrease_reservation)`: gives single pages of `domain` back to
    /// Xen. `extents`: guest frames, or machine frames of a PV domain. Returns how many
    /// were done.
    fn decrease_reservation(&self, domain: DomId, extents: &[u64]) -> usize;

    /// `memory_op(XENMEM_set_memory_map)`, `struct xen_foreign_memory_map` {u16 domid,
    /// then at 8 `struct xen_memory_map`}. Xen's entries are packed: 20 bytes each (u64
    /// address, u64 size, u32 type), without the `reserved` of [`MemmapEntry`].
    fn set_memory_map(&self, domain: DomId, entries: &[MemmapEntry]) -> Result<(), Errno>;

    /// `hvm_op(HVMOP_set_param)`, `struct xen_hvm_param`; indices in
    /// [`xen_abi::hvm::params`].
    fn set_hvm_param(&self, domain: DomId, index: u32, value: u64) -> Result<(), Errno>;

    /// `hvm_op(HVMOP_get_param)`.
    fn hvm_param(&self, domain: DomId, index: u32) -> Result<u64, Errno>;

    /// `event_channel_op(EVTCHNOP_alloc_unbound)` {u16 dom, u16 remote_dom, u32 port out}:
    /// a port in `domain`, for the pVM (`remote_dom` = our real domid or `DOMID_SELF`) to
    /// bind.
    fn alloc_unbound(&self, domain: DomId) -> Result<EvtchnPort, Errno>;

    /// `mmu_update` of our own L1 entries with `foreigndom` = `domain`: maps `frames`
    /// (guest frames of a PVH domain, machine frames of a PV one), writable, one after
    /// the other. All of them or none. At most [`MAP_PAGES`] at a time. -EINVAL: a hole.
    fn map_foreign(&self, domain: DomId, frames: &[u64]) -> Result<Self::Map, Errno>;

    /// `memory_op(XENMEM_acquire_resource)` (28) {u16 domid, u16 type = 1
    /// (`XENMEM_resource_grant_table`), u32 id = 0 (shared), u32 nr_frames = 1, u32 pad,
    /// u64 frame = 0, frame_list *}, then maps the *machine* frame it returns:
    /// `mmu_update` with command `MMU_PT_UPDATE_NO_TRANSLATE` (3) in `ptr` and
    /// `foreigndom` = `domain`, else Xen takes it for a guest frame of a PVH domain.
    fn map_grant_frame(&self, domain: DomId) -> Result<Self::Map, Errno>;

    /// `mmuext_op(MMUEXT_PIN_L4_TABLE)` (3) with `foreigndom` = `domain`, which is PV:
    /// Xen checks the page tables below machine frame `mfn` and holds them.
    fn pin_l4(&self, domain: DomId, mfn: u64) -> Result<(), Errno>;

    /// The domid by which guests know the pVM: 0 for dom0, the driver domain's own else.
    fn own_domid(&self) -> DomId;

    /// Nanoseconds, monotonic: what a hypercall cost is measured with it.
    fn now_ns(&self) -> u64;

    /// Comes back after `ms` milliseconds.
    fn sleep_ms(&self, ms: u32) -> impl Future<Output = ()>;

    /// Lets other tasks of this vCPU run.
    fn breathe(&self) -> impl Future<Output = ()>;
}

/// Most pages that [`Hypercalls::map_foreign`] is asked for at a time: 1 MiB.
pub const MAP_PAGES: usize = 256;

/// Cuts hypercalls over lists into pieces of bounded time.
///
/// Xen does not preempt a long hypercall for our events while upcalls are masked, so
/// the length of a list decides how long other tasks of this vCPU wait.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    batch: usize,
    least: usize,
    most: usize,
}

impl Pacer {
    /// What one piece should cost: long against the call itself, short against what
    /// a backend task on the same vCPU may wait.
    const TARGET_NS: u64 = 200_000;

    /// `least` to `most` elements in a piece; below `least` a piece costs what the call
    /// itself costs, and cutting it further would only make the whole longer.
    pub fn new(least: usize, most: usize) -> Self {
        let least = least.max(1);
        Self {
            batch: least,
            least,
            most: most.max(least),
        }
    }

    /// How many elements the next piece should have.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Learns from a piece that began at `start_ns`, and lets other tasks run.
    pub async fn pause<H: Hypercalls>(&mut self, calls: &H, start_ns: u64) {
        let cost = calls.now_ns().saturating_sub(start_ns);
        if cost > Self::TARGET_NS {
            self.batch = (self.batch / 2).max(self.least);
        } else if cost < Self::TARGET_NS / 2 {
            self.batch = (self.batch * 2).min(self.most);
        }
        calls.breathe().await;
    }
}
