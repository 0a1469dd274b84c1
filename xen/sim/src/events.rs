//! Interdomain event channels inside one process.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use xen_ring::peer::Events;

#[derive(Debug, Default)]
struct Line {
    pending: Cell<bool>,
    notifications: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

/// One end of an event channel; clones are the same end.
#[derive(Clone, Debug)]
pub struct SimEvents {
    ours: Rc<Line>,
    theirs: Rc<Line>,
}

impl SimEvents {
    /// Both ends of a new channel. As a fresh interdomain port of Xen, each end is
    /// pending at once.
    pub fn pair() -> (Self, Self) {
        let (a, b) = (Rc::new(Line::default()), Rc::new(Line::default()));
        a.pending.set(true);
        b.pending.set(true);
        let near = Self {
            ours: a.clone(),
            theirs: b.clone(),
        };
        (near, Self { ours: b, theirs: a })
    }

    /// Notifications that this end was sent, merged ones counted each.
    pub fn received(&self) -> u64 {
        self.ours.notifications.get()
    }

    /// Takes the pending bit without waiting: what a simulated guest polls.
    pub fn take(&self) -> bool {
        self.ours.pending.take()
    }
}

impl Events for SimEvents {
    fn notify(&self) {
        let line = &self.theirs;
        line.notifications.set(line.notifications.get() + 1);
        line.pending.set(true);
        if let Some(waker) = line.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ours.pending.take() {
            return Poll::Ready(());
        }
        *self.ours.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}
