//! `xen.h`: hypercall numbers, virtual interrupts, the start-info and shared-info
//! pages, and what goes with page tables.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! numbers {
    ($(#[$doc:meta])* $module:ident: $($name:ident = $value:literal;)*) => {
        $(#[$doc])*
        pub mod $module {
            $(#[doc = concat!("`", stringify!($name), "`")] pub const $name: u32 = $value;)*
        }
    };
}

numbers! {
    /// `__HYPERVISOR_*`: the slot of each hypercall in the hypercall page.
    hypercall:
    SET_TRAP_TABLE = 0;
    MMU_UPDATE = 1;
    SET_CALLBACKS = 4;
    PLATFORM_OP = 7;
    MEMORY_OP = 12;
    MULTICALL = 13;
    UPDATE_VA_MAPPING = 14;
    XEN_VERSION = 17;
    CONSOLE_IO = 18;
    GRANT_TABLE_OP = 20;
    VM_ASSIST = 21;
    UPDATE_VA_MAPPING_OTHERDOMAIN = 22;
    VCPU_OP = 24;
    SET_SEGMENT_BASE = 25;
    MMUEXT_OP = 26;
    SCHED_OP = 29;
    EVENT_CHANNEL_OP = 32;
    PHYSDEV_OP = 33;
    HVM_OP = 34;
    SYSCTL = 35;
    DOMCTL = 36;
}

numbers! {
    /// `VIRQ_*`.
    virq:
    TIMER = 0;
    DEBUG = 1;
    CONSOLE = 2;
    DOM_EXC = 3;
    CON_RING = 8;
    PCPU_STATE = 9;
    ENOMEM = 12;
}

numbers! {
    /// `MMUEXT_*`: operations of `mmuext_op`.
    mmuext:
    PIN_L1_TABLE = 0;
    PIN_L4_TABLE = 3;
    UNPIN_TABLE = 4;
    TLB_FLUSH_LOCAL = 6;
    INVLPG_LOCAL = 7;
    TLB_FLUSH_ALL = 10;
    INVLPG_ALL = 11;
    CLEAR_PAGE = 16;
    COPY_PAGE = 17;
}

/// `MMU_NORMAL_PT_UPDATE`: low bits of [`MmuUpdate::ptr`].
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
/// `MMU_PT_UPDATE_NO_TRANSLATE`: the value holds a machine frame of a translated domain.
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;
/// `UVMF_TLB_FLUSH`.
pub const UVMF_TLB_FLUSH: u64 = 1;
/// `UVMF_INVLPG`.
pub const UVMF_INVLPG: u64 = 2;
/// `UVMF_LOCAL`: flush this CPU only.
pub const UVMF_LOCAL: u64 = 0;
/// `UVMF_ALL`: flush every CPU.
pub const UVMF_ALL: u64 = 4;
/// `CONSOLEIO_write`.
pub const CONSOLEIO_WRITE: u32 = 0;
/// `SIF_INITDOMAIN`: this is dom0.
pub const SIF_INITDOMAIN: u32 = 2;
/// `SIF_MOD_START_PFN`: [`StartInfo::mod_start`] is a frame number.
pub const SIF_MOD_START_PFN: u32 = 8;
/// `MAX_GUEST_CMDLINE`: bytes, with the final zero.
pub const MAX_GUEST_CMDLINE: usize = 1024;
/// `SEGBASE_GS_KERNEL`: which base `set_segment_base` sets.
pub const SEGBASE_GS_KERNEL: u32 = 2;

/// `struct mmu_update`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MmuUpdate {
    /// Machine address of the page-table entry, with a command in the low bits.
    pub ptr: u64,
    /// The new entry.
    pub val: u64,
}

/// `struct mmuext_op`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MmuextOp {
    /// One of [`mmuext`].
    pub cmd: u32,
    /// Always zero.
    pub pad: u32,
    /// `mfn` or `linear_addr`.
    pub arg1: u64,
    /// `nr_ents`, `vcpumask` or `src_mfn`.
    pub arg2: u64,
}

/// `struct multicall_entry`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MulticallEntry {
    /// One of [`hypercall`].
    pub op: u64,
    /// Xen's answer.
    pub result: i64,
    /// Arguments.
    pub args: [u64; 6],
}

/// `struct vcpu_time_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VcpuTimeInfo {
    /// Odd while Xen is writing.
    pub version: u32,
    /// Unused.
    pub pad0: u32,
    /// Time-stamp counter at the last update.
    pub tsc_timestamp: u64,
    /// Nanoseconds since Xen's boot at the last update.
    pub system_time: u64,
    /// Multiplier from shifted ticks to nanoseconds, in 1/2^32.
    pub tsc_to_system_mul: u32,
    /// Left shift of ticks; negative: right.
    pub tsc_shift: i8,
    /// `XEN_PVCLOCK_TSC_STABLE_BIT` and others.
    pub flags: u8,
    /// Unused.
    pub pad1: [u8; 2],
}

