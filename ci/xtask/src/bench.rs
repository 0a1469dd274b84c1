//! `cargo xtask bench`: Closer's figures beside those of a Linux dom0, taken in one run.
//!
//! All of it is emulated: only the ratios between the two columns mean something.

use crate::baseline;
use crate::build;
use crate::lab::{GuestSpec, Lab, TRANSFER_LIMIT};
use crate::paths::Paths;
use crate::process::POLL;
use crate::qemu::BedOptions;
use crate::report::run_name;
use crate::setup::Setup;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// What Xen prints right before it enters dom0's kernel.
const HAND_OVER: &str = "init memory";
const READY: &str = "closer: ready";
const BASELINE_LIMIT: Duration = Duration::from_secs(400);
const GUESTS: u32 = 8;

/// What is compared.
#[derive(Clone, Debug, Default)]
struct Figures {
    image_kib: f64,
    given_mib: f64,
    used_0_mib: f64,
    used_8_mib: f64,
    ready_s: f64,
    create_s: Vec<f64>,
    destroy_s: Vec<f64>,
}

/// Measures both and prints the table.
pub fn run(paths: &Paths, baseline_only: bool) -> Result<()> {
    let logs = paths.logs(&run_name("bench"));
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let mut setup = Setup::open(paths)?;
    let closer = if baseline_only {
        Figures::default()
    } else {
        println!("building");
        build::build_logged(paths, &logs)?;
        println!("measuring Closer");
        closer(&mut setup, &logs.join("closer"))?
    };
    println!("measuring the Linux dom0");
    let linux = linux(&mut setup, &logs.join("linux"))?;
    let row = |name: &str, unit: &str, closer: f64, linux: f64| {
        let ratio = if linux > 0.0 {
            closer / linux
        } else {
            f64::NAN
        };
        println!("| {name} | {closer:.2} {unit} | {linux:.2} {unit} | {ratio:.3} |");
    };
    println!("| | Closer | Linux dom0, xl | ratio |\n|---|---|---|---|");
    row(
        "image (kernel, for Linux with its ramdisk)",
        "KiB",
        closer.image_kib,
        linux.image_kib,
    );
    row("dom0_mem given", "MiB", closer.given_mib, linux.given_mib);
    row(
        "dom0 memory used, no guest",
        "MiB",
        closer.used_0_mib,
        linux.used_0_mib,
    );
    row(
        "dom0 memory used, 8 guests",
        "MiB",
        closer.used_8_mib,
        linux.used_8_mib,
    );
    row("hand-over to ready", "s", closer.ready_s, linux.ready_s);
    row(
        "create (median of 8)",
        "s",
        median(&closer.create_s),
        median(&linux.create_s),
    );
    row(
        "destroy (median of 8)",
        "s",
        median(&closer.destroy_s),
        median(&linux.destroy_s),
    );
    println!("logs: {}", logs.display());
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn closer(setup: &mut Setup, dir: &Path) -> Result<Figures> {
    let image = fs::metadata(setup.paths().pvm()).context("no image")?.len();
    let mut lab = Lab::new(setup, BedOptions::default(), dir)?;
    let bed = lab.bed()?;
    let ready_s = bed
        .between(HAND_OVER, READY)
        .context("the console shows no hand-over")?;
    let mut figures = Figures {
        image_kib: mega(image) * 1024.0,
        ready_s: ready_s.as_secs_f64(),
        ..Figures::default()
    };
    // The kernel and ramdisk are on the host after the first guest.
    lab.boot(&GuestSpec::new("first"))?;
    lab.closer(&["destroy", "first"])?;
    let memory = |lab: &mut Lab, what: &str| -> Result<f64> {
        let info = lab.json(&["info"])?;
        let bytes = info
            .pointer(&format!("/closer_memory/{what}"))
            .and_then(Value::as_u64);
        Ok(mega(
            bytes.with_context(|| format!("info has no {what}: {info}"))?,
        ))
    };
    figures.given_mib = memory(&mut lab, "total_bytes")?;
    figures.used_0_mib = memory(&mut lab, "used_bytes")?;
    let mut guests = Vec::new();
    for number in 1..=GUESTS {
        let name = format!("g{number}");
        lab.volume(&name, "16M")?;
        let spec = GuestSpec::new(&name)
            .disk(&name)
            .net(&format!("10.0.2.{}", 30 + number));
        let file = lab.write_config(&spec)?.to_string_lossy().into_owned();
        let started = Instant::now();
        lab.closer_within(&["create", &file], TRANSFER_LIMIT)?;
        figures.create_s.push(started.elapsed().as_secs_f64());
        let mut guest = lab.attach(&name)?;
        guest.console.wait_for_shell(crate::lab::BOOT_LIMIT)?;
        guests.push(guest);
    }
    figures.used_8_mib = memory(&mut lab, "used_bytes")?;
    drop(guests);
    for number in 1..=GUESTS {
        let started = Instant::now();
        lab.closer(&["destroy", &format!("g{number}")])?;
        figures.destroy_s.push(started.elapsed().as_secs_f64());
    }
    lab.stop()?;
    fs::remove_file(dir.join("disk.img")).context("cannot remove the disk")?;
    Ok(figures)
}

/// What the Linux dom0 does: the same, with xl. A first guest, which is not counted, has the
/// NVMe disk; one disk cannot be given twice, so the eight have loop devices on empty files
/// in dom0's memory.
const JOB: &str = r#"
now() { cut -d' ' -f1 /proc/uptime; }
used() { awk '/^MemTotal/{t=$2}/^MemAvailable/{a=$2}END{print t-a}' /proc/meminfo; }
echo "FIGURE given $(awk '/^MemTotal/{print $2}' /proc/meminfo)"
mkdir -p /tmp/c
for i in 0 1 2 3 4 5 6 7 8; do
  cat >/tmp/c/g$i <<EOF
name="g$i"
type="pvh"
kernel="/job/vmlinuz"
ramdisk="/job/ramdisk.gz"
memory=192
vcpus=1
cmdline="console=hvc0 loglevel=4 cryptomgr.notests closer.ip=10.0.2.$((30+i))/24"
tsc_mode="native"
vif=["bridge=xenbr0"]
disk=["format=raw,vdev=xvda,access=w,backendtype=phy,script=block-minimal,target=/dev/$([ $i = 0 ] && echo nvme0n1 || echo loop$i)"]
EOF
done
for i in 1 2 3 4 5 6 7 8; do
  [ -e /dev/loop$i ] || mknod /dev/loop$i b 7 $i
  truncate -s 16M /tmp/v$i
  losetup /dev/loop$i /tmp/v$i
done
xl create -q /tmp/c/g0; sleep 20; xl destroy g0
echo "FIGURE used0 $(used)"
for i in 1 2 3 4 5 6 7 8; do
  a=$(now); xl create -q /tmp/c/g$i; b=$(now); echo "FIGURE create $(echo "$b $a" | awk '{print $1-$2}')"
  sleep 12
done
sleep 20
echo "FIGURE used8 $(used)"
xl list
for i in 1 2 3 4 5 6 7 8; do
  a=$(now); xl destroy g$i; b=$(now); echo "FIGURE destroy $(echo "$b $a" | awk '{print $1-$2}')"
done
echo "FIGURE end 0"
"#;

fn linux(setup: &mut Setup, dir: &Path) -> Result<Figures> {
    let mut bed = setup.start_baseline(dir, JOB)?;
    let ready_s = bed
        .between(HAND_OVER, baseline::READY)
        .context("the console shows no hand-over")?;
    let deadline = Instant::now() + BASELINE_LIMIT;
    while !bed.serial().contains("FIGURE end") {
        ensure!(
            bed.is_running(),
            "the Linux dom0 ended early; see {}",
            bed.files.serial().display()
        );
        ensure!(
            Instant::now() < deadline,
            "the Linux dom0 is not done; see {}",
            bed.files.serial().display()
        );
        thread::sleep(POLL * 10);
    }
    let text = bed.serial();
    bed.kill()?;
    let values = |name: &str| -> Vec<f64> {
        let mark = format!("FIGURE {name} ");
        text.lines()
            .filter_map(|line| line.split_once(&mark)?.1.trim().parse::<f64>().ok())
            .collect()
    };
    let one = |name: &str| values(name).first().copied().unwrap_or(f64::NAN);
    let (create_s, destroy_s) = (values("create"), values("destroy"));
    ensure!(
        create_s.len() == 8 && destroy_s.len() == 8,
        "xl failed; see {}",
        bed.files.serial().display()
    );
    fs::remove_file(dir.join("disk.img")).context("cannot remove the disk")?;
    Ok(Figures {
        image_kib: mega(setup.baseline()?.image_size()?) * 1024.0,
        given_mib: one("given") / 1024.0,
        used_0_mib: one("used0") / 1024.0,
        used_8_mib: one("used8") / 1024.0,
        ready_s: ready_s.as_secs_f64(),
        create_s,
        destroy_s,
    })
}

/// Bytes in MiB.
#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
