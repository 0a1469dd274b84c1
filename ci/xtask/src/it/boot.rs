//! Done when 2: kernels, types, vCPUs, ramdisk and GRUB, eight at once.

use super::{Test, passed};
use crate::debian::Suite;
use crate::images::Ramdisk;
use crate::lab::{BOOT_LIMIT, BootFrom, Guest, GuestSpec, Lab, TRANSFER_LIMIT};
use crate::report::Outcome;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;

pub const TESTS: &[Test] = &[
    Test {
        name: "pvh-debian13-1-vcpu",
        run: |lab| ramdisk(lab, true, Suite::Trixie, 1),
    },
    Test {
        name: "pvh-debian13-2-vcpus",
        run: |lab| ramdisk(lab, true, Suite::Trixie, 2),
    },
    Test {
        name: "pvh-debian12-1-vcpu",
        run: |lab| ramdisk(lab, true, Suite::Bookworm, 1),
    },
    Test {
        name: "pvh-debian12-2-vcpus",
        run: |lab| ramdisk(lab, true, Suite::Bookworm, 2),
    },
    Test {
        name: "pv-debian13-1-vcpu",
        run: |lab| ramdisk(lab, false, Suite::Trixie, 1),
    },
    Test {
        name: "pv-debian13-2-vcpus",
        run: |lab| ramdisk(lab, false, Suite::Trixie, 2),
    },
    Test {
        name: "pv-debian12-1-vcpu",
        run: |lab| ramdisk(lab, false, Suite::Bookworm, 1),
    },
    Test {
        name: "pv-debian12-2-vcpus",
        run: |lab| ramdisk(lab, false, Suite::Bookworm, 2),
    },
    Test {
        name: "maxvcpus-above-vcpus",
        run: maxvcpus,
    },
    Test {
        name: "pvh-grub-from-disk",
        run: |lab| grub(lab, true),
    },
    Test {
        name: "pv-grub-from-disk",
        run: |lab| grub(lab, false),
    },
    Test {
        name: "eight-guests-over-both-sockets",
        run: eight_guests,
    },
];

/// A guest of each kind comes up and sees what it was given.
fn ramdisk(lab: &mut Lab, pvh: bool, suite: Suite, vcpus: u32) -> Result<Outcome> {
    let mut spec = GuestSpec::new("one").vcpus(vcpus);
    spec.boot = BootFrom::Ramdisk(suite, Ramdisk::Small);
    spec.pvh = pvh;
    let mut guest = lab.boot(&spec)?;
    is_as_asked(&mut guest, pvh, vcpus)?;
    let total: u32 = guest
        .ok("awk '/^MemTotal/{print int($2/1024)}' /proc/meminfo")?
        .parse()?;
    ensure!(
        total > spec.memory * 6 / 10 && total <= spec.memory,
        "the guest has {total} MiB of {}",
        spec.memory
    );
    let listed = lab.listed("one")?.context("the guest is not listed")?;
    ensure!(listed["vcpus"] == vcpus, "listed as {listed}");
    ensure!(listed["mem_mb"] == spec.memory, "listed as {listed}");
    lab.closer(&["destroy", "one"])?;
    ensure!(lab.listed("one")?.is_none(), "still listed after destroy");
    Ok(Outcome::Passed(guest.ok_or_version()))
}

impl Guest {
    /// The kernel's own first line, from the console's log, for the report.
    fn ok_or_version(&self) -> String {
        let text = self.console.text();
        let line = text
            .lines()
            .find_map(|line| line.split_once("Linux version "));
        line.and_then(|(_, rest)| rest.split(' ').next())
            .unwrap_or_default()
            .to_owned()
    }
}

/// vCPUs above `vcpus` are there, and not online.
fn maxvcpus(lab: &mut Lab) -> Result<Outcome> {
    for pvh in [true, false] {
        let mut spec = GuestSpec::new("more").line("maxvcpus = 2");
        spec.pvh = pvh;
        let mut guest = lab.boot(&spec)?;
        let cpus = "/sys/devices/system/cpu";
        let seen = guest.ok(&format!("cat {cpus}/possible {cpus}/online"))?;
        ensure!(
            seen.split_whitespace().eq(["0-1", "0"]),
            "CPUs that are possible, and online: {seen}"
        );
        let listed = lab.listed("more")?.context("the guest is not listed")?;
        ensure!(listed["vcpus"] == 1, "listed as {listed}");
        lab.closer(&["destroy", "more"])?;
    }
    passed()
}

