//! The driver on a strict fake: registers in plain memory, and a device that follows the
//! rings and touches only memory that the driver lent it.
#![allow(
    clippy::cast_possible_truncation,
    reason = "made-up test data and lengths"
)]

extern crate std;

use super::*;
use alloc::rc::Rc;
use alloc::vec;
use core::cell::{Cell, RefCell};
use core::num::NonZeroU16;
use core::task::{Context, Poll, Waker};
use hal::net::{Checksum, Frame, IpVersion, L4, Layout};
use hal::pci::PciError;
use xen_sim::{Executor, Machine, SimAllocator};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
const BAR: usize = 0x2_0000;

/// An interrupt line: pending, and who waits.
#[derive(Clone, Default)]
struct Line(Rc<(Cell<bool>, RefCell<Option<Waker>>)>);

impl Line {
    fn raise(&self) {
        self.0.0.set(true);
        if let Some(waker) = self.0.1.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Interrupt for Line {
    fn poll_interrupt(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.0.take() {
            return Poll::Ready(());
        }
        *self.0.1.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

struct Function {
    regs: Mmio,
    id: (u16, u16),
    vectors: u16,
}

impl PciFunction for Function {
    fn id(&self) -> (u16, u16) {
        self.id
    }
    fn node(&self) -> Node {
        Node(0)
    }
    fn bar(&self, index: u8) -> Result<Mmio, PciError> {
        (index == 0)
            .then_some(self.regs)
            .ok_or(PciError::Bar(index))
    }
    fn vectors(&self) -> u16 {
        self.vectors
    }
    fn vector(&self, _: u16, _: VcpuId) -> Result<Box<dyn Interrupt>, PciError> {
        Ok(Box::new(Line::default()))
    }
}

/// The part of the device that moves frames.
struct Device {
    machine: Machine,
    regs: Mmio,
    context: RefCell<[u32; 4]>,
}

/// A frame as the device saw it leave.
#[derive(Debug)]
struct Sent {
    bytes: Vec<u8>,
    command: u32,
    options: u32,
    context: [u32; 4],
}

impl Device {
    fn u64_at(&self, low: usize, high: usize) -> u64 {
        u64::from(self.regs.read32(low)) | u64::from(self.regs.read32(high)) << 32
    }

    fn descriptor(&self, base: u64, index: u32) -> [u32; 4] {
        let mut bytes = [0; 16];
        self.machine
            .dma_read(base + u64::from(index) * 16, &mut bytes)
            .unwrap();
        [0, 4, 8, 12].map(|at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
    }

    fn write_words(&self, addr: u64, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.machine.dma_write(addr, &bytes).unwrap();
    }

    /// Sends what is between head and tail.
    fn transmit(&self, queue: usize) -> Vec<Sent> {
        let at = reg::tx::base(queue);
        assert_ne!(self.regs.read32(at + reg::tx::TXDCTL) & reg::tx::ENABLE, 0);
        let base = self.u64_at(at + reg::tx::TDBAL, at + reg::tx::TDBAH);
        let size = self.regs.read32(at + reg::tx::TDLEN) / 16;
        let mut head = self.regs.read32(at + reg::tx::TDH);
        let tail = self.regs.read32(at + reg::tx::TDT);
        let mut frames = Vec::new();
        let mut bytes = Vec::new();
        let mut first = None;
        while head != tail {
            let [low, high, command, options] = self.descriptor(base, head);
            assert_ne!(command & 1 << 29, 0, "advanced descriptors only");
            match command >> 20 & 0xf {
                2 => *self.context.borrow_mut() = [low, high, command, options],
                3 => {
                    let from = u64::from(low) | u64::from(high) << 32;
                    let len = (command & 0xffff) as usize;
                    assert_ne!(len, 0, "an empty part");
                    let mut part = vec![0; len];
                    self.machine.dma_read(from, &mut part).unwrap();
                    bytes.extend(part);
                    let (command, options) = *first.get_or_insert((command, options));
                    if self.descriptor(base, head)[2] & 1 << 24 != 0 {
                        frames.push(Sent {
                            bytes: core::mem::take(&mut bytes),
                            command,
                            options,
                            context: *self.context.borrow(),
                        });
                        first = None;
                        // It reports, so that the driver sees when it is done.
                        let status = base + u64::from(head) * 16 + 12;
                        self.write_words(status, &[options | 1]);
                    }
                }
                other => panic!("descriptor type {other}"),
            }
            head = (head + 1) % size;
        }
        assert!(bytes.is_empty(), "a frame without end");
        self.regs.write32(at + reg::tx::TDH, head);
        frames
    }

    /// Receives a frame into as many buffers as it takes; `false`: there are too few.
    fn receive(&self, queue: usize, bytes: &[u8], status: u32) -> bool {
        let at = reg::rx::base(queue);
        assert_ne!(self.regs.read32(at + reg::rx::RXDCTL) & reg::rx::ENABLE, 0);
        let base = self.u64_at(at + reg::rx::RDBAL, at + reg::rx::RDBAH);
        let size = self.regs.read32(at + reg::rx::RDLEN) / 16;
        let mut head = self.regs.read32(at + reg::rx::RDH);
        let tail = self.regs.read32(at + reg::rx::RDT);
        let free = (tail + size - head) % size;
        let needed = bytes.len().div_ceil(4096);
        if (free as usize) < needed {
            return false;
        }
        for (n, part) in bytes.chunks(4096).enumerate() {
            let [low, high, status_low, _] = self.descriptor(base, head);
            assert_eq!(status_low & 1, 0, "a descriptor that says it is done");
            let to = u64::from(low) | u64::from(high) << 32;
            self.machine.dma_write(to, part).unwrap();
            let end = if n + 1 == needed { 2 | status } else { 0 };
            let descriptor = base + u64::from(head) * 16;
            self.write_words(descriptor, &[0, 0, end, part.len() as u32]);
            self.write_words(descriptor + 8, &[end | 1]);
            head = (head + 1) % size;
        }
        self.regs.write32(at + reg::rx::RDH, head);
        true
    }
}

struct Bed {
    executor: Executor,
    allocator: SimAllocator,
    device: Device,
    igb: Igb,
}

fn function(vectors: u16) -> Function {
    let regs = Mmio::leaked(BAR);
    let [a, b, c, d, e, f] = MAC.0;
    regs.write32(0x5400, u32::from_le_bytes([a, b, c, d]));
    regs.write32(0x5404, u32::from_le_bytes([e, f, 0, 0x80]));
    Function {
        regs,
        id: (0x8086, 0x10c9),
        vectors,
    }
}

fn config(vcpus: u32) -> Config {
    Config {
        vcpus: (0..vcpus).map(|n| (VcpuId(n), Node(n % 2))).collect(),
        mtu: 1500,
    }
}

/// Starts the driver beside a device that comes out of reset and whose PHY answers.
fn start(function: Function, config: Config, healthy: bool) -> (Executor, Result<Bed, IgbError>) {
    let machine = Machine::new();
    let allocator = machine.allocator();
    let executor = Executor::new();
    let regs = function.regs;
    let timer = executor.timer();
    let device = executor.spawn({
        let timer = timer.clone();
        async move {
            for _ in 0..200 {
                sleep(&timer, 500_000).await;
                if healthy {
                    let ctrl = regs.read32(reg::CTRL);
                    regs.write32(reg::CTRL, ctrl & !reg::CTRL_RST);
                    let mdic = regs.read32(reg::MDIC);
                    if mdic & reg::MDIC_WRITE_PHY1 != 0 {
                        regs.write32(reg::MDIC, mdic | reg::MDIC_READY);
                    }
                }
            }
        }
    });
    let dma = allocator.clone();
    let igb = executor.block_on(async move { Igb::start(&function, &dma, &timer, &config).await });
    device.cancel();
    let bed = igb.map(|igb| Bed {
        executor: executor.clone(),
        allocator,
        device: Device {
            machine,
            regs,
            context: RefCell::default(),
        },
        igb,
    });
    (executor, bed)
}

fn bed(vcpus: u32) -> Bed {
    start(function(25), config(vcpus), true).1.unwrap()
}

impl Bed {
    fn pool(&self, max: usize) -> PacketPool {
        PacketPool::new(Rc::new(self.allocator.clone()), Node(0), max)
    }

    fn queue(&self, n: usize, pool: &PacketPool) -> (Box<dyn NetQueue>, Line) {
        let line = Line::default();
        let queue = self
            .igb
            .take_queue(n, Box::new(line.clone()), pool.clone())
            .unwrap();
        (queue, line)
    }
}

fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 31 + seed * 7 + i / 256) as u8)
        .collect()
}

fn contents(frame: &Frame) -> Vec<u8> {
    let mut bytes = vec![0; frame.len()];
    frame.read(0, &mut bytes);
    bytes
}

#[test]
fn it_finds_its_address_and_as_many_queues_as_there_are_vectors() {
    let few = start(function(3), config(8), true).1.unwrap();
    assert_eq!((few.igb.mac(), few.igb.queues()), (MAC, 2));
    let many = start(function(25), config(40), true).1.unwrap();
    assert_eq!(many.igb.queues(), 16);
    // RSS names every queue, and none that is not there.
    let mut seen = [0; 16];
    for word in 0..32 {
        for queue in many.device.regs.read32(reg::RETA + 4 * word).to_le_bytes() {
            seen[usize::from(queue)] += 1;
        }
    }
    assert_eq!(seen, [8; 16]);
}

#[test]
fn a_device_that_hangs_is_given_up_in_bounded_time() {
    let (executor, result) = start(function(4), config(1), false);
    assert!(matches!(result, Err(IgbError::Reset)));
    assert!(executor.timer().now_ns() < 1_000_000_000);
    let busy = function(4);
    busy.regs
        .write32(reg::STATUS, reg::STATUS_GIO_MASTER_ENABLE);
    assert!(matches!(
        start(busy, config(1), true).1,
        Err(IgbError::Busy)
    ));
    let nameless = function(4);
    nameless.regs.write32(0x5400, 0);
    nameless.regs.write32(0x5404, 0);
    assert!(matches!(
        start(nameless, config(1), true).1,
        Err(IgbError::NoAddress)
    ));
    let other = Function {
        id: (0x8086, 0x100e),
        ..function(4)
    };
    assert!(matches!(
        start(other, config(1), true).1,
        Err(IgbError::Unknown(0x8086, 0x100e))
    ));
}

#[test]
fn frames_are_sent_whole_across_the_end_of_the_ring() {
    let bed = bed(2);
    let pool = bed.pool(400);
    let (mut queue, _line) = bed.queue(1, &pool);
    let idle = pool.available();
    for n in 0..600 {
        let sent = bytes(n, 60 + n * 37 % 9000);
        let frame = Frame::from_bytes(&pool, &sent).unwrap();
        queue.send(frame).unwrap();
        queue.kick();
        let seen = bed.device.transmit(1);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].bytes, sent);
        assert_eq!(seen[0].options >> 14, sent.len() as u32);
        assert_eq!(queue.reclaim(), 0);
        assert_eq!(pool.available(), idle);
    }
}

