//! The I/O queue of one vCPU.

use crate::device::{Life, Shared};
use crate::ring::Ring;
use crate::slots::Slots;
use crate::wire::{Submission, opcode};
use crate::{COMMAND_TIMEOUT_NS, prp};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::mem;
use core::task::{Context, Poll, Waker};
use hal::block::{BlockCommand, BlockError, BlockInfo, BlockOp, BlockQueue, Segments, Ticket};
use hal::{DmaBuffer, Interrupt, Timer};
use zerocopy::FromZeros;

/// A queue's memory, before its vCPU takes it.
#[derive(Debug)]
pub struct Seed {
    pub ring: Ring,
    /// A page for each slot: PRP list or discard range.
    pub lists: Vec<DmaBuffer>,
}

struct Inner {
    ring: Ring,
    slots: Slots,
    lists: Vec<DmaBuffer>,
    /// The life that the queue is in step with; see [`Life`].
    seen: u32,
    service: Option<Waker>,
}

/// A [`BlockQueue`] of an NVMe controller.
pub struct NvmeQueue {
    shared: Arc<Shared>,
    /// Its place among the controller's queues.
    index: usize,
    inner: RefCell<Inner>,
    interrupt: Box<dyn Interrupt>,
    timer: Rc<dyn Timer>,
    /// When to look at the age of commands next; 0: when the next one is begun.
    check_ns: Cell<u64>,
    /// Commands that the device failed.
    failures: Cell<u64>,
}

impl fmt::Debug for NvmeQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeQueue")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl NvmeQueue {
    pub fn new(
        shared: Arc<Shared>,
        index: usize,
        seed: Seed,
        interrupt: Box<dyn Interrupt>,
        timer: Rc<dyn Timer>,
    ) -> Self {
        let slots = Slots::new(u16::try_from(seed.lists.len()).expect("a page for each slot"));
        let seen = shared.life().epoch;
        Self {
            shared,
            index,
            inner: RefCell::new(Inner {
                ring: seed.ring,
                slots,
                lists: seed.lists,
                seen,
                service: None,
            }),
            interrupt,
            timer,
            check_ns: Cell::new(0),
            failures: Cell::new(0),
        }
    }

    /// Takes what the device has completed; whether there was anything.
    fn take_completions(&self) -> bool {
        let mut any = false;
        loop {
            let mut inner = self.inner.borrow_mut();
            // The ring belongs to nobody while the controller is being reset.
            if inner.seen != self.shared.life().epoch {
                return any;
            }
            let Some(entry) = inner.ring.pop() else { break };
            any = true;
            let result = entry.status().to_result();
            let hold = inner.slots.finish(entry.command_id, result);
            drop(inner);
            match hold {
                // Dropped here, where nothing of ours is borrowed.
                Ok(hold) => drop(hold),
                Err(_) => {
                    log::error!(
                        "nvme: queue {}: completion of command {:#x}, which is not in flight",
                        self.index,
                        entry.command_id
                    );
                    self.shared.want_reset();
                    break;
                }
            }
            if let Err(error) = result {
                self.failed(error);
            }
        }
        if any {
            self.shared.progress();
            self.inner.borrow_mut().ring.give_back();
        }
        any
    }

    /// Logs a failed command. A guest may read a bad block as often as it likes, so the
    /// more have failed the fewer are logged: the 1st, 2nd, 4th, 8th...
    fn failed(&self, error: BlockError) {
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        if failures.is_power_of_two() {
            log::warn!(
                "nvme: queue {}: {error}; failed commands so far: {failures}",
                self.index
            );
        }
    }

    fn tell(&self) {
        let mut inner = self.inner.borrow_mut();
        let life = self.shared.life();
        if life.state.is_running() && inner.seen == life.epoch {
            inner.ring.tell();
        }
    }

    /// Looks whether a command is too old.
    fn watch(&self, cx: &mut Context<'_>) {
        if self.inner.borrow().slots.in_flight() == 0 {
            self.check_ns.set(0);
            return;
        }
        loop {
            let now = self.timer.now_ns();
            if self.check_ns.get() == 0 {
                self.check_ns.set(now.saturating_add(COMMAND_TIMEOUT_NS));
            }
            if self
                .timer
                .poll_deadline(self.check_ns.get(), cx)
                .is_pending()
            {
                return;
            }
            let limit = self.timer.now_ns().saturating_sub(COMMAND_TIMEOUT_NS);
            let mut inner = self.inner.borrow_mut();
            let late = match inner.slots.oldest_ns() {
                Some(oldest) if oldest <= limit => inner.slots.time_out(limit),
                _ => 0,
            };
            let next = inner.slots.oldest_ns().filter(|oldest| *oldest > limit);
            drop(inner);
            if late > 0 {
                log::error!(
                    "nvme: queue {}: {late} commands without an answer for {} s",
                    self.index,
                    COMMAND_TIMEOUT_NS / 1_000_000_000
                );
                self.shared.want_reset();
            }
            // Late ones are in the hands of the reset now; look again when others may be.
            let next = next.unwrap_or_else(|| self.timer.now_ns());
            self.check_ns.set(next.saturating_add(COMMAND_TIMEOUT_NS));
        }
    }

    /// Follows the controller's life; `Ready` at its end.
    fn follow(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.register(self.index, cx.waker());
        let Life { state, epoch } = self.shared.life();
        let mut inner = self.inner.borrow_mut();
        if state.is_dead() {
            inner.slots.time_out(u64::MAX);
            inner.slots.wake_waiting();
            return Poll::Ready(());
        }
        if state.is_stopped() && inner.seen != epoch {
            // CSTS.RDY was seen 0: the device touches nothing any more.
            inner.ring.reset();
            let holds = inner.slots.finish_all(BlockError::Reset);
            inner.seen = epoch;
            drop(inner);
            drop(holds);
            self.shared.acknowledge();
            inner = self.inner.borrow_mut();
        }
        if state.is_running() && (inner.slots.in_flight() == 0) {
            inner.slots.wake_waiting();
        }
        Poll::Pending
    }

    fn build(&self, inner: &Inner, slot: u16, command: &BlockCommand<'_>) -> Submission {
        let list = &inner.lists[usize::from(slot)];
        let [low, high] = [command.block & 0xffff_ffff, command.block >> 32]
            .map(|half| u32::try_from(half).expect("half of a u64"));
        let mut entry = Submission {
            command_id: slot,
            namespace: self.shared.namespace(),
            ..Submission::new_zeroed()
        };
        match command.op {
            BlockOp::Read | BlockOp::Write => {
                entry.opcode = match command.op {
                    BlockOp::Read => opcode::READ,
                    _ => opcode::WRITE,
                };
                let pointers = prp::build(command.segments.iter(), list.bus_addr(), |n, addr| {
                    list.write(n * 8, &addr);
                });
                (entry.prp1, entry.prp2) = (pointers.prp1, pointers.prp2);
                entry.cdw = [low, high, command.blocks - 1, 0, 0, 0];
            }
            BlockOp::Flush => entry.opcode = opcode::FLUSH,
            BlockOp::Discard => {
                entry.opcode = opcode::DATASET_MANAGEMENT;
                // One range: attributes, length, start. Deallocate is attribute bit 2.
                list.write(0, &[0, command.blocks, low, high]);
                entry.prp1 = list.bus_addr();
                entry.cdw = [0, 1 << 2, 0, 0, 0, 0];
            }
        }
        entry
    }
}

