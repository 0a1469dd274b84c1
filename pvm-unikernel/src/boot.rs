//! Bring-up, from Xen's first instruction to the first task.
//!
//! 1. vCPU 0 learns who it is, installs its handlers, maps the shared-info page: from here
//!    there are traps, a clock and a log.
//! 2. The reservation is mapped and the allocators start.
//! 3. vCPU infos, stacks and ports for all vCPUs; they start and enter their executors.
//! 4. vCPU 0 starts `main` as its first task and enters its own.
#![allow(
    unsafe_code,
    reason = "the first steps run before there is anything safe"
)]

use crate::arch::hypercall::{mmu, system, vcpu};
use crate::arch::{cpu, entry, shared_info, smp, traps};
use crate::event::Port;
use crate::mem::{self, Frames};
use crate::{exec, log as klog, panic, pinning};
use alloc::string::String;
use core::ptr::NonNull;
use hal::{Node, VcpuId};
use xen_abi::xen::{SIF_INITDOMAIN, StartInfo, VcpuInfo, virq};

/// What the first task starts with.
#[derive(Debug)]
pub struct BootInfo {
    /// The command line, without the path that boot loaders put first.
    pub command_line: String,
    /// The boot archive; empty if there is none.
    pub initrd: &'static [u8],
    /// Xen's version: major, minor.
    pub xen_version: (u32, u32),
    /// vCPUs that are up.
    pub vcpus: u32,
    /// Whether this is dom0, rather than a driver domain.
    pub is_dom0: bool,
}

/// Bytes of vCPU 0's stack (`arch::entry`).
const FIRST_STACK: u64 = 256 << 10;
/// Pages of the other vCPUs' stacks, with the guard page below.
const STACK_PAGES: usize = 32;

/// The value of `name=` on a command line; the last one counts.
pub fn option<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    command_line
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .next_back()
}

/// Whether a word stands alone on a command line.
pub fn flag(command_line: &str, name: &str) -> bool {
    command_line
        .split_ascii_whitespace()
        .any(|word| word == name)
}

/// Whether the kernel shall test itself instead of serving.
pub fn asks_for_selftest(command_line: &str) -> bool {
    flag(command_line, "selftest") || option(command_line, "selftest").is_some()
}

/// Brings the kernel up and runs `main` as the first task of vCPU 0.
///
/// # Safety
/// Called once, first, with the page that Xen passed to the entry point.
pub unsafe fn start<M, F>(start_info: *const StartInfo, main: M) -> !
where
    M: FnOnce(BootInfo) -> F,
    F: Future<Output = ()> + 'static,
{
    let stack_end = (&raw const entry::boot_stack_top).addr() as u64;
    cpu::identify_first(stack_end - FIRST_STACK..stack_end);
    // SAFETY: Xen's page, mapped until `mem::init` takes the boot mapping down.
    let start_info = unsafe { start_info.read() };
    traps::install_first();
    map_shared_info(start_info.shared_info);
    klog::init();
    let xen_version = system::xen_version();
    let frames = mem::init(&start_info);

    let command_line = command_line(&start_info);
    // For what happens before `main` reads all of it, and says what is wrong with it.
    let (level, action) = toolstack_boot::early(command_line.as_bytes());
    if let Some(level) = level {
        klog::set_level(level);
    }
    if let Some(action) = action {
        panic::set_action(action);
    }
    log::info!(
        "boot: Xen {}.{}, {} pages, boot archive of {} bytes",
        xen_version.0,
        xen_version.1,
        start_info.nr_pages,
        frames.initrd.len()
    );
    smp::prepare_first();
    let vcpus = start_vcpus();
    let is_dom0 = start_info.flags & SIF_INITDOMAIN != 0;
    if is_dom0 {
        pinning::pin_all(vcpus);
    }
    klog::announce(format_args!("{vcpus} vCPUs up"));
    let task = exec::spawn_local(main(BootInfo {
        command_line,
        initrd: frames.initrd,
        xen_version,
        vcpus,
        is_dom0,
    }));
    drop(task);
    exec::run()
}

fn map_shared_info(machine_address: u64) {
    let va = (&raw const entry::shared_info_page).addr() as u64;
    let entry = mem::mapping_of(machine_address >> 12);
    // SAFETY: the page's own frame holds nothing; it is not used again.
    unsafe { mmu::update_va_mapping(va, entry, mmu::Flush::Local) }
        .expect("Xen lets us map the shared-info page");
    shared_info::init();
}

fn command_line(start_info: &StartInfo) -> String {
    let bytes = &start_info.cmd_line;
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Gives every vCPU its info, ports and stack, and starts all but the running one.
/// Returns how many are up.
fn start_vcpus() -> u32 {
    let found = smp::count();
    let infos = Frames::alloc(
        (found as usize * size_of::<VcpuInfo>()).div_ceil(4096),
        Node(0),
    );
    let infos = infos.expect("boot memory holds a page of vCPU infos");
    let (info_mfn, info_va) = (infos.mfn(), infos.va());
    // Xen's for ever.
    core::mem::forget(infos);
    prepare_vcpu(0, info_mfn, info_va);
    exec::set_vcpu_count(1);
    for number in 1..found {
        prepare_vcpu(number, info_mfn, info_va);
        let stack = allocate_stack();
        // SAFETY: a stack of its own, never freed, and the root that all share.
        if let Err(errno) = unsafe { smp::start(number, mem::root(), stack) } {
            log::error!("boot: vCPU {number} of {found} does not start: {errno}");
            return number;
        }
        cpu::spin_until(|| exec::is_running(number));
        exec::set_vcpu_count(number + 1);
    }
    found
}

fn prepare_vcpu(number: u32, info_mfn: u64, info_va: NonNull<u8>) {
    let offset = number as usize * size_of::<VcpuInfo>();
    // SAFETY: `start_vcpus` allocated room for every vCPU's info.
    let info: NonNull<VcpuInfo> = unsafe { info_va.add(offset) }.cast();
    let (mfn, within) = (info_mfn + (offset / 4096) as u64, offset % 4096);
    let within = u32::try_from(within).expect("an offset in a page");
    // SAFETY: the slot is never used for anything else.
    unsafe { vcpu::register_vcpu_info(number, mfn, within) }.expect("the slot suits Xen");
    shared_info::set_vcpu_info(number as usize, info);
    vcpu::stop_periodic_timer(number).expect("the vCPU exists");
    let ipi = Port::bind_ipi(VcpuId(number)).expect("ports are free at boot");
    exec::set_ipi_port(number, ipi.number());
    let timer = Port::bind_vcpu_virq(virq::TIMER, VcpuId(number)).expect("ports are free at boot");
    // Both live as long as the vCPU: for ever.
    core::mem::forget((ipi, timer));
}

/// A stack with an unmapped page below it.
fn allocate_stack() -> core::ops::Range<u64> {
    let frames = Frames::alloc(STACK_PAGES, Node(0)).expect("boot memory holds the stacks");
    let low = frames.va().addr().get() as u64;
    let end = low + frames.len() as u64;
    core::mem::forget(frames);
    // SAFETY: nobody uses the lowest page of the run.
    unsafe { mmu::update_va_mapping(low, 0, mmu::Flush::All) }
        .expect("an own page can be unmapped");
    low + 4096..end
}

/// Where a secondary vCPU's Rust code begins.
#[unsafe(no_mangle)]
extern "C" fn secondary_entry(number: u64) -> ! {
    debug_assert_eq!(number, cpu::id() as u64);
    exec::run()
}
