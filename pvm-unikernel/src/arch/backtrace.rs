//! Return addresses on the running vCPU's stack, by frame pointers.

use core::arch::asm;

/// The most frames shown.
const LIMIT: usize = 32;

/// Calls `each` with return addresses, innermost first, from the caller's frame or from
/// the frame at `frame` of a trapped context.
pub fn walk(frame: Option<u64>, mut each: impl FnMut(u64)) {
    let mut frame = frame.unwrap_or_else(|| {
        let rbp: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
        rbp
    });
    let stack = super::cpu::stack();
    for _ in 0..LIMIT {
        if !frame.is_multiple_of(8) || frame < stack.start || frame.saturating_add(16) > stack.end {
            return;
        }
        let at = core::ptr::with_exposed_provenance::<u64>(usize::try_from(frame).unwrap_or(0));
        // SAFETY: aligned, and 16 bytes from it lie in this vCPU's mapped stack.
        let next = unsafe { at.read_volatile() };
        // SAFETY: as above.
        let return_address = unsafe { at.wrapping_add(1).read_volatile() };
        if return_address == 0 {
            return;
        }
        each(return_address);
        if next <= frame {
            return;
        }
        frame = next;
    }
}
