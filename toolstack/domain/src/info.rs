//! What Xen says of a domain, decoded.

use crate::config::DomainState;
use xen_abi::DomId;
use xen_abi::domctl::{self, GetDomainInfo};

/// Why a domain shut down: `SHUTDOWN_*` of `sched.h`. A guest may give any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// 0: it is done.
    Poweroff,
    /// 1: it wants to start anew.
    Reboot,
    /// 2: it saved its state, to be resumed here or elsewhere.
    Suspend,
    /// 3: it crashed.
    Crash,
    /// 4: its watchdog expired.
    Watchdog,
    /// 5: it wants a fresh domain around the memory it has.
    SoftReset,
    /// Any other number.
    Unknown(u8),
}

impl From<u8> for ShutdownReason {
    fn from(code: u8) -> Self {
        match code {
            0 => Self::Poweroff,
            1 => Self::Reboot,
            2 => Self::Suspend,
            3 => Self::Crash,
            4 => Self::Watchdog,
            5 => Self::SoftReset,
            other => Self::Unknown(other),
        }
    }
}

/// `getdomaininfo`, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Which.
    pub id: DomId,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// PVH (or HVM), else PV.
    pub hvm: bool,
    /// Being taken down.
    pub dying: bool,
    /// Paused by the toolstack.
    pub paused: bool,
    /// One of its vCPUs runs at this moment.
    pub running: bool,
    /// All of its vCPUs wait.
    pub blocked: bool,
    /// It shut down, and why.
    pub shutdown: Option<ShutdownReason>,
    /// Pages it owns.
    pub pages: u64,
    /// Pages it may own.
    pub max_pages: u64,
    /// Nanoseconds that its vCPUs have run.
    pub cpu_time_ns: u64,
    /// vCPUs online.
    pub vcpus_online: u32,
    /// vCPUs it has, online or not.
    pub vcpus: u32,
    /// Machine frame of the shared-info page.
    pub shared_info_frame: u64,
}

impl From<&GetDomainInfo> for DomainInfo {
    fn from(raw: &GetDomainInfo) -> Self {
        let is = |bit| raw.flags & bit != 0;
        let reason = (raw.flags >> domctl::DOMINF_SHUTDOWNSHIFT) & domctl::DOMINF_SHUTDOWNMASK;
        Self {
            id: DomId(raw.domain),
            uuid: raw.handle,
            hvm: is(domctl::DOMINF_HVM_GUEST),
            dying: is(domctl::DOMINF_DYING),
            paused: is(domctl::DOMINF_PAUSED),
            running: is(domctl::DOMINF_RUNNING),
            blocked: is(domctl::DOMINF_BLOCKED),
            shutdown: is(domctl::DOMINF_SHUTDOWN)
                .then(|| ShutdownReason::from(u8::try_from(reason).unwrap_or(u8::MAX))),
            pages: raw.tot_pages,
            max_pages: raw.max_pages,
            cpu_time_ns: raw.cpu_time,
            vcpus_online: raw.nr_online_vcpus,
            vcpus: raw.max_vcpu_id.wrapping_add(1),
            shared_info_frame: raw.shared_info_frame,
        }
    }
}

impl DomainInfo {
    /// xl's columns `r b p s c d`: a letter, or a dash where it does not apply.
    pub fn letters(&self) -> [u8; 6] {
        let flag = |is, letter| if is { letter } else { b'-' };
        let crashed = matches!(
            self.shutdown,
            Some(ShutdownReason::Crash | ShutdownReason::Watchdog)
        );
        [
            flag(self.running, b'r'),
            flag(self.blocked, b'b'),
            flag(self.paused, b'p'),
            flag(self.shutdown.is_some(), b's'),
            flag(crashed, b'c'),
            flag(self.dying, b'd'),
        ]
    }

    /// The one state that says most, as `list` shows it.
    pub fn state(&self) -> DomainState {
        match self.shutdown {
            _ if self.dying => DomainState::Dying,
            Some(ShutdownReason::Crash | ShutdownReason::Watchdog) => DomainState::Crashed,
            Some(_) => DomainState::Shutdown,
            None if self.paused => DomainState::Paused,
            None if self.running => DomainState::Running,
            None => DomainState::Blocked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32) -> DomainInfo {
        DomainInfo::from(&GetDomainInfo {
            flags,
            ..Default::default()
        })
    }

    #[test]
    fn a_fresh_pvh_domain_is_paused_and_hvm() {
        // 0x10a is what the probe of the lab notes saw: hvm, paused, hap.
        let info = info(0x10a);
        assert!(info.hvm && info.paused && !info.running);
        assert_eq!(&info.letters(), b"--p---");
        assert_eq!(info.state(), DomainState::Paused);
    }

    #[test]
    fn the_reason_is_read_only_once_the_domain_has_shut_down() {
        assert_eq!(info(3 << 16).shutdown, None);
        let crashed = info(3 << 16 | 4);
        assert_eq!(crashed.shutdown, Some(ShutdownReason::Crash));
        assert_eq!(&crashed.letters(), b"---sc-");
        assert_eq!(
            info(200 << 16 | 4).shutdown,
            Some(ShutdownReason::Unknown(200))
        );
    }

    #[test]
    fn dying_wins_over_everything() {
        assert_eq!(info(1 | 4 | 3 << 16).state(), DomainState::Dying);
    }
}
