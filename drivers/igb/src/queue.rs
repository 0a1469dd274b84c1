//! One queue pair.

use crate::descriptor::{self, RxDone, Work};
use crate::registers::{self as reg, rx, tx};
use crate::{Shared, statistics::Counted};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use core::task::{Context, Poll};
use hal::net::{
    Checksum, Frame, FramePart, IpVersion, MAX_PARTS, NetQueue, Offloads, PacketBuffer, PacketPool,
};
use hal::{DmaBuffer, Interrupt, Mmio};

/// Descriptors of a ring: one page of them.
pub const RING: usize = 4096 / descriptor::SIZE;
/// Receive buffers posted at most: half a MiB for each queue.
const RX_POSTED: usize = 128;
/// Descriptors that the longest frame takes: its parts and a context.
const TX_MOST: usize = MAX_PARTS + 1;

/// Register reads until a queue must have stopped: each takes a microsecond.
const PATIENCE: usize = 10_000;

/// Where a ring goes on.
fn next(index: usize) -> usize {
    (index + 1) % RING
}

/// The rings of a queue nobody has taken yet.
#[derive(Debug)]
pub struct Seat {
    pub rx_ring: DmaBuffer,
    pub tx_ring: DmaBuffer,
}

/// A frame that the device may still read.
struct InFlight {
    parts: Vec<FramePart>,
    /// Its last descriptor: the one that reports.
    last: usize,
    /// Descriptors it takes.
    count: usize,
}

pub struct Queue {
    shared: Arc<Shared>,
    number: usize,
    interrupt: Box<dyn Interrupt>,
    pool: PacketPool,
    /// Register reads that are spent on its stop.
    pub patience: usize,

    /// Shared with nobody, unless the queue does not stop: then a second owner, who never
    /// lets go of it, outlives the queue.
    rx_ring: Rc<DmaBuffer>,
    /// Posted buffers, oldest first; the first one is at `rx_head`.
    posted: VecDeque<PacketBuffer>,
    rx_head: usize,
    rx_tail: usize,
    /// Parts of a frame whose end has not come yet.
    gathering: Frame,
    /// The frame being gathered is longer than a frame can be.
    too_long: bool,

    /// As `rx_ring`.
    tx_ring: Rc<DmaBuffer>,
    in_flight: VecDeque<InFlight>,
    tx_tail: usize,
    tx_used: usize,
    /// The context that the device has now.
    context: Option<[u32; 4]>,
    tx_armed: bool,
    /// The transmit queue was told to stop and has not yet: nothing is put into its ring.
    tx_stopping: bool,
}

impl Queue {
    pub fn start(
        shared: Arc<Shared>,
        number: usize,
        seat: Seat,
        interrupt: Box<dyn Interrupt>,
        pool: PacketPool,
    ) -> Self {
        let mut queue = Self {
            shared,
            number,
            interrupt,
            pool,
            patience: PATIENCE,
            rx_ring: Rc::new(seat.rx_ring),
            posted: VecDeque::with_capacity(RX_POSTED),
            rx_head: 0,
            rx_tail: 0,
            gathering: Frame::empty(),
            too_long: false,
            tx_ring: Rc::new(seat.tx_ring),
            in_flight: VecDeque::new(),
            tx_tail: 0,
            tx_used: 0,
            context: None,
            tx_armed: false,
            tx_stopping: false,
        };
        queue.program();
        queue.refill();
        queue
    }

    fn regs(&self) -> &Mmio {
        &self.shared.regs
    }

    fn program(&self) {
        let regs = self.regs();
        let at = rx::base(self.number);
        let [low, high] = descriptor::halves(self.rx_ring.bus_addr());
        let bytes = u32::try_from(RING * descriptor::SIZE).expect("a page");
        regs.write32(at + rx::RXDCTL, 0);
        regs.write32(at + rx::RDBAL, low);
        regs.write32(at + rx::RDBAH, high);
        regs.write32(at + rx::RDLEN, bytes);
        regs.write32(at + rx::SRRCTL, rx::SRRCTL_VALUE);
        regs.write32(at + rx::RDH, 0);
        regs.write32(at + rx::RDT, 0);
        // Head and tail may be moved by enabling: the tail is written afterwards.
        regs.write32(at + rx::RXDCTL, rx::RXDCTL_VALUE);

        self.program_tx();
        self.shared
            .set_vectors(self.number, Shared::queue_vector(self.number), false);
        let vector = 1 << Shared::queue_vector(self.number);
        regs.write32(reg::EIMS, vector);
    }

