//! What Xen 4.19 to 4.22 have of their own: number and createdomain.
//!
//! 4.21 cut `altp2m_opts` into two 16-bit halves; zero means the same in both.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XEN_DOMCTL_INTERFACE_VERSION` of 4.19, 4.20 and 4.21.
pub const INTERFACE_VERSION: u32 = 0x17;
/// `XEN_DOMCTL_INTERFACE_VERSION` of 4.22.
pub const INTERFACE_VERSION_4_22: u32 = 0x18;

/// `struct xen_domctl_createdomain`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CreateDomain {
    pub ssidref: u32,
    pub handle: [u8; 16],
    pub flags: u32,
    pub iommu_opts: u32,
    pub max_vcpus: u32,
    pub max_evtchn_port: u32,
    pub max_grant_frames: i32,
    pub max_maptrack_frames: i32,
    pub grant_opts: u32,
    pub altp2m_opts: u32,
    pub vmtrace_size: u32,
    pub cpupool_id: u32,
    pub emulation_flags: u32,
    pub misc_flags: u32,
}

const _: () = assert!(size_of::<CreateDomain>() == 68);

abi_check! {
    header "domctl.h" for "4.20";
    struct "struct xen_domctl_createdomain" = CreateDomain {
        "ssidref" => ssidref, "handle" => handle, "flags" => flags, "iommu_opts" => iommu_opts,
        "max_vcpus" => max_vcpus, "max_evtchn_port" => max_evtchn_port, "max_grant_frames" => max_grant_frames,
        "max_maptrack_frames" => max_maptrack_frames, "grant_opts" => grant_opts, "altp2m_opts" => altp2m_opts,
        "vmtrace_size" => vmtrace_size, "cpupool_id" => cpupool_id, "arch.emulation_flags" => emulation_flags,
        "arch.misc_flags" => misc_flags
    };
    const "XEN_DOMCTL_INTERFACE_VERSION" = INTERFACE_VERSION;
}
