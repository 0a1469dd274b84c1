//! The bytes of a GUID partition table, checked before they mean anything.

use super::Guid;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use hal::block::BlockError;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entries of a table that we make, as everybody does.
pub const ENTRIES: u32 = 128;
/// Bytes of an entry; other sizes are not supported.
pub const ENTRY_SIZE: u32 = 128;
/// Entries of a table that we read.
const MAX_ENTRIES: u32 = 512;
const SIGNATURE: [u8; 8] = *b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER_SIZE: u32 = 92;
const _: () = assert!(size_of::<RawHeader>() == HEADER_SIZE as usize);
const _: () = assert!(size_of::<RawEntry>() == ENTRY_SIZE as usize);

/// `EFI_PARTITION_TABLE_HEADER`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawHeader {
    signature: [u8; 8],
    revision: U32,
    header_size: U32,
    crc: U32,
    reserved: U32,
    my_block: U64,
    alternate_block: U64,
    first_usable: U64,
    last_usable: U64,
    disk: [u8; 16],
    entries_block: U64,
    entry_count: U32,
    entry_size: U32,
    entries_crc: U32,
}

/// `EFI_PARTITION_ENTRY`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawEntry {
    kind: [u8; 16],
    unique: [u8; 16],
    first: U64,
    last: U64,
    attributes: U64,
    name: [U16; 36],
}

/// Why bytes are not a valid table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadTable {
    /// No GPT signature.
    Signature,
    /// A checksum is wrong: of the header, or of the entries.
    Checksum,
    /// A revision, header or entry size that we do not know.
    Unsupported,
    /// A block number that contradicts the others or the disk's size.
    Layout,
    /// An entry that leaves the usable blocks, ends before it starts, or overlaps another.
    Entry(u32),
    /// The disk cannot read them.
    Unreadable(BlockError),
}

impl fmt::Display for BadTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signature => f.write_str("no signature"),
            Self::Checksum => f.write_str("wrong checksum"),
            Self::Unsupported => f.write_str("unsupported sizes or revision"),
            Self::Layout => f.write_str("impossible block numbers"),
            Self::Entry(n) => write!(f, "impossible entry {n}"),
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The block it was read from.
    pub my_block: u64,
    /// The block of the other copy.
    pub alternate_block: u64,
    /// First block that partitions may use.
    pub first_usable: u64,
    /// Last one.
    pub last_usable: u64,
    /// The disk's own number.
    pub disk: Guid,
    /// First block of the entries that belong to this copy.
    pub entries_block: u64,
    /// Entries, used or not.
    pub entry_count: u32,
    entries_crc: u32,
}

/// Which copy a header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// At block 1.
    Primary,
    /// At the end of the disk.
    Backup,
}

impl Header {
    /// The header of a new table on a disk of so many blocks; `None`: it is too small.
    pub fn new(blocks: u64, block_size: u32, disk: Guid) -> Option<Self> {
        let entries = blocks_for(ENTRIES, block_size);
        let header = Self {
            my_block: 1,
            alternate_block: blocks.checked_sub(1)?,
            first_usable: 2 + entries,
            last_usable: blocks.checked_sub(2 + entries)?,
            disk,
            entries_block: 2,
            entry_count: ENTRIES,
            entries_crc: 0,
        };
        (header.first_usable <= header.last_usable).then_some(header)
    }

    /// Checks the header found at `block` of a disk of `blocks` blocks.
    pub fn parse(bytes: &[u8], block: u64, blocks: u64) -> Result<Self, BadTable> {
        let (raw, _) = RawHeader::read_from_prefix(bytes).map_err(|_| BadTable::Layout)?;
        if raw.signature != SIGNATURE {
            return Err(BadTable::Signature);
        }
        let size = raw.header_size.get() as usize;
        if size < HEADER_SIZE as usize || size > bytes.len() {
            return Err(BadTable::Unsupported);
        }
        let mut copy = bytes[..size].to_vec();
        copy[16..20].fill(0);
        if crc32fast::hash(&copy) != raw.crc.get() {
            return Err(BadTable::Checksum);
        }
        let entry_count = raw.entry_count.get();
        if raw.revision.get() >> 16 != REVISION >> 16
            || raw.entry_size.get() != ENTRY_SIZE
            || entry_count == 0
            || entry_count > MAX_ENTRIES
        {
            return Err(BadTable::Unsupported);
        }
        let header = Self {
            my_block: raw.my_block.get(),
            alternate_block: raw.alternate_block.get(),
            first_usable: raw.first_usable.get(),
            last_usable: raw.last_usable.get(),
            disk: Guid(raw.disk),
            entries_block: raw.entries_block.get(),
            entry_count,
            entries_crc: raw.entries_crc.get(),
        };
        let block_size = u32::try_from(bytes.len()).map_err(|_| BadTable::Unsupported)?;
        if header.my_block != block || !header.is_consistent(blocks, block_size) {
            return Err(BadTable::Layout);
        }
        Ok(header)
    }

