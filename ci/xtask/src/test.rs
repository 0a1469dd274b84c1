//! `cargo xtask test`: every check, the host tests, and the integration tests on real Xen.

use crate::it::{GROUPS, Group, left_out};
use crate::lab::Lab;
use crate::paths::Paths;
use crate::qemu::BedOptions;
use crate::report::{Outcome, Report};
use crate::setup::Setup;
use crate::{build, checks, licences};
use anyhow::{Context, Result, ensure};
use std::fs;

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
            println!("{}/{}", group.name, test.name);
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
    let mut report = Report::new(&paths.logs("test"))?;
    let logs = report.logs().to_path_buf();
    let passed = |remark: String| Ok(Outcome::Passed(remark));
    let mut setup = None;
    report.step("setup", || {
        setup = Some(Setup::open(paths)?);
        passed(String::new())
    });
    let Some(mut setup) = setup else {
        return report.finish();
    };
    // Integration tests boot what the sources say, not what was built at some time.
    let boots = only.iter().any(|name| !STAGES.contains(&name.as_str()));
    for stage in STAGES
        .iter()
        .filter(|stage| wanted(stage) || (boots && **stage == "build"))
    {
        let passed = report.step(stage, || match *stage {
            "fmt" => passed(checks::format(paths, &logs)?),
            "files" => passed(checks::file_rules(paths)?),
            "licences" => passed(licences::check(paths)?),
            "clippy" => passed(checks::clippy(paths, &logs)?),
            "host-tests" => passed(checks::host_tests(paths, &logs)?),
            "test-xenstore" => passed(checks::test_xenstore(paths, &logs, &mut setup)?),
            "abi-check" => passed(checks::abi(paths, &logs, &mut setup)?),
            _ => passed(build::build_logged(paths, &logs)?),
        });
        if !passed && *stage == "build" {
            return report.finish();
        }
    }
    for group in GROUPS {
        run_group(group, only.is_empty(), &wanted, &mut setup, &mut report)?;
    }
    report.finish()
}

/// Runs a group's tests on one bed. A test that fails may leave the host in any state,
/// so the next one gets a fresh bed.
fn run_group(
    group: &Group,
    whole_run: bool,
    wanted: &dyn Fn(&str) -> bool,
    setup: &mut Setup,
    report: &mut Report,
) -> Result<()> {
    let full_name = |test: &str| format!("{}/{test}", group.name);
    let chosen = |test: &str| wanted(group.name) || wanted(&full_name(test));
    let tests: Vec<_> = group
        .tests
        .iter()
        .filter(|test| chosen(test.name))
        .filter(|test| {
            let why = left_out(&full_name(test.name)).filter(|_| whole_run);
            let runs = why.is_none();
            if let Some(why) = why {
                report.step(&full_name(test.name), || Ok(Outcome::Skipped(why)));
            }
            runs
        })
        .collect();
    if tests.is_empty() {
        return Ok(());
    }
    let dir = report.logs().join(group.name);
    let options = (group.options)()?;
    if let Some(why) = cannot_run(&options)? {
        for test in tests {
            report.step(&full_name(test.name), || Ok(Outcome::Skipped(why.clone())));
        }
        return Ok(());
    }
    let mut lab = Lab::new(setup, options, &dir)?;
    for test in tests {
        let passed = report.step(&full_name(test.name), || {
            let outcome = (test.run)(&mut lab)?;
            lab.clear()?;
            Ok(outcome)
        });
        if !passed {
            lab.start_afresh(test.name)?;
        }
    }
    Ok(())
}

/// Why this machine cannot run a bed; none: it can. Guests use less than half of what
/// the bed has, and QEMU takes a page only when it is touched.
fn cannot_run(options: &BedOptions) -> Result<Option<String>> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("/proc/meminfo has no MemAvailable")?;
    let wanted = u64::from(options.sockets * options.node_mb) / 2;
    let free = kib >> 10;
    Ok((free < wanted).then(|| format!("{free} MiB of memory are free, {wanted} are needed")))
}

fn is_known(name: &str) -> bool {
    STAGES.contains(&name)
        || GROUPS.iter().any(|group| {
            group.name == name
                || group
                    .tests
                    .iter()
                    .any(|test| format!("{}/{}", group.name, test.name) == name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_proven_test_exists() {
        for name in crate::it::PROVEN {
            assert!(is_known(name), "{name} is no test");
        }
    }
}
