//! One request from its check to its status: mapped or copied.

use crate::bounce::{Bounce, Pages};
use crate::counters::{Counters, add};
use crate::disk::{Disk, SECTOR};
use crate::limits::{MapLimit, MapShare};
use crate::protocol::{
    BadRequest, Direction, PagePart, Parts, Tag, Work, bytes_of, check_segments,
};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use hal::block::{BlockError, Hold};
use hal::{DmaSegment, yield_now};
use xen_abi::io::blkif::{self, RSP_EOPNOTSUPP, RSP_ERROR, RSP_OKAY};
use xen_abi::{GrantRef, PAGE_SHIFT, PAGE_SIZE};
use xen_ring::peer::{Access, CopyEnd, CopyOp, DeviceMapping, GrantStatus, Grants};
use zerocopy::{FromZeros, IntoBytes};

/// Requests of at most this many bytes are copied, longer ones mapped.
///
/// A copy costs Xen the grant look-ups and the bytes; a mapping costs two hypercalls and
/// at its end a TLB flush on every CPU that holds pVM state, whatever its size, so it
/// pays only when that is spread over several pages. Four pages is a guess, to be
/// replaced by the crossover that the benchmarks measure.
pub const COPY_MAX_BYTES: u32 = 16 << 10;

/// Pages of ours that one guest device may have in work.
pub const BOUNCE_PAGES: usize = 64;
/// Pages in one step of a copied request.
const COPY_PAGES: usize = 16;
/// How often a copy is tried whose page Xen has to fetch first.
const EAGAIN_TRIES: usize = 8;

/// What the requests of one device share.
pub struct Context<G, D> {
    pub grants: G,
    pub disk: D,
    pub bounce: Rc<Bounce>,
    pub counters: Arc<Counters>,
    /// What all devices together may map.
    pub maps: &'static MapLimit,
}

/// A request that is done, but for its response.
pub struct Finished<G: Grants, D> {
    pub tag: Tag,
    pub status: i16,
    /// What is to be unmapped before the response.
    pub mapped: Option<Mapped<G, D>>,
    pub failure: Option<Failure>,
    /// What it counted for while it was in work.
    pub pages: usize,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// The guest's fault: the request itself.
    Request(BadRequest),
    /// The guest's fault: a grant in it.
    Grant(GrantStatus),
    /// The guest's fault: sectors beyond the disk, or not aligned to its blocks.
    Sectors(BlockError),
    /// The disk's fault, or ours.
    Disk(BlockError),
    /// The disk cannot do this, and did not offer to.
    Unsupported,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(bad) => bad.fmt(f),
            Self::Grant(status) => status.fmt(f),
            Self::Sectors(error) | Self::Disk(error) => error.fmt(f),
            Self::Unsupported => f.write_str("not supported by the disk"),
        }
    }
}

impl From<BlockError> for Failure {
    fn from(error: BlockError) -> Self {
        Self::Disk(error)
    }
}

/// Device mappings that end when this is dropped, wherever that happens.
pub struct Mapped<G: Grants, D> {
    context: Rc<Context<G, D>>,
    list: Vec<DeviceMapping>,
    ended: Rc<Ended>,
    /// Given back when this is dropped, after the mappings.
    _share: MapShare,
}

