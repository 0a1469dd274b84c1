//! What the privileged VM is told at boot: its command line and its one boot archive.
//!
//! The archive is the initrd that Xen hands over: an uncompressed `newc` cpio, so that
//! ordinary tools make it (`cpio -o -H newc`), with a few small text files:
//!
//! | file          | what                                                              |
//! |---------------|-------------------------------------------------------------------|
//! | `closer.conf` | lines `key = value`, `#` starts a comment; keys: see [`settings`]  |
//! | `host.key`    | the host's X25519 private key, 64 hex digits or base64             |
//! | `admins`      | lines `KEY name`: an administrator's X25519 public key             |
//! | `guests`      | names of guests to start at boot, one a line, in this order        |
//!
//! An option on the command line (`hostname=a1 ip=10.0.2.15/24 gateway=10.0.2.2`) wins
//! over the same key in `closer.conf`.
//!
//! What is wrong or missing gives one [`Diagnostic`] each, with what was done about it.
//! Two things are fatal, because a host without them could never be managed and nobody
//! would notice until it matters: no usable `host.key`, and not one usable line in
//! `admins`. Everything else has a safe default, named in the diagnostic. A bad address
//! falls back to DHCP: this lets nobody in who does not hold a key, and a reachable host
//! can be repaired.
//!
//! Everything is bounded ([`cpio::MAX_ARCHIVE`], [`MAX_ADMINISTRATORS`], ...), and
//! nothing here panics on any input.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod archive;
pub mod cpio;
mod diagnostic;
pub mod keys;
pub mod nic;
pub mod settings;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

pub use diagnostic::{Decision, Diagnostic, Problem, Source};
pub use keys::{HostKey, PublicKey};

/// TCP port of the management RPC when nothing else is said.
pub const DEFAULT_RPC_PORT: u16 = 8006;
/// Name of a host that was given none.
pub const DEFAULT_HOSTNAME: &str = "closer";
/// Seconds between a panic and the reboot when nothing else is said: long enough to read
/// the console, short enough for an unattended host.
pub const DEFAULT_PANIC_REBOOT_S: u32 = 10;
/// Longest time that may be asked for between a panic and the reboot, in seconds.
pub const MAX_PANIC_REBOOT_S: u32 = 86_400;
/// Most main-container vCPUs that may be asked for.
pub const MAX_MC_CORES: u32 = 64;
/// Most lines of `admins` that count.
pub const MAX_ADMINISTRATORS: usize = 64;
/// Most guests started at boot.
pub const MAX_GUESTS: usize = 256;
/// Longest host name and administrator's name, in bytes.
pub const MAX_NAME: usize = 63;
/// Longest guest's name, in bytes.
pub const MAX_GUEST_NAME: usize = 64;
/// Most diagnostics kept; what would come after them is dropped (fatal ones never are).
pub const MAX_DIAGNOSTICS: usize = 64;
/// Longest command line looked at, in bytes (Xen's `MAX_GUEST_CMDLINE` is 1024).
pub const MAX_COMMAND_LINE: usize = 4096;

/// Which network interface carries the management address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nic {
    /// The n-th in the order of PCI addresses, from 0.
    Index(u32),
    /// The one with this MAC address.
    Mac([u8; 6]),
    /// The one at this PCI address.
    Pci(PciAddress),
}

/// `segment:bus:device.function`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress {
    /// PCI segment group (domain).
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment,
            bus,
            device,
            function,
        } = self;
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// How the management address is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Ask the network's DHCP server.
    Dhcp,
    /// As given.
    Static {
        /// The host's address.
        address: Ipv4Addr,
        /// Length of the network's prefix, 1 to 32.
        prefix: u8,
        /// Router; none: only the own network is reached.
        gateway: Option<Ipv4Addr>,
        /// Name server.
        dns: Option<Ipv4Addr>,
    },
}

/// Least severity that reaches the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what stops something.
    Error,
    /// And what will.
    Warn,
    /// And what changes.
    Info,
    /// And why.
    Debug,
    /// And every step.
    Trace,
}

/// What a panic of the privileged VM leads to, after its backtrace is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicAction {
    /// Reboot the machine.
    Reboot {
        /// Seconds to wait first, so that the console can be read.
        after_s: u32,
    },
    /// Stay, for someone to look.
    Halt,
}

/// Somebody who may manage this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Administrator {
    /// Shown in the log.
    pub name: String,
    /// X25519 public key.
    pub key: PublicKey,
}

