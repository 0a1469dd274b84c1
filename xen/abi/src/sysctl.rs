//! `sysctl.h`: facts about the host.
//!
//! An unstable interface, but what is used here is the same in 4.17 to 4.22;
//! only the number changes. Fields without a comment have the header's names,
//! meaning and units.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XEN_SYSCTL_INTERFACE_VERSION` of 4.17 to 4.20.
pub const INTERFACE_VERSION: u32 = 0x15;
/// `XEN_SYSCTL_INTERFACE_VERSION` of 4.21 and 4.22.
pub const INTERFACE_VERSION_4_21: u32 = 0x16;

/// `XEN_SYSCTL_*`: [`Sysctl::cmd`].
pub mod cmd {
    /// `XEN_SYSCTL_readconsole`
    pub const READCONSOLE: u32 = 1;
    /// `XEN_SYSCTL_physinfo`
    pub const PHYSINFO: u32 = 3;
    /// `XEN_SYSCTL_getdomaininfolist`
    pub const GETDOMAININFOLIST: u32 = 6;
    /// `XEN_SYSCTL_debug_keys`
    pub const DEBUG_KEYS: u32 = 7;
    /// `XEN_SYSCTL_getcpuinfo`
    pub const GETCPUINFO: u32 = 8;
    /// `XEN_SYSCTL_cputopoinfo`
    pub const CPUTOPOINFO: u32 = 16;
    /// `XEN_SYSCTL_numainfo`
    pub const NUMAINFO: u32 = 17;
    /// `XEN_SYSCTL_get_cpu_policy`
    pub const GET_CPU_POLICY: u32 = 29;
}

/// `XEN_SYSCTL_PHYSCAP_hvm`
pub const PHYSCAP_HVM: u32 = 1 << 0;
/// `XEN_SYSCTL_PHYSCAP_pv`
pub const PHYSCAP_PV: u32 = 1 << 1;
/// `XEN_SYSCTL_PHYSCAP_directio`
pub const PHYSCAP_DIRECTIO: u32 = 1 << 2;
/// `XEN_SYSCTL_PHYSCAP_hap`
pub const PHYSCAP_HAP: u32 = 1 << 3;
/// `XEN_SYSCTL_PHYSCAP_shadow`
pub const PHYSCAP_SHADOW: u32 = 1 << 4;
/// `XEN_SYSCTL_cpu_policy_hvm_default`
pub const CPU_POLICY_HVM_DEFAULT: u32 = 5;
/// `XEN_INVALID_NODE_ID`, also of sockets and cores
pub const INVALID_ID: u32 = !0;

/// `struct xen_sysctl`: every call's envelope.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Sysctl {
    /// One of [`cmd`].
    pub cmd: u32,
    /// `XEN_SYSCTL_INTERFACE_VERSION` of the running Xen.
    pub interface_version: u32,
    /// The structure that `cmd` wants, then zeroes.
    pub u: [u8; 128],
}

/// `struct xen_sysctl_readconsole`; `buffer` is a pointer.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ReadConsole {
    pub clear: u8,
    pub incremental: u8,
    pub pad0: u8,
    pub pad1: u8,
    pub index: u32,
    pub buffer: u64,
    pub count: u32,
    pub pad2: u32,
}

/// `struct xen_sysctl_physinfo`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PhysInfo {
    pub threads_per_core: u32,
    pub cores_per_socket: u32,
    pub nr_cpus: u32,
    pub max_cpu_id: u32,
    pub nr_nodes: u32,
    pub max_node_id: u32,
    pub cpu_khz: u32,
    pub capabilities: u32,
    pub arch_capabilities: u32,
    pub pad: u32,
    pub total_pages: u64,
    pub free_pages: u64,
    pub scrub_pages: u64,
    pub outstanding_pages: u64,
    pub max_mfn: u64,
    pub hw_cap: [u32; 8],
}

/// `struct xen_sysctl_getdomaininfolist`; `buffer` is a pointer.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct GetDomainInfoList {
    pub first_domain: u16,
    pub pad0: u16,
    pub max_domains: u32,
    pub buffer: u64,
    pub num_domains: u32,
    pub pad1: u32,
}

/// `struct xen_sysctl_debug_keys`; `keys` is a pointer.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct DebugKeys {
    pub keys: u64,
    pub nr_keys: u32,
    pub pad: u32,
}

/// `struct xen_sysctl_cpuinfo`, ns.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CpuInfo {
    pub idletime: u64,
}

/// `struct xen_sysctl_getcpuinfo`; `info` is a pointer.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct GetCpuInfo {
    pub max_cpus: u32,
    pub pad0: u32,
    pub info: u64,
    pub nr_cpus: u32,
    pub pad1: u32,
}

/// `struct xen_sysctl_cputopo`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CpuTopo {
    pub core: u32,
    pub socket: u32,
    pub node: u32,
}

