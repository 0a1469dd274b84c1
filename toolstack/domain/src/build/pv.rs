//! Building a 64-bit PV guest, in the order of stock libxl.
//!
//! Left out against libxl: the CPU policy (a PV domain is born with the default one),
//! and `set_address_size` (a domain is born with 64 bits).

use super::frames::MachineFrames;
use super::kernel::load_kernel;
use super::populate::{populate, split};
use super::pv_layout::PvLayout;
use super::{
    BuildError, Built, ImageSource, Memory, PAGE, Placement, make_vcpus, seed_grants, that_fits,
};
use crate::config::GuestConfig;
use crate::hypercalls::{DomainPages, Hypercalls};
use crate::xen::{CallError, Xen};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::offset_of;
use xen_abi::arch_x86::{FLAT_KERNEL_CS, FLAT_KERNEL_SS, VGCF_IN_KERNEL, VcpuGuestContext};
use xen_abi::errno::Errno;
use xen_abi::xen::{SIF_MOD_START_PFN, SharedInfo, StartInfo, VcpuInfo};
use xen_abi::{DomId, EvtchnPort, PAGE_SIZE};
use zerocopy::{FromZeros, IntoBytes};

pub(super) async fn build<H: Hypercalls, S: ImageSource>(
    xen: Xen<'_, H>,
    id: DomId,
    config: &GuestConfig,
    placement: &Placement,
    images: &mut S,
    placing: &mut Option<impl Sized>,
) -> Result<Built, BuildError> {
    let layout = that_fits(config, PvLayout::new)?;
    let calls = xen.calls();
    let (store_port, console_port) = make_vcpus(&xen, id, config, placement)?;

    let nodes = split(core::slice::from_ref(&(0..layout.pages)), &placement.memory);
    let mut frames = MachineFrames::try_new(layout.pages)?;
    populate(calls, id, &nodes, Some(&mut frames)).await?;
    drop(placing.take());
    let mfn = |pfn| {
        frames
            .get(pfn)
            .unwrap_or_else(|| unreachable!("every frame below {} was populated", layout.pages))
    };
    let memory = Memory {
        calls,
        domain: id,
        machine_frames: Some(&frames),
    };

    load_kernel(&memory, config, layout.paddr_offset, images).await?;
    if let (Some(place), Some(ramdisk)) = (&layout.ramdisk, config.ramdisk) {
        let start = place.pfns.start * PAGE;
        memory
            .stream(start, images, ramdisk.image, 0, ramdisk.len)
            .await?;
        memory.zero_rest_of_page(start + ramdisk.len).await?;
    }
    write_p2m(&memory, &layout, mfn).await?;
    for pfn in [layout.xenstore, layout.console, layout.boot_stack] {
        memory.zero(pfn * PAGE, PAGE).await?;
    }
    for table in &layout.tables {
        let entries = layout.entries(table, mfn);
        memory.write(table.pfn * PAGE, entries.as_bytes()).await?;
    }
    let shared_info = xen
        .domain_info(id)?
        .ok_or(CallError {
            call: "getdomaininfo",
            errno: Errno::ESRCH,
        })?
        .shared_info_frame;
    let start_info = Box::new(start_info(
        config,
        &layout,
        mfn,
        shared_info,
        (store_port, console_port),
    ));
    let at = layout.start_info * PAGE;
    memory.write(at, start_info.as_bytes()).await?;
    memory
        .zero_rest_of_page(at + size_of::<StartInfo>() as u64)
        .await?;
    if let Some(pfn) = layout.hypercall_page {
        xen.init_hypercall_page(id, mfn(pfn))?;
    }
    // Nothing of the tables is mapped here any more: Xen takes no table that somebody
    // could write.
    let root = mfn(layout.root());
    calls.pin_l4(id, root).map_err(|errno| CallError {
        call: "MMUEXT_PIN_L4_TABLE",
        errno,
    })?;
    init_shared_info(calls, id, shared_info)?;
    xen.set_vcpu_context(id, 0, &mut first_vcpu(&layout, root))?;
    let (store_frame, console_frame) = (mfn(layout.xenstore), mfn(layout.console));
    seed_grants(&xen, id, console_frame, store_frame)?;

    Ok(Built {
        domain: id,
        store_port,
        console_port,
        store_frame,
        console_frame,
        nodes,
    })
}

