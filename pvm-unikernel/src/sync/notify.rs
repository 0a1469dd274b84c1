//! "Something changed; look again."

use crate::arch::SpinLock;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};

#[derive(Debug)]
struct State {
    /// Counts notifications; a waiter compares.
    generation: u64,
    waiting: Vec<Waker>,
}

/// Wakes every task that waits. Waiters look at their condition before and after.
#[derive(Debug)]
pub struct Notify(SpinLock<State>);

impl Default for Notify {
    fn default() -> Self {
        Self::new()
    }
}

impl Notify {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self(SpinLock::new(State {
            generation: 0,
            waiting: Vec::new(),
        }))
    }

    /// Wakes all that wait now.
    pub fn notify_all(&self) {
        let mut state = self.0.lock();
        state.generation += 1;
        let waiting = core::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Notifications so far: read it, look at the condition, then wait for the next.
    pub fn generation(&self) -> u64 {
        self.0.lock().generation
    }

    /// Waits until there were more notifications than `seen`.
    pub async fn changed(&self, seen: u64) {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if state.generation > seen {
                return Poll::Ready(());
            }
            if !state.waiting.iter().any(|w| w.will_wake(context.waker())) {
                state.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
