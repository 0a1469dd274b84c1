//! A submission queue with its completion queue: memory, indices, doorbells.

use crate::regs;
use crate::wire::{Completion, Submission};
use core::mem::ManuallyDrop;
use hal::{DmaAllocator, DmaBuffer, Mmio, Node};
use zerocopy::FromZeros;

const SQE: usize = size_of::<Submission>();
const CQE: usize = size_of::<Completion>();

/// The driver's end of a queue pair. The caller keeps fewer commands in flight than
/// there are entries, so neither queue ever overflows.
///
/// The memory is never given back: the device may write completions until it is
/// stopped, and a disk is there as long as the machine is.
#[derive(Debug)]
pub struct Ring {
    regs: Mmio,
    submissions: ManuallyDrop<DmaBuffer>,
    completions: ManuallyDrop<DmaBuffer>,
    entries: u16,
    qid: u16,
    stride: usize,
    tail: u16,
    /// The tail that the device was told.
    told: u16,
    head: u16,
    /// The phase tag of entries that are new.
    phase: bool,
}

impl Ring {
    /// Memory for `entries` on `node`; `None`: there is none.
    pub fn new(
        regs: Mmio,
        stride: usize,
        qid: u16,
        entries: u16,
        dma: &dyn DmaAllocator,
        node: Node,
    ) -> Option<Self> {
        let pages = |entry: usize| (usize::from(entries) * entry).div_ceil(4096);
        Some(Self {
            regs,
            submissions: ManuallyDrop::new(dma.alloc(pages(SQE), node)?),
            completions: ManuallyDrop::new(dma.alloc(pages(CQE), node)?),
            entries,
            qid,
            stride,
            tail: 0,
            told: 0,
            head: 0,
            phase: true,
        })
    }

    /// Entries of each queue.
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Bus addresses of the submission and the completion queue.
    pub fn addresses(&self) -> (u64, u64) {
        (self.submissions.bus_addr(), self.completions.bus_addr())
    }

    /// As new. Only while the device does not use the queues.
    pub fn reset(&mut self) {
        for n in 0..usize::from(self.entries) {
            self.completions.write(n * CQE, &Completion::new_zeroed());
        }
        (self.tail, self.told, self.head, self.phase) = (0, 0, 0, true);
    }

    /// Puts a command into the queue; the device sees it after [`Self::tell`].
    pub fn push(&mut self, command: &Submission) {
        self.submissions
            .write(usize::from(self.tail) * SQE, command);
        self.tail = (self.tail + 1) % self.entries;
    }

    /// Rings the doorbell if there is something new.
    pub fn tell(&mut self) {
        if self.told != self.tail {
            self.told = self.tail;
            let (doorbell, _) = regs::doorbells(self.stride, self.qid);
            self.regs.write32(doorbell, self.tail.into());
        }
    }

    /// Takes the next completion. Entries are given back by [`Self::give_back`].
    pub fn pop(&mut self) -> Option<Completion> {
        let at = usize::from(self.head) * CQE;
        // The last dword holds the phase: it is read by itself, before the rest.
        let last: u32 = self.completions.read(at + 12);
        if (last >> 16 & 1 != 0) != self.phase {
            return None;
        }
        let entry = self.completions.read(at);
        self.head = (self.head + 1) % self.entries;
        self.phase ^= self.head == 0;
        Some(entry)
    }

    /// Tells the device how far completions were taken.
    pub fn give_back(&mut self) {
        let (_, doorbell) = regs::doorbells(self.stride, self.qid);
        self.regs.write32(doorbell, self.head.into());
    }
}