/// Tells that a [`Mapped`] is gone.
#[derive(Default)]
struct Ended {
    done: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl<G: Grants, D> Mapped<G, D> {
    /// The mappings, for a common unmap with others.
    pub fn take(&mut self) -> Vec<DeviceMapping> {
        core::mem::take(&mut self.list)
    }
}

impl<G: Grants, D> Drop for Mapped<G, D> {
    fn drop(&mut self) {
        if !self.list.is_empty() {
            self.context.unmap(core::mem::take(&mut self.list));
        }
        self.ended.done.set(true);
        if let Some(waker) = self.ended.waker.take() {
            waker.wake();
        }
    }
}

impl<G: Grants, D> Context<G, D> {
    /// Unmaps, in one call.
    pub fn unmap(&self, list: Vec<DeviceMapping>) {
        add(&self.counters.grant_calls, 1);
        self.grants.unmap_device(list);
    }
}

impl<G: Grants + 'static, D: Disk + 'static> Context<G, D> {
    /// Does what a request asks for.
    pub async fn execute(self: Rc<Self>, tag: Tag, work: Work) -> Finished<G, D> {
        let mut finished = Finished {
            tag,
            status: RSP_OKAY,
            mapped: None,
            failure: None,
            pages: work.pages(),
        };
        if let Err(failure) = self.work(work, &mut finished.mapped).await {
            finished.failure = Some(failure);
            finished.status = match failure {
                Failure::Unsupported => RSP_EOPNOTSUPP,
                _ => RSP_ERROR,
            };
            match failure {
                Failure::Disk(_) => add(&self.counters.disk_errors, 1),
                _ => add(&self.counters.bad_requests, 1),
            }
        }
        finished
    }

    async fn work(
        self: &Rc<Self>,
        work: Work,
        mapped: &mut Option<Mapped<G, D>>,
    ) -> Result<(), Failure> {
        match work {
            Work::Flush { .. } => {
                add(&self.counters.flushes, 1);
                Ok(self.flush().await?)
            }
            Work::Discard { sector, sectors } => self.discard(sector, sectors).await,
            Work::Transfer {
                direction,
                sector,
                parts,
                flush_before,
                barrier,
            } => {
                let parts = match parts {
                    Parts::Direct(parts) => parts,
                    Parts::Indirect { page, count } => self.descriptors(page, count).await?,
                };
                self.check(sector, u64::from(bytes_of(&parts)) / SECTOR)?;
                if flush_before {
                    self.flush().await?;
                }
                self.transfer(direction, sector, &parts, mapped).await?;
                if barrier {
                    self.flush().await?;
                }
                let bytes = u64::from(bytes_of(&parts));
                match direction {
                    Direction::Read => {
                        add(&self.counters.reads, 1);
                        add(&self.counters.bytes_read, bytes);
                    }
                    Direction::Write => {
                        add(&self.counters.writes, 1);
                        add(&self.counters.bytes_written, bytes);
                    }
                }
                Ok(())
            }
        }
    }

    /// Whether the sectors are the disk's and aligned to its blocks.
    fn check(&self, sector: u64, sectors: u64) -> Result<(), Failure> {
        let geometry = self.disk.geometry();
        let refuse = |error| Err(Failure::Sectors(error));
        let end = sector.checked_add(sectors);
        if end.is_none_or(|end| end > geometry.sectors) {
            return refuse(BlockError::OutOfRange);
        }
        let block = geometry.block_sectors();
        if !sector.is_multiple_of(block) || !sectors.is_multiple_of(block) {
            return refuse(BlockError::Unaligned);
        }
        Ok(())
    }

    async fn discard(&self, sector: u64, sectors: u64) -> Result<(), Failure> {
        let geometry = self.disk.geometry();
        if !geometry.discard {
            return Err(Failure::Unsupported);
        }
        // It is a hint: what is not a whole block is kept.
        let block = geometry.block_sectors();
        let end = sector
            .checked_add(sectors)
            .filter(|end| *end <= geometry.sectors);
        let end = end.ok_or(Failure::Sectors(BlockError::OutOfRange))?;
        let (first, end) = (sector.next_multiple_of(block), end / block * block);
        add(&self.counters.discards, 1);
        if first < end {
            self.disk.discard(first, end - first).await?;
        }
        Ok(())
    }