#[test]
fn memory_stays_with_the_ring_until_the_device_is_done() {
    let bed = bed(1);
    let pool = bed.pool(512);
    let (mut queue, _line) = bed.queue(0, &pool);
    let idle = pool.available();
    let mut count = 0;
    while queue.has_room() {
        let frame = Frame::from_bytes(&pool, &bytes(count, 100)).unwrap();
        queue.send(frame).unwrap();
        count += 1;
    }
    let refused = Frame::from_bytes(&pool, &bytes(0, 100)).unwrap();
    assert!(queue.send(refused).is_err());
    queue.kick();
    assert_eq!(queue.reclaim(), count);
    assert_eq!(pool.available(), idle - count);
    assert_eq!(bed.device.transmit(0).len(), count);
    assert_eq!(queue.reclaim(), 0);
    assert_eq!(pool.available(), idle);
    assert!(queue.has_room());
}

#[test]
fn checksums_and_segments_are_asked_for_as_the_datasheet_says() {
    let bed = bed(1);
    let pool = bed.pool(300);
    let (mut queue, _line) = bed.queue(0, &pool);
    let layout = Layout {
        l2_len: 14,
        l3_len: 20,
        l4_len: 32,
        ip: IpVersion::V4,
        l4: L4::Tcp,
    };
    let mut frame = Frame::from_bytes(&pool, &bytes(1, 9066)).unwrap();
    frame.checksum = Checksum::Partial(layout);
    frame.mss = NonZeroU16::new(1448);
    queue.send(frame).unwrap();
    let mut frame = Frame::from_bytes(&pool, &bytes(1, 100)).unwrap();
    frame.checksum = Checksum::Partial(Layout {
        l3_len: 40,
        l4_len: 8,
        ip: IpVersion::V6,
        l4: L4::Udp,
        ..layout
    });
    queue.send(frame).unwrap();
    queue.kick();
    let sent = bed.device.transmit(0);

    let long = &sent[0];
    // IPLEN 20, MACLEN 14; IPv4 and TCP; MSS 1448, L4LEN 32.
    assert_eq!(long.context[0], 20 | 14 << 9);
    assert_eq!(long.context[2] & 0x1fff, 1 << 10 | 1 << 11);
    assert_eq!(long.context[3], 1448 << 16 | 32 << 8);
    assert_ne!(long.command & 1 << 31, 0, "segmentation");
    assert_eq!(long.options >> 8 & 3, 3, "IP and TCP checksums");
    assert_eq!(long.options >> 14, 9000, "payload only");
    // The device adds to what is there.
    assert_eq!(
        (&long.bytes[16..18], &long.bytes[24..26]),
        (&[0; 2][..], &[0; 2][..])
    );

    let short = &sent[1];
    assert_eq!(short.context[0], 40 | 14 << 9);
    assert_eq!(short.context[2] & 0x1fff, 0);
    assert_eq!(short.command & 1 << 31, 0);
    assert_eq!(short.options >> 8 & 3, 2, "UDP checksum only");
    assert_eq!(short.options >> 14, 100);
}

