//! `platform.h`: the machine's firmware, through dom0.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XENPF_INTERFACE_VERSION`.
pub const XENPF_INTERFACE_VERSION: u32 = 0x0300_0001;
/// `XENPF_settime64`.
pub const XENPF_SETTIME64: u32 = 62;
/// `XENPF_enter_acpi_sleep`.
pub const XENPF_ENTER_ACPI_SLEEP: u32 = 51;
/// `XENPF_get_cpuinfo`.
pub const XENPF_GET_CPUINFO: u32 = 55;
/// `XENPF_firmware_info`.
pub const XENPF_FIRMWARE_INFO: u32 = 50;

/// `struct xen_platform_op`: every call's envelope.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PlatformOp {
    /// One of `XENPF_*`.
    pub cmd: u32,
    /// [`XENPF_INTERFACE_VERSION`].
    pub interface_version: u32,
    /// The structure that `cmd` wants, then zeroes.
    pub u: [u8; 128],
}

/// `struct xenpf_enter_acpi_sleep`: sleep or power off.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct EnterAcpiSleep {
    /// PM1a control.
    pub val_a: u16,
    /// PM1b control.
    pub val_b: u16,
    /// n of Sn.
    pub sleep_state: u32,
    /// `XENPF_ACPI_SLEEP_*`.
    pub flags: u32,
}

const _: () = assert!(size_of::<EnterAcpiSleep>() == 12);

abi_check! {
    header "platform.h";
    struct "struct xen_platform_op" = PlatformOp { "cmd" => cmd, "interface_version" => interface_version, "u" => u };
    struct "struct xenpf_enter_acpi_sleep" = EnterAcpiSleep { "val_a" => val_a, "val_b" => val_b, "sleep_state" => sleep_state, "flags" => flags };
    const "XENPF_INTERFACE_VERSION" = XENPF_INTERFACE_VERSION;
    const "XENPF_settime64" = XENPF_SETTIME64;
    const "XENPF_enter_acpi_sleep" = XENPF_ENTER_ACPI_SLEEP;
    const "XENPF_get_cpuinfo" = XENPF_GET_CPUINFO;
    const "XENPF_firmware_info" = XENPF_FIRMWARE_INFO;
}
