//! Secondary vCPUs: how many, and starting one.

use super::hypercall::{Errno, system, vcpu};
use super::{cpu, traps};
use alloc::boxed::Box;
use xen_abi::arch_x86::{FLAT_KERNEL_CS, FLAT_KERNEL_SS, VGCF_IN_KERNEL, VcpuGuestContext};
use zerocopy::FromZeros;

/// vCPUs that Xen gave this domain, up to what the kernel can run.
pub fn count() -> u32 {
    let limit = u32::try_from(cpu::MAX_VCPUS).unwrap_or(u32::MAX);
    (0..limit)
        .find(|&number| vcpu::is_up(number).is_err())
        .unwrap_or(limit)
}

/// Interrupts on, I/O privilege 1: a PV kernel's flags on entry.
const INITIAL_RFLAGS: u64 = 0x1202;

/// Starts vCPU `number` at `secondary_entry` on the given stack and page tables, after its
/// info was registered (mandatory from vCPU 32 up).
///
/// # Errors
/// Xen's reason.
///
/// # Safety
/// The stack is mapped and belongs to that vCPU for ever; `root_mfn` is the kernel's root.
pub unsafe fn start(number: u32, root_mfn: u64, stack: core::ops::Range<u64>) -> Result<(), Errno> {
    let mut context = Box::new(VcpuGuestContext::new_zeroed());
    let (event, failsafe) = traps::callbacks();
    context.flags = VGCF_IN_KERNEL;
    context.user_regs.rdi = u64::from(number);
    context.user_regs.rip = (&raw const super::entry::secondary_start).addr() as u64;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.rflags = INITIAL_RFLAGS;
    context.user_regs.rsp = stack.end;
    context.user_regs.ss = u64::from(FLAT_KERNEL_SS);
    context.kernel_ss = u64::from(FLAT_KERNEL_SS);
    context.kernel_sp = stack.end;
    context.ctrlreg[3] = root_mfn << 12;
    context.event_callback_eip = event;
    context.failsafe_callback_eip = failsafe;
    context.gs_base_kernel = cpu::prepare(number, stack);
    for trap in traps::table().iter().filter(|trap| trap.address != 0) {
        context.trap_ctxt[usize::from(trap.vector)] = *trap;
    }
    // SAFETY: the caller's promise; the entry point is written for this.
    unsafe { vcpu::initialise(number, &mut context) }?;
    vcpu::up(number)
}

/// What vCPU 0 needs besides: the others get I/O privilege in their flags.
pub fn prepare_first() {
    if let Err(errno) = system::set_iopl() {
        log::warn!("boot: no I/O ports: {errno}");
    }
}
