//! What a run prints: one line a step with its time, and a count at the end.

use anyhow::{Result, anyhow};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How one step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well; with a remark, or an empty one.
    Passed(String),
}

/// Steps of a run, counted.
#[derive(Debug)]
pub struct Report {
    logs: PathBuf,
    passed: usize,
    failed: Vec<String>,
    started: Instant,
}

impl Report {
    /// A report whose logs are kept in `logs`, emptied first.
    pub fn new(logs: &Path) -> Result<Self> {
        crate::cache::remove(logs)?;
        fs::create_dir_all(logs)
            .map_err(|error| anyhow!("cannot create {}: {error}", logs.display()))?;
        Ok(Self {
            logs: logs.to_path_buf(),
            passed: 0,
            failed: Vec::new(),
            started: Instant::now(),
        })
    }

    /// Folder of the logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Runs a step; `true`: it did not fail.
    pub fn step(&mut self, name: &str, step: impl FnOnce() -> Result<Outcome>) -> bool {
        print!("{name} ... ");
        flush();
        let started = Instant::now();
        let result = step();
        self.close(name, started.elapsed(), result)
    }

    /// Takes in a step that ran beside others; `true`: it did not fail.
    pub fn record(&mut self, name: &str, time: Duration, result: Result<Outcome>) -> bool {
        print!("{name} ... ");
        self.close(name, time, result)
    }

    /// Prints how a step ended, behind its name.
    fn close(&mut self, name: &str, time: Duration, result: Result<Outcome>) -> bool {
        let time = seconds(time);
        match result {
            Ok(Outcome::Passed(remark)) => {
                self.passed += 1;
                let comma = if remark.is_empty() { "" } else { ", " };
                println!("ok ({time}{comma}{remark})");
                true
            }
            Err(error) => {
                println!("FAILED ({time})");
                for line in format!("{error:#}").lines() {
                    println!("    {line}");
                }
                self.failed.push(name.to_owned());
                false
            }
        }
    }

    /// Prints the closing lines; an error if any step failed.
    pub fn finish(self) -> Result<()> {
        println!(
            "{} in all; logs: {}",
            seconds(self.started.elapsed()),
            self.logs.display()
        );
        if !self.failed.is_empty() {
            println!("failed: {}", self.failed.join(", "));
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        if self.failed.is_empty() {
            return Ok(());
        }
        let failed = self.failed.len();
        Err(anyhow!("{failed} of {} failed", failed + self.passed))
    }
}

/// A duration for people.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// A name for a run's folder that sorts by time and is new.
pub fn run_name(kind: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{kind}-{}", now.as_secs())
}

/// Shows what was printed without a newline.
pub fn flush() {
    if std::io::stdout().flush().is_err() {
        // Nobody reads: the run goes on for its exit code.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_makes_the_run_fail() {
        let logs = std::env::temp_dir().join(format!("xtask-report-{}", std::process::id()));
        let mut report = Report::new(&logs).unwrap();
        assert!(report.step("b", || Ok(Outcome::Passed(String::new()))));
        assert!(report.finish().is_ok());
        let mut report = Report::new(&logs).unwrap();
        assert!(!report.step("c", || anyhow::bail!("broken")));
        assert!(report.finish().is_err());
        crate::cache::remove(&logs).unwrap();
    }
}