    /// Copies and checks the descriptors of an indirect request.
    async fn descriptors(&self, page: GrantRef, count: u16) -> Result<Vec<PagePart>, Failure> {
        let ours = self.bounce.take(1).await;
        let mut segments = vec![blkif::Segment::new_zeroed(); usize::from(count)];
        let (buffer, _) = ours.locate(0);
        // Bounded by the protocol's own limit of segments.
        let len = u16::try_from(size_of::<blkif::Segment>()).expect("8") * count;
        let mut ops = [CopyOp {
            source: CopyEnd::Granted(page),
            source_offset: 0,
            dest: CopyEnd::Frame(buffer.bus_addr() >> PAGE_SHIFT),
            dest_offset: 0,
            len,
            status: GrantStatus::GENERAL_ERROR,
        }];
        self.copy(&mut ops).await?;
        buffer.read_bytes(0, segments.as_mut_bytes());
        check_segments(&segments).map_err(Failure::Request)
    }

    async fn transfer(
        self: &Rc<Self>,
        direction: Direction,
        sector: u64,
        parts: &[PagePart],
        mapped: &mut Option<Mapped<G, D>>,
    ) -> Result<(), Failure> {
        if bytes_of(parts) > COPY_MAX_BYTES
            && let Some(guard) = self.map(direction, parts)
        {
            match self.transfer_mapped(direction, sector, parts, guard).await {
                // The lists that this disk takes cannot express these addresses.
                (Err(BlockError::Unaligned), guard) => drop(guard),
                (result, guard) => {
                    *mapped = guard;
                    return Ok(result?);
                }
            }
        }
        self.transfer_copied(direction, sector, parts).await
    }

    /// Maps all parts' pages, or none: a page that cannot be mapped (it is one of a PV
    /// guest's page tables, or granted in part only) may still be copied, and so may all of
    /// them when others have mapped too much.
    fn map(self: &Rc<Self>, direction: Direction, parts: &[PagePart]) -> Option<Mapped<G, D>> {
        let share = self.maps.take(parts.len())?;
        let refs: Vec<_> = parts.iter().map(|part| part.gref).collect();
        let access = match direction {
            Direction::Read => Access::Write,
            Direction::Write => Access::Read,
        };
        let mut results = Vec::with_capacity(refs.len());
        self.grants.map_device(&refs, access, &mut results);
        add(&self.counters.grant_calls, 1);
        let list: Vec<_> = results.into_iter().flatten().collect();
        add(&self.counters.pages_mapped, list.len() as u64);
        let guard = Mapped {
            context: self.clone(),
            list,
            ended: Rc::default(),
            _share: share,
        };
        (guard.list.len() == parts.len()).then_some(guard)
    }

    /// Moves the data between the disk and mapped pages. The mappings come back, unless
    /// the disk kept them longer than it took to fail: then this waits until it has let
    /// go of them, because the guest may reuse its pages once it has a response.
    async fn transfer_mapped(
        &self,
        direction: Direction,
        sector: u64,
        parts: &[PagePart],
        guard: Mapped<G, D>,
    ) -> (Result<(), BlockError>, Option<Mapped<G, D>>) {
        let segments: Vec<_> = parts
            .iter()
            .zip(&guard.list)
            .map(|(part, mapping)| DmaSegment {
                bus_addr: mapping.bus_addr + u64::from(part.offset),
                len: part.len.into(),
            })
            .collect();
        let ended = guard.ended.clone();
        let guard = Rc::new(guard);
        let hold: Hold = guard.clone();
        let result = self.on_disk(direction, sector, &segments, &hold).await;
        drop(hold);
        match Rc::into_inner(guard) {
            Some(guard) => (result, Some(guard)),
            None => {
                poll_fn(|cx| {
                    if ended.done.get() {
                        return Poll::Ready(());
                    }
                    *ended.waker.borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                })
                .await;
                (result, None)
            }
        }
    }

