//! The host that Closer is measured against: stock Linux dom0, xenstored and xl on the
//! same Xen, in the same machine.

use crate::bed::{Bed, Life};
use crate::debian::Suite;
use crate::images::{Ramdisk, make_ext4, mmdebstrap, recipe};
use crate::process::{run, run_logged};
use crate::qemu::{self, BedFiles, BedOptions, Boot};
use crate::setup::{Setup, XenVersion, pack_initramfs, write_program};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const DOM0_INIT: &str = include_str!("../guest/dom0-init");
const DOM0_RAMDISK_INIT: &str = include_str!("../guest/dom0-ramdisk-init");
const DOM0_CUSTOMIZE: &str = include_str!("../guest/dom0-customize");
const BLOCK_MINIMAL: &str = include_str!("../guest/block-minimal");

const MMDEBSTRAP_LIMIT: Duration = Duration::from_secs(480);
/// Size of the Linux dom0's root, in MiB.
const ROOT_MIB: u64 = 1200;
/// Memory of the Linux dom0; with less, xl's toolstack does not serve eight guests.
pub const DOM0_MEM: &str = "1G";
/// What dom0's init prints when xl answers.
pub const READY: &str = "baseline: ready";

/// A Linux dom0 ready to boot.
#[derive(Clone, Debug)]
pub struct Baseline {
    root: PathBuf,
    ramdisk: PathBuf,
    vmlinuz: PathBuf,
}

impl Baseline {
    /// Bytes of kernel and ramdisk: what a boot loader reads.
    pub fn image_size(&self) -> Result<u64> {
        let size = |path: &Path| fs::metadata(path).map(|data| data.len());
        Ok(size(&self.vmlinuz)? + size(&self.ramdisk)?)
    }
}

impl Setup {
    /// Makes the Linux dom0.
    pub fn baseline(&mut self) -> Result<Baseline> {
        let linux = self.linux(Suite::Trixie)?;
        let log = self.paths().target.join("baseline.log");
        let recipe = recipe(&[DOM0_INIT, DOM0_RAMDISK_INIT, DOM0_CUSTOMIZE, BLOCK_MINIMAL]);
        let piece = self.cache().piece("baseline", recipe, |dir| {
            println!("  baseline: fetching and installing Debian trixie with Xen's toolstack");
            let (root, files) = (dir.join("root"), dir.join("files"));
            fs::create_dir_all(&files).context("cannot create a folder")?;
            write_program(&files.join("dom0-init"), DOM0_INIT)?;
            write_program(&files.join("block-minimal"), BLOCK_MINIMAL)?;
            write_program(&files.join("customize"), DOM0_CUSTOMIZE)?;
            let mut command = mmdebstrap()?;
            command.arg("--variant=minbase").arg(
                "--include=xen-utils-4.20,xenstore-utils,xen-utils-common,iproute2,bridge-utils,\
                 busybox-static,kmod,procps,python3-minimal",
            );
            command.arg(format!(
                "--customize-hook={}/customize \"$1\" {} {}",
                files.display(),
                files.display(),
                linux.modules.display()
            ));
            command
                .arg("trixie")
                .arg(&root)
                .arg(crate::debian::source_line("trixie")?.trim_end());
            run_logged(&mut command, &log, MMDEBSTRAP_LIMIT)?;
            make_ext4(&root, &dir.join("root.img"), ROOT_MIB)?;
            crate::cache::remove(&root)?;
            let ramdisk = dir.join("ramdisk");
            fs::create_dir_all(ramdisk.join("bin")).context("cannot create a folder")?;
            write_program(&ramdisk.join("init"), DOM0_RAMDISK_INIT)?;
            fs::copy("/bin/busybox", ramdisk.join("bin/busybox")).context("no static busybox")?;
            run(Command::new("cp")
                .arg("-r")
                .arg(&linux.modules)
                .arg(ramdisk.join("modules")))?;
            pack_initramfs(&ramdisk, &dir.join("ramdisk.gz"))?;
            crate::cache::remove(&ramdisk)
        })?;
        Ok(Baseline {
            root: piece.join("root.img"),
            ramdisk: piece.join("ramdisk.gz"),
            vmlinuz: linux.vmlinuz,
        })
    }

    /// Boots it with a shell script as its job, which finds the guests' `vmlinuz` and
    /// `ramdisk.gz` beside it in `/job`.
    pub fn start_baseline(&mut self, dir: &Path, job: &str) -> Result<Bed> {
        let baseline = self.baseline()?;
        let ramdisk = self.ramdisk(Ramdisk::Small)?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let folder = dir.join("job");
        fs::create_dir_all(&folder).context("cannot create the job's folder")?;
        fs::write(folder.join("run"), job).context("cannot write the job")?;
        fs::copy(&baseline.vmlinuz, folder.join("vmlinuz")).context("cannot copy the kernel")?;
        fs::copy(ramdisk, folder.join("ramdisk.gz")).context("cannot copy the ramdisk")?;
        let image = dir.join("job.img");
        make_ext4(&folder, &image, 64)?;
        let options = BedOptions {
            dom0_mem: DOM0_MEM.to_owned(),
            ..BedOptions::default()
        };
        let files = BedFiles {
            dir: dir.canonicalize().context("the folder went away")?,
        };
        let boot = Boot {
            xen: self.xen(XenVersion::V4_20)?,
            kernel: baseline.vmlinuz,
            cmdline: "console=hvc0 loglevel=4".to_owned(),
            module: Some(baseline.ramdisk),
        };
        let mut command = qemu::command(&options, &files, &boot, None)?;
        for (file, snapshot, slot) in [(&baseline.root, "on", 0x10), (&image, "off", 0x11)] {
            let id = format!("virtio{slot}");
            let file = file.to_str().context("a path is not UTF-8")?;
            command.arg("-drive").arg(format!(
                "file={file},if=none,id={id},format=raw,snapshot={snapshot}"
            ));
            command
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive={id},addr={slot:#x}"));
        }
        Bed::start_other(self, &options, files, command, Life::Ours)
    }
}
