//! Volumes as partitions of a GUID partition table (UEFI specification, chapter 5).
//!
//! Any other system can read the disk. The table exists twice; an update writes
//!
//! 1. the backup's entries, then its header: until that is done the primary is valid
//!    and old;
//! 2. the primary's entries, then its header: from the first of these writes on the
//!    backup is valid and new;
//!
//! with a flush after each of the four steps, so that at every moment one copy is whole.
//! [`Gpt::open`] takes the primary if it is valid, else the backup, and writes the other
//! copy anew if it differs: after a power cut an update has happened or has not.
//!
//! A new volume's entry has [`FILLING`] until [`Gpt::finish_volume`]: after a power cut it
//! would show what its blocks held before, so [`Gpt::open`] removes it.
//!
//! One whose contents are being replaced has [`OVERWRITING`] from [`Gpt::begin_overwrite`]
//! until then: cut off, it holds some of the old and some of the new, and is no use to
//! anybody. It is the administrator's to say what becomes of it, so it stays, and can be
//! overwritten again or removed.
//!
//! Partitions of other kinds are kept as they are, and their space is not touched. A disk
//! with no partition of ours among them is another system's, and is not written at all.
//!
//! When the disk fails a change, the old table is put back: first into the primary, if that
//! was begun, since the backup is then the only whole copy. What cannot be written is read:
//! a copy in which the old table stands nevertheless is as good. If a copy may still hold
//! the new one, the change says [`GptError::InDoubt`], and until [`Gpt::settle`] has put the
//! old table back, volumes in which both differ are not opened and no change is made.
//! A restart before that may find either table. If it finds the new one, the change is made
//! though it was refused: a volume to be removed is gone, and one to be overwritten has
//! [`OVERWRITING`] though all its contents are the old ones.

pub mod format;
mod guid;

pub use guid::Guid;

use crate::bytes::{ByteIo, readable};
use crate::disk::{Disk, Extent, SECTOR};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use format::{BadTable, Entry, Header};
use hal::block::BlockError;

/// Partition type of volumes: c105e401-6f1d-4a3b-9c5e-766f6c756d65.
pub const VOLUME_TYPE: Guid = Guid([
    0x01, 0xe4, 0x05, 0xc1, 0x1d, 0x6f, 0x3b, 0x4a, 0x9c, 0x5e, b'v', b'o', b'l', b'u', b'm', b'e',
]);
/// Partition type of the image area: c105e401-6f1d-4a3b-9c5e-696d61676573.
pub const IMAGES_TYPE: Guid = Guid([
    0x01, 0xe4, 0x05, 0xc1, 0x1d, 0x6f, 0x3b, 0x4a, 0x9c, 0x5e, b'i', b'm', b'a', b'g', b'e', b's',
]);
/// Attribute of a volume that does not hold its first contents yet. Bits 48 to 63 are the
/// partition type's own.
pub const FILLING: u64 = 1 << 48;
/// Attribute of a volume whose contents are being replaced.
pub const OVERWRITING: u64 = 1 << 49;
/// Name of the image area's partition.
const IMAGES_NAME: &str = "closer-images";

/// Partitions start and end at multiples of this many bytes.
pub const ALIGNMENT: u64 = 1 << 20;
/// Longest name of a volume, in bytes: what an entry holds.
pub const MAX_NAME: usize = 36;
/// Zeroes in this many bytes at each end make a disk blank.
const BLANK_BYTES: u64 = 1 << 20;

/// Why something could not be done with a disk's volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GptError {
    /// The disk failed.
    Disk(BlockError),
    /// The disk is blank: it can be given a table.
    Blank,
    /// There is no valid table, but something else: the reasons, of primary and backup.
    NoTable(BadTable, BadTable),
    /// There are partitions, and none of them is ours.
    Foreign,
    /// The disk failed a change of this volume, and then to undo it: a restart may find it
    /// made or not made.
    InDoubt,
    /// The disk is not blank, and overwriting was not asked for.
    NotBlank,
    /// The disk is too small for a table.
    TooSmall,
    /// A volume's name is 1 to 36 of `A-Z a-z 0-9 . _ -`, and starts with none of `. -`.
    BadName,
    /// A volume must have a size.
    BadSize,
    /// There is a volume of this name.
    Exists,
    /// There is no volume of this name.
    NoSuchVolume,
    /// The volume is still being filled, or that failed.
    Filling,
    /// The volume's contents are being replaced, or that was cut off.
    Overwriting,
    /// The volume is open so many times.
    InUse(u32),
    /// The largest free run has so many sectors.
    NoSpace(u64),
    /// All entries of the table are in use.
    TableFull,
}