    fn program_tx(&self) {
        let regs = self.regs();
        let at = tx::base(self.number);
        let bytes = u32::try_from(RING * descriptor::SIZE).expect("a page");
        let [low, high] = descriptor::halves(self.tx_ring.bus_addr());
        regs.write32(at + tx::TXDCTL, 0);
        regs.write32(at + tx::TDBAL, low);
        regs.write32(at + tx::TDBAH, high);
        regs.write32(at + tx::TDLEN, bytes);
        regs.write32(at + tx::TDH, 0);
        regs.write32(at + tx::TDT, 0);
        regs.write32(at + tx::TXDCTL, tx::TXDCTL_VALUE);
    }

    /// Takes back what is in the transmit ring, unsent, and starts it anew. A queue that does
    /// not stop at once keeps its frames until it has.
    fn flush_tx(&mut self) {
        let txdctl = tx::base(self.number) + tx::TXDCTL;
        self.regs().write32(txdctl, 0);
        let looks = if self.tx_stopping { 1 } else { self.patience };
        let stopped = (0..looks).any(|_| self.regs().read32(txdctl) & tx::ENABLE == 0);
        if !stopped {
            if !self.tx_stopping {
                log::error!(
                    "igb: transmit queue {} does not stop; it sends nothing until it has",
                    self.number
                );
            }
            self.tx_stopping = true;
            return;
        }
        let unsent = self.in_flight.len() as u64;
        self.shared.counted.add(Counted::TxUnsent, unsent);
        self.in_flight.clear();
        if self.tx_stopping {
            log::warn!(
                "igb: transmit queue {} has stopped: started anew, {unsent} frames lost",
                self.number
            );
        }
        (self.tx_tail, self.tx_used, self.context) = (0, 0, None);
        self.tx_stopping = false;
        self.program_tx();
    }

    fn rx_done(&self) -> Option<RxDone> {
        if self.posted.is_empty() {
            return None;
        }
        let at = self.rx_head * descriptor::SIZE;
        let status: u32 = self.rx_ring.read(at + descriptor::RX_STATUS);
        if status & descriptor::DONE == 0 {
            return None;
        }
        let len = self.rx_ring.read(at + descriptor::RX_STATUS + 4);
        Some(RxDone::from_words(status, len))
    }

    fn tx_done(&self) -> bool {
        self.in_flight.front().is_some_and(|frame| {
            let at = frame.last * descriptor::SIZE + descriptor::TX_STATUS;
            self.tx_ring.read::<u32>(at) & descriptor::DONE != 0
        })
    }

    fn put(&mut self, descriptor: &[u32; 4]) -> usize {
        let at = self.tx_tail;
        self.tx_ring.write(at * descriptor::SIZE, descriptor);
        self.tx_tail = next(at);
        self.tx_used += 1;
        at
    }

    /// Adds a received buffer to the frame; the frame if it is complete.
    fn gather(&mut self, buffer: PacketBuffer, done: RxDone) -> Option<Frame> {
        let room = self.gathering.parts().len() < MAX_PARTS;
        if usize::from(done.len) <= buffer.len() && room {
            if done.len > 0 {
                self.gathering.push(FramePart {
                    buffer,
                    offset: 0,
                    len: done.len,
                });
            }
        } else {
            self.too_long = true;
        }
        if !done.end_of_packet() {
            return None;
        }
        let mut frame = core::mem::replace(&mut self.gathering, Frame::empty());
        let bad = core::mem::take(&mut self.too_long) || done.is_bad() || frame.is_empty();
        if bad {
            self.shared.counted.add(Counted::RxBad, 1);
            return None;
        }
        frame.checksum = done.checksum();
        Some(frame)
    }
}

