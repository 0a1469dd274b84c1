//! The image area's catalog: its bytes, and the space that it says is in use.

use super::{BLOCK, MAX_NAME, ObjectId};
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use hal::block::BlockError;

/// Bytes of each of the two places for a catalog.
pub const SLOT: usize = 256 << 10;
/// Blocks before the data: both places.
pub const DATA_START: u32 = 128;
const _: () = assert!(2 * SLOT == DATA_START as usize * BLOCK);

const MAGIC: [u8; 8] = *b"CLOSERIM";
const VERSION: u32 = 1;
/// Magic, version, body length, sequence, checksum of all other bytes.
const HEADER: usize = 8 + 4 + 4 + 8 + 4;

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The first one.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// Where an object or record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes.
    pub len: u64,
    /// Enough blocks for them, in order.
    pub runs: Vec<Run>,
}

/// A record: where it is, and its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where.
    pub place: Place,
    /// CRC-32 of its bytes.
    pub crc: u32,
}

/// All that the area holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Counts commits; the higher one of two valid catalogs counts.
    pub sequence: u64,
    /// Objects by content.
    pub objects: BTreeMap<ObjectId, Place>,
    /// Records by name.
    pub records: BTreeMap<String, Record>,
}

/// Why bytes are not a catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadCatalog {
    /// All bytes of the header are zero: nothing was ever written here.
    Empty,
    /// Not ours, of another version, or damaged.
    Damaged,
    /// The disk cannot read them.
    Unreadable(BlockError),
}

impl Catalog {
    /// The bytes, padded to whole blocks; `None`: they do not fit a slot.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        put(&mut body, &u32_of(self.objects.len())?.to_le_bytes());
        put(&mut body, &u32_of(self.records.len())?.to_le_bytes());
        for (id, place) in &self.objects {
            put(&mut body, &id.0);
            put_place(&mut body, place)?;
        }
        for (name, record) in &self.records {
            put(&mut body, &u32_of(name.len())?.to_le_bytes());
            put(&mut body, name.as_bytes());
            put(&mut body, &record.crc.to_le_bytes());
            put_place(&mut body, &record.place)?;
        }
        let mut bytes = Vec::from(MAGIC);
        put(&mut bytes, &VERSION.to_le_bytes());
        put(&mut bytes, &u32_of(body.len())?.to_le_bytes());
        put(&mut bytes, &self.sequence.to_le_bytes());
        let mut sum = crc32fast::Hasher::new();
        sum.update(&bytes);
        sum.update(&body);
        put(&mut bytes, &sum.finalize().to_le_bytes());
        put(&mut bytes, &body);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        (bytes.len() <= SLOT).then_some(bytes)
    }

    /// Bytes that a catalog with this header has, padding included, if it is one.
    pub fn padded_len(header: &[u8]) -> Option<usize> {
        let mut reader = Reader(header);
        (reader.array()? == MAGIC && reader.u32()? == VERSION).then_some(())?;
        let len = reader.u32()? as usize;
        let padded = (len.checked_add(HEADER)?).next_multiple_of(BLOCK);
        (padded <= SLOT).then_some(padded)
    }

    /// Checks a slot's bytes, for an area of so many blocks.
    pub fn parse(bytes: &[u8], blocks: u32) -> Result<Self, BadCatalog> {
        if bytes.iter().take(HEADER).all(|byte| *byte == 0) {
            return Err(BadCatalog::Empty);
        }
        Self::try_parse(bytes, blocks).ok_or(BadCatalog::Damaged)
    }

    fn try_parse(bytes: &[u8], blocks: u32) -> Option<Self> {
        Self::padded_len(bytes)?;
        let mut reader = Reader(bytes.get(12..)?);
        let len = reader.u32()? as usize;
        let sequence = reader.u64()?;
        let crc = reader.u32()?;
        let body = reader.take(len)?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&bytes[..HEADER - 4]);
        sum.update(body);
        (sum.finalize() == crc).then_some(())?;

        let mut reader = Reader(body);
        let (objects, records) = (reader.u32()?, reader.u32()?);
        let mut catalog = Self {
            sequence,
            ..Self::default()
        };
        for _ in 0..objects {
            let id = ObjectId(reader.array()?);
            let place = reader.place()?;
            catalog.objects.insert(id, place).is_none().then_some(())?;
        }
        for _ in 0..records {
            let len = reader.u32()? as usize;
            (len <= MAX_NAME).then_some(())?;
            let name = core::str::from_utf8(reader.take(len)?).ok()?.to_string();
            let crc = reader.u32()?;
            let place = reader.place()?;
            let record = Record { place, crc };
            catalog
                .records
                .insert(name, record)
                .is_none()
                .then_some(())?;
        }
        // What is in use lies in the data, and nothing is used twice.
        let mut at = DATA_START;
        for run in catalog.used() {
            let end = run.first.checked_add(run.count)?;
            (run.first >= at && run.count > 0 && end <= blocks).then_some(())?;
            at = end;
        }
        Some(catalog)
    }

    /// Whether both differ in nothing but the number.
    pub fn holds_the_same(&self, other: &Self) -> bool {
        self.objects == other.objects && self.records == other.records
    }

    /// All blocks in use, in order.
    pub fn used(&self) -> Vec<Run> {
        let records = self.records.values().map(|record| &record.place);
        let places = self.objects.values().chain(records);
        let mut runs: Vec<_> = places
            .flat_map(|place| place.runs.iter().copied())
            .collect();
        runs.sort_unstable();
        runs
    }
}

