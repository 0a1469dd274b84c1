//! `hvm/save.h`: the records of a domain's hardware state.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `HVM_SAVE_CODE(END)`.
pub const CODE_END: u16 = 0;
/// `HVM_SAVE_CODE(HEADER)`.
pub const CODE_HEADER: u16 = 1;
/// `HVM_SAVE_CODE(CPU)`.
pub const CODE_CPU: u16 = 2;
/// `HVM_SAVE_CODE(MTRR)`.
pub const CODE_MTRR: u16 = 14;

/// `struct hvm_save_descriptor`: before each record.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct Descriptor {
    /// `CODE_*`.
    pub typecode: u16,
    /// For a vCPU's records, its number.
    pub instance: u16,
    /// Bytes that follow.
    pub length: u32,
}

/// `struct hvm_save_header`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SaveHeader {
    pub magic: u32,
    pub version: u32,
    pub changeset: u64,
    pub cpuid: u32,
    pub gtsc_khz: u32,
}

/// `struct hvm_hw_cpu`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct HwCpu {
    pub fpu_regs: [u8; 512],
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub r8_to_r15: [u64; 8],
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub dr0_to_dr3: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub cs_sel: u32,
    pub ds_sel: u32,
    pub es_sel: u32,
    pub fs_sel: u32,
    pub gs_sel: u32,
    pub ss_sel: u32,
    pub tr_sel: u32,
    pub ldtr_sel: u32,
    pub cs_limit: u32,
    pub ds_limit: u32,
    pub es_limit: u32,
    pub fs_limit: u32,
    pub gs_limit: u32,
    pub ss_limit: u32,
    pub tr_limit: u32,
    pub ldtr_limit: u32,
    pub idtr_limit: u32,
    pub gdtr_limit: u32,
    pub cs_base: u64,
    pub ds_base: u64,
    pub es_base: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ss_base: u64,
    pub tr_base: u64,
    pub ldtr_base: u64,
    pub idtr_base: u64,
    pub gdtr_base: u64,
    pub cs_arbytes: u32,
    pub ds_arbytes: u32,
    pub es_arbytes: u32,
    pub fs_arbytes: u32,
    pub gs_arbytes: u32,
    pub ss_arbytes: u32,
    pub tr_arbytes: u32,
    pub ldtr_arbytes: u32,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub shadow_gs: u64,
    pub msr_flags: u64,
    pub msr_lstar: u64,
    pub msr_star: u64,
    pub msr_cstar: u64,
    pub msr_syscall_mask: u64,
    pub msr_efer: u64,
    pub msr_tsc_aux: u64,
    pub tsc: u64,
    pub pending_event: u32,
    pub error_code: u32,
    pub flags: u32,
    pub pad0: u32,
}

/// `struct hvm_hw_mtrr`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct HwMtrr {
    pub msr_pat_cr: u64,
    pub msr_mtrr_var: [u64; 16],
    pub msr_mtrr_fixed: [u64; 11],
    pub msr_mtrr_cap: u64,
    pub msr_mtrr_def_type: u64,
}

const _: () = assert!(size_of::<HwCpu>() == 1032);
const _: () = assert!(size_of::<HwMtrr>() == 240);

abi_check! {
    header "hvm/save.h";
    struct "struct hvm_save_descriptor" = Descriptor { "typecode" => typecode, "instance" => instance, "length" => length };
    struct "struct hvm_save_header" = SaveHeader { "magic" => magic, "version" => version, "changeset" => changeset, "cpuid" => cpuid, "gtsc_khz" => gtsc_khz };
    struct "struct hvm_hw_cpu" = HwCpu {
        "rbx" => rbx, "rsp" => rsp, "r8" => r8_to_r15, "rip" => rip, "cr0" => cr0, "dr0" => dr0_to_dr3, "dr6" => dr6, "dr7" => dr7,
        "cs_sel" => cs_sel, "cs_limit" => cs_limit, "tr_limit" => tr_limit, "gdtr_limit" => gdtr_limit,
        "cs_base" => cs_base, "gdtr_base" => gdtr_base, "cs_arbytes" => cs_arbytes, "tr_arbytes" => tr_arbytes,
        "sysenter_cs" => sysenter_cs, "shadow_gs" => shadow_gs, "msr_efer" => msr_efer, "tsc" => tsc,
        "pending_event" => pending_event, "error_code" => error_code, "flags" => flags
    };
    struct "struct hvm_hw_mtrr" = HwMtrr {
        "msr_pat_cr" => msr_pat_cr, "msr_mtrr_var" => msr_mtrr_var, "msr_mtrr_fixed" => msr_mtrr_fixed,
        "msr_mtrr_cap" => msr_mtrr_cap, "msr_mtrr_def_type" => msr_mtrr_def_type
    };
    const "HVM_SAVE_CODE(END)" = CODE_END;
    const "HVM_SAVE_CODE(HEADER)" = CODE_HEADER;
    const "HVM_SAVE_CODE(CPU)" = CODE_CPU;
    const "HVM_SAVE_CODE(MTRR)" = CODE_MTRR;
}
