use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Waker;
use spin::Mutex;

/// Tasks, on any vCPU, that wait for the same thing.
///
/// Each has one place, however often it asks, so there are never more than tasks. All are
/// woken together: a task that was woken by something else meanwhile would keep a single
/// wake-up from one that needs it.
#[derive(Default)]
pub struct WakerQueue {
    waiting: Mutex<Vec<Waker>>,
    /// How many they are, for those who pass by while there is none.
    count: AtomicUsize,
}

impl fmt::Debug for WakerQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WakerQueue({})", self.count.load(Ordering::Relaxed))
    }
}

impl WakerQueue {
    /// Registers a task. Look at the condition again afterwards: what changed before
    /// this call woke nobody.
    pub fn register(&self, waker: &Waker) {
        let mut waiting = self.waiting.lock();
        if !waiting.iter().any(|other| other.will_wake(waker)) {
            waiting.push(waker.clone());
        }
        // Ordered before the caller's second look, as `wake_all`'s is after the change.
        self.count.store(waiting.len(), Ordering::SeqCst);
    }

    /// Wakes all that wait now.
    pub fn wake_all(&self) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let woken = {
            let mut waiting = self.waiting.lock();
            self.count.store(0, Ordering::SeqCst);
            mem::take(&mut *waiting)
        };
        // Outside the lock: a waker may run code of the executor.
        for waker in woken {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use alloc::sync::Arc;
    use alloc::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn one_that_asks_often_has_one_place_and_all_are_woken() {
        let queue = WakerQueue::default();
        let tasks: [Arc<Count>; 3] = Default::default();
        for task in &tasks {
            for _ in 0..100 {
                queue.register(&Waker::from(task.clone()));
            }
        }
        queue.wake_all();
        queue.wake_all();
        for task in &tasks {
            assert_eq!(task.0.load(Ordering::SeqCst), 1);
        }
    }
}
