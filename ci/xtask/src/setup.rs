//! What the harness needs from Debian: programs on this machine, pieces in the cache.

use crate::cache::Cache;
use crate::debian::{self, Apt, Suite};
use crate::images::Ramdisk;
use crate::paths::Paths;
use crate::process::{output, run};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Oldest QEMU whose TCG runs PVH guests (nested SVM with nested paging).
const QEMU_MIN: u32 = 9;

/// Packages of this machine's own Debian, apart from QEMU.
const PROGRAMS: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "cpio",
    "e2fsprogs",
    "gcc",
    "kmod",
    "libc6-dev",
    "lz4",
    "mmdebstrap",
    "xz-utils",
    "zstd",
];

/// Those that are taken in QEMU's version.
const QEMU: &[&str] = &["qemu-system-x86", "qemu-utils", "seabios"];

/// A version of Xen that the suite boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XenVersion {
    /// Debian 12's.
    #[value(name = "4.17")]
    V4_17,
    /// Debian 13's.
    #[value(name = "4.20")]
    V4_20,
}

impl XenVersion {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::V4_17, Self::V4_20];

    /// As in its package's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4_17 => "4.17",
            Self::V4_20 => "4.20",
        }
    }

    const fn suite(self) -> Suite {
        match self {
            Self::V4_17 => Suite::Bookworm,
            Self::V4_20 => Suite::Trixie,
        }
    }
}

/// Modules of guests: block, net, and the file systems of our images, with what they
/// need, in the order that they are loaded in.
///
/// ext4 finds crc32c by the name of the algorithm, so no dependency names its module.
pub const GUEST_MODULES: &[&str] = &["crc32c_generic", "xen-blkfront", "xen-netfront", "ext4"];

/// Modules of the Linux dom0 that Closer is measured against.
pub const DOM0_MODULES: &[&str] = &[
    "crc32c_generic",
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xen-netback",
    "xen-blkback",
    "xenfs",
    "bridge",
    "loop",
    "nvme",
    "igb",
];

/// The kernel of a Debian release.
#[derive(Clone, Debug)]
pub struct Linux {
    /// `vmlinuz`, as the package has it.
    pub vmlinuz: PathBuf,
    /// `modules/VERSION/NAME.ko`, unpacked, and two lists of names in loading order:
    /// `modules/VERSION/guest` and `modules/VERSION/dom0`.
    pub modules: PathBuf,
}

/// GRUB as a guest's kernel.
#[derive(Clone, Debug)]
pub struct Grub {
    /// For `type="pv"`.
    pub pv: PathBuf,
    /// For `type="pvh"`.
    pub pvh: PathBuf,
}

/// Everything that is fetched or made once.
#[derive(Debug)]
pub struct Setup {
    paths: Paths,
    cache: Cache,
    apts: HashMap<&'static str, Apt>,
}

impl Setup {
    /// Opens the cache; installs the programs that every command needs.
    pub fn open(paths: &Paths) -> Result<Self> {
        fs::create_dir_all(&paths.target).context("cannot create the target folder")?;
        install_programs(paths)?;
        let cache = Cache::open(&paths.cache)?;
        Ok(Self {
            paths: paths.clone(),
            cache,
            apts: HashMap::new(),
        })
    }

