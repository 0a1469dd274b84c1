//! A strict NVMe controller on host memory. Its registers are ordinary memory that it
//! looks at between two steps of the executor; what a driver must not do panics.

use hal::pci::{Interrupt, PciError, PciFunction};
use hal::{Mmio, Node, VcpuId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use xen_sim::{Executor, Machine, SimAllocator, SimTimer};

const CC: usize = 0x14;
const CSTS: usize = 0x1c;
/// QEMU's, but for one more reserved bit of stride.
const CAP: u64 = 0x0040_2020_0f01_07ff;

#[derive(Default)]
pub struct Line {
    pending: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Line {
    fn raise(&self) {
        self.pending.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

struct Wire(Rc<Line>);

impl Interrupt for Wire {
    fn poll_interrupt(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.pending.take() {
            return Poll::Ready(());
        }
        *self.0.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

struct Submission {
    base: u64,
    entries: u16,
    head: u16,
    cq: u16,
}

struct Completion {
    base: u64,
    entries: u16,
    tail: u16,
    /// What the driver's doorbell says it took.
    head: u16,
    phase: bool,
    vector: u16,
}

/// What the next I/O command meets.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Fails with this status (type and code).
    Status(u16),
    /// Is never answered, but its DMA happens when the controller is told to stop.
    Hang,
    /// Is completed under an identifier that is not in flight.
    Stray,
}

pub struct Config {
    pub blocks: u64,
    pub block_shift: u8,
    pub mdts: u8,
    pub queues: u16,
    pub vectors: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            blocks: 4096,
            block_shift: 9,
            mdts: 5,
            queues: 8,
            vectors: 9,
        }
    }
}

pub struct Fake {
    pub machine: Machine,
    regs: Mmio,
    config: Config,
    lines: Vec<Rc<Line>>,
    msix: Cell<bool>,
    enabled: bool,
    sq: BTreeMap<u16, Submission>,
    cq: BTreeMap<u16, Completion>,
    /// Commands taken and not answered: queue, entry.
    held: Vec<(u16, [u8; 64])>,
    hung: Vec<[u8; 64]>,
    pub media: Vec<u8>,
    pub faults: VecDeque<Fault>,
    /// Every further command hangs.
    pub deaf: bool,
    /// Nothing is said about the disk: Identify is answered when this is false again.
    pub shy: bool,
    /// Every admin command is answered twice.
    pub stutters: bool,
    pub flushes: u32,
    pub commands: u32,
    pub stops: u32,
    /// Picks which held command is answered next.
    random: u64,
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(b[at..at + 2].try_into().unwrap())
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

impl Fake {
    pub fn new(machine: &Machine, config: Config) -> Self {
        let regs = Mmio::leaked(0x4000);
        regs.write64(0, CAP);
        let media = (config.blocks << config.block_shift) as usize;
        Self {
            machine: machine.clone(),
            regs,
            lines: (0..config.vectors).map(|_| Rc::default()).collect(),
            msix: Cell::new(false),
            enabled: false,
            sq: BTreeMap::new(),
            cq: BTreeMap::new(),
            held: Vec::new(),
            hung: Vec::new(),
            media: vec![0; media],
            faults: VecDeque::new(),
            deaf: false,
            shy: false,
            stutters: false,
            flushes: 0,
            commands: 0,
            stops: 0,
            random: 1,
            config,
        }
    }

    /// Does one thing; `false`: there was nothing to do.
    pub fn step(&mut self) -> bool {
        let cc = self.regs.read32(CC);
        if cc & 1 == 0 && self.enabled {
            return self.stop();
        }
        if cc & 1 != 0 && !self.enabled {
            return self.start(cc);
        }
        if cc >> 14 & 3 == 1 && self.regs.read32(CSTS) & 0xc == 0 {
            self.regs.write32(CSTS, self.regs.read32(CSTS) | 2 << 2);
            return true;
        }
        self.enabled && (self.fetch() || self.answer())
    }

    fn start(&mut self, cc: u32) -> bool {
        assert!(self.msix.get(), "CC.EN before MSI-X");
        assert_eq!(cc, 1 | 6 << 16 | 4 << 20);
        let aqa = self.regs.read32(0x24);
        let base = |at| {
            let base = self.regs.read64(at);
            assert!(base != 0 && base.is_multiple_of(4096));
            base
        };
        let entries = |n: u32| u16::try_from(n & 0xfff).unwrap() + 1;
        let (sq, cq) = (base(0x28), base(0x30));
        self.sq.insert(
            0,
            Submission {
                base: sq,
                entries: entries(aqa),
                head: 0,
                cq: 0,
            },
        );
        self.cq.insert(
            0,
            Completion {
                base: cq,
                entries: entries(aqa >> 16),
                tail: 0,
                head: 0,
                phase: true,
                vector: 0,
            },
        );
        self.enabled = true;
        self.regs.write32(CSTS, 1);
        true
    }

    fn stop(&mut self) -> bool {
        self.stops += 1;
        // Until this moment the device may touch the memory of every command it has.
        let hung = std::mem::take(&mut self.hung);
        let held = std::mem::take(&mut self.held)
            .into_iter()
            .map(|(_, entry)| entry);
        for entry in hung.into_iter().chain(held) {
            if matches!(entry[0], 1 | 2) {
                self.transfer(&entry);
            }
        }
        self.sq.clear();
        self.cq.clear();
        for at in (0x1000..0x4000).step_by(4) {
            self.regs.write32(at, 0);
        }
        self.enabled = false;
        self.regs.write32(CSTS, 0);
        true
    }

    /// Takes one command out of a submission queue.
    fn fetch(&mut self) -> bool {
        for (qid, queue) in &mut self.sq {
            let tail = self.regs.read32(0x1000 + 8 * usize::from(*qid));
            assert!(tail < queue.entries.into(), "tail doorbell out of range");
            if u32::from(queue.head) == tail {
                continue;
            }
            let mut entry = [0; 64];
            self.machine
                .dma_read(queue.base + 64 * u64::from(queue.head), &mut entry)
                .unwrap();
            queue.head = (queue.head + 1) % queue.entries;
            let qid = *qid;
            assert!(
                qid == 0
                    || !self
                        .held
                        .iter()
                        .any(|(q, e)| *q == qid && u16_at(e, 2) == u16_at(&entry, 2)),
                "a command identifier is used twice"
            );
            if qid > 0 && self.deaf {
                self.hung.push(entry);
            } else {
                self.held.push((qid, entry));
            }
            return true;
        }
        false
    }

    /// Answers one of the commands taken, in any order.
    fn answer(&mut self) -> bool {
        let identify = |(qid, e): &(u16, [u8; 64])| *qid == 0 && e[0] == 6;
        if self.held.is_empty() || self.shy && self.held.iter().all(identify) {
            return false;
        }
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let pick = (self.random >> 33) as usize % self.held.len();
        let (qid, entry) = self.held.remove(pick);
        if qid == 0 {
            let (status, result) = self.admin(&entry);
            for _ in 0..=u8::from(self.stutters) {
                self.complete(qid, u16_at(&entry, 2), status, result);
            }
            return true;
        }
        self.commands += 1;
        match self.faults.pop_front() {
            Some(Fault::Hang) => self.hung.push(entry),
            Some(Fault::Status(status)) => self.complete(qid, u16_at(&entry, 2), status, 0),
            Some(Fault::Stray) => {
                self.hung.push(entry);
                self.complete(qid, 0x7777, 0, 0);
            }
            None => {
                let status = self.io(&entry);
                self.complete(qid, u16_at(&entry, 2), status, 0);
            }
        }
        true
    }

    fn complete(&mut self, qid: u16, id: u16, status: u16, result: u32) {
        let sq = &self.sq[&qid];
        let (head, cqid) = (sq.head, sq.cq);
        let queue = self.cq.get_mut(&cqid).unwrap();
        queue.head = self.regs.read32(0x1004 + 8 * usize::from(cqid)) as u16;
        let next = (queue.tail + 1) % queue.entries;
        assert_ne!(next, queue.head, "the completion queue overflows");
        let mut entry = [0; 16];
        entry[..4].copy_from_slice(&result.to_le_bytes());
        entry[8..10].copy_from_slice(&head.to_le_bytes());
        entry[10..12].copy_from_slice(&qid.to_le_bytes());
        entry[12..14].copy_from_slice(&id.to_le_bytes());
        entry[14..].copy_from_slice(&(status << 1 | u16::from(queue.phase)).to_le_bytes());
        self.machine
            .dma_write(queue.base + 16 * u64::from(queue.tail), &entry)
            .unwrap();
        queue.tail = next;
        queue.phase ^= next == 0;
        self.lines[usize::from(queue.vector)].raise();
    }

    fn admin(&mut self, e: &[u8; 64]) -> (u16, u32) {
        let [d10, d11] = [40, 44].map(|at| u32_at(e, at));
        let (id, size) = ((d10 & 0xffff) as u16, (d10 >> 16) as u16 + 1);
        match e[0] {
            0x06 => {
                let mut data = [0u8; 4096];
                match d10 {
                    1 => {
                        data[4..24].copy_from_slice(b"FAKE0001            ");
                        data[24..64].copy_from_slice(b"Fake NVMe                               ");
                        data[77] = self.config.mdts;
                        data[520] = 4;
                        data[525] = 1;
                    }
                    2 => data[0] = 5,
                    0 => {
                        assert_eq!(u32_at(e, 4), 5, "the namespace it listed");
                        data[..8].copy_from_slice(&self.config.blocks.to_le_bytes());
                        data[26] = 1;
                        data[134] = self.config.block_shift;
                    }
                    other => panic!("identify {other}"),
                }
                self.machine.dma_write(u64_at(e, 24), &data).unwrap();
                (0, 0)
            }
            0x09 => {
                assert_eq!(d10, 7);
                let given = u32::from(self.config.queues - 1);
                (0, given << 16 | given)
            }
            0x05 => {
                assert!(size > 1 && d11 & 3 == 3 && id <= self.config.queues);
                let vector = (d11 >> 16) as u16;
                assert!(vector < self.config.vectors);
                let queue = Completion {
                    base: u64_at(e, 24),
                    entries: size,
                    tail: 0,
                    head: 0,
                    phase: true,
                    vector,
                };
                assert!(self.cq.insert(id, queue).is_none());
                (0, 0)
            }
            0x01 => {
                let cq = (d11 >> 16) as u16;
                assert!(self.cq.contains_key(&cq) && d11 & 1 == 1);
                let queue = Submission {
                    base: u64_at(e, 24),
                    entries: size,
                    head: 0,
                    cq,
                };
                assert!(self.sq.insert(id, queue).is_none());
                (0, 0)
            }
            other => panic!("admin command {other:#x}"),
        }
    }

    fn io(&mut self, e: &[u8; 64]) -> u16 {
        assert_eq!(u32_at(e, 4), 5, "namespace");
        match e[0] {
            0 => {
                self.flushes += 1;
                0
            }
            1 | 2 => self.transfer(e),
            9 => {
                let mut range = [0; 16];
                self.machine.dma_read(u64_at(e, 24), &mut range).unwrap();
                assert_eq!((u32_at(e, 40) & 0xff, u32_at(e, 44)), (0, 4));
                let shift = self.config.block_shift;
                let (first, count) = (u64_at(&range, 8), u64::from(u32_at(&range, 4)));
                if first + count > self.config.blocks {
                    return 0x80;
                }
                let bytes = (first << shift) as usize..((first + count) << shift) as usize;
                self.media[bytes].fill(0);
                0
            }
            other => panic!("I/O command {other:#x}"),
        }
    }

    fn transfer(&mut self, e: &[u8; 64]) -> u16 {
        let shift = self.config.block_shift;
        let first = u64_at(e, 40);
        let count = u64::from(u32_at(e, 48) & 0xffff) + 1;
        if first + count > self.config.blocks {
            return 0x80;
        }
        let (start, len) = ((first << shift) as usize, (count << shift) as usize);
        assert!(
            self.config.mdts == 0 || len <= 4096 << self.config.mdts,
            "beyond MDTS"
        );
        let mut pages = vec![u64_at(e, 24)];
        let head = (4096 - (pages[0] % 4096) as usize).min(len);
        let prp2 = u64_at(e, 32);
        let more = (len - head).div_ceil(4096);
        if more == 1 {
            pages.push(prp2);
        } else if more > 1 {
            let mut list = vec![0; more * 8];
            assert!(prp2 % 4096 + list.len() as u64 <= 4096);
            self.machine.dma_read(prp2, &mut list).unwrap();
            pages.extend(list.chunks(8).map(|entry| u64_at(entry, 0)));
        }
        let mut at = start;
        for (n, addr) in pages.iter().enumerate() {
            assert!(addr % 4 == 0 && (n == 0 || addr % 4096 == 0), "PRP offset");
            let now = (4096 - (addr % 4096) as usize).min(start + len - at);
            if e[0] == 1 {
                self.machine
                    .dma_read(*addr, &mut self.media[at..at + now])
                    .unwrap();
            } else {
                self.machine
                    .dma_write(*addr, &self.media[at..at + now])
                    .unwrap();
            }
            at += now;
        }
        0
    }
}

/// The fake as a PCI function.
pub struct Function {
    pub fake: Rc<RefCell<Fake>>,
}

impl PciFunction for Function {
    fn id(&self) -> (u16, u16) {
        (0x1b36, 0x0010)
    }
    fn node(&self) -> Node {
        Node(0)
    }
    fn bar(&self, index: u8) -> Result<Mmio, PciError> {
        assert_eq!(index, 0);
        Ok(self.fake.borrow().regs)
    }
    fn vectors(&self) -> u16 {
        self.fake.borrow().config.vectors
    }
    fn vector(&self, index: u16, _: VcpuId) -> Result<Box<dyn Interrupt>, PciError> {
        let fake = self.fake.borrow();
        fake.msix.set(true);
        let line = fake
            .lines
            .get(usize::from(index))
            .ok_or(PciError::Vector(index))?;
        Ok(Box::new(Wire(line.clone())))
    }
}

/// A machine with one fake disk.
pub struct Bed {
    pub exec: Executor,
    pub timer: SimTimer,
    pub dma: SimAllocator,
    pub fake: Rc<RefCell<Fake>>,
}

impl Bed {
    pub fn new(config: Config) -> Self {
        let machine = Machine::new();
        let exec = Executor::new();
        Self {
            timer: exec.timer(),
            exec,
            dma: machine.allocator(),
            fake: Rc::new(RefCell::new(Fake::new(&machine, config))),
        }
    }

    /// Runs a future with everything else; time passes when nothing else can happen.
    pub fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let task = self.exec.spawn(future);
        loop {
            if let Some(value) = task.take() {
                return value;
            }
            assert!(
                self.exec.step() || self.fake.borrow_mut().step() || self.timer.jump(),
                "nothing can happen any more"
            );
        }
    }

    /// Lets everything happen that needs no time to pass.
    pub fn settle(&self) {
        while self.exec.step() || self.fake.borrow_mut().step() {}
    }
}
