//! A bounded queue with many senders and one receiver.

use crate::arch::SpinLock;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};

struct State<T> {
    queue: VecDeque<T>,
    capacity: usize,
    senders: usize,
    receiver_gone: bool,
    receiver: Option<Waker>,
    /// Senders that found the queue full. All are woken when there is room: they are few.
    waiting: Vec<Waker>,
}

/// The other side is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the other end of the channel is gone")
    }
}

impl core::error::Error for Closed {}

/// Why [`Sender::try_send`] gave the value back.
#[derive(Debug)]
pub enum TrySend<T> {
    /// No room now.
    Full(T),
    /// Nobody will ever receive it.
    Closed(T),
}

/// The sending end; clone it for more.
pub struct Sender<T>(Arc<SpinLock<State<T>>>);

/// The receiving end.
pub struct Receiver<T>(Arc<SpinLock<State<T>>>);

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender({} queued)", self.0.lock().queue.len())
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver({} queued)", self.0.lock().queue.len())
    }
}

/// A queue of at most `capacity` values.
///
/// # Panics
/// If `capacity` is 0.
pub fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a channel needs room for one value");
    let state = Arc::new(SpinLock::new(State {
        queue: VecDeque::new(),
        capacity,
        senders: 1,
        receiver_gone: false,
        receiver: None,
        waiting: Vec::new(),
    }));
    (Sender(state.clone()), Receiver(state))
}

impl<T> Sender<T> {
    /// Queues a value if there is room.
    ///
    /// # Errors
    /// The value, if there is none or the receiver is gone.
    pub fn try_send(&self, value: T) -> Result<(), TrySend<T>> {
        let mut state = self.0.lock();
        if state.receiver_gone {
            return Err(TrySend::Closed(value));
        }
        if state.queue.len() == state.capacity {
            return Err(TrySend::Full(value));
        }
        state.queue.push_back(value);
        let receiver = state.receiver.take();
        drop(state);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
        Ok(())
    }

    /// Waits for room and queues a value.
    ///
    /// # Errors
    /// [`Closed`]: the receiver is gone, and the value is dropped.
    pub async fn send(&self, value: T) -> Result<(), Closed> {
        let mut pending = Some(value);
        poll_fn(|context| {
            let Some(value) = pending.take() else {
                return Poll::Ready(Ok(()));
            };
            match self.try_send(value) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(TrySend::Closed(_)) => return Poll::Ready(Err(Closed)),
                Err(TrySend::Full(value)) => pending = Some(value),
            }
            let mut state = self.0.lock();
            if state.queue.len() < state.capacity || state.receiver_gone {
                // Room came between the two looks.
                context.waker().wake_by_ref();
            } else if !state.waiting.iter().any(|w| w.will_wake(context.waker())) {
                state.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.0.lock().receiver_gone
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.senders -= 1;
        let receiver = if state.senders == 0 {
            state.receiver.take()
        } else {
            None
        };
        drop(state);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// Takes the oldest value; `None` once all senders are gone and the queue is empty.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// As [`Self::recv`], for a hand-written poll.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.lock();
        if let Some(value) = state.queue.pop_front() {
            let waiting = core::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
            return Poll::Ready(Some(value));
        }
        if state.senders == 0 {
            return Poll::Ready(None);
        }
        state.receiver = Some(context.waker().clone());
        Poll::Pending
    }

    /// Takes a value if one is there.
    pub fn try_recv(&mut self) -> Option<T> {
        let mut state = self.0.lock();
        let value = state.queue.pop_front()?;
        let waiting = core::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        Some(value)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiver_gone = true;
        let waiting = core::mem::take(&mut state.waiting);
        let queue = core::mem::take(&mut state.queue);
        drop(state);
        drop(queue);
        waiting.into_iter().for_each(Waker::wake);
    }
}
