//! Network devices: what a NIC driver offers, and the frames it moves.
//!
//! A [`Frame`] owns the pages its bytes lie in ([`PacketBuffer`]), from a bounded
//! [`PacketPool`] on one node. Whoever holds the frame holds the memory: a ring keeps
//! it until the device is done, a queue until the task at its end takes it, and
//! dropping it anywhere, on any vCPU, gives the pages back to their pool.

mod frame;
mod mac;
mod pool;
mod wakers;

pub use frame::{Checksum, Frame, FramePart, IpVersion, L4, Layout, MAX_PARTS};
pub use mac::MacAddr;
pub use pool::{BUFFER_SIZE, PacketBuffer, PacketPool, PoolGauge, PoolUse};
pub use wakers::WakerQueue;

use crate::{Interrupt, VcpuId};
use alloc::boxed::Box;
use core::fmt;
use core::task::{Context, Poll};

/// What a NIC can do for us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Says of received TCP and UDP frames whether their checksum is right.
    pub rx_checksum: bool,
    /// Fills the TCP/UDP checksum of an IPv4 frame ([`Checksum::Partial`]).
    pub tx_checksum_v4: bool,
    /// Fills the TCP/UDP checksum of an IPv6 frame.
    pub tx_checksum_v6: bool,
    /// Cuts TCP over IPv4 into segments ([`Frame::mss`]).
    pub tso_v4: bool,
    /// Cuts TCP over IPv6 into segments.
    pub tso_v6: bool,
    /// Parts that one frame may have; 1: no scatter-gather.
    pub max_parts: usize,
}

impl Offloads {
    /// Whether the NIC can send this frame as it is.
    pub fn can_send(&self, frame: &Frame) -> bool {
        if frame.parts().len() > self.max_parts {
            return false;
        }
        let Checksum::Partial(layout) = frame.checksum else {
            return frame.mss.is_none();
        };
        match (layout.ip, frame.mss.is_some()) {
            (IpVersion::V4, false) => self.tx_checksum_v4,
            (IpVersion::V6, false) => self.tx_checksum_v6,
            (IpVersion::V4, true) => self.tso_v4 && layout.l4 == L4::Tcp,
            (IpVersion::V6, true) => self.tso_v6 && layout.l4 == L4::Tcp,
        }
    }
}

/// The state of the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// No carrier.
    Down,
    /// Carrier, at this many Mbit/s.
    Up {
        /// Mbit/s.
        mbps: u32,
        /// Both directions at once.
        full_duplex: bool,
    },
}

/// How a NIC chooses the frames it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Its table holds every address asked for.
    Exact,
    /// There were too many: it accepts all frames.
    Promiscuous,
}

/// What a NIC counted since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames received and put into a ring.
    pub rx_frames: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames that found no free descriptor.
    pub rx_missed: u64,
    /// Frames damaged on the wire.
    pub rx_errors: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Frames taken back from a ring, for want of a link.
    pub tx_unsent: u64,
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rx_frames,
            rx_bytes,
            rx_missed,
            rx_errors,
            tx_frames,
            tx_bytes,
            tx_unsent,
        } = self;
        write!(
            f,
            "rx_frames {rx_frames}, rx_bytes {rx_bytes}, rx_missed {rx_missed}, rx_errors \
             {rx_errors}, tx_frames {tx_frames}, tx_bytes {tx_bytes}, tx_unsent {tx_unsent}"
        )
    }
}

/// The part of a NIC that is not a queue. Callable from any vCPU.
pub trait NetDevice: Send + Sync {
    /// The NIC's own address.
    fn mac(&self) -> MacAddr;
    /// What it can do for us.
    fn offloads(&self) -> Offloads;
    /// The longest frame it sends and receives, with its Ethernet header, without FCS.
    fn max_frame(&self) -> usize;
    /// Queue pairs it was set up with; queue `n` is meant for the vCPU it was given.
    fn queues(&self) -> usize;
    /// MSI-X vector that belongs to a queue.
    fn queue_vector(&self, queue: usize) -> u16;
    /// The vCPU that a queue is meant for.
    fn queue_vcpu(&self, queue: usize) -> VcpuId;
    /// Takes a queue pair for good, and starts it. To be called on the vCPU that will
    /// use it, with the vector [`Self::queue_vector`] bound to that vCPU, and the pool
    /// that receive buffers come from. `None`: no such queue, or it is taken.
    fn take_queue(
        &self,
        queue: usize,
        interrupt: Box<dyn Interrupt>,
        pool: PacketPool,
    ) -> Option<Box<dyn NetQueue>>;
    /// MSI-X vector of link changes.
    fn link_vector(&self) -> u16;
    /// Reads the state of the link, and arms the link's vector again. To be called
    /// once at start and after each interrupt on [`Self::link_vector`].
    fn service_link(&self) -> Link;
    /// Accepts frames for these addresses, broadcast and multicast; [`Self::mac`] is
    /// always among them.
    fn set_unicast_filters(&self, macs: &[MacAddr]) -> Filtering;
    /// Counters since the start.
    fn statistics(&self) -> Statistics;
}