impl fmt::Display for GptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(f),
            Self::Blank => f.write_str("the disk is blank"),
            Self::NoTable(primary, backup) => write!(
                f,
                "the disk has no valid partition table (primary: {primary}; backup: {backup})"
            ),
            Self::Foreign => write!(
                f,
                "the disk holds partitions, none of them Closer's, and is left alone; to give it to \
                 Closer, delete them all, or add one of type {VOLUME_TYPE} and Closer takes what \
                 is free"
            ),
            Self::InDoubt => f.write_str(
                "the disk failed a change of this volume, and then to undo it: a restart may find \
                 it made; the volume cannot be used before the partition table can be written",
            ),
            Self::NotBlank => f.write_str("the disk is not blank"),
            Self::TooSmall => f.write_str("the disk is too small"),
            Self::BadName => f.write_str(
                "a volume's name is 1 to 36 letters, digits, '.', '_' or '-', and starts with neither '.' nor '-'",
            ),
            Self::BadSize => f.write_str("a volume must have a size"),
            Self::Exists => f.write_str("there is a volume of this name"),
            Self::NoSuchVolume => f.write_str("there is no volume of this name"),
            Self::Filling => f.write_str("the volume is not filled yet"),
            Self::Overwriting => f.write_str("the volume is not overwritten yet"),
            Self::InUse(count) => write!(f, "the volume is in use, {count} times"),
            Self::NoSpace(sectors) => write!(
                f,
                "not enough space: the largest free part has {} MiB",
                sectors / (ALIGNMENT / SECTOR)
            ),
            Self::TableFull => f.write_str("the partition table is full"),
        }
    }
}

impl core::error::Error for GptError {}

impl From<BlockError> for GptError {
    fn from(error: BlockError) -> Self {
        Self::Disk(error)
    }
}

/// How a table was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Both copies agreed.
    Good,
    /// The backup was invalid or different, and was written anew.
    BackupRestored,
    /// The primary was invalid, and was written anew from the backup.
    PrimaryRestored,
    /// One of both was invalid or different, and cannot be written anew.
    OneCopy(BlockError),
}

/// Whether [`Gpt::create`] may destroy what is on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Only a blank disk gets a table.
    No,
    /// Whatever is there is lost.
    Yes,
}

/// What can be said of what a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// What its user put there.
    Whole,
    /// Anything: it was never filled. It cannot be opened.
    Filling,
    /// Some old, some new. It can only be opened to be overwritten.
    Overwriting,
}

/// A volume, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub extent: Extent,
    /// Its partition's own number.
    pub unique: Guid,
    /// Handles that are open.
    pub in_use: u32,
    /// Whether it is whole.
    pub contents: Contents,
}

/// An open volume. It can go to another vCPU; the volume cannot be removed while there
/// is a handle.
#[derive(Debug)]
pub struct VolumeHandle {
    name: String,
    extent: Extent,
    count: Arc<AtomicU32>,
}

impl VolumeHandle {
    /// The volume's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, for [`crate::Volume::new`] on a queue of the vCPU that uses it.
    pub fn extent(&self) -> Extent {
        self.extent
    }
}

impl Clone for VolumeHandle {
    fn clone(&self) -> Self {
        self.count.fetch_add(1, Ordering::AcqRel);
        Self {
            name: self.name.clone(),
            extent: self.extent,
            count: self.count.clone(),
        }
    }
}

impl Drop for VolumeHandle {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A disk's table. One task owns it and changes it.
#[derive(Debug)]
pub struct Gpt<D> {
    io: ByteIo<D>,
    primary: Header,
    backup: Header,
    entries: Vec<Option<Entry>>,
    /// Handles, by entry.
    handles: Vec<Arc<AtomicU32>>,
    /// What is known of the copies at `primary` and `backup`. Once there is a table, one of
    /// them is whole at any moment, if not with `entries`, then with `doubt`; if the primary
    /// is not [`OnDisk::InForce`], that is the backup.
    primary_on_disk: OnDisk,
    backup_on_disk: OnDisk,
    /// What a copy that is [`OnDisk::InDoubt`] may hold instead of `entries`, after a change
    /// that failed or was dropped.
    doubt: Option<Vec<Option<Entry>>>,
}

/// What is known of a copy on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnDisk {
    /// The table in force, whole.
    InForce,
    /// That, or the one in doubt, or neither.
    InDoubt,
    /// Not the one in doubt.
    Broken,
}