/// `struct xen_sysctl_cputopoinfo`; `cputopo` is a pointer.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CpuTopoInfo {
    pub num_cpus: u32,
    pub pad: u32,
    pub cputopo: u64,
}

/// `struct xen_sysctl_meminfo`, bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MemInfo {
    pub memsize: u64,
    pub memfree: u64,
}

/// `struct xen_sysctl_numainfo`; `meminfo` and `distance` are pointers.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct NumaInfo {
    pub num_nodes: u32,
    pub pad: u32,
    pub meminfo: u64,
    pub distance: u64,
}
/// `struct xen_sysctl_cpu_policy`; `leaves` and `msrs` are pointers.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CpuPolicy {
    pub index: u32,
    pub nr_leaves: u32,
    pub nr_msrs: u32,
    pub rsvd: u32,
    pub leaves: u64,
    pub msrs: u64,
}

const _: () = assert!(size_of::<Sysctl>() == 136);
const _: () = assert!(size_of::<PhysInfo>() == 112);

abi_check! {
    header "sysctl.h";
    struct "struct xen_sysctl" = Sysctl { "cmd" => cmd, "interface_version" => interface_version, "u" => u };
    struct "struct xen_sysctl_readconsole" = ReadConsole {
        "clear" => clear, "incremental" => incremental, "index" => index, "buffer" => buffer, "count" => count
    };
    struct "struct xen_sysctl_physinfo" = PhysInfo {
        "threads_per_core" => threads_per_core, "cores_per_socket" => cores_per_socket, "nr_cpus" => nr_cpus,
        "max_cpu_id" => max_cpu_id, "nr_nodes" => nr_nodes, "max_node_id" => max_node_id, "cpu_khz" => cpu_khz,
        "capabilities" => capabilities, "total_pages" => total_pages, "free_pages" => free_pages,
        "scrub_pages" => scrub_pages, "outstanding_pages" => outstanding_pages, "max_mfn" => max_mfn, "hw_cap" => hw_cap
    };
    struct "struct xen_sysctl_getdomaininfolist" = GetDomainInfoList {
        "first_domain" => first_domain, "max_domains" => max_domains, "buffer" => buffer, "num_domains" => num_domains
    };
    struct "struct xen_sysctl_debug_keys" = DebugKeys { "keys" => keys, "nr_keys" => nr_keys };
    struct "struct xen_sysctl_cpuinfo" = CpuInfo { "idletime" => idletime };
    struct "struct xen_sysctl_getcpuinfo" = GetCpuInfo { "max_cpus" => max_cpus, "info" => info, "nr_cpus" => nr_cpus };
    struct "struct xen_sysctl_cputopo" = CpuTopo { "core" => core, "socket" => socket, "node" => node };
    struct "struct xen_sysctl_cputopoinfo" = CpuTopoInfo { "num_cpus" => num_cpus, "cputopo" => cputopo };
    struct "struct xen_sysctl_meminfo" = MemInfo { "memsize" => memsize, "memfree" => memfree };
    struct "struct xen_sysctl_numainfo" = NumaInfo { "num_nodes" => num_nodes, "meminfo" => meminfo, "distance" => distance };
    struct "struct xen_sysctl_cpu_policy" = CpuPolicy {
        "index" => index, "nr_leaves" => nr_leaves, "nr_msrs" => nr_msrs, "_rsvd" => rsvd, "leaves" => leaves, "msrs" => msrs
    };
    const "XEN_SYSCTL_INTERFACE_VERSION" = INTERFACE_VERSION;
    const "XEN_SYSCTL_readconsole" = cmd::READCONSOLE;
    const "XEN_SYSCTL_physinfo" = cmd::PHYSINFO;
    const "XEN_SYSCTL_getdomaininfolist" = cmd::GETDOMAININFOLIST;
    const "XEN_SYSCTL_debug_keys" = cmd::DEBUG_KEYS;
    const "XEN_SYSCTL_getcpuinfo" = cmd::GETCPUINFO;
    const "XEN_SYSCTL_cputopoinfo" = cmd::CPUTOPOINFO;
    const "XEN_SYSCTL_numainfo" = cmd::NUMAINFO;
    const "XEN_SYSCTL_get_cpu_policy" = cmd::GET_CPU_POLICY;
    const "XEN_SYSCTL_PHYSCAP_hvm" = PHYSCAP_HVM;
    const "XEN_SYSCTL_PHYSCAP_pv" = PHYSCAP_PV;
    const "XEN_SYSCTL_PHYSCAP_directio" = PHYSCAP_DIRECTIO;
    const "XEN_SYSCTL_PHYSCAP_hap" = PHYSCAP_HAP;
    const "XEN_SYSCTL_PHYSCAP_shadow" = PHYSCAP_SHADOW;
    const "XEN_SYSCTL_cpu_policy_hvm_default" = CPU_POLICY_HVM_DEFAULT;
    const "XEN_INVALID_NODE_ID" = INVALID_ID;
}