/// `struct vcpu_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VcpuInfo {
    /// Some event is pending for this vCPU.
    pub evtchn_upcall_pending: u8,
    /// Upcalls are masked.
    pub evtchn_upcall_mask: u8,
    /// Unused.
    pub pad: [u8; 6],
    /// A bit for each word of [`SharedInfo::evtchn_pending`].
    pub evtchn_pending_sel: u64,
    /// Faulting address of the last page fault.
    pub cr2: u64,
    /// Unused.
    pub arch_pad: u64,
    /// This vCPU's clock.
    pub time: VcpuTimeInfo,
}

/// `struct arch_shared_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ArchSharedInfo {
    /// Entries in the p2m.
    pub max_pfn: u64,
    /// Root of the p2m tree.
    pub pfn_to_mfn_frame_list_list: u64,
    /// Why the last NMI came.
    pub nmi_reason: u64,
    /// Root of the address space of `p2m_vaddr`.
    pub p2m_cr3: u64,
    /// Linear p2m.
    pub p2m_vaddr: u64,
    /// Changes of the linear p2m.
    pub p2m_generation: u64,
}

/// `struct shared_info`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SharedInfo {
    /// vCPUs below 32 until `VCPUOP_register_vcpu_info`.
    pub vcpu_info: [VcpuInfo; 32],
    /// Two-level event channels: a bit for each port.
    pub evtchn_pending: [u64; 64],
    /// Masked ports.
    pub evtchn_mask: [u64; 64],
    /// Odd while Xen is writing the wall clock.
    pub wc_version: u32,
    /// Unix time of system time 0: seconds, low half.
    pub wc_sec: u32,
    /// Nanoseconds.
    pub wc_nsec: u32,
    /// Seconds, high half.
    pub wc_sec_hi: u32,
    /// x86's part.
    pub arch: ArchSharedInfo,
}

/// `struct start_info`, as dom0 sees it.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct StartInfo {
    /// `xen-<version>-<platform>`.
    pub magic: [u8; 32],
    /// Pages of the reservation.
    pub nr_pages: u64,
    /// Machine address of the shared-info page.
    pub shared_info: u64,
    /// `SIF_*`.
    pub flags: u32,
    /// Unused.
    pub pad0: u32,
    /// Frame of the xenstore ring; not for dom0.
    pub store_mfn: u64,
    /// Port of xenstore; not for dom0.
    pub store_evtchn: u32,
    /// Unused.
    pub pad1: u32,
    /// `console.domU.mfn` or `console.dom0`.
    pub console_mfn: u64,
    /// `console.domU.evtchn`.
    pub console_evtchn: u32,
    /// Unused.
    pub pad2: u32,
    /// Virtual address of the root page table.
    pub pt_base: u64,
    /// Page-table frames that Xen made, from `pt_base`.
    pub nr_pt_frames: u64,
    /// Virtual address of the pfn-to-mfn list.
    pub mfn_list: u64,
    /// Address or frame number of the boot module.
    pub mod_start: u64,
    /// Bytes of the boot module.
    pub mod_len: u64,
    /// Zero-terminated.
    pub cmd_line: [u8; MAX_GUEST_CMDLINE],
    /// First frame of the p2m, if it is not in the initial mapping.
    pub first_p2m_pfn: u64,
    /// Frames of the p2m.
    pub nr_p2m_frames: u64,
}

const _: () = assert!(size_of::<VcpuInfo>() == 64);
const _: () = assert!(size_of::<SharedInfo>() == 3136);
const _: () = assert!(size_of::<StartInfo>() == 1168);
const _: () = assert!(size_of::<MulticallEntry>() == 64);