/// A copy of the table as it was read.
struct Found {
    header: Header,
    entries: Vec<Option<Entry>>,
}

impl<D: Disk> Gpt<D> {
    /// Reads the table of a disk, restores a copy that is broken, and removes volumes that
    /// were never filled.
    pub async fn open(io: ByteIo<D>) -> Result<(Self, Health), GptError> {
        let blocks = blocks_of(&io);
        if blocks < 2 {
            return Err(GptError::TooSmall);
        }
        let primary = read_copy(&io, 1).await?;
        let backup_block = primary
            .as_ref()
            .map_or(blocks - 1, |found| found.header.alternate_block);
        let backup = read_copy(&io, backup_block).await?;
        let block_size = io.disk().geometry().block_size;
        let pair = |header: &Header| {
            let other = header.other(block_size);
            other.ok_or(GptError::NoTable(BadTable::Layout, BadTable::Layout))
        };
        let (primary, backup, found, doubt, mut health) = match (primary, backup) {
            (Ok(found), backup) => {
                let other = pair(&found.header)?;
                let same = backup.as_ref().is_ok_and(|backup| {
                    backup.header.same_table(&other) && backup.entries == found.entries
                });
                let health = if same {
                    Health::Good
                } else {
                    Health::BackupRestored
                };
                let doubt = backup.ok().filter(|_| !same).map(|backup| backup.entries);
                (found.header, other, found.entries, doubt, health)
            }
            (Err(_), Ok(found)) => {
                let other = pair(&found.header)?;
                (
                    other,
                    found.header,
                    found.entries,
                    None,
                    Health::PrimaryRestored,
                )
            }
            (Err(primary), Err(backup)) => {
                let unreadable = |bad| matches!(bad, BadTable::Unreadable(_));
                let blank = !unreadable(primary) && !unreadable(backup) && is_blank(&io).await?;
                return Err(if blank {
                    GptError::Blank
                } else {
                    GptError::NoTable(primary, backup)
                });
            }
        };
        // An empty one may be all that is left of another system's: then the backup tells.
        let empty = found.iter().flatten().next().is_none();
        let seen = doubt.as_ref().filter(|_| empty).unwrap_or(&found);
        let mut kinds = seen.iter().flatten().map(|entry| entry.kind).peekable();
        if kinds.peek().is_some() && !kinds.any(|kind| [VOLUME_TYPE, IMAGES_TYPE].contains(&kind)) {
            return Err(GptError::Foreign);
        }
        let mut gpt = Self::with(io, primary, backup, found);
        if health != Health::PrimaryRestored {
            gpt.primary_on_disk = OnDisk::InForce;
        }
        if health != Health::BackupRestored {
            gpt.backup_on_disk = OnDisk::InForce;
        } else if doubt.is_some() {
            gpt.backup_on_disk = OnDisk::InDoubt;
        }
        gpt.doubt = doubt;
        if let Err(error) = gpt.settle().await {
            health = Health::OneCopy(error);
        }
        if let Err(error) = gpt.protect().await {
            // We do without it.
            log::warn!("volumes: the disk cannot be given a protective MBR: {error}");
        }
        if let Err(error) = gpt.remove_unfinished().await {
            // Nobody can open them.
            log::warn!("volumes: those never filled cannot be removed: {error}");
        }
        Ok((gpt, health))
    }

    /// Removes what a crash left half filled. Nobody has a handle yet.
    async fn remove_unfinished(&mut self) -> Result<(), GptError> {
        let mut entries = self.entries.clone();
        for (n, entry) in entries.iter_mut().enumerate() {
            if let Some(volume) = self.info(n).filter(|v| v.contents == Contents::Filling) {
                log::warn!("volume {}: was never filled, and is removed", volume.name);
                *entry = None;
            }
        }
        if entries == self.entries {
            return Ok(());
        }
        self.change(entries).await
    }

