//! The pVM's kernel by itself: its self-test, a panic, bad options.

use super::badinput::host_file_at;
use super::boot::pages_by_node;
use super::{Test, passed};
use crate::bed::{RPC_PORT, free_port};
use crate::keys;
use crate::lab::{BOOT_LIMIT, GuestSpec, Lab, TRANSFER_LIMIT};
use crate::process::output;
use crate::qemu::{BedOptions, Forward};
use crate::report::Outcome;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
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
        name: "a-stack-that-is-used-up-ends-the-host",
        run: overflow,
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
        name: "guests-keep-off-the-cores-asked-for",
        run: two_cores,
    },
    Test {
        name: "a-host-without-its-nic-halts",
        run: no_nic,
    },
    Test {
        name: "a-host-without-administrators-halts",
        run: no_administrators,
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
    // Where our frames are, by our own lists and by Xen's.
    let xens = lab.bed()?.ask_xen('u')?;
    for node in 0..u64::from(lab.options.sockets) {
        let (pages, _) = pages_by_node(&xens, 0, node)?;
        let ours = format!("selftest: our pages on node {node}: {pages}");
        ensure!(
            serial.lines().any(|line| line.ends_with(&ours)),
            "no line \"{ours}\": Xen says\n{xens}"
        );
    }
    lab.stop()?;
    Ok(Outcome::Passed(format!("{} checks", good.len())))
}

/// Of Rust's, and of what the processor traps.
fn panic(lab: &mut Lab) -> Result<Outcome> {
    // What panics is compiled into its caller.
    panics(
        lab,
        "panic",
        "asked for by selftest=panic",
        "closer_pvm4main",
    )?;
    let fault = "closer: panicked by page fault (error 0x0) at address 0x8, ";
    panics(lab, "fault", fault, "closer_pvm8selftest5fault")?;
    passed()
}

/// One of the self-test's panics says `text`, its backtrace leads to `function`, and the
/// machine starts anew.
fn panics(lab: &mut Lab, which: &str, text: &str, function: &str) -> Result<()> {
    let bed = lab.boot_until(&format!("selftest={which} panic=1"), text)?;
    // QEMU ends where a machine would reset.
    bed.wait_for_end(Duration::from_secs(60))?;
    let serial = fs::read_to_string(bed.files.serial())?;
    let (_, trace) = serial
        .split_once(text)
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
    ensure!(
        names.contains(function),
        "the backtrace does not lead to the panic: {names}\nof{trace}"
    );
    Ok(())
}