/// A queue pair, used by tasks of one vCPU only.
///
/// The pages of sent frames and of posted receive buffers belong to the ring until
/// the device is done with them.
pub trait NetQueue {
    /// Whether there is a link, as [`NetDevice::service_link`] last saw it. Without one a
    /// device sends nothing and keeps what is in its ring, so nothing is to be put there.
    fn has_carrier(&self) -> bool;
    /// Puts a frame into the transmit ring, for the next [`Self::kick`]. A frame the
    /// ring has no room for comes back; one that [`Offloads::can_send`] refuses, too.
    fn send(&mut self, frame: Frame) -> Result<(), Frame>;
    /// Tells the device about the frames put into the ring.
    fn kick(&mut self);
    /// Gives back what the device has sent and, without a link, what it will not send; the
    /// number of frames still in the ring.
    fn reclaim(&mut self) -> usize;
    /// For a device that sends nothing of its transmit ring though there is a link, and
    /// though nobody on the wire holds it up: takes back what is in the ring, unsent, and
    /// starts it anew. Says so in the log.
    fn restart_tx(&mut self);
    /// Whether a frame of [`MAX_PARTS`] parts would fit now.
    fn has_room(&self) -> bool;
    /// The next received frame. Frames with wire errors are dropped and counted.
    fn recv(&mut self) -> Option<Frame>;
    /// Posts fresh receive buffers from the queue's pool in place of received ones; to
    /// be called after a batch of [`Self::recv`]. The number still missing.
    fn refill(&mut self) -> usize;
    /// Ready when something may have happened since the last call: a frame came, the link
    /// changed, or, while frames wait in the transmit ring, one of them went. Registers the waker
    /// otherwise. Looks at the rings last, so nothing is slept through.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "made-up test data")]
    use super::*;
    use crate::{DmaAllocator, DmaBuffer, Node};
    use alloc::rc::Rc;
    use alloc::vec::Vec;
    use core::cell::Cell;

    /// Heap pages with made-up bus addresses.
    #[derive(Default)]
    pub struct HeapDma(Cell<u64>);

    impl DmaAllocator for HeapDma {
        fn alloc(&self, pages: usize, _: Node) -> Option<DmaBuffer> {
            self.0.set(self.0.get() + 1);
            Some(DmaBuffer::pair(pages, self.0.get() << 16).0)
        }
    }

    fn pool(max: usize) -> PacketPool {
        PacketPool::new(Rc::new(HeapDma::default()), Node(0), max)
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0u32..)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .take(len)
            .collect()
    }

    #[test]
    fn bytes_written_across_page_ends_are_read_back() {
        let pool = pool(18);
        for len in [1, 60, 4095, 4096, 4097, 65_535] {
            let bytes = pattern(len);
            let frame = Frame::from_bytes(&pool, &bytes).unwrap();
            let mut back = alloc::vec![0; len];
            frame.read(0, &mut back);
            assert_eq!(back, bytes);
            assert_eq!(frame.parts().len(), len.div_ceil(BUFFER_SIZE));
            let from = len / 2;
            frame.read(from, &mut back[from..]);
            assert_eq!(back, bytes);
        }
    }

    #[test]
    fn a_frame_that_the_pool_cannot_hold_takes_nothing() {
        let pool = pool(2);
        assert!(Frame::with_room(&pool, 3 * BUFFER_SIZE).is_none());
        assert!(Frame::with_room(&pool, 0).is_none());
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn a_duplicate_has_the_same_bytes_in_other_pages() {
        let pool = pool(8);
        let bytes = pattern(9000);
        let frame = Frame::from_bytes(&pool, &bytes).unwrap();
        let copy = frame.duplicate(&pool).unwrap();
        drop(frame);
        let mut back = alloc::vec![0; 9000];
        copy.read(0, &mut back);
        assert_eq!(back, bytes);
    }

    #[test]
    fn truncating_gives_whole_pages_back() {
        let pool = pool(3);
        let mut frame = Frame::with_room(&pool, 9000).unwrap();
        assert_eq!(pool.available(), 0);
        frame.truncate(4000);
        assert_eq!(
            (frame.len(), frame.parts().len(), pool.available()),
            (4000, 1, 2)
        );
    }

    #[test]
    fn padding_adds_zeros_and_nothing_that_was_in_the_buffer() {
        let pool = pool(1);
        drop(Frame::from_bytes(&pool, &[0xff; BUFFER_SIZE]));
        let mut frame = Frame::from_bytes(&pool, &[1, 2]).unwrap();
        assert!(frame.pad_to(60));
        let mut back = [0xee; 60];
        frame.read(0, &mut back);
        assert_eq!(back[..3], [1, 2, 0]);
        assert!(back[2..].iter().all(|byte| *byte == 0));
        assert!(!frame.pad_to(BUFFER_SIZE + 1));
    }

    #[test]
    #[should_panic(expected = "leave a frame of 10")]
    fn reading_past_the_end_panics() {
        Frame::with_room(&pool(1), 10).unwrap().read(8, &mut [0; 3]);
    }

    #[test]
    fn a_nic_is_only_given_what_it_says_it_can_do() {
        let pool = pool(4);
        let layout = Layout {
            l2_len: 14,
            l3_len: 40,
            l4_len: 20,
            ip: IpVersion::V6,
            l4: L4::Tcp,
        };
        let mut frame = Frame::with_room(&pool, 9000).unwrap();
        let nic = Offloads {
            tx_checksum_v6: true,
            max_parts: 3,
            ..Offloads::default()
        };
        assert!(nic.can_send(&frame));
        frame.checksum = Checksum::Partial(layout);
        assert!(nic.can_send(&frame));
        frame.mss = core::num::NonZeroU16::new(1440);
        assert!(!nic.can_send(&frame));
        assert!(
            Offloads {
                tso_v6: true,
                ..nic
            }
            .can_send(&frame)
        );
        assert!(
            !Offloads {
                tso_v6: true,
                max_parts: 2,
                ..nic
            }
            .can_send(&frame)
        );
    }
}
