//! Building a PVH guest, in the order of stock libxl.
//!
//! Left out against libxl: claiming pages (placement looked, and a short count ends the
//! build).

use super::kernel::load_kernel;
use super::populate::{populate, populate_few, split};
use super::pvh_layout::{PvhLayout, Special, special_frames};
use super::{
    BuildError, Built, ImageSource, Memory, PAGE, Placement, cpuid, make_vcpus, pvh_vcpu,
    seed_grants, that_fits,
};
use crate::config::GuestConfig;
use crate::hypercalls::Hypercalls;
use crate::xen::{CallError, Xen};
use alloc::vec::Vec;
use xen_abi::DomId;
use xen_abi::hvm::params;

pub(super) async fn build<H: Hypercalls, S: ImageSource>(
    xen: Xen<'_, H>,
    id: DomId,
    config: &GuestConfig,
    placement: &Placement,
    images: &mut S,
    placing: &mut Option<impl Sized>,
) -> Result<Built, BuildError> {
    let layout = that_fits(config, PvhLayout::new)?;
    let calls = xen.calls();
    let memory = Memory {
        calls,
        domain: id,
        machine_frames: None,
    };
    let set_param = |index, value| {
        calls
            .set_hvm_param(id, index, value)
            .map_err(|errno| CallError {
                call: "HVMOP_set_param",
                errno,
            })
    };

    let (store_port, console_port) = make_vcpus(&xen, id, config, placement)?;
    set_param(params::TIMER_MODE, params::TIMER_NO_DELAY_FOR_MISSED_TICKS)?;
    xen.set_paging_pool(id, paging_pool(config))?;
    let mut leaves = xen.default_hvm_cpuid()?;
    cpuid::edit(&mut leaves);
    xen.set_cpuid(id, &mut leaves)?;
    drop(leaves);

    let nodes = split(&layout.ram, &placement.memory);
    populate(calls, id, &nodes, None).await?;
    populate_few(calls, id, special_frames())?;
    populate_few(calls, id, layout.acpi.start / PAGE..layout.acpi.end / PAGE)?;
    drop(placing.take());
    load_kernel(&memory, config, 0, images).await?;
    if let (Some(range), Some(ramdisk)) = (&layout.ramdisk, config.ramdisk) {
        memory
            .stream(range.start, images, ramdisk.image, 0, ramdisk.len)
            .await?;
        memory.zero_rest_of_page(range.end).await?;
    }
    make_special_pages(&memory, set_param).await?;
    memory
        .write(layout.start_info.start, &layout.start_info_bytes)
        .await?;
    memory.zero_rest_of_page(layout.start_info.end).await?;
    load_acpi(&memory, &layout).await?;
    calls
        .set_memory_map(id, &layout.memmap)
        .map_err(|errno| CallError {
            call: "XENMEM_set_memory_map",
            errno,
        })?;
    set_param(params::STORE_EVTCHN, u64::from(store_port.0))?;
    set_param(params::CONSOLE_EVTCHN, u64::from(console_port.0))?;
    let (store_frame, console_frame) = (Special::Xenstore.frame(), Special::Console.frame());
    seed_grants(&xen, id, console_frame, store_frame)?;
    start_state(&xen, id, config, &layout)?;

    Ok(Built {
        domain: id,
        store_port,
        console_port,
        store_frame,
        console_frame,
        nodes,
    })
}

/// libxl's rule: 1 MiB for each vCPU and 4 KiB for each MiB of memory, in bytes.
fn paging_pool(config: &GuestConfig) -> u64 {
    (256 * u64::from(config.max_vcpus) + u64::from(config.memory_mib)) * PAGE
}

/// Pages with a meaning to Xen, clear but for the page table that maps all of memory to
/// itself, which Intel's EPT needs while the guest has paging off.
async fn make_special_pages<H: Hypercalls>(
    memory: &Memory<'_, H>,
    set_param: impl Fn(u32, u64) -> Result<(), CallError>,
) -> Result<(), BuildError> {
    // Present, writable, user, accessed, dirty, 4 MiB.
    const FLAGS: u32 = 1 | 2 | 4 | 0x20 | 0x40 | 0x80;
    let frames = special_frames();
    let address = |special: Special| special.frame() * PAGE;
    memory
        .zero(frames.start * PAGE, (frames.end - frames.start) * PAGE)
        .await?;
    let table: Vec<u8> = (0..1024u32)
        .flat_map(|i| (i << 22 | FLAGS).to_le_bytes())
        .collect();
    memory.write(address(Special::IdentityPt), &table).await?;
    for (index, special) in [
        (params::STORE_PFN, Special::Xenstore),
        (params::BUFIOREQ_PFN, Special::BufferedIoreq),
        (params::IOREQ_PFN, Special::Ioreq),
        (params::CONSOLE_PFN, Special::Console),
        (params::PAGING_RING_PFN, Special::Paging),
        (params::MONITOR_RING_PFN, Special::Access),
        (params::SHARING_RING_PFN, Special::Sharing),
    ] {
        set_param(index, special.frame())?;
    }
    set_param(params::IDENT_PT, address(Special::IdentityPt))?;
    Ok(())
}

/// The ACPI info page (all zero without a device model), the tables and the RSDP.
async fn load_acpi<H: Hypercalls>(
    memory: &Memory<'_, H>,
    layout: &PvhLayout,
) -> Result<(), BuildError> {
    let acpi = &layout.acpi;
    memory.zero(acpi.start, acpi.end - acpi.start).await?;
    memory
        .write(acpi.start + PAGE, &layout.tables.bytes)
        .await?;
    memory.write(layout.rsdp, layout.rsdp_bytes()).await?;
    Ok(())
}

/// Memory types of every vCPU, then the first one's registers: last, because each call
/// puts all vCPUs down.
fn start_state<H: Hypercalls>(
    xen: &Xen<'_, H>,
    id: DomId,
    config: &GuestConfig,
    layout: &PvhLayout,
) -> Result<(), BuildError> {
    let context = xen.hvm_context(id)?;
    for vcpu in (0..config.max_vcpus).filter_map(|vcpu| u16::try_from(vcpu).ok()) {
        xen.set_hvm_context(id, &mut pvh_vcpu::mtrr(&context, vcpu)?)?;
    }
    let start_info = layout.start_info.start;
    xen.set_hvm_context(
        id,
        &mut pvh_vcpu::boot_cpu(&context, layout.entry, start_info)?,
    )?;
    Ok(())
}
