//! A running machine: Xen and Closer in QEMU.

use crate::keys;
use crate::paths::Paths;
use crate::process::{self, POLL};
use crate::qemu::{self, BedFiles, BedOptions, Boot, HOST_ADDRESS, PVM_ADDRESS};
use crate::qmp::Qmp;
use crate::setup::Setup;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

/// What the pVM prints when the CLI can reach it.
const READY: &str = "closer: ready";
/// Time from QEMU's start to [`READY`]. A quiet machine needs a few seconds.
const READY_LIMIT: Duration = Duration::from_secs(240);
/// Time for QEMU to end after it was told to.
const QUIT_LIMIT: Duration = Duration::from_secs(20);
/// Time for Xen to answer a debug key.
const KEY_LIMIT: Duration = Duration::from_secs(30);
/// Silence after which its answer is over.
const KEY_QUIET: Duration = Duration::from_millis(700);
/// The pVM's TCP port for the CLI.
pub const RPC_PORT: u16 = 8006;

/// Whether the machine ends with us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// However we end.
    Ours,
    /// It goes on until `down`.
    Own,
}

/// A machine that runs, or did.
#[derive(Debug)]
pub struct Bed {
    /// Its files.
    pub files: BedFiles,
    /// Port of this machine that reaches the pVM's RPC.
    pub rpc_port: u16,
    /// Seconds from QEMU's start to the readiness line.
    pub ready_after: Duration,
    started: Instant,
    /// Lines of the console, with the time after the start at which they were seen.
    seen: Vec<(String, Duration)>,
    pid: u32,
    child: Option<Child>,
    cli: PathBuf,
}

impl Bed {
    /// Starts a machine with its files in `dir` and waits until the pVM is ready. Disks
    /// and keys that are there already are used again.
    pub fn start(setup: &mut Setup, options: &BedOptions, dir: &Path, life: Life) -> Result<Self> {
        Self::start_until(setup, options, dir, life, READY)
    }

    /// The same, but waits for another line of the pVM.
    pub fn start_until(
        setup: &mut Setup,
        options: &BedOptions,
        dir: &Path,
        life: Life,
        line: &str,
    ) -> Result<Self> {
        let paths = setup.paths().clone();
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let files = BedFiles {
            dir: dir.canonicalize().context("the bed's folder went away")?,
        };
        if let Some(pid) = running(&files) {
            bail!(
                "a bed runs already in {} (QEMU is process {pid})",
                files.dir.display()
            );
        }
        forget(&files)?;
        make_disks(options, &files)?;
        let rpc_port = free_port()?;
        let kernel = options.pvm.clone().unwrap_or_else(|| paths.pvm());
        ensure!(
            kernel.is_file(),
            "{} is not there: run cargo xtask build",
            kernel.display()
        );
        let boot = Boot {
            xen: setup.xen(options.xen)?,
            kernel,
            cmdline: options.pvm_args.clone(),
            module: Some(configure(&paths, options, &files, rpc_port)?),
        };
        let command = qemu::command(options, &files, &boot, Some((rpc_port, RPC_PORT)))?;
        let mut bed = Self::spawn(command, files, life, rpc_port, paths.cli())?;
        let ready = bed.wait_for_line(line, READY_LIMIT);
        bed.or_kill(ready)?;
        Ok(bed)
    }

    /// Starts a machine with another dom0, by its own command, and waits for the line
    /// [`crate::baseline::READY`].
    pub fn start_other(
        setup: &Setup,
        options: &BedOptions,
        files: BedFiles,
        command: Command,
        life: Life,
    ) -> Result<Self> {
        make_disks(options, &files)?;
        let mut bed = Self::spawn(command, files, life, 0, setup.paths().cli())?;
        let ready = bed.wait_for_line(crate::baseline::READY, READY_LIMIT);
        bed.or_kill(ready)?;
        Ok(bed)
    }

    fn spawn(
        command: Command,
        files: BedFiles,
        life: Life,
        rpc_port: u16,
        cli: PathBuf,
    ) -> Result<Self> {
        let started = Instant::now();
        let (pid, child) = spawn(command, &files, life)?;
        process::end_on_interrupt(pid);
        let ready_after = Duration::ZERO;
        Ok(Self {
            files,
            rpc_port,
            ready_after,
            started,
            seen: Vec::new(),
            pid,
            child,
            cli,
        })
    }

    /// After the wait for a dom0: notes its time, or ends the machine.
    fn or_kill(&mut self, ready: Result<()>) -> Result<()> {
        self.ready_after = self.started.elapsed();
        let Err(error) = ready else {
            if self.child.is_none() {
                process::outlives_interrupt(self.pid);
            }
            return Ok(());
        };
        let last = process::tail(&self.files.serial(), 25);
        self.kill()?;
        Err(error.context(format!(
            "the machine did not come up; the end of {}:\n{last}",
            self.files.serial().display()
        )))
    }