/// GRUB finds kernel, initrd and command line on the guest's own disk; what the guest
/// changes there is what it boots next. Under PV it cannot unpack Debian 13's kernel.
fn grub(lab: &mut Lab, pvh: bool) -> Result<Outcome> {
    let image = lab.setup.grub_disk()?;
    import(lab, "small", &image)?;
    let (trixie, bookworm) = (("trixie", "6.12."), ("bookworm", "6.1."));
    // In an order in which the disk is changed once.
    let boots: &[_] = if pvh {
        &[(trixie, 1), (trixie, 2), (bookworm, 1), (bookworm, 2)]
    } else {
        &[(bookworm, 1), (bookworm, 2)]
    };
    let mut seen = Vec::new();
    for &((kernel, version), vcpus) in boots {
        let mut spec = GuestSpec::new("disk").boot(BootFrom::Grub).memory(256);
        spec.pvh = pvh;
        let mut guest = lab.boot(&spec.disk("small").vcpus(vcpus))?;
        let cmdline = guest.ok("cat /proc/cmdline")?;
        ensure!(
            cmdline.contains("from=grub.cfg"),
            "the guest's command line is {cmdline}"
        );
        let release = guest.ok("uname -r")?;
        ensure!(
            release.starts_with(version),
            "{kernel}'s kernel says it is {release}"
        );
        is_as_asked(&mut guest, pvh, vcpus)?;
        seen.push(format!("{release} with {vcpus}"));
        if (kernel, vcpus) == (trixie.0, 2) {
            guest.ok("mount -t ext4 /dev/xvda /mnt")?;
            guest.ok("echo set kernel=bookworm > /mnt/boot/grub/kernel.cfg; umount /mnt")?;
        }
        lab.closer(&["destroy", "disk"])?;
    }
    Ok(Outcome::Passed(seen.join(", ")))
}

/// The guest is of this type and has so many CPUs.
fn is_as_asked(guest: &mut Guest, pvh: bool, vcpus: u32) -> Result<()> {
    let kind = guest.ok("cat /sys/hypervisor/guest_type")?;
    ensure!(
        kind == if pvh { "PVH" } else { "PV" },
        "the guest says it is {kind}"
    );
    let online = guest.ok("grep -c ^processor /proc/cpuinfo")?;
    ensure!(
        online == vcpus.to_string(),
        "the guest has {online} CPUs, not {vcpus}"
    );
    Ok(())
}

fn import(lab: &mut Lab, volume: &str, image: &Path) -> Result<()> {
    let image = image
        .to_str()
        .context("the cache's path is not UTF-8")?
        .to_owned();
    lab.closer_within(&["volume", "import", volume, &image], TRANSFER_LIMIT)?;
    Ok(())
}

/// Eight at once are spread over the sockets, each pinned where its memory is.
fn eight_guests(lab: &mut Lab) -> Result<Outcome> {
    let names: Vec<String> = (1..=8).map(|number| format!("g{number}")).collect();
    let mut guests = Vec::new();
    for (name, last) in names.iter().zip(30..) {
        lab.volume(&format!("v-{name}"), "16M")?;
        let spec = GuestSpec::new(name)
            .disk(&format!("v-{name}"))
            .net(&format!("10.0.2.{last}"));
        guests.push(lab.create(&spec)?);
    }
    for guest in &mut guests {
        guest.console.wait_for_shell(BOOT_LIMIT * 2)?;
        guest.ok("echo $$ > /dev/xvda && sync")?;
        guest.ok("ping -c 1 -W 10 10.0.2.2")?;
    }
    let (memory, vcpus) = (ask_xen(lab, 'u')?, ask_xen(lab, 'q')?);
    let events = ask_xen(lab, 'e')?;
    let mut nodes = BTreeSet::new();
    for name in &names {
        let listed = lab
            .listed(name)?
            .with_context(|| format!("{name} is not listed"))?;
        let number = |field: &str| {
            listed[field]
                .as_u64()
                .with_context(|| format!("no {field}: {listed}"))
        };
        let (domid, node) = (number("domid")?, number("node")?);
        let (pages, elsewhere) = pages_by_node(&memory, domid, node)?;
        ensure!(
            pages > 0 && elsewhere == 0,
            "Xen says that {name} has {pages} pages on node {node} and {elsewhere} elsewhere"
        );
        let cpu = pinned_to(&vcpus, domid)?;
        ensure!(
            cpu / u64::from(lab.options.cores) == node,
            "{name} has memory on node {node} and Xen runs it on CPU {cpu}"
        );
        ensure!(
            listed["cpus"] == serde_json::json!([cpu]),
            "Xen runs it on CPU {cpu}: {listed}"
        );
        for class in ["vbd", "vif"] {
            let served_on = notified(lab, &events, domid, class)?;
            ensure!(
                served_on.iter().all(|vcpu| *vcpu == cpu),
                "{name} runs on CPU {cpu}, its {class} is served on {served_on:?}"
            );
        }
        nodes.insert(node);
    }
    ensure!(nodes.len() == 2, "all guests are on node {nodes:?}");
    passed()
}