    /// The same cache for a thread beside this one. Two threads must not make the same piece
    /// at once: one of them has made all before, or the other makes none.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            paths: self.paths.clone(),
            cache: self.cache.clone(),
            apts: HashMap::new(),
        }
    }

    /// Makes what any test uses.
    pub fn all_pieces(&mut self) -> Result<()> {
        self.xen_utils()?;
        for version in XenVersion::ALL {
            self.headers(version)?;
        }
        self.guests_pieces()
    }

    /// The same while something else prints; only an error is told.
    pub fn fetch_quietly(&self) -> Result<()> {
        let mut setup = self.share();
        setup.cache = self.cache.quietly();
        setup.all_pieces()
    }

    /// Makes what the integration tests use.
    pub fn guests_pieces(&mut self) -> Result<()> {
        for version in XenVersion::ALL {
            self.xen(version)?;
        }
        for kind in [Ramdisk::Small, Ramdisk::Tools, Ramdisk::Full] {
            self.ramdisk(kind)?;
        }
        self.grub()?;
        self.grub_disk()?;
        Ok(())
    }

    /// The cache, for pieces made elsewhere.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The folders.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The hypervisor, as the 32-bit ELF that QEMU's `-kernel` wants.
    pub fn xen(&mut self, version: XenVersion) -> Result<PathBuf> {
        let name = version.name();
        let piece = self.piece(&format!("xen-{name}"), 1, version.suite(), |apt, dir| {
            apt.unpack(&format!("xen-hypervisor-{name}-amd64"), &dir.join("x"))?;
            let packed = File::open(dir.join(format!("x/boot/xen-{name}-amd64.gz")))
                .context("the package has no hypervisor where it was")?;
            let plain = File::create(dir.join("xen")).context("cannot create the hypervisor")?;
            run(Command::new("gzip").arg("-dc").stdin(packed).stdout(plain))?;
            crate::cache::remove(&dir.join("x"))
        })?;
        Ok(piece.join("xen"))
    }

    /// A stock Linux kernel and the modules that guests need.
    pub fn linux(&mut self, suite: Suite) -> Result<Linux> {
        let piece = self.piece(&format!("linux-{}", suite.name()), 3, suite, |apt, dir| {
            let depends = apt.field("linux-image-amd64", "Depends")?;
            let package = depends
                .split([' ', ','])
                .find(|word| word.starts_with("linux-image-"))
                .context("linux-image-amd64 names no kernel package")?;
            apt.unpack(package, &dir.join("x"))?;
            pick_kernel(&dir.join("x"), dir)?;
            crate::cache::remove(&dir.join("x"))
        })?;
        Ok(Linux {
            vmlinuz: piece.join("vmlinuz"),
            modules: piece.join("modules"),
        })
    }

    /// Xen's public headers: a folder with `xen/` in it.
    pub fn headers(&mut self, version: XenVersion) -> Result<PathBuf> {
        let name = format!("xen-headers-{}", version.name());
        let piece = self.piece(&name, 1, version.suite(), |apt, dir| {
            apt.unpack("libxen-dev", &dir.join("x"))?;
            fs::rename(dir.join("x/usr/include"), dir.join("include"))
                .context("libxen-dev has no headers where they were")?;
            crate::cache::remove(&dir.join("x"))
        })?;
        Ok(piece.join("include"))
    }

    /// PV and PVH GRUB, which boot a guest from its own disk.
    pub fn grub(&mut self) -> Result<Grub> {
        let piece = self.piece("grub-xen", 1, Suite::Trixie, |apt, dir| {
            // The host package holds the images; some releases put them in the other.
            for package in ["grub-xen-host", "grub-xen-bin"] {
                apt.unpack(package, &dir.join("x"))?;
            }
            for (name, suffix) in [("pv", "x86_64-xen.bin"), ("pvh", "i386-xen_pvh.bin")] {
                let found = find(&dir.join("x"), &|file| file.ends_with(suffix))?;
                let from = found
                    .first()
                    .with_context(|| format!("no GRUB image *{suffix}"))?;
                fs::copy(from, dir.join(name)).context("cannot copy GRUB")?;
            }
            crate::cache::remove(&dir.join("x"))
        })?;
        Ok(Grub {
            pv: piece.join("pv"),
            pvh: piece.join("pvh"),
        })
    }

    /// Xen's own tools (`test-xenstore`, `verify-stream-v2`) with their libraries and the
    /// C library they were built for; a folder whose `run PROGRAM` starts one.
    pub fn xen_utils(&mut self) -> Result<PathBuf> {
        self.piece("xen-utils-4.20", 2, Suite::Trixie, |apt, dir| {
            let depends = apt.field("xen-utils-4.20", "Depends")?;
            let libraries = depends
                .split([',', '|'])
                .filter_map(|word| word.split_whitespace().next())
                .filter(|name| name.starts_with("libxen"));
            let others = [
                "libxentoolcore1",
                "libc6",
                "xen-utils-4.20",
                "xenstore-utils",
            ];
            for package in libraries.chain(others) {
                apt.unpack(package, dir)?;
            }
            Ok(())
        })
    }

    /// A piece made from a suite's packages.
    pub fn piece(
        &mut self,
        name: &str,
        recipe: u32,
        suite: Suite,
        make: impl FnOnce(&Apt, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let Self { cache, apts, .. } = self;
        cache.piece(name, recipe, |dir| {
            cache.say(&format!("{name}: fetching from Debian {}", suite.name()));
            if !apts.contains_key(suite.name()) {
                apts.insert(suite.name(), Apt::open(cache, suite)?);
            }
            make(apts.get(suite.name()).context("apt went away")?, dir)
        })
    }
}

/// Installs what is missing on this machine.
fn install_programs(paths: &Paths) -> Result<()> {
    let codename = debian::this_codename()?;
    let log = paths.target.join("setup.log");
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .copied()
        .filter(|package| !debian::is_installed(package))
        .collect();
    let qemu_is_new = qemu_version().is_ok_and(|version| version >= QEMU_MIN)
        && QEMU.iter().all(|package| debian::is_installed(package));
    if missing.is_empty() && qemu_is_new {
        return Ok(());
    }
    if !missing.is_empty() {
        debian::install(&missing, None, &log)?;
    }
    if !qemu_is_new {
        match codename.as_str() {
            "bookworm" => debian::install(QEMU, Some("bookworm-backports"), &log)?,
            "trixie" => debian::install(QEMU, None, &log)?,
            other => {
                bail!("QEMU >= {QEMU_MIN} is missing, and {other} is neither Debian 12 nor 13")
            }
        }
    }
    match qemu_version()? {
        version if version >= QEMU_MIN => Ok(()),
        version => bail!("QEMU {version} is installed, but {QEMU_MIN} or newer is needed"),
    }
}

