//! The end: a message with the vCPU and a backtrace, then what the boot option says.
//!
//! `panic=N` reboots the host after N seconds (0: at once); `panic=halt` stops dom0 and
//! leaves the guests running without it. Default: 10 s, so that a host far away comes back
//! and the console can still be read. `addr2line -e closer-pvm` names the addresses.
#![allow(
    unsafe_code,
    reason = "the panic handler reads the clock and stops vCPUs"
)]

use crate::arch::hypercall::sched::{self, ShutdownReason};
use crate::arch::hypercall::{event, system};
use crate::arch::{backtrace, clock, cpu};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use toolstack_boot::{DEFAULT_PANIC_REBOOT_S, PanicAction};

/// `panic=halt`.
const HALT: u32 = u32::MAX;
/// Seconds before the reboot.
static REBOOT_AFTER: AtomicU32 = AtomicU32::new(DEFAULT_PANIC_REBOOT_S);
static PANICKING: AtomicBool = AtomicBool::new(false);

/// Takes over what the host's configuration says.
pub fn set_action(action: PanicAction) {
    let seconds = match action {
        PanicAction::Reboot { after_s } => after_s,
        PanicAction::Halt => HALT,
    };
    REBOOT_AFTER.store(seconds, Ordering::Relaxed);
}

/// Stops this vCPU if another one is panicking.
#[inline]
pub fn stop_if_panicking() {
    if PANICKING.load(Ordering::Relaxed) {
        stop();
    }
}

fn stop() -> ! {
    loop {
        crate::arch::shared_info::take_events(|_| {});
        sched::block();
    }
}

/// Straight to the console and the ring, with no lock that a broken kernel may hold.
struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        system::console_write(text.as_bytes());
        crate::log::record_without_waiting(text.as_bytes());
        Ok(())
    }
}

fn say(message: fmt::Arguments<'_>) {
    // `Out` cannot fail; a `Display` that does has said what it could.
    Out.write_fmt(message).ok();
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    begin();
    match info.location() {
        Some(location) => say(format_args!(
            "closer: panicked at {location}: {} (vCPU {})\n",
            info.message(),
            cpu::id()
        )),
        None => say(format_args!(
            "closer: panicked: {} (vCPU {})\n",
            info.message(),
            cpu::id()
        )),
    }
    say(format_args!("closer: backtrace:"));
    backtrace::walk(None, |address| say(format_args!(" {address:#x}")));
    say(format_args!("\n"));
    end()
}

/// A trap's way in: registers, and a backtrace from where it happened.
pub fn trap(report: &dyn fmt::Display, rip: u64, frame: u64) -> ! {
    begin();
    say(format_args!(
        "closer: panicked by {report} (vCPU {})\n",
        cpu::id()
    ));
    say(format_args!("closer: backtrace: {rip:#x}"));
    backtrace::walk(Some(frame), |address| say(format_args!(" {address:#x}")));
    say(format_args!("\n"));
    end()
}

fn begin() {
    if PANICKING.swap(true, Ordering::SeqCst) {
        // This vCPU's own panic failed, or another one is already at it.
        system::console_write(b"closer: a second panic\n");
        if cpu::id() == PANICKED_ON.load(Ordering::SeqCst) as usize {
            sched::shutdown(ShutdownReason::Crash);
        }
        stop();
    }
    PANICKED_ON.store(u32::try_from(cpu::id()).unwrap_or(0), Ordering::SeqCst);
    // Wake the others, so that they see it and stop.
    for vcpu in 0..crate::exec::vcpu_count() {
        if let Some(port) = crate::exec::ipi_port(vcpu) {
            // A vCPU that cannot be woken stops when it next wakes.
            event::send(port).ok();
        }
    }
}

static PANICKED_ON: AtomicU32 = AtomicU32::new(u32::MAX);

fn end() -> ! {
    let seconds = REBOOT_AFTER.load(Ordering::Relaxed);
    if seconds == HALT {
        say(format_args!("closer: halted (panic=halt)\n"));
        stop();
    }
    say(format_args!("closer: rebooting in {seconds} s\n"));
    let until = clock::system_time_ns() + u64::from(seconds) * 1_000_000_000;
    while clock::system_time_ns() < until {
        sched::yield_core();
        core::hint::spin_loop();
    }
    sched::shutdown(ShutdownReason::Reboot)
}
