//! What the host says when it does not do what it is asked for.
//!
//! Each is a code that a program can act on ([`RpcError::code`]), the facts, and one
//! line for a person (`Display`).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};
use toolstack_domain::config::{DomainState, ImageId};

use crate::key::write_hex;

/// Where space is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// The disk that holds volumes.
    Volumes,
    /// The image area.
    Images,
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RpcError {
    /// The host does not know the request: it is older than the command line, or the
    /// message is damaged.
    UnknownRequest,
    /// No guest with this name or domid.
    NoSuchGuest {
        /// As it was asked for.
        guest: String,
    },
    /// The name is taken.
    GuestExists {
        /// The name.
        name: String,
    },
    /// The UUID is taken.
    UuidExists {
        /// The guest that has it.
        name: String,
    },
    /// The guest is in a state that does not allow it.
    WrongState {
        /// The guest.
        name: String,
        /// Its state.
        state: DomainState,
    },
    /// A name that cannot be one.
    BadName {
        /// As it was asked for.
        name: String,
        /// Why.
        why: String,
    },
    /// A value of the guest's configuration cannot be.
    BadConfig {
        /// Key of xl.cfg.
        key: String,
        /// Why.
        why: String,
    },
    /// The kernel cannot be started by Xen.
    BadKernel {
        /// Why.
        why: String,
    },
    /// Xen has less free memory than the guest needs.
    NotEnoughMemory {
        /// What it needs, with its page tables and the like, in MiB.
        asked_mib: u64,
        /// What is free for guests on each node, in MiB.
        free_mib: Vec<u64>,
    },
    /// More vCPUs than the host can carry.
    NotEnoughCpus {
        /// Asked for.
        asked: u32,
        /// There are for guests: the main container's are not.
        present: u32,
    },
    /// A physical CPU that is not there, or not for guests.
    NoSuchCpu {
        /// Asked for.
        cpu: u32,
        /// Physical CPUs.
        present: u32,
    },
    /// No volume with this name.
    NoSuchVolume {
        /// The name.
        name: String,
    },
    /// The name is taken.
    VolumeExists {
        /// The name.
        name: String,
    },
    /// A guest, an import or an export has it.
    VolumeInUse {
        /// The volume.
        name: String,
        /// Who has it.
        by: String,
    },
    /// The data is longer than the volume.
    VolumeTooSmall {
        /// The volume.
        name: String,
        /// Bytes to be written.
        asked: u64,
        /// Its size.
        size: u64,
    },
    /// The disk is full.
    NoSpace {
        /// Where.
        place: Place,
        /// Bytes.
        asked: u64,
        /// Largest free run of bytes.
        free: u64,
    },
    /// The host has no such disk.
    NoDisk {
        /// For what.
        place: Place,
    },
    /// A disk failed.
    DiskFailed {
        /// Which, or for what.
        what: String,
        /// What it said.
        why: String,
    },
    /// The image area does not hold it.
    NoSuchImage {
        /// The image.
        id: ImageId,
    },
    /// What was sent is not what was announced.
    ImageCorrupt {
        /// Announced.
        id: ImageId,
        /// Sent.
        found: ImageId,
    },
    /// A stream's length is not what was announced.
    WrongLength {
        /// Announced.
        announced: u64,
        /// Sent.
        sent: u64,
    },
    /// The sender gave up.
    Aborted {
        /// Why.
        why: String,
    },
    /// The host does as many of these as it can already; later it will work.
    Busy {
        /// Doing what.
        what: String,
    },
    /// This host does not do that.
    Unsupported {
        /// What.
        what: String,
    },
    /// Xen refused.
    Hypervisor {
        /// Operation, as in "XEN_DOMCTL_createdomain".
        operation: String,
        /// Xen's errno, positive.
        errno: u32,
    },
    /// No node of xenstore with this path.
    NoSuchNode {
        /// The path.
        path: String,
    },
    /// Closer itself failed; its log says more.
    Failed {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
    /// Only a guest that is paused can be unpaused.
    NotPaused {
        /// The guest.
        name: String,
    },
    /// The host is being switched off or reset, and starts nothing any more.
    GoingDown {
        /// Guests that it still waits for.
        guests: u32,
    },
}

impl RpcError {
    /// A word for programs, stable over versions.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            RpcError::UnknownRequest => "unknown-request",
            RpcError::NoSuchGuest { .. } => "no-such-guest",
            RpcError::GuestExists { .. } => "guest-exists",
            RpcError::UuidExists { .. } => "uuid-exists",
            RpcError::WrongState { .. } => "wrong-state",
            RpcError::BadName { .. } => "bad-name",
            RpcError::BadConfig { .. } => "bad-config",
            RpcError::BadKernel { .. } => "bad-kernel",
            RpcError::NotEnoughMemory { .. } => "not-enough-memory",
            RpcError::NotEnoughCpus { .. } => "not-enough-cpus",
            RpcError::NoSuchCpu { .. } => "no-such-cpu",
            RpcError::NoSuchVolume { .. } => "no-such-volume",
            RpcError::VolumeExists { .. } => "volume-exists",
            RpcError::VolumeInUse { .. } => "volume-in-use",
            RpcError::VolumeTooSmall { .. } => "volume-too-small",
            RpcError::NoSpace { .. } => "no-space",
            RpcError::NoDisk { .. } => "no-disk",
            RpcError::DiskFailed { .. } => "disk-failed",
            RpcError::NoSuchImage { .. } => "no-such-image",
            RpcError::ImageCorrupt { .. } => "image-corrupt",
            RpcError::WrongLength { .. } => "wrong-length",
            RpcError::Aborted { .. } => "aborted",
            RpcError::Busy { .. } => "busy",
            RpcError::Unsupported { .. } => "unsupported",
            RpcError::Hypervisor { .. } => "hypervisor",
            RpcError::NoSuchNode { .. } => "no-such-node",
            RpcError::Failed { .. } => "failed",
            RpcError::NotPaused { .. } => "not-paused",
            RpcError::GoingDown { .. } => "going-down",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Volumes => "volumes",
            Place::Images => "images",
        })
    }
}

