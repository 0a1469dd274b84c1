//! What guests of the bed boot: a ramdisk with a shell, and a Debian root on a disk.

use crate::debian::{self, Suite};
use crate::process::{as_root, is_root, output, run, run_logged};
use crate::setup::{Setup, find, pack_initramfs, write_program};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const INIT: &str = include_str!("../guest/init");
const HALT: &str = include_str!("../guest/halt");
const MODPROBE: &str = include_str!("../guest/modprobe");
const CUSTOMIZE: &str = include_str!("../guest/customize");

/// Changes whenever what goes into a ramdisk does and the texts above do not.
const RAMDISK_RECIPE: &str = "4";
/// Of the disk from which GRUB boots a kernel: that which the guest has written into
/// kernel.cfg, if it has.
///
/// GRUB under PV unpacks gzip, LZO and xz; Debian 13's kernel is packed with zstd.
const GRUB_CFG: &str = "set timeout=0
if [ \"$grub_platform\" = xen_pvh ]; then set kernel=trixie; else set kernel=bookworm; fi
if [ -e /boot/grub/kernel.cfg ]; then source /boot/grub/kernel.cfg; fi
menuentry disk {
  linux /boot/vmlinuz-$kernel console=hvc0 loglevel=4 cryptomgr.notests from=grub.cfg
  initrd /boot/ramdisk.gz
}
";
/// Size of that disk.
const GRUB_DISK_MIB: u64 = 64;

/// Time to fetch and unpack a root file system.
const MMDEBSTRAP_LIMIT: Duration = Duration::from_secs(480);
/// The Debian guest's disk. The files are about 200 MB; the rest is for guests to write.
const ROOT_MIB: u64 = 640;
/// Address that the Debian guest has.
pub const DEBIAN_ADDRESS: &str = "10.0.2.20";
/// What its web page begins with.
pub const DEBIAN_PAGE: &str = "Served by Debian";

/// Parts of the kernel that no guest here has a device for.
const NO_DRIVERS: &[&str] = &[
    "ata",
    "bluetooth",
    "comedi",
    "edac",
    "gpu",
    "hid",
    "hwmon",
    "iio",
    "infiniband",
    "input",
    "isdn",
    "media",
    "misc",
    "mmc",
    "mtd",
    "net/ethernet",
    "net/wireless",
    "platform",
    "scsi",
    "sound",
    "staging",
    "target",
    "thunderbolt",
    "usb",
    "vhost",
    "w1",
];

/// What tests of xenstore and of the network start.
const TOOLS: [&str; 8] = [
    "iperf3",
    "xenstore-exists",
    "xenstore-list",
    "xenstore-ls",
    "xenstore-read",
    "xenstore-rm",
    "xenstore-watch",
    "xenstore-write",
];

/// How much a guest's ramdisk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ramdisk {
    /// busybox.
    Small,
    /// busybox, the xenstore utilities and iperf3.
    Tools,
    /// busybox and fio; wants 256 MiB.
    Full,
}

impl Setup {
    /// The test guests' ramdisk; it has the modules of both Debian kernels.
    pub fn ramdisk(&mut self, kind: Ramdisk) -> Result<PathBuf> {
        let kernels = [self.linux(Suite::Trixie)?, self.linux(Suite::Bookworm)?];
        let tools = self.guest_tools()?;
        let (name, programs): (_, &[&str]) = match kind {
            Ramdisk::Small => ("ramdisk-small", &[]),
            Ramdisk::Tools => ("ramdisk-tools", &TOOLS),
            Ramdisk::Full => ("ramdisk-full", &["fio"]),
        };
        let piece = self.cache().piece(
            name,
            recipe(&[RAMDISK_RECIPE, INIT, HALT, MODPROBE]),
            |dir| {
                let root = dir.join("root");
                for folder in ["bin", "sbin", "usr/bin", "modules"] {
                    fs::create_dir_all(root.join(folder)).context("cannot lay out the ramdisk")?;
                }
                write_program(&root.join("init"), INIT)?;
                write_program(&root.join("sbin/modprobe"), MODPROBE)?;
                write_program(&root.join("sbin/poweroff"), HALT)?;
                write_program(&root.join("sbin/reboot"), HALT)?;
                fs::copy("/bin/busybox", root.join("bin/busybox")).context("no static busybox")?;
                for program in programs {
                    add_program(&tools, &root, program)?;
                }
                for kernel in &kernels {
                    run(Command::new("cp")
                        .arg("-r")
                        .arg(kernel.modules.join("."))
                        .arg(root.join("modules")))?;
                }
                drop_dom0_modules(&root.join("modules"))?;
                pack_initramfs(&root, &dir.join("ramdisk.gz"))?;
                crate::cache::remove(&root)
            },
        )?;
        Ok(piece.join("ramdisk.gz"))
    }

