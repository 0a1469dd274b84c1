//! Time, as far as a driver or a backend needs it: deadlines on waits.

use core::future::poll_fn;
use core::task::{Context, Poll};

/// A monotonic clock with alarms, of the vCPU whose tasks use it.
pub trait Timer {
    /// Nanoseconds since some fixed point; never goes back.
    fn now_ns(&self) -> u64;

    /// Ready once [`Self::now_ns`] has reached `at_ns`; registers the waker otherwise.
    /// The alarm that a task registered last is the one that counts: asking with another
    /// time replaces it, and an early wake-up is allowed.
    fn poll_deadline(&self, at_ns: u64, cx: &mut Context<'_>) -> Poll<()>;
}

/// Sleeps for `ns` nanoseconds at least.
pub async fn sleep(timer: &dyn Timer, ns: u64) {
    let at = timer.now_ns().saturating_add(ns);
    poll_fn(|cx| timer.poll_deadline(at, cx)).await;
}
