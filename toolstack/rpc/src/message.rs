//! Requests of an administrator and answers of the host.
//!
//! A request is one message, and so is its answer; [`Response::Ready`] says that a stream
//! follows (which way, the request says). Variants and fields: see the crate's
//! compatibility rules.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};
use toolstack_domain::config::{DomainState, GuestConfig, GuestType, ImageId};

use crate::error::RpcError;

/// Longest request, in bytes: a `GuestConfig` with long lists is far below.
pub const MAX_REQUEST: usize = 128 * 1024;
/// Longest answer, in bytes.
pub const MAX_RESPONSE: usize = 1024 * 1024;

/// How an administrator names a guest.
///
/// As with xl, digits alone are a domid, and anything else is a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestRef {
    /// Its name.
    Name(String),
    /// Its domid.
    Id(u16),
}

impl GuestRef {
    /// Reads what the administrator typed.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.parse() {
            Ok(id) if text.bytes().all(|c| c.is_ascii_digit()) => GuestRef::Id(id),
            _ => GuestRef::Name(text.into()),
        }
    }
}

impl fmt::Display for GuestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuestRef::Name(name) => f.write_str(name),
            GuestRef::Id(id) => write!(f, "domid {id}"),
        }
    }
}

/// What [`Request::DomainShutdown`] asks the guest for (`control/shutdown` in xenstore).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShutdownKind {
    /// `poweroff`
    PowerOff,
    /// `reboot`
    Reboot,
}

/// Which log [`Request::HostLog`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogSource {
    /// Closer's own ring.
    Closer,
    /// Xen's console ring.
    Xen,
}

/// What [`Request::HostPower`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PowerAction {
    /// ACPI S5.
    PowerOff,
    /// Reset.
    Reboot,
}

/// What [`Request::VolumeImport`] does if the volume is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportMode {
    /// Fail with [`RpcError::VolumeExists`]. A volume whose import is cut is removed.
    New,
    /// Write over its beginning. If the import is cut, what it holds is unknown.
    Overwrite,
}

/// What an administrator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Answer: [`Response::HostInfo`].
    HostInfo,
    /// Which of these are in the image area? Answer: [`Response::Present`].
    ImageHas {
        /// At most 64.
        ids: Vec<ImageId>,
    },
    /// Put a kernel or a ramdisk into the image area. Answer: `Ready`, then the client
    /// streams `len` bytes, then `Done`; or at once `Done` if it is there already. What
    /// does not hash to `id` is thrown away ([`RpcError::ImageCorrupt`]).
    ImagePut {
        /// SHA-256 of the bytes.
        id: ImageId,
        /// Their number.
        len: u64,
    },
    /// Make a guest, and run it unless `paused`. Its images are on the host already. Answer:
    /// [`Response::Created`], once the domain is built. Fails without leaving anything.
    DomainCreate {
        /// The guest.
        config: Box<GuestConfig>,
        /// Do not let it run yet.
        paused: bool,
    },
    /// Answer: [`Response::Domains`], in the order of their domids, without domain 0; then
    /// those that are being built, which have no domid.
    DomainList {
        /// This one only; [`RpcError::NoSuchGuest`] if it is not there, as no domid is that a
        /// guest had before it was built anew.
        only: Option<GuestRef>,
    },
    /// Ask the guest to shut down. Answer: `Done`, as soon as it has been asked.
    DomainShutdown {
        /// Which.
        guest: GuestRef,
        /// What for.
        kind: ShutdownKind,
    },
    /// End it now. Answer: `Done`, once nothing of it is left.
    DomainDestroy {
        /// Which.
        guest: GuestRef,
    },
    /// Stop its vCPUs. Answer: `Done`.
    DomainPause {
        /// Which.
        guest: GuestRef,
    },
    /// Let them go on. Answer: `Done`.
    DomainUnpause {
        /// Which.
        guest: GuestRef,
    },
    /// Answer: `Done`.
    DomainRename {
        /// Which.
        guest: GuestRef,
        /// Its new name.
        name: String,
    },
    /// Attach to its console. Answer: `Ready`, after which both sides send frames of
    /// data (`read_console`, `write_console`) until either says `End`. The host ends it
    /// when the domain is gone. Closing the connection detaches.
    ConsoleAttach {
        /// Whose.
        guest: GuestRef,
        /// Send what is kept of the past first.
        replay: bool,
    },
    /// What is kept of a console. Answer: `Ready`, then the host streams it.
    ConsoleLog {
        /// Whose.
        guest: GuestRef,
    },
    /// A log of the host. Answer: `Ready`, then the host streams it.
    HostLog {
        /// Which.
        source: LogSource,
    },
    /// Make an empty (all zeros) volume. Answer: `Done`.
    VolumeCreate {
        /// Its name.
        name: String,
        /// Bytes; the host rounds up to what it allots.
        size: u64,
    },
    /// Fill a volume. Answer: `Ready`, then the client streams `len` bytes, then `Done`
    /// once they are on the disk.
    VolumeImport {
        /// Its name.
        name: String,
        /// Its size in bytes, if it is made; at least `len`. What is beyond `len` is zeros.
        size: u64,
        /// Bytes to come, zeros included.
        len: u64,
        /// If it exists.
        mode: ImportMode,
    },
    /// Read a volume. Answer: `Ready` with its size, then the host streams it.
    VolumeExport {
        /// Its name.
        name: String,
    },
    /// Answer: [`Response::Volumes`], in the order of their names.
    VolumeList,
    /// Remove a volume that no guest uses. Answer: `Done`.
    VolumeRemove {
        /// Its name.
        name: String,
    },
    /// Switch the host off or reset it. Guests are asked to shut down first, unless
    /// `force`. Answer: `Done`, before it happens.
    HostPower {
        /// Which.
        action: PowerAction,
        /// Do not wait for guests: destroy them.
        force: bool,
    },
    /// A part of xenstore, for debugging. Answer: `Ready`, then the host streams text, a line
    /// `path = "value"` for each node.
    XenstoreList {
        /// Where to start.
        path: String,
    },
    /// Nothing: that it is answered says that the client has a place. Answer:
    /// [`Response::Done`].
    Ping,
}

