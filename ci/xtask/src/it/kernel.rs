//! The pVM's kernel by itself: its self-test, a panic, bad options.

use super::{Test, passed};
use crate::lab::Lab;
use crate::process::output;
use crate::qemu::PVM_ADDRESS;
use crate::report::Outcome;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::process::Command;
use std::time::Duration;

/// What host tests cannot prove.
pub const SELFTEST: Test = Test {
    name: "selftest",
    run: selftest,
};

pub const TESTS: &[Test] = &[
    SELFTEST,
    Test {
        name: "a-panic-names-its-place-and-reboots",
        run: panic,
    },
    Test {
        name: "a-panic-can-halt",
        run: halt,
    },
    Test {
        name: "bad-options-are-named-and-survived",
        run: bad_options,
    },
    Test {
        name: "address-by-dhcp",
        run: dhcp,
    },
];

fn selftest(lab: &mut Lab) -> Result<Outcome> {
    let serial = lab.boot_until("selftest", "selftest idle: ")?.serial();
    let (failed, good): (Vec<_>, Vec<_>) = serial
        .lines()
        .filter_map(|line| line.split_once("closer: selftest "))
        .map(|(_, check)| check)
        .filter(|check| check.contains(": "))
        .partition(|check| !check.contains(": ok"));
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    lab.stop()?;
    Ok(Outcome::Passed(format!("{} checks", good.len())))
}

fn panic(lab: &mut Lab) -> Result<Outcome> {
    let bed = lab.boot_until("selftest=panic panic=1", "asked for by selftest=panic")?;
    // QEMU ends where a machine would reset.
    bed.wait_for_end(Duration::from_secs(60))?;
    let serial = fs::read_to_string(bed.files.serial())?;
    let (_, trace) = serial
        .split_once("asked for by selftest=panic")
        .context("the panic's text went away")?;
    let addresses = trace
        .split_whitespace()
        .filter(|word| word.starts_with("0xffffffff8"));
    let names = output(
        Command::new("addr2line")
            .args(["-f", "-e"])
            .arg(lab.setup.paths().pvm())
            .args(addresses),
    )?;
    // What panicked is compiled into its caller.
    ensure!(
        names.contains("closer_pvm4main"),
        "the backtrace does not lead to the panic: {names}\nof{trace}"
    );
    passed()
}

/// The pVM stops for good, and Xen goes on: its keys can be asked what went wrong.
fn halt(lab: &mut Lab) -> Result<Outcome> {
    let bed = lab.boot_until("selftest=panic panic=halt", "closer: halted (panic=halt)")?;
    let domains = bed.ask_xen('q')?;
    ensure!(
        domains.contains("General information for domain 0"),
        "Xen does not list dom0: {domains}"
    );
    ensure!(bed.is_running(), "the machine went down");
    lab.stop()?;
    passed()
}

/// One line for each; the host comes up.
fn bad_options(lab: &mut Lab) -> Result<Outcome> {
    let bed = lab.boot_until("port=0 panic=soon mc=none colour=red", "closer: ready")?;
    let serial = bed.serial();
    for key in ["port", "panic", "mc", "colour"] {
        let lines = serial
            .lines()
            .filter(|line| line.contains("closer: command line: ") && line.contains(key));
        ensure!(lines.count() == 1, "not one line about {key}");
    }
    lab.closer(&["info"])?;
    lab.stop()?;
    passed()
}

/// QEMU's user network has a server. The CLI is not forwarded to what it gives.
fn dhcp(lab: &mut Lab) -> Result<Outcome> {
    let serial = lab.boot_until("ip=dhcp", " by DHCP")?.serial();
    let line = serial
        .lines()
        .find(|line| line.contains(" by DHCP"))
        .context("the line went away")?;
    ensure!(
        line.contains("management: address 10.0.2.") && !line.contains(PVM_ADDRESS),
        "not an address of the network: {line}"
    );
    lab.stop()?;
    passed()
}
