//! A single-threaded executor, as one vCPU of the pVM has.

use crate::SimTimer;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// Polls after which nothing that makes progress is still ready.
const MAX_STEPS: usize = 1_000_000;

type Ready = Arc<Mutex<VecDeque<usize>>>;

struct TaskWaker {
    index: usize,
    queued: AtomicBool,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.ready
                .lock()
                .expect("no panic under the lock")
                .push_back(self.index);
        }
    }
}

struct Slot {
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
}

/// Polls spawned futures in the order they are woken; when nothing is ready, its
/// [`SimTimer`] can jump to the next alarm.
#[derive(Clone)]
pub struct Executor {
    slots: Rc<RefCell<Vec<Slot>>>,
    ready: Ready,
    timer: SimTimer,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Executor({} tasks)", self.slots.borrow().len())
    }
}

/// What a spawned future gives in the end.
#[derive(Clone, Debug)]
pub struct Task<T> {
    result: Rc<RefCell<Option<T>>>,
    slots: std::rc::Weak<RefCell<Vec<Slot>>>,
    index: usize,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.waker.index)
    }
}

impl<T> Task<T> {
    /// The result, once and if it is there.
    pub fn take(&self) -> Option<T> {
        self.result.borrow_mut().take()
    }

    /// Drops the future wherever it stands.
    pub fn cancel(&self) {
        let future = self.slots.upgrade().and_then(|slots| {
            let mut slots = slots.borrow_mut();
            slots[self.index].future.take()
        });
        // Outside the borrow: the future's own drop may wake or spawn.
        drop(future);
    }
}

impl Default for Executor {
    fn default() -> Self {
        Self::new()
    }
}

impl Executor {
    /// Nothing to do, at time 0.
    pub fn new() -> Self {
        Self {
            slots: Rc::default(),
            ready: Ready::default(),
            timer: SimTimer::new(),
        }
    }

    /// The clock of this executor.
    pub fn timer(&self) -> SimTimer {
        self.timer.clone()
    }

    /// Adds a task.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let result = Rc::new(RefCell::new(None));
        let out = result.clone();
        let mut slots = self.slots.borrow_mut();
        let index = slots.len();
        let waker = Arc::new(TaskWaker {
            index,
            queued: AtomicBool::new(false),
            ready: self.ready.clone(),
        });
        waker.clone().wake();
        slots.push(Slot {
            future: Some(Box::pin(async move {
                let value = future.await;
                *out.borrow_mut() = Some(value);
            })),
            waker,
        });
        Task {
            result,
            slots: Rc::downgrade(&self.slots),
            index,
        }
    }

    /// Polls one ready task; `false`: none is.
    pub fn step(&self) -> bool {
        let next = self
            .ready
            .lock()
            .expect("no panic under the lock")
            .pop_front();
        let Some(index) = next else { return false };
        let taken = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[index];
            slot.waker.queued.store(false, Ordering::SeqCst);
            slot.future
                .take()
                .map(|future| (future, slot.waker.clone()))
        };
        if let Some((mut future, waker)) = taken {
            let waker = Waker::from(waker);
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(()) => drop(future),
                Poll::Pending => self.slots.borrow_mut()[index].future = Some(future),
            }
        }
        true
    }

    /// Polls until nothing is ready; time stands still.
    ///
    /// # Panics
    /// If something is always ready: a task that spins.
    pub fn run_until_stalled(&self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < MAX_STEPS, "a task is ready again and again");
        }
    }

    /// Runs a future to its end, with all others; jumps to the next alarm when nothing
    /// is ready.
    ///
    /// # Panics
    /// If nothing is ready and no alarm is set: a deadlock.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let task = self.spawn(future);
        loop {
            if let Some(value) = task.take() {
                return value;
            }
            assert!(
                self.step() || self.timer.jump(),
                "nothing is ready and no alarm is set"
            );
        }
    }
}