/// Free blocks of an area, in order, given what is used, in any order and any number of
/// times.
pub fn gaps(mut used: Vec<Run>, blocks: u32) -> Vec<Run> {
    used.sort_unstable();
    used.push(Run {
        first: blocks,
        count: 0,
    });
    let mut at = DATA_START;
    let mut gaps = Vec::new();
    for run in used {
        if run.first > at {
            gaps.push(Run {
                first: at,
                count: run.first - at,
            });
        }
        at = at.max(run.first + run.count);
    }
    gaps
}

/// Picks blocks for `count` blocks' worth: one gap if there is one that holds them, else
/// the largest ones first, so that a place stays in few pieces.
pub fn pick(mut gaps: Vec<Run>, count: u32) -> Option<Vec<Run>> {
    if count == 0 {
        return Some(Vec::new());
    }
    if let Some(gap) = gaps.iter().find(|gap| gap.count >= count) {
        let run = Run {
            first: gap.first,
            count,
        };
        return Some(Vec::from([run]));
    }
    gaps.sort_unstable_by_key(|gap| core::cmp::Reverse(gap.count));
    let mut left = count;
    let mut runs = Vec::new();
    for gap in gaps {
        let now = gap.count.min(left);
        runs.push(Run {
            first: gap.first,
            count: now,
        });
        left -= now;
        if left == 0 {
            return Some(runs);
        }
    }
    None
}

fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(bytes);
}

fn put_place(to: &mut Vec<u8>, place: &Place) -> Option<()> {
    put(to, &place.len.to_le_bytes());
    put(to, &u32_of(place.runs.len())?.to_le_bytes());
    for run in &place.runs {
        put(to, &run.first.to_le_bytes());
        put(to, &run.count.to_le_bytes());
    }
    Some(())
}

