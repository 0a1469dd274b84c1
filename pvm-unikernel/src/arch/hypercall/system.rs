//! The rest: version, console, traps, segments, devices, grants, platform, domctl, sysctl, hvm.

use super::{Errno, address, raw};
use xen_abi::arch_x86::TrapInfo;
use xen_abi::xen::{MulticallEntry, hypercall};
use xen_abi::{physdev, version};

/// Xen's version: major, minor.
pub fn xen_version() -> (u32, u32) {
    // SAFETY: `XENVER_version` takes no argument.
    let answer = unsafe {
        raw(
            hypercall::XEN_VERSION,
            [u64::from(version::XENVER_VERSION), 0, 0, 0, 0],
        )
    };
    let number = u32::try_from(answer.unwrap_or(0)).unwrap_or(0);
    (number >> 16, number & 0xffff)
}

/// Writes to Xen's console.
pub fn console_write(text: &[u8]) {
    // SAFETY: Xen reads `text`, which is borrowed for the call.
    let answer = unsafe {
        raw(
            hypercall::CONSOLE_IO,
            [
                u64::from(xen_abi::xen::CONSOLEIO_WRITE),
                text.len() as u64,
                text.as_ptr().expose_provenance() as u64,
                0,
                0,
            ],
        )
    };
    // There is nobody to tell if Xen refuses: this is where errors are told.
    answer.ok();
}

/// Installs exception handlers for the calling vCPU; the list ends with address 0.
///
/// # Errors
/// `EFAULT`.
///
/// # Safety
/// The addresses are handlers written for Xen's exception frame.
pub unsafe fn set_trap_table(table: &mut [TrapInfo]) -> Result<(), Errno> {
    assert!(table.last().is_some_and(|end| end.address == 0));
    // SAFETY: Xen reads up to the final entry, which is there.
    let answer = unsafe { raw(hypercall::SET_TRAP_TABLE, [address(table), 0, 0, 0, 0]) };
    answer.map(|_| ())
}

/// Sets the event and failsafe callbacks of the calling vCPU.
///
/// # Errors
/// `EINVAL`.
///
/// # Safety
/// The addresses are callbacks written for Xen's frame.
pub unsafe fn set_callbacks(event: u64, failsafe: u64) -> Result<(), Errno> {
    // SAFETY: no pointers that Xen follows now; the caller vouches for the code.
    let answer = unsafe { raw(hypercall::SET_CALLBACKS, [event, failsafe, 0, 0, 0]) };
    answer.map(|_| ())
}

/// Sets the GS base of the calling vCPU in kernel mode.
///
/// # Errors
/// `EINVAL`: not canonical.
///
/// # Safety
/// Code that reads through GS finds there what it expects.
pub unsafe fn set_gs_base(base: u64) -> Result<(), Errno> {
    // SAFETY: no pointers that Xen follows.
    let answer = unsafe {
        raw(
            hypercall::SET_SEGMENT_BASE,
            [u64::from(xen_abi::xen::SEGBASE_GS_KERNEL), base, 0, 0, 0],
        )
    };
    answer.map(|_| ())
}

/// Lets the calling vCPU use I/O ports.
///
/// # Errors
/// `EPERM`: not dom0.
pub fn set_iopl() -> Result<(), Errno> {
    let mut argument = physdev::SetIopl { iopl: 1 };
    // SAFETY: Xen reads one `physdev_set_iopl`.
    unsafe { physdev_op(physdev::PHYSDEVOP_SET_IOPL, &mut argument) }
}

/// A `physdev_op`.
///
/// # Errors
/// Xen's.
///
/// # Safety
/// `argument` is the command's structure; a frame named in it stays Xen's to write.
pub unsafe fn physdev_op<T>(command: u32, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    let answer = unsafe {
        raw(
            hypercall::PHYSDEV_OP,
            [u64::from(command), address(argument), 0, 0, 0],
        )
    };
    answer.map(|_| ())
}

/// A batch of grant-table operations; each answer is in its structure.
///
/// # Errors
/// Only if the batch as a whole is refused.
///
/// # Safety
/// `operations` are the command's structures, host addresses in them are windows of the
/// caller's, and frames named in them are the caller's to hand out.
pub unsafe fn grant_table_op<T>(command: u32, operations: &mut [T]) -> Result<(), Errno> {
    // SAFETY: the caller's promise; Xen reads and writes the whole slice.
    let answer = unsafe {
        raw(
            hypercall::GRANT_TABLE_OP,
            [
                u64::from(command),
                address(operations),
                operations.len() as u64,
                0,
                0,
            ],
        )
    };
    answer.map(|_| ())
}

/// A `platform_op` (platform.h); the structure starts with command and version.
///
/// # Errors
/// Xen's; `EACCES`: wrong interface version.
///
/// # Safety
/// `argument` is a whole `struct xen_platform_op`; addresses in it are valid for Xen.
pub unsafe fn platform_op<T>(argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: the caller's promise.
    unsafe { raw(hypercall::PLATFORM_OP, [address(argument), 0, 0, 0, 0]) }
}

/// A `domctl` (domctl.h).
///
/// # Errors
/// Xen's; `EACCES`: wrong interface version.
///
/// # Safety
/// `argument` is a whole `struct xen_domctl`; addresses in it are valid for Xen; what is
/// asked for takes nothing from under this domain.
pub unsafe fn domctl<T>(argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: the caller's promise.
    unsafe { raw(hypercall::DOMCTL, [address(argument), 0, 0, 0, 0]) }
}

/// A `sysctl` (sysctl.h).
///
/// # Errors
/// Xen's; `EACCES`: wrong interface version.
///
/// # Safety
/// `argument` is a whole `struct xen_sysctl`; addresses in it are valid for Xen.
pub unsafe fn sysctl<T>(argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: the caller's promise.
    unsafe { raw(hypercall::SYSCTL, [address(argument), 0, 0, 0, 0]) }
}

/// An `hvm_op` (hvm/hvm_op.h).
///
/// # Errors
/// Xen's.
///
/// # Safety
/// `argument` is the command's structure; addresses in it are valid for Xen.
pub unsafe fn hvm_op<T>(command: u32, argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: the caller's promise.
    unsafe {
        raw(
            hypercall::HVM_OP,
            [u64::from(command), address(argument), 0, 0, 0],
        )
    }
}

/// Several hypercalls in one; each answer is in its entry.
///
/// # Errors
/// Only if the batch as a whole is refused.
///
/// # Safety
/// Each entry alone would be sound to issue.
pub unsafe fn multicall(calls: &mut [MulticallEntry]) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    let answer = unsafe {
        raw(
            hypercall::MULTICALL,
            [address(calls), calls.len() as u64, 0, 0, 0],
        )
    };
    answer.map(|_| ())
}
