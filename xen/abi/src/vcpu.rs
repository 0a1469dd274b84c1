//! `vcpu.h`: virtual CPUs.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VCPUOP_initialise`.
pub const VCPUOP_INITIALISE: u32 = 0;
/// `VCPUOP_up`.
pub const VCPUOP_UP: u32 = 1;
/// `VCPUOP_down`.
pub const VCPUOP_DOWN: u32 = 2;
/// `VCPUOP_is_up`.
pub const VCPUOP_IS_UP: u32 = 3;
/// `VCPUOP_get_runstate_info`.
pub const VCPUOP_GET_RUNSTATE_INFO: u32 = 4;
/// `VCPUOP_set_periodic_timer`.
pub const VCPUOP_SET_PERIODIC_TIMER: u32 = 6;
/// `VCPUOP_stop_periodic_timer`.
pub const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
/// `VCPUOP_set_singleshot_timer`.
pub const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
/// `VCPUOP_stop_singleshot_timer`.
pub const VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9;
/// `VCPUOP_register_vcpu_info`.
pub const VCPUOP_REGISTER_VCPU_INFO: u32 = 10;
/// `VCPUOP_get_physid`.
pub const VCPUOP_GET_PHYSID: u32 = 12;
/// `RUNSTATE_running`.
pub const RUNSTATE_RUNNING: u32 = 0;
/// `RUNSTATE_runnable`.
pub const RUNSTATE_RUNNABLE: u32 = 1;
/// `RUNSTATE_blocked`.
pub const RUNSTATE_BLOCKED: u32 = 2;
/// `RUNSTATE_offline`.
pub const RUNSTATE_OFFLINE: u32 = 3;

/// `struct vcpu_runstate_info`: where a vCPU's time went.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RunstateInfo {
    /// `RUNSTATE_*`.
    pub state: i32,
    /// Unused.
    pub pad: u32,
    /// System time, ns.
    pub state_entry_time: u64,
    /// Ns in each state.
    pub time: [u64; 4],
}

/// `struct vcpu_set_singleshot_timer`: one timer event.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SetSingleshotTimer {
    /// System time, ns.
    pub timeout_abs_ns: u64,
    /// `VCPU_SSHOTTMR_*`.
    pub flags: u32,
    /// Unused.
    pub pad: u32,
}

/// `struct vcpu_register_vcpu_info`: where a vCPU's info lies.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RegisterVcpuInfo {
    /// Its frame.
    pub mfn: u64,
    /// Offset in it; must not cross its end.
    pub offset: u32,
    /// Zero.
    pub rsvd: u32,
}

/// `struct vcpu_get_physid`: the physical CPU below.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct GetPhysid {
    /// APIC id, and ACPI id in the high half; out.
    pub phys_id: u64,
}

const _: () = assert!(size_of::<RunstateInfo>() == 48);
const _: () = assert!(size_of::<SetSingleshotTimer>() == 16);
const _: () = assert!(size_of::<RegisterVcpuInfo>() == 16);
const _: () = assert!(size_of::<GetPhysid>() == 8);

abi_check! {
    header "vcpu.h";
    struct "struct vcpu_runstate_info" = RunstateInfo { "state" => state, "state_entry_time" => state_entry_time, "time" => time };
    struct "struct vcpu_set_singleshot_timer" = SetSingleshotTimer { "timeout_abs_ns" => timeout_abs_ns, "flags" => flags };
    struct "struct vcpu_register_vcpu_info" = RegisterVcpuInfo { "mfn" => mfn, "offset" => offset, "rsvd" => rsvd };
    struct "struct vcpu_get_physid" = GetPhysid { "phys_id" => phys_id };
    const "VCPUOP_initialise" = VCPUOP_INITIALISE;
    const "VCPUOP_up" = VCPUOP_UP;
    const "VCPUOP_down" = VCPUOP_DOWN;
    const "VCPUOP_is_up" = VCPUOP_IS_UP;
    const "VCPUOP_get_runstate_info" = VCPUOP_GET_RUNSTATE_INFO;
    const "VCPUOP_set_periodic_timer" = VCPUOP_SET_PERIODIC_TIMER;
    const "VCPUOP_stop_periodic_timer" = VCPUOP_STOP_PERIODIC_TIMER;
    const "VCPUOP_set_singleshot_timer" = VCPUOP_SET_SINGLESHOT_TIMER;
    const "VCPUOP_stop_singleshot_timer" = VCPUOP_STOP_SINGLESHOT_TIMER;
    const "VCPUOP_register_vcpu_info" = VCPUOP_REGISTER_VCPU_INFO;
    const "VCPUOP_get_physid" = VCPUOP_GET_PHYSID;
    const "RUNSTATE_running" = RUNSTATE_RUNNING;
    const "RUNSTATE_runnable" = RUNSTATE_RUNNABLE;
    const "RUNSTATE_blocked" = RUNSTATE_BLOCKED;
    const "RUNSTATE_offline" = RUNSTATE_OFFLINE;
}
