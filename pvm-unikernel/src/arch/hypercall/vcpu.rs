//! `vcpu_op`.

use super::{Errno, address, raw};
use xen_abi::arch_x86::VcpuGuestContext;
use xen_abi::vcpu as abi;
use xen_abi::xen::hypercall::VCPU_OP;

fn op<T>(command: u32, vcpu: u32, argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: callers below pair the command with its structure, which Xen copies; those
    // whose effect can hurt are `unsafe` themselves.
    unsafe {
        raw(
            VCPU_OP,
            [u64::from(command), u64::from(vcpu), address(argument), 0, 0],
        )
    }
}

/// Whether a vCPU is up.
///
/// # Errors
/// `ENOENT`: no such vCPU.
pub fn is_up(vcpu: u32) -> Result<bool, Errno> {
    op(abi::VCPUOP_IS_UP, vcpu, &mut ()).map(|up| up != 0)
}

/// Gives a vCPU that has not run its first state.
///
/// # Errors
/// `EEXIST`: it has one; `EINVAL`: a value Xen refuses, or vCPU 32 or above without a
/// registered vcpu_info.
///
/// # Safety
/// The context's entry point, stack and page tables are for this vCPU to use.
pub unsafe fn initialise(vcpu: u32, context: &mut VcpuGuestContext) -> Result<(), Errno> {
    op(abi::VCPUOP_INITIALISE, vcpu, context).map(|_| ())
}

/// Starts an initialised vCPU.
///
/// # Errors
/// `EINVAL`: not initialised.
pub fn up(vcpu: u32) -> Result<(), Errno> {
    op(abi::VCPUOP_UP, vcpu, &mut ()).map(|_| ())
}

/// Stops the 100 Hz tick a PV vCPU starts with.
///
/// # Errors
/// `ENOENT`.
pub fn stop_periodic_timer(vcpu: u32) -> Result<(), Errno> {
    op(abi::VCPUOP_STOP_PERIODIC_TIMER, vcpu, &mut ()).map(|_| ())
}

/// Asks for `VIRQ_TIMER` at a system time; replaces the last request. Only for the calling
/// vCPU.
///
/// # Errors
/// `EINVAL`: another vCPU.
pub fn set_singleshot_timer(vcpu: u32, system_time_ns: u64) -> Result<(), Errno> {
    let mut argument = abi::SetSingleshotTimer {
        timeout_abs_ns: system_time_ns,
        ..abi::SetSingleshotTimer::default()
    };
    op(abi::VCPUOP_SET_SINGLESHOT_TIMER, vcpu, &mut argument).map(|_| ())
}

/// Withdraws the timer request.
///
/// # Errors
/// `EINVAL`: another vCPU.
pub fn stop_singleshot_timer(vcpu: u32) -> Result<(), Errno> {
    op(abi::VCPUOP_STOP_SINGLESHOT_TIMER, vcpu, &mut ()).map(|_| ())
}

/// Moves a vCPU's info to a place of ours, once and for good.
///
/// # Errors
/// `EINVAL`: already moved, or crosses a page.
///
/// # Safety
/// The 64 bytes stay Xen's to write for ever.
pub unsafe fn register_vcpu_info(vcpu: u32, mfn: u64, offset: u32) -> Result<(), Errno> {
    let mut argument = abi::RegisterVcpuInfo {
        mfn,
        offset,
        rsvd: 0,
    };
    op(abi::VCPUOP_REGISTER_VCPU_INFO, vcpu, &mut argument).map(|_| ())
}

/// Where a vCPU's time went.
///
/// # Errors
/// `ENOENT`.
pub fn runstate(vcpu: u32) -> Result<abi::RunstateInfo, Errno> {
    let mut argument = abi::RunstateInfo::default();
    op(abi::VCPUOP_GET_RUNSTATE_INFO, vcpu, &mut argument)?;
    Ok(argument)
}

/// APIC id (low half) and ACPI id (high half) of the pCPU below, if the vCPU is pinned.
///
/// # Errors
/// `EINVAL`: not pinned.
pub fn physid(vcpu: u32) -> Result<u64, Errno> {
    let mut argument = abi::GetPhysid::default();
    op(abi::VCPUOP_GET_PHYSID, vcpu, &mut argument)?;
    Ok(argument.phys_id)
}