/// All that the host is told at boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Name of the host.
    pub hostname: String,
    /// The management interface.
    pub nic: Nic,
    /// Its address.
    pub address: Address,
    /// TCP port of the management RPC.
    pub rpc_port: u16,
    /// Number of main-container vCPUs, from 1; so that guests keep one, if there is more than
    /// one.
    pub mc_cores: u32,
    /// What reaches the console.
    pub log_level: LogLevel,
    /// What follows a panic.
    pub panic_action: PanicAction,
    /// Proves to administrators that this is their host. `None` only together with a
    /// fatal diagnostic.
    pub host_key: Option<HostKey>,
    /// Who may manage it. Empty only together with a fatal diagnostic.
    pub administrators: Vec<Administrator>,
    /// Names of stored guests to start, in this order.
    pub guests: Vec<String>,
}

impl Default for HostConfig {
    /// What holds where nothing is said; without keys, so not bootable as it is.
    fn default() -> Self {
        HostConfig {
            hostname: String::from(DEFAULT_HOSTNAME),
            nic: Nic::Index(0),
            address: Address::Dhcp,
            rpc_port: DEFAULT_RPC_PORT,
            mc_cores: 1,
            log_level: LogLevel::Info,
            panic_action: PanicAction::Reboot {
                after_s: DEFAULT_PANIC_REBOOT_S,
            },
            host_key: None,
            administrators: Vec::new(),
            guests: Vec::new(),
        }
    }
}

/// What counts before the archive can be read: the command line's options of the log and of
/// a panic, if they are there and good. Silent: [`parse`] says what is wrong with them.
#[must_use]
pub fn early(command_line: &[u8]) -> (Option<LogLevel>, Option<PanicAction>) {
    let mut settings = settings::Settings::default();
    settings.read_command_line(command_line, &mut diagnostic::Log::default());
    settings.early()
}

/// [`parse_for`] a host of any size.
#[must_use]
pub fn parse(command_line: &[u8], archive: Option<&[u8]>) -> (HostConfig, Vec<Diagnostic>) {
    parse_for(u32::MAX, command_line, archive)
}

/// Reads the command line and the boot archive of a host whose privileged VM has `vcpus`
/// vCPUs.
///
/// `command_line` is as Xen's start info holds it, up to its NUL or end; `archive` is the
/// boot module, if there is one. The host must not start if any diagnostic
/// [is fatal](Diagnostic::is_fatal).
#[must_use]
pub fn parse_for(
    vcpus: u32,
    command_line: &[u8],
    archive: Option<&[u8]>,
) -> (HostConfig, Vec<Diagnostic>) {
    let mut log = diagnostic::Log::default();
    let mut config = HostConfig::default();
    let mut settings = settings::Settings::default();

    let files = archive::Files::read(archive, &mut log);
    if let Some(text) = files.text(archive::CONF, &mut log) {
        settings.read_file(text, &mut log);
    } else if files.lacks(archive::CONF) {
        log.push(
            Source::File(archive::CONF),
            "",
            "",
            Problem::MissingFile,
            Decision::DefaultsUsed,
        );
    }
    settings.read_command_line(command_line, &mut log);

    config.guests = files
        .text(archive::GUESTS, &mut log)
        .map(|text| archive::guests(text, &mut log))
        .unwrap_or_default();
    settings.apply(&mut config, vcpus, &mut log);

    config.host_key = files.host_key(&mut log);
    config.administrators = files.administrators(&mut log);
    (config, log.into_diagnostics())
}

/// Whether `name` may name a guest: 1 to 64 letters, digits and `+-._`, not beginning with
/// `-` or `.`, not digits alone, which would be a domid, and not the host's own. The RPC and
/// the host have the same rule.
#[must_use]
pub fn is_guest_name(name: &str) -> bool {
    (1..=MAX_GUEST_NAME).contains(&name.len())
        && name != "Domain-0"
        && !name.starts_with(['-', '.'])
        && !name.bytes().all(|b| b.is_ascii_digit())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b))
}

/// Entry point for fuzzers: any bytes as a command line and an archive.
pub mod fuzz {
    /// First two bytes: length of the command line; then it; the rest is the archive.
    pub fn parse(data: &[u8]) {
        let Some((length, rest)) = data.split_first_chunk::<2>() else {
            return;
        };
        let cut = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (line, archive) = rest.split_at(cut);
        let (config, diagnostics) = crate::parse(line, Some(archive));
        let fatal = diagnostics.iter().any(crate::Diagnostic::is_fatal);
        assert!(fatal || (config.host_key.is_some() && !config.administrators.is_empty()));
        // What can be started can be written and read back.
        let written = crate::archive::write(&crate::archive::ArchiveContents::from(&config));
        let (again, complaints) = crate::parse(b"", Some(&written));
        assert_eq!(config, again, "{complaints:?}");
    }
}

#[cfg(test)]
mod tests;
