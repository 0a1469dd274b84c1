//! `cargo xtask demo`: from nothing to a Debian guest on Closer, step by step.

use crate::bed::free_port;
use crate::build;
use crate::images::{DEBIAN_ADDRESS, DEBIAN_PAGE};
use crate::lab::{BOOT_LIMIT, BootFrom, Guest, GuestSpec, Lab, TRANSFER_LIMIT};
use crate::paths::Paths;
use crate::qemu::{BedOptions, Forward, HOST_ADDRESS};
use crate::report::{flush, run_name, seconds};
use crate::setup::{Setup, XenVersion};
use crate::web;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Name of the guest and of its volume.
const NAME: &str = "debian";
/// Xen's own pages that a guest's life may leave in its pools, in bytes.
const XEN_SLACK: u64 = 16 * 4096;
const WEB_LIMIT: Duration = Duration::from_secs(60);

/// Runs it; the last line is `demo: ok`.
pub fn run(paths: &Paths) -> Result<()> {
    let logs = paths.logs(&run_name("demo"));
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let started = Instant::now();
    let result = steps(paths, &logs, started);
    match result {
        Ok(()) => {
            // It is large and holds nothing new.
            fs::remove_file(logs.join("disk.img")).context("cannot remove the demo's disk")?;
            println!("logs: {}", logs.display());
            println!("demo: ok");
            Ok(())
        }
        Err(error) => Err(error.context(format!(
            "demo failed after {}; logs of Xen, Closer and the guest: {}",
            seconds(started.elapsed()),
            logs.display()
        ))),
    }
}

/// Prints a step with its time; what it shows follows, indented.
fn step<T>(since: Instant, name: &str, act: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
    println!("[{:>7}] {name}", seconds(since.elapsed()));
    flush();
    let started = Instant::now();
    let (value, shown) = act().map_err(|error| error.context(format!("step failed: {name}")))?;
    for line in shown.lines() {
        println!("            {line}");
    }
    println!("            done in {}", seconds(started.elapsed()));
    Ok(value)
}

fn nothing() -> String {
    String::new()
}

fn steps(paths: &Paths, logs: &Path, since: Instant) -> Result<()> {
    let mut setup = step(since, "install and fetch what is missing", || {
        let mut setup = Setup::open(paths)?;
        setup.xen(XenVersion::V4_20)?;
        setup.debian_root()?;
        setup.grub()?;
        Ok((setup, nothing()))
    })?;
    step(since, "build Closer", || {
        Ok(((), build::build_logged(paths, logs)?))
    })?;
    let forward = Forward {
        host_port: free_port()?,
        address: DEBIAN_ADDRESS.to_owned(),
        port: 80,
    };
    let port = forward.host_port;
    let options = BedOptions {
        forward: vec![forward],
        ..BedOptions::default()
    };
    let image = setup.debian_root()?.to_string_lossy().into_owned();
    let mut lab = Lab::new(&mut setup, options, logs)?;
    step(
        since,
        "boot Xen and Closer: 2 sockets, 4 CPUs, NVMe, igb",
        || {
            let ready = lab.bed()?.ready_after;
            Ok((
                (),
                format!(
                    "Closer up after {}\n{}",
                    seconds(ready),
                    lab.closer(&["info"])?
                ),
            ))
        },
    )?;
    step(
        since,
        "import a Debian root file system as a volume",
        || {
            lab.closer_within(&["volume", "import", NAME, &image], TRANSFER_LIMIT)?;
            Ok(((), lab.closer(&["volume", "list"])?))
        },
    )?;
    let free_before = lab.free_memory()?;
    let spec = GuestSpec::new(NAME)
        .boot(BootFrom::Grub)
        .memory(512)
        .vcpus(2);
    let spec = spec.disk(NAME).net(DEBIAN_ADDRESS);
    let mut guest = step(
        since,
        "create a PVH guest that boots from it, through GRUB",
        || {
            let guest = lab.create(&spec)?;
            Ok((guest, lab.closer(&["list"])?))
        },
    )?;
    step(since, "wait for its shell", || {
        guest.console.wait_for_shell(BOOT_LIMIT * 2)?;
        Ok(((), nothing()))
    })?;
    step(since, "the guest's kernel and root", || {
        show_system(&mut guest)
    })?;
    step(
        since,
        "a web page served by the guest, fetched from outside",
        || {
            let page = String::from_utf8_lossy(&web::get(port, "/", WEB_LIMIT)?).into_owned();
            ensure!(page.starts_with(DEBIAN_PAGE), "the page is {page:?}");
            Ok(((), page))
        },
    )?;
    step(
        since,
        "a web page from outside, fetched by the guest",
        || fetch_outside(&mut guest),
    )?;
    step(since, "closer list", || Ok(((), lab.closer(&["list"])?)))?;
    step(since, "shut the guest down", || {
        lab.closer(&["shutdown", NAME])?;
        lab.wait_gone(NAME, BOOT_LIMIT)?;
        Ok(((), nothing()))
    })?;
    step(since, "memory is back", || {
        let free_after = lab.settled_free_memory(free_before.saturating_sub(XEN_SLACK))?;
        let kept = free_before.saturating_sub(free_after);
        let shown = format!(
            "free before: {free_before} bytes, after: {free_after} bytes; \
             {kept} bytes in tables that Xen keeps, {XEN_SLACK} at most"
        );
        ensure!(kept <= XEN_SLACK, "{shown}");
        Ok(((), shown))
    })?;
    lab.stop()
}

fn show_system(guest: &mut Guest) -> Result<((), String)> {
    let kernel = guest.ok("uname -a")?;
    let root = guest.ok("findmnt -n -o SOURCE,FSTYPE,SIZE /")?;
    ensure!(root.starts_with("/dev/xvda"), "the root is {root}");
    Ok(((), format!("{kernel}\nroot: {root}")))
}

/// From the gateway, behind which this machine is.
fn fetch_outside(guest: &mut Guest) -> Result<((), String)> {
    let page = "Hello from outside";
    let server = web::Server::start(page.as_bytes().to_vec())?;
    let port = server.port();
    let text = guest.ok(&format!(
        "busybox wget -q -O - http://{HOST_ADDRESS}:{port}/"
    ))?;
    ensure!(text == page, "the guest got {text:?}");
    Ok(((), text))
}
