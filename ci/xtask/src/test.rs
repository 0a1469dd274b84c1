//! `cargo xtask test`: every check, the host tests, and the integration tests on real Xen.

use crate::it::{GROUPS, Group, Test};
use crate::lab::Lab;
use crate::paths::Paths;
use crate::qemu::BedOptions;
use crate::report::{Outcome, Report};
use crate::setup::Setup;
use crate::{build, checks, licences};
use anyhow::{Context, Result, anyhow, ensure};
use std::fs;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Stages before the integration tests.
const STAGES: &[&str] = &[
    "fmt",
    "files",
    "licences",
    "clippy",
    "host-tests",
    "test-xenstore",
    "abi-check",
    "build",
];

/// Lists what `--only` takes.
pub fn list() {
    for stage in STAGES {
        println!("{stage}");
    }
    for group in GROUPS {
        for test in group.tests {
            println!("{}", full_name(group, test));
        }
    }
}

/// Runs all, or what `only` names: a stage, a group, or `group/test`.
pub fn run(paths: &Paths, only: &[String]) -> Result<()> {
    for name in only {
        ensure!(
            is_known(name),
            "there is no stage, group or test {name}: see test --list"
        );
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|word| word == name);
    // First, for it waits until no other run uses the folder of the logs.
    let mut setup = Setup::open(paths)?;
    let mut report = Report::new(&paths.logs("test"))?;
    let logs = report.logs().to_path_buf();
    let passed = |remark: String| Ok(Outcome::Passed(remark));
    // Integration tests boot what the sources say, not what was built at some time.
    let boots = only.iter().any(|name| !STAGES.contains(&name.as_str()));
    let builds = boots || wanted("build");
    let is_built = thread::scope(|scope| {
        let build = || build::build_logged(paths, &logs);
        // Half of it is one link on one core: the host tests have the other meanwhile. Not
        // clippy, which waits for the same folder.
        let mut building = None;
        // Fetching waits for the network most of the time.
        let beside = setup.share();
        let mut fetching = only
            .is_empty()
            .then(|| scope.spawn(move || beside.fetch_quietly()));
        let mut is_built = true;
        for stage in STAGES
            .iter()
            .filter(|stage| wanted(stage) || (builds && **stage == "build"))
        {
            if builds && *stage == "host-tests" {
                building = Some(scope.spawn(build));
            }
            if *stage == "test-xenstore"
                && let Some(fetching) = fetching.take()
            {
                let fetched = fetching.join();
                let fetched = fetched.unwrap_or_else(|panic| resume_unwind(panic));
                // What a mirror did not give then it may give now, or the error is told.
                report.step("fetch", || {
                    fetched.or_else(|_| setup.all_pieces())?;
                    passed(String::new())
                });
            }
            is_built = report.step(stage, || match *stage {
                "fmt" => passed(checks::format(paths, &logs)?),
                "files" => passed(checks::file_rules(paths)?),
                "licences" => passed(licences::check(paths)?),
                "clippy" => passed(checks::clippy(paths, &logs)?),
                "host-tests" => passed(checks::host_tests(paths, &logs)?),
                "test-xenstore" => passed(checks::test_xenstore(paths, &logs, &mut setup)?),
                "abi-check" => passed(checks::abi(paths, &logs, &mut setup)?),
                _ => passed(match building.take() {
                    Some(building) => building
                        .join()
                        .unwrap_or_else(|panic| resume_unwind(panic))?,
                    None => build()?,
                }),
            });
        }
        // It is the last stage.
        is_built || !builds
    });
    if !is_built {
        return report.finish();
    }
    let report = run_groups(&wanted, &mut setup, report)?;
    report.finish()
}

/// Groups whose beds run side by side: guests mostly boot, which keeps one or two cores
/// busy.
const LANES: usize = 2;

/// Runs the wanted tests, each group on a bed of its own.
fn run_groups(
    wanted: &dyn Fn(&str) -> bool,
    setup: &mut Setup,
    mut report: Report,
) -> Result<Report> {
    let chosen: Vec<(&Group, Vec<&Test>)> = GROUPS
        .iter()
        .map(|group| {
            let tests = group.tests.iter();
            let tests = tests.filter(|test| wanted(group.name) || wanted(&full_name(group, test)));
            (group, tests.collect())
        })
        .filter(|(_, tests): &(_, Vec<_>)| !tests.is_empty())
        .collect();
    let lanes = LANES.min(chosen.len());
    if lanes > 1 {
        let made = report.step("pieces", || {
            setup.guests_pieces()?;
            Ok(Outcome::Passed(String::new()))
        });
        if !made {
            return Ok(report);
        }
    }
    let logs = report.logs().to_path_buf();
    let report = Mutex::new(report);
    let queue = Mutex::new(chosen.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..lanes)
            .map(|_| {
                let mut setup = setup.share();
                let (next, logs, report) = (&next, &logs, &report);
                scope.spawn(move || -> Result<()> {
                    while let Some((group, tests)) = next() {
                        run_group(group, &tests, &mut setup, &logs.join(group.name), report)?;
                    }
                    Ok(())
                })
            })
            .collect();
        // All are waited for, whatever one of them says.
        let ends: Vec<_> = workers.into_iter().map(ScopedJoinHandle::join).collect();
        ends.into_iter()
            .try_for_each(|end| end.unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    Ok(report.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn full_name(group: &Group, test: &Test) -> String {
    format!("{}/{}", group.name, test.name)
}

/// Runs a group's tests on one bed. A test that fails may leave the host in any state,
/// so the next one gets a fresh bed.
fn run_group(
    group: &Group,
    tests: &[&Test],
    setup: &mut Setup,
    dir: &Path,
    report: &Mutex<Report>,
) -> Result<()> {
    let record = |test: &Test, time, result| {
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        report.record(&full_name(group, test), time, result)
    };
    let options = (group.options)()?;
    if let Err(why) = enough_memory(&options) {
        for test in tests {
            record(test, Duration::ZERO, Err(anyhow!("not run: {why:#}")));
        }
        return Ok(());
    }
    let mut lab = Lab::new(setup, options, dir)?;
    for test in tests {
        let started = Instant::now();
        let result = (test.run)(&mut lab).and_then(|outcome| {
            lab.clear()?;
            Ok(outcome)
        });
        if !record(test, started.elapsed(), result) {
            lab.start_afresh(test.name)?;
        }
    }
    Ok(())
}

/// Whether this machine can run a bed. Guests use less than half of what a
/// bed has, and QEMU takes a page only when it is touched.
fn enough_memory(options: &BedOptions) -> Result<()> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("/proc/meminfo has no MemAvailable")?;
    let wanted = u64::from(options.sockets * options.node_mb) / 2;
    let free = kib >> 10;
    ensure!(
        free >= wanted,
        "{free} MiB of memory are free, {wanted} are needed"
    );
    Ok(())
}

fn is_known(name: &str) -> bool {
    STAGES.contains(&name)
        || GROUPS.iter().any(|group| {
            group.name == name
                || group
                    .tests
                    .iter()
                    .any(|test| full_name(group, test) == name)
        })
}