/// Major version of the QEMU on this machine.
fn qemu_version() -> Result<u32> {
    let text = output(Command::new("qemu-system-x86_64").arg("--version"))?;
    text.split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)
        .and_then(|version| version.split('.').next()?.parse().ok())
        .with_context(|| format!("cannot read QEMU's version from {text:?}"))
}

/// Takes the kernel and the modules we need out of an unpacked kernel package.
fn pick_kernel(package: &Path, to: &Path) -> Result<()> {
    let boot = fs::read_dir(package.join("boot")).context("the kernel package has no boot/")?;
    let vmlinuz = boot
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .context("the kernel package has no vmlinuz")?;
    fs::copy(&vmlinuz, to.join("vmlinuz")).context("cannot copy vmlinuz")?;
    let version = vmlinuz
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"))
        .context("vmlinuz has no version in its name")?
        .to_owned();
    let tree = ["usr/lib/modules", "lib/modules"]
        .map(|place| package.join(place).join(&version))
        .into_iter()
        .find(|place| place.is_dir())
        .context("the kernel package has no modules")?;
    run(Command::new("/sbin/depmod")
        .arg("-b")
        .arg(strip(&tree, &version)?)
        .arg(&version))?;
    let folder = to.join("modules").join(&version);
    fs::create_dir_all(&folder).context("cannot create the modules' folder")?;
    for (list, wanted) in [("guest", GUEST_MODULES), ("dom0", DOM0_MODULES)] {
        let mut names = String::new();
        for file in loading_order(&tree, wanted)? {
            let name = Path::new(&file)
                .file_name()
                .context("a module has no name")?;
            let name = name.to_string_lossy().into_owned();
            let plain = name.strip_suffix(".xz").unwrap_or(&name).to_owned();
            if !folder.join(&plain).exists() {
                fs::copy(tree.join(&file), folder.join(&name)).context("cannot copy a module")?;
                if plain != name {
                    run(Command::new("xz").arg("-dq").arg(folder.join(&name)))?;
                }
            }
            names.push_str(&plain);
            names.push('\n');
        }
        fs::write(folder.join(list), names).context("cannot write the modules' order")?;
    }
    Ok(())
}

/// The folder that `depmod -b` wants for a modules tree: above `lib/modules/VERSION`.
/// kmod looks in `usr/lib` or in `lib` as it was built, so the tree is linked at both.
fn strip(tree: &Path, version: &str) -> Result<PathBuf> {
    let base = tree
        .parent()
        .and_then(Path::parent)
        .context("the modules have no folder above")?;
    let base = base
        .parent()
        .context("the modules have no root")?
        .join("depmod-base");
    for place in ["lib/modules", "usr/lib/modules"] {
        fs::create_dir_all(base.join(place)).context("cannot create depmod's folder")?;
        std::os::unix::fs::symlink(tree, base.join(place).join(version))
            .context("cannot link the modules")?;
    }
    Ok(base)
}

/// Files of the wanted modules and of all that they need, what is needed first.
fn loading_order(tree: &Path, wanted: &[&str]) -> Result<Vec<String>> {
    let text =
        fs::read_to_string(tree.join("modules.dep")).context("depmod wrote no modules.dep")?;
    let depends: Vec<(&str, Vec<&str>)> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (file, needs.split_whitespace().collect()))
        .collect();
    let soft = soft_dependencies(tree);
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let entry = depends
            .iter()
            .find(|(file, _)| module_name(file) == normal(name));
        // Built into this kernel: nothing to load.
        let Some((file, needs)) = entry else { continue };
        let mut all: Vec<&str> = Vec::new();
        for extra in soft.get(&normal(name)).into_iter().flatten() {
            if let Some((file, needs)) =
                depends.iter().find(|(file, _)| module_name(file) == *extra)
            {
                all.extend(needs.iter().rev());
                all.push(file);
            }
        }
        all.extend(needs.iter().rev());
        all.push(file);
        for file in all {
            if !order.iter().any(|known| known == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

/// `softdep NAME pre: ...` lines (ext4 wants crc32c so).
fn soft_dependencies(tree: &Path) -> HashMap<String, Vec<String>> {
    let text = fs::read_to_string(tree.join("modules.softdep")).unwrap_or_default();
    let mut all = HashMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some("softdep"), Some(name)) = (words.next(), words.next()) {
            let needs = words
                .filter(|word| !word.ends_with(':'))
                .map(normal)
                .collect();
            all.insert(normal(name), needs);
        }
    }
    all
}

fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    normal(name.split('.').next().unwrap_or(name))
}

/// Modules are named with - and _ as the author liked; both mean the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// All files below a folder whose path satisfies `wanted`.
pub fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.context("cannot list a folder")?;
        let kind = entry.file_type().context("a file went away")?;
        if kind.is_dir() {
            found.extend(find(&entry.path(), wanted)?);
        } else if wanted(&entry.path().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Writes a file that can be run.
pub fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context("cannot set a mode")
}

/// Packs a folder as a gzipped initramfs.
pub fn pack_initramfs(folder: &Path, to: &Path) -> Result<()> {
    let out = File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    let script =
        "set -e -o pipefail; find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet | gzip -1";
    run(Command::new("bash")
        .args(["-c", script])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(out))
}