abi_check! {
    header "xen.h";
    struct "struct mmu_update" = MmuUpdate { "ptr" => ptr, "val" => val };
    struct "struct mmuext_op" = MmuextOp { "cmd" => cmd, "arg1.mfn" => arg1, "arg2.src_mfn" => arg2 };
    struct "struct multicall_entry" = MulticallEntry { "op" => op, "result" => result, "args" => args };
    struct "struct vcpu_time_info" = VcpuTimeInfo {
        "tsc_timestamp" => tsc_timestamp, "system_time" => system_time,
        "tsc_to_system_mul" => tsc_to_system_mul, "tsc_shift" => tsc_shift
    };
    struct "struct vcpu_info" = VcpuInfo {
        "evtchn_upcall_pending" => evtchn_upcall_pending, "evtchn_upcall_mask" => evtchn_upcall_mask,
        "evtchn_pending_sel" => evtchn_pending_sel, "arch.cr2" => cr2, "time" => time
    };
    struct "struct shared_info" = SharedInfo {
        "evtchn_pending" => evtchn_pending, "evtchn_mask" => evtchn_mask, "wc_version" => wc_version,
        "wc_sec" => wc_sec, "wc_nsec" => wc_nsec, "wc_sec_hi" => wc_sec_hi, "arch" => arch
    };
    struct "struct start_info" = StartInfo {
        "nr_pages" => nr_pages, "shared_info" => shared_info, "flags" => flags, "store_mfn" => store_mfn,
        "store_evtchn" => store_evtchn, "console.domU.mfn" => console_mfn, "pt_base" => pt_base,
        "nr_pt_frames" => nr_pt_frames, "mfn_list" => mfn_list, "mod_start" => mod_start,
        "mod_len" => mod_len, "cmd_line" => cmd_line, "first_p2m_pfn" => first_p2m_pfn
    };
    const "__HYPERVISOR_set_trap_table" = hypercall::SET_TRAP_TABLE;
    const "__HYPERVISOR_mmu_update" = hypercall::MMU_UPDATE;
    const "__HYPERVISOR_set_callbacks" = hypercall::SET_CALLBACKS;
    const "__HYPERVISOR_platform_op" = hypercall::PLATFORM_OP;
    const "__HYPERVISOR_memory_op" = hypercall::MEMORY_OP;
    const "__HYPERVISOR_multicall" = hypercall::MULTICALL;
    const "__HYPERVISOR_update_va_mapping" = hypercall::UPDATE_VA_MAPPING;
    const "__HYPERVISOR_xen_version" = hypercall::XEN_VERSION;
    const "__HYPERVISOR_console_io" = hypercall::CONSOLE_IO;
    const "__HYPERVISOR_grant_table_op" = hypercall::GRANT_TABLE_OP;
    const "__HYPERVISOR_vm_assist" = hypercall::VM_ASSIST;
    const "__HYPERVISOR_update_va_mapping_otherdomain" = hypercall::UPDATE_VA_MAPPING_OTHERDOMAIN;
    const "__HYPERVISOR_vcpu_op" = hypercall::VCPU_OP;
    const "__HYPERVISOR_set_segment_base" = hypercall::SET_SEGMENT_BASE;
    const "__HYPERVISOR_mmuext_op" = hypercall::MMUEXT_OP;
    const "__HYPERVISOR_sched_op" = hypercall::SCHED_OP;
    const "__HYPERVISOR_event_channel_op" = hypercall::EVENT_CHANNEL_OP;
    const "__HYPERVISOR_physdev_op" = hypercall::PHYSDEV_OP;
    const "__HYPERVISOR_hvm_op" = hypercall::HVM_OP;
    const "__HYPERVISOR_sysctl" = hypercall::SYSCTL;
    const "__HYPERVISOR_domctl" = hypercall::DOMCTL;
    const "VIRQ_TIMER" = virq::TIMER;
    const "VIRQ_DEBUG" = virq::DEBUG;
    const "VIRQ_CONSOLE" = virq::CONSOLE;
    const "VIRQ_DOM_EXC" = virq::DOM_EXC;
    const "VIRQ_CON_RING" = virq::CON_RING;
    const "VIRQ_PCPU_STATE" = virq::PCPU_STATE;
    const "VIRQ_ENOMEM" = virq::ENOMEM;
    const "MMUEXT_PIN_L1_TABLE" = mmuext::PIN_L1_TABLE;
    const "MMUEXT_UNPIN_TABLE" = mmuext::UNPIN_TABLE;
    const "MMUEXT_TLB_FLUSH_LOCAL" = mmuext::TLB_FLUSH_LOCAL;
    const "MMUEXT_INVLPG_LOCAL" = mmuext::INVLPG_LOCAL;
    const "MMUEXT_TLB_FLUSH_ALL" = mmuext::TLB_FLUSH_ALL;
    const "MMUEXT_INVLPG_ALL" = mmuext::INVLPG_ALL;
    const "MMUEXT_CLEAR_PAGE" = mmuext::CLEAR_PAGE;
    const "MMUEXT_COPY_PAGE" = mmuext::COPY_PAGE;
    const "MMU_NORMAL_PT_UPDATE" = MMU_NORMAL_PT_UPDATE;
    const "MMU_PT_UPDATE_NO_TRANSLATE" = MMU_PT_UPDATE_NO_TRANSLATE;
    const "UVMF_TLB_FLUSH" = UVMF_TLB_FLUSH;
    const "UVMF_INVLPG" = UVMF_INVLPG;
    const "UVMF_LOCAL" = UVMF_LOCAL;
    const "UVMF_ALL" = UVMF_ALL;
    const "CONSOLEIO_write" = CONSOLEIO_WRITE;
    const "SIF_INITDOMAIN" = SIF_INITDOMAIN;
    const "SIF_MOD_START_PFN" = SIF_MOD_START_PFN;
    const "MAX_GUEST_CMDLINE" = MAX_GUEST_CMDLINE;
    const "DOMID_SELF" = crate::DomId::SELF.0;
    const "DOMID_IO" = crate::DomId::IO.0;
    const "DOMID_XEN" = crate::DomId::XEN.0;
    const "DOMID_FIRST_RESERVED" = crate::DomId::FIRST_RESERVED.0;
}
