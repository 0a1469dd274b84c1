//! Commands in flight of one queue: who waits, and what must be kept until then.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::{Context, Poll, Waker};
use hal::block::{BlockError, Hold, Ticket};

#[derive(Debug, Default)]
enum State {
    #[default]
    Free,
    /// The device has it, and may touch its memory.
    InFlight {
        since_ns: u64,
        waiter: Waiter,
        hold: Option<HoldBox>,
    },
    /// Nobody has asked for the result yet.
    Done(Result<(), BlockError>),
}

#[derive(Debug)]
enum Waiter {
    /// Will ask; woken when done.
    Waits(Option<Waker>),
    /// Will ask, and be told of the timeout.
    TimedOut,
    /// Nobody will ask.
    Gone,
}

struct HoldBox(Hold);

impl core::fmt::Debug for HoldBox {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Hold")
    }
}

#[derive(Debug, Default)]
struct Slot {
    state: State,
    /// Counts uses, so that a stale ticket is noticed.
    generation: u16,
}

/// A completion of a command that is not in flight: the device is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray;

/// The slots of one queue; a slot's index is the command identifier.
///
/// Who waits gets a slot before who comes later, and before who has just given one back
/// and wants it again: else two tasks with much to do would share all slots for ever. A
/// slot that becomes free is therefore promised to the task that has waited longest.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    in_flight: u16,
    /// Tasks that wait for a free slot.
    queue: VecDeque<Waker>,
    /// Tasks that were woken to take one of the free slots.
    promised: VecDeque<Promise>,
}

#[derive(Debug)]
struct Promise {
    to: Waker,
    /// Was there at the last [`Slots::lapse`].
    old: bool,
}