    /// Time between the first lines with two texts, as far as they came while the machine
    /// was waited for.
    pub fn between(&self, from: &str, to: &str) -> Option<Duration> {
        let time = |text: &str| {
            self.seen
                .iter()
                .find(|(line, _)| line.contains(text))
                .map(|(_, time)| *time)
        };
        time(to)?.checked_sub(time(from)?)
    }

    /// Whether QEMU still runs.
    pub fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => running(&self.files).is_some(),
        }
    }

    /// Waits until a line with `text` is on the serial console.
    pub fn wait_for_line(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            // Looked at before the log, so that a last line is not missed.
            let runs = self.is_running();
            let serial = self.serial();
            let now = self.started.elapsed();
            for line in serial.lines().skip(self.seen.len()) {
                self.seen.push((line.to_owned(), now));
            }
            if serial.lines().any(|line| line.contains(text)) {
                return Ok(());
            }
            if let Some(line) = serial.lines().find(|line| is_the_end(line)) {
                bail!("{}", line.trim());
            }
            if !runs {
                bail!("QEMU ended: {}", process::tail(&self.files.qemu_log(), 5));
            }
            if Instant::now() > deadline {
                bail!(
                    "no line {text:?} on the console within {} s",
                    limit.as_secs()
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until QEMU has ended by itself (the host powered itself off).
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.is_running() {
            ensure!(
                Instant::now() < deadline,
                "the machine is still on after {} s",
                limit.as_secs()
            );
            thread::sleep(POLL);
        }
        process::outlives_interrupt(self.pid);
        forget(&self.files)
    }

    /// What Xen and the pVM printed so far.
    pub fn serial(&self) -> String {
        fs::read(self.files.serial())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Asks Xen itself, by one of its debug keys (`h` lists them); gives what it printed.
    pub fn ask_xen(&mut self, key: char) -> Result<String> {
        let mut socket = UnixStream::connect(self.files.serial_socket())
            .context("cannot reach the serial console")?;
        socket
            .set_read_timeout(Some(KEY_QUIET))
            .context("cannot wait for the serial console")?;
        // Three times CTRL-a turns the input to Xen, and again back to the pVM. Xen loses
        // what is typed while it prints: each answer is waited for.
        type_to_xen(&mut socket, "\u{1}\u{1}\u{1}", "input to Xen")?;
        let pressed = format!("'{key}' pressed");
        let answer = type_to_xen(&mut socket, &key.to_string(), &pressed)?;
        type_to_xen(&mut socket, "\u{1}\u{1}\u{1}", "input to DOM0")?;
        Ok(answer)
    }

    /// The CLI, told which host.
    pub fn cli(&self) -> Command {
        self.cli_with(&self.files.host_file())
    }

    /// The CLI with another connection file.
    pub fn cli_with(&self, host_file: &Path) -> Command {
        let mut command = Command::new(&self.cli);
        command.arg("--host-file").arg(host_file);
        command
    }

    /// Pulls the plug: what the guests synced is on the disk, no more.
    pub fn kill(&mut self) -> Result<()> {
        if self.is_running() {
            quit(&self.files, self.pid)?;
        }
        if let Some(child) = &mut self.child {
            process::wait(child, QUIT_LIMIT)?;
        }
        process::outlives_interrupt(self.pid);
        forget(&self.files)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.child.is_some() && self.is_running() {
            process::kill(self.pid, "KILL");
            if let Some(Err(error)) = self.child.as_mut().map(Child::wait) {
                eprintln!("QEMU {} is left behind: {error}", self.pid);
            }
        }
    }
}

/// Types to Xen; gives what it printed since, once `sign` is there and it is quiet. All is
/// read from the socket: QEMU's serial port stands still when nobody does.
fn type_to_xen(socket: &mut UnixStream, keys: &str, sign: &str) -> Result<String> {
    socket
        .write_all(keys.as_bytes())
        .context("cannot type to Xen")?;
    let deadline = Instant::now() + KEY_LIMIT;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match socket.read(&mut chunk) {
            Ok(0) => bail!("the serial console was closed"),
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let text = String::from_utf8_lossy(&answer);
                if text.contains(sign) {
                    return Ok(text.into_owned());
                }
            }
            Err(error) => return Err(error).context("cannot read the serial console"),
        }
        ensure!(Instant::now() < deadline, "Xen does not say {sign:?}");
    }
}

/// Whether Xen says that there is no dom0 any more, or Closer that it does not go on.
fn is_the_end(line: &str) -> bool {
    [
        "Hardware Dom0 ",
        "Domain 0 crashed",
        "Panic on CPU",
        "closer: halted",
    ]
    .iter()
    .any(|mark| line.contains(mark))
}

/// The QEMU process of a bed's folder, if it runs.
pub fn running(files: &BedFiles) -> Option<u32> {
    let pid = fs::read_to_string(files.pid()).ok()?.trim().parse().ok()?;
    let marker = files.qmp().to_string_lossy().into_owned();
    process::is_alive(pid, &marker).then_some(pid)
}

