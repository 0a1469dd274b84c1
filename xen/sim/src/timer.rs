//! Time that passes when a test says so.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A clock at which tests turn the hands; clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct SimTimer {
    now_ns: Rc<Cell<u64>>,
    alarms: Rc<RefCell<Vec<(u64, Waker)>>>,
}

impl SimTimer {
    /// A clock at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets time pass and wakes who is due.
    pub fn advance(&self, ns: u64) {
        self.now_ns.set(self.now_ns.get() + ns);
        let now = self.now_ns.get();
        let due: Vec<_> = self
            .alarms
            .borrow_mut()
            .extract_if(.., |(at, _)| *at <= now)
            .collect();
        for (_, waker) in due {
            waker.wake();
        }
    }

    /// Jumps to the next alarm; `false`: none is set.
    pub fn jump(&self) -> bool {
        let next = self.alarms.borrow().iter().map(|(at, _)| *at).min();
        let Some(at) = next else { return false };
        self.advance(at.saturating_sub(self.now_ns.get()));
        true
    }
}

impl hal::Timer for SimTimer {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn poll_deadline(&self, at_ns: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut alarms = self.alarms.borrow_mut();
        alarms.retain(|(_, waker)| !waker.will_wake(cx.waker()));
        if self.now_ns.get() >= at_ns {
            return Poll::Ready(());
        }
        alarms.push((at_ns, cx.waker().clone()));
        Poll::Pending
    }
}
