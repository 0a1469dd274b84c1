//! Other programs: run, with a deadline, and never left behind.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// How often a wait looks again.
pub const POLL: Duration = Duration::from_millis(50);

/// Processes that Ctrl-C ends before it ends us.
static TO_END: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Makes Ctrl-C (and SIGTERM) end what we started, then us.
pub fn end_children_on_interrupt() -> Result<()> {
    ctrlc::set_handler(|| {
        eprintln!("interrupted: ending what was started");
        if let Ok(pids) = TO_END.lock() {
            for pid in pids.iter() {
                kill(*pid, "TERM");
            }
        }
        std::process::exit(130);
    })
    .context("cannot watch for Ctrl-C")
}

/// Adds `pid` to what Ctrl-C ends.
pub fn end_on_interrupt(pid: u32) {
    if let Ok(mut pids) = TO_END.lock() {
        pids.insert(pid);
    }
}

/// Takes `pid` off that list: it ended, or it is to outlive us.
pub fn outlives_interrupt(pid: u32) {
    if let Ok(mut pids) = TO_END.lock() {
        pids.remove(&pid);
    }
}

/// Sends a signal by name; a process that is gone already is no error.
pub fn kill(pid: u32, signal: &str) {
    let sent = Command::new("kill")
        .args(["-s", signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
    if let Err(error) = sent {
        eprintln!("cannot run kill: {error}");
    }
}

/// Whether the process exists and is the one meant: `marker` stands in its arguments.
pub fn is_alive(pid: u32, marker: &str) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| String::from_utf8_lossy(&line).contains(marker))
}

/// The command as one line, for messages.
pub fn show(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// Runs a command to its end with our own standard streams; anything but success is
/// an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", show(command)))?;
    check(command, status)
}

/// Runs a command and gives what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", show(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            show(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command with its output in `log`; on failure the log's end is in the error.
pub fn run_logged(command: &mut Command, log: &Path, limit: Duration) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let copy = file.try_clone().context("cannot share the log file")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(copy)
        .spawn()
        .with_context(|| format!("cannot start {}", show(command)))?;
    let status =
        wait(&mut child, limit).with_context(|| format!("{}\n{}", show(command), tail(log, 20)))?;
    check(command, status).with_context(|| format!("{}\n{}", log.display(), tail(log, 40)))
}

/// What a bounded run gave.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code; a signal is 128 and its number, as in a shell.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs a command with its output kept, for `limit` at most.
pub fn capture(command: &mut Command, limit: Duration) -> Result<Finished> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", show(command)))?;
    let out = child.stdout.take().context("no standard output")?;
    let err = child.stderr.take().context("no standard error")?;
    let out = thread::spawn(move || read_all(out));
    let err = thread::spawn(move || read_all(err));
    let status = wait(&mut child, limit).with_context(|| show(command));
    let text = |thread: thread::JoinHandle<String>| thread.join().unwrap_or_default();
    let (out, err) = (text(out), text(err));
    let status = status.with_context(|| format!("printed so far: {out}{err}"))?;
    Ok(Finished {
        code: code(status),
        out,
        err,
    })
}

fn read_all(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = from.read_to_end(&mut bytes) {
        bytes.extend_from_slice(format!("[cannot read on: {error}]").as_bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A shell's exit code for a status.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

/// Waits for a child; at the deadline it is killed, and that is an error.
pub fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    end_on_interrupt(child.id());
    let deadline = Instant::now() + limit;
    let result = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
            Ok(None) => {
                let ended = child.kill().and_then(|()| child.wait());
                break Err(anyhow::anyhow!(
                    "did not end within {} s (killed: {ended:?})",
                    limit.as_secs()
                ));
            }
            Err(error) => break Err(error.into()),
        }
    };
    outlives_interrupt(child.id());
    result
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{} failed: {status}", show(command));
    }
    Ok(())
}

/// The last lines of a file, for an error message.
pub fn tail(path: &Path, lines: usize) -> String {
    let Ok(bytes) = fs::read(path) else {
        return format!("(no {})", path.display());
    };
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let first = all.len().saturating_sub(lines);
    all.get(first..).unwrap_or_default().join("\n")
}

/// `command`, run as root: as it is when we are root, else through sudo.
pub fn as_root(program: &str) -> Result<Command> {
    if is_root()? {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

/// Whether we are root.
pub fn is_root() -> Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}
