//! What integration tests work with: a bed, the CLI, guests.

use crate::bed::{Bed, Life};
use crate::console::{Answer, Console};
use crate::debian::Suite;
use crate::images::Ramdisk;
use crate::process::{self, Finished};
use crate::qemu::{BedOptions, HOST_ADDRESS};
use crate::setup::Setup;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

// Deadlines are for a machine that others use too; alone it needs a tenth of them.

/// Time for a CLI command that moves no large data.
pub const CLI_LIMIT: Duration = Duration::from_secs(120);
/// Time for one that does, under TCG.
pub const TRANSFER_LIMIT: Duration = Duration::from_secs(480);
/// Time for a guest's kernel and shell to be up.
pub const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// Time for an ordinary command in a guest.
pub const RUN_LIMIT: Duration = Duration::from_secs(120);

/// A bed with its folder, for tests in sequence.
#[derive(Debug)]
pub struct Lab<'a> {
    /// Pieces.
    pub setup: &'a mut Setup,
    /// What the bed is made of.
    pub options: BedOptions,
    /// Logs and disks.
    pub dir: PathBuf,
    bed: Option<Bed>,
    boots: u32,
}

impl<'a> Lab<'a> {
    /// A lab whose bed is not up yet.
    pub fn new(setup: &'a mut Setup, options: BedOptions, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self {
            setup,
            options,
            dir: dir.to_path_buf(),
            bed: None,
            boots: 0,
        })
    }

    /// The bed, booted now if it is not up.
    pub fn bed(&mut self) -> Result<&mut Bed> {
        if !self.bed.as_mut().is_some_and(Bed::is_running) {
            self.stop()?;
            self.boots += 1;
            self.bed = Some(Bed::start(
                self.setup,
                &self.options,
                &self.dir,
                Life::Ours,
            )?);
        }
        self.bed.as_mut().context("the bed is up")
    }

    /// The bed that was booted last, even if it has ended by itself.
    pub fn last_bed(&mut self) -> Result<&mut Bed> {
        self.bed.as_mut().context("no bed was booted")
    }

    /// Boots the host anew with `pvm_args`, until the pVM prints `line`. What boots after
    /// it has the lab's own options again.
    pub fn boot_until(&mut self, pvm_args: &str, line: &str) -> Result<&mut Bed> {
        self.stop()?;
        self.boots += 1;
        let options = BedOptions {
            pvm_args: pvm_args.to_owned(),
            ..self.options.clone()
        };
        let bed = Bed::start_until(self.setup, &options, &self.dir, Life::Ours, line)?;
        Ok(self.bed.insert(bed))
    }

    /// Does something on a bed with other options; what boots afterwards has the old ones.
    pub fn with_options<T>(
        &mut self,
        options: BedOptions,
        act: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.stop()?;
        let before = std::mem::replace(&mut self.options, options);
        let done = act(self);
        self.options = before;
        self.stop()?;
        done
    }

    /// Pulls the plug, if it is up; its console's log is kept under a new name.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut bed) = self.bed.take() {
            bed.kill()?;
            let kept = self.dir.join(format!("xen-{}.log", self.boots));
            fs::rename(bed.files.serial(), kept).context("cannot keep the console's log")?;
        }
        Ok(())
    }

    /// After a failed test: a new host with an empty disk; the old one's disk and logs are
    /// kept under the test's name.
    pub fn start_afresh(&mut self, test: &str) -> Result<()> {
        self.stop()?;
        let kept = self.dir.with_file_name(format!(
            "{}-failed-{test}",
            self.dir.file_name().unwrap_or_default().to_string_lossy()
        ));
        fs::rename(&self.dir, &kept).context("cannot keep the failed test's folder")?;
        fs::create_dir_all(&self.dir).context("cannot create the group's folder")
    }

    /// Runs the CLI on this host.
    pub fn try_closer(&mut self, args: &[&str], limit: Duration) -> Result<Finished> {
        let mut command = self.bed()?.cli();
        process::capture(command.args(args), limit)
            .with_context(|| format!("closer {}", args.join(" ")))
    }

    /// Runs the CLI, which must succeed; gives what it printed.
    pub fn closer(&mut self, args: &[&str]) -> Result<String> {
        self.closer_within(args, CLI_LIMIT)
    }

    /// The same with another deadline.
    pub fn closer_within(&mut self, args: &[&str], limit: Duration) -> Result<String> {
        let Finished { code, out, err } = self.try_closer(args, limit)?;
        ensure!(
            code == 0,
            "closer {} gave exit code {code}: {}{}",
            args.join(" "),
            out,
            err.trim()
        );
        Ok(out)
    }

    /// Runs the CLI with `--json`; gives the document.
    pub fn json(&mut self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.push("--json");
        let text = self.closer(&all)?;
        serde_json::from_str(&text)
            .with_context(|| format!("closer {} printed {text:?}", all.join(" ")))
    }

    /// A command that must fail: one clear line on standard error with `word` in it.
    pub fn refused(&mut self, args: &[&str], word: &str) -> Result<()> {
        let done = self.try_closer(args, TRANSFER_LIMIT)?;
        is_refusal(&done, word).with_context(|| format!("closer {}", args.join(" ")))
    }

    /// The same with another connection file.
    pub fn refused_with(&mut self, host_file: &Path, args: &[&str], word: &str) -> Result<()> {
        let mut command = self.bed()?.cli_with(host_file);
        process::capture(command.args(args), TRANSFER_LIMIT)
            .and_then(|done| is_refusal(&done, word))
            .with_context(|| format!("closer {}", args.join(" ")))
    }

    /// Names of the guests there are.
    pub fn guests(&mut self) -> Result<Vec<String>> {
        let list = self.json(&["list"])?;
        let list = list.as_array().context("closer list --json is no array")?;
        let names = list.iter().filter(|guest| guest["domid"] != 0);
        Ok(names
            .filter_map(|guest| guest["name"].as_str().map(str::to_owned))
            .collect())
    }

    /// What `list --json` says of a guest; none: it is not there.
    pub fn listed(&mut self, name: &str) -> Result<Option<Value>> {
        let list = self.json(&["list"])?;
        let list = list.as_array().context("closer list --json is no array")?;
        Ok(list.iter().find(|guest| guest["name"] == name).cloned())
    }

    /// Destroys every guest and removes every volume: what a test left behind.
    pub fn clear(&mut self) -> Result<()> {
        for name in self.guests()? {
            self.closer(&["destroy", &name])?;
        }
        let volumes = self.json(&["volume", "list"])?;
        for volume in volumes
            .as_array()
            .context("volume list --json is no array")?
        {
            let name = volume["name"].as_str().context("a volume has no name")?;
            self.closer(&["volume", "remove", name])?;
        }
        Ok(())
    }

    /// Creates a guest and attaches to its console.
    pub fn create(&mut self, spec: &GuestSpec) -> Result<Guest> {
        let file = self.write_config(spec)?;
        let file = file
            .to_str()
            .context("the folder's name is not UTF-8")?
            .to_owned();
        self.closer_within(&["create", &file], TRANSFER_LIMIT)?;
        self.attach(&spec.name)
    }

    /// Creates a guest and waits for its shell.
    pub fn boot(&mut self, spec: &GuestSpec) -> Result<Guest> {
        let mut guest = self.create(spec)?;
        guest.console.wait_for_shell(BOOT_LIMIT)?;
        Ok(guest)
    }

    /// Attaches to the console of a guest that runs.
    pub fn attach(&mut self, name: &str) -> Result<Guest> {
        let log = self.dir.join(format!("guest-{name}.log"));
        let mut command = self.bed()?.cli();
        command.args(["console", name]);
        Ok(Guest {
            name: name.to_owned(),
            console: Console::attach(command, &log)?,
        })
    }

    /// Writes a guest's xl.cfg file.
    pub fn write_config(&mut self, spec: &GuestSpec) -> Result<PathBuf> {
        let text = spec.config(self.setup)?;
        let file = self.dir.join(format!("{}.cfg", spec.name));
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// Waits until a guest is gone.
    pub fn wait_gone(&mut self, name: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.listed(name)?.is_some() {
            ensure!(
                Instant::now() < deadline,
                "{name} is still there after {} s",
                limit.as_secs()
            );
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    /// Waits until a guest's domid is another than `old`: it was made anew.
    pub fn wait_reborn(&mut self, name: &str, old: u64, limit: Duration) -> Result<u64> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(guest) = self.listed(name)?
                && let Some(domid) = guest["domid"].as_u64()
                && domid != old
            {
                return Ok(domid);
            }
            ensure!(
                Instant::now() < deadline,
                "{name} was not made anew in {} s",
                limit.as_secs()
            );
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// Domid of a guest.
    pub fn domid(&mut self, name: &str) -> Result<u64> {
        let guest = self
            .listed(name)?
            .with_context(|| format!("{name} is not listed"))?;
        guest["domid"]
            .as_u64()
            .with_context(|| format!("{name} has no domid: {guest}"))
    }

    /// Makes an empty volume.
    pub fn volume(&mut self, name: &str, size: &str) -> Result<()> {
        self.closer(&["volume", "create", name, size]).map(|_| ())
    }

    /// Bytes that Xen has free once that no longer changes, and is `wanted` at least, or has
    /// not become so in a while: Xen lets a dead domain's last pages go lazily.
    pub fn settled_free_memory(&mut self, wanted: u64) -> Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(15);
        let mut last = 0;
        loop {
            let free = self.free_memory()?;
            if free == last && free >= wanted || Instant::now() > deadline {
                return Ok(free);
            }
            last = free;
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// Bytes that Xen has free.
    pub fn free_memory(&mut self) -> Result<u64> {
        let info = self.json(&["info"])?;
        info["free_bytes"]
            .as_u64()
            .with_context(|| format!("info has no free_bytes: {info}"))
    }
}

/// The command failed, in one clear line with `word` in it.
pub fn is_refusal(done: &Finished, word: &str) -> Result<()> {
    let Finished { code, out, err } = done;
    ensure!(*code != 0, "it succeeded: {out}");
    ensure!(!err.contains("panicked"), "it panicked: {err}");
    // Warnings may come before; the refusal itself is one line.
    let errors: Vec<&str> = err
        .lines()
        .filter(|line| !line.trim().is_empty() && !is_warning(line))
        .collect();
    let [error] = errors.as_slice() else {
        bail!("it is not refused in one line: {err:?}");
    };
    ensure!(
        error.to_lowercase().contains(&word.to_lowercase()),
        "it says {error:?}, without {word:?}"
    );
    Ok(())
}

fn is_warning(line: &str) -> bool {
    line.trim_start().to_lowercase().starts_with("warning") || line.contains(": warning:")
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("the bed is left as it is: {error:#}");
        }
    }
}

/// What a guest boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootFrom {
    /// A Debian release's kernel with the test ramdisk.
    Ramdisk(Suite, Ramdisk),
    /// GRUB, which finds the rest on the guest's disk.
    Grub,
}