#[test]
fn received_frames_come_whole_across_the_end_of_the_ring() {
    let bed = bed(1);
    let pool = bed.pool(200);
    let (mut queue, _line) = bed.queue(0, &pool);
    for n in 0..700 {
        let sent = bytes(n, 60 + n * 41 % 9000);
        assert!(bed.device.receive(0, &sent, 1 << 5));
        let frame = queue.recv().unwrap();
        assert_eq!(contents(&frame), sent);
        assert_eq!(frame.checksum, Checksum::Verified);
        assert!(queue.recv().is_none());
        drop(frame);
        assert_eq!(queue.refill(), 0);
    }
    assert!(pool.usage().allocated <= 131);
}

#[test]
fn a_wrong_checksum_is_passed_on_and_a_damaged_frame_is_not() {
    let bed = bed(1);
    let pool = bed.pool(200);
    let (mut queue, _line) = bed.queue(0, &pool);
    assert!(bed.device.receive(0, &bytes(1, 100), 1 << 5 | 1 << 29));
    assert!(bed.device.receive(0, &bytes(2, 100), 1 << 31));
    assert!(bed.device.receive(0, &bytes(3, 100), 0));
    let first = queue.recv().unwrap();
    assert_eq!(first.checksum, Checksum::Unknown);
    assert_eq!(contents(&queue.recv().unwrap()), bytes(3, 100));
    assert!(queue.recv().is_none());
    assert_eq!(bed.igb.statistics().rx_errors, 1);
}

