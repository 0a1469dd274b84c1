//! The stages of `cargo xtask test` that need no machine: seconds to a few minutes.

use crate::build::{self, TARGET, cargo};
use crate::paths::Paths;
use crate::process::{output, run_logged};
use crate::setup::{Setup, XenVersion, find};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const CARGO_LIMIT: Duration = Duration::from_secs(900);
/// Files larger than this do not belong in the checkout.
const MAX_FILE: u64 = 1 << 20;

/// Files and folders that may hold `unsafe`: the three homes of design.md.
const UNSAFE_HOMES: &[&str] = &[
    "pvm-unikernel/src/",
    "drivers/hal/src/dma",
    "drivers/hal/src/mmio",
    "drivers/hal/src/lib.rs",
    "xen/ring/src/shared",
    "xen/ring/src/lib.rs",
];

/// `cargo fmt --check` over the workspace.
pub fn format(paths: &Paths, logs: &Path) -> Result<String> {
    let mut command = cargo(paths);
    command.args(["fmt", "--all", "--", "--check"]);
    run_logged(&mut command, &logs.join("fmt.log"), CARGO_LIMIT)?;
    Ok(String::new())
}

/// Clippy over everything, warnings denied; the kernel with its own flags.
pub fn clippy(paths: &Paths, logs: &Path) -> Result<String> {
    let mut command = cargo(paths);
    command.args([
        "clippy",
        "--locked",
        "--workspace",
        "--exclude",
        "pvm-unikernel",
    ]);
    command.args(["--all-targets", "--", "-D", "warnings"]);
    run_logged(&mut command, &logs.join("clippy.log"), CARGO_LIMIT)?;
    let mut command = cargo(paths);
    command.env("CARGO_ENCODED_RUSTFLAGS", build::kernel_flags(paths));
    command.args([
        "clippy",
        "--locked",
        "--release",
        "--package",
        "pvm-unikernel",
    ]);
    command.args(["--target", TARGET, "--target-dir"]);
    command
        .arg(paths.target.join("closer-build"))
        .args(["--", "-D", "warnings"]);
    run_logged(&mut command, &logs.join("clippy-kernel.log"), CARGO_LIMIT)?;
    Ok(String::new())
}