/// Xen's answer to one of its debug keys. Of its ring: on the serial console a character
/// comes twice now and then.
fn ask_xen(lab: &mut Lab, key: char) -> Result<String> {
    lab.bed()?.ask_xen(key)?;
    let log = lab.closer(&["dmesg", "--xen"])?;
    let answer = log.rsplit_once(&format!("'{key}' pressed"));
    let (_, answer) = answer.with_context(|| format!("Xen's ring has no answer: {log}"))?;
    Ok(answer.to_owned())
}

/// Pages of a domain on `node` and on the others, of Xen's answer to its key `u`.
pub fn pages_by_node(answer: &str, domid: u64, node: u64) -> Result<(u64, u64)> {
    // Xen 4.17 spells it out.
    let begins = [
        format!(" d{domid} (total: "),
        format!(" Domain {domid} (total: "),
    ];
    let begins = |line: &&str| begins.iter().any(|begin| line.contains(begin));
    let mut lines = answer.lines().skip_while(|line| !begins(line));
    lines
        .next()
        .with_context(|| format!("Xen says nothing of d{domid}: {answer}"))?;
    let mut pages = (0, 0);
    for line in lines {
        let Some((of, count)) = line
            .split_once("Node ")
            .and_then(|(_, n)| n.split_once(':'))
        else {
            break;
        };
        let count: u64 = count.trim().parse()?;
        if of.parse() == Ok(node) {
            pages.0 += count;
        } else {
            pages.1 += count;
        }
    }
    Ok(pages)
}

/// The vCPUs of Closer, each on the CPU of its number, that a guest's devices of a class
/// notify, of Xen's answer to its key `e`.
fn notified(lab: &mut Lab, answer: &str, domid: u64, class: &str) -> Result<Vec<u64>> {
    let tree = lab.closer(&[
        "xenstore-ls",
        &format!("/local/domain/{domid}/device/{class}"),
    ])?;
    let ports: Vec<&str> = tree
        .lines()
        .filter_map(|line| line.strip_suffix('"')?.split_once("/event-channel"))
        .filter_map(|(_, rest)| Some(rest.split_once(" = \"")?.1))
        .collect();
    ensure!(!ports.is_empty(), "d{domid} names no port: {tree}");
    let begin = "Event channel information for domain ";
    let own = answer
        .split(begin)
        .find_map(|part| part.strip_prefix("0:"))
        .with_context(|| format!("Xen says nothing of Closer: {answer}"))?;
    // As in `12 [0/0/0]: s=3 n=1 x=0 d=2 p=9`.
    let vcpu = |port: &&str| {
        let (domain, port) = (format!("d={domid}"), format!("p={port}"));
        let line = own.lines().find(|line| {
            let has = |field: &str| line.split_whitespace().any(|word| word == field);
            has("s=3") && has(&domain) && has(&port)
        });
        let line = line.with_context(|| format!("none of {domain} {port}: {own}"))?;
        let vcpu = line.split_whitespace().find_map(|w| w.strip_prefix("n="));
        Ok(vcpu.context("no vCPU")?.parse()?)
    };
    ports.iter().map(vcpu).collect()
}

/// The one CPU on which a domain's first vCPU may run, of Xen's answer to its key `q`.
fn pinned_to(answer: &str, domid: u64) -> Result<u64> {
    let begin = format!("General information for domain {domid}:");
    let cpus = answer
        .split_once(&begin)
        .and_then(|(_, part)| part.split_once("UNIT0 affinities: hard={"))
        .and_then(|(_, rest)| rest.split_once('}'));
    let (cpus, _) =
        cpus.with_context(|| format!("Xen says nothing of domain {domid}: {answer}"))?;
    cpus.parse()
        .with_context(|| format!("domain {domid} may run on CPUs {cpus}"))
}
