//! A simulated guest with a blkif frontend, and a slow disk, joined with the backend.
#![allow(
    clippy::cast_possible_truncation,
    dead_code,
    reason = "shared by several tests, each of which uses a part of it; small made-up numbers"
)]

use backend_blk::{
    BlockError, Counters, Device, Disk, End, Extent, Geometry, MapLimit, Protocol, Stop, Told,
    Volume, serve,
};
use hal::block::Hold;
use hal::{DmaSegment, Node};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use xen_abi::io::blkif::{self, Request, RequestIndirect, Response, Segment, x86_32};
use xen_abi::{DomId, GrantRef};
use xen_ring::peer::{Access, Events};
use xen_ring::{FrontRing, Kick, SharedPages};
use xen_sim::{
    Executor, GuestPages, Machine, SimAllocator, SimEvents, SimGrants, SimGuest, SimTimer, Task,
};
use zerocopy::IntoBytes;

/// A disk in memory that finishes operations late and out of order, by DMA of a strict
/// machine, whether or not anybody still waits.
#[derive(Clone)]
pub struct RamDisk {
    pub data: Rc<RefCell<Vec<u8>>>,
    pub geometry: Geometry,
    exec: Executor,
    timer: SimTimer,
    machine: Machine,
    random: Rc<Cell<u64>>,
    pub flushes: Rc<Cell<u32>>,
    pub in_flight: Rc<Cell<u32>>,
    pub most_in_flight: Rc<Cell<u32>>,
    /// The next operation fails with this, at once or after `late_ns` of DMA.
    pub fail: Rc<Cell<Option<(BlockError, u64)>>>,
    /// So many more after it fail the same way.
    pub fails_left: Rc<Cell<u32>>,
    /// The next flush fails with this, and is none.
    pub fail_flush: Rc<Cell<Option<BlockError>>>,
    /// Lists of more than one segment are refused.
    pub picky: Rc<Cell<bool>>,
    pub log: Rc<RefCell<Vec<String>>>,
}

impl RamDisk {
    pub fn new(exec: &Executor, machine: &Machine, sectors: u64) -> Self {
        Self {
            data: Rc::new(RefCell::new(vec![0; sectors as usize * 512])),
            geometry: Geometry {
                sectors,
                block_size: 512,
                volatile_write_cache: true,
                discard: true,
            },
            exec: exec.clone(),
            timer: exec.timer(),
            machine: machine.clone(),
            random: Rc::new(Cell::new(12345)),
            flushes: Rc::default(),
            in_flight: Rc::default(),
            most_in_flight: Rc::default(),
            fail: Rc::default(),
            fails_left: Rc::default(),
            fail_flush: Rc::default(),
            picky: Rc::default(),
            log: Rc::default(),
        }
    }

    fn delay(&self) -> u64 {
        let next = self
            .random
            .get()
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.random.set(next);
        1 + (next >> 33) % 1000
    }

    async fn operate(
        &self,
        write: bool,
        sector: u64,
        segments: &[DmaSegment],
        hold: &Hold,
    ) -> Result<(), BlockError> {
        let what = if write { "write" } else { "read" };
        self.log.borrow_mut().push(format!("{what} {sector}"));
        if self.picky.get() && segments.iter().rev().skip(1).any(|s| s.len < 4096) {
            return Err(BlockError::Unaligned);
        }
        let (disk, segments, hold) = (self.clone(), segments.to_vec(), hold.clone());
        let failure = self.fail.take();
        if let (Some(_), left @ 1..) = (failure, self.fails_left.get()) {
            self.fails_left.set(left - 1);
            self.fail.set(failure);
        }
        let delay = failure.map_or_else(|| self.delay(), |(_, late)| late);
        self.in_flight.set(self.in_flight.get() + 1);
        self.most_in_flight
            .set(self.most_in_flight.get().max(self.in_flight.get()));
        let task = self.exec.spawn(async move {
            hal::timer::sleep(&disk.timer, delay).await;
            let mut at = sector as usize * 512;
            for segment in segments {
                let range = at..at + segment.len as usize;
                let mut data = disk.data.borrow_mut();
                if write {
                    disk.machine
                        .dma_read(segment.bus_addr, &mut data[range])
                        .unwrap();
                } else {
                    disk.machine
                        .dma_write(segment.bus_addr, &data[range])
                        .unwrap();
                }
                at += segment.len as usize;
            }
            disk.in_flight.set(disk.in_flight.get() - 1);
            drop(hold);
        });
        if let Some((error, _)) = failure {
            return Err(error);
        }
        while task.take().is_none() {
            hal::timer::sleep(&self.timer, 10).await;
        }
        Ok(())
    }
}

