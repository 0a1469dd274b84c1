//! `sched.h`: the scheduler.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SCHEDOP_yield`.
pub const SCHEDOP_YIELD: u32 = 0;
/// `SCHEDOP_block`.
pub const SCHEDOP_BLOCK: u32 = 1;
/// `SCHEDOP_shutdown`.
pub const SCHEDOP_SHUTDOWN: u32 = 2;
/// `SCHEDOP_poll`.
pub const SCHEDOP_POLL: u32 = 3;
/// `SCHEDOP_remote_shutdown`.
pub const SCHEDOP_REMOTE_SHUTDOWN: u32 = 4;
/// `SCHEDOP_watchdog`.
pub const SCHEDOP_WATCHDOG: u32 = 6;
/// `SHUTDOWN_poweroff`.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// `SHUTDOWN_reboot`.
pub const SHUTDOWN_REBOOT: u32 = 1;
/// `SHUTDOWN_suspend`.
pub const SHUTDOWN_SUSPEND: u32 = 2;
/// `SHUTDOWN_crash`.
pub const SHUTDOWN_CRASH: u32 = 3;
/// `SHUTDOWN_watchdog`.
pub const SHUTDOWN_WATCHDOG: u32 = 4;
/// `SHUTDOWN_soft_reset`.
pub const SHUTDOWN_SOFT_RESET: u32 = 5;

/// `struct sched_shutdown`: why.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Shutdown {
    /// `SHUTDOWN_*`.
    pub reason: u32,
}

/// `struct sched_remote_shutdown`: another domain's shutdown.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RemoteShutdown {
    /// Which.
    pub domain_id: u16,
    /// Unused.
    pub pad: u16,
    /// `SHUTDOWN_*`.
    pub reason: u32,
}

const _: () = assert!(size_of::<Shutdown>() == 4);
const _: () = assert!(size_of::<RemoteShutdown>() == 8);

abi_check! {
    header "sched.h";
    struct "struct sched_shutdown" = Shutdown { "reason" => reason };
    struct "struct sched_remote_shutdown" = RemoteShutdown { "domain_id" => domain_id, "reason" => reason };
    const "SCHEDOP_yield" = SCHEDOP_YIELD;
    const "SCHEDOP_block" = SCHEDOP_BLOCK;
    const "SCHEDOP_shutdown" = SCHEDOP_SHUTDOWN;
    const "SCHEDOP_poll" = SCHEDOP_POLL;
    const "SCHEDOP_remote_shutdown" = SCHEDOP_REMOTE_SHUTDOWN;
    const "SCHEDOP_watchdog" = SCHEDOP_WATCHDOG;
    const "SHUTDOWN_poweroff" = SHUTDOWN_POWEROFF;
    const "SHUTDOWN_reboot" = SHUTDOWN_REBOOT;
    const "SHUTDOWN_suspend" = SHUTDOWN_SUSPEND;
    const "SHUTDOWN_crash" = SHUTDOWN_CRASH;
    const "SHUTDOWN_watchdog" = SHUTDOWN_WATCHDOG;
    const "SHUTDOWN_soft_reset" = SHUTDOWN_SOFT_RESET;
}
