//! Done when 1: the same on another Xen, and behind an IOMMU.

use super::life::crash_one;
use super::{Test, forwarding, passed};
use crate::lab::{GuestSpec, Lab, TRANSFER_LIMIT};
use crate::qemu::{BedOptions, HOST_ADDRESS, Nic, Switch};
use crate::report::Outcome;
use crate::setup::XenVersion;
use crate::web;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Duration;

const DISK_AND_NETWORK: Test = Test {
    name: "a-guest-with-disk-and-network",
    run: disk_and_network,
};

pub const TESTS: &[Test] = &[DISK_AND_NETWORK];
pub const ONE_SOCKET_TESTS: &[Test] = &[
    Test {
        name: "second-nic-and-more-disks-are-left-alone",
        run: left_alone,
    },
    Test {
        name: "images-of-ended-guests-make-room",
        run: images_make_room,
    },
    Test {
        name: "the-second-nic-is-for-management-if-named",
        run: second_nic,
    },
    Test {
        name: "a-rename-restart-that-fails-leaves-nothing",
        run: renamed_in_vain,
    },
];
pub const OLD_XEN_TESTS: &[Test] = &[DISK_AND_NETWORK, super::kernel::SELFTEST];

const ADDRESS: &str = "10.0.2.30";

/// Debian 12's Xen.
pub fn old_xen() -> Result<BedOptions> {
    Ok(BedOptions {
        xen: XenVersion::V4_17,
        xen_args: super::UNPINNED.into(),
        ..forwarding(ADDRESS, 80)?
    })
}

/// An AMD IOMMU with interrupt remapping.
pub fn iommu() -> Result<BedOptions> {
    Ok(BedOptions {
        iommu: Switch::On,
        ..forwarding(ADDRESS, 80)?
    })
}

/// One socket of three cores, a second NIC, more disks, the first of them small.
pub fn one_socket() -> Result<BedOptions> {
    Ok(BedOptions {
        sockets: 1,
        cores: 3,
        nic2: Some(Nic::Igb),
        extra_disk: vec![64, 128],
        disk_size: 640,
        ..forwarding(ADDRESS, 80)?
    })
}

/// The host takes the first NIC and the first disk, says what it leaves, and serves a guest.
fn left_alone(lab: &mut Lab) -> Result<Outcome> {
    disk_and_network(lab)?;
    let bed = lab.bed()?;
    let serial = bed.serial();
    for (what, count) in [
        ("is not the management NIC: left alone", 1),
        ("is not used", 2),
        ("3 vCPUs up", 1),
    ] {
        let seen = serial.matches(what).count();
        ensure!(seen == count, "{what:?} {seen} times, not {count}");
    }
    for number in 1..=2 {
        let disk = fs::read(bed.files.extra_disk(number))?;
        ensure!(
            disk.iter().all(|byte| *byte == 0),
            "disk {number} was written to"
        );
    }
    passed()
}

/// By its number and by its MAC. The CLI is not forwarded to its network.
fn second_nic(lab: &mut Lab) -> Result<Outcome> {
    for option in ["nic=1", "nic=52:54:00:12:34:57"] {
        let serial = lab.boot_until(option, "closer: ready")?.serial();
        let lines = serial.lines().filter(|line| line.contains("network: NIC "));
        let used = lines
            .clone()
            .any(|line| line.contains(", MAC 52:54:00:12:34:57, "));
        ensure!(used, "{option}: {:#?}", lines.collect::<Vec<_>>());
    }
    lab.stop()?;
    passed()
}

/// Ramdisks one after the other, of which the image area, which is as small as it gets
/// (64 MiB), holds one or two next to the kernel.
fn images_make_room(lab: &mut Lab) -> Result<Outcome> {
    let file = lab.dir.join("ramdisk.bin");
    let config = lab.write_config(&GuestSpec::new("g"))?;
    let other = format!("ramdisk = \"{}\"", file.display());
    let text = fs::read_to_string(&config)?;
    let lines = text.lines().map(|line| match line {
        line if line.starts_with("ramdisk = ") => other.as_str(),
        line => line,
    });
    fs::write(&config, lines.collect::<Vec<_>>().join("\n"))?;
    let config = config.to_string_lossy();
    for round in 0..8_u8 {
        // It is never run.
        fs::write(&file, vec![round + 1; 10_000_000])?;
        lab.closer_within(&["create", "-p", &config], TRANSFER_LIMIT)
            .with_context(|| format!("ramdisk {round}"))?;
        lab.closer(&["destroy", "g"])?;
    }
    passed()
}

fn disk_and_network(lab: &mut Lab) -> Result<Outcome> {
    let serial = lab.bed()?.serial();
    let version = lab.options.xen.name();
    ensure!(
        serial.contains(&format!("Xen version {version}")),
        "this is not Xen {version}"
    );
    if lab.options.iommu == Switch::On {
        ensure!(
            serial.contains("I/O virtualisation enabled"),
            "Xen does not use the IOMMU"
        );
    }
    lab.volume("v", "32M")?;
    // TCG takes a guest's reading of CR2 for one of CR0, which Xen 4.17 intercepts and then
    // answers with an old CR2: no PVH guest gets past its first page fault.
    let kinds: &[bool] = match lab.options.xen {
        XenVersion::V4_17 => &[false],
        XenVersion::V4_20 => &[false, true],
    };
    for &pvh in kinds {
        let mut spec = GuestSpec::new("g").memory(256).disk("v").net(ADDRESS);
        spec.pvh = pvh;
        let mut guest = lab.boot(&spec)?;
        // The gateway may remember the MAC of the guest that had the address before.
        guest.ok(&format!("ping -c 1 -W 10 {HOST_ADDRESS}"))?;
        let sum = guest.ok(
            "mkdir /tmp/w; head -c 1000000 /dev/urandom > /tmp/w/f; dd if=/tmp/w/f of=/dev/xvda \
             bs=64k; sync; echo 3 > /proc/sys/vm/drop_caches; httpd -p 80 -h /tmp/w; \
             head -c 1000000 /dev/xvda | sha256sum",
        )?;
        let sum = sum.lines().last().context("no checksum")?.to_owned();
        let port = lab
            .options
            .forward
            .first()
            .context("the bed forwards no port")?
            .host_port;
        let body = web::get(port, "/f", Duration::from_secs(120))?;
        let ours = web::sha256(&body, &lab.dir)?;
        ensure!(
            sum.starts_with(&ours),
            "disk and network disagree: {sum} and {ours}"
        );
        lab.closer(&["destroy", "g"])?;
    }
    passed()
}

/// A guest with more than half of the memory, so that there is none for the one that is to be
/// made in place of the crashed one.
fn renamed_in_vain(lab: &mut Lab) -> Result<Outcome> {
    let mut spec = GuestSpec::new("a").line("on_crash = \"rename-restart\"");
    spec.memory = lab.options.node_mb / 8 * 5;
    let old = crash_one(lab, &spec)?;
    let said = "guest a: cannot be restarted: ";
    lab.bed()?.wait_for_line(said, TRANSFER_LIMIT)?;
    let kept = format!("a-{old}");
    ensure!(lab.guests()? == [kept.as_str()], "{:?}", lab.guests()?);
    lab.closer(&["rename", &kept, "b"])?;
    let names = lab.closer(&["xenstore-ls", "/vm"])?;
    ensure!(names.contains("/name = \"b\""), "the name in /vm: {names}");
    lab.closer(&["destroy", "b"])?;
    let left = lab.closer(&["xenstore-ls", "/vm"])?;
    ensure!(left.lines().count() == 1, "left in /vm: {left}");
    passed()
}
