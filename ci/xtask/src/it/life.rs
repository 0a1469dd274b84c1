//! Shutdown, reboot, crash, pause; the host's own power-off and restart.

use super::{Test, passed};
use crate::lab::{BOOT_LIMIT, CLI_LIMIT, GuestSpec, Lab, TRANSFER_LIMIT, is_refusal};
use crate::process;
use crate::qemu::BedOptions;
use crate::report::Outcome;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test {
        name: "shutdown-ends-the-guest",
        run: shutdown,
    },
    Test {
        name: "guest-powers-itself-off",
        run: poweroff_inside,
    },
    Test {
        name: "guest-reboots-with-no-cli",
        run: reboot_inside,
    },
    Test {
        name: "poweroff-restarts-and-reboot-destroys-if-asked",
        run: ends_as_asked,
    },
    Test {
        name: "reboot-command",
        run: reboot_command,
    },
    Test {
        name: "a-guest-that-reboots-keeps-its-volumes",
        run: reboot_keeps_volumes,
    },
    Test {
        name: "crash-destroys-by-default",
        run: crash_destroys,
    },
    Test {
        name: "crash-restarts-if-asked",
        run: crash_restarts,
    },
    Test {
        name: "crash-preserves-if-asked",
        run: crash_preserves,
    },
    Test {
        name: "crash-renames-and-restarts-if-asked",
        run: crash_renames,
    },
    Test {
        name: "a-renamed-guest-reboots-under-its-name",
        run: renamed,
    },
    Test {
        name: "who-waits-for-a-name-gets-no-guest-of-another",
        run: waits_for_a_name,
    },
    Test {
        name: "pause-stops-and-unpause-goes-on",
        run: pause,
    },
    Test {
        name: "host-reboots-and-starts-its-guests",
        run: host_reboot,
    },
    Test {
        name: "host-powers-off",
        run: host_poweroff,
    },
    Test {
        name: "host-ends-with-an-answer-at-once",
        run: host_ends_at_once,
    },
    Test {
        name: "a-host-that-goes-down-starts-nothing",
        run: going_down,
    },
];

fn shutdown(lab: &mut Lab) -> Result<Outcome> {
    lab.boot(&GuestSpec::new("a"))?;
    lab.closer(&["shutdown", "a"])?;
    lab.wait_gone("a", BOOT_LIMIT)?;
    passed()
}

/// Xenstore, and who asks for its volume, are told the name it has now.
fn renamed(lab: &mut Lab) -> Result<Outcome> {
    lab.volume("v", "8M")?;
    let mut guest = lab.boot(&GuestSpec::new("a").disk("v"))?;
    let old = lab.domid("a")?;
    lab.refused(&["volume", "remove", "v"], "guest a")?;
    lab.refused(&["rename", "a", "Domain-0"], "it is the host's own")?;
    lab.closer(&["rename", "a", "b"])?;
    has_name(lab, "b")?;
    guest.ok("(sleep 1; /sbin/reboot) >/dev/null 2>&1 &")?;
    lab.wait_reborn("b", old, BOOT_LIMIT)?;
    has_name(lab, "b")?;
    lab.closer(&["destroy", "b"])?;
    lab.closer(&["volume", "remove", "v"])?;
    passed()
}

/// The one guest has this name at `/local/domain/N` and `/vm/UUID`, and as the user of `v`.
fn has_name(lab: &mut Lab, name: &str) -> Result<()> {
    lab.refused(&["volume", "remove", "v"], &format!("guest {name}"))?;
    let tree = lab.closer(&["xenstore-ls"])?;
    let wanted = format!("name = \"{name}\"");
    let count = tree.matches(&wanted).count();
    ensure!(count == 2, "{wanted} {count} times in {tree}");
    Ok(())
}

