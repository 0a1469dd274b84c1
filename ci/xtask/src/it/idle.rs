//! Done when 5: idle guests cost nothing.

use super::Test;
use crate::lab::{Guest, GuestSpec, Lab, RUN_LIMIT};
use crate::process::POLL;
use crate::report::Outcome;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::thread;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[Test {
    name: "four-idle-guests",
    run: idle,
}];

/// Idle time that is looked at.
const IDLE: Duration = Duration::from_secs(60);
/// Clients that a host serves at once.
const CLIENTS: usize = 12;
/// Share of a CPU that each of Closer's vCPUs may use, in percent.
const LIMIT_PERCENT: f64 = 0.5;

fn idle(lab: &mut Lab) -> Result<Outcome> {
    let mut guests = Vec::new();
    for (number, last) in (1..=4).zip(30..) {
        lab.volume(&format!("v{number}"), "8M")?;
        let spec = GuestSpec::new(&format!("g{number}"));
        guests.push(
            lab.boot(
                &spec
                    .disk(&format!("v{number}"))
                    .net(&format!("10.0.2.{last}")),
            )?,
        );
    }
    let worked = work(lab, &mut guests)?;
    drop(guests);
    let mut consoles = attach(lab, CLIENTS)?;
    lab.refused(&["list"], "12 clients, and none is idle")?;
    consoles.truncate(1);
    // The guests' own boot has to come to rest.
    thread::sleep(Duration::from_secs(10));
    let before = vcpu_times(lab)?;
    let started = Instant::now();
    thread::sleep(IDLE);
    let after = vcpu_times(lab)?;
    for (used, sofar) in worked.iter().zip(guest_times(lab)?) {
        ensure!(
            used.iter().zip(sofar).all(|(used, sofar)| *used <= sofar),
            "a guest's CPU time, or Closer's for it, fell from {used:?} to {sofar:?}"
        );
    }
    let elapsed = started.elapsed().as_secs_f64();
    // Who forgot a console keeps no administrator from the host.
    consoles.extend(attach(lab, CLIENTS - 1)?);
    lab.closer(&["list"])?;
    let deadline = Instant::now() + RUN_LIMIT;
    while consoles[0].console.is_attached() {
        ensure!(Instant::now() < deadline, "the first one made no room");
        thread::sleep(POLL);
    }
    for guest in &mut consoles[1..] {
        ensure!(guest.console.is_attached(), "more than one made room");
    }
    ensure!(
        before.len() == after.len() && !after.is_empty(),
        "vCPUs came or went"
    );
    let mut worst = 0.0_f64;
    for (vcpu, (before, after)) in before.iter().zip(&after).enumerate() {
        let percent = (after - before) / elapsed * 100.0;
        ensure!(percent >= 0.0, "vCPU {vcpu}'s time ran backwards");
        ensure!(
            percent < LIMIT_PERCENT,
            "vCPU {vcpu} of Closer used {percent:.2} % while idle"
        );
        worst = worst.max(percent);
    }
    Ok(Outcome::Passed(format!("at most {worst:.3} % of a CPU")))
}

/// The guests use disk and network, and all that is measured sees it: idle figures are none
/// that stand still. Gives [`guest_times`].
fn work(lab: &mut Lab, guests: &mut [Guest]) -> Result<Vec<[f64; 2]>> {
    let (vcpus, used) = (vcpu_times(lab)?, guest_times(lab)?);
    for guest in guests.iter_mut() {
        guest.ok("dd if=/dev/zero of=/dev/xvda bs=64k count=128 && sync")?;
        guest.ok("ping -c 1 -W 10 10.0.2.2")?;
    }
    let (vcpus_after, used_after) = (vcpu_times(lab)?, guest_times(lab)?);
    // Four guests are on all cores but the main container's, which serves us.
    for (vcpu, (before, after)) in vcpus.iter().zip(&vcpus_after).enumerate() {
        ensure!(
            before < after,
            "Closer's vCPU {vcpu} worked, and its time stays at {before} s"
        );
    }
    for (before, after) in used.iter().zip(&used_after) {
        ensure!(
            before
                .iter()
                .zip(after)
                .all(|(before, after)| before < after),
            "a guest and Closer for it worked, and their times went from {before:?} s to {after:?} s"
        );
    }
    Ok(used_after)
}

/// One after the other.
fn attach(lab: &mut Lab, count: usize) -> Result<Vec<Guest>> {
    (0..count)
        .map(|_| {
            let mut guest = lab.attach("g1")?;
            guest.console.wait_for("\n", RUN_LIMIT)?;
            Ok(guest)
        })
        .collect()
}

/// Seconds that each of Closer's vCPUs has run, as Xen counts it.
fn vcpu_times(lab: &mut Lab) -> Result<Vec<f64>> {
    let info = lab.json(&["info"])?;
    let times = info
        .pointer("/closer_cpu/vcpu_ns")
        .and_then(Value::as_array);
    let times = times.with_context(|| format!("info has no closer_cpu.vcpu_ns: {info}"))?;
    Ok(times
        .iter()
        .filter_map(Value::as_f64)
        .map(|ns| ns / 1e9)
        .collect())
}

/// Seconds that each guest has run, and that Closer has worked for it.
fn guest_times(lab: &mut Lab) -> Result<Vec<[f64; 2]>> {
    let times = (1..=4).map(|number| {
        let listed = lab.listed(&format!("g{number}"))?;
        let listed = listed.with_context(|| format!("g{number} is not listed"))?;
        let seconds = |field: &str| {
            let seconds = listed[field].as_f64();
            seconds.with_context(|| format!("no {field}: {listed}"))
        };
        Ok([seconds("cpu_s")?, seconds("served_s")?])
    });
    times.collect()
}
