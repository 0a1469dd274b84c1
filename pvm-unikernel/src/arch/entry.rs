//! Where Xen enters: the ELF notes, the entry points of the vCPUs, the event callback.
//!
//! The callback is four instructions. Upcalls stay masked always, and Xen unmasks them
//! only inside `SCHEDOP_block`, so it runs at most once per block, on the stack of the
//! hypercall, and returns with the mask set again. Xen pushes CS with RPL 0 and the
//! saved mask in its upper half; without the `or`, `iretq` faults.

use core::arch::global_asm;

global_asm!(
    r#"
.section .note.Xen, "a", @note
.macro XEN_NOTE type, desc:vararg
 .align 4
 .long 2f - 1f, 4f - 3f, \type
1: .asciz "Xen"
2: .align 4
3: \desc
4: .align 4
.endm
XEN_NOTE 6, .asciz "closer"                 /* GUEST_OS */
XEN_NOTE 5, .asciz "xen-3.0"                /* XEN_VERSION */
XEN_NOTE 1, .quad _start                    /* ENTRY */
XEN_NOTE 2, .quad hypercall_page            /* HYPERCALL_PAGE */
XEN_NOTE 3, .quad 0xffffffff80000000        /* VIRT_BASE */
XEN_NOTE 4, .quad 0xffffffff80000000        /* PADDR_OFFSET: p_paddr is a virtual address */
XEN_NOTE 9, .asciz "yes"                    /* PAE_MODE */
XEN_NOTE 8, .asciz "generic"                /* LOADER */
XEN_NOTE 10, .asciz "!writable_page_tables|pae_pgdir_above_4gb" /* FEATURES */
XEN_NOTE 16, .quad 1                        /* MOD_START_PFN: do not map the boot archive */
XEN_NOTE 17, .long (1 << 11) | (1 << 5)     /* SUPPORTED_FEATURES: dom0 */

.section .text.boot, "ax"
.global _start
_start:
 cld
 lea rsp, [rip + boot_stack_top]
 mov rdi, rsi
 xor ebp, ebp
 call kernel_entry
 ud2

.global secondary_start
secondary_start:
 cld
 xor ebp, ebp
 call secondary_entry
 ud2

.balign 4096
.global hypercall_page
hypercall_page: .skip 4096

.section .text.callbacks, "ax"
.global event_callback
event_callback:
 pop rcx
 pop r11
 or qword ptr [rsp + 8], 3
 iretq
.global failsafe_callback
failsafe_callback:
 ud2

.section .bss.stack, "aw", @nobits
.balign 4096
.global boot_stack_guard
boot_stack_guard: .skip 4096
.skip 262144
.global boot_stack_top
boot_stack_top:
.section .bss.pages, "aw", @nobits
.balign 4096
.global shared_info_page
shared_info_page: .skip 4096
.global scratch_pages
scratch_pages: .skip 4096 * 3
"#
);

unsafe extern "C" {
    /// Xen fills it with 128 entries of 32 bytes.
    pub static hypercall_page: u8;
    /// The four instructions above.
    pub static event_callback: u8;
    /// Never reached: the kernel loads no segments.
    pub static failsafe_callback: u8;
    /// Entry of vCPUs other than 0, with their number in rdi.
    pub static secondary_start: u8;
    /// Unmapped page below the stack of vCPU 0.
    pub static boot_stack_guard: u8;
    /// End of the stack of vCPU 0.
    pub static boot_stack_top: u8;
    /// Place of the shared-info page.
    pub static shared_info_page: u8;
    /// Three pages whose mappings the early page-table code moves about.
    pub static scratch_pages: u8;
    /// First byte of the image.
    pub static __image_start: u8;
    /// End of the code.
    pub static __text_end: u8;
    /// End of the constants.
    pub static __rodata_end: u8;
    /// End of the image.
    pub static __image_end: u8;
}
