//! Xen's clocks: system time from the vCPU's time info and the TSC, and the wall clock.

use super::entry;
use super::shared_info::vcpu_info;
use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};
use xen_abi::xen::{SharedInfo, VcpuInfo, VcpuTimeInfo};

/// Nanoseconds since Xen's boot. Never goes back on one vCPU; between vCPUs it differs by
/// Xen's calibration error.
#[inline]
pub fn system_time_ns() -> u64 {
    let info = vcpu_info();
    let time = field(info, offset_of!(VcpuInfo, time));
    loop {
        let (before, copy, ticks) = snapshot(time);
        if before & 1 == 0 && copy.version == before {
            // Before it is pinned, a vCPU may read the TSC of a core that is a little behind.
            let passed = ticks.saturating_sub(copy.tsc_timestamp);
            return copy.system_time + scale(passed, copy.tsc_to_system_mul, copy.tsc_shift);
        }
        core::hint::spin_loop();
    }
}

/// The version before, a copy with the version after, and the TSC.
fn snapshot(time: *const VcpuTimeInfo) -> (u32, VcpuTimeInfo, u64) {
    let version: *const u32 = field(time, offset_of!(VcpuTimeInfo, version));
    // SAFETY: mapped for ever; Xen writes it while this vCPU runs only between two changes
    // of the version, which the caller compares.
    let before = unsafe { version.read_volatile() };
    fence(Ordering::Acquire);
    // SAFETY: as above.
    let mut copy = unsafe { time.read_volatile() };
    fence(Ordering::Acquire);
    // SAFETY: reading the TSC has no effect; Xen lets its guests do it.
    let ticks = unsafe { core::arch::x86_64::_rdtsc() };
    // SAFETY: as above.
    copy.version = unsafe { version.read_volatile() };
    (before, copy, ticks)
}

/// A pointer to a field that Xen writes.
fn field<S, F>(of: *const S, offset: usize) -> *const F {
    of.wrapping_byte_add(offset).cast()
}

/// Ticks to nanoseconds.
fn scale(ticks: u64, multiplier: u32, shift: i8) -> u64 {
    let shifted = if shift >= 0 {
        ticks << shift.unsigned_abs()
    } else {
        ticks >> shift.unsigned_abs()
    };
    let wide = u128::from(shifted) * u128::from(multiplier);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "2^64 ns are 584 years after an update that is never more than seconds old"
    )]
    {
        (wide >> 32) as u64
    }
}

/// Unix time, in nanoseconds, of system time 0.
pub fn wall_clock_base_ns() -> u64 {
    let shared = (&raw const entry::shared_info_page).cast::<SharedInfo>();
    let version: *const u32 = field(shared, offset_of!(SharedInfo, wc_version));
    let low: *const u32 = field(shared, offset_of!(SharedInfo, wc_sec));
    let high: *const u32 = field(shared, offset_of!(SharedInfo, wc_sec_hi));
    let nanoseconds: *const u32 = field(shared, offset_of!(SharedInfo, wc_nsec));
    loop {
        // SAFETY: the shared-info page is mapped for ever; Xen writes the fields between two
        // changes of the version.
        let before = unsafe { version.read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let low = unsafe { low.read_volatile() };
        // SAFETY: as above.
        let high = unsafe { high.read_volatile() };
        // SAFETY: as above.
        let nanoseconds = unsafe { nanoseconds.read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let after = unsafe { version.read_volatile() };
        if before & 1 == 0 && before == after {
            let seconds = u64::from(high) << 32 | u64::from(low);
            return seconds * 1_000_000_000 + u64::from(nanoseconds);
        }
        core::hint::spin_loop();
    }
}
