//! The console server: watchers, history, nobody reading.

use super::{Test, passed};
use crate::lab::{BOOT_LIMIT, CLI_LIMIT, Guest, GuestSpec, Lab, RUN_LIMIT};
use crate::qemu::BedOptions;
use crate::report::Outcome;
use anyhow::{Context, Result, ensure};
use std::thread;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test {
        name: "several-watchers-see-the-same",
        run: watchers,
    },
    Test {
        name: "the-last-64-kib-are-kept",
        run: history,
    },
    Test {
        name: "typing-to-a-guest-that-does-not-read",
        run: left_typing,
    },
    Test {
        name: "a-guest-nobody-watches-is-not-held-up",
        run: unwatched,
    },
];

fn watchers(lab: &mut Lab) -> Result<Outcome> {
    let mut first = lab.boot(&GuestSpec::new("a"))?;
    let mut second = lab.attach("a")?;
    let mut third = lab.attach("a")?;
    first.ok("echo seen-by-all > /dev/hvc0")?;
    for watcher in [&mut first, &mut second, &mut third] {
        watcher.console.wait_for("seen-by-all", RUN_LIMIT)?;
    }
    drop(second);
    first.ok("echo seen-by-the-rest > /dev/hvc0")?;
    third.console.wait_for("seen-by-the-rest", RUN_LIMIT)?;
    passed()
}

fn history(lab: &mut Lab) -> Result<Outcome> {
    let mut guest = lab.boot(&GuestSpec::new("a"))?;
    guest.ok("seq 100000 111000 > /dev/hvc0")?;
    let log = lab.closer(&["console", "--log", "a"])?;
    ensure!(log.len() >= 60 << 10, "only {} bytes are kept", log.len());
    ensure!(log.len() <= 65 << 10, "{} bytes are kept", log.len());
    ensure!(log.contains("\n110990\r\n"), "the last lines are missing");
    ensure!(
        !log.contains("\n100001\r\n"),
        "the first lines are still there"
    );
    // None is missing in between. The first line may be what is left of one.
    let numbers: Vec<u32> = log
        .lines()
        .skip(1)
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    let gaps = numbers
        .windows(2)
        .filter(|pair| pair[1] != pair[0] + 1 && pair[0] != 111_000);
    ensure!(gaps.count() == 0, "lines are missing in the middle");
    passed()
}

/// A guest that reads nothing keeps nobody who types and leaves; its end is the end of those
/// who type and stay.
fn left_typing(lab: &mut Lab) -> Result<Outcome> {
    // The host says when somebody's bytes wait.
    let options = BedOptions {
        pvm_args: "loglevel=debug".into(),
        ..lab.options.clone()
    };
    lab.with_options(options, type_in_vain)
}

fn type_in_vain(lab: &mut Lab) -> Result<Outcome> {
    lab.boot(&GuestSpec::new("a"))?;
    lab.closer(&["pause", "a"])?;
    // More than the host serves at once.
    for leaving in 1..=14 {
        let typist = typist(lab).with_context(|| format!("typist {leaving}"))?;
        drop(typist);
    }
    lab.closer(&["list"])?;
    let typists: Vec<Guest> = (0..3).map(|_| typist(lab)).collect::<Result<_>>()?;
    lab.closer(&["destroy", "a"])?;
    let deadline = Instant::now() + CLI_LIMIT;
    for mut typist in typists {
        while typist.console.is_attached() || !typist.console.text().contains(GONE) {
            ensure!(
                Instant::now() < deadline,
                "who typed is not told of the guest's end"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
    passed()
}

/// What the console says last.
const GONE: &str = "closer: guest a is gone";

/// Attaches, and types until the host has more of it than the guest has room for.
fn typist(lab: &mut Lab) -> Result<Guest> {
    let waiting = |lab: &mut Lab| -> Result<usize> {
        let serial = lab.bed()?.serial();
        Ok(serial.matches("console of a: what is typed waits").count())
    };
    let before = waiting(lab)?;
    let deadline = Instant::now() + CLI_LIMIT;
    let mut typist = lab.attach("a")?;
    while typist.console.wait_for("guest: up", RUN_LIMIT).is_err() {
        ensure!(Instant::now() < deadline, "nobody can attach any more");
        typist = lab.attach("a")?;
    }
    // More than the host keeps for a guest, less than it receives of one whose bytes wait:
    // the end of the connection gets through.
    typist.console.send(&"x".repeat(10_000))?;
    while waiting(lab)? == before {
        ensure!(
            Instant::now() < deadline,
            "what is typed is not waiting for the guest"
        );
        thread::sleep(Duration::from_millis(100));
    }
    Ok(typist)
}

fn unwatched(lab: &mut Lab) -> Result<Outcome> {
    let mut guest = lab.boot(&GuestSpec::new("a"))?;
    guest.ok(
        "(sleep 2; seq 1 8000 > /dev/hvc0; echo unwatched-done > /dev/hvc0) >/dev/null 2>&1 &",
    )?;
    drop(guest);
    let deadline = Instant::now() + BOOT_LIMIT;
    while !lab
        .closer(&["console", "--log", "a"])?
        .contains("unwatched-done")
    {
        ensure!(Instant::now() < deadline, "the guest did not get through");
        thread::sleep(Duration::from_millis(500));
    }
    lab.attach("a")?.console.wait_for_shell(BOOT_LIMIT)?;
    passed()
}
