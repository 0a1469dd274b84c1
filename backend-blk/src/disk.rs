//! What the block task needs of a disk, and how it gets it from a driver's queue.

use alloc::rc::Rc;
use core::fmt;
use core::future::Future;
use hal::DmaSegment;
use hal::block::{self, BlockError, BlockQueue, Hold};

/// Bytes in a sector of this crate, and of blkif and GPT on most disks.
pub const SECTOR: u64 = 512;

/// Size and habits of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Bytes in a block, the unit that requests must be aligned to: 512 or 4096.
    pub block_size: u32,
    /// Completed writes need a flush to be durable.
    pub volatile_write_cache: bool,
    /// Discard works.
    pub discard: bool,
}

impl Geometry {
    /// Sectors in a block.
    pub fn block_sectors(&self) -> u64 {
        u64::from(self.block_size) / SECTOR
    }
}

/// A disk, in sectors of 512 bytes. Operations run at the same time and finish in any
/// order. `hold` lives until the device is done with the memory, even if the future is
/// dropped before.
pub trait Disk {
    /// Size and habits.
    fn geometry(&self) -> Geometry;
    /// Reads as many sectors as `segments` hold.
    fn read(
        &self,
        sector: u64,
        segments: &[DmaSegment],
        hold: &Hold,
    ) -> impl Future<Output = Result<(), BlockError>>;
    /// Writes as many sectors as `segments` hold.
    fn write(
        &self,
        sector: u64,
        segments: &[DmaSegment],
        hold: &Hold,
    ) -> impl Future<Output = Result<(), BlockError>>;
    /// Makes all completed writes durable.
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;
    /// The contents of these sectors are no longer needed.
    fn discard(&self, sector: u64, sectors: u64) -> impl Future<Output = Result<(), BlockError>>;
}

/// A whole disk, through a driver's queue of this vCPU.
#[derive(Clone)]
pub struct QueueDisk(pub Rc<dyn BlockQueue>);

impl fmt::Debug for QueueDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueueDisk({})", self.0.info().serial)
    }
}

impl QueueDisk {
    /// The block that starts at a sector.
    fn block(&self, sector: u64) -> Result<u64, BlockError> {
        let sectors = self.geometry().block_sectors();
        if sector.is_multiple_of(sectors) {
            Ok(sector / sectors)
        } else {
            Err(BlockError::Unaligned)
        }
    }
}

impl Disk for QueueDisk {
    fn geometry(&self) -> Geometry {
        let info = self.0.info();
        Geometry {
            sectors: info.bytes() / SECTOR,
            block_size: info.block_size,
            volatile_write_cache: info.volatile_write_cache,
            discard: info.discard,
        }
    }

    async fn read(
        &self,
        sector: u64,
        segments: &[DmaSegment],
        hold: &Hold,
    ) -> Result<(), BlockError> {
        block::read(self.0.as_ref(), self.block(sector)?, segments, Some(hold)).await
    }

    async fn write(
        &self,
        sector: u64,
        segments: &[DmaSegment],
        hold: &Hold,
    ) -> Result<(), BlockError> {
        block::write(self.0.as_ref(), self.block(sector)?, segments, Some(hold)).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        block::flush(self.0.as_ref()).await
    }

    async fn discard(&self, sector: u64, sectors: u64) -> Result<(), BlockError> {
        let blocks = self.block(sectors)?;
        block::discard(self.0.as_ref(), self.block(sector)?, blocks).await
    }
}

/// A run of sectors of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first one.
    pub first: u64,
    /// How many.
    pub sectors: u64,
}

/// A run of sectors of a disk, as a disk. Nothing outside the run can be reached.
#[derive(Clone, Debug)]
pub struct Volume<D> {
    disk: D,
    extent: Extent,
    read_only: bool,
}

impl<D: Disk> Volume<D> {
    /// The run `extent` of `disk`; `OutOfRange` if it is not all on it.
    pub fn new(disk: D, extent: Extent, read_only: bool) -> Result<Self, BlockError> {
        let end = extent.first.checked_add(extent.sectors);
        if end.is_none_or(|end| end > disk.geometry().sectors) {
            return Err(BlockError::OutOfRange);
        }
        Ok(Self {
            disk,
            extent,
            read_only,
        })
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Where `sectors` sectors from `sector` on are on the disk.
    fn place(&self, sector: u64, sectors: u64) -> Result<u64, BlockError> {
        let end = sector.checked_add(sectors);
        if end.is_none_or(|end| end > self.extent.sectors) {
            return Err(BlockError::OutOfRange);
        }
        // The extent is on the disk, so this cannot overflow.
        Ok(self.extent.first + sector)
    }

    fn writable(&self) -> Result<(), BlockError> {
        if self.read_only {
            return Err(BlockError::ReadOnly);
        }
        Ok(())
    }
}

/// Whole sectors of a list; `Unaligned` if it does not hold whole sectors.
fn sectors_of(segments: &[DmaSegment]) -> Result<u64, BlockError> {
    let bytes: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
    if !bytes.is_multiple_of(SECTOR) {
        return Err(BlockError::Unaligned);
    }
    Ok(bytes / SECTOR)
}

impl<D: Disk> Disk for Volume<D> {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: self.extent.sectors,
            ..self.disk.geometry()
        }
    }

    async fn read(
        &self,
        sector: u64,
        segments: &[DmaSegment],
        hold: &Hold,
    ) -> Result<(), BlockError> {
        let at = self.place(sector, sectors_of(segments)?)?;
        self.disk.read(at, segments, hold).await
    }

    async fn write(
        &self,
        sector: u64,
        segments: &[DmaSegment],
        hold: &Hold,
    ) -> Result<(), BlockError> {
        self.writable()?;
        let at = self.place(sector, sectors_of(segments)?)?;
        self.disk.write(at, segments, hold).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.disk.flush().await
    }

    async fn discard(&self, sector: u64, sectors: u64) -> Result<(), BlockError> {
        self.writable()?;
        let at = self.place(sector, sectors)?;
        self.disk.discard(at, sectors).await
    }
}
