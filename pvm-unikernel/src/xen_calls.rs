//! The hypercalls that the domain code asks for.
#![expect(unsafe_code, reason = "fills pointers into structures for Xen")]

use alloc::vec::Vec;

use toolstack_domain::hypercalls::{Buffer, DomainPages, Hypercalls, NodeId};
use xen_abi::domctl::Domctl;
use xen_abi::errno::Errno;
use xen_abi::hvm::params::{HVMOP_GET_PARAM, HVMOP_SET_PARAM, HvmParam};
use xen_abi::hvm::start_info::MemmapEntry;
use xen_abi::memory_foreign::{
    AcquireResource, ForeignMemoryMap, XENMEM_ACQUIRE_RESOURCE, XENMEM_RESOURCE_GRANT_TABLE,
    XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED, XENMEM_SET_MEMORY_MAP,
};
use xen_abi::sysctl::Sysctl;
use xen_abi::{DomId, EvtchnPort};

use crate::arch::hypercall::{event, memory, mmu, system};
use crate::mem::LocalForeignMap;
use crate::{exec, time};

/// Xen, as the running vCPU calls it.
#[derive(Clone, Copy, Debug, Default)]
pub struct XenCalls;

/// Writes the address of each buffer where the operation wants it.
fn lend(u: &mut [u8], buffers: &mut [Buffer<'_>]) {
    for buffer in buffers {
        let address = buffer.bytes.as_mut_ptr().expose_provenance() as u64;
        u[buffer.pointer_at..buffer.pointer_at + 8].copy_from_slice(&address.to_le_bytes());
    }
}

impl Hypercalls for XenCalls {
    type Map = LocalForeignMap;

    fn version(&self) -> u32 {
        let (major, minor) = system::xen_version();
        major << 16 | minor
    }

    fn domctl(&self, op: &mut Domctl, buffers: &mut [Buffer<'_>]) -> Result<u64, Errno> {
        lend(&mut op.u, buffers);
        // SAFETY: a whole `xen_domctl`; the addresses in it are those of `buffers`, borrowed
        // for the call and as long as the lists that the operation's counts promise (the
        // domain code makes count and buffer from the same slice).
        unsafe { system::domctl(op) }
    }

    fn sysctl(&self, op: &mut Sysctl, buffers: &mut [Buffer<'_>]) -> Result<u64, Errno> {
        lend(&mut op.u, buffers);
        // SAFETY: as for `domctl`.
        unsafe { system::sysctl(op) }
    }

    fn populate_physmap(
        &self,
        domain: DomId,
        extents: &mut [u64],
        order: u32,
        node: Option<NodeId>,
    ) -> usize {
        let flags = node.map_or(0, |node| memory::node_flags(node.0, true));
        memory::populate(domain, extents, order, flags).unwrap_or(0)
    }

    fn decrease_reservation(&self, domain: DomId, extents: &[u64]) -> usize {
        assert!(
            domain != DomId::SELF && domain != self.own_domid(),
            "not for our own memory"
        );
        let mut frames = Vec::from(extents);
        // SAFETY: another domain's frames, to which no Rust reference exists.
        unsafe { memory::decrease(domain, &mut frames, 0) }.unwrap_or(0)
    }

    fn set_memory_map(&self, domain: DomId, entries: &[MemmapEntry]) -> Result<(), Errno> {
        // `struct e820entry` is packed: 20 bytes.
        let mut packed: Vec<u8> = entries
            .iter()
            .flat_map(|e| {
                let mut bytes = [0; 20];
                bytes[..8].copy_from_slice(&e.addr.to_le_bytes());
                bytes[8..16].copy_from_slice(&e.size.to_le_bytes());
                bytes[16..].copy_from_slice(&e.kind.to_le_bytes());
                bytes
            })
            .collect();
        let mut map = ForeignMemoryMap {
            domid: domain.0,
            nr_entries: u32::try_from(entries.len()).map_err(|_| Errno::EINVAL)?,
            buffer: packed.as_mut_ptr().expose_provenance() as u64,
            ..ForeignMemoryMap::default()
        };
        // SAFETY: the command's structure, and a list of as many entries as it says.
        unsafe { memory::op(XENMEM_SET_MEMORY_MAP, &mut map) }.map(drop)
    }

    fn set_hvm_param(&self, domain: DomId, index: u32, value: u64) -> Result<(), Errno> {
        let mut param = HvmParam {
            domid: domain.0,
            index,
            value,
            ..HvmParam::default()
        };
        // SAFETY: the command's structure; no address in it is ours.
        unsafe { system::hvm_op(HVMOP_SET_PARAM, &mut param) }.map(drop)
    }

    fn hvm_param(&self, domain: DomId, index: u32) -> Result<u64, Errno> {
        let mut param = HvmParam {
            domid: domain.0,
            index,
            ..HvmParam::default()
        };
        // SAFETY: as above.
        unsafe { system::hvm_op(HVMOP_GET_PARAM, &mut param) }?;
        Ok(param.value)
    }

    fn alloc_unbound(&self, domain: DomId) -> Result<EvtchnPort, Errno> {
        event::alloc_unbound(domain, self.own_domid())
    }

    fn map_foreign(&self, domain: DomId, frames: &[u64]) -> Result<LocalForeignMap, Errno> {
        LocalForeignMap::new(domain, frames, true).map_err(|failed| failed.errno)
    }

    fn map_grant_frame(&self, domain: DomId) -> Result<LocalForeignMap, Errno> {
        let mut frame = 0u64;
        let mut acquire = AcquireResource {
            domid: domain.0,
            ty: XENMEM_RESOURCE_GRANT_TABLE,
            id: XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED,
            nr_frames: 1,
            frame_list: (&raw mut frame).expose_provenance() as u64,
            ..AcquireResource::default()
        };
        // SAFETY: the command's structure, with room for the one frame asked for.
        unsafe { memory::op(XENMEM_ACQUIRE_RESOURCE, &mut acquire) }?;
        // SAFETY: `frame` is a live local that Xen has just written.
        let frame = unsafe { (&raw const frame).read_volatile() };
        LocalForeignMap::of_machine_frame(domain, frame).map_err(|failed| failed.errno)
    }

    fn pin_l4(&self, domain: DomId, mfn: u64) -> Result<(), Errno> {
        mmu::pin_l4_of(domain, mfn)
    }

    fn own_domid(&self) -> DomId {
        // The pVM is dom0: Xen's start info said so at boot, or the kernel had stopped.
        DomId(0)
    }

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    async fn breathe(&self) {
        exec::yield_now().await;
    }

    async fn sleep_ms(&self, ms: u32) {
        time::sleep(core::time::Duration::from_millis(ms.into())).await;
    }
}

impl DomainPages for LocalForeignMap {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.pages().write_bytes(offset, bytes);
    }

    fn zero(&mut self, offset: usize, len: usize) {
        LocalForeignMap::zero(self, offset, len);
    }

    fn read(&self, offset: usize, to: &mut [u8]) {
        self.pages().read_bytes(offset, to);
    }
}
