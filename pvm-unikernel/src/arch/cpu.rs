//! Who am I: the number of the running vCPU, and data that only it touches.

use super::hypercall::system::set_gs_base;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The most vCPUs the kernel brings up.
pub const MAX_VCPUS: usize = 256;

/// What GS points at on each vCPU.
#[repr(C)]
struct Identity {
    number: AtomicU32,
    /// The stack, for backtraces.
    stack_low: AtomicU64,
    stack_high: AtomicU64,
}

static IDENTITIES: [Identity; MAX_VCPUS] = [const {
    Identity {
        number: AtomicU32::new(0),
        stack_low: AtomicU64::new(0),
        stack_high: AtomicU64::new(0),
    }
}; MAX_VCPUS];

/// Names a vCPU before it runs, and says which stack it will have. Returns its GS base.
pub fn prepare(number: u32, stack: core::ops::Range<u64>) -> u64 {
    let identity = &IDENTITIES[number as usize];
    identity.number.store(number, Ordering::Relaxed);
    identity.stack_low.store(stack.start, Ordering::Relaxed);
    identity.stack_high.store(stack.end, Ordering::Release);
    (&raw const *identity).addr() as u64
}

/// Makes [`id`] work on vCPU 0. First thing after entry.
pub fn identify_first(stack: core::ops::Range<u64>) {
    let base = prepare(0, stack);
    // SAFETY: `id` below is the only code that reads through GS, and finds an `Identity`.
    let set = unsafe { set_gs_base(base) };
    set.expect("Xen takes a kernel address as GS base");
}

/// Number of the running vCPU.
#[inline]
pub fn id() -> usize {
    let number: u32;
    // SAFETY: GS points at this vCPU's `Identity` since its first instructions.
    unsafe {
        asm!("mov {0:e}, gs:[0]", out(reg) number, options(nostack, preserves_flags, readonly));
    }
    number as usize
}

/// The running vCPU's stack, lowest address to one past the highest.
pub fn stack() -> core::ops::Range<u64> {
    let identity = &IDENTITIES[id()];
    identity.stack_low.load(Ordering::Relaxed)..identity.stack_high.load(Ordering::Relaxed)
}

/// One `T` for each vCPU, reached only by that vCPU.
#[derive(Debug)]
pub struct PerCpu<T>([T; MAX_VCPUS]);

// SAFETY: `here` lends only the running vCPU's element. A vCPU is one thread of execution,
// is never interrupted, and what it borrows stays on it: the reference is to a `T` that is
// not `Sync`, hence not `Send`, or else may be shared anyway.
unsafe impl<T> Sync for PerCpu<T> {}

impl<T> PerCpu<T> {
    /// Wraps the elements.
    pub const fn new(elements: [T; MAX_VCPUS]) -> Self {
        Self(elements)
    }

    /// The running vCPU's element.
    #[inline]
    pub fn here(&self) -> &T {
        &self.0[id()]
    }
}

/// Spins politely until `done`. For short waits on another vCPU at bring-up.
pub fn spin_until(mut done: impl FnMut() -> bool) {
    while !done() {
        super::hypercall::sched::yield_core();
        core::hint::spin_loop();
    }
}
