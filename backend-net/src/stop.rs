//! Asking a task to end.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Context;
use futures_util::task::AtomicWaker;

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    waker: AtomicWaker,
}

/// Ends the task that has the other half; usable on any vCPU. Dropping it ends the
/// task, too: nobody could any more.
#[derive(Debug)]
pub struct Stopper(Arc<Shared>);

/// The task's half.
#[derive(Debug)]
pub struct Stop(Arc<Shared>);

/// Both halves.
pub fn stop_pair() -> (Stopper, Stop) {
    let shared = Arc::new(Shared::default());
    (Stopper(shared.clone()), Stop(shared))
}

impl Stopper {
    /// Asks the task to finish what it has taken, and end.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Stop {
    /// Whether to end. Registers the waker.
    pub fn poll(&self, cx: &mut Context<'_>) -> bool {
        self.0.waker.register(cx.waker());
        self.0.stopped.load(Ordering::Acquire)
    }
}