    /// Header, entries, usable blocks, entries, header: in this order on the disk, and
    /// apart from each other.
    fn is_consistent(&self, blocks: u64, block_size: u32) -> bool {
        let entries = blocks_for(self.entry_count, block_size);
        let end = |first: u64| first.checked_add(entries);
        let usable = self.first_usable <= self.last_usable && self.last_usable < blocks;
        let (mine, other) = (self.my_block, self.alternate_block);
        usable
            && match self.copy() {
                Copy::Primary => {
                    self.entries_block > mine
                        && end(self.entries_block).is_some_and(|end| end <= self.first_usable)
                        && other > self.last_usable
                        && other < blocks
                }
                Copy::Backup => {
                    self.entries_block > self.last_usable
                        && end(self.entries_block).is_some_and(|end| end <= mine)
                        && mine < blocks
                        && other == 1
                        && self.first_usable > other
                }
            }
    }

    /// Which copy it is.
    pub fn copy(&self) -> Copy {
        if self.my_block == 1 {
            Copy::Primary
        } else {
            Copy::Backup
        }
    }

    /// Whether both describe the same table, wherever its entries are.
    pub fn same_table(&self, other: &Self) -> bool {
        let place = |h: &Self| (h.my_block, h.alternate_block, h.entries_block);
        let what = |h: &Self| (h.first_usable, h.last_usable, h.disk, h.entry_count);
        place(self) == place(other) && what(self) == what(other)
    }

    /// Blocks that the entries take.
    pub fn entries_blocks(&self, block_size: u32) -> u64 {
        blocks_for(self.entry_count, block_size)
    }

    /// The other copy's header. Its entries are at the place where everybody puts them;
    /// `None`: there is no room.
    pub fn other(&self, block_size: u32) -> Option<Self> {
        let entries = self.entries_blocks(block_size);
        let entries_block = match self.copy() {
            Copy::Primary => self.alternate_block.checked_sub(entries)?,
            Copy::Backup => 2,
        };
        let other = Self {
            my_block: self.alternate_block,
            alternate_block: self.my_block,
            entries_block,
            ..*self
        };
        other
            .is_consistent(self.my_block.max(self.alternate_block) + 1, block_size)
            .then_some(other)
    }

    /// The header's block, for these entries' bytes.
    pub fn encode(&self, entries: &[u8], block_size: u32) -> Vec<u8> {
        let mut raw = RawHeader {
            signature: SIGNATURE,
            revision: REVISION.into(),
            header_size: HEADER_SIZE.into(),
            crc: 0.into(),
            reserved: 0.into(),
            my_block: self.my_block.into(),
            alternate_block: self.alternate_block.into(),
            first_usable: self.first_usable.into(),
            last_usable: self.last_usable.into(),
            disk: self.disk.0,
            entries_block: self.entries_block.into(),
            entry_count: self.entry_count.into(),
            entry_size: ENTRY_SIZE.into(),
            entries_crc: crc32fast::hash(self.summed(entries)).into(),
        };
        raw.crc = crc32fast::hash(raw.as_bytes()).into();
        let mut block = vec![0; block_size as usize];
        block[..HEADER_SIZE as usize].copy_from_slice(raw.as_bytes());
        block
    }