/// `unsafe` only in its homes; no binaries and no large files in the checkout.
pub fn file_rules(paths: &Paths) -> Result<String> {
    let git = |args: &[&str]| output(Command::new("git").current_dir(&paths.root).args(args));
    let tracked = git(&["ls-files"])?;
    let mut wrong = Vec::new();
    for file in tracked.lines() {
        let path = paths.root.join(file);
        // A deletion that is not committed yet.
        let Ok(bytes) = fs::read(&path) else { continue };
        let size = u64::try_from(bytes.len()).context("a file beyond all bounds")?;
        if size > MAX_FILE {
            wrong.push(format!("{file} has {size} bytes"));
        }
        if bytes.iter().take(8000).any(|byte| *byte == 0) && !file.starts_with("ci/fuzz/") {
            wrong.push(format!("{file} is a binary file"));
        }
        let text = String::from_utf8_lossy(&bytes);
        if file.ends_with(".rs") && opts_in(&text) && !is_home(file) {
            wrong.push(format!(
                "{file} allows unsafe code, and is none of its homes"
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(format!("{} files", tracked.lines().count()))
}

fn is_home(file: &str) -> bool {
    UNSAFE_HOMES.iter().any(|home| file.starts_with(home))
}

/// Whether a source file opts in to `unsafe_code`.
fn opts_in(text: &str) -> bool {
    let forms = ["#[allow(", "#![allow(", "#[expect(", "#![expect("];
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    // An attribute may be spread over lines, and may name several lints.
    (0..lines.len()).any(|at| {
        let begins = forms.iter().any(|form| lines[at].starts_with(form));
        let rest = lines[at..].iter();
        let end = rest.clone().position(|line| line.contains(")]"));
        begins
            && rest
                .take(end.unwrap_or(0) + 1)
                .any(|line| line.contains("unsafe_code"))
    })
}

/// All host tests of the workspace.
pub fn host_tests(paths: &Paths, logs: &Path) -> Result<String> {
    let log = logs.join("host-tests.log");
    let mut command = cargo(paths);
    command.args(["test", "--locked", "--no-fail-fast"]);
    let done = run_logged(&mut command, &log, CARGO_LIMIT);
    if let Err(error) = done {
        let text = fs::read_to_string(&log).context("cannot read the tests' log")?;
        let marks = [" ... FAILED", "panicked at", "error[", "error:", "    `-p "];
        let told = text
            .lines()
            .filter(|line| marks.iter().any(|mark| line.contains(mark)));
        let told: Vec<&str> = told.take(30).collect();
        // cargo itself failed: the log's end is all there is.
        return Err(if told.is_empty() {
            error
        } else {
            anyhow!("{}: {}", log.display(), told.join("\n"))
        });
    }
    tests_passed(&log)
}

/// Debian's own `test-xenstore` and xenstore utilities against our server, through a Unix
/// socket.
pub fn test_xenstore(paths: &Paths, logs: &Path, setup: &mut Setup) -> Result<String> {
    let log = logs.join("test-xenstore.log");
    let mut command = cargo(paths);
    command.env("CLOSER_XEN_ROOT", setup.xen_utils()?);
    command.args(["test", "--locked", "--package", "toolstack-xenstore"]);
    command.args(["--test", "debian_tools", "--", "--include-ignored"]);
    run_logged(&mut command, &log, CARGO_LIMIT)?;
    tests_passed(&log)
}

/// How many tests a log of `cargo test` counts; none is an error.
fn tests_passed(log: &Path) -> Result<String> {
    let text = fs::read_to_string(log).context("cannot read the tests' log")?;
    let passed: u64 = text
        .lines()
        .filter_map(|line| {
            line.strip_prefix("test result: ok. ")?
                .split(' ')
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum();
    ensure!(passed > 0, "cargo test ran no test");
    Ok(format!("{passed} tests"))
}

/// Our layouts and constants against the public headers of each supported Xen.
pub fn abi(paths: &Paths, logs: &Path, setup: &mut Setup) -> Result<String> {
    let mut total = 0;
    for version in XenVersion::ALL {
        let include = setup.headers(version)?;
        let folder = logs.join(format!("abi-{}", version.name()));
        fs::create_dir_all(&folder).context("cannot create the folder for C files")?;
        let count = output(
            cargo(paths)
                .args([
                    "run",
                    "--quiet",
                    "--locked",
                    "--package",
                    "abi-check",
                    "--",
                    version.name(),
                ])
                .arg(&folder),
        )?;
        let count: usize = count.trim().parse().context("abi-check gave no number")?;
        ensure!(
            count > 0,
            "there is nothing to check for Xen {}",
            version.name()
        );
        total += count;
        let mut wrong = Vec::new();
        for file in find(&folder, &|file| file.ends_with(".c"))? {
            let mut cc = Command::new("cc");
            cc.args(["-fsyntax-only", "-std=gnu11", "-I"])
                .arg(&include)
                .arg(&file);
            let checked = cc.output().context("cannot start the C compiler")?;
            if !checked.status.success() {
                let text = String::from_utf8_lossy(&checked.stderr).into_owned();
                let lines = text.lines().filter(|line| line.contains("error"));
                wrong.extend(lines.map(|line| format!("Xen {}: {line}", version.name())));
            }
        }
        if !wrong.is_empty() {
            wrong.truncate(40);
            bail!("{}", wrong.join("\n"));
        }
    }
    Ok(format!("{total} sizes, offsets and constants"))
}

#[cfg(test)]
mod tests {
    use super::{is_home, opts_in};

    #[test]
    fn only_an_attribute_opts_in_and_only_homes_may() {
        assert!(opts_in("#![allow(unsafe_code, reason = \"x\")]"));
        assert!(opts_in("    #[expect(unsafe_code, reason = \"x\")]"));
        assert!(opts_in(
            "use a;\n#![allow(\n    unsafe_code,\n    reason = \"x\"\n)]\n"
        ));
        assert!(opts_in("#![allow(dead_code, unsafe_code)]\n"));
        assert!(!opts_in("#![allow(dead_code)]\n// unsafe_code\n"));
        assert!(!opts_in("// #![allow(unsafe_code)] is not here"));
        assert!(!opts_in(include_str!("checks.rs")));
        assert!(is_home("pvm-unikernel/src/arch/pv.rs") && is_home("xen/ring/src/shared.rs"));
        assert!(!is_home("backend-blk/src/lib.rs") && !is_home("drivers/nvme/src/queue.rs"));
    }
}