    /// Gives a disk an empty table. `disk` is its new number.
    pub async fn create(io: ByteIo<D>, disk: Guid, overwrite: Overwrite) -> Result<Self, GptError> {
        let blocks = blocks_of(&io);
        let block_size = io.disk().geometry().block_size;
        let primary = Header::new(blocks, block_size, disk).ok_or(GptError::TooSmall)?;
        let backup = primary.other(block_size).ok_or(GptError::TooSmall)?;
        if overwrite == Overwrite::No && !is_blank(&io).await? {
            return Err(GptError::NotBlank);
        }
        let entries = vec![None; format::ENTRIES as usize];
        let mut gpt = Self::with(io, primary, backup, entries);
        // An empty table's entries are zeroes, so until the first header is there the disk is
        // blank, and then it has a table. The MBR comes last: with it alone it has neither.
        gpt.settle().await?;
        gpt.write_mbr().await?;
        Ok(gpt)
    }

    /// Protects the table from old tools, if block 0 is empty: the power may have gone before
    /// [`Self::create`] wrote it.
    async fn protect(&self) -> Result<(), GptError> {
        let mut mbr = vec![0; self.io.disk().geometry().block_size as usize];
        self.io.read(0, &mut mbr).await?;
        if mbr.iter().all(|byte| *byte == 0) {
            self.write_mbr().await?;
        }
        Ok(())
    }

    async fn write_mbr(&self) -> Result<(), GptError> {
        let block_size = self.io.disk().geometry().block_size;
        let mbr = format::protective_mbr(blocks_of(&self.io), block_size);
        self.io.write(0, &mbr).await?;
        self.io.flush().await?;
        Ok(())
    }

    /// Of neither copy it is known that the disk has it.
    fn with(io: ByteIo<D>, primary: Header, backup: Header, entries: Vec<Option<Entry>>) -> Self {
        let handles = entries.iter().map(|_| Arc::default()).collect();
        Self {
            io,
            primary,
            backup,
            entries,
            handles,
            primary_on_disk: OnDisk::Broken,
            backup_on_disk: OnDisk::Broken,
            doubt: None,
        }
    }

    /// The disk's number.
    pub fn disk(&self) -> Guid {
        self.primary.disk
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let mut volumes: Vec<_> = (0..self.entries.len())
            .filter_map(|n| self.info(n))
            .collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        volumes
    }

    /// One volume.
    pub fn volume(&self, name: &str) -> Option<VolumeInfo> {
        self.info(self.find(name)?)
    }

    /// Free sectors: all together, and the largest run.
    pub fn free(&self) -> (u64, u64) {
        let gaps = self.gaps();
        let sizes = gaps.iter().map(|gap| gap.sectors);
        (sizes.clone().sum(), sizes.max().unwrap_or(0))
    }

    /// Opens a volume that is whole.
    pub fn open_volume(&self, name: &str) -> Result<VolumeHandle, GptError> {
        match self.open_any(name)? {
            (_, Contents::Overwriting) => Err(GptError::Overwriting),
            (_, Contents::Filling) => Err(GptError::Filling),
            (volume, Contents::Whole) => Ok(volume),
        }
    }

    /// Opens a volume for one who replaces its contents: it may be one that is not whole
    /// because the last who did so was cut off.
    pub fn open_to_overwrite(&self, name: &str) -> Result<VolumeHandle, GptError> {
        match self.open_any(name)? {
            (_, Contents::Filling) => Err(GptError::Filling),
            (volume, Contents::Whole | Contents::Overwriting) => Ok(volume),
        }
    }

    fn open_any(&self, name: &str) -> Result<(VolumeHandle, Contents), GptError> {
        let index = self.find(name).ok_or(GptError::NoSuchVolume)?;
        let info = self.info(index).ok_or(GptError::NoSuchVolume)?;
        if self.is_in_doubt(name) {
            return Err(GptError::InDoubt);
        }
        let contents = info.contents;
        Ok((self.handle(index, info), contents))
    }

    /// Whether a volume is refused as [`GptError::InDoubt`] until [`Self::settle`] works.
    pub fn is_in_doubt(&self, name: &str) -> bool {
        self.find(name).is_some_and(|index| {
            let other = self.doubt.as_ref().map(|doubt| doubt.get(index));
            other.is_some_and(|other| other != self.entries.get(index))
        })
    }