/// An image's name as a person sees it: the first 12 digits.
struct Short<'a>(&'a ImageId);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0.0[..6])
    }
}

/// A state in words.
fn state_name(state: DomainState) -> &'static str {
    match state {
        DomainState::Running => "running",
        DomainState::Blocked => "blocked",
        DomainState::Paused => "paused",
        DomainState::Shutdown => "shut down",
        DomainState::Crashed => "crashed",
        DomainState::Dying => "dying",
        DomainState::Building => "being built or forgotten",
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RpcError::UnknownRequest => {
                f.write_str("the host does not know this request (an older Closer?)")
            }
            RpcError::NoSuchGuest { guest } => write!(f, "no such guest: {guest}"),
            RpcError::GuestExists { name } => write!(f, "a guest named {name} exists already"),
            RpcError::UuidExists { name } => write!(f, "guest {name} has the same uuid"),
            RpcError::WrongState { name, state } => {
                write!(f, "guest {name} is {}", state_name(*state))
            }
            RpcError::BadName { name, why } => write!(f, "bad name {name:?}: {why}"),
            RpcError::BadConfig { key, why } => write!(f, "{key}: {why}"),
            RpcError::BadKernel { why } => write!(f, "kernel: {why}"),
            RpcError::NotEnoughMemory {
                asked_mib,
                free_mib,
            } => {
                write!(
                    f,
                    "not enough memory: {asked_mib} MiB asked for, free for guests: "
                )?;
                for (node, free) in free_mib.iter().enumerate() {
                    let comma = if node == 0 { "" } else { ", " };
                    write!(f, "{comma}{free} MiB on node {node}")?;
                }
                Ok(())
            }
            RpcError::NotEnoughCpus { asked, present } => {
                write!(
                    f,
                    "not enough CPUs: {asked} vCPUs asked for, the host has {present} for guests"
                )
            }
            RpcError::NoSuchCpu { cpu, present } => {
                write!(
                    f,
                    "guests have no CPU {cpu}: it is not there or the host's own; {present} are theirs"
                )
            }
            RpcError::NoSuchVolume { name } => write!(f, "no such volume: {name}"),
            RpcError::VolumeExists { name } => write!(f, "a volume named {name} exists already"),
            RpcError::VolumeInUse { name, by } => write!(f, "volume {name} is in use by {by}"),
            RpcError::VolumeTooSmall { name, asked, size } => {
                write!(f, "volume {name} has {size} bytes, {asked} do not fit")
            }
            RpcError::NoSpace { place, asked, free } => write!(
                f,
                "no space for {place}: {asked} bytes asked for, largest free run {free}"
            ),
            RpcError::NoDisk { place } => write!(
                f,
                "the host has no disk that it can use for {place}; its log (closer dmesg) says why"
            ),
            RpcError::DiskFailed { what, why } => write!(f, "disk failed: {what}: {why}"),
            RpcError::NoSuchImage { id } => {
                write!(f, "image {} is not on the host", Short(id))
            }
            RpcError::ImageCorrupt { id, found } => write!(
                f,
                "image {} was sent with the contents of {} (did the file change?)",
                Short(id),
                Short(found)
            ),
            RpcError::WrongLength { announced, sent } => {
                write!(
                    f,
                    "{sent} bytes sent, {announced} announced (did the file change?)"
                )
            }
            RpcError::Aborted { why } => write!(f, "given up: {why}"),
            RpcError::Busy { what } => write!(f, "the host is busy: {what}"),
            RpcError::Unsupported { what } => write!(f, "not supported by this host: {what}"),
            RpcError::Hypervisor { operation, errno } => {
                write!(f, "Xen refused {operation}: errno {errno}")
            }
            RpcError::NoSuchNode { path } => write!(f, "no such xenstore node: {path}"),
            RpcError::Failed { what, why } => write!(f, "{what} failed: {why}"),
            RpcError::NotPaused { name } => write!(f, "guest {name} is not paused"),
            RpcError::GoingDown { guests } => {
                f.write_str("the host is going down already")?;
                match guests {
                    0 => Ok(()),
                    1 => f.write_str(", once 1 guest has ended"),
                    many => write!(f, ", once {many} guests have ended"),
                }
            }
        }
    }
}