impl Disk for RamDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    async fn read(
        &self,
        sector: u64,
        segments: &[DmaSegment],
        hold: &Hold,
    ) -> Result<(), BlockError> {
        self.operate(false, sector, segments, hold).await
    }
    async fn write(
        &self,
        sector: u64,
        segments: &[DmaSegment],
        hold: &Hold,
    ) -> Result<(), BlockError> {
        self.operate(true, sector, segments, hold).await
    }
    async fn flush(&self) -> Result<(), BlockError> {
        hal::timer::sleep(&self.timer, 500).await;
        if let Some(error) = self.fail_flush.take() {
            return Err(error);
        }
        self.flushes.set(self.flushes.get() + 1);
        self.log.borrow_mut().push("flush".into());
        Ok(())
    }
    async fn discard(&self, sector: u64, sectors: u64) -> Result<(), BlockError> {
        let range = sector as usize * 512..(sector + sectors) as usize * 512;
        self.data.borrow_mut()[range].fill(0);
        Ok(())
    }
}

/// Where the volume starts on the disk: what lies before and after must never change.
pub const VOLUME_START: u64 = 64;

/// A frontend's end of a ring in either layout.
pub enum Front {
    X86_64(FrontRing<Request, Response>),
    X86_32(FrontRing<x86_32::Request, x86_32::Response>),
}

impl Front {
    fn init(pages: SharedPages, protocol: Protocol, start: u32) -> Self {
        match protocol {
            Protocol::X86_64 => Self::X86_64(FrontRing::init(pages, start)),
            Protocol::X86_32 => Self::X86_32(FrontRing::init(pages, start)),
        }
    }

    pub fn size(&self) -> u32 {
        match self {
            Self::X86_64(ring) => ring.size(),
            Self::X86_32(ring) => ring.size(),
        }
    }

    fn push_request(&mut self, request: Request) {
        match self {
            Self::X86_64(ring) => ring.push_request(&request),
            Self::X86_32(ring) => ring.push_request(&request.into()),
        }
    }

    fn publish(&mut self) -> Kick {
        match self {
            Self::X86_64(ring) => ring.publish(),
            Self::X86_32(ring) => ring.publish(),
        }
    }

    pub fn next_response(&mut self) -> Option<Response> {
        match self {
            Self::X86_64(ring) => ring.next_response(),
            Self::X86_32(ring) => ring.next_response().map(Response::from),
        }
    }

    pub fn forge_req_prod(&mut self, value: u32) {
        match self {
            Self::X86_64(ring) => ring.forge_req_prod(value),
            Self::X86_32(ring) => ring.forge_req_prod(value),
        }
    }
}

/// A backend serving a guest, from the guest's side.
pub struct Bed {
    pub exec: Executor,
    pub machine: Machine,
    pub guest: SimGuest,
    pub grants: SimGrants,
    pub ram: RamDisk,
    pub dma: SimAllocator,
    pub counters: Arc<Counters>,
    pub stop: Stop,
    pub front: Front,
    pub ring: GuestPages,
    pub port: SimEvents,
    pub task: Task<End>,
    next_id: u64,
    /// Statuses that came, by id.
    pub answers: BTreeMap<u64, i16>,
}

pub struct Options {
    pub ring_pages: usize,
    pub protocol: Protocol,
    pub sectors: u64,
    pub read_only: bool,
    pub start: u32,
    pub block_size: u32,
    /// Pages that may be mapped at once.
    pub maps: usize,
    /// Pages of ours that there are.
    pub memory: usize,
    pub told: Arc<Told>,
}

impl Default for Options {
    fn default() -> Self {
        // Rings near the wrap: every test crosses it.
        Self {
            ring_pages: 1,
            protocol: Protocol::X86_64,
            sectors: 2048,
            read_only: false,
            start: u32::MAX - 5,
            block_size: 512,
            maps: 1 << 20,
            memory: usize::MAX,
            told: Arc::default(),
        }
    }
}

