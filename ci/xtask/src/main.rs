//! `cargo xtask`: builds, checks, boots and measures Closer. `cargo xtask help` lists the
//! commands; each installs and fetches what it needs first.

mod baseline;
mod bed;
mod bench;
mod build;
mod cache;
mod checks;
mod console;
mod debian;
mod demo;
mod elf;
mod images;
mod it;
mod keys;
mod lab;
mod licences;
mod paths;
mod process;
mod proxy;
mod qemu;
mod qmp;
mod report;
mod setup;
mod test;
mod up;
mod web;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Builds, checks, boots and measures Closer.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install the programs and fetch the pieces that the other commands need
    Setup,
    /// Build target/closer/closer-pvm and target/release/closer
    Build {
        /// Only the kernel
        #[arg(long)]
        kernel: bool,
    },
    /// Boot Xen and Closer and leave them running
    Up {
        #[command(flatten)]
        options: qemu::BedOptions,
        /// Forget the disks and keys of the bed before
        #[arg(long)]
        fresh: bool,
        /// Boot what was built last
        #[arg(long)]
        no_build: bool,
    },
    /// End what `up` left running
    Down,
    /// Say whether the bed is up
    Status,
    /// From nothing to a Debian guest on Closer, step by step
    Demo,
    /// Measure Closer and a Linux dom0 beside it
    Bench {
        /// Only the Linux dom0
        #[arg(long)]
        baseline_only: bool,
    },
    /// Run every check and test, or those that are named
    Test {
        /// A stage, a group, or GROUP/TEST (may be given again)
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// List the names
        #[arg(long)]
        list: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let paths = paths::Paths::find()?;
    process::end_children_on_interrupt()?;
    match command {
        Command::Setup => {
            let mut setup = setup::Setup::open(&paths)?;
            setup.all_pieces()?;
            setup.debian_root()?;
            println!("{} is complete", paths.cache.display());
            Ok(())
        }
        Command::Build { kernel: true } => build::kernel(&paths),
        Command::Build { kernel: false } => build::build(&paths),
        Command::Up {
            options,
            fresh,
            no_build,
        } => up::up(&paths, &options, fresh, !no_build),
        Command::Down => up::down(&paths),
        Command::Status => up::status(&paths),
        Command::Bench { baseline_only } => bench::run(&paths, baseline_only),
        Command::Demo => demo::run(&paths),
        Command::Test { list: true, .. } => {
            test::list();
            Ok(())
        }
        Command::Test { only, .. } => test::run(&paths, &only),
    }
}
