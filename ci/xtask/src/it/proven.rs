//! Which integration tests a run without `--only` includes.
//!
//! A test that was written before what it tests worked joins the list with the first
//! run that it passes. Until then a whole run says that it was skipped, and why; with
//! `--only` it runs like any other.

/// Tests that have passed, as `group/test`.
pub const PROVEN: &[&str] = &[
    "boot/pvh-debian13-1-vcpu",
    "boot/pv-debian13-1-vcpu",
    "life/shutdown-ends-the-guest",
    "life/guest-powers-itself-off",
    "life/guest-reboots-with-no-cli",
    "life/reboot-command",
    "life/crash-destroys-by-default",
    "life/crash-restarts-if-asked",
    "life/crash-preserves-if-asked",
    "life/pause-stops-and-unpause-goes-on",
    "life/memory-comes-back",
    "life/host-powers-off",
    "console/several-watchers-see-the-same",
];

/// Why a whole run leaves a test out; `None`: it does not.
pub fn left_out(full_name: &str) -> Option<String> {
    let proven = PROVEN.contains(&full_name);
    (!proven).then(|| format!("has not passed yet; try --only {full_name}"))
}
