//! `sched_op`: blocking, yielding, shutting the host down.

use super::{address, raw};
use xen_abi::sched as abi;
use xen_abi::xen::hypercall::SCHED_OP;

/// Sleeps until an event is pending for this vCPU; returns at once if one is.
///
/// Opens the upcall mask while asleep; the callback closes it again.
pub fn block() {
    // SAFETY: no argument; the callback runs on this stack, below what is live (no red
    // zone), and touches nothing.
    let answer = unsafe { raw(SCHED_OP, [u64::from(abi::SCHEDOP_BLOCK), 0, 0, 0, 0]) };
    debug_assert!(answer.is_ok(), "SCHEDOP_block cannot fail");
}

/// Lets another vCPU of this core run.
pub fn yield_core() {
    // SAFETY: no argument.
    let answer = unsafe { raw(SCHED_OP, [u64::from(abi::SCHEDOP_YIELD), 0, 0, 0, 0]) };
    debug_assert!(answer.is_ok(), "SCHEDOP_yield cannot fail");
}

/// What becomes of the host when dom0 shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// Xen halts the machine; ACPI power-off needs `XENPF_enter_acpi_sleep` first.
    PowerOff,
    /// Xen reboots the machine.
    Reboot,
    /// Xen says "crashed" and reboots, unless booted with `noreboot`.
    Crash,
}

/// Ends dom0, and with it the host.
pub fn shutdown(reason: ShutdownReason) -> ! {
    let mut argument = abi::Shutdown {
        reason: match reason {
            ShutdownReason::PowerOff => abi::SHUTDOWN_POWEROFF,
            ShutdownReason::Reboot => abi::SHUTDOWN_REBOOT,
            ShutdownReason::Crash => abi::SHUTDOWN_CRASH,
        },
    };
    loop {
        // SAFETY: Xen reads one `sched_shutdown`.
        let answer = unsafe {
            raw(
                SCHED_OP,
                [
                    u64::from(abi::SCHEDOP_SHUTDOWN),
                    address(&mut argument),
                    0,
                    0,
                    0,
                ],
            )
        };
        debug_assert!(answer.is_ok(), "SCHEDOP_shutdown cannot fail");
        block();
    }
}
