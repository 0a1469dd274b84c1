//! Guest definitions in xl's format (xl.cfg(5)), and what they mean on a Closer host.
//!
//! [`load`] reads a file as xl 4.20 does and gives a typed [`XlConfig`];
//! [`XlConfig::to_guest`] makes of it what the host is sent. Differences from xl, each
//! with one clear line: a disk's target is the name of a volume of the host, `type="hvm"`
//! is refused, kernels come from the administrator's machine, a value that is no number
//! where one belongs is an error (xl warns and goes on with a default).
//!
//! - [`syntax`]: the grammar, with positions
//! - [`keys`]: keys that are known but have no effect
//! - [`cpus`], [`disk`], [`vif`]: the little languages inside strings
//! - `read`: from settings to types; `guest`: from types to a guest

pub mod cpus;
pub mod disk;
mod guest;
pub mod keys;
mod read;
pub mod syntax;
pub mod vif;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toolstack_domain::config::{Action, GuestType, TscMode};

use cpus::CpuList;
use disk::XlDisk;
use vif::XlVif;

/// Largest file read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// How positions in `key=value` arguments are shown.
pub const COMMAND_LINE: &str = "command line";

/// Most vCPUs that can be asked for; the host may have a lower limit of its own.
pub const MAX_VCPUS: u32 = 512;
/// Most memory that can be asked for, in MiB (16 TiB).
pub const MAX_MEMORY_MIB: u32 = 1 << 24;
/// Most disks of a guest.
pub const MAX_DISKS: usize = 64;
/// Most network interfaces of a guest.
pub const MAX_VIFS: usize = 16;

/// A guest's definition, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XlConfig {
    /// `name`
    pub name: String,
    /// `type`; `pv` if it is not said, as in xl.
    pub kind: GuestType,
    /// `kernel`, or the GRUB that `firmware` stands for: a file on this machine.
    pub kernel: PathBuf,
    /// `ramdisk`: a file on this machine.
    pub ramdisk: Option<PathBuf>,
    /// `cmdline`, or `root` and `extra`.
    pub cmdline: String,
    /// `memory`, or `maxmem` if only that is set, in MiB.
    pub memory_mib: u32,
    /// `vcpus`; 1 if it is not said.
    pub vcpus: u32,
    /// `maxvcpus`; `vcpus` if it is not said.
    pub max_vcpus: u32,
    /// `cpus`
    pub cpus: CpuList,
    /// Where `cpus` is set: whether it fits a host shows only there.
    pub cpus_at: Option<Position>,
    /// `disk`
    pub disks: Vec<XlDisk>,
    /// `vif`
    pub vifs: Vec<XlVif>,
    /// `on_poweroff`
    pub on_poweroff: Action,
    /// `on_reboot`
    pub on_reboot: Action,
    /// `on_crash`
    pub on_crash: Action,
    /// `tsc_mode`
    pub tsc_mode: TscMode,
    /// `uuid`
    pub uuid: Option<[u8; 16]>,
}

/// A place in a file or in an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The file's name, or [`COMMAND_LINE`].
    pub source: String,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
}

/// Something that is not as its writer may think, but does not stop anything. `Display`
/// gives one line that names file, line and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub at: Position,
    /// Which key.
    pub key: String,
    /// What.
    pub what: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { source, line, .. } = &self.at;
        write!(f, "{source}:{line}: {}: {}", self.key, self.what)
    }
}

/// Why there is no definition. `Display` gives one line.
#[derive(Debug)]
pub enum ConfigError {
    /// The file could not be read.
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Something in it is wrong.
    At {
        /// Where.
        at: Position,
        /// What.
        what: String,
    },
    /// Something is wrong with the whole, not in one place.
    Whole {
        /// The file's name.
        source: String,
        /// What.
        what: String,
    },
}

impl ConfigError {
    fn at(at: &Position, what: impl Into<String>) -> Self {
        ConfigError::At {
            at: at.clone(),
            what: what.into(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::File { path, error } => write!(f, "{}: {error}", path.display()),
            ConfigError::At { at, what } => {
                write!(f, "{}:{}:{}: {what}", at.source, at.line, at.column)
            }
            ConfigError::Whole { source, what } => write!(f, "{source}: {what}"),
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigError::File { error, .. } => Some(error),
            ConfigError::At { .. } | ConfigError::Whole { .. } => None,
        }
    }
}

/// Reads the definition in the file `path`, with `key=value` arguments over it. With
/// `strict` an unknown key is an error, else a warning.
///
/// The warnings are worth reading above all if there is an error: a key that is missing may
/// be the one that is misspelt.
pub fn load(
    path: &Path,
    overrides: &[String],
    strict: bool,
) -> (Result<XlConfig, ConfigError>, Vec<Warning>) {
    match read_text(path) {
        Ok(text) => parse(&text, &path.display().to_string(), overrides, strict),
        Err(error) => (Err(error), Vec::new()),
    }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let failed = |error| ConfigError::File {
        path: path.to_owned(),
        error,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_FILE) {
        return Err(ConfigError::Whole {
            source: path.display().to_string(),
            what: "larger than 1 MiB, so not a guest's definition".into(),
        });
    }
    String::from_utf8(bytes).map_err(|error| ConfigError::Whole {
        source: path.display().to_string(),
        what: format!(
            "not UTF-8 text at byte {}",
            error.utf8_error().valid_up_to()
        ),
    })
}

/// [`load`] for a text that has been read; `source` is its name in warnings and errors.
pub fn parse(
    text: &str,
    source: &str,
    overrides: &[String],
    strict: bool,
) -> (Result<XlConfig, ConfigError>, Vec<Warning>) {
    match settings(text, source, overrides) {
        Ok(settings) => read::Reader::new(source, &settings).read(strict),
        Err(error) => (Err(error), Vec::new()),
    }
}

fn settings(
    text: &str,
    source: &str,
    overrides: &[String],
) -> Result<Vec<syntax::Setting>, ConfigError> {
    let mut settings = syntax::parse_file(text, source)?;
    for argument in overrides {
        syntax::parse_override(argument, &mut settings)?;
    }
    Ok(settings)
}

/// Entry point for fuzzers: any bytes as a file and an argument, separated by a NUL.
pub mod fuzz {
    /// Parses, and converts what is good.
    pub fn parse(data: &[u8]) {
        let Ok(text) = std::str::from_utf8(data) else {
            return;
        };
        let (text, argument) = text.split_once('\0').unwrap_or((text, ""));
        let overrides = if argument.is_empty() {
            Vec::new()
        } else {
            vec![argument.to_owned()]
        };
        let (config, warnings) = super::parse(text, "fuzz", &overrides, false);
        assert!(warnings.iter().all(|w| !w.to_string().contains('\n')));
        match config {
            Ok(config) => assert!(config.vcpus <= config.max_vcpus && config.memory_mib > 0),
            Err(error) => assert!(!error.to_string().contains('\n')),
        }
    }
}