    fn handle(&self, index: usize, info: VolumeInfo) -> VolumeHandle {
        let count = self.handles[index].clone();
        count.fetch_add(1, Ordering::AcqRel);
        VolumeHandle {
            name: info.name,
            extent: info.extent,
            count,
        }
    }

    /// Makes a volume of at least so many sectors (rounded up to [`ALIGNMENT`]). The first
    /// and last MiB of it are zeroed, so that nothing finds an old file system in it; the
    /// rest holds what was there before, see [`ByteIo::zero`]. So only the caller gets a
    /// handle, until it has filled the volume and calls [`Self::finish_volume`].
    pub async fn create_volume(
        &mut self,
        name: &str,
        sectors: u64,
        unique: Guid,
    ) -> Result<VolumeHandle, GptError> {
        if !is_volume_name(name) {
            return Err(GptError::BadName);
        }
        if self.find(name).is_some() {
            return Err(GptError::Exists);
        }
        let index = self
            .place(VOLUME_TYPE, FILLING, name, sectors, unique)
            .await?;
        let info = self.info(index).ok_or(GptError::NoSuchVolume)?;
        Ok(self.handle(index, info))
    }

    /// Notes that a volume's contents are being replaced, before the first of them is.
    /// Until [`Self::finish_volume`] it is not whole.
    pub async fn begin_overwrite(&mut self, volume: &VolumeHandle) -> Result<(), GptError> {
        self.set_attributes(volume, |old| old | OVERWRITING).await
    }

    /// Makes a new or overwritten volume's contents durable, and then the volume one like
    /// the others.
    pub async fn finish_volume(&mut self, volume: &VolumeHandle) -> Result<(), GptError> {
        self.io.flush().await?;
        self.set_attributes(volume, |old| old & !(FILLING | OVERWRITING))
            .await
    }

    async fn set_attributes(
        &mut self,
        volume: &VolumeHandle,
        change: impl FnOnce(u64) -> u64,
    ) -> Result<(), GptError> {
        let index = self.find(&volume.name).ok_or(GptError::NoSuchVolume)?;
        let mut entries = self.entries.clone();
        if let Some(entry) = &mut entries[index] {
            entry.attributes = change(entry.attributes);
        }
        self.change(entries).await
    }

    /// Removes a volume that is not open. Its data stays on the disk until something else
    /// is written there.
    pub async fn remove_volume(&mut self, name: &str) -> Result<(), GptError> {
        let index = self.find(name).ok_or(GptError::NoSuchVolume)?;
        let in_use = self.handles[index].load(Ordering::Acquire);
        if in_use > 0 {
            return Err(GptError::InUse(in_use));
        }
        let mut entries = self.entries.clone();
        entries[index] = None;
        self.change(entries).await
    }

    /// The image area: where it is, or where it was made, with at least so many sectors,
    /// or as many as there are. `true`: it is new.
    pub async fn image_area(
        &mut self,
        sectors: u64,
        unique: Guid,
    ) -> Result<(Extent, bool), GptError> {
        let found = self
            .entries
            .iter()
            .flatten()
            .find(|e| e.kind == IMAGES_TYPE);
        if let Some(entry) = found {
            return Ok((self.extent(entry), false));
        }
        let (_, largest) = self.free();
        if largest == 0 {
            return Err(GptError::NoSpace(0));
        }
        let index = self
            .place(IMAGES_TYPE, 0, IMAGES_NAME, sectors.min(largest), unique)
            .await?;
        let entry = self.entries[index].as_ref();
        Ok((
            entry
                .map(|e| self.extent(e))
                .ok_or(GptError::NoSuchVolume)?,
            true,
        ))
    }

