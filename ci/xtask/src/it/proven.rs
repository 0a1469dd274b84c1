//! Which integration tests a run without `--only` includes.
//!
//! A test joins the list when it has passed often enough on a real bed to be relied on.
//! Until then a whole run says that it was skipped, and why; with `--only` it runs like
//! any other.

/// Tests that whole runs include, as `group/test`.
pub const PROVEN: &[&str] = &[
    "boot/pvh-debian13-1-vcpu",
    "boot/pv-debian13-1-vcpu",
    "life/shutdown-ends-the-guest",
    "life/guest-powers-itself-off",
    "life/guest-reboots-with-no-cli",
    "life/host-powers-off",
];

/// Why a whole run leaves a test out; `None`: it does not.
pub fn left_out(full_name: &str) -> Option<String> {
    let proven = PROVEN.contains(&full_name);
    (!proven).then(|| format!("not proven yet; try --only {full_name}"))
}
