//! What follows when a guest shuts down: a table, and a brake on guests that do
//! nothing but reboot.

use crate::config::{Action, GuestConfig};
use crate::info::ShutdownReason;

/// What to do with a domain that shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Destroy it.
    Destroy,
    /// Destroy it, and build the configuration anew.
    Restart,
    /// Leave it as it is until an administrator destroys it.
    Preserve,
    /// Give it another name, and build the configuration anew under the old one.
    RenameRestart,
    /// It is suspended: whoever asked it to (save, migrate) goes on; destroy it if
    /// nobody did.
    Suspended,
}

impl From<Action> for Next {
    fn from(action: Action) -> Self {
        match action {
            Action::Destroy => Self::Destroy,
            Action::Restart => Self::Restart,
            Action::Preserve => Self::Preserve,
            Action::RenameRestart => Self::RenameRestart,
        }
    }
}

/// The table: why it shut down, and what its configuration says to that.
///
/// A watchdog that expires is a crash. A soft reset (a guest that does kexec) would
/// need a new domain around the old memory; it is given what a reboot gets, which is
/// safe and loses only that memory. A reason that Xen does not know of means
/// destruction, as with xl.
pub fn after_shutdown(reason: ShutdownReason, config: &GuestConfig) -> Next {
    match reason {
        ShutdownReason::Poweroff => config.on_poweroff.into(),
        ShutdownReason::Reboot | ShutdownReason::SoftReset => config.on_reboot.into(),
        ShutdownReason::Crash | ShutdownReason::Watchdog => config.on_crash.into(),
        ShutdownReason::Suspend => Next::Suspended,
        ShutdownReason::Unknown(_) => Next::Destroy,
    }
}

/// Keeps a guest that dies as soon as it is built from being built for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestartBrake {
    short_lives: u32,
}

impl RestartBrake {
    /// A life shorter than this counts.
    pub const SHORT_LIFE_NS: u64 = 10_000_000_000;
    /// This many short lives in a row, and it is not built again.
    pub const MOST_SHORT_LIVES: u32 = 5;

    /// Asks for a restart after a life of `lived_ns`. `false`: no, it has to be started
    /// by an administrator.
    #[must_use]
    pub fn may_restart(&mut self, lived_ns: u64) -> bool {
        if lived_ns >= Self::SHORT_LIFE_NS {
            self.short_lives = 0;
            return true;
        }
        self.short_lives += 1;
        self.short_lives < Self::MOST_SHORT_LIVES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{GuestType, ImageId, Kernel, TscMode};
    use alloc::string::String;
    use alloc::vec::Vec;

    fn config(on_poweroff: Action, on_reboot: Action, on_crash: Action) -> GuestConfig {
        GuestConfig {
            name: String::from("g"),
            uuid: [0; 16],
            kind: GuestType::Pvh,
            kernel: Kernel {
                image: ImageId([0; 32]),
                segments: Vec::new(),
                notes: Vec::new(),
                entry: 0,
            },
            ramdisk: None,
            cmdline: String::new(),
            memory_mib: 64,
            vcpus: 1,
            max_vcpus: 1,
            cpus: Vec::new(),
            disks: Vec::new(),
            vifs: Vec::new(),
            on_poweroff,
            on_reboot,
            on_crash,
            tsc_mode: TscMode::Default,
        }
    }

    #[test]
    fn each_reason_asks_its_own_action() {
        // Three different actions, so that a mix-up shows.
        let config = config(Action::Preserve, Action::Restart, Action::RenameRestart);
        let table = [
            (ShutdownReason::Poweroff, Next::Preserve),
            (ShutdownReason::Reboot, Next::Restart),
            (ShutdownReason::SoftReset, Next::Restart),
            (ShutdownReason::Crash, Next::RenameRestart),
            (ShutdownReason::Watchdog, Next::RenameRestart),
            (ShutdownReason::Suspend, Next::Suspended),
            (ShutdownReason::Unknown(77), Next::Destroy),
        ];
        for (reason, next) in table {
            assert_eq!(after_shutdown(reason, &config), next, "{reason:?}");
        }
    }

    #[test]
    fn five_short_lives_in_a_row_are_enough_and_a_long_one_starts_anew() {
        let mut brake = RestartBrake::default();
        assert_eq!(
            [1, 2, 3, 4, 5].map(|_| brake.may_restart(1)),
            [true, true, true, true, false]
        );
        assert!(brake.may_restart(RestartBrake::SHORT_LIFE_NS));
        assert!(brake.may_restart(1));
    }
}
