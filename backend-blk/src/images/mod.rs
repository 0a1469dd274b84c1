//! The image area: what guests boot from, kept on the host's disk.
//!
//! It holds *objects*, found by the SHA-256 of their bytes (kernels, ramdisks: up to
//! hundreds of MiB each), and small *records*, found by name (guest definitions). No
//! file system: the pVM needs nothing more, and has 64 MiB of memory.
//!
//! # On the disk
//! Blocks of 4 KiB. The first 64 and the next 64 are two places for the *catalog*, all
//! others are data. A catalog is a header (magic `CLOSERIM`, u32 version 1, u32 length
//! of the body, u64 sequence number, u32 CRC-32 of header and body; little-endian) and a
//! body: u32 objects, u32 records; for each object its hash and place; for each record
//! u32 length of its name, the name, u32 CRC-32 of its bytes, and its place. A place is
//! u64 bytes, u32 runs, and for each run u32 first block and u32 blocks.
//!
//! # Why a power cut or a bad sector loses nothing
//! Data goes to blocks that no catalog on the disk uses, and is flushed before the catalog
//! that names it is written; that goes to the place of the older catalog, with the next
//! sequence number, and is flushed: now the change is made, since the valid catalog with
//! the higher number is in force. A put that was cut left nothing but bytes in free blocks.
//! Then the other place gets the same, with the number after that. So either place alone
//! holds all, and blocks of what was removed are free only when both are without it: if one
//! cannot be read, the other is used, and names no bytes of anything else.
//!
//! That is for reading. A place that cannot be written ends all changes with the disk's
//! error: the other one has the only catalog then, and is not risked for a change.

mod catalog;
mod lease;
mod put;

pub use lease::{LEASE_TIME, Lease};
pub use put::Put;

use crate::bytes::{ByteIo, readable};
use crate::disk::{Disk, SECTOR};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use catalog::{BadCatalog, Catalog, DATA_START, Place, Record, Run, SLOT, gaps, pick};
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::poll_fn;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::{Poll, Waker};
use core::time::Duration;
use hal::block::BlockError;
use lease::Leases;

/// Bytes in a block of the area.
pub const BLOCK: usize = 4096;
/// Longest name of a record, in bytes.
pub const MAX_NAME: usize = 128;
/// Longest record, in bytes.
pub const MAX_RECORD: usize = 64 << 10;
const BLOCK_SECTORS: u64 = BLOCK as u64 / SECTOR;
/// Bytes read at once when they go through a buffer.
const READ_STEP: usize = 64 << 10;

/// For [`crate::fuzz`]: a slot's bytes, for an area of a million blocks.
pub(crate) fn fuzz_catalog(bytes: &[u8]) {
    const BLOCKS: u32 = 1_000_000;
    if let Ok(catalog) = Catalog::parse(bytes, BLOCKS) {
        let sound = |run: &Run| run.first >= DATA_START && run.first + run.count <= BLOCKS;
        assert!(catalog.used().iter().all(sound));
        assert_eq!(
            Catalog::parse(&catalog.encode().unwrap_or_default(), BLOCKS),
            Ok(catalog)
        );
    }
}

/// Size for the area of a disk with so many sectors: a tenth of it, at most 4 GiB, at
/// least 64 MiB. In sectors, for [`crate::gpt::Gpt::image_area`].
pub fn area_size(disk_sectors: u64) -> u64 {
    (disk_sectors / 10).clamp((64 << 20) / SECTOR, (4 << 30) / SECTOR)
}