    /// Enters a partition into the table; its index.
    async fn place(
        &mut self,
        kind: Guid,
        attributes: u64,
        name: &str,
        sectors: u64,
        unique: Guid,
    ) -> Result<usize, GptError> {
        if sectors == 0 {
            return Err(GptError::BadSize);
        }
        let gaps = self.gaps();
        let largest = gaps.iter().map(|gap| gap.sectors).max().unwrap_or(0);
        let size = sectors
            .checked_next_multiple_of(ALIGNMENT / SECTOR)
            .ok_or(GptError::NoSpace(largest))?;
        let gap = gaps.iter().find(|gap| gap.sectors >= size);
        let first = gap.ok_or(GptError::NoSpace(largest))?.first;
        let index = self.entries.iter().position(Option::is_none);
        let index = index.ok_or(GptError::TableFull)?;
        let edge = ALIGNMENT / SECTOR;
        self.io.zero(first, edge).await?;
        self.io.zero(first + size - edge, edge).await?;
        let block = self.io.disk().geometry().block_sectors();
        let (first, last) = (first / block, (first + size) / block - 1);
        let mut entries = self.entries.clone();
        let mut entry = Entry::new(kind, unique, first, last, name);
        entry.attributes = attributes;
        entries[index] = Some(entry);
        self.change(entries).await?;
        Ok(index)
    }

    /// Free runs of aligned sectors, in order.
    fn gaps(&self) -> Vec<Extent> {
        let block = self.io.disk().geometry().block_sectors();
        let align = ALIGNMENT / SECTOR;
        let mut used: Vec<_> = self
            .entries
            .iter()
            .flatten()
            .map(|e| (e.first, e.last))
            .collect();
        used.sort_unstable();
        // The end of the usable blocks bounds the last gap.
        used.push((self.primary.last_usable + 1, 0));
        let mut at = self.primary.first_usable;
        let mut gaps = Vec::new();
        for (first, last) in used {
            let start = (at * block).next_multiple_of(align);
            let end = first * block / align * align;
            if start < end {
                gaps.push(Extent {
                    first: start,
                    sectors: end - start,
                });
            }
            at = last + 1;
        }
        gaps
    }

    fn extent(&self, entry: &Entry) -> Extent {
        let block = self.io.disk().geometry().block_sectors();
        Extent {
            first: entry.first * block,
            sectors: (entry.last - entry.first + 1) * block,
        }
    }

    fn info(&self, index: usize) -> Option<VolumeInfo> {
        let entry = self.entries[index]
            .as_ref()
            .filter(|e| e.kind == VOLUME_TYPE)?;
        // A name that we would not have given: it cannot be opened by it.
        let name = entry.name().filter(|name| is_volume_name(name));
        Some(VolumeInfo {
            name: name.unwrap_or_else(|| entry.unique.to_string()),
            extent: self.extent(entry),
            unique: entry.unique,
            in_use: self.handles[index].load(Ordering::Acquire),
            contents: match entry.attributes {
                bits if bits & FILLING != 0 => Contents::Filling,
                bits if bits & OVERWRITING != 0 => Contents::Overwriting,
                _ => Contents::Whole,
            },
        })
    }

    fn find(&self, name: &str) -> Option<usize> {
        (0..self.entries.len()).find(|n| self.info(*n).is_some_and(|info| info.name == name))
    }

    /// Puts other entries in the place of these. If the disk fails, nothing has changed, or
    /// it is [`GptError::InDoubt`] whether it has.
    async fn change(&mut self, entries: Vec<Option<Entry>>) -> Result<(), GptError> {
        self.settle().await?;
        if let Err(error) = self.commit(&entries).await {
            if let Err(again) = self.settle().await {
                log::error!("volumes: a failed change of the table cannot be undone: {again}");
            }
            return Err(match self.doubt {
                Some(_) => GptError::InDoubt,
                None => error.into(),
            });
        }
        self.entries = entries;
        self.doubt = None;
        self.primary_on_disk = OnDisk::InForce;
        self.backup_on_disk = OnDisk::InForce;
        Ok(())
    }

    /// Writes both copies, each of which holds the table in force. Whatever becomes of this
    /// future, a copy that it began to write may hold these entries.
    async fn commit(&mut self, entries: &[Option<Entry>]) -> Result<(), BlockError> {
        self.doubt = Some(entries.to_vec());
        self.backup_on_disk = OnDisk::InDoubt;
        self.write_copy(self.backup, entries).await?;
        self.primary_on_disk = OnDisk::InDoubt;
        self.write_copy(self.primary, entries).await
    }