impl NetQueue for Queue {
    fn has_carrier(&self) -> bool {
        self.shared.carrier.load(Ordering::Acquire)
    }

    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        if !self.has_room() || !Shared::OFFLOADS.can_send(&frame) || frame.is_empty() {
            return Err(frame);
        }
        let first = self.tx_used;
        if let Checksum::Partial(layout) = frame.checksum {
            if frame.mss.is_some() {
                // The device puts the lengths and the IPv4 checksum of each segment there,
                // and adds to what it finds (7.2.4.2).
                match layout.ip {
                    IpVersion::V4 => {
                        frame.write(layout.l3_start() + 2, &[0, 0]);
                        frame.write(layout.l3_start() + 10, &[0, 0]);
                    }
                    IpVersion::V6 => frame.write(layout.l3_start() + 4, &[0, 0]),
                }
            }
            let context = descriptor::context(&layout, frame.mss.map(core::num::NonZero::get));
            if self.context != Some(context) {
                self.put(&context);
                self.context = Some(context);
            }
        }
        let work = Work::of(frame.len(), frame.checksum, frame.mss.is_some());
        let parts = frame.into_parts();
        let mut last = self.tx_tail;
        for (n, part) in parts.iter().enumerate() {
            let segment = part.segment();
            let end = n + 1 == parts.len();
            last = self.put(&work.data(segment.bus_addr, segment.len, end));
        }
        self.in_flight.push_back(InFlight {
            parts,
            last,
            count: self.tx_used - first,
        });
        Ok(())
    }

    fn kick(&mut self) {
        let tail = u32::try_from(self.tx_tail).expect("below the ring's size");
        self.regs().write32(tx::base(self.number) + tx::TDT, tail);
    }

    fn reclaim(&mut self) -> usize {
        while self.tx_done() {
            if let Some(frame) = self.in_flight.pop_front() {
                self.tx_used -= frame.count;
                drop(frame.parts);
            }
        }
        // Without a link the device sends nothing of it and asks for no more of it (Linux
        // resets it then); with one again, it would send what nobody waits for.
        if self.tx_stopping || !self.in_flight.is_empty() && !self.has_carrier() {
            self.flush_tx();
        }
        if self.in_flight.is_empty() && self.tx_armed {
            self.tx_armed = false;
            self.shared
                .set_vectors(self.number, Shared::queue_vector(self.number), false);
        }
        self.in_flight.len()
    }

    fn restart_tx(&mut self) {
        let held_up = self.regs().read32(reg::STATUS) & reg::STATUS_TXOFF != 0;
        if held_up || self.tx_stopping {
            return;
        }
        let unsent = self.in_flight.len();
        self.flush_tx();
        if !self.tx_stopping {
            log::error!(
                "igb: transmit queue {} had a link and sent nothing: started anew, {unsent} \
                 frames lost",
                self.number
            );
        }
    }

    fn has_room(&self) -> bool {
        // One descriptor always stays free: a full ring would look empty.
        !self.tx_stopping && self.tx_used + TX_MOST < RING
    }

    fn recv(&mut self) -> Option<Frame> {
        loop {
            let done = self.rx_done()?;
            let buffer = self.posted.pop_front()?;
            self.rx_head = next(self.rx_head);
            if let Some(frame) = self.gather(buffer, done) {
                return Some(frame);
            }
        }
    }

    fn refill(&mut self) -> usize {
        let before = self.rx_tail;
        while self.posted.len() < RX_POSTED {
            let Some(buffer) = self.pool.get() else {
                break;
            };
            let read = descriptor::rx_read(buffer.bus_addr());
            self.rx_ring.write(self.rx_tail * descriptor::SIZE, &read);
            self.posted.push_back(buffer);
            self.rx_tail = next(self.rx_tail);
        }
        if self.rx_tail != before {
            let tail = u32::try_from(self.rx_tail).expect("below the ring's size");
            self.regs().write32(rx::base(self.number) + rx::RDT, tail);
        }
        RX_POSTED - self.posted.len()
    }

    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // No interrupt says that a frame has gone, unless somebody sleeps for it: most
        // have when the doorbell returns, or by the next frame.
        if self.reclaim() > 0 && !self.tx_armed {
            self.tx_armed = true;
            self.shared
                .set_vectors(self.number, Shared::queue_vector(self.number), true);
        }
        let interrupted = self.interrupt.poll_interrupt(cx).is_ready();
        // Looked at last: what came before the waker was there is seen here.
        if interrupted || self.rx_done().is_some() || self.tx_done() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let rxdctl = rx::base(self.number) + rx::RXDCTL;
        let txdctl = tx::base(self.number) + tx::TXDCTL;
        self.regs()
            .write32(reg::EIMC, 1 << Shared::queue_vector(self.number));
        self.regs().write32(rxdctl, 0);
        self.regs().write32(txdctl, 0);
        let stopped = (0..self.patience).any(|_| {
            let enabled = self.regs().read32(rxdctl) | self.regs().read32(txdctl);
            enabled & rx::ENABLE == 0
        });
        if !stopped {
            // It may still read and write there, and find its way by the rings: better lost
            // than somebody else's.
            log::error!(
                "igb: queue {} does not stop; its memory is lost",
                self.number
            );
            core::mem::forget((self.rx_ring.clone(), self.tx_ring.clone()));
            core::mem::forget(core::mem::take(&mut self.posted));
            core::mem::forget(core::mem::take(&mut self.in_flight));
        }
    }
}

impl Shared {
    /// What the 82576 does for us.
    pub const OFFLOADS: Offloads = Offloads {
        rx_checksum: true,
        tx_checksum_v4: true,
        tx_checksum_v6: true,
        tso_v4: true,
        tso_v6: true,
        max_parts: MAX_PARTS,
    };
}