/// The SHA-256 of an object's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub [u8; 32]);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why something could not be done with the image area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The disk failed.
    Disk(BlockError),
    /// The area holds no valid catalog, and is not empty either.
    Damaged,
    /// The area is too small to hold anything.
    TooSmall,
    /// The object is there already.
    Exists,
    /// There is no such object or record.
    NotFound,
    /// The object is open so many times.
    InUse(u32),
    /// So many bytes are free.
    NoSpace(u64),
    /// The catalog has no room for another entry.
    CatalogFull,
    /// More bytes came than were announced.
    TooLong,
    /// Fewer bytes came than were announced: so many.
    TooShort(u64),
    /// The bytes have another hash.
    Mismatch(ObjectId),
    /// A record's name is 1 to 128 bytes of printable ASCII, its data at most 64 KiB.
    BadRecord,
    /// A record's bytes have another checksum than was noted.
    RecordDamaged,
    /// The bytes asked for are beyond the object's end.
    OutOfRange,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(f),
            Self::Damaged => f.write_str("the image area is damaged"),
            Self::TooSmall => f.write_str("the image area is too small"),
            Self::Exists => f.write_str("the image is there already"),
            Self::NotFound => f.write_str("not in the image area"),
            Self::InUse(count) => write!(f, "the image is in use, {count} times"),
            Self::NoSpace(free) => write!(f, "the image area is full: {} MiB free", free >> 20),
            Self::CatalogFull => f.write_str("the image area's catalog is full"),
            Self::TooLong => f.write_str("more bytes than announced"),
            Self::TooShort(got) => write!(f, "only {got} bytes of what was announced"),
            Self::Mismatch(found) => write!(f, "the bytes have the hash {found}"),
            Self::BadRecord => f.write_str("a record's name or size is not allowed"),
            Self::RecordDamaged => f.write_str("the record is damaged"),
            Self::OutOfRange => f.write_str("beyond the image's end"),
        }
    }
}

impl core::error::Error for ImageError {}

impl From<BlockError> for ImageError {
    fn from(error: BlockError) -> Self {
        Self::Disk(error)
    }
}

/// The area's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// For data.
    pub total: u64,
    /// Not used, nor reserved by a put.
    pub free: u64,
}

/// What [`ImageArea::collect`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Objects removed.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of objects that are there only because of a [`Lease`].
    pub leased: u64,
}

/// An open object: it is not removed while there is a handle. Can go to another vCPU.
#[derive(Debug)]
pub struct ObjectHandle {
    id: ObjectId,
    place: Arc<Place>,
    count: Arc<AtomicU32>,
}

impl ObjectHandle {
    /// Its hash.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an object may well be empty")]
    pub fn len(&self) -> u64 {
        self.place.len
    }

    /// Fills `to` with the object's bytes from `offset` on, through `io`: bytes of the
    /// same area, on a queue of this vCPU.
    pub async fn read<D: Disk>(
        &self,
        io: &ByteIo<D>,
        offset: u64,
        to: &mut [u8],
    ) -> Result<(), ImageError> {
        read_place(io, &self.place, offset, to).await
    }
}

impl Clone for ObjectHandle {
    fn clone(&self) -> Self {
        self.count.fetch_add(1, Ordering::AcqRel);
        Self {
            id: self.id,
            place: self.place.clone(),
            count: self.count.clone(),
        }
    }
}

impl Drop for ObjectHandle {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Default)]
struct State {
    catalog: Catalog,
    /// Blocks of puts and records that no catalog names yet.
    reserved: Vec<Run>,
    /// Objects that are being put: what the catalog must have room for.
    puts: Vec<(ObjectId, Place)>,
    /// Blocks of all catalogs but the one in force that may be on the disk: the one before
    /// it, and those that were being written when the disk failed.
    doubtful: Vec<Run>,
    /// What creates in progress keep.
    leases: Leases,
    /// Objects that are being removed: they are not opened any more.
    removing: Vec<ObjectId>,
    /// How often objects are open. No handle can take its entry away, since it may be on
    /// another vCPU: the next that is opened does.
    handles: BTreeMap<ObjectId, Arc<AtomicU32>>,
}

impl State {
    /// Whether the catalog has room for all that is being put.
    fn has_room_for_puts(&self) -> bool {
        let mut catalog = self.catalog.clone();
        catalog.objects.extend(self.puts.iter().cloned());
        catalog.encode().is_some()
    }

    fn open(&mut self, id: &ObjectId) -> Result<ObjectHandle, ImageError> {
        if self.removing.contains(id) {
            return Err(ImageError::NotFound);
        }
        let place = self.catalog.objects.get(id).ok_or(ImageError::NotFound)?;
        let place = Arc::new(place.clone());
        self.handles
            .retain(|_, count| count.load(Ordering::Acquire) > 0);
        let count = self.handles.entry(*id).or_default().clone();
        count.fetch_add(1, Ordering::AcqRel);
        Ok(ObjectHandle {
            id: *id,
            place,
            count,
        })
    }

    fn in_use(&self, id: &ObjectId) -> u32 {
        let count = self.handles.get(id);
        count.map_or(0, |count| count.load(Ordering::Acquire))
    }
}