impl Slots {
    pub fn new(count: u16) -> Self {
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
            free: (0..count).rev().collect(),
            in_flight: 0,
            queue: VecDeque::new(),
            promised: VecDeque::new(),
        }
    }

    /// Commands that the device has.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// A free slot's index, to be followed by [`Self::begin`]; registers the waker if
    /// there is none, or none for this task.
    pub fn poll_free(&mut self, cx: &mut Context<'_>) -> Poll<u16> {
        let promise = (self.promised.iter()).position(|p| p.to.will_wake(cx.waker()));
        if let Some(at) = promise {
            self.promised.remove(at);
        }
        if promise.is_some() || self.free.len() > self.promised.len() {
            // There are never more promises than free slots.
            if let Some(index) = self.free.last() {
                return Poll::Ready(*index);
            }
        }
        self.wait(cx);
        Poll::Pending
    }

    /// Takes back what was promised before the last call: its task has run since, or is
    /// gone. To be called by a task of the same executor, which runs tasks in the order in
    /// which they were woken.
    pub fn lapse(&mut self) {
        let before = self.promised.len();
        self.promised.retain(|promise| !promise.old);
        for promise in &mut self.promised {
            promise.old = true;
        }
        for _ in self.promised.len()..before {
            self.promise();
        }
    }

    /// Promises a free slot to the one that has waited longest.
    fn promise(&mut self) {
        if let Some(to) = self.queue.pop_front() {
            to.wake_by_ref();
            self.promised.push_back(Promise { to, old: false });
        }
    }

    /// Registers a task for the next change.
    pub fn wait(&mut self, cx: &mut Context<'_>) {
        if !self.queue.iter().any(|w| w.will_wake(cx.waker())) {
            self.queue.push_back(cx.waker().clone());
        }
    }

    /// Takes the slot that [`Self::poll_free`] gave.
    pub fn begin(&mut self, now_ns: u64, hold: Option<Hold>) -> Ticket {
        let index = self.free.pop().expect("poll_free said there is a slot");
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::InFlight {
            since_ns: now_ns,
            waiter: Waiter::Waits(None),
            hold: hold.map(HoldBox),
        };
        self.in_flight += 1;
        Ticket(u32::from(slot.generation) << 16 | u32::from(index))
    }

    /// The device has completed a command. The hold is for the caller to drop, once it
    /// has let go of this object: what its drop does is not known here.
    pub fn finish(
        &mut self,
        index: u16,
        result: Result<(), BlockError>,
    ) -> Result<Option<Hold>, Stray> {
        let slot = self.slots.get_mut(usize::from(index)).ok_or(Stray)?;
        let state = core::mem::take(&mut slot.state);
        let State::InFlight { waiter, hold, .. } = state else {
            slot.state = state;
            return Err(Stray);
        };
        self.in_flight -= 1;
        match waiter {
            Waiter::Waits(waker) => {
                slot.state = State::Done(result);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            // Woken already, and not polled since.
            Waiter::TimedOut => slot.state = State::Done(Err(BlockError::Timeout)),
            Waiter::Gone => self.release(index),
        }
        Ok(hold.map(|hold| hold.0))
    }

    /// All commands end: the device was stopped. The holds are for the caller to drop.
    #[must_use]
    pub fn finish_all(&mut self, error: BlockError) -> Vec<Hold> {
        // There are fewer slots than u16 has values.
        (0..u16::try_from(self.slots.len()).expect("made from a u16"))
            .filter_map(|index| self.finish(index, Err(error)).ok().flatten())
            .collect()
    }

    /// The result of a command.
    pub fn poll(&mut self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), BlockError>> {
        let index = self.index(ticket);
        let slot = &mut self.slots[usize::from(index)];
        match &mut slot.state {
            State::Done(result) => {
                let result = *result;
                self.release(index);
                Poll::Ready(result)
            }
            State::InFlight { waiter, .. } => match waiter {
                Waiter::Waits(waker) => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                Waiter::TimedOut => {
                    *waiter = Waiter::Gone;
                    Poll::Ready(Err(BlockError::Timeout))
                }
                Waiter::Gone => panic!("a ticket was used twice"),
            },
            State::Free => panic!("a ticket was used twice"),
        }
    }

    /// Nobody will ask for the result.
    pub fn abandon(&mut self, ticket: Ticket) {
        let index = self.index(ticket);
        match &mut self.slots[usize::from(index)].state {
            State::Done(_) => self.release(index),
            State::InFlight { waiter, .. } => *waiter = Waiter::Gone,
            State::Free => panic!("a ticket was used twice"),
        }
    }

    /// When the oldest command was begun.
    pub fn oldest_ns(&self) -> Option<u64> {
        let since = self.slots.iter().filter_map(|slot| match &slot.state {
            State::InFlight { since_ns, .. } => Some(*since_ns),
            _ => None,
        });
        since.min()
    }

    /// Tells the waiters of commands begun at or before `limit_ns` that they failed. The
    /// commands stay in flight. How many there were.
    pub fn time_out(&mut self, limit_ns: u64) -> usize {
        let mut count = 0;
        for slot in &mut self.slots {
            if let State::InFlight {
                since_ns, waiter, ..
            } = &mut slot.state
                && *since_ns <= limit_ns
            {
                count += 1;
                if let Waiter::Waits(waker) = waiter {
                    if let Some(waker) = waker.take() {
                        waker.wake();
                    }
                    *waiter = Waiter::TimedOut;
                }
            }
        }
        count
    }

    /// Wakes all that wait for a slot; the first to come gets it.
    pub fn wake_waiting(&mut self) {
        self.promised.clear();
        for waker in self.queue.drain(..) {
            waker.wake();
        }
    }

    fn release(&mut self, index: u16) {
        self.slots[usize::from(index)].state = State::Free;
        self.free.push(index);
        // One slot, one task. That task may be gone and others wait in vain, but not for
        // ever: its promise lapses, and once the queue has drained, all are woken.
        if self.in_flight == 0 {
            self.wake_waiting();
        } else {
            self.promise();
        }
    }

    fn index(&self, ticket: Ticket) -> u16 {
        let [low, high] = [ticket.0 & 0xffff, ticket.0 >> 16];
        let index = u16::try_from(low).expect("masked");
        let slot = &self.slots[usize::from(index)];
        assert_eq!(u32::from(slot.generation), high, "a ticket was used twice");
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;
    use alloc::task::Wake;
    use core::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Task {
        woken: AtomicBool,
    }

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.woken.store(true, Ordering::Relaxed);
        }
    }

    fn poll(slots: &mut Slots, task: &Arc<Task>) -> Option<Ticket> {
        let waker = Waker::from(task.clone());
        let free = slots.poll_free(&mut Context::from_waker(&waker));
        free.is_ready().then(|| slots.begin(0, None))
    }

    fn end(slots: &mut Slots, ticket: Ticket) {
        let index = u16::try_from(ticket.0 & 0xffff).unwrap();
        assert!(slots.finish(index, Ok(())).is_ok());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(slots.poll(ticket, &mut cx).is_ready());
    }

    #[test]
    fn a_free_slot_is_for_who_waited_longest_not_for_who_comes_first() {
        let mut slots = Slots::new(2);
        let [a, b, c, d] = [(); 4].map(|()| Arc::new(Task::default()));
        let (first, _second) = (poll(&mut slots, &a).unwrap(), poll(&mut slots, &b).unwrap());
        assert_eq!((poll(&mut slots, &c), poll(&mut slots, &d)), (None, None));
        end(&mut slots, first);
        assert!(c.woken.load(Ordering::Relaxed) && !d.woken.load(Ordering::Relaxed));
        // Who had it is first to ask, and waits behind the others.
        assert_eq!(poll(&mut slots, &a), None);
        assert_eq!(poll(&mut slots, &d), None);
        let third = poll(&mut slots, &c).unwrap();
        end(&mut slots, third);
        assert_eq!(poll(&mut slots, &a), None);
        assert!(poll(&mut slots, &d).is_some());
    }

    #[test]
    fn a_promise_to_a_task_that_went_away_goes_to_the_next() {
        let mut slots = Slots::new(2);
        let [a, b, gone, d] = [(); 4].map(|()| Arc::new(Task::default()));
        let (first, second) = (poll(&mut slots, &a).unwrap(), poll(&mut slots, &b).unwrap());
        assert_eq!(
            (poll(&mut slots, &gone), poll(&mut slots, &d)),
            (None, None)
        );
        end(&mut slots, first);
        slots.lapse();
        // It may be just about to run.
        assert_eq!(poll(&mut slots, &d), None);
        slots.lapse();
        assert!(d.woken.load(Ordering::Relaxed));
        assert!(poll(&mut slots, &d).is_some());
        // And a slot that nobody waits for is anybody's.
        end(&mut slots, second);
        assert!(poll(&mut slots, &a).is_some());
    }
}