impl BlockQueue for NvmeQueue {
    fn info(&self) -> &BlockInfo {
        self.shared.info()
    }

    fn fits(&self, segments: Segments<'_>) -> u32 {
        let info = self.shared.info();
        prp::prefix(segments.iter(), info.max_transfer, info.block_size)
    }

    fn poll_submit(
        &self,
        command: &BlockCommand<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Ticket, BlockError>> {
        let life = self.shared.life();
        let mut inner = self.inner.borrow_mut();
        if life.state.is_dead() {
            return Poll::Ready(Err(BlockError::Reset));
        }
        if !life.state.is_running() || inner.seen != life.epoch {
            inner.slots.wait(cx);
            return Poll::Pending;
        }
        let Poll::Ready(slot) = inner.slots.poll_free(cx) else {
            return Poll::Pending;
        };
        let entry = self.build(&inner, slot, command);
        inner.ring.push(&entry);
        let ticket = inner
            .slots
            .begin(self.timer.now_ns(), command.hold.cloned());
        // The service task rings the doorbell, once for all that was put in before it runs.
        if let Some(waker) = inner.service.take() {
            waker.wake();
        }
        Poll::Ready(Ok(ticket))
    }

    fn poll_complete(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), BlockError>> {
        self.inner.borrow_mut().slots.poll(ticket, cx)
    }

    fn abandon(&self, ticket: Ticket) {
        self.inner.borrow_mut().slots.abandon(ticket);
    }

    fn poll_service(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.borrow_mut().service = Some(cx.waker().clone());
        if self.follow(cx).is_ready() {
            return Poll::Ready(());
        }
        self.inner.borrow_mut().slots.lapse();
        loop {
            self.take_completions();
            self.tell();
            // Looked at last: what completes from here on raises the interrupt again.
            if self.interrupt.poll_interrupt(cx).is_pending() {
                break;
            }
        }
        self.watch(cx);
        Poll::Pending
    }
}

impl Drop for NvmeQueue {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        // With commands in flight the device may still touch their memory and lists: these
        // are leaked, not freed. The ring leaks itself.
        if inner.slots.in_flight() > 0 {
            log::error!("nvme: queue {} dropped with commands in flight", self.index);
            mem::forget(mem::take(&mut inner.lists));
            mem::forget(mem::replace(&mut inner.slots, Slots::new(0)));
        }
    }
}