struct Shared<D> {
    io: ByteIo<D>,
    blocks: u32,
    state: RefCell<State>,
    /// One commit at a time.
    committing: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// The image area of a disk. Clones are the same area, for the tasks of one vCPU.
pub struct ImageArea<D>(Rc<Shared<D>>);

impl<D> Clone for ImageArea<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D> fmt::Debug for ImageArea<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageArea({} blocks)", self.0.blocks)
    }
}

impl<D: Disk> ImageArea<D> {
    /// Opens the area that fills `io`'s disk (a volume of the partition). One that was
    /// never written becomes an empty area.
    pub async fn open(io: ByteIo<D>) -> Result<Self, ImageError> {
        let blocks = blocks_of(&io)?;
        let first = read_slot(&io, 0, blocks).await?;
        let second = read_slot(&io, 1, blocks).await?;
        let (catalog, other) = match (first, second) {
            (Ok(a), Ok(b)) if b.sequence > a.sequence => (b, Ok(a)),
            (Ok(a), b) => (a, b),
            (a @ Err(_), Ok(b)) => (b, a),
            // Never written, or cut while the area was made: what is in the first place is
            // at most an empty catalog, since the first change goes to the second.
            (Err(_), Err(BadCatalog::Empty)) => {
                let area = Self::with(io, blocks, Catalog::default());
                area.write_first().await?;
                return Ok(area);
            }
            (Err(BadCatalog::Unreadable(error)), Err(_))
            | (Err(_), Err(BadCatalog::Unreadable(error))) => return Err(error.into()),
            (Err(_), Err(BadCatalog::Damaged)) => return Err(ImageError::Damaged),
        };
        let area = Self::with(io, blocks, catalog);
        area.restore(other).await;
        Ok(area)
    }

    /// Writes the catalog in force to the other place too, if that has another one.
    async fn restore(&self, other: Result<Catalog, BadCatalog>) {
        match other {
            Ok(other) if other.holds_the_same(&self.0.state.borrow().catalog) => return,
            Ok(other) => self.0.state.borrow_mut().doubtful = other.used(),
            // The area was being made.
            Err(BadCatalog::Empty) => {}
            Err(bad) => log::warn!("image area: one copy of its catalog is bad: {bad:?}"),
        }
        self.write_second().await;
    }

    /// Makes an empty area, whatever was there.
    pub async fn format(io: ByteIo<D>) -> Result<Self, ImageError> {
        let blocks = blocks_of(&io)?;
        io.zero(0, u64::from(DATA_START) * BLOCK_SECTORS).await?;
        io.flush().await?;
        let area = Self::with(io, blocks, Catalog::default());
        area.write_first().await?;
        Ok(area)
    }

    /// Writes an empty catalog, so that from now on one of both is valid at any time.
    async fn write_first(&self) -> Result<(), ImageError> {
        let bytes = Catalog::default().encode().ok_or(ImageError::CatalogFull)?;
        self.0.io.write(0, &bytes).await?;
        self.0.io.flush().await?;
        self.write_second().await;
        Ok(())
    }

    fn with(io: ByteIo<D>, blocks: u32, catalog: Catalog) -> Self {
        Self(Rc::new(Shared {
            io,
            blocks,
            state: RefCell::new(State {
                catalog,
                ..State::default()
            }),
            committing: Cell::new(false),
            waiting: RefCell::default(),
        }))
    }

    /// The area's bytes, for [`ObjectHandle::read`] on this vCPU.
    pub fn io(&self) -> &ByteIo<D> {
        &self.0.io
    }

    /// All objects with their lengths.
    pub fn objects(&self) -> Vec<(ObjectId, u64)> {
        let state = self.0.state.borrow();
        let objects = state.catalog.objects.iter();
        objects.map(|(id, place)| (*id, place.len)).collect()
    }

    /// Opens an object.
    pub fn open_object(&self, id: &ObjectId) -> Result<ObjectHandle, ImageError> {
        self.0.state.borrow_mut().open(id)
    }

    /// Begins to take an object of `len` bytes whose hash shall be `id`. A full area, or a
    /// full catalog, says so now, not when all bytes have come.
    pub async fn put(&self, id: ObjectId, len: u64) -> Result<Put<D>, ImageError> {
        if self.has(&id).is_some() {
            return Err(ImageError::Exists);
        }
        let runs = self.reserve(len).await?;
        let put = Put::new(self.clone(), id, Place { len, runs });
        if !self.0.state.borrow().has_room_for_puts() {
            return Err(ImageError::CatalogFull);
        }
        Ok(put)
    }