/// Ends the QEMU of a bed's folder; `false`: there was none.
pub fn stop(files: &BedFiles) -> Result<bool> {
    let Some(pid) = running(files) else {
        forget(files)?;
        return Ok(false);
    };
    quit(files, pid)?;
    forget(files)?;
    Ok(true)
}

/// Asks QEMU to end, and kills it if it does not.
fn quit(files: &BedFiles, pid: u32) -> Result<()> {
    let marker = files.qmp().to_string_lossy().into_owned();
    let asked = Qmp::connect(&files.qmp()).and_then(|mut qmp| qmp.execute("quit", json!({})));
    if asked.is_err() {
        process::kill(pid, "TERM");
    }
    let deadline = Instant::now() + QUIT_LIMIT;
    while process::is_alive(pid, &marker) {
        if Instant::now() > deadline {
            process::kill(pid, "KILL");
            return Ok(());
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Removes what only a running QEMU has.
fn forget(files: &BedFiles) -> Result<()> {
    for file in [files.pid(), files.qmp(), files.serial_socket()] {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(anyhow!(error).context(format!("cannot remove {}", file.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

fn make_disks(options: &BedOptions, files: &BedFiles) -> Result<()> {
    let extra = options.extra_disk.iter().enumerate();
    let extra = extra.map(|(index, size)| (files.extra_disk(index + 1), *size));
    for (file, mib) in std::iter::once((files.disk(), options.disk_size)).chain(extra) {
        if !file.exists() {
            let disk =
                File::create(&file).with_context(|| format!("cannot create {}", file.display()))?;
            disk.set_len(mib << 20)
                .with_context(|| format!("cannot size {}", file.display()))?;
        }
    }
    Ok(())
}

/// Writes the boot archive and the CLI's connection file; gives the archive.
fn configure(
    paths: &Paths,
    options: &BedOptions,
    files: &BedFiles,
    rpc_port: u16,
) -> Result<PathBuf> {
    let host = keys::pair(paths, &files.dir, "host")?;
    let admin = keys::pair(paths, &files.dir, "admin")?;
    let folder = files.dir.join("archive.d");
    fs::create_dir_all(&folder).context("cannot create the archive's folder")?;
    let conf = format!(
        "# Written by cargo xtask; see toolstack/boot.\nhostname = bed\nip = {PVM_ADDRESS}/24\n\
         gateway = {HOST_ADDRESS}\nport = {RPC_PORT}\n"
    );
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    write("closer.conf", &conf)?;
    write("admins", &format!("{} bed\n", admin.public))?;
    write("guests", &options.guest.join("\n"))?;
    fs::copy(&host.private, folder.join("host.key")).context("cannot copy the host's key")?;
    let archive = files.archive();
    let out = File::create(&archive).context("cannot create the boot archive")?;
    process::run(
        Command::new("sh")
            .args([
                "-c",
                "printf '%s\\n' closer.conf host.key admins guests | cpio -o -H newc --quiet",
            ])
            .current_dir(&folder)
            .stdout(out),
    )?;
    let connection = format!(
        "# Written by cargo xtask: how the CLI reaches the bed.\naddress = \"127.0.0.1:{rpc_port}\"\n\
         host_key = \"{}\"\nidentity = \"{}\"\n",
        host.public,
        admin.private.display()
    );
    fs::write(files.host_file(), connection).context("cannot write the connection file")?;
    Ok(archive)
}

/// A TCP port of 127.0.0.1 that nobody listens on now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free TCP port")?;
    Ok(listener.local_addr().context("no free TCP port")?.port())
}

fn spawn(qemu: Command, files: &BedFiles, life: Life) -> Result<(u32, Option<Child>)> {
    let log = File::create(files.qemu_log()).context("cannot create QEMU's log")?;
    let copy = log.try_clone().context("cannot share QEMU's log")?;
    // The log of an earlier run must not answer for this one.
    fs::write(files.serial(), "").context("cannot empty the console's log")?;
    fs::write(files.dir.join("qemu.command"), process::show(&qemu))
        .context("cannot note the command")?;
    match life {
        Life::Ours => {
            let mut command = Command::new("setpriv");
            command
                .args(["--pdeathsig", "KILL"])
                .arg(qemu.get_program())
                .args(qemu.get_args());
            let child = command
                .stdin(std::process::Stdio::null())
                .stdout(log)
                .stderr(copy)
                .spawn();
            let child = child.context("cannot start QEMU (through setpriv of util-linux)")?;
            fs::write(files.pid(), child.id().to_string()).context("cannot note QEMU's process")?;
            Ok((child.id(), Some(child)))
        }
        Life::Own => {
            let mut command = qemu;
            command.arg("-daemonize").arg("-pidfile").arg(files.pid());
            command
                .stdin(std::process::Stdio::null())
                .stdout(log)
                .stderr(copy);
            let ended = command.status().context("cannot start QEMU")?;
            ensure!(
                ended.success(),
                "QEMU failed: {}",
                process::tail(&files.qemu_log(), 5)
            );
            let pid = running(files).context("QEMU ended at once")?;
            Ok((pid, None))
        }
    }
}