#[test]
fn a_frame_longer_than_any_is_dropped_whole() {
    let bed = bed(1);
    let pool = bed.pool(200);
    let (mut queue, _line) = bed.queue(0, &pool);
    assert!(bed.device.receive(0, &bytes(1, 19 * 4096), 0));
    assert!(bed.device.receive(0, &bytes(2, 100), 0));
    assert_eq!(contents(&queue.recv().unwrap()), bytes(2, 100));
    assert_eq!(bed.igb.statistics().rx_errors, 1);
}

#[test]
fn without_memory_buffers_are_posted_later() {
    let bed = bed(1);
    let pool = bed.pool(10);
    let (mut queue, _line) = bed.queue(0, &pool);
    assert!(queue.refill() > 0);
    for n in 0..10 {
        assert!(bed.device.receive(0, &bytes(n, 100), 0));
    }
    // Not one more than was lent.
    assert!(!bed.device.receive(0, &bytes(0, 100), 0));
    let held: Vec<_> = core::iter::from_fn(|| queue.recv()).collect();
    assert_eq!(held.len(), 10);
    let missing = queue.refill();
    drop(held);
    assert_eq!(queue.refill(), missing - 10);
    assert!(bed.device.receive(0, &bytes(1, 100), 0));
    assert_eq!(contents(&queue.recv().unwrap()), bytes(1, 100));
}