    /// Writes the table in force to each copy that is not known to hold it: a failed change
    /// may have left something else there. Until then volumes may be refused as
    /// [`GptError::InDoubt`].
    pub async fn settle(&mut self) -> Result<(), BlockError> {
        let mut result = Ok(());
        // The backup must not be touched before the primary is whole.
        if self.primary_on_disk != OnDisk::InForce {
            (self.primary_on_disk, result) = self.restore(self.primary, self.primary_on_disk).await;
        }
        if result.is_ok() && self.backup_on_disk != OnDisk::InForce {
            (self.backup_on_disk, result) = self.restore(self.backup, self.backup_on_disk).await;
        }
        if ![self.primary_on_disk, self.backup_on_disk].contains(&OnDisk::InDoubt) {
            self.doubt = None;
        }
        result
    }

    /// Writes the table in force to a copy. One that cannot be written may hold it
    /// nevertheless, if the sector that fails never took anything else, or at least not the
    /// one in doubt.
    async fn restore(&self, header: Header, before: OnDisk) -> (OnDisk, Result<(), BlockError>) {
        let Err(error) = self.write_copy(header, &self.entries).await else {
            return (OnDisk::InForce, Ok(()));
        };
        if self.io.flush().await.is_err() {
            return (before, Err(error));
        }
        match read_copy(&self.io, header.my_block).await {
            Ok(Ok(found)) if found.header.same_table(&header) && found.entries == self.entries => {
                (OnDisk::InForce, Ok(()))
            }
            // A later read may work.
            Err(_) | Ok(Ok(_) | Err(BadTable::Unreadable(_))) => (before, Err(error)),
            Ok(Err(_)) => (OnDisk::Broken, Err(error)),
        }
    }

    async fn write_copy(
        &self,
        header: Header,
        entries: &[Option<Entry>],
    ) -> Result<(), BlockError> {
        let geometry = self.io.disk().geometry();
        let block = geometry.block_sectors();
        let entries = format::encode_entries(entries, geometry.block_size);
        self.io
            .write(header.entries_block * block, &entries)
            .await?;
        self.io.flush().await?;
        let bytes = header.encode(&entries, geometry.block_size);
        self.io.write(header.my_block * block, &bytes).await?;
        self.io.flush().await?;
        Ok(())
    }
}

/// Whether a volume may have this name.
pub fn is_volume_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn blocks_of<D: Disk>(io: &ByteIo<D>) -> u64 {
    let geometry = io.disk().geometry();
    geometry.sectors / geometry.block_sectors()
}

/// Reads and checks the copy whose header is in `block`.
async fn read_copy<D: Disk>(
    io: &ByteIo<D>,
    block: u64,
) -> Result<Result<Found, BadTable>, BlockError> {
    let geometry = io.disk().geometry();
    let sectors = geometry.block_sectors();
    let mut bytes = vec![0; geometry.block_size as usize];
    if let Err(error) = readable(io.read(block * sectors, &mut bytes).await)? {
        return Ok(Err(BadTable::Unreadable(error)));
    }
    let header = match Header::parse(&bytes, block, blocks_of(io)) {
        Ok(header) => header,
        Err(bad) => return Ok(Err(bad)),
    };
    let blocks = header.entries_blocks(geometry.block_size);
    // At most 512 entries of 128 bytes.
    let len = usize::try_from(blocks * u64::from(geometry.block_size)).unwrap_or(0);
    let mut bytes = vec![0; len];
    if let Err(error) = readable(io.read(header.entries_block * sectors, &mut bytes).await)? {
        return Ok(Err(BadTable::Unreadable(error)));
    }
    Ok(header
        .parse_entries(&bytes)
        .map(|entries| Found { header, entries }))
}

async fn is_blank<D: Disk>(io: &ByteIo<D>) -> Result<bool, BlockError> {
    let sectors = io.disk().geometry().sectors;
    let edge = (BLANK_BYTES / SECTOR).min(sectors / 2);
    let mut bytes = vec![0; 64 << 10];
    let step = bytes.len() as u64 / SECTOR;
    for start in [0, sectors - edge] {
        let block = io.disk().geometry().block_sectors();
        let (mut at, end) = (start / block * block, start + edge);
        while at < end {
            let now = step.min((end - at) / block * block);
            if now == 0 {
                break;
            }
            let part = &mut bytes[..usize::try_from(now * SECTOR).unwrap_or(0)];
            io.read(at, part).await?;
            if part.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += now;
        }
    }
    Ok(true)
}
