//! One value, once.

use super::Closed;
use crate::arch::SpinLock;
use alloc::sync::Arc;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

enum State<T> {
    Waiting(Option<Waker>),
    Sent(T),
    /// An end is gone, or the value was taken.
    Over,
}

/// The sending end.
pub struct OneshotSender<T>(Arc<SpinLock<State<T>>>);

/// The receiving end: await it.
pub struct OneshotReceiver<T>(Arc<SpinLock<State<T>>>);

impl<T> fmt::Debug for OneshotSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneshotSender")
    }
}

impl<T> fmt::Debug for OneshotReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneshotReceiver")
    }
}

/// Both ends.
pub fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let state = Arc::new(SpinLock::new(State::Waiting(None)));
    (OneshotSender(state.clone()), OneshotReceiver(state))
}

impl<T> OneshotSender<T> {
    /// Sends the value.
    ///
    /// # Errors
    /// The value, if the receiver is gone.
    pub fn send(self, value: T) -> Result<(), T> {
        let mut state = self.0.lock();
        match core::mem::replace(&mut *state, State::Over) {
            State::Waiting(waiter) => {
                *state = State::Sent(value);
                drop(state);
                if let Some(waiter) = waiter {
                    waiter.wake();
                }
                Ok(())
            }
            State::Sent(_) | State::Over => Err(value),
        }
    }
}

impl<T> Drop for OneshotSender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let State::Waiting(waiter) = &mut *state {
            let waiter = waiter.take();
            *state = State::Over;
            drop(state);
            if let Some(waiter) = waiter {
                waiter.wake();
            }
        }
    }
}

impl<T> Future for OneshotReceiver<T> {
    type Output = Result<T, Closed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        match core::mem::replace(&mut *state, State::Over) {
            State::Waiting(_) => {
                *state = State::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
            State::Sent(value) => Poll::Ready(Ok(value)),
            State::Over => Poll::Ready(Err(Closed)),
        }
    }
}

impl<T> Drop for OneshotReceiver<T> {
    fn drop(&mut self) {
        let old = core::mem::replace(&mut *self.0.lock(), State::Over);
        drop(old);
    }
}