    /// A disk from which GRUB boots a Debian kernel with the small ramdisk.
    pub fn grub_disk(&mut self) -> Result<PathBuf> {
        let old = self.linux(Suite::Bookworm)?.vmlinuz;
        let new = self.linux(Suite::Trixie)?.vmlinuz;
        let ramdisk = self.ramdisk(Ramdisk::Small)?;
        let piece = self.cache().piece(
            "grub-disk",
            recipe(&[RAMDISK_RECIPE, INIT, HALT, MODPROBE, GRUB_CFG]),
            |dir| {
                let root = dir.join("root");
                let boot = root.join("boot");
                fs::create_dir_all(boot.join("grub")).context("cannot lay out the disk")?;
                fs::write(boot.join("grub/grub.cfg"), GRUB_CFG).context("cannot write grub.cfg")?;
                for (from, to) in [
                    (&old, "vmlinuz-bookworm"),
                    (&new, "vmlinuz-trixie"),
                    (&ramdisk, "ramdisk.gz"),
                ] {
                    fs::copy(from, boot.join(to)).context("cannot lay out the disk")?;
                }
                make_ext4(&root, &dir.join("disk.img"), GRUB_DISK_MIB)?;
                crate::cache::remove(&root)
            },
        )?;
        Ok(piece.join("disk.img"))
    }

    /// Programs of Debian 13 with their libraries, only unpacked.
    fn guest_tools(&mut self) -> Result<PathBuf> {
        let log = self.paths().target.join("guest-tools.log");
        let cache = self.cache();
        cache
            .piece("guest-tools", 2, |dir| {
                cache.say("guest-tools: fetching from Debian trixie");
                let root = dir.join("root");
                let mut command = mmdebstrap()?;
                command
                    .args([
                        "--variant=extract",
                        "--include=fio,iperf3,xenstore-utils",
                        "trixie",
                    ])
                    .arg(&root)
                    .arg(debian::source_line("trixie")?.trim_end());
                run_logged(&mut command, &log, MMDEBSTRAP_LIMIT)?;
                // What stays in the cache is the user's own, to be removed like the rest.
                let user = output(Command::new("id").arg("-u"))?;
                run(as_root("chown")?.args(["-R", user.trim()]).arg(&root))?;
                run(as_root("chmod")?.args(["-R", "u+rwX,go+rX"]).arg(&root))?;
                // Only programs and libraries are used; devices and lists are not.
                for useless in ["dev", "etc", "var", "usr/share"] {
                    crate::cache::remove(&root.join(useless))?;
                }
                Ok(())
            })
            .map(|piece| piece.join("root"))
    }

    /// The Debian guest's disk: an ext4 image with kernel, initrd and grub.cfg inside.
    pub fn debian_root(&mut self) -> Result<PathBuf> {
        let log = self.paths().target.join("debian-root.log");
        let piece = self
            .cache()
            .piece("debian-root", recipe(&["2", CUSTOMIZE]), |dir| {
                println!("  debian-root: fetching and installing Debian trixie");
                let root = dir.join("root");
                let hook = dir.join("customize");
                write_program(&hook, CUSTOMIZE)?;
                let mut command = mmdebstrap()?;
                command.arg("--variant=minbase").arg(
                    "--include=systemd-sysv,udev,kmod,ifupdown,iproute2,busybox-static,zstd,\
                 e2fsprogs,initramfs-tools,linux-image-amd64",
                );
                let drivers = NO_DRIVERS
                    .iter()
                    .map(|name| format!("usr/lib/modules/*/kernel/drivers/{name}"));
                let others = [
                    "usr/lib/modules/*/kernel/sound",
                    "usr/share/doc",
                    "usr/share/man",
                    "usr/share/locale",
                ];
                for folder in drivers.chain(others.map(str::to_owned)) {
                    command.arg(format!("--dpkgopt=path-exclude=/{folder}/*"));
                }
                command
                    .arg(format!("--customize-hook={}", hook.display()))
                    .arg("trixie")
                    .arg(&root)
                    .arg(debian::source_line("trixie")?.trim_end());
                run_logged(&mut command, &log, MMDEBSTRAP_LIMIT)?;
                make_ext4(&root, &dir.join("disk.img"), ROOT_MIB)?;
                crate::cache::remove(&root)
            })?;
        Ok(piece.join("disk.img"))
    }
}

