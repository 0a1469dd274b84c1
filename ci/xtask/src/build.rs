//! `cargo xtask build`: the pVM's kernel, checked, and the administrator's program.

use crate::paths::Paths;
use crate::process::{output, run, run_logged};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Time for a build from nothing on a slow machine.
const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// Our one target. Naming it keeps the kernel's flags from build scripts and macros.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What makes a freestanding kernel of a crate for the host's target; the comment at the
/// top of `pvm-unikernel/link.ld` has the same list.
pub fn kernel_flags(paths: &Paths) -> String {
    let script = paths.root.join("pvm-unikernel/link.ld");
    [
        "-Clinker=rust-lld",
        "-Clinker-flavor=ld.lld",
        "-Crelocation-model=static",
        "-Ccode-model=kernel",
        "-Cno-redzone=yes",
        "-Cforce-frame-pointers=yes",
        &format!("-Clink-arg=-T{}", script.display()),
        "-Clink-arg=--no-undefined",
        "-Clink-arg=-static",
        "-Clink-arg=--build-id=none",
        "-Clink-arg=-zmax-page-size=4096",
    ]
    // cargo's separator in CARGO_ENCODED_RUSTFLAGS, so that paths may hold spaces.
    .join("\u{1f}")
}

/// Builds both programs.
pub fn build(paths: &Paths) -> Result<()> {
    kernel(paths)?;
    cli(paths)
}

/// Builds both, with what cargo says in the logs; gives the image's size.
pub fn build_logged(paths: &Paths, logs: &Path) -> Result<String> {
    run_logged(
        &mut kernel_command(paths),
        &logs.join("build-kernel.log"),
        BUILD_LIMIT,
    )?;
    let size = install_kernel(paths)?;
    run_logged(
        &mut cli_command(paths),
        &logs.join("build-cli.log"),
        BUILD_LIMIT,
    )?;
    Ok(format!("image {} KiB", size / 1024))
}

/// Builds and checks `target/closer/closer-pvm`.
pub fn kernel(paths: &Paths) -> Result<()> {
    run(&mut kernel_command(paths))?;
    let size = install_kernel(paths)?;
    println!("{}: {} KiB", paths.pvm().display(), size / 1024);
    Ok(())
}

fn kernel_command(paths: &Paths) -> Command {
    let mut command = cargo(paths);
    command
        .env("CARGO_ENCODED_RUSTFLAGS", kernel_flags(paths))
        .args([
            "build",
            "--release",
            "--package",
            "pvm-unikernel",
            "--target",
            TARGET,
        ])
        .args(["--config", "profile.release.debug=1"])
        .arg("--target-dir")
        .arg(paths.target.join("closer-build"));
    command
}

/// Checks what cargo built and puts it where Xen is given it from; gives its size in bytes.
fn install_kernel(paths: &Paths) -> Result<usize> {
    let folder = paths.target.join("closer-build");
    let built = folder.join(TARGET).join("release/closer-pvm");
    let to = paths.pvm();
    let parent = to.parent().context("the image has no folder")?;
    fs::create_dir_all(parent).context("cannot create the image's folder")?;
    // Under another name first: a bed may be starting from the old one.
    let fresh = parent.join("closer-pvm.new");
    // Xen reads the whole file into memory, so what only addr2line wants stays out of it.
    run(Command::new("objcopy")
        .arg("--strip-debug")
        .arg(&built)
        .arg(&fresh))?;
    let bytes = fs::read(&fresh).with_context(|| format!("cannot read {}", fresh.display()))?;
    crate::elf::check_freestanding(&bytes).with_context(|| built.display().to_string())?;
    check_red_zone(&fresh)?;
    fs::rename(&fresh, &to).context("cannot put the image in place")?;
    fs::copy(&built, to.with_extension("debug")).context("cannot keep the debug symbols")?;
    Ok(bytes.len())
}

/// Builds `target/release/closer`.
pub fn cli(paths: &Paths) -> Result<()> {
    run(&mut cli_command(paths))?;
    let built = paths.cli();
    ensure!(built.is_file(), "cargo left no {}", built.display());
    println!("{}", built.display());
    Ok(())
}

fn cli_command(paths: &Paths) -> Command {
    let mut command = cargo(paths);
    command.args(["build", "--release", "--package", "closer"]);
    command
}

/// cargo as the one that runs us.
pub fn cargo(paths: &Paths) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command
        .current_dir(&paths.root)
        .env("CARGO_TARGET_DIR", &paths.target);
    // cargo sets these for us; a nested cargo must not see them.
    for name in [
        "CARGO_MANIFEST_DIR",
        "CARGO_PKG_NAME",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    command
}

/// Xen pushes event frames right below the stack pointer, so nothing may live there.
/// The precompiled `core` was built with a red zone, but has hardly a function that uses
/// it: this finds one that got in. Needs binutils, which come with the C compiler.
fn check_red_zone(image: &Path) -> Result<()> {
    let text = output(
        Command::new("objdump")
            .args(["-d", "--no-show-raw-insn"])
            .arg(image),
    )?;
    let mut function = "";
    for line in text.lines() {
        if line.ends_with(">:") {
            function = line;
        } else if uses_red_zone(line) {
            anyhow::bail!(
                "{} uses the red zone in {function} {}",
                image.display(),
                line.trim()
            );
        }
    }
    Ok(())
}

/// Whether a disassembled line reads or writes below the stack pointer.
fn uses_red_zone(line: &str) -> bool {
    // lea only computes; a probe of the next stack page touches, and keeps, nothing.
    let touches = line.contains("(%rsp") && !line.contains("lea ") && !line.contains("nop");
    touches
        && line
            .split(['\t', ' ', ','])
            .any(|operand| operand.starts_with("-0x") && operand.contains("(%rsp"))
}

#[cfg(test)]
mod tests {
    use super::uses_red_zone;

    #[test]
    fn only_accesses_below_the_stack_pointer_count() {
        assert!(uses_red_zone("  10: mov    %rax,-0x8(%rsp)"));
        assert!(uses_red_zone("  10: movaps -0x28(%rsp),%xmm0"));
        assert!(!uses_red_zone("  10: mov    %rax,0x8(%rsp)"));
        assert!(!uses_red_zone("  10: lea    -0x80(%rsp),%rsp"));
        assert!(!uses_red_zone("  10: mov    %rax,-0x8(%rbp)"));
    }
}
