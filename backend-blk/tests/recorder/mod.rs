//! A disk in memory that records its writes, so that a power cut can be played at every
//! sector of every one of them.
#![allow(
    clippy::cast_possible_truncation,
    dead_code,
    reason = "shared by several tests, each of which uses a part of it; small made-up numbers"
)]

use backend_blk::{BlockError, ByteIo, Disk, Geometry};
use hal::block::Hold;
use hal::{DmaSegment, Node};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use xen_sim::{Executor, Machine};

#[derive(Clone, Debug)]
pub enum Op {
    /// One sector's new contents.
    Write(u64, Vec<u8>),
    Flush,
}

#[derive(Clone, Debug)]
pub struct Recorder {
    machine: Machine,
    pub geometry: Geometry,
    sectors: Rc<RefCell<BTreeMap<u64, Vec<u8>>>>,
    pub log: Rc<RefCell<Vec<Op>>>,
    /// Writes that still work; then all fail.
    pub writes_left: Rc<Cell<u64>>,
    /// The one write that fails: after so many others.
    pub fails_at: Rc<Cell<u64>>,
    /// Sectors at which no write can begin.
    pub unwritable: Rc<RefCell<BTreeSet<u64>>>,
    /// Flushes are not answered.
    pub hangs: Rc<Cell<bool>>,
    /// Flushes that still work; then all fail, though what was written stays.
    pub flushes_left: Rc<Cell<u64>>,
    /// Sectors that cannot be read until they are written.
    pub unreadable: Rc<RefCell<BTreeSet<u64>>>,
    /// Commands that a reset of the controller cuts off, beginning with the next.
    pub resets: Rc<Cell<u64>>,
}

impl Recorder {
    pub fn new(sectors: u64, block_size: u32) -> Self {
        Self {
            machine: Machine::new(),
            geometry: Geometry {
                sectors,
                block_size,
                volatile_write_cache: true,
                discard: false,
            },
            sectors: Rc::default(),
            log: Rc::default(),
            writes_left: Rc::new(Cell::new(u64::MAX)),
            fails_at: Rc::new(Cell::new(u64::MAX)),
            unwritable: Rc::default(),
            hangs: Rc::default(),
            flushes_left: Rc::new(Cell::new(u64::MAX)),
            unreadable: Rc::default(),
            resets: Rc::default(),
        }
    }

    pub fn io(&self) -> ByteIo<Self> {
        ByteIo::new(self.clone(), Rc::new(self.machine.allocator()), Node(0))
    }

    /// A disk of its own with the same contents, on which all works.
    pub fn fork(&self) -> Self {
        Self {
            sectors: Rc::new(RefCell::new(self.sectors.borrow().clone())),
            ..Self::new(self.geometry.sectors, self.geometry.block_size)
        }
    }

    pub fn put(&self, sector: u64, bytes: Vec<u8>) {
        assert!(sector < self.geometry.sectors && bytes.len() == 512);
        if bytes.iter().any(|byte| *byte != 0) {
            self.sectors.borrow_mut().insert(sector, bytes);
        } else {
            self.sectors.borrow_mut().remove(&sector);
        }
    }

    pub fn get(&self, sector: u64) -> Vec<u8> {
        self.sectors
            .borrow()
            .get(&sector)
            .cloned()
            .unwrap_or_else(|| vec![0; 512])
    }

    /// Changes one byte of a sector.
    pub fn flip(&self, sector: u64, at: usize) {
        let mut bytes = self.get(sector);
        bytes[at] ^= 0x55;
        self.put(sector, bytes);
    }