/// An ext4 image with a folder's files.
pub fn make_ext4(root: &Path, image: &Path, mib: u64) -> Result<()> {
    let file = fs::File::create(image).context("cannot create the disk image")?;
    file.set_len(mib << 20)
        .context("cannot size the disk image")?;
    // GRUB knows neither of the two features.
    let mut command = as_root("mke2fs")?;
    command.args([
        "-q",
        "-t",
        "ext4",
        "-O",
        "^metadata_csum_seed,^orphan_file",
        "-m",
        "0",
        "-d",
    ]);
    run(command.arg(root).arg(image))
}

/// mmdebstrap as root, so that files belong to whom they should.
pub fn mmdebstrap() -> Result<Command> {
    let mut command = as_root("mmdebstrap")?;
    command.args(["--quiet", "--mode=root", "--architectures=amd64"]);
    // An unpacked tree is left in the cache, which only root's files would make awkward.
    ensure!(
        is_root()? || Path::new("/usr/bin/sudo").exists(),
        "neither root nor sudo"
    );
    Ok(command)
}

/// Copies a program and the libraries it needs out of an unpacked tree.
fn add_program(tools: &Path, root: &Path, name: &str) -> Result<()> {
    let program = format!("usr/bin/{name}");
    copy_into(tools, root, &program)?;
    let loader = "usr/lib64/ld-linux-x86-64.so.2";
    let list = output(
        Command::new(tools.join(loader))
            .arg("--library-path")
            .arg(format!(
                "{0}:{0}/ceph",
                tools.join("usr/lib/x86_64-linux-gnu").display()
            ))
            .arg("--list")
            .arg(tools.join(&program)),
    )?;
    let prefix = tools.to_string_lossy().into_owned();
    for word in list.split_whitespace() {
        if let Some(library) = word.strip_prefix(&prefix) {
            copy_into(tools, root, library.trim_start_matches('/'))?;
        } else {
            // One found on this machine instead would be missing in the guest.
            let loader = word.ends_with("/ld-linux-x86-64.so.2");
            ensure!(
                loader || !word.starts_with('/'),
                "{name} needs {word}, which was not unpacked"
            );
        }
    }
    copy_into(tools, root, loader)?;
    // glibc loads it when a thread is cancelled.
    copy_into(tools, root, "usr/lib/x86_64-linux-gnu/libgcc_s.so.1")?;
    for (link, to) in [("lib64", "usr/lib64"), ("lib", "usr/lib")] {
        if !root.join(link).exists() {
            symlink(to, root.join(link)).context("cannot link the libraries")?;
        }
    }
    Ok(())
}

/// Copies one file's contents to the same place.
fn copy_into(tools: &Path, root: &Path, file: &str) -> Result<()> {
    let to = root.join(file);
    if to.exists() {
        return Ok(());
    }
    let parent = to.parent().context("a file has no folder")?;
    fs::create_dir_all(parent).context("cannot create a folder of the ramdisk")?;
    let from = tools.join(file);
    fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Removes from a ramdisk's modules those that only a dom0 loads.
fn drop_dom0_modules(modules: &Path) -> Result<()> {
    for list in find(modules, &|file| file.ends_with("/guest"))? {
        let wanted = fs::read_to_string(&list).context("cannot read the modules' order")?;
        let folder = list.parent().context("the modules have no folder")?;
        for file in find(folder, &|file| file.ends_with(".ko"))? {
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if !wanted.lines().any(|line| line == name) {
                fs::remove_file(&file).context("cannot remove a module")?;
            }
        }
    }
    Ok(())
}

/// A recipe's number that changes with the texts that go into the piece.
pub fn recipe(texts: &[&str]) -> u32 {
    // FNV-1a: any change must show, nobody attacks it.
    texts.concat().bytes().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
