//! Closer's kernel: the privileged VM of a Xen host. This file only wires things together.
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod boot;
mod event;
mod exec;
mod log;
mod mem;
mod panic;
mod pinning;
mod selftest;
mod sync;
mod time;

use boot::BootInfo;
use xen_abi::xen::StartInfo;

/// Where `arch::entry` jumps with Xen's start-info page.
///
/// # Safety
/// Called once by the entry code.
#[expect(unsafe_code, reason = "the entry point's name is the linker's")]
#[unsafe(no_mangle)]
unsafe extern "C" fn kernel_entry(start_info: *const StartInfo) -> ! {
    // SAFETY: passed on from the entry code.
    unsafe { boot::start(start_info, main) }
}

async fn main(boot: BootInfo) {
    selftest::run(&boot).await;
}