#[test]
fn a_sleeper_is_woken_by_frames_and_asks_for_sent_ones_only_while_some_are_left() {
    let bed = bed(10);
    let pool = bed.pool(400);
    // A queue of the upper half, which shares its vector register with queue 1.
    let (mut queue, line) = bed.queue(9, &pool);
    let (_other, _) = bed.queue(1, &pool);
    let ivar = || bed.device.regs.read32(reg::ivar(9));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(queue.poll_work(&mut cx).is_pending());
    assert_eq!(ivar(), (10 | 0x80) << 16 | (2 | 0x80));
    let frame = Frame::from_bytes(&pool, &bytes(1, 100)).unwrap();
    queue.send(frame).unwrap();
    queue.kick();
    assert!(queue.poll_work(&mut cx).is_pending());
    assert_eq!(ivar(), (10 | 0x80) << 24 | (10 | 0x80) << 16 | (2 | 0x80));
    bed.device.transmit(9);
    line.raise();
    assert!(queue.poll_work(&mut cx).is_ready());
    assert!(queue.poll_work(&mut cx).is_pending());
    assert_eq!(ivar(), (10 | 0x80) << 16 | (2 | 0x80));
    // Even when the interrupt is late.
    assert!(bed.device.receive(9, &bytes(1, 100), 0));
    assert!(queue.poll_work(&mut cx).is_ready());
}

#[test]
fn a_dropped_queue_gives_everything_back_and_cannot_be_taken_again() {
    let bed = bed(1);
    let pool = bed.pool(200);
    let (queue, line) = bed.queue(0, &pool);
    assert!(
        bed.igb
            .take_queue(0, Box::new(line), pool.clone())
            .is_none()
    );
    drop(queue);
    let at = reg::rx::base(0) + reg::rx::RXDCTL;
    assert_eq!(bed.device.regs.read32(at), 0);
    assert_eq!(pool.usage().free, pool.usage().allocated);
    drop(pool);
    let Bed {
        igb,
        allocator,
        executor,
        ..
    } = bed;
    drop((igb, executor));
    assert_eq!(allocator.live_pages(), 0);
}

