//! A guest as the administrator asked for it, checked and typed.
//!
//! The CLI makes a [`GuestConfig`] from an xl.cfg file; it travels over the RPC, is
//! kept on the host's image area (so that a guest reboots with no CLI connected),
//! and the builder consumes it.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// `type=` of xl.cfg; HVM with a device model does not exist here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestType {
    /// Paravirtualised, 64 bit.
    Pv,
    /// Hardware-virtualised without a device model.
    Pvh,
}

/// `on_poweroff`, `on_reboot`, `on_crash` of xl.cfg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Destroy the domain.
    Destroy,
    /// Destroy it and make it anew from the same configuration.
    Restart,
    /// Keep it for inspection, until an administrator destroys it.
    Preserve,
    /// Keep it under another name, and start the configuration anew.
    RenameRestart,
}

/// `tsc_mode` of xl.cfg: what a guest's RDTSC reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TscMode {
    /// The processor's counter if Xen finds it reliable on this host, else Xen's.
    #[default]
    Default,
    /// Xen's: each RDTSC traps.
    AlwaysEmulate,
    /// The processor's, whether reliable or not.
    Native,
}

/// A kernel or a ramdisk kept in the host's image area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImageId(
    /// SHA-256 of the stored bytes.
    pub [u8; 32],
);

/// A run of kernel bytes and where it goes (an ELF program header with type `PT_LOAD`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// `p_paddr`: for PVH the guest physical address; for PV relative to
    /// `XEN_ELFNOTE_PADDR_OFFSET`.
    pub paddr: u64,
    /// `p_vaddr`.
    pub vaddr: u64,
    /// Offset of the bytes in the stored image.
    pub offset: u64,
    /// `p_filesz`: bytes in the image.
    pub file_size: u64,
    /// `p_memsz`: bytes in memory; the rest is zero.
    pub mem_size: u64,
}

/// An unpacked kernel: what the CLI found in the ELF, and which stored image holds
/// its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The stored bytes (the unpacked ELF file).
    pub image: ImageId,
    /// Its loadable segments, in the order of their addresses.
    pub segments: Vec<Segment>,
    /// ELF notes with name "Xen": type (`XEN_ELFNOTE_*`) and value. Numbers are kept as
    /// little-endian bytes of the note's own length, strings without the final NUL.
    pub notes: Vec<(u32, Vec<u8>)>,
    /// `e_entry`.
    pub entry: u64,
}

/// A ramdisk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ramdisk {
    /// The stored bytes.
    pub image: ImageId,
    /// Their number.
    pub len: u64,
}

/// One `disk=` entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Name of the volume on the host.
    pub volume: String,
    /// `vdev`: "xvda", ...
    pub vdev: String,
    /// `access`: whether the guest may write.
    pub writable: bool,
}

/// One `vif=` entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vif {
    /// The guest's MAC address. The CLI or the host makes one up (00:16:3e:...) if the
    /// configuration has none, so it is always there once stored.
    pub mac: [u8; 6],
    /// `mtu`.
    pub mtu: u16,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// `name`: unique on the host.
    pub name: String,
    /// `uuid`.
    pub uuid: [u8; 16],
    /// `type`.
    pub kind: GuestType,
    /// `kernel`, unpacked.
    pub kernel: Kernel,
    /// `ramdisk`.
    pub ramdisk: Option<Ramdisk>,
    /// `cmdline`, or `root` and `extra` joined as xl does.
    pub cmdline: String,
    /// `memory`, in MiB.
    pub memory_mib: u32,
    /// `vcpus` at start.
    pub vcpus: u32,
    /// `maxvcpus`.
    pub max_vcpus: u32,
    /// `cpus`: physical CPUs each vCPU may run on; empty: Closer chooses.
    pub cpus: Vec<u32>,
    /// `disk`.
    pub disks: Vec<Disk>,
    /// `vif`.
    pub vifs: Vec<Vif>,
    /// `on_poweroff`; default destroy.
    pub on_poweroff: Action,
    /// `on_reboot`; default restart.
    pub on_reboot: Action,
    /// `on_crash`; default destroy.
    pub on_crash: Action,
    /// `tsc_mode`.
    pub tsc_mode: TscMode,
}

/// What the CLI's `list` shows as the domain's state; xl's letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DomainState {
    /// `r`
    Running,
    /// `b`
    Blocked,
    /// `p`
    Paused,
    /// `s`
    Shutdown,
    /// `c`
    Crashed,
    /// `d`
    Dying,
    /// No letter: it has no domain now. It is being built, for the first time or anew; or the
    /// last of it is being forgotten.
    Building,
}