    /// Removes an object that is not open.
    pub async fn remove(&self, id: &ObjectId) -> Result<(), ImageError> {
        let _guard = self.lock().await;
        if !self.0.state.borrow().catalog.objects.contains_key(id) {
            return Err(ImageError::NotFound);
        }
        let in_use = self.0.state.borrow().in_use(id);
        match in_use {
            0 => self.drop_objects(&[*id]).await,
            count => Err(ImageError::InUse(count)),
        }
    }

    /// Removes objects that are not open. The caller holds the lock.
    async fn drop_objects(&self, ids: &[ObjectId]) -> Result<(), ImageError> {
        self.0.state.borrow_mut().removing = ids.to_vec();
        self.commit(|catalog| {
            for id in ids {
                catalog.objects.remove(id);
            }
        })
        .await?;
        let mut state = self.0.state.borrow_mut();
        ids.iter().for_each(|id| state.leases.forget(id));
        Ok(())
    }

    /// Removes every object that is neither open nor wanted, nor kept by a [`Lease`].
    pub async fn collect(
        &self,
        now: Duration,
        wanted: impl Fn(&ObjectId) -> bool,
    ) -> Result<Collected, ImageError> {
        let _guard = self.lock().await;
        let mut objects = self.objects();
        objects.retain(|(id, _)| !wanted(id) && self.0.state.borrow().in_use(id) == 0);
        let leased = |(id, _): &(ObjectId, u64)| self.0.state.borrow().leases.keep(id, now);
        let (leased, gone): (Vec<_>, Vec<_>) = objects.into_iter().partition(leased);
        let bytes = |objects: &[(ObjectId, u64)]| objects.iter().map(|(_, len)| len).sum();
        let collected = Collected {
            objects: gone.len(),
            bytes: bytes(&gone),
            leased: bytes(&leased),
        };
        if !gone.is_empty() {
            let ids: Vec<_> = gone.iter().map(|(id, _)| *id).collect();
            self.drop_objects(&ids).await?;
        }
        Ok(collected)
    }

    /// Writes a record, in the place of one of the same name.
    pub async fn put_record(&self, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let printable = name.bytes().all(|b| b.is_ascii_graphic());
        if name.is_empty() || name.len() > MAX_NAME || !printable || bytes.len() > MAX_RECORD {
            return Err(ImageError::BadRecord);
        }
        let runs = self.reserve(bytes.len() as u64).await?;
        // Gives the blocks back whatever happens, this future's end included.
        let reserved = Reserved {
            area: self.clone(),
            runs: runs.clone(),
        };
        let mut at = 0;
        for run in &runs {
            let end = (at + run.count as usize * BLOCK).min(bytes.len());
            let mut padded = bytes[at..end].to_vec();
            padded.resize(run.count as usize * BLOCK, 0);
            self.0
                .io
                .write(u64::from(run.first) * BLOCK_SECTORS, &padded)
                .await?;
            at = end;
        }
        self.0.io.flush().await?;
        let place = Place {
            len: bytes.len() as u64,
            runs,
        };
        let crc = crc32fast::hash(bytes);
        let _guard = self.lock().await;
        let result = self
            .commit(|catalog| {
                catalog
                    .records
                    .insert(name.to_string(), Record { place, crc });
            })
            .await;
        drop(reserved);
        result
    }

    /// A record's bytes; `None`: there is none of this name.
    pub async fn record(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let found = self.0.state.borrow().catalog.records.get(name).cloned();
        let Some(record) = found else { return Ok(None) };
        // A catalog holds no record longer than `MAX_RECORD` that we wrote; of others,
        // only as much as that is read.
        let len = usize::try_from(record.place.len)
            .ok()
            .filter(|len| *len <= MAX_RECORD);
        let mut bytes = vec![0; len.ok_or(ImageError::RecordDamaged)?];
        read_place(&self.0.io, &record.place, 0, &mut bytes).await?;
        if crc32fast::hash(&bytes) != record.crc {
            return Err(ImageError::RecordDamaged);
        }
        Ok(Some(bytes))
    }

    /// Names of all records.
    pub fn records(&self) -> Vec<String> {
        self.0
            .state
            .borrow()
            .catalog
            .records
            .keys()
            .cloned()
            .collect()
    }

