//! `cargo xtask up`, `down` and `status`: a bed that stays.

use crate::bed::{self, Bed, Life};
use crate::build;
use crate::paths::Paths;
use crate::process;
use crate::qemu::{BedFiles, BedOptions};
use crate::setup::Setup;
use anyhow::{Context, Result, bail};
use std::fs;

/// Starts the bed in `target/bed`.
pub fn up(paths: &Paths, options: &BedOptions, fresh: bool, build_first: bool) -> Result<()> {
    let files = BedFiles { dir: paths.bed() };
    if let Some(pid) = bed::running(&files) {
        bail!(
            "the bed is up already (QEMU is process {pid}); cargo xtask down ends it\n{}",
            files.host_file().display()
        );
    }
    if fresh {
        crate::cache::remove(&files.dir)?;
    }
    let mut setup = Setup::open(paths)?;
    if build_first {
        build::build(paths)?;
    }
    let bed = Bed::start(&mut setup, options, &files.dir, Life::Own)?;
    println!(
        "up after {:.1} s; Xen's console: {}",
        bed.ready_after.as_secs_f32(),
        bed.files.serial().display()
    );
    println!("{}", bed.files.host_file().display());
    print!(
        "{}",
        fs::read_to_string(bed.files.host_file()).context("no connection file")?
    );
    println!(
        "try: {} --host-file {} list",
        shown(paths, &paths.cli()),
        shown(paths, &bed.files.host_file())
    );
    Ok(())
}

/// Ends it.
pub fn down(paths: &Paths) -> Result<()> {
    let files = BedFiles { dir: paths.bed() };
    if bed::stop(&files)? {
        println!("down");
    } else {
        println!("the bed was not up");
    }
    Ok(())
}

/// Says whether it runs, and what it printed last.
pub fn status(paths: &Paths) -> Result<()> {
    let files = BedFiles { dir: paths.bed() };
    let Some(pid) = bed::running(&files) else {
        bail!("the bed is not up");
    };
    println!("up: QEMU is process {pid}\n{}", files.host_file().display());
    println!(
        "{}:\n{}",
        files.serial().display(),
        process::tail(&files.serial(), 10)
    );
    Ok(())
}

/// A path as one would type it in the checkout.
fn shown(paths: &Paths, path: &std::path::Path) -> String {
    let root = paths
        .root
        .canonicalize()
        .unwrap_or_else(|_| paths.root.clone());
    path.strip_prefix(&root)
        .unwrap_or(path)
        .display()
        .to_string()
}
