//! `hvm/params.h` and `hvm/hvm_op.h`: parameters of a domain.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `HVMOP_set_param`.
pub const HVMOP_SET_PARAM: u32 = 0;
/// `HVMOP_get_param`.
pub const HVMOP_GET_PARAM: u32 = 1;
/// `HVM_PARAM_STORE_PFN`.
pub const STORE_PFN: u32 = 1;
/// `HVM_PARAM_STORE_EVTCHN`.
pub const STORE_EVTCHN: u32 = 2;
/// `HVM_PARAM_IOREQ_PFN`.
pub const IOREQ_PFN: u32 = 5;
/// `HVM_PARAM_BUFIOREQ_PFN`.
pub const BUFIOREQ_PFN: u32 = 6;
/// `HVM_PARAM_TIMER_MODE`.
pub const TIMER_MODE: u32 = 10;
/// `HVM_PARAM_IDENT_PT`.
pub const IDENT_PT: u32 = 12;
/// `HVM_PARAM_CONSOLE_PFN`.
pub const CONSOLE_PFN: u32 = 17;
/// `HVM_PARAM_CONSOLE_EVTCHN`.
pub const CONSOLE_EVTCHN: u32 = 18;
/// `HVM_PARAM_PAGING_RING_PFN`.
pub const PAGING_RING_PFN: u32 = 27;
/// `HVM_PARAM_MONITOR_RING_PFN`.
pub const MONITOR_RING_PFN: u32 = 28;
/// `HVM_PARAM_SHARING_RING_PFN`.
pub const SHARING_RING_PFN: u32 = 29;
/// `HVMPTM_no_delay_for_missed_ticks`: a value of [`TIMER_MODE`].
pub const TIMER_NO_DELAY_FOR_MISSED_TICKS: u64 = 1;

/// `struct xen_hvm_param`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct HvmParam {
    /// Whose.
    pub domid: u16,
    /// Unused.
    pub pad: u16,
    /// Which.
    pub index: u32,
    /// In or out.
    pub value: u64,
}

const _: () = assert!(size_of::<HvmParam>() == 16);

abi_check! {
    header "hvm/hvm_op.h";
    struct "struct xen_hvm_param" = HvmParam { "domid" => domid, "index" => index, "value" => value };
    const "HVMOP_set_param" = HVMOP_SET_PARAM;
    const "HVMOP_get_param" = HVMOP_GET_PARAM;
}

/// `hvm/params.h`.
pub mod numbers {
    crate::abi_check! {
        header "hvm/params.h";
        const "HVM_PARAM_STORE_PFN" = super::STORE_PFN;
        const "HVM_PARAM_STORE_EVTCHN" = super::STORE_EVTCHN;
        const "HVM_PARAM_IOREQ_PFN" = super::IOREQ_PFN;
        const "HVM_PARAM_BUFIOREQ_PFN" = super::BUFIOREQ_PFN;
        const "HVM_PARAM_TIMER_MODE" = super::TIMER_MODE;
        const "HVM_PARAM_IDENT_PT" = super::IDENT_PT;
        const "HVM_PARAM_CONSOLE_PFN" = super::CONSOLE_PFN;
        const "HVM_PARAM_CONSOLE_EVTCHN" = super::CONSOLE_EVTCHN;
        const "HVM_PARAM_PAGING_RING_PFN" = super::PAGING_RING_PFN;
        const "HVM_PARAM_MONITOR_RING_PFN" = super::MONITOR_RING_PFN;
        const "HVM_PARAM_SHARING_RING_PFN" = super::SHARING_RING_PFN;
        const "HVMPTM_no_delay_for_missed_ticks" = super::TIMER_NO_DELAY_FOR_MISSED_TICKS;
    }
}
