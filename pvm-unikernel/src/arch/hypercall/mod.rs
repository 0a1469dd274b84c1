//! Hypercalls: one raw entry, and one module of typed calls for each family.
//!
//! A typed call is safe when Xen can do nothing with its arguments that Rust's rules
//! forbid: it reads and writes only the structures lent to it. Calls that hand Xen
//! addresses hidden in structures, or change page tables, are `unsafe`.
//!
//! Arguments travel in rdi, rsi, rdx, r10 and r8; the answer comes in rax; rcx and r11
//! are lost (xen/include/public/arch-x86/xen-x86_64.h). Each hypercall has 32 bytes in
//! the page that Xen filled.
#![allow(
    dead_code,
    unused_imports,
    reason = "a kernel interface: what no service needs yet waits for one"
)]

pub mod event;
pub mod memory;
pub mod mmu;
pub mod sched;
pub mod system;
pub mod vcpu;

use super::entry::hypercall_page;
use core::arch::asm;
pub use xen_abi::errno::Errno;

/// Issues hypercall `number`.
///
/// # Safety
/// The arguments are what that hypercall wants, every address in them stays valid for
/// what Xen reads and writes there, and what the call does breaks no promise made
/// elsewhere (above all: no live memory is unmapped or given away).
#[inline]
pub unsafe fn raw(number: u32, args: [u64; 5]) -> Result<u64, Errno> {
    let entry = (&raw const hypercall_page).addr() + number as usize * 32;
    let answer: i64;
    // SAFETY: the caller vouches for number and arguments; the page holds code for every
    // slot since Xen built this domain. Memory is clobbered by default.
    unsafe {
        asm!(
            "call {entry}",
            entry = in(reg) entry,
            inout("rdi") args[0] => _,
            inout("rsi") args[1] => _,
            inout("rdx") args[2] => _,
            inout("r10") args[3] => _,
            inout("r8") args[4] => _,
            lateout("rax") answer,
            lateout("rcx") _,
            lateout("r11") _,
            lateout("r9") _,
        );
    }
    Errno::check(answer)
}

/// The address of a structure, as an argument.
fn address<T: ?Sized>(of: &mut T) -> u64 {
    (&raw mut *of).cast::<u8>().expose_provenance() as u64
}
