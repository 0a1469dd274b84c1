//! Tasks: their futures, their wakers, their handles.

use super::{Account, LOCAL, MAILBOXES, enqueue, kick};
use crate::arch::SpinLock;
use crate::arch::cpu;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::task::{Context, Poll, Waker};
use hal::VcpuId;

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Not yet on its vCPU, or over.
const NOWHERE: usize = usize::MAX;

/// The part of a task that other vCPUs may hold; its future stays in its vCPU's slots.
pub(super) struct TaskRef {
    vcpu: u32,
    slot: AtomicUsize,
    queued: AtomicBool,
    cancelled: AtomicBool,
    account: Option<Account>,
}

impl TaskRef {
    fn new(vcpu: u32, account: Option<Account>) -> Arc<Self> {
        Arc::new(Self {
            vcpu,
            slot: AtomicUsize::new(NOWHERE),
            queued: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            account,
        })
    }

    pub(super) fn vcpu(&self) -> u32 {
        self.vcpu
    }

    pub(super) fn charge(&self, ns: u64) {
        if let Some(account) = &self.account {
            account.charge(ns);
        }
    }
}

impl Wake for TaskRef {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            enqueue(self);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            enqueue(self.clone());
        }
    }
}

/// The futures of one vCPU's tasks.
pub(super) struct Slots {
    /// `None` while the task is being polled, or the slot is free.
    futures: Vec<Option<LocalFuture>>,
    free: Vec<usize>,
}

impl Slots {
    pub(super) const fn new() -> Self {
        Self {
            futures: Vec::new(),
            free: Vec::new(),
        }
    }

    fn insert(&mut self, future: LocalFuture) -> usize {
        if let Some(slot) = self.free.pop() {
            self.futures[slot] = Some(future);
            return slot;
        }
        self.futures.push(Some(future));
        self.futures.len() - 1
    }
}

/// Puts a future in the running vCPU's slots and queues its first poll.
fn place(task: &Arc<TaskRef>, future: LocalFuture) {
    debug_assert_eq!(task.vcpu as usize, cpu::id());
    let slot = LOCAL.here().slots.borrow_mut().insert(future);
    task.slot.store(slot, Ordering::Release);
    task.wake_by_ref();
}

/// Polls a task once, or drops it if it was cancelled.
pub(super) fn run(task: &Arc<TaskRef>, slots: &RefCell<Slots>) {
    // A wake from here on queues the task again.
    task.queued.store(false, Ordering::SeqCst);
    let slot = task.slot.load(Ordering::Acquire);
    if slot == NOWHERE {
        return;
    }
    let future = slots.borrow_mut().futures[slot].take();
    let Some(mut future) = future else {
        return;
    };
    let over = task.cancelled.load(Ordering::Acquire) || {
        let waker = Waker::from(task.clone());
        future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
    };
    if over {
        task.slot.store(NOWHERE, Ordering::Release);
        // The future's own drop may spawn tasks: the slots are not borrowed here.
        drop(future);
        slots.borrow_mut().free.push(slot);
    } else {
        slots.borrow_mut().futures[slot] = Some(future);
    }
}

/// The task was cancelled before it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task was cancelled")
    }
}

impl core::error::Error for Cancelled {}

/// Where a task leaves its result.
enum Outcome<T> {
    Running(Option<Waker>),
    Done(T),
    /// Cancelled, or the result was taken.
    Gone,
}

/// The task's end of its outcome: says "gone" if the future is dropped undone.
struct Completer<T>(Arc<SpinLock<Outcome<T>>>);

impl<T> Completer<T> {
    fn finish(&self, outcome: Outcome<T>) {
        let before = core::mem::replace(&mut *self.0.lock(), outcome);
        if let Outcome::Running(Some(waiter)) = before {
            waiter.wake();
        }
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        let running = matches!(*self.0.lock(), Outcome::Running(_));
        if running {
            self.finish(Outcome::Gone);
        }
    }
}

