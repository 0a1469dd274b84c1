//! Who pays for a task's time.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

/// CPU time spent for somebody, on whatever vCPUs. Clones are the same account.
#[derive(Clone, Debug, Default)]
pub struct Account(Arc<AtomicU64>);

impl Account {
    /// An empty account.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nanoseconds charged so far.
    pub fn cpu_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds what was spent outside a task of this account.
    pub fn charge(&self, ns: u64) {
        self.0.fetch_add(ns, Ordering::Relaxed);
    }
}