impl core::error::Error for RpcError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn refusals_name_what_the_administrator_can_act_on() {
        let name = String::from("a");
        let table = [
            (
                RpcError::NotEnoughCpus {
                    asked: 4,
                    present: 3,
                },
                "not enough CPUs: 4 vCPUs asked for, the host has 3 for guests",
            ),
            (RpcError::NotPaused { name }, "guest a is not paused"),
            (
                RpcError::GoingDown { guests: 0 },
                "the host is going down already",
            ),
            (
                RpcError::GoingDown { guests: 1 },
                "the host is going down already, once 1 guest has ended",
            ),
            (
                RpcError::GoingDown { guests: 2 },
                "the host is going down already, once 2 guests have ended",
            ),
        ];
        for (error, line) in table {
            assert_eq!(error.to_string(), line);
        }
    }

    /// Command lines of another age read the same: new variants come last.
    #[test]
    fn new_errors_do_not_move_old_ones() {
        let coded = |error: &RpcError| postcard::to_allocvec(error).unwrap()[0];
        let what = String::new();
        let why = String::new();
        assert_eq!(coded(&RpcError::UnknownRequest), 0);
        assert_eq!(coded(&RpcError::Failed { what, why }), 26);
        assert_eq!(coded(&RpcError::GoingDown { guests: 0 }), 28);
    }
}