/// Writes the list of machine frames, and clears the rest of its last page.
async fn write_p2m<H: Hypercalls>(
    memory: &Memory<'_, H>,
    layout: &PvLayout,
    mfn: impl Fn(u64) -> u64,
) -> Result<(), CallError> {
    const AT_A_TIME: u64 = 64 * 512;
    let mut pfn = 0;
    let start = layout.p2m.start * PAGE;
    while pfn < layout.pages {
        let end = layout.pages.min(pfn + AT_A_TIME);
        let list: Vec<u64> = (pfn..end).map(&mfn).collect();
        memory.write(start + pfn * 8, list.as_bytes()).await?;
        pfn = end;
    }
    memory.zero_rest_of_page(start + layout.pages * 8).await
}

fn start_info(
    config: &GuestConfig,
    layout: &PvLayout,
    mfn: impl Fn(u64) -> u64,
    shared_info: u64,
    (store_port, console_port): (EvtchnPort, EvtchnPort),
) -> StartInfo {
    let mut info = StartInfo {
        nr_pages: layout.pages,
        shared_info: shared_info << 12,
        store_mfn: mfn(layout.xenstore),
        store_evtchn: store_port.0,
        console_mfn: mfn(layout.console),
        console_evtchn: console_port.0,
        pt_base: layout.virt(layout.page_tables.start),
        nr_pt_frames: layout.page_tables.end - layout.page_tables.start,
        mfn_list: layout.p2m_virt,
        ..StartInfo::new_zeroed()
    };
    let magic = b"xen-3.0-x86_64";
    info.magic[..magic.len()].copy_from_slice(magic);
    if layout.p2m_apart {
        info.first_p2m_pfn = layout.p2m.start;
        info.nr_p2m_frames = layout.p2m.end - layout.p2m.start;
    }
    if let Some(ramdisk) = &layout.ramdisk {
        info.mod_start = ramdisk.mod_start;
        info.mod_len = ramdisk.mod_len;
        if ramdisk.by_frame {
            info.flags |= SIF_MOD_START_PFN;
        }
    }
    let cmdline = config.cmdline.as_bytes();
    info.cmd_line[..cmdline.len()].copy_from_slice(cmdline);
    info
}

/// All zero, and no upcalls until the guest is ready for them.
fn init_shared_info<H: Hypercalls>(calls: &H, id: DomId, frame: u64) -> Result<(), CallError> {
    let mut map = calls.map_foreign(id, &[frame]).map_err(|errno| CallError {
        call: "mmu_update(shared_info)",
        errno,
    })?;
    map.zero(0, PAGE_SIZE);
    let legacy_vcpus = size_of_val(&SharedInfo::new_zeroed().vcpu_info) / size_of::<VcpuInfo>();
    for vcpu in 0..legacy_vcpus {
        let at = offset_of!(SharedInfo, vcpu_info)
            + vcpu * size_of::<VcpuInfo>()
            + offset_of!(VcpuInfo, evtchn_upcall_mask);
        map.write(at, &[1]);
    }
    Ok(())
}

/// Registers of the first vCPU, as `xen.h` describes the start of day.
fn first_vcpu(layout: &PvLayout, root: u64) -> Box<VcpuGuestContext> {
    /// `VGCF_online`: it runs, once the domain is unpaused.
    const ONLINE: u64 = 1 << 5;
    const INTERRUPTS: u64 = 1 << 9;
    let mut context = Box::new(VcpuGuestContext::new_zeroed());
    let stack = layout.virt(layout.boot_stack + 1);
    let ss = FLAT_KERNEL_SS.into();
    context.flags = VGCF_IN_KERNEL | ONLINE;
    context.user_regs.rip = layout.entry;
    context.user_regs.rsp = stack;
    context.user_regs.rsi = layout.virt(layout.start_info);
    context.user_regs.rflags = INTERRUPTS;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = ss;
    context.kernel_ss = ss;
    context.kernel_sp = stack;
    context.ctrlreg[3] = root << 12;
    context.debugreg[6] = 0xffff_0ff0;
    context.debugreg[7] = 0x400;
    context
}
