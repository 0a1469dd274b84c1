use core::fmt;
use core::task::Waker;
use crossbeam_queue::ArrayQueue;

/// Tasks, on any vCPU, that wait for the same thing.
///
/// Bounded. A task that finds no place is woken at once, and so keeps asking: slower,
/// but never asleep for ever.
pub struct WakerQueue(ArrayQueue<Waker>);

impl fmt::Debug for WakerQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WakerQueue({} of {})", self.0.len(), self.0.capacity())
    }
}

impl WakerQueue {
    /// Places for `capacity` tasks.
    ///
    /// # Panics
    /// If `capacity` is 0.
    pub fn new(capacity: usize) -> Self {
        Self(ArrayQueue::new(capacity))
    }

    /// Registers a task. Look at the condition again afterwards: what changed before
    /// this call woke nobody.
    pub fn register(&self, waker: &Waker) {
        if let Err(waker) = self.0.push(waker.clone()) {
            waker.wake();
        }
    }

    /// Wakes the task that has waited longest.
    pub fn wake_one(&self) {
        if let Some(waker) = self.0.pop() {
            waker.wake();
        }
    }

    /// Wakes all that wait now.
    pub fn wake_all(&self) {
        // Tasks that register again meanwhile are for the next call.
        for _ in 0..self.0.len() {
            self.wake_one();
        }
    }
}