    /// Removes a record.
    pub async fn remove_record(&self, name: &str) -> Result<(), ImageError> {
        let _guard = self.lock().await;
        if !self.0.state.borrow().catalog.records.contains_key(name) {
            return Err(ImageError::NotFound);
        }
        self.commit(|catalog| {
            catalog.records.remove(name);
        })
        .await
    }

    /// How much there is, and how much is free.
    pub fn space(&self) -> Space {
        let free: u64 = self
            .free_runs()
            .iter()
            .map(|run| u64::from(run.count))
            .sum();
        Space {
            total: u64::from(self.0.blocks - DATA_START) * BLOCK as u64,
            free: free * BLOCK as u64,
        }
    }

    fn free_runs(&self) -> Vec<Run> {
        self.free_beside(&self.0.state.borrow().doubtful)
    }

    /// Blocks that neither these have, nor the catalog in force, nor a put or record.
    fn free_beside(&self, others: &[Run]) -> Vec<Run> {
        let state = self.0.state.borrow();
        let mut used = state.catalog.used();
        used.extend_from_slice(&state.reserved);
        used.extend_from_slice(others);
        gaps(used, self.0.blocks)
    }

    async fn reserve(&self, len: u64) -> Result<Vec<Run>, ImageError> {
        let count = u32::try_from(len.div_ceil(BLOCK as u64)).unwrap_or(u32::MAX);
        let fits = |free| pick(free, count).is_some();
        if !fits(self.free_runs()) && fits(self.free_beside(&[])) {
            // What is missing has only catalogs that may be on the disk because it failed
            // their writes: the one in force, written where they would be, ends that. If it
            // cannot be, the area is not full: the disk fails.
            let _guard = self.lock().await;
            self.write_next(|_| {}).await?;
        }
        let free = self.free_runs();
        let no_space = ImageError::NoSpace(
            free.iter().map(|run| u64::from(run.count)).sum::<u64>() * BLOCK as u64,
        );
        let runs = pick(free, count).ok_or(no_space)?;
        self.0.state.borrow_mut().reserved.extend_from_slice(&runs);
        Ok(runs)
    }

    fn unreserve(&self, runs: &[Run]) {
        self.0
            .state
            .borrow_mut()
            .reserved
            .retain(|run| !runs.contains(run));
    }

    /// Waits for its turn to change the catalog.
    async fn lock(&self) -> Guard<D> {
        poll_fn(|cx| {
            if self.0.committing.replace(true) {
                self.0.waiting.borrow_mut().push(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Guard(self.clone()))
        })
        .await
    }

    /// Changes the catalog, in both places. The caller holds the lock, and has the blocks of
    /// new data reserved and the data flushed.
    async fn commit(&self, change: impl FnOnce(&mut Catalog)) -> Result<(), ImageError> {
        self.write_next(change).await?;
        self.write_second().await;
        Ok(())
    }

    /// Gives the other place what the first has. Without it the change is made nevertheless:
    /// only, blocks that it freed cannot be used before a catalog gets there.
    async fn write_second(&self) {
        if let Err(error) = self.write_next(|_| {}).await {
            log::warn!("image area: no second copy of its catalog: {error}");
        }
    }

    /// Writes the next catalog to the place of the older one, and then has it here.
    async fn write_next(&self, change: impl FnOnce(&mut Catalog)) -> Result<(), ImageError> {
        let mut next = self.0.state.borrow().catalog.clone();
        next.sequence += 1;
        change(&mut next);
        let bytes = next.encode().ok_or(ImageError::CatalogFull)?;
        // Whatever becomes of this future or the disk: from here on the catalog may be
        // there, so its blocks must not be used for anything else. Nor those of an earlier
        // one that failed: this one may fail before it takes its place.
        {
            let doubtful = &mut self.0.state.borrow_mut().doubtful;
            doubtful.extend(next.used());
            doubtful.sort_unstable();
            doubtful.dedup();
        }
        // The place of the catalog in force is the other one.
        let slot = (next.sequence % 2) * SLOT as u64 / SECTOR;
        self.0.io.write(slot, &bytes).await?;
        self.0.io.flush().await?;
        let mut state = self.0.state.borrow_mut();
        let before = core::mem::replace(&mut state.catalog, next);
        // All others that were in doubt were to stand where this one does now.
        state.doubtful = before.used();
        Ok(())
    }
}

impl<D> ImageArea<D> {
    /// A lease that keeps nothing yet.
    pub fn lease(&self) -> Lease<D> {
        Lease::new(self.clone())
    }