impl Bed {
    pub fn new(options: Options) -> Self {
        let machine = Machine::new();
        let exec = Executor::new();
        let guest = SimGuest::new(&machine, DomId(3));
        let mut ram = RamDisk::new(&exec, &machine, options.sectors + 2 * VOLUME_START);
        ram.geometry.block_size = options.block_size;
        let extent = Extent {
            first: VOLUME_START,
            sectors: options.sectors,
        };
        let volume = Volume::new(ram.clone(), extent, options.read_only).unwrap();
        let ring = guest.alloc(options.ring_pages);
        let refs: Vec<_> = ring
            .mfns
            .iter()
            .map(|mfn| guest.grant(*mfn, Access::Write))
            .collect();
        let grants = guest.grants();
        let view = grants.clone();
        let pages = xen_ring::peer::Grants::map_ring(&view, &refs).unwrap();
        let front = Front::init(pages, options.protocol, options.start);
        let (back, port) = SimEvents::pair();
        let (stop, counters, dma) = (
            Stop::new(),
            Arc::new(Counters::default()),
            machine.allocator(),
        );
        dma.limit(options.memory);
        let device = Device {
            name: "d3/xvda".into(),
            grants: grants.clone(),
            events: back,
            disk: volume,
            ring: refs,
            protocol: options.protocol,
            dma: Rc::new(dma.clone()),
            node: Node(0),
            counters: counters.clone(),
            told: options.told,
            maps: Box::leak(Box::new(MapLimit::new(options.maps))),
            stop: stop.clone(),
        };
        let task = exec.spawn(serve(device));
        Self {
            exec,
            machine,
            guest,
            grants,
            ram,
            dma,
            counters,
            stop,
            front,
            ring,
            port,
            task,
            next_id: 1,
            answers: BTreeMap::new(),
        }
    }

    pub fn grant(&self, page: &GuestPages, index: usize, access: Access) -> GrantRef {
        self.guest.grant(page.mfns[index], access)
    }

    /// Puts a raw request into the ring under the next id.
    pub fn push(&mut self, mut raw: Request) -> u64 {
        raw.id = self.next_id;
        self.next_id += 1;
        self.front.push_request(raw);
        raw.id
    }

    pub fn push_indirect(&mut self, raw: &RequestIndirect) -> u64 {
        let mut slot = Request::default();
        slot.as_mut_bytes()[..64].copy_from_slice(raw.as_bytes());
        self.push(slot)
    }

    pub fn publish(&mut self) {
        if self.front.publish() == Kick::Needed {
            self.port.notify();
        }
    }

    fn take_answers(&mut self) {
        while let Some(response) = self.front.next_response() {
            let twice = self.answers.insert(response.id, response.status);
            assert!(
                twice.is_none(),
                "request {} was answered twice",
                response.id
            );
        }
    }

    /// Publishes, and lets time pass until nothing happens any more.
    pub fn settle(&mut self) {
        self.publish();
        self.drain();
    }

    /// Lets time pass until nothing happens any more.
    pub fn drain(&mut self) {
        loop {
            self.exec.run_until_stalled();
            self.take_answers();
            if !self.exec.timer().jump() {
                break;
            }
        }
    }

    /// Publishes, waits for the answer to `id`, and checks that no other is missing.
    pub fn answer(&mut self, id: u64) -> i16 {
        self.settle();
        self.answers.remove(&id).expect("every request is answered")
    }

    /// Ends the backend and checks that nothing is left of it.
    pub fn finish(mut self) {
        self.stop.request();
        self.settle();
        assert_eq!(self.task.take(), Some(End::Stopped));
        assert_eq!(self.grants.live_mappings(), 0);
        // Our own view of the ring is the one that is left.
        assert_eq!(self.grants.live_rings(), 1);
        assert_eq!(self.dma.live_pages(), 0);
        let data = self.ram.data.borrow();
        let edge = VOLUME_START as usize * 512;
        assert!(data[..edge].iter().all(|b| *b == 0), "before the volume");
        assert!(
            data[data.len() - edge..].iter().all(|b| *b == 0),
            "behind the volume"
        );
    }
}

/// A request with these segments: grant, first and last sector.
pub fn request(operation: u8, sector: u64, segments: &[(GrantRef, u8, u8)]) -> Request {
    let mut raw = Request {
        operation,
        nr_segments: segments.len() as u8,
        sector_number: sector,
        ..Request::default()
    };
    for (slot, (gref, first, last)) in raw.seg.iter_mut().zip(segments) {
        *slot = Segment {
            gref: gref.0,
            first_sect: *first,
            last_sect: *last,
            pad: 0,
        };
    }
    raw
}

pub fn indirect(operation: u8, sector: u64, page: GrantRef, count: u16) -> RequestIndirect {
    let mut raw = RequestIndirect {
        operation: blkif::OP_INDIRECT,
        indirect_op: operation,
        nr_segments: count,
        sector_number: sector,
        ..RequestIndirect::default()
    };
    raw.indirect_grefs[0] = page.0;
    raw
}