    /// Shows every disk that a power cut during the recorded writes, which began on
    /// `self`, can leave: what was flushed is there; of what came after, any beginning,
    /// and, sector by sector, any choice (some of them, picked by a generator).
    pub fn each_cut(&self, log: &[Op], mut see: impl FnMut(Recorder)) {
        see(self.fork());
        let durable = self.fork();
        let mut pending: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut random = 99u64;
        for op in log {
            match op {
                Op::Flush => {
                    for (sector, bytes) in pending.drain(..) {
                        durable.put(sector, bytes);
                    }
                    see(durable.fork());
                }
                Op::Write(sector, bytes) => {
                    pending.push((*sector, bytes.clone()));
                    for choice in 0..3 {
                        let cut = durable.fork();
                        for (sector, bytes) in &pending {
                            random = random
                                .wrapping_mul(6_364_136_223_846_793_005)
                                .wrapping_add(1);
                            if choice == 0 || random >> 63 == 1 {
                                cut.put(*sector, bytes.clone());
                            }
                        }
                        see(cut);
                    }
                }
            }
        }
    }

    pub fn take_log(&self) -> Vec<Op> {
        self.log.take()
    }
}

impl Disk for Recorder {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    async fn read(&self, sector: u64, segments: &[DmaSegment], _: &Hold) -> Result<(), BlockError> {
        let mut at = sector;
        self.check(sector, segments)?;
        self.not_reset()?;
        for segment in segments {
            for n in 0..u64::from(segment.len) / 512 {
                if self.unreadable.borrow().contains(&at) {
                    return Err(BlockError::Media(0x281));
                }
                self.machine
                    .dma_write(segment.bus_addr + n * 512, &self.get(at))
                    .unwrap();
                at += 1;
            }
        }
        Ok(())
    }
    async fn write(
        &self,
        sector: u64,
        segments: &[DmaSegment],
        _: &Hold,
    ) -> Result<(), BlockError> {
        let mut at = sector;
        self.check(sector, segments)?;
        self.not_reset()?;
        let fails = self.fails_at.replace(self.fails_at.get().wrapping_sub(1)) == 0;
        let bad = self.unwritable.borrow().contains(&sector);
        if fails || bad || self.writes_left.get() == 0 {
            return Err(BlockError::Media(0x280));
        }
        self.writes_left.set(self.writes_left.get() - 1);
        for segment in segments {
            for n in 0..u64::from(segment.len) / 512 {
                let mut bytes = vec![0; 512];
                self.machine
                    .dma_read(segment.bus_addr + n * 512, &mut bytes)
                    .unwrap();
                self.unreadable.borrow_mut().remove(&at);
                // What changes nothing needs no cut of its own.
                if self.get(at) != bytes {
                    self.put(at, bytes.clone());
                    self.log.borrow_mut().push(Op::Write(at, bytes));
                }
                at += 1;
            }
        }
        Ok(())
    }
    async fn flush(&self) -> Result<(), BlockError> {
        self.not_reset()?;
        if self.hangs.get() {
            std::future::pending::<()>().await;
        }
        if self.flushes_left.get() == 0 {
            return Err(BlockError::Device(6));
        }
        self.flushes_left.set(self.flushes_left.get() - 1);
        self.log.borrow_mut().push(Op::Flush);
        Ok(())
    }
    async fn discard(&self, _: u64, _: u64) -> Result<(), BlockError> {
        Err(BlockError::Unsupported)
    }
}

impl Recorder {
    fn check(&self, sector: u64, segments: &[DmaSegment]) -> Result<(), BlockError> {
        let bytes: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
        let block = u64::from(self.geometry.block_size);
        if !bytes.is_multiple_of(block) || !(sector * 512).is_multiple_of(block) {
            return Err(BlockError::Unaligned);
        }
        let fits = sector + bytes / 512 <= self.geometry.sectors;
        fits.then_some(()).ok_or(BlockError::OutOfRange)
    }

    fn not_reset(&self) -> Result<(), BlockError> {
        match self.resets.get() {
            0 => Ok(()),
            left => {
                self.resets.set(left - 1);
                Err(BlockError::Reset)
            }
        }
    }
}

/// Runs a future that waits for nothing but itself.
pub fn run<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    Executor::new().block_on(future)
}