    /// Whether an object is there, and how long it is. It may be collected the next moment,
    /// unless one asks through a [`Lease`]. One that is being removed is not there: a create
    /// must not hear that it need not be put.
    pub fn has(&self, id: &ObjectId) -> Option<u64> {
        let state = self.0.state.borrow();
        let place = state.catalog.objects.get(id)?;
        (!state.removing.contains(id)).then_some(place.len)
    }
}

/// The right to change the catalog.
struct Guard<D>(ImageArea<D>);

impl<D> Drop for Guard<D> {
    fn drop(&mut self) {
        self.0.0.committing.set(false);
        self.0.0.state.borrow_mut().removing.clear();
        for waker in self.0.0.waiting.take() {
            waker.wake();
        }
    }
}

/// Reserved blocks; they are free again, or the catalog's, when this is dropped.
struct Reserved<D: Disk> {
    area: ImageArea<D>,
    runs: Vec<Run>,
}

impl<D: Disk> Drop for Reserved<D> {
    fn drop(&mut self) {
        self.area.unreserve(&self.runs);
    }
}

fn blocks_of<D: Disk>(io: &ByteIo<D>) -> Result<u32, ImageError> {
    let blocks = io.disk().geometry().sectors / BLOCK_SECTORS;
    // More than 16 TiB are not used.
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    if blocks <= DATA_START {
        return Err(ImageError::TooSmall);
    }
    Ok(blocks)
}

async fn read_slot<D: Disk>(
    io: &ByteIo<D>,
    slot: u64,
    blocks: u32,
) -> Result<Result<Catalog, BadCatalog>, ImageError> {
    let sector = slot * SLOT as u64 / SECTOR;
    let mut bytes = vec![0; BLOCK];
    if let Err(error) = readable(io.read(sector, &mut bytes).await)? {
        return Ok(Err(BadCatalog::Unreadable(error)));
    }
    if let Some(len) = Catalog::padded_len(&bytes) {
        bytes.resize(len, 0);
        if let Err(error) = readable(io.read(sector, &mut bytes).await)? {
            return Ok(Err(BadCatalog::Unreadable(error)));
        }
    }
    Ok(Catalog::parse(&bytes, blocks))
}

async fn read_place<D: Disk>(
    io: &ByteIo<D>,
    place: &Place,
    offset: u64,
    to: &mut [u8],
) -> Result<(), ImageError> {
    let end = offset.checked_add(to.len() as u64);
    if end.is_none_or(|end| end > place.len) {
        return Err(ImageError::OutOfRange);
    }
    let mut done = 0;
    // Where the run begins in the object.
    let mut base = 0u64;
    for run in &place.runs {
        let len = u64::from(run.count) * BLOCK as u64;
        while done < to.len() && offset + (done as u64) < base + len {
            let at = offset + done as u64 - base;
            let skip = usize::try_from(at % BLOCK as u64).unwrap_or(0);
            let room = usize::try_from(len - at).unwrap_or(usize::MAX);
            let now = (to.len() - done).min(room).min(READ_STEP - skip);
            let sector = (u64::from(run.first) + at / BLOCK as u64) * BLOCK_SECTORS;
            if skip == 0 && now.is_multiple_of(BLOCK) {
                io.read(sector, &mut to[done..done + now]).await?;
            } else {
                let mut blocks = vec![0; (skip + now).next_multiple_of(BLOCK)];
                io.read(sector, &mut blocks).await?;
                to[done..done + now].copy_from_slice(&blocks[skip..skip + now]);
            }
            done += now;
        }
        base += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_nobody_holds_any_more_is_not_counted_for_ever() {
        let mut state = State::default();
        let ids = [1, 2, 3, 4].map(|n| ObjectId([n; 32]));
        for id in ids {
            let runs = Vec::new();
            state.catalog.objects.insert(id, Place { len: 0, runs });
        }
        let held = state.open(&ids[0]).unwrap();
        for id in &ids {
            drop(state.open(id).unwrap());
        }
        // The one that is held, and the last one.
        assert_eq!(state.handles.len(), 2);
        let second = state.open(&ids[0]).unwrap();
        assert_eq!(ids.map(|id| state.in_use(&id)), [2, 0, 0, 0]);
        drop((held, second));
        assert_eq!(state.in_use(&ids[0]), 0);
    }
}
