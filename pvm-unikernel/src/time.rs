//! Clocks, sleeping, time limits. One heap of timers for each vCPU.

use crate::arch::hypercall::vcpu;
use crate::arch::{MAX_VCPUS, PerCpu, clock, cpu};
use alloc::collections::BTreeMap;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::marker::PhantomData;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use core::time::Duration;

/// Nanoseconds since Xen's boot, never going back on a vCPU.
#[inline]
pub fn now_ns() -> u64 {
    clock::system_time_ns()
}

/// Unix time in nanoseconds, as Xen has it from the machine's clock.
pub fn wall_clock() -> u64 {
    clock::wall_clock_base_ns() + clock::system_time_ns()
}

/// This vCPU's timers by deadline; the number keeps equal deadlines apart.
struct Timers {
    waiting: RefCell<BTreeMap<(u64, u64), Waker>>,
    next_number: Cell<u64>,
    /// What Xen was last asked for; `u64::MAX`: nothing.
    armed: Cell<u64>,
}

static TIMERS: PerCpu<Timers> = PerCpu::new(
    [const {
        Timers {
            waiting: RefCell::new(BTreeMap::new()),
            next_number: Cell::new(0),
            armed: Cell::new(u64::MAX),
        }
    }; MAX_VCPUS],
);

/// Wakes the tasks of the running vCPU whose time has come.
pub(crate) fn fire(now_ns: u64) {
    let timers = TIMERS.here();
    loop {
        let due = {
            let mut waiting = timers.waiting.borrow_mut();
            let first = waiting.first_entry();
            first
                .filter(|entry| entry.key().0 <= now_ns)
                .map(|entry| entry.remove())
        };
        match due {
            Some(waker) => waker.wake(),
            None => return,
        }
    }
}

/// Asks Xen to end a block at the next deadline. False: it has already come.
pub(crate) fn arm() -> bool {
    let timers = TIMERS.here();
    let next = timers.waiting.borrow().keys().next().map(|key| key.0);
    let Some(deadline) = next else {
        // An old request may still end one block too early; that is all.
        return true;
    };
    let now = now_ns();
    if deadline <= now {
        return false;
    }
    let armed = timers.armed.get();
    // A request that has passed is spent.
    if armed != deadline || armed <= now {
        let here = u32::try_from(cpu::id()).expect("vCPU numbers are small");
        if vcpu::set_singleshot_timer(here, deadline).is_err() {
            return false;
        }
        timers.armed.set(deadline);
    }
    true
}

/// Ready at a time. Belongs to the vCPU that polls it first.
#[derive(Debug)]
pub struct Sleep {
    deadline_ns: u64,
    key: Option<(u64, u64)>,
    here: PhantomData<*const ()>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timers = TIMERS.here();
        if now_ns() >= self.deadline_ns {
            if let Some(key) = self.key.take() {
                timers.waiting.borrow_mut().remove(&key);
            }
            return Poll::Ready(());
        }
        let deadline = self.deadline_ns;
        let key = *self.key.get_or_insert_with(|| {
            let number = timers.next_number.get();
            timers.next_number.set(number + 1);
            (deadline, number)
        });
        timers
            .waiting
            .borrow_mut()
            .insert(key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            TIMERS.here().waiting.borrow_mut().remove(&key);
        }
    }
}

/// Waits until a system time.
pub fn sleep_until(deadline_ns: u64) -> Sleep {
    Sleep {
        deadline_ns,
        key: None,
        here: PhantomData,
    }
}

/// Waits.
pub fn sleep(duration: Duration) -> Sleep {
    let length = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    sleep_until(now_ns().saturating_add(length))
}

/// What was waited for did not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl core::fmt::Display for Elapsed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("timed out")
    }
}

impl core::error::Error for Elapsed {}

/// Waits for `future`, at most `limit`; drops it then.
///
/// # Errors
/// [`Elapsed`]: it was not ready in time.
pub async fn timeout<F: Future>(future: F, limit: Duration) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut end = pin!(sleep(limit));
    core::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        end.as_mut().poll(context).map(|()| Err(Elapsed))
    })
    .await
}