/// All of them wait for the guest while it is made, and one gets it. Nobody has the name that
/// the others asked for then, and what became of the guest is none of theirs.
fn waits_for_a_name(lab: &mut Lab) -> Result<Outcome> {
    // So much memory takes a while to be built, for all to come in.
    let file = lab.write_config(&GuestSpec::new("a").memory(1024))?;
    let mut create = lab.bed()?.cli();
    create.arg("create").arg(file);
    // Who ends it comes last, so that it has another name by his turn.
    let asked: [(&[&str], Option<&str>); 3] = [
        (&["rename", "a", "b"], Some("b")),
        (&["rename", "a", "c"], Some("c")),
        (&["destroy", "a"], None),
    ];
    let done = thread::scope(|scope| {
        let creating = scope.spawn(|| process::capture(&mut create, TRANSFER_LIMIT));
        loop {
            let over = creating.is_finished();
            if lab.listed("a")?.is_some() {
                break;
            }
            ensure!(!over, "it is not listed after its create");
        }
        let mut asking = Vec::new();
        for (verb, left) in asked {
            let mut command = lab.bed()?.cli();
            command.args(verb);
            let answer = scope.spawn(move || process::capture(&mut command, CLI_LIMIT));
            asking.push((verb, left, answer));
        }
        let mut done = Vec::new();
        for (verb, left, answer) in asking {
            let answer = answer.join().map_err(|_| anyhow!("a thread panicked"))??;
            if answer.code == 0 {
                done.push((verb, left));
            } else {
                is_refusal(&answer, "no such guest: a").with_context(|| verb.join(" "))?;
            }
        }
        let created = creating
            .join()
            .map_err(|_| anyhow!("a thread panicked"))??;
        ensure!(created.code == 0, "create: {}", created.err);
        Ok(done)
    })?;
    let [(_, left)] = done.as_slice() else {
        bail!("not one of them got it: {done:?}");
    };
    let guests = lab.guests()?;
    ensure!(
        guests.iter().map(String::as_str).eq(*left),
        "after {done:?} there is {guests:?}"
    );
    lab.clear()?;
    passed()
}

fn poweroff_inside(lab: &mut Lab) -> Result<Outcome> {
    let mut guest = lab.boot(&GuestSpec::new("a").pv())?;
    // The answer may or may not come out before the console is gone.
    let ended = guest
        .console
        .run("(sleep 1; /sbin/poweroff) &", Duration::from_secs(10));
    drop(ended);
    lab.wait_gone("a", BOOT_LIMIT)?;
    passed()
}

/// The image is kept on the host: nothing is attached while the guest is made anew.
fn reboot_inside(lab: &mut Lab) -> Result<Outcome> {
    let mut guest = lab.boot(&GuestSpec::new("a"))?;
    let old = lab.domid("a")?;
    guest.ok("(sleep 1; /sbin/reboot) >/dev/null 2>&1 &")?;
    drop(guest);
    lab.wait_reborn("a", old, BOOT_LIMIT)?;
    let mut guest = lab.attach("a")?;
    guest.console.wait_for_shell(BOOT_LIMIT)?;
    let uptime: f64 = guest.ok("cut -d' ' -f1 /proc/uptime")?.parse()?;
    ensure!(
        uptime < 120.0,
        "the guest is up since {uptime} s: it did not reboot"
    );
    passed()
}

/// Each ends as the other would without its line.
fn ends_as_asked(lab: &mut Lab) -> Result<Outcome> {
    let mut off = lab.create(&GuestSpec::new("off").pv().line("on_poweroff = \"restart\""))?;
    let mut again = lab.create(&GuestSpec::new("again").pv().line("on_reboot = \"destroy\""))?;
    let old = lab.domid("off")?;
    for (guest, verb) in [(&mut off, "poweroff"), (&mut again, "reboot")] {
        guest.console.wait_for_shell(BOOT_LIMIT)?;
        guest.ok(&format!("(sleep 1; /sbin/{verb}) >/dev/null 2>&1 &"))?;
    }
    lab.wait_gone("again", BOOT_LIMIT)?;
    lab.wait_reborn("off", old, BOOT_LIMIT)?;
    // Time in which a guest that was only being made anew would be back.
    lab.attach("off")?.console.wait_for_shell(BOOT_LIMIT)?;
    let left = lab.guests()?;
    ensure!(left == ["off"], "there is {left:?}");
    passed()
}