/// A handle on a task: await it for its result. Dropping it leaves the task running.
pub struct Task<T> {
    task: Arc<TaskRef>,
    outcome: Arc<SpinLock<Outcome<T>>>,
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Task(vCPU {}, done {})",
            self.task.vcpu,
            self.is_finished()
        )
    }
}

impl<T> Task<T> {
    /// Drops the task's future on its vCPU, at its next turn; it is not polled again.
    pub fn cancel(&self) {
        self.task.cancelled.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }

    /// Whether the task is done or cancelled.
    pub fn is_finished(&self) -> bool {
        !matches!(*self.outcome.lock(), Outcome::Running(_))
    }

    /// Where it runs.
    pub fn vcpu(&self) -> VcpuId {
        VcpuId(self.task.vcpu)
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, Cancelled>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut outcome = self.outcome.lock();
        match core::mem::replace(&mut *outcome, Outcome::Gone) {
            Outcome::Running(_) => {
                *outcome = Outcome::Running(Some(context.waker().clone()));
                Poll::Pending
            }
            Outcome::Done(result) => Poll::Ready(Ok(result)),
            Outcome::Gone => Poll::Ready(Err(Cancelled)),
        }
    }
}

/// The account of the running task.
fn own_account() -> Option<Account> {
    let current = LOCAL.here().current.borrow();
    current.as_ref().and_then(|task| task.account.clone())
}

/// Starts a task on the running vCPU, paid by whoever pays for the running task.
pub fn spawn_local<F: Future + 'static>(future: F) -> Task<F::Output> {
    start_local(own_account(), future)
}

/// Starts a task on the running vCPU, paid by `account`.
pub fn spawn_local_for<F: Future + 'static>(account: &Account, future: F) -> Task<F::Output> {
    start_local(Some(account.clone()), future)
}

fn start_local<F: Future + 'static>(account: Option<Account>, future: F) -> Task<F::Output> {
    let here = u32::try_from(cpu::id()).expect("vCPU numbers are small");
    let task = TaskRef::new(here, account);
    let outcome = Arc::new(SpinLock::new(Outcome::Running(None)));
    place(&task, wrap(Completer(outcome.clone()), future));
    Task { task, outcome }
}

fn wrap<F: Future + 'static>(completer: Completer<F::Output>, future: F) -> LocalFuture {
    Box::pin(async move {
        let result = future.await;
        completer.finish(Outcome::Done(result));
    })
}

/// Starts a task on `vcpu`: `make` runs there and makes the future, which need not be
/// `Send`. Paid by whoever pays for the running task.
///
/// # Panics
/// If there is no such vCPU.
pub fn spawn_on<M, F>(vcpu: VcpuId, make: M) -> Task<F::Output>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future + 'static,
    F::Output: Send,
{
    start_on(vcpu, own_account(), make)
}

/// As [`spawn_on`], paid by `account`.
///
/// # Panics
/// If there is no such vCPU.
pub fn spawn_on_for<M, F>(vcpu: VcpuId, account: &Account, make: M) -> Task<F::Output>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future + 'static,
    F::Output: Send,
{
    start_on(vcpu, Some(account.clone()), make)
}

fn start_on<M, F>(vcpu: VcpuId, account: Option<Account>, make: M) -> Task<F::Output>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future + 'static,
    F::Output: Send,
{
    assert!(vcpu.0 < super::vcpu_count(), "there is no vCPU {}", vcpu.0);
    let task = TaskRef::new(vcpu.0, account);
    let outcome = Arc::new(SpinLock::new(Outcome::Running(None)));
    let handle = Task {
        task: task.clone(),
        outcome: outcome.clone(),
    };
    let completer = Completer(outcome);
    let spawn: Box<dyn FnOnce() + Send> = Box::new(move || {
        if !task.cancelled.load(Ordering::Acquire) {
            place(&task, wrap(completer, make()));
        }
    });
    if vcpu.0 as usize == cpu::id() {
        spawn();
    } else {
        MAILBOXES[vcpu.0 as usize].spawns.push(spawn);
        kick(vcpu.0);
    }
    handle
}