    async fn transfer_copied(
        &self,
        direction: Direction,
        sector: u64,
        parts: &[PagePart],
    ) -> Result<(), Failure> {
        let total = bytes_of(parts) as usize;
        let mut start = 0;
        while start < total {
            let wanted = (total - start).div_ceil(PAGE_SIZE).min(COPY_PAGES);
            let pages = Rc::new(self.bounce.take(wanted).await);
            // Whole pages, so whole blocks, but for the end, which was checked.
            let len = pages.len().min(total - start);
            let mut ops = copy_ops(direction, parts, start, len, &pages);
            let segments = pages.segments(len);
            let hold: Hold = pages.clone();
            let at = sector + start as u64 / SECTOR;
            match direction {
                Direction::Read => {
                    self.on_disk(direction, at, &segments, &hold).await?;
                    self.copy(&mut ops).await?;
                }
                Direction::Write => {
                    self.copy(&mut ops).await?;
                    self.on_disk(direction, at, &segments, &hold).await?;
                }
            }
            start += len;
        }
        Ok(())
    }

    /// Reads or writes; a second time if the disk was reset under the first, because of
    /// somebody else's command (one's own gets `Timeout`, and is not sent again: it might
    /// be what the disk stumbles over). Doing it twice is doing it once: the guest has no
    /// answer yet, so it can rely on neither old nor new contents.
    async fn on_disk(
        &self,
        direction: Direction,
        sector: u64,
        segments: &[DmaSegment],
        hold: &Hold,
    ) -> Result<(), BlockError> {
        let once = async || match direction {
            Direction::Read => self.disk.read(sector, segments, hold).await,
            Direction::Write => self.disk.write(sector, segments, hold).await,
        };
        match once().await {
            Err(BlockError::Reset) => {
                add(&self.counters.retries, 1);
                once().await
            }
            result => result,
        }
    }

    /// As [`Self::on_disk`].
    async fn flush(&self) -> Result<(), BlockError> {
        match self.disk.flush().await {
            Err(BlockError::Reset) => {
                add(&self.counters.retries, 1);
                self.disk.flush().await
            }
            result => result,
        }
    }

    async fn copy(&self, ops: &mut [CopyOp]) -> Result<(), Failure> {
        add(&self.counters.copies, ops.len() as u64);
        for _ in 0..EAGAIN_TRIES {
            add(&self.counters.grant_calls, 1);
            self.grants.copy(ops);
            match ops.iter().find(|op| !op.status.is_okay()) {
                None => return Ok(()),
                // Copying all again is harmless.
                Some(op) if op.status == GrantStatus::EAGAIN => yield_now().await,
                Some(op) => return Err(Failure::Grant(op.status)),
            }
        }
        Err(Failure::Grant(GrantStatus::EAGAIN))
    }
}

/// The copies between bytes `start..start + len` of the request's parts and our pages,
/// cut so that neither end crosses a page.
fn copy_ops(
    direction: Direction,
    parts: &[PagePart],
    start: usize,
    len: usize,
    pages: &Pages,
) -> Vec<CopyOp> {
    let mut ops = Vec::new();
    // Where the part begins in the request.
    let mut base = 0;
    for part in parts {
        let (from, to) = (
            base.max(start),
            (base + usize::from(part.len)).min(start + len),
        );
        let mut at = from;
        while at < to {
            let (page, ours) = pages.locate(at - start);
            let now = (to - at).min(PAGE_SIZE - ours);
            let theirs = usize::from(part.offset) + (at - base);
            let small = |n: usize| u16::try_from(n).expect("within a page");
            let (guest, frame) = (
                (CopyEnd::Granted(part.gref), small(theirs)),
                (CopyEnd::Frame(page.bus_addr() >> PAGE_SHIFT), small(ours)),
            );
            let (source, dest) = match direction {
                Direction::Read => (frame, guest),
                Direction::Write => (guest, frame),
            };
            ops.push(CopyOp {
                source: source.0,
                source_offset: source.1,
                dest: dest.0,
                dest_offset: dest.1,
                len: small(now),
                status: GrantStatus::GENERAL_ERROR,
            });
            at += now;
        }
        base += usize::from(part.len);
    }
    ops
}
