//! The command line: xl's verbs, and a few of our own.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use serde_json::json;

use crate::failure::Failure;
use crate::output::{self, Format};

const JSON_HELP: &str = "\
With --json:
  Standard output has one document. Commands that ask for something print the answer, an
  object, an array or a value. The others print what they did:
    {\"done\": \"rename\", \"guest\": \"web\", \"name\": \"shop\"}
  destroy, pause, unpause, shutdown, reboot and volume remove print an array, even for one
  guest or volume: an element for each, in the order given, done or not:
    [{\"done\": \"destroy\", \"guest\": \"a\"}, {\"error\": \"destroy b: ...\", \"guest\": \"b\"}]
  volume create and import say size_bytes, the volume's as the host has made it; import also
  file_bytes and, unless it overwrites, zeroed_bytes: those beyond the file.
  Standard error has an object a line: {\"error\": \"...\", \"exit\": 1} if the command failed,
  once, and {\"warning\": \"...\"}. Exit codes are the same as without --json.
  What streams stays as it is: a console that is attached to (by create after its document),
  and volume export to \"-\".";

/// Creates, watches and ends the guests of a Closer host.
///
/// Exit codes: 0 done, 1 failed (one line on standard error says why), 2 used wrongly.
#[derive(Debug, Parser)]
#[command(
    name = "closer",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_long_help = JSON_HELP
)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// For every command.
#[derive(Args, Debug)]
pub struct Global {
    /// File that says which host: address, host_key, identity
    /// [default: ~/.config/closer/host.toml]
    #[arg(long, global = true, value_name = "FILE", env = "CLOSER_HOST_FILE", value_hint = ValueHint::FilePath)]
    pub host_file: Option<PathBuf>,
    /// Print JSON, errors too; `closer --help` says which
    #[arg(long, global = true)]
    pub json: bool,
}

impl Global {
    /// What `--json` decides.
    pub fn format(&self) -> Format {
        if self.json {
            Format::Json
        } else {
            Format::Text
        }
    }
}

/// Whether `--json` is among arguments that may be none the parser takes.
pub fn ask_for_json(arguments: impl Iterator<Item = OsString>) -> bool {
    arguments
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json")
}

/// A usage error without its tips and its usage.
pub fn in_one_line(error: &clap::Error) -> String {
    if matches!(
        error.kind(),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        return "no command given; see closer help".into();
    }
    let text = error.to_string();
    let reason = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = reason.split_whitespace().collect();
    let line = words.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a guest from an xl.cfg file
    Create(Create),
    /// List guests
    #[command(visible_alias = "ls")]
    List(List),
    /// Use a guest's console; ^] leaves it
    Console(Console),
    /// Ask guests to shut down
    Shutdown(Shutdown),
    /// Ask guests to reboot
    Reboot(Shutdown),
    /// End guests at once
    Destroy(Guests),
    /// Stop guests for a while
    Pause(Guests),
    /// Let stopped guests go on
    Unpause(Guests),
    /// Give a guest another name
    Rename(Rename),
    /// Print the domid of a guest
    Domid(Guest),
    /// Print the name of a domid
    Domname(Domname),
    /// Print since when guests run
    Uptime(SomeGuests),
    /// Describe the host
    Info,
    /// Print the host's log
    Dmesg(Dmesg),
    /// Volumes: the disks of guests
    Volume(Volume),
    /// Switch the host off, or reboot it
    Host(Host),
    /// Print a part of xenstore
    #[command(name = "xenstore-ls")]
    XenstoreLs(XenstoreLs),
    /// Make a key pair
    Keygen(Keygen),
    /// Print the public key of a private one
    Pubkey(Pubkey),
    /// Print a script that teaches a shell to complete these commands
    Completions(Completions),
    /// Print versions
    Version,
}

#[derive(Args, Debug)]
pub struct Create {
    /// The guest's definition, in xl's format; kernel and ramdisk are files here
    #[arg(value_name = "FILE.cfg", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Settings that go over the file's
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Do not start it yet
    #[arg(short, long)]
    pub paused: bool,
    /// Attach to its console
    #[arg(short, long)]
    pub console: bool,
    /// Refuse unknown keys
    #[arg(long)]
    pub strict: bool,
    /// Check everything that can be checked here, print it, create nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Say nothing about what goes well
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Args, Debug)]
pub struct List {
    /// This guest only
    #[arg(value_name = "GUEST")]
    pub guest: Option<String>,
    /// With UUIDs, types and CPUs
    #[arg(short, long)]
    pub long: bool,
}

/// Input that is no terminal: its end ends nothing, the guest's output goes on until the
/// guest is gone, --for is over, or somebody ends the command.
#[derive(Args, Debug)]
pub struct Console {
    /// Name or domid
    #[arg(value_name = "GUEST")]
    pub guest: String,
    /// Print what is kept (the last 64 KiB), and end
    #[arg(long)]
    pub log: bool,
    /// Do not begin with what is kept
    #[arg(long, conflicts_with = "log")]
    pub no_replay: bool,
    /// Leave after so long
    #[arg(long = "for", value_name = "SECONDS", conflicts_with = "log")]
    pub seconds: Option<u64>,
}

#[derive(Args, Debug)]
pub struct Shutdown {
    /// Names or domids
    #[arg(
        value_name = "GUEST",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub guests: Vec<String>,
    /// All guests
    #[arg(short, long)]
    pub all: bool,
    /// Wait until they are gone
    #[arg(short, long)]
    pub wait: bool,
    /// Wait no longer than this
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    pub timeout: Option<u64>,
}

#[derive(Args, Debug)]
pub struct Guests {
    /// Names or domids
    #[arg(value_name = "GUEST", required = true)]
    pub guests: Vec<String>,
}

#[derive(Args, Debug)]
pub struct SomeGuests {
    /// Names or domids; all, if none is given
    #[arg(value_name = "GUEST")]
    pub guests: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Guest {
    /// Name
    #[arg(value_name = "GUEST")]
    pub guest: String,
}

#[derive(Args, Debug)]
pub struct Domname {
    /// Domid
    #[arg(value_name = "DOMID")]
    pub domid: u16,
}

#[derive(Args, Debug)]
pub struct Rename {
    /// Name or domid
    #[arg(value_name = "GUEST")]
    pub guest: String,
    /// New name
    #[arg(value_name = "NAME")]
    pub name: String,
}

#[derive(Args, Debug)]
pub struct Dmesg {
    /// Xen's log instead of Closer's
    #[arg(long)]
    pub xen: bool,
}

#[derive(Args, Debug)]
pub struct XenstoreLs {
    /// Where to start
    #[arg(value_name = "PATH", default_value = "/")]
    pub path: String,
}

#[derive(Args, Debug)]
pub struct Volume {
    #[command(subcommand)]
    pub command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make an empty volume
    Create {
        /// Its name
        name: String,
        /// Its size: bytes, or with K, M, G, T (1024s)
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Make a volume from a raw image
    Import {
        /// Its name
        name: String,
        /// File (raw, not qcow2) or block device
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Size of the volume, if larger than the file's; what is beyond the file is zeros. Bytes,
        /// or with K, M, G, T
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
        /// Write over the beginning of a volume that exists; what is beyond the file stays
        #[arg(long, conflicts_with = "size")]
        overwrite: bool,
    },
    /// Write a volume to a raw image
    Export {
        /// Its name
        name: String,
        /// File; "-" is standard output
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Replace the file
        #[arg(short, long)]
        force: bool,
    },
    /// List volumes
    #[command(visible_alias = "ls")]
    List,
    /// Remove volumes that no guest uses
    #[command(visible_alias = "rm")]
    Remove {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub struct Host {
    #[command(subcommand)]
    pub command: HostCommand,
}

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Switch it off
    Poweroff {
        /// Do not wait for guests to shut down
        #[arg(short, long)]
        force: bool,
    },
    /// Reboot it
    Reboot {
        /// Do not wait for guests to shut down
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Args, Debug)]
pub struct Keygen {
    /// File for the private key; the public one goes to FILE.pub
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Replace the files
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct Pubkey {
    /// File with a private key
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

#[derive(Args, Debug)]
pub struct Completions {
    /// Which shell
    pub shell: Shell,
}

/// Prints a completion script.
pub fn completions(arguments: &Completions, global: &Global) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Arguments::command(),
        "closer",
        &mut script,
    );
    if global.json {
        let script = String::from_utf8_lossy(&script);
        return output::json(&json!({"shell": arguments.shell.to_string(), "script": script}));
    }
    output::bytes(&script, &mut io::stdout().lock())
}

/// Reads a size.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err("not a size: digits, then nothing, K, M, G or T".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "not a size: digits, then nothing, K, M, G or T".to_owned())?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err("a size of 0".into()),
        Some(size) => Ok(size),
        None => Err("larger than any disk".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_holds() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("2k"), Ok(2048));
        assert_eq!(parse_size("10G"), Ok(10 << 30));
        assert_eq!(parse_size("1TiB"), Ok(1 << 40));
        for bad in [
            "",
            "G",
            "-1",
            "1.5G",
            "1X",
            "0",
            "99999999999T",
            "1 G",
            "99999999999999999999",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