#[test]
fn a_queue_that_does_not_stop_keeps_what_the_device_may_use() {
    let bed = bed(1);
    let pool = bed.pool(200);
    let seat = bed.igb.seats.lock()[0].take().unwrap();
    let shared = bed.igb.shared.clone();
    let line = Box::new(Line::default());
    let mut queue = Queue::start(shared, 0, seat, line, pool.clone());
    let frame = Frame::from_bytes(&pool, &bytes(1, 9000)).unwrap();
    let parts = frame.parts().len();
    queue.send(frame).unwrap();
    // The fake's registers hold what is written, so it is the limit that is changed.
    queue.patience = 0;
    drop(queue);
    drop(pool);
    let posted = 128;
    assert_eq!(bed.allocator.live_pages(), 2 + posted + parts);
    // The device goes on: all it touches is still lent to it.
    for ctl in [
        reg::rx::base(0) + reg::rx::RXDCTL,
        reg::tx::base(0) + reg::tx::TXDCTL,
    ] {
        bed.device.regs.write32(ctl, reg::rx::ENABLE);
    }
    bed.device
        .regs
        .write32(reg::tx::base(0) + reg::tx::TDT, parts as u32);
    assert_eq!(bed.device.transmit(0)[0].bytes, bytes(1, 9000));
    assert!(bed.device.receive(0, &bytes(2, 100), 0));
}

/// Puts frames of 100 bytes into a transmit ring, each with a checksum to be filled in.
fn send_some(queue: &mut dyn NetQueue, pool: &PacketPool, count: usize) {
    for n in 0..count {
        let mut frame = Frame::from_bytes(pool, &bytes(n, 100)).unwrap();
        frame.checksum = Checksum::Partial(Layout {
            l2_len: 14,
            l3_len: 20,
            l4_len: 8,
            ip: IpVersion::V4,
            l4: L4::Udp,
        });
        queue.send(frame).unwrap();
    }
    queue.kick();
}

#[test]
fn a_lost_link_gives_back_what_was_to_be_sent_and_the_queue_goes_on_with_the_next() {
    let bed = bed(2);
    let pool = bed.pool(400);
    let (mut queue, line) = bed.queue(1, &pool);
    let idle = pool.available();
    let regs = bed.device.regs;
    let mut cx = Context::from_waker(Waker::noop());
    regs.write32(reg::STATUS, reg::STATUS_LU);
    bed.igb.service_link();
    send_some(&mut *queue, &pool, 3);
    assert_eq!(bed.device.transmit(1).len(), 3);
    send_some(&mut *queue, &pool, 40);
    assert!(queue.poll_work(&mut cx).is_pending());
    assert_eq!(pool.available(), idle - 40);

    regs.write32(reg::STATUS, 0);
    assert_eq!(bed.igb.service_link(), Link::Down);
    assert!(!queue.has_carrier());
    // Each queue's vector is raised, and the link's not.
    assert_eq!(regs.read32(reg::EICS), 0b110);
    line.raise();
    assert!(queue.poll_work(&mut cx).is_ready());
    assert_eq!(queue.reclaim(), 0);
    assert_eq!(pool.available(), idle);
    assert_eq!(bed.igb.statistics().tx_unsent, 40);
    // The device has a ring with nothing in it.
    assert!(bed.device.transmit(1).is_empty());

    regs.write32(reg::EICS, 0);
    regs.write32(reg::STATUS, reg::STATUS_LU);
    bed.igb.service_link();
    assert_eq!(regs.read32(reg::EICS), 0b110);
    assert!(queue.has_carrier());
    *bed.device.context.borrow_mut() = [0; 4];
    for n in 0..300 {
        send_some(&mut *queue, &pool, 1);
        let sent = bed.device.transmit(1);
        assert_eq!(sent[0].bytes, bytes(0, 100));
        if n == 0 {
            assert_ne!(sent[0].context, [0; 4], "a fresh queue knows no context");
        }
        assert_eq!(queue.reclaim(), 0);
    }
    // Nothing changed: nobody is woken.
    regs.write32(reg::EICS, 0);
    bed.igb.service_link();
    assert_eq!(regs.read32(reg::EICS), 0);
}

