//! Exceptions: each is a bug in the kernel, shows its registers and ends in a panic.
//!
//! Xen pushes rcx and r11 below the processor's frame. A stub for each vector saves the
//! rest. A fault inside the handler would fill the stack: the second one on a vCPU shuts
//! the host down at once. A stack that ran into its guard page cannot take the frame, and
//! Xen ends the domain with a register dump of its own.

use super::cpu::{self, MAX_VCPUS};
use super::hypercall::sched::{ShutdownReason, shutdown};
use super::hypercall::system;
use super::shared_info;
use core::arch::global_asm;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use xen_abi::arch_x86::{FLAT_KERNEL_CS, TrapInfo};

global_asm!(
    r#"
.section .text.traps, "ax"
.macro TRAP vector
.balign 16
trap_\vector:
 push \vector
 jmp trap_common
.endm
.balign 16
trap_stubs:
.irp vector, 0,1,3,4,5,6,7,8,10,11,12,13,14,16,17,18,19,20,21
TRAP \vector
.endr
trap_common:
 push rax
 push rbx
 push rdx
 push rsi
 push rdi
 push rbp
 push r8
 push r9
 push r10
 push r12
 push r13
 push r14
 push r15
 mov rdi, rsp
 and rsp, -16
 xor eax, eax
 push rax
 push rax
 call trap_entry
 ud2
.section .rodata.traps, "a"
.balign 8
.global trap_addresses
trap_addresses:
.irp vector, 0,1,3,4,5,6,7,8,10,11,12,13,14,16,17,18,19,20,21
 .quad \vector, trap_\vector
.endr
"#
);

/// Vectors with a handler. NMIs come another way; 9 and 15 do not exist.
const VECTORS: usize = 19;

unsafe extern "C" {
    static trap_addresses: [[u64; 2]; VECTORS];
}

/// What the stub and Xen pushed, lowest address first.
#[repr(C)]
struct Saved {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    rcx: u64,
    r11: u64,
    /// Error code if the vector has one, rip, cs, rflags, rsp, ss.
    rest: [u64; 6],
}

/// The handlers, for the vCPU's initial context or `set_trap_table`.
pub fn table() -> [TrapInfo; VECTORS + 1] {
    let mut table = [TrapInfo::default(); VECTORS + 1];
    for (entry, index) in table.iter_mut().zip(0..VECTORS) {
        // SAFETY: a constant table of the image.
        let [vector, address] = unsafe { trap_addresses[index] };
        *entry = TrapInfo {
            vector: u8::try_from(vector).expect("vectors are below 256"),
            flags: 0,
            cs: FLAT_KERNEL_CS,
            pad: 0,
            address,
        };
    }
    table
}

/// Installs handlers and callbacks on vCPU 0; the others get theirs in their context.
pub fn install_first() {
    // SAFETY: the stubs above are written for Xen's frame.
    unsafe { system::set_trap_table(&mut table()) }.expect("the trap table is well formed");
    let (event, failsafe) = callbacks();
    // SAFETY: the callbacks of `entry` are written for Xen's frame.
    unsafe { system::set_callbacks(event, failsafe) }.expect("the callbacks are in the image");
}

/// Addresses of the event and failsafe callbacks.
pub fn callbacks() -> (u64, u64) {
    (
        (&raw const super::entry::event_callback).addr() as u64,
        (&raw const super::entry::failsafe_callback).addr() as u64,
    )
}

static IN_TRAP: [AtomicBool; MAX_VCPUS] = [const { AtomicBool::new(false) }; MAX_VCPUS];

/// Name of a vector that pushes an error code, or of one that does not.
fn describe(vector: u64) -> (&'static str, bool) {
    match vector {
        0 => ("divide error", false),
        1 => ("debug", false),
        3 => ("breakpoint", false),
        4 => ("overflow", false),
        5 => ("bound range", false),
        6 => ("invalid opcode", false),
        7 => ("device not available", false),
        8 => ("double fault", true),
        10 => ("invalid TSS", true),
        11 => ("segment not present", true),
        12 => ("stack fault", true),
        13 => ("general protection", true),
        14 => ("page fault", true),
        16 => ("x87 error", false),
        17 => ("alignment check", true),
        18 => ("machine check", false),
        19 => ("SIMD error", false),
        20 => ("virtualisation exception", false),
        21 => ("control protection", true),
        _ => ("unknown trap", false),
    }
}

/// A trap as one readable block.
struct Report<'a> {
    saved: &'a Saved,
    name: &'static str,
    error: Option<u64>,
    frame: [u64; 5],
    address: u64,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rip, cs, rflags, rsp, ss] = self.frame;
        let s = self.saved;
        write!(f, "{}", self.name)?;
        if let Some(error) = self.error {
            write!(f, " (error {error:#x})")?;
        }
        if s.vector == 14 {
            write!(f, " at address {:#x}", self.address)?;
        }
        writeln!(
            f,
            ", rip {rip:#018x} rsp {rsp:#018x} rflags {rflags:#x} cs {cs:#x} ss {ss:#x}"
        )?;
        writeln!(
            f,
            "closer:   rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
            s.rax, s.rbx, s.rcx, s.rdx
        )?;
        writeln!(
            f,
            "closer:   rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}",
            s.rsi, s.rdi, s.rbp, s.r8
        )?;
        writeln!(
            f,
            "closer:   r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}",
            s.r9, s.r10, s.r11, s.r12
        )?;
        write!(
            f,
            "closer:   r13 {:016x} r14 {:016x} r15 {:016x}",
            s.r13, s.r14, s.r15
        )
    }
}

/// Where every stub ends.
///
/// # Safety
/// Called by the stubs only, with what they pushed.
#[unsafe(no_mangle)]
unsafe extern "C" fn trap_entry(saved: *const Saved) -> ! {
    if IN_TRAP[cpu::id()].swap(true, Ordering::Relaxed) {
        system::console_write(b"closer: a trap inside the trap handler; giving up\n");
        shutdown(ShutdownReason::Crash);
    }
    // SAFETY: the stub's block, on this stack, which is not unwound any more.
    let saved = unsafe { &*saved };
    let (name, has_error) = describe(saved.vector);
    let (error, at) = if has_error {
        (Some(saved.rest[0]), 1)
    } else {
        (None, 0)
    };
    let mut frame = [0; 5];
    frame.copy_from_slice(&saved.rest[at..at + 5]);
    let report = Report {
        saved,
        name,
        error,
        frame,
        address: shared_info::fault_address(),
    };
    crate::panic::trap(&report, frame[0], saved.rbp)
}