fn u32_of(n: usize) -> Option<u32> {
    u32::try_from(n).ok()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn place(&mut self) -> Option<Place> {
        let len = self.u64()?;
        let count = self.u32()?;
        let mut runs = Vec::new();
        let mut blocks = 0u64;
        for _ in 0..count {
            let run = Run {
                first: self.u32()?,
                count: self.u32()?,
            };
            blocks += u64::from(run.count);
            runs.push(run);
        }
        (blocks == len.div_ceil(BLOCK as u64)).then_some(Place { len, runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(objects: &[(u8, u64)], records: &[&str]) -> Catalog {
        let mut catalog = Catalog {
            sequence: 7,
            ..Catalog::default()
        };
        let mut at = DATA_START;
        let mut place = |len: u64| {
            let count = u32::try_from(len.div_ceil(4096)).unwrap();
            let runs = Vec::from_iter((count > 0).then_some(Run { first: at, count }));
            at += count;
            Place { len, runs }
        };
        for (id, len) in objects {
            catalog.objects.insert(ObjectId([*id; 32]), place(*len));
        }
        for name in records {
            let record = Record {
                place: place(100),
                crc: 5,
            };
            catalog.records.insert(name.to_string(), record);
        }
        catalog
    }

    #[test]
    fn a_catalog_is_read_back_as_it_was_written() {
        let catalog = sample(&[(1, 10_000), (2, 0), (3, 4096)], &["guest-a", "b"]);
        let bytes = catalog.encode().unwrap();
        assert_eq!(Catalog::parse(&bytes, 1000), Ok(catalog));
        assert_eq!(Catalog::parse(&[0; 4096], 1000), Err(BadCatalog::Empty));
        // Blocks beyond the area.
        assert_eq!(Catalog::parse(&bytes, 130), Err(BadCatalog::Damaged));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let bytes = sample(&[(1, 10_000)], &["guest"]).encode().unwrap();
        let len = 28 + 4 + 4 + 32 + 8 + 4 + 8 + 4 + 5 + 4 + 8 + 4 + 8;
        for at in 0..len {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            assert_eq!(
                Catalog::parse(&broken, 1000),
                Err(BadCatalog::Damaged),
                "byte {at}"
            );
        }
    }

    #[test]
    fn blocks_used_twice_are_refused() {
        let mut catalog = sample(&[(1, 10_000), (2, 10_000)], &[]);
        let first = catalog.objects[&ObjectId([1; 32])].runs.clone();
        catalog.objects.get_mut(&ObjectId([2; 32])).unwrap().runs = first;
        let bytes = catalog.encode().unwrap();
        assert_eq!(Catalog::parse(&bytes, 1000), Err(BadCatalog::Damaged));
    }

    #[test]
    fn nothing_fits_where_nothing_is_free() {
        assert_eq!(pick(Vec::new(), 0), Some(Vec::new()));
        assert_eq!(pick(Vec::new(), 1), None);
    }

    proptest! {
        #[test]
        fn picked_blocks_are_free_and_enough(
            marks in proptest::collection::vec(any::<bool>(), 1..64),
            count in 0u32..70
        ) {
            let blocks = DATA_START + u32::try_from(marks.len()).unwrap();
            let used: Vec<_> = (DATA_START..)
                .zip(&marks)
                .filter(|(_, used)| **used)
                .map(|(first, _)| Run { first, count: 1 })
                .collect();
            let free = marks.iter().filter(|used| !**used).count();
            match pick(gaps(used, blocks), count) {
                Some(runs) => {
                    let picked: Vec<_> = runs.iter().flat_map(|r| r.first..r.first + r.count).collect();
                    prop_assert_eq!(picked.len(), count as usize);
                    for block in picked {
                        prop_assert!(!marks[(block - DATA_START) as usize]);
                    }
                }
                None => prop_assert!(free < count as usize),
            }
        }

        #[test]
        fn any_bytes_behind_a_right_checksum_are_a_sound_catalog_or_refused(
            body in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut bytes = Vec::from(MAGIC);
            put(&mut bytes, &VERSION.to_le_bytes());
            put(&mut bytes, &u32::try_from(body.len()).unwrap().to_le_bytes());
            put(&mut bytes, &1u64.to_le_bytes());
            let mut sum = crc32fast::Hasher::new();
            sum.update(&bytes);
            sum.update(&body);
            put(&mut bytes, &sum.finalize().to_le_bytes());
            put(&mut bytes, &body);
            if let Ok(catalog) = Catalog::parse(&bytes, 1000) {
                prop_assert!(catalog.used().iter().all(|r| r.first >= DATA_START && r.first + r.count <= 1000));
            }
        }
    }
}