#[test]
fn a_transmit_queue_that_does_not_stop_keeps_its_frames_until_it_has() {
    let bed = bed(1);
    let pool = bed.pool(400);
    let seat = bed.igb.seats.lock()[0].take().unwrap();
    let (shared, line) = (bed.igb.shared.clone(), Box::new(Line::default()));
    let mut queue = Queue::start(shared, 0, seat, line, pool.clone());
    let idle = pool.available();
    send_some(&mut queue, &pool, 5);
    bed.igb.service_link();
    // As in the test above.
    let patience = core::mem::replace(&mut queue.patience, 0);
    let txdctl = reg::tx::base(0) + reg::tx::TXDCTL;
    assert_eq!(queue.reclaim(), 5);
    assert_eq!(pool.available(), idle - 5);
    // Not even a link changes that.
    bed.device.regs.write32(reg::STATUS, reg::STATUS_LU);
    bed.igb.service_link();
    assert!(!queue.has_room());
    queue.patience = patience;
    assert_eq!(bed.device.regs.read32(txdctl), 0);
    assert_eq!(queue.reclaim(), 0);
    assert_eq!(pool.available(), idle);
    assert!(queue.has_room());
    send_some(&mut queue, &pool, 1);
    assert_eq!(bed.device.transmit(0).len(), 1);
}

#[test]
fn a_restarted_transmit_queue_lets_go_of_its_frames_and_goes_on_unless_the_peer_pauses_it() {
    let bed = bed(2);
    let pool = bed.pool(400);
    let (mut queue, _line) = bed.queue(1, &pool);
    let idle = pool.available();
    let regs = bed.device.regs;
    send_some(&mut *queue, &pool, 40);
    regs.write32(reg::STATUS, reg::STATUS_LU | reg::STATUS_TXOFF);
    queue.restart_tx();
    assert_eq!(queue.reclaim(), 40);
    assert_eq!(bed.igb.statistics().tx_unsent, 0);
    regs.write32(reg::STATUS, reg::STATUS_LU);
    queue.restart_tx();
    assert_eq!(queue.reclaim(), 0);
    assert_eq!(pool.available(), idle);
    assert_eq!(bed.igb.statistics().tx_unsent, 40);
    assert!(bed.device.transmit(1).is_empty());
    for n in 0..300 {
        send_some(&mut *queue, &pool, 1);
        assert_eq!(bed.device.transmit(1).len(), 1, "frame {n}");
        assert_eq!(queue.reclaim(), 0);
    }
}

#[test]
fn more_addresses_than_filters_make_it_promiscuous_and_back() {
    let bed = bed(1);
    let macs: Vec<_> = (0..24).map(|n| MacAddr([0, 0x16, 0x3e, 0, 0, n])).collect();
    assert_eq!(bed.igb.set_unicast_filters(&macs), Filtering::Promiscuous);
    assert_ne!(bed.device.regs.read32(reg::RCTL) & reg::RCTL_UPE, 0);
    assert_eq!(bed.igb.set_unicast_filters(&macs[..23]), Filtering::Exact);
    assert_eq!(bed.device.regs.read32(reg::RCTL) & reg::RCTL_UPE, 0);
    // The last one is in the second bank.
    let at = reg::receive_address(23);
    assert_eq!(at, 0x54e0 + 7 * 8);
    assert_eq!(bed.device.regs.read32(at), 0x003e_1600);
    assert_eq!(bed.device.regs.read32(at + 4), 0x8000_0000 | 22 << 8);
    bed.igb.set_unicast_filters(&[]);
    assert_eq!(bed.device.regs.read32(at + 4), 0);
}

#[test]
fn the_link_is_read_and_its_interrupt_armed_again() {
    let bed = bed(1);
    assert_eq!(bed.igb.service_link(), Link::Down);
    let up = reg::STATUS_LU | reg::STATUS_FD | 2 << reg::STATUS_SPEED_SHIFT;
    bed.device.regs.write32(reg::STATUS, up);
    bed.device.regs.write32(reg::IMS, 0);
    assert_eq!(
        bed.igb.service_link(),
        Link::Up {
            mbps: 1000,
            full_duplex: true
        }
    );
    assert_eq!(bed.device.regs.read32(reg::IMS), reg::ICR_LSC);
}