/// What the host answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It is done.
    Done,
    /// It is not done, and why.
    Error(RpcError),
    /// The stream may begin, or begins here.
    Ready {
        /// Bytes of the host's stream, zeros included, if they are known beforehand; else 0.
        len: u64,
    },
    /// See [`Request::HostInfo`].
    HostInfo(Box<HostInfo>),
    /// See [`Request::ImageHas`]; one answer for each question.
    Present(Vec<bool>),
    /// See [`Request::DomainCreate`].
    Created {
        /// The new domain.
        domid: u16,
        /// Node that holds its memory; none: several.
        node: Option<u32>,
    },
    /// See [`Request::DomainList`].
    Domains(Vec<DomainInfo>),
    /// See [`Request::VolumeList`].
    Volumes(Vec<VolumeInfo>),
}

/// The host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Its name.
    pub name: String,
    /// Closer's version.
    pub closer_version: String,
    /// Xen's version, as in "4.20.1".
    pub xen_version: String,
    /// Since Xen gave control to Closer, in seconds.
    pub uptime_s: u64,
    /// Wall clock, in seconds since 1970.
    pub wall_clock_s: u64,
    /// Physical CPUs.
    pub cpus: u32,
    /// CPUs of the main container (Closer's own work).
    pub mc_cpus: Vec<u32>,
    /// All of the machine's memory that Xen knows, in bytes.
    pub memory: u64,
    /// What Xen has free of it, in bytes.
    pub free_memory: u64,
    /// Nodes.
    pub nodes: Vec<NodeInfo>,
    /// Memory of Closer itself.
    pub own: OwnMemory,
    /// Guests.
    pub guests: u32,
    /// The disk that holds volumes; none: there is none.
    pub volumes: Option<Space>,
    /// The image area; none: there is none.
    pub images: Option<Space>,
    /// For how long each of Closer's vCPUs has run by Xen's account, in nanoseconds.
    pub vcpu_ns: Vec<u64>,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its number.
    pub id: u32,
    /// Its memory, in bytes.
    pub memory: u64,
    /// What Xen has free of it, in bytes.
    pub free: u64,
    /// Its physical CPUs.
    pub cpus: Vec<u32>,
    /// What Closer uses of it, in bytes.
    pub own_used: u64,
}

/// Memory of Closer itself, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnMemory {
    /// What Xen has given it.
    pub total: u64,
    /// Page frames in use, image and heap included.
    pub used: u64,
    /// Packet memory that no packet is in, a part of `used`: what traffic has needed once
    /// is kept for the next.
    pub packets_idle: u64,
    /// Frames of the heap, a part of `used`.
    pub heap_held: u64,
    /// What is allocated in them, to the byte.
    pub heap_used: u64,
}

/// A place on a disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Size.
    pub total: u64,
    /// Left.
    pub free: u64,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainInfo {
    /// Its name.
    pub name: String,
    /// Its domid; none while it is being built. What asks a domain for something is
    /// refused then ([`RpcError::WrongState`]).
    pub domid: Option<u16>,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its type.
    pub kind: GuestType,
    /// What it does now.
    pub state: DomainState,
    /// Memory that it has, in KiB.
    pub memory_kib: u64,
    /// vCPUs online.
    pub vcpus: u32,
    /// vCPUs at most.
    pub max_vcpus: u32,
    /// Physical CPUs that its vCPUs are pinned to.
    pub cpus: Vec<u32>,
    /// Node that holds its memory; none: several.
    pub node: Option<u32>,
    /// CPU time used, in nanoseconds.
    pub cpu_ns: u64,
    /// Since its creation, in seconds.
    pub uptime_s: u64,
    /// CPU time that Closer has spent on it, in nanoseconds: its devices, its console, its
    /// part of xenstore. Not in `cpu_ns`.
    pub served_ns: u64,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its size, in bytes.
    pub size: u64,
    /// Guests that use it, or what is filling it.
    pub used_by: Vec<String>,
}
