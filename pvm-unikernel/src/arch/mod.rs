//! All that is x86 and PV: entry, traps, hypercalls, vCPUs, the shared-info page, clock.
//!
//! Nothing above this module knows the mode the kernel runs in, but for `mem`, which owns
//! the page tables and asks for their hypercalls here.
//!
//! Invariants that the unsafe code of this crate rests on:
//! - upcalls are masked except inside `SCHEDOP_block`, so nothing ever interrupts Rust code;
//! - a vCPU runs on its own stack and never changes its number;
//! - the image is linked where Xen maps it, and is built without red zone.
#![allow(
    unsafe_code,
    reason = "entry code, hypercalls and memory shared with Xen"
)]

pub mod backtrace;
pub mod clock;
pub mod cpu;
pub mod entry;
pub mod hypercall;
mod relax;
mod runtime;
pub mod shared_info;
pub mod smp;
pub mod traps;

pub use cpu::{MAX_VCPUS, PerCpu};
pub use relax::SpinLock;