    /// The part of the entries' blocks that their checksum covers.
    fn summed<'a>(&self, entries: &'a [u8]) -> &'a [u8] {
        &entries[..(self.entry_count * ENTRY_SIZE) as usize]
    }

    /// Checks the entries' blocks.
    pub fn parse_entries(&self, bytes: &[u8]) -> Result<Vec<Option<Entry>>, BadTable> {
        let bytes = self.summed(bytes);
        if crc32fast::hash(bytes) != self.entries_crc {
            return Err(BadTable::Checksum);
        }
        let mut entries = Vec::new();
        for (n, raw) in (0..).zip(bytes.chunks_exact(ENTRY_SIZE as usize)) {
            let raw = RawEntry::read_from_bytes(raw).map_err(|_| BadTable::Unsupported)?;
            let entry = Entry::parse(&raw);
            let good = |e: &Entry| {
                self.first_usable <= e.first && e.first <= e.last && e.last <= self.last_usable
            };
            if !entry.as_ref().is_none_or(good) {
                return Err(BadTable::Entry(n));
            }
            entries.push(entry);
        }
        let mut used: Vec<_> = (0..)
            .zip(&entries)
            .filter_map(|(n, e)| Some((n, e.as_ref()?)))
            .collect();
        used.sort_by_key(|(_, entry)| entry.first);
        for pair in used.windows(2) {
            if pair[0].1.last >= pair[1].1.first {
                return Err(BadTable::Entry(pair[1].0));
            }
        }
        Ok(entries)
    }
}

/// Blocks that so many entries take.
fn blocks_for(entries: u32, block_size: u32) -> u64 {
    u64::from(entries * ENTRY_SIZE).div_ceil(block_size.into())
}

/// A used entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Partition type.
    pub kind: Guid,
    /// The partition's own number.
    pub unique: Guid,
    /// First block.
    pub first: u64,
    /// Last block, inclusive.
    pub last: u64,
    /// Attribute bits, kept as they are.
    pub attributes: u64,
    /// Name in UTF-16, kept as it is.
    name: [u16; 36],
}

impl Entry {
    /// An entry; of its name the first 36 units are kept.
    pub fn new(kind: Guid, unique: Guid, first: u64, last: u64, name: &str) -> Self {
        let mut units = [0; 36];
        for (slot, unit) in units.iter_mut().zip(name.encode_utf16()) {
            *slot = unit;
        }
        Self {
            kind,
            unique,
            first,
            last,
            attributes: 0,
            name: units,
        }
    }

    fn parse(raw: &RawEntry) -> Option<Self> {
        (raw.kind != [0; 16]).then(|| Self {
            kind: Guid(raw.kind),
            unique: Guid(raw.unique),
            first: raw.first.get(),
            last: raw.last.get(),
            attributes: raw.attributes.get(),
            name: raw.name.map(U16::get),
        })
    }

    /// The name, up to its first zero; `None` if it is not UTF-16.
    pub fn name(&self) -> Option<String> {
        let len = self.name.iter().position(|unit| *unit == 0);
        String::from_utf16(&self.name[..len.unwrap_or(self.name.len())]).ok()
    }
}

/// The entries' blocks.
pub fn encode_entries(entries: &[Option<Entry>], block_size: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let mut raw = RawEntry {
            kind: [0; 16],
            unique: [0; 16],
            first: 0.into(),
            last: 0.into(),
            attributes: 0.into(),
            name: [0.into(); 36],
        };
        if let Some(entry) = entry {
            raw.kind = entry.kind.0;
            raw.unique = entry.unique.0;
            raw.first = entry.first.into();
            raw.last = entry.last.into();
            raw.attributes = entry.attributes.into();
            raw.name = entry.name.map(U16::new);
        }
        bytes.extend_from_slice(raw.as_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(block_size as usize), 0);
    bytes
}

/// Block 0: a partition of type 0xee over the whole disk, so that old tools see a disk
/// in use.
pub fn protective_mbr(blocks: u64, block_size: u32) -> Vec<u8> {
    let mut mbr = vec![0; block_size as usize];
    let count = u32::try_from(blocks - 1).unwrap_or(u32::MAX);
    // Not bootable; cylinder, head and sector of the start; type; the largest end.
    mbr[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    mbr[454..458].copy_from_slice(&1u32.to_le_bytes());
    mbr[458..462].copy_from_slice(&count.to_le_bytes());
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    mbr
}