/// A guest to be.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// Its name.
    pub name: String,
    /// PVH, else PV.
    pub pvh: bool,
    /// What it boots.
    pub boot: BootFrom,
    /// MiB.
    pub memory: u32,
    /// vCPUs.
    pub vcpus: u32,
    /// Volumes, as xvda, xvdb, ...
    pub disks: Vec<String>,
    /// Address on the bed's network; none: no interface.
    pub address: Option<String>,
    /// More lines of the file.
    pub more: String,
}

impl GuestSpec {
    /// A small PVH guest of one vCPU on Debian 13's kernel, without devices.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            pvh: true,
            boot: BootFrom::Ramdisk(Suite::Trixie, Ramdisk::Small),
            memory: 192,
            vcpus: 1,
            disks: Vec::new(),
            address: None,
            more: String::new(),
        }
    }

    /// A PV guest.
    pub fn pv(mut self) -> Self {
        self.pvh = false;
        self
    }

    /// What it boots.
    pub fn boot(mut self, boot: BootFrom) -> Self {
        self.boot = boot;
        self
    }

    /// xenstore utilities and iperf3 in its ramdisk.
    pub fn with_tools(mut self) -> Self {
        self.boot = BootFrom::Ramdisk(Suite::Trixie, Ramdisk::Tools);
        self
    }

    /// fio in its ramdisk, and memory for it.
    pub fn with_fio(mut self) -> Self {
        self.boot = BootFrom::Ramdisk(Suite::Trixie, Ramdisk::Full);
        self.memory = self.memory.max(384);
        self
    }

    /// Its memory in MiB.
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// Its vCPUs.
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// One more disk.
    pub fn disk(mut self, volume: &str) -> Self {
        self.disks.push(volume.to_owned());
        self
    }

    /// An interface with an address of the bed's network.
    pub fn net(mut self, address: &str) -> Self {
        self.address = Some(address.to_owned());
        self
    }

    /// One more line of the file.
    pub fn line(mut self, line: &str) -> Self {
        self.more.push_str(line);
        self.more.push('\n');
        self
    }

    /// The xl.cfg text.
    pub fn config(&self, setup: &mut Setup) -> Result<String> {
        let (kernel, ramdisk, mut cmdline) = match self.boot {
            BootFrom::Ramdisk(suite, kind) => (
                setup.linux(suite)?.vmlinuz,
                Some(setup.ramdisk(kind)?),
                // Under TCG, its self-tests of ciphers take a second or two of ten.
                "console=hvc0 loglevel=4 cryptomgr.notests".to_owned(),
            ),
            BootFrom::Grub => {
                let grub = setup.grub()?;
                (
                    if self.pvh { grub.pvh } else { grub.pv },
                    None,
                    String::new(),
                )
            }
        };
        let mut text = String::new();
        let kind = if self.pvh { "pvh" } else { "pv" };
        write!(text, "name = \"{}\"\ntype = \"{kind}\"\n", self.name)?;
        writeln!(text, "kernel = \"{}\"", kernel.display())?;
        if let Some(ramdisk) = ramdisk {
            writeln!(text, "ramdisk = \"{}\"", ramdisk.display())?;
        }
        if let (Some(address), BootFrom::Ramdisk(..)) = (&self.address, &self.boot) {
            write!(cmdline, " closer.ip={address}/24 closer.gw={HOST_ADDRESS}")?;
        }
        if !cmdline.is_empty() {
            writeln!(text, "cmdline = \"{cmdline}\"")?;
        }
        write!(text, "memory = {}\nvcpus = {}\n", self.memory, self.vcpus)?;
        if !self.disks.is_empty() {
            let disks = self.disks.iter().zip(b'a'..).map(|(volume, letter)| {
                format!(
                    "\"vdev=xvd{}, access=rw, target={volume}\"",
                    char::from(letter)
                )
            });
            writeln!(text, "disk = [ {} ]", disks.collect::<Vec<_>>().join(", "))?;
        }
        if self.address.is_some() {
            writeln!(text, "vif = [ \"\" ]")?;
        }
        // QEMU's TCG has no invariant TSC: by default Xen would trap each read of it.
        text.push_str("tsc_mode = \"native\"\n");
        text.push_str(&self.more);
        Ok(text)
    }
}

/// A guest with its console attached.
#[derive(Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its console.
    pub console: Console,
}

impl Guest {
    /// Runs a shell command, for [`RUN_LIMIT`] at most.
    pub fn run(&mut self, command: &str) -> Result<Answer> {
        self.console
            .run(command, RUN_LIMIT)
            .with_context(|| self.name.clone())
    }

    /// Runs one that must succeed; gives what it printed, trimmed.
    pub fn ok(&mut self, command: &str) -> Result<String> {
        self.ok_within(command, RUN_LIMIT)
    }

    /// The same with another deadline.
    pub fn ok_within(&mut self, command: &str, limit: Duration) -> Result<String> {
        let Answer { status, output } = self
            .console
            .run(command, limit)
            .with_context(|| self.name.clone())?;
        if status != 0 {
            bail!("{}: {command} gave {status}: {}", self.name, output.trim());
        }
        Ok(output.trim().to_owned())
    }
}
