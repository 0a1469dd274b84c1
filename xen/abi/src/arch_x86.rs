//! `arch-x86/xen.h`, included by `xen.h`: the state of a 64-bit PV vCPU.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VGCF_in_kernel`: the vCPU starts in kernel mode.
pub const VGCF_IN_KERNEL: u64 = 4;
/// `FLAT_KERNEL_CS`: Xen's code segment for a 64-bit kernel.
pub const FLAT_KERNEL_CS: u16 = 0xe033;
/// `FLAT_KERNEL_SS`: Xen's stack segment for a 64-bit kernel.
pub const FLAT_KERNEL_SS: u16 = 0xe02b;

/// `struct trap_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct TrapInfo {
    /// Exception vector.
    pub vector: u8,
    /// Bits 0-3: privilege level; bit 2: clear the event mask.
    pub flags: u8,
    /// Code selector.
    pub cs: u16,
    /// Unused.
    pub pad: u32,
    /// Handler; 0 ends a list.
    pub address: u64,
}

/// `struct cpu_user_regs`.
#[expect(missing_docs, reason = "the names of the registers say all")]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CpuUserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub error_code: u32,
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u16,
    pub pad0: u16,
    pub saved_upcall_mask: u8,
    pub pad1: [u8; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub es: u64,
    pub ds: u64,
    pub fs: u64,
    pub gs: u64,
}

/// `struct vcpu_guest_context`: what `VCPUOP_initialise` starts a vCPU with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VcpuGuestContext {
    /// FXSAVE image.
    pub fpu_ctxt: [u8; 512],
    /// `VGCF_*`.
    pub flags: u64,
    /// Registers.
    pub user_regs: CpuUserRegs,
    /// Handlers, by vector.
    pub trap_ctxt: [TrapInfo; 256],
    /// LDT.
    pub ldt_base: u64,
    /// Entries in the LDT.
    pub ldt_ents: u64,
    /// GDT.
    pub gdt_frames: [u64; 16],
    /// Entries in the GDT.
    pub gdt_ents: u64,
    /// Stack for traps from user mode.
    pub kernel_ss: u64,
    /// Its top.
    pub kernel_sp: u64,
    /// CR0 to CR7; 3: machine address of the root page table.
    pub ctrlreg: [u64; 8],
    /// DR0 to DR7.
    pub debugreg: [u64; 8],
    /// Event upcall.
    pub event_callback_eip: u64,
    /// Called when Xen cannot reload a segment.
    pub failsafe_callback_eip: u64,
    /// System calls of user mode.
    pub syscall_callback_eip: u64,
    /// `VMASST_TYPE_*`.
    pub vm_assist: u64,
    /// FS base.
    pub fs_base: u64,
    /// GS base in kernel mode.
    pub gs_base_kernel: u64,
    /// GS base in user mode.
    pub gs_base_user: u64,
}

const _: () = assert!(size_of::<CpuUserRegs>() == 200);
const _: () = assert!(size_of::<VcpuGuestContext>() == 5168);

abi_check! {
    header "xen.h";
    struct "struct trap_info" = TrapInfo {
        "vector" => vector, "flags" => flags, "cs" => cs, "address" => address
    };
    struct "struct cpu_user_regs" = CpuUserRegs {
        "rbp" => rbp, "rdi" => rdi, "error_code" => error_code, "rip" => rip, "cs" => cs,
        "saved_upcall_mask" => saved_upcall_mask, "rflags" => rflags, "rsp" => rsp, "ss" => ss, "gs" => gs
    };
    struct "struct vcpu_guest_context" = VcpuGuestContext {
        "flags" => flags, "user_regs" => user_regs, "trap_ctxt" => trap_ctxt, "ldt_base" => ldt_base,
        "gdt_frames" => gdt_frames, "kernel_ss" => kernel_ss, "kernel_sp" => kernel_sp,
        "ctrlreg" => ctrlreg, "debugreg" => debugreg, "event_callback_eip" => event_callback_eip,
        "failsafe_callback_eip" => failsafe_callback_eip, "vm_assist" => vm_assist,
        "fs_base" => fs_base, "gs_base_kernel" => gs_base_kernel
    };
    const "VGCF_in_kernel" = VGCF_IN_KERNEL;
    const "FLAT_KERNEL_CS" = FLAT_KERNEL_CS;
    const "FLAT_KERNEL_SS" = FLAT_KERNEL_SS;
}
