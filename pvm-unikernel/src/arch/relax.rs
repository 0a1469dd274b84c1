//! How a vCPU waits for another one's lock.

use super::hypercall::sched;
use spin::RelaxStrategy;

/// Spins for a moment, then lets Xen run somebody else: the holder's vCPU may share its
/// core with a guest, and not be running at all.
#[derive(Debug)]
pub struct Polite;

impl RelaxStrategy for Polite {
    fn relax() {
        for _ in 0..64 {
            core::hint::spin_loop();
        }
        sched::yield_core();
    }
}

/// A spin lock for the few things that vCPUs share.
pub type SpinLock<T> = spin::mutex::Mutex<T, Polite>;
