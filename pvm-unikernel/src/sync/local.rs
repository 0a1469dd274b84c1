//! For tasks of one vCPU: a fair semaphore, and a mutex on it.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell, RefMut};
use core::future::Future;
use core::ops::{Deref, DerefMut};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

#[derive(Debug, Default)]
struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Counts permits; tasks get them in the order they asked.
#[derive(Debug)]
pub struct Semaphore {
    free: Cell<usize>,
    queue: RefCell<VecDeque<Rc<Waiter>>>,
}

impl Semaphore {
    /// `permits` permits.
    pub const fn new(permits: usize) -> Self {
        Self {
            free: Cell::new(permits),
            queue: RefCell::new(VecDeque::new()),
        }
    }

    /// Waits for a permit, given back when dropped.
    pub async fn acquire(&self) -> Permit<'_> {
        Acquire {
            semaphore: self,
            waiter: None,
        }
        .await;
        Permit(self)
    }

    /// Takes a permit if one is free and nobody waits.
    pub fn try_acquire(&self) -> Option<Permit<'_>> {
        self.take().then(|| Permit(self))
    }

    fn take(&self) -> bool {
        let free = self.free.get();
        let available = free > 0 && self.queue.borrow().is_empty();
        if available {
            self.free.set(free - 1);
        }
        available
    }

    /// Hands a permit to the first who waits, or counts it free.
    fn release(&self) {
        let next = self.queue.borrow_mut().pop_front();
        let Some(waiter) = next else {
            self.free.set(self.free.get() + 1);
            return;
        };
        waiter.granted.set(true);
        let waker = waiter.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Acquire<'a> {
    semaphore: &'a Semaphore,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Acquire<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waiter.is_none() {
            if self.semaphore.take() {
                return Poll::Ready(());
            }
            let waiter = Rc::new(Waiter::default());
            self.semaphore.queue.borrow_mut().push_back(waiter.clone());
            self.waiter = Some(waiter);
        }
        let granted = self.waiter.as_ref().is_some_and(|waiter| {
            *waiter.waker.borrow_mut() = Some(context.waker().clone());
            waiter.granted.get()
        });
        if granted {
            // The permit is the caller's now.
            self.waiter = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else {
            return;
        };
        if waiter.granted.get() {
            self.semaphore.release();
        } else {
            let mut queue = self.semaphore.queue.borrow_mut();
            queue.retain(|other| !Rc::ptr_eq(other, &waiter));
        }
    }
}

/// A permit of a [`Semaphore`].
#[derive(Debug)]
pub struct Permit<'a>(&'a Semaphore);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// A value that one task of the vCPU has at a time, also across awaits.
#[derive(Debug)]
pub struct Mutex<T> {
    turn: Semaphore,
    value: RefCell<T>,
}

impl<T> Mutex<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Self {
            turn: Semaphore::new(1),
            value: RefCell::new(value),
        }
    }

    /// Waits for the value.
    pub async fn lock(&self) -> Guard<'_, T> {
        let permit = self.turn.acquire().await;
        Guard {
            value: self.value.borrow_mut(),
            _permit: permit,
        }
    }
}

/// The value of a [`Mutex`]. The borrow ends before the permit goes on (field order).
#[derive(Debug)]
pub struct Guard<'a, T> {
    value: RefMut<'a, T>,
    _permit: Permit<'a>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}
