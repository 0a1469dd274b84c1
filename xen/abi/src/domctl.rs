//! `domctl.h`: operations on domains.
//!
//! An unstable interface: number and layouts change with Xen. What all supported
//! versions share is here; what differs has a module for each layout. Fields without
//! a comment have the names, meaning and units of the header.

pub mod v4_17;
pub mod v4_19;

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XEN_DOMCTL_*`: [`Domctl::cmd`].
pub mod cmd {
    /// `XEN_DOMCTL_createdomain`
    pub const CREATEDOMAIN: u32 = 1;
    /// `XEN_DOMCTL_destroydomain`
    pub const DESTROYDOMAIN: u32 = 2;
    /// `XEN_DOMCTL_pausedomain`
    pub const PAUSEDOMAIN: u32 = 3;
    /// `XEN_DOMCTL_unpausedomain`
    pub const UNPAUSEDOMAIN: u32 = 4;
    /// `XEN_DOMCTL_getdomaininfo`
    pub const GETDOMAININFO: u32 = 5;
    /// `XEN_DOMCTL_setvcpuaffinity`
    pub const SETVCPUAFFINITY: u32 = 9;
    /// `XEN_DOMCTL_shadow_op`
    pub const SHADOW_OP: u32 = 10;
    /// `XEN_DOMCTL_max_mem`
    pub const MAX_MEM: u32 = 11;
    /// `XEN_DOMCTL_setvcpucontext`
    pub const SETVCPUCONTEXT: u32 = 12;
    /// `XEN_DOMCTL_getvcpuinfo`
    pub const GETVCPUINFO: u32 = 14;
    /// `XEN_DOMCTL_max_vcpus`
    pub const MAX_VCPUS: u32 = 15;
    /// `XEN_DOMCTL_hypercall_init`
    pub const HYPERCALL_INIT: u32 = 22;
    /// `XEN_DOMCTL_resumedomain`
    pub const RESUMEDOMAIN: u32 = 27;
    /// `XEN_DOMCTL_gethvmcontext`
    pub const GETHVMCONTEXT: u32 = 33;
    /// `XEN_DOMCTL_sethvmcontext`
    pub const SETHVMCONTEXT: u32 = 34;
    /// `XEN_DOMCTL_set_address_size`
    pub const SET_ADDRESS_SIZE: u32 = 35;
    /// `XEN_DOMCTL_settscinfo`
    pub const SETTSCINFO: u32 = 60;
    /// `XEN_DOMCTL_set_cpu_policy`
    pub const SET_CPU_POLICY: u32 = 83;
    /// `XEN_DOMCTL_set_paging_mempool_size`
    pub const SET_PAGING_MEMPOOL_SIZE: u32 = 86;
}

/// `XEN_DOMINF_dying`
pub const DOMINF_DYING: u32 = 1 << 0;
/// `XEN_DOMINF_hvm_guest`
pub const DOMINF_HVM_GUEST: u32 = 1 << 1;
/// `XEN_DOMINF_shutdown`
pub const DOMINF_SHUTDOWN: u32 = 1 << 2;
/// `XEN_DOMINF_paused`
pub const DOMINF_PAUSED: u32 = 1 << 3;
/// `XEN_DOMINF_blocked`
pub const DOMINF_BLOCKED: u32 = 1 << 4;
/// `XEN_DOMINF_running`
pub const DOMINF_RUNNING: u32 = 1 << 5;
/// `XEN_DOMINF_shutdownmask`
pub const DOMINF_SHUTDOWNMASK: u32 = 255;
/// `XEN_DOMINF_shutdownshift`
pub const DOMINF_SHUTDOWNSHIFT: u32 = 16;
/// `XEN_DOMCTL_CDF_hvm`
pub const CDF_HVM: u32 = 1 << 0;
/// `XEN_DOMCTL_CDF_hap`
pub const CDF_HAP: u32 = 1 << 1;
/// `XEN_DOMCTL_CDF_oos_off`
pub const CDF_OOS_OFF: u32 = 1 << 3;
/// `XEN_VCPUAFFINITY_HARD`
pub const VCPUAFFINITY_HARD: u32 = 1;
/// `XEN_X86_EMU_LAPIC`
pub const EMU_LAPIC: u32 = 1;
/// `XEN_CPUID_NO_SUBLEAF`
pub const CPUID_NO_SUBLEAF: u32 = 0xffff_ffff;

/// `struct xen_domctl`: every call's envelope.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Domctl {
    /// One of [`cmd`].
    pub cmd: u32,
    /// `XEN_DOMCTL_INTERFACE_VERSION` of the running Xen.
    pub interface_version: u32,
    /// Whom it concerns; out for `CREATEDOMAIN`.
    pub domain: u16,
    /// Unused.
    pub pad: [u16; 3],
    /// The structure that `cmd` wants, then zeroes.
    pub u: [u8; 128],
}

/// `struct xen_domctl_getdomaininfo`.
///
/// The same in 4.17 to 4.22.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct GetDomainInfo {
    /// Which.
    pub domain: u16,
    /// Unused.
    pub pad1: u16,
    /// `DOMINF_*`, and the shutdown code.
    pub flags: u32,
    /// Pages it owns.
    pub tot_pages: u64,
    /// Pages it may own.
    pub max_pages: u64,
    /// Claimed, not populated.
    pub outstanding_pages: u64,
    /// Shared.
    pub shr_pages: u64,
    /// Paged out.
    pub paged_pages: u64,
    /// Frame of its shared-info page; all ones: none.
    pub shared_info_frame: u64,
    /// Nanoseconds, of all vCPUs.
    pub cpu_time: u64,
    /// vCPUs online.
    pub nr_online_vcpus: u32,
    /// `~0`: no vCPU.
    pub max_vcpu_id: u32,
    /// XSM label.
    pub ssidref: u32,
    /// UUID.
    pub handle: [u8; 16],
    /// Which pool.
    pub cpupool: u32,
    /// Bits of its physical addresses.
    pub gpaddr_bits: u8,
    /// Unused.
    pub pad2: [u8; 7],
    /// `arch_config.emulation_flags`.
    pub emulation_flags: u32,
    /// `arch_config.misc_flags`.
    pub misc_flags: u32,
}

/// `struct xen_domctl_max_mem`, KiB.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MaxMem {
    pub max_memkb: u64,
}

/// `struct xen_domctl_max_vcpus`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MaxVcpus {
    pub max: u32,
}

/// `struct xenctl_bitmap`; `bitmap` is a pointer.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Bitmap {
    pub bitmap: u64,
    pub nr_bits: u32,
    pub pad: u32,
}

/// `struct xen_domctl_vcpuaffinity`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VcpuAffinity {
    pub vcpu: u32,
    pub flags: u32,
    pub cpumap_hard: Bitmap,
    pub cpumap_soft: Bitmap,
}

/// `struct xen_domctl_getvcpuinfo`; `cpu_time` in ns.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct GetVcpuInfo {
    pub vcpu: u32,
    pub online: u8,
    pub blocked: u8,
    pub running: u8,
    pub pad0: u8,
    pub cpu_time: u64,
    pub cpu: u32,
    pub pad1: u32,
}

/// `struct xen_domctl_vcpucontext`; `ctxt` points at a `vcpu_guest_context`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VcpuContext {
    pub vcpu: u32,
    pub pad: u32,
    pub ctxt: u64,
}

/// `struct xen_domctl_hypercall_init`: for PV, a machine frame.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct HypercallInit {
    pub gmfn: u64,
}

/// `struct xen_domctl_hvmcontext`; `buffer` is a pointer, `size` bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct HvmContext {
    pub size: u32,
    pub pad: u32,
    pub buffer: u64,
}

/// `struct xen_domctl_paging_mempool`, bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PagingMempool {
    pub size: u64,
}

/// `struct xen_domctl_tsc_info`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct TscInfo {
    /// `XEN_CPUID_TSC_MODE`'s numbers: 0 default, 1 always emulate, 2 never.
    pub tsc_mode: u32,
    /// kHz; 0: the host's.
    pub gtsc_khz: u32,
    /// 0 for a domain that is not restored.
    pub incarnation: u32,
    /// Unused.
    pub pad: u32,
    /// Nanoseconds since the guest's start, by its own TSC.
    pub elapsed_nsec: u64,
}

/// `struct xen_domctl_cpu_policy`; `leaves` and `msrs` are pointers.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CpuPolicy {
    pub nr_leaves: u32,
    pub nr_msrs: u32,
    pub leaves: u64,
    pub msrs: u64,
    pub err_leaf: u32,
    pub err_subleaf: u32,
    pub err_msr: u32,
    pub pad: u32,
}
/// `xen_cpuid_leaf_t`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CpuidLeaf {
    pub leaf: u32,
    pub subleaf: u32,
    pub a: u32,
    pub b: u32,
    pub c: u32,
    pub d: u32,
}

const _: () = assert!(size_of::<Domctl>() == 144);
const _: () = assert!(size_of::<GetDomainInfo>() == 112);

abi_check! {
    header "domctl.h";
    struct "struct xen_domctl" = Domctl { "cmd" => cmd, "interface_version" => interface_version, "domain" => domain, "u" => u };
    struct "struct xen_domctl_getdomaininfo" = GetDomainInfo {
        "domain" => domain, "flags" => flags, "tot_pages" => tot_pages, "max_pages" => max_pages,
        "outstanding_pages" => outstanding_pages, "shr_pages" => shr_pages, "paged_pages" => paged_pages,
        "shared_info_frame" => shared_info_frame, "cpu_time" => cpu_time, "nr_online_vcpus" => nr_online_vcpus,
        "max_vcpu_id" => max_vcpu_id, "ssidref" => ssidref, "handle" => handle, "cpupool" => cpupool,
        "gpaddr_bits" => gpaddr_bits, "arch_config.emulation_flags" => emulation_flags,
        "arch_config.misc_flags" => misc_flags
    };
    struct "struct xen_domctl_max_mem" = MaxMem { "max_memkb" => max_memkb };
    struct "struct xen_domctl_max_vcpus" = MaxVcpus { "max" => max };
    struct "struct xenctl_bitmap" = Bitmap { "bitmap" => bitmap, "nr_bits" => nr_bits };
    struct "struct xen_domctl_vcpuaffinity" = VcpuAffinity {
        "vcpu" => vcpu, "flags" => flags, "cpumap_hard" => cpumap_hard, "cpumap_soft" => cpumap_soft
    };
    struct "struct xen_domctl_getvcpuinfo" = GetVcpuInfo {
        "vcpu" => vcpu, "online" => online, "blocked" => blocked, "running" => running, "cpu_time" => cpu_time, "cpu" => cpu
    };
    struct "struct xen_domctl_vcpucontext" = VcpuContext { "vcpu" => vcpu, "ctxt" => ctxt };
    struct "struct xen_domctl_hypercall_init" = HypercallInit { "gmfn" => gmfn };
    struct "struct xen_domctl_hvmcontext" = HvmContext { "size" => size, "buffer" => buffer };
    struct "struct xen_domctl_paging_mempool" = PagingMempool { "size" => size };
    struct "struct xen_domctl_tsc_info" = TscInfo {
        "tsc_mode" => tsc_mode, "gtsc_khz" => gtsc_khz, "incarnation" => incarnation, "elapsed_nsec" => elapsed_nsec
    };
    struct "struct xen_domctl_cpu_policy" = CpuPolicy {
        "nr_leaves" => nr_leaves, "nr_msrs" => nr_msrs, "leaves" => leaves, "msrs" => msrs,
        "err_leaf" => err_leaf, "err_subleaf" => err_subleaf, "err_msr" => err_msr
    };
    struct "xen_cpuid_leaf_t" = CpuidLeaf { "leaf" => leaf, "subleaf" => subleaf, "a" => a, "b" => b, "c" => c, "d" => d };
    const "XEN_DOMCTL_createdomain" = cmd::CREATEDOMAIN;
    const "XEN_DOMCTL_destroydomain" = cmd::DESTROYDOMAIN;
    const "XEN_DOMCTL_pausedomain" = cmd::PAUSEDOMAIN;
    const "XEN_DOMCTL_unpausedomain" = cmd::UNPAUSEDOMAIN;
    const "XEN_DOMCTL_getdomaininfo" = cmd::GETDOMAININFO;
    const "XEN_DOMCTL_setvcpuaffinity" = cmd::SETVCPUAFFINITY;
    const "XEN_DOMCTL_shadow_op" = cmd::SHADOW_OP;
    const "XEN_DOMCTL_max_mem" = cmd::MAX_MEM;
    const "XEN_DOMCTL_setvcpucontext" = cmd::SETVCPUCONTEXT;
    const "XEN_DOMCTL_getvcpuinfo" = cmd::GETVCPUINFO;
    const "XEN_DOMCTL_max_vcpus" = cmd::MAX_VCPUS;
    const "XEN_DOMCTL_hypercall_init" = cmd::HYPERCALL_INIT;
    const "XEN_DOMCTL_resumedomain" = cmd::RESUMEDOMAIN;
    const "XEN_DOMCTL_gethvmcontext" = cmd::GETHVMCONTEXT;
    const "XEN_DOMCTL_sethvmcontext" = cmd::SETHVMCONTEXT;
    const "XEN_DOMCTL_set_address_size" = cmd::SET_ADDRESS_SIZE;
    const "XEN_DOMCTL_settscinfo" = cmd::SETTSCINFO;
    const "XEN_DOMCTL_set_cpu_policy" = cmd::SET_CPU_POLICY;
    const "XEN_DOMCTL_set_paging_mempool_size" = cmd::SET_PAGING_MEMPOOL_SIZE;
    const "XEN_DOMINF_dying" = DOMINF_DYING;
    const "XEN_DOMINF_hvm_guest" = DOMINF_HVM_GUEST;
    const "XEN_DOMINF_shutdown" = DOMINF_SHUTDOWN;
    const "XEN_DOMINF_paused" = DOMINF_PAUSED;
    const "XEN_DOMINF_blocked" = DOMINF_BLOCKED;
    const "XEN_DOMINF_running" = DOMINF_RUNNING;
    const "XEN_DOMINF_shutdownmask" = DOMINF_SHUTDOWNMASK;
    const "XEN_DOMINF_shutdownshift" = DOMINF_SHUTDOWNSHIFT;
    const "XEN_DOMCTL_CDF_hvm" = CDF_HVM;
    const "XEN_DOMCTL_CDF_hap" = CDF_HAP;
    const "XEN_DOMCTL_CDF_oos_off" = CDF_OOS_OFF;
    const "XEN_VCPUAFFINITY_HARD" = VCPUAFFINITY_HARD;
    const "XEN_X86_EMU_LAPIC" = EMU_LAPIC;
    const "XEN_CPUID_NO_SUBLEAF" = CPUID_NO_SUBLEAF;
}
