//! Reading and writing a disk's bytes through a few pages of our own: for partition
//! tables, the image area, and volumes that are imported and exported.

use crate::disk::{Disk, SECTOR};
use alloc::rc::Rc;
use alloc::vec::Vec;
use hal::block::{BlockError, Hold};
use hal::{DmaAllocator, DmaBuffer, Node};
use xen_abi::PAGE_SIZE;

/// Pages in work for each call: enough to keep a disk busy, little enough for a small
/// pVM.
const CHUNK_PAGES: usize = 16;

const PAGE_SECTORS: u64 = PAGE_SIZE as u64 / SECTOR;

/// A disk whose sectors are read into and written from slices.
#[derive(Clone)]
pub struct ByteIo<D> {
    disk: D,
    dma: Rc<dyn DmaAllocator>,
    node: Node,
}

impl<D> core::fmt::Debug for ByteIo<D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("ByteIo")
    }
}

impl<D: Disk> ByteIo<D> {
    /// Bytes of `disk` through pages of `dma` on `node`.
    pub fn new(disk: D, dma: Rc<dyn DmaAllocator>, node: Node) -> Self {
        Self { disk, dma, node }
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The same pages for another part of the disk, or another disk.
    pub fn on<E: Disk>(&self, disk: E) -> ByteIo<E> {
        ByteIo {
            disk,
            dma: self.dma.clone(),
            node: self.node,
        }
    }

    /// Fills `to` from `sector` on. Sector and length must be whole blocks.
    pub async fn read(&self, sector: u64, to: &mut [u8]) -> Result<(), BlockError> {
        let buffer = self.buffer(to.len())?;
        let hold: Hold = buffer.clone();
        let chunk = CHUNK_PAGES * PAGE_SIZE;
        for (n, part) in to.chunks_mut(chunk).enumerate() {
            let segments = scatter(&buffer, part.len());
            let at = sector + (n * chunk) as u64 / SECTOR;
            twice(async || self.disk.read(at, &segments, &hold).await).await?;
            for (page, bytes) in buffer.iter().zip(part.chunks_mut(PAGE_SIZE)) {
                page.read_bytes(0, bytes);
            }
        }
        Ok(())
    }

    /// Writes `from` from `sector` on. Sector and length must be whole blocks.
    pub async fn write(&self, sector: u64, from: &[u8]) -> Result<(), BlockError> {
        let buffer = self.buffer(from.len())?;
        let hold: Hold = buffer.clone();
        let chunk = CHUNK_PAGES * PAGE_SIZE;
        for (n, part) in from.chunks(chunk).enumerate() {
            for (page, bytes) in buffer.iter().zip(part.chunks(PAGE_SIZE)) {
                page.write_bytes(0, bytes);
            }
            let segments = scatter(&buffer, part.len());
            let at = sector + (n * chunk) as u64 / SECTOR;
            twice(async || self.disk.write(at, &segments, &hold).await).await?;
        }
        Ok(())
    }

    /// Writes zeroes, one stretch after the other. Sectors must be whole blocks.
    pub async fn zero(&self, sector: u64, sectors: u64) -> Result<(), BlockError> {
        let page = self.dma.alloc(1, self.node).ok_or(BlockError::NoMemory)?;
        // The same page of zeroes many times over: nothing forbids it, as it is only read.
        let step = CHUNK_PAGES as u64 * PAGE_SECTORS;
        let segment = page.segment(0, PAGE_SIZE);
        let hold: Hold = Rc::new(page);
        let end = sector.checked_add(sectors).ok_or(BlockError::OutOfRange)?;
        let mut at = sector;
        while at < end {
            let now = step.min(end - at);
            let mut segments = alloc::vec![segment; CHUNK_PAGES];
            segments.truncate(usize::try_from(now.div_ceil(PAGE_SECTORS)).unwrap_or(CHUNK_PAGES));
            let rest = now % PAGE_SECTORS;
            if let (Some(last), 1..) = (segments.last_mut(), rest) {
                last.len = u32::try_from(rest * SECTOR).unwrap_or(0);
            }
            twice(async || self.disk.write(at, &segments, &hold).await).await?;
            at += now;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub async fn flush(&self) -> Result<(), BlockError> {
        twice(async || self.disk.flush().await).await
    }

    fn buffer(&self, len: usize) -> Result<Rc<Vec<DmaBuffer>>, BlockError> {
        let count = len.div_ceil(PAGE_SIZE).min(CHUNK_PAGES);
        let pages: Option<Vec<_>> = (0..count).map(|_| self.dma.alloc(1, self.node)).collect();
        pages.map(Rc::new).ok_or(BlockError::NoMemory)
    }
}

/// Does it a second time if the disk was reset under the first, because of somebody else's
/// command, as the block task does for guests. A reset takes no completed write back, and
/// all of this can be done twice.
async fn twice(once: impl AsyncFn() -> Result<(), BlockError>) -> Result<(), BlockError> {
    match once().await {
        Err(BlockError::Reset) => once().await,
        result => result,
    }
}

/// Tells what a failed read says of the bytes (inner: they cannot be read) from what it says
/// of the host or of the whole disk (outer).
pub(crate) fn readable(read: Result<(), BlockError>) -> Result<Result<(), BlockError>, BlockError> {
    match read {
        // No answer: a bad sector may keep a disk busy for longer than anybody waits.
        Err(BlockError::Media(_) | BlockError::Device(_) | BlockError::Timeout) => Ok(read),
        other => other.map(Ok),
    }
}

fn scatter(pages: &[DmaBuffer], len: usize) -> Vec<hal::DmaSegment> {
    (0..len)
        .step_by(PAGE_SIZE)
        .zip(pages)
        .map(|(at, page)| page.segment(0, PAGE_SIZE.min(len - at)))
        .collect()
}