/// A stack that is used up meets its guard page. There is none left for a trap's frame, so
/// Xen says where, and ends the host; nothing is overwritten.
fn overflow(lab: &mut Lab) -> Result<Outcome> {
    let bed = lab.boot_until("selftest=overflow", "Hardware Dom0 crashed")?;
    bed.wait_for_end(Duration::from_secs(60))?;
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

/// One line for each, whoever says it; the host comes up.
fn bad_options(lab: &mut Lab) -> Result<Outcome> {
    const OPTIONS: &str = "port=0 panic=soon loglevel=loud mc=64 colour=red";
    let bed = lab.boot_until(OPTIONS, "closer: ready")?;
    let serial = bed.serial();
    for option in OPTIONS.split(' ') {
        let lines: Vec<_> = own_lines(&serial, option).collect();
        ensure!(
            matches!(lines[..], [line] if line.contains("closer: command line: ")),
            "not one line about {option}: {lines:#?}"
        );
    }
    let info = lab.json(&["info"])?;
    ensure!(
        info["mc_cpus"] == serde_json::json!([0]),
        "Closer's own work is not on one core: {info}"
    );
    sizes_are_true(lab, &info)?;
    lab.stop()?;
    passed()
}

/// `mc=2`: Closer's own work has the first two cores, and guests are on others.
fn two_cores(lab: &mut Lab) -> Result<Outcome> {
    lab.boot_until("mc=2", "closer: ready")?;
    let info = lab.json(&["info"])?;
    ensure!(
        info["mc_cpus"] == serde_json::json!([0, 1]),
        "Closer's own work is not on two cores: {info}"
    );
    // More than the other socket has cores, so that it does not draw them all by being empty.
    for name in ["g1", "g2", "g3"] {
        let file = lab.write_config(&GuestSpec::new(name))?;
        lab.closer_within(&["create", "-p", &file.to_string_lossy()], TRANSFER_LIMIT)?;
        let listed = lab.listed(name)?.context("the guest is not listed")?;
        let cpus = listed["cpus"].as_array().context("a guest's CPUs")?;
        let apart = |cpu: &Value| cpu.as_u64().is_some_and(|cpu| cpu > 1);
        ensure!(
            !cpus.is_empty() && cpus.iter().all(apart),
            "it runs where Closer does: {listed}"
        );
    }
    lab.stop()?;
    passed()
}

/// Each node has the memory that the machine has there: nothing counts that is none.
fn sizes_are_true(lab: &Lab, info: &Value) -> Result<()> {
    let nodes = info["nodes"].as_array().context("info has no nodes")?;
    for node in nodes {
        let bytes = node["memory_bytes"].as_u64().context("a node's size")?;
        // The firmware leaves out what lies below 1 MiB and is no memory.
        ensure!(
            bytes.abs_diff(u64::from(lab.options.node_mb) << 20) < 1 << 20,
            "a node of {} MiB: {node}",
            lab.options.node_mb
        );
    }
    Ok(())
}

/// The pVM's lines with a text, whatever level they have.
fn own_lines<'a>(serial: &'a str, text: &'a str) -> impl Iterator<Item = &'a str> {
    serial
        .lines()
        .filter(move |line| line.contains("closer: ") && line.contains(text))
}

/// One line says what was asked for, as it was, and what there is; it is never ready.
fn no_nic(lab: &mut Lab) -> Result<Outcome> {
    for (option, there) in [
        ("nic=5", "one of: 0 (0000:"),
        ("nic=52:54:00:00:00:00", "52:54:00:12:34:56"),
    ] {
        let halted = "closer: halted: nobody could manage this host: ";
        let bed = lab.boot_until(option, halted)?;
        // For what should not follow.
        std::thread::sleep(Duration::from_secs(3));
        let serial = bed.serial();
        let lines: Vec<_> = own_lines(&serial, option).collect();
        ensure!(
            matches!(lines[..], [line] if line.contains(halted) && line.contains(there)),
            "not one line about {option}: {lines:#?}"
        );
        ensure!(!serial.contains("closer: ready"), "{option}: it is ready");
        ensure!(bed.is_running(), "{option}: the machine went down");
    }
    lab.stop()?;
    passed()
}

/// One line says why; it is never ready. A file that names nobody is as none.
fn no_administrators(lab: &mut Lab) -> Result<Outcome> {
    keys::pair(lab.setup.paths(), &lab.dir, "admin")?;
    // What the bed puts before the name in `admins`; thus the line is a comment.
    let public = lab.dir.join("admin.key.pub");
    let before = fs::read(&public)?;
    fs::write(&public, "#")?;
    let halted = "closer: halted: the host cannot be managed as it is configured";
    let booted = lab.boot_until("", halted).map(drop);
    fs::write(&public, before)?;
    booted?;
    let bed = lab.last_bed()?;
    let serial = bed.serial();
    let lines: Vec<_> = own_lines(&serial, "admins: ").collect();
    ensure!(
        matches!(lines[..], [line] if line.contains("nothing usable in it; halting")),
        "not one line about admins: {lines:#?}"
    );
    ensure!(!serial.contains("closer: ready"), "it is ready");
    ensure!(bed.is_running(), "the machine went down");
    lab.stop()?;
    passed()
}

/// The network's DHCP server gives the host its address, and administrators reach it there.
fn dhcp(lab: &mut Lab) -> Result<Outcome> {
    let forward = Forward {
        host_port: free_port()?,
        // The first that QEMU's server gives.
        address: "10.0.2.15".into(),
        port: RPC_PORT,
    };
    let port = forward.host_port;
    let options = BedOptions {
        pvm_args: "ip=dhcp".into(),
        forward: vec![forward],
        ..lab.options.clone()
    };
    lab.with_options(options, |lab| managed_by_dhcp(lab, port))
}

fn managed_by_dhcp(lab: &mut Lab, port: u16) -> Result<Outcome> {
    let said = "management: address 10.0.2.15/24, router 10.0.2.2 by DHCP";
    lab.bed()?.wait_for_line(said, BOOT_LIMIT)?;
    let there = host_file_at(lab, port)?;
    let info = output(lab.bed()?.cli_with(&there).args(["info", "--json"]))?;
    let info: Value = serde_json::from_str(&info)?;
    ensure!(info["name"] == "bed", "info over {there:?}: {info}");
    passed()
}