fn reboot_command(lab: &mut Lab) -> Result<Outcome> {
    lab.boot(&GuestSpec::new("a").pv())?;
    let old = lab.domid("a")?;
    lab.closer(&["reboot", "a"])?;
    lab.wait_reborn("a", old, BOOT_LIMIT)?;
    lab.attach("a")?.console.wait_for_shell(BOOT_LIMIT)?;
    passed()
}

/// From before the end of its domain until it has the next, nobody else gets its volume.
fn reboot_keeps_volumes(lab: &mut Lab) -> Result<Outcome> {
    lab.volume("v", "8M")?;
    // So much memory takes Xen a while to free, and for that while the guest has no device.
    let mut guest = lab.boot(&GuestSpec::new("a").memory(1024).disk("v"))?;
    let old = lab.domid("a")?;
    let other = lab.write_config(&GuestSpec::new("b").disk("v"))?;
    let other = other.to_str().context("the folder's name is not UTF-8")?;
    guest.ok("(sleep 1; /sbin/reboot) >/dev/null 2>&1 &")?;
    drop(guest);
    // Several at once, so that one comes in a while of a tenth of a second.
    let remove = ["volume", "remove", "v"].as_slice();
    let mut commands = Vec::new();
    for verb in [remove, remove, remove, remove, &["create", other]] {
        let mut command = lab.bed()?.cli();
        command.args(verb);
        commands.push(command);
    }
    let reborn = AtomicBool::new(false);
    thread::scope(|scope| {
        let refusals: Vec<_> = commands
            .into_iter()
            .map(|command| scope.spawn(|| refused_until(command, &reborn)))
            .collect();
        let waited = lab.wait_reborn("a", old, BOOT_LIMIT);
        reborn.store(true, Ordering::Relaxed);
        for refused in refusals {
            refused.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        waited
    })?;
    let mut guest = lab.attach("a")?;
    guest.console.wait_for_shell(BOOT_LIMIT)?;
    guest.ok("head -c 4096 /dev/xvda | wc -c | grep -qx 4096")?;
    lab.closer(&["destroy", "a"])?;
    lab.closer(&["volume", "remove", "v"])?;
    passed()
}

/// Asks over and over for what the volume's owner keeps everybody from.
fn refused_until(mut command: Command, done: &AtomicBool) -> Result<()> {
    while !done.load(Ordering::Relaxed) {
        let answer = process::capture(&mut command, CLI_LIMIT)?;
        is_refusal(&answer, "volume v is in use by guest a")
            .with_context(|| process::show(&command))?;
    }
    Ok(())
}

/// Boots a guest with `line` in its file and makes its kernel panic.
fn crash(lab: &mut Lab, line: &str) -> Result<u64> {
    crash_one(lab, &GuestSpec::new("a").line(line))
}

/// Boots a guest and has its kernel panic; gives its domid.
pub fn crash_one(lab: &mut Lab, spec: &GuestSpec) -> Result<u64> {
    let mut guest = lab.boot(spec)?;
    let domid = lab.domid(&spec.name)?;
    let ended = guest.console.run(
        "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger",
        Duration::from_secs(5),
    );
    ensure!(
        ended.is_err(),
        "the guest lives on after its kernel's panic: {ended:?}"
    );
    Ok(domid)
}

fn crash_destroys(lab: &mut Lab) -> Result<Outcome> {
    crash(lab, "")?;
    lab.wait_gone("a", CLI_LIMIT)?;
    passed()
}

fn crash_restarts(lab: &mut Lab) -> Result<Outcome> {
    let old = crash(lab, "on_crash = \"restart\"")?;
    lab.wait_reborn("a", old, BOOT_LIMIT)?;
    lab.attach("a")?.console.wait_for_shell(BOOT_LIMIT)?;
    passed()
}

fn crash_preserves(lab: &mut Lab) -> Result<Outcome> {
    crash(lab, "on_crash = \"preserve\"")?;
    thread::sleep(Duration::from_secs(3));
    let listed = lab.listed("a")?.context("the crashed guest is not kept")?;
    let state = listed["state"].as_str().unwrap_or_default().to_lowercase();
    ensure!(state == "crashed", "its state is {state}, not crashed");
    let log = lab.closer(&["console", "--log", "a"])?;
    ensure!(
        log.contains("sysrq"),
        "the kept console does not show the panic"
    );
    passed()
}

/// The crashed guest is kept to be looked at; the new one has its name and its disk.
fn crash_renames(lab: &mut Lab) -> Result<Outcome> {
    lab.volume("v", "8M")?;
    let old = crash(
        lab,
        "on_crash = \"rename-restart\"\ndisk = [ \"vdev=xvda, access=rw, target=v\" ]",
    )?;
    lab.wait_reborn("a", old, BOOT_LIMIT)?;
    let mut guest = lab.attach("a")?;
    guest.console.wait_for_shell(BOOT_LIMIT)?;
    guest.ok("head -c 4096 /dev/xvda | wc -c | grep -qx 4096")?;
    let kept = format!("a-{old}");
    let listed = lab
        .listed(&kept)?
        .with_context(|| format!("there is no {kept}"))?;
    ensure!(
        listed["domid"] == old && listed["state"] == "crashed",
        "what is kept is another: {listed}"
    );
    let log = lab.closer(&["console", "--log", &kept])?;
    ensure!(
        log.contains("sysrq"),
        "the kept console does not show the panic"
    );
    lab.closer(&["destroy", &kept])?;
    ensure!(
        guest.ok("echo alive")? == "alive",
        "the new guest was harmed"
    );
    // The disk is the new one's, under whatever name.
    lab.closer(&["rename", "a", "b"])?;
    lab.refused(&["volume", "remove", "v"], "guest b")?;
    lab.closer(&["destroy", "b"])?;
    lab.closer(&["volume", "remove", "v"])?;
    let left = lab.guests()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    passed()
}

fn pause(lab: &mut Lab) -> Result<Outcome> {
    let mut guest = lab.boot(&GuestSpec::new("a"))?;
    lab.refused(&["unpause", "a"], "guest a is not paused")?;
    lab.closer(&["pause", "a"])?;
    for verb in ["pause", "shutdown", "reboot"] {
        lab.refused(&[verb, "a"], "guest a is paused")?;
    }
    let listed = lab.listed("a")?.context("the paused guest is not listed")?;
    let state = listed["state"].as_str().unwrap_or_default().to_lowercase();
    ensure!(state == "paused", "its state is {state}, not paused");
    let silent = guest.console.run("true", Duration::from_secs(3));
    ensure!(silent.is_err(), "a paused guest answers");
    lab.closer(&["unpause", "a"])?;
    lab.refused(&["unpause", "a"], "guest a is not paused")?;
    guest.console.wait_for_shell(CLI_LIMIT)?;
    passed()
}

/// The machine resets, and the guests of the boot archive are there again with nobody asking.
fn host_reboot(lab: &mut Lab) -> Result<Outcome> {
    let options = BedOptions {
        allow_reset: true,
        guest: vec!["auto".into()],
        ..lab.options.clone()
    };
    lab.with_options(options, reboot_with_a_guest)
}

fn reboot_with_a_guest(lab: &mut Lab) -> Result<Outcome> {
    lab.boot(&GuestSpec::new("auto"))?;
    lab.closer(&["host", "reboot"])?;
    wait_ready(lab, 2)?;
    lab.attach("auto")?.console.wait_for_shell(BOOT_LIMIT)?;
    passed()
}

/// Waits until the host has come up so many times since its machine was started.
fn wait_ready(lab: &mut Lab, times: usize) -> Result<()> {
    let serial = lab.bed()?.files.serial();
    let deadline = Instant::now() + BOOT_LIMIT;
    while fs::read_to_string(&serial)?
        .matches("closer: ready")
        .count()
        < times
    {
        ensure!(Instant::now() < deadline, "the host did not come back");
        thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

/// ACPI S5: QEMU ends by itself, though a reset would not end it. The next test boots the
/// host again.
fn host_poweroff(lab: &mut Lab) -> Result<Outcome> {
    let options = BedOptions {
        allow_reset: true,
        ..lab.options.clone()
    };
    lab.with_options(options, poweroff_with_a_guest)
}

fn poweroff_with_a_guest(lab: &mut Lab) -> Result<Outcome> {
    lab.boot(&GuestSpec::new("a"))?;
    lab.closer(&["host", "poweroff"])?;
    let bed = lab.last_bed()?;
    bed.wait_for_end(Duration::from_secs(90))?;
    let serial = bed.serial();
    ensure!(!serial.contains("panicked"), "the host panicked");
    ensure!(
        serial.matches("closer: ready").count() == 1,
        "the host reset before it was off"
    );
    passed()
}

/// Without guests, or without waiting for them, the host is gone in no time; but who asked
/// for it has his answer.
fn host_ends_at_once(lab: &mut Lab) -> Result<Outcome> {
    let options = BedOptions {
        allow_reset: true,
        ..lab.options.clone()
    };
    lab.with_options(options, end_at_once)
}

fn end_at_once(lab: &mut Lab) -> Result<Outcome> {
    lab.closer(&["host", "reboot"])?;
    wait_ready(lab, 2)?;
    lab.closer(&["host", "reboot", "--force"])?;
    wait_ready(lab, 3)?;
    lab.boot(&GuestSpec::new("a"))?;
    lab.closer(&["host", "reboot", "--force"])?;
    wait_ready(lab, 4)?;
    lab.closer(&["host", "poweroff"])?;
    lab.last_bed()?.wait_for_end(Duration::from_secs(90))?;
    lab.boot(&GuestSpec::new("a"))?;
    lab.closer(&["host", "poweroff", "--force"])?;
    lab.last_bed()?.wait_for_end(Duration::from_secs(90))?;
    passed()
}

/// While it waits for a guest that does not shut down, it takes only `--force`.
fn going_down(lab: &mut Lab) -> Result<Outcome> {
    let options = BedOptions {
        allow_reset: true,
        ..lab.options.clone()
    };
    lab.with_options(options, go_down_slowly)
}

fn go_down_slowly(lab: &mut Lab) -> Result<Outcome> {
    let mut guest = lab.boot(&GuestSpec::new("a"))?;
    guest.ok("echo /bin/true > /proc/sys/kernel/poweroff_cmd")?;
    lab.create(&GuestSpec::new("p"))?;
    lab.closer(&["pause", "p"])?;
    let late = lab.write_config(&GuestSpec::new("late"))?;
    let late = late.to_str().context("the folder's name is not UTF-8")?;
    lab.closer(&["host", "reboot"])?;
    let refusal = "the host is going down already, once 1 guest has ended";
    for verb in [
        ["create", late],
        ["unpause", "p"],
        ["reboot", "a"],
        ["host", "reboot"],
        ["host", "poweroff"],
    ] {
        lab.refused(&verb, refusal)?;
    }
    ensure!(guest.ok("echo alive")? == "alive", "it did not wait");
    lab.closer(&["host", "reboot", "--force"])?;
    wait_ready(lab, 2)?;
    let serial = lab.bed()?.serial();
    ensure!(
        !serial.contains("guests did not shut down"),
        "--force waited for the guest"
    );
    let left = lab.guests()?;
    ensure!(left.is_empty(), "started anew: {left:?}");
    passed()
}
