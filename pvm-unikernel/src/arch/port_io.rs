//! I/O ports: a few of dom0's devices have nothing else.

use core::arch::asm;

/// Writes a byte to a port.
///
/// # Safety
/// What the device does with it harms no memory of ours.
pub unsafe fn write8(port: u16, value: u8) {
    // SAFETY: the caller's promise; IOPL 1 is set on every vCPU.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags));
    }
}

/// Writes four bytes to a port.
///
/// # Safety
/// As for [`write8`].
pub unsafe fn write32(port: u16, value: u32) {
    // SAFETY: the caller's promise; IOPL 1 is set on every vCPU.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
    }
}

/// Reads four bytes from a port.
///
/// # Safety
/// As for [`write8`].
pub unsafe fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: the caller's promise; IOPL 1 is set on every vCPU.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags));
    }
    value
}
