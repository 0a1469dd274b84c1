//! The end of the host: power off, reboot.

#![expect(unsafe_code, reason = "one platform hypercall")]

use driver_acpi::{Acpi, sleep_type_s5};
use xen_abi::platform::{
    EnterAcpiSleep, PlatformOp, XENPF_ENTER_ACPI_SLEEP, XENPF_INTERFACE_VERSION,
};
use zerocopy::IntoBytes;

use crate::arch::hypercall::sched::{ShutdownReason, shutdown};
use crate::arch::hypercall::system;

/// `SLP_EN` of the PM1 control registers.
const SLP_EN: u16 = 1 << 13;
/// Bit where `SLP_TYP` begins.
const SLP_TYP_SHIFT: u16 = 10;

/// How this machine is turned off.
#[derive(Clone, Copy, Debug)]
pub struct Power {
    /// `SLP_TYPa` and `SLP_TYPb` of S5, if the firmware says.
    s5: Option<(u8, u8)>,
}

impl Power {
    /// Looks for `_S5_` in the DSDT and the SSDTs.
    pub fn from_firmware(acpi: &Acpi) -> Self {
        let s5 = acpi
            .tables()
            .iter()
            .filter(|t| matches!(&t.signature, b"DSDT" | b"SSDT"))
            .find_map(sleep_type_s5);
        Self { s5 }
    }

    /// Turns the machine off by ACPI S5. Returns only to halt through Xen if that is not
    /// possible: `SHUTDOWN_poweroff` alone leaves the machine on.
    pub fn off(self) -> ! {
        if let Some((a, b)) = self.s5 {
            let sleep = EnterAcpiSleep {
                val_a: u16::from(a) << SLP_TYP_SHIFT | SLP_EN,
                val_b: u16::from(b) << SLP_TYP_SHIFT | SLP_EN,
                sleep_state: 5,
                flags: 0,
            };
            let mut op = PlatformOp {
                cmd: XENPF_ENTER_ACPI_SLEEP,
                interface_version: XENPF_INTERFACE_VERSION,
                u: [0; 128],
            };
            op.u[..size_of_val(&sleep)].copy_from_slice(sleep.as_bytes());
            // SAFETY: a whole `xen_platform_op` without addresses; if Xen grants it, nothing
            // of ours runs any more.
            if let Err(errno) = unsafe { system::platform_op(&mut op) } {
                log::error!("power: Xen refused S5: {errno}; halting instead");
            }
        } else {
            log::error!("power: the firmware names no S5 state; halting instead");
        }
        shutdown(ShutdownReason::PowerOff)
    }

    /// Resets the machine through Xen.
    pub fn reboot(self) -> ! {
        shutdown(ShutdownReason::Reboot)
    }
}
