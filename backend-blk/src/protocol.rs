//! Ring slots of `io/blkif.h`, turned into requests that hold only good values.

use alloc::vec::Vec;
use core::fmt;
use xen_abi::GrantRef;
use xen_abi::io::blkif::{
    self, MAX_SEGMENTS_PER_REQUEST, OP_DISCARD, OP_FLUSH_DISKCACHE, OP_INDIRECT, OP_READ, OP_WRITE,
    OP_WRITE_BARRIER, RequestDiscard, RequestIndirect, SECTORS_PER_PAGE,
};
use zerocopy::{FromBytes, IntoBytes};

/// Segments of an indirect request that we accept, and advertise: 1 MiB. They fit in
/// one descriptor page.
pub const MAX_INDIRECT_SEGMENTS: u16 = 256;
const _: () = assert!(MAX_INDIRECT_SEGMENTS as usize <= blkif::SEGMENTS_PER_INDIRECT_PAGE);

/// Bytes in a sector, as offsets in a page are counted.
const SECTOR_BYTES: u16 = 512;
const _: () = assert!(SECTOR_BYTES as usize == blkif::SECTOR_SIZE);

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// An operation that does not exist.
    Operation(u8),
    /// An indirect request of this operation.
    IndirectOperation(u8),
    /// No segments, or more than allowed.
    Segments(u16),
    /// A segment that ends before it starts, or beyond its page.
    Segment {
        /// First sector in the page.
        first: u8,
        /// Last sector in the page.
        last: u8,
    },
    /// A discard that must erase securely.
    SecureDiscard,
}

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(op) => write!(f, "no operation {op}"),
            Self::IndirectOperation(op) => write!(f, "indirect operation {op}"),
            Self::Segments(count) => write!(f, "{count} segments"),
            Self::Segment { first, last } => write!(f, "segment of sectors {first} to {last}"),
            Self::SecureDiscard => f.write_str("secure discard"),
        }
    }
}

impl core::error::Error for BadRequest {}

/// A part of one granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePart {
    /// The page.
    pub gref: GrantRef,
    /// First byte, a multiple of 512.
    pub offset: u16,
    /// Bytes, a multiple of 512; `offset + len` is at most a page.
    pub len: u16,
}

impl PagePart {
    fn check(raw: &blkif::Segment) -> Result<Self, BadRequest> {
        let (first, last) = (raw.first_sect, raw.last_sect);
        if first > last || last >= SECTORS_PER_PAGE {
            return Err(BadRequest::Segment { first, last });
        }
        Ok(Self {
            gref: GrantRef(raw.gref),
            offset: u16::from(first) * SECTOR_BYTES,
            len: u16::from(last - first + 1) * SECTOR_BYTES,
        })
    }
}

/// Checks segments, of a request or of a descriptor page.
pub fn check_segments(raw: &[blkif::Segment]) -> Result<Vec<PagePart>, BadRequest> {
    raw.iter().map(PagePart::check).collect()
}

/// Bytes that the parts hold.
pub fn bytes_of(parts: &[PagePart]) -> u32 {
    // At most 256 pages.
    parts.iter().map(|part| u32::from(part.len)).sum()
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Disk to guest.
    Read,
    /// Guest to disk.
    Write,
}

/// Where a request's segments are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parts {
    /// In the request.
    Direct(Vec<PagePart>),
    /// In a granted page, to be copied and checked by [`check_segments`].
    Indirect {
        /// The page of descriptors.
        page: GrantRef,
        /// How many, at least 1, at most [`MAX_INDIRECT_SEGMENTS`].
        count: u16,
    },
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Moves data.
    Transfer {
        /// Which way.
        direction: Direction,
        /// First sector of the disk; not checked against its size yet.
        sector: u64,
        /// Where in the guest.
        parts: Parts,
        /// Earlier completed writes are durable before this one starts.
        flush_before: bool,
        /// A barrier: all earlier requests end before it, it is durable when it ends,
        /// and later ones start after it.
        barrier: bool,
    },
    /// Makes completed writes durable.
    Flush {
        /// A barrier without data.
        barrier: bool,
    },
    /// Sectors that are no longer needed.
    Discard {
        /// The first; not checked against the disk's size yet.
        sector: u64,
        /// How many.
        sectors: u64,
    },
}

impl Work {
    /// Whether it must run alone.
    pub fn is_barrier(&self) -> bool {
        matches!(
            self,
            Self::Transfer { barrier: true, .. } | Self::Flush { barrier: true }
        )
    }

    /// Pages that it names.
    pub fn pages(&self) -> usize {
        match self {
            Self::Transfer { parts, .. } => match parts {
                Parts::Direct(parts) => parts.len(),
                Parts::Indirect { count, .. } => usize::from(*count),
            },
            Self::Flush { .. } | Self::Discard { .. } => 0,
        }
    }
}

/// What a response repeats of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The guest's own number.
    pub id: u64,
    /// The operation; of an indirect request the one inside, as Linux's blkfront expects:
    /// it disables the disk when a response names `BLKIF_OP_INDIRECT`.
    pub operation: u8,
}

impl Tag {
    /// The response with this status.
    pub fn response(self, status: i16) -> blkif::Response {
        blkif::Response {
            id: self.id,
            operation: self.operation,
            status,
            ..blkif::Response::default()
        }
    }
}

/// Takes a private copy of a slot apart. The tag can be had of any slot.
pub fn parse(raw: &blkif::Request) -> (Tag, Result<Work, BadRequest>) {
    let tag = Tag {
        id: raw.id,
        operation: match raw.operation {
            OP_INDIRECT => prefix::<RequestIndirect>(raw).indirect_op,
            operation => operation,
        },
    };
    (tag, work(raw))
}

fn work(raw: &blkif::Request) -> Result<Work, BadRequest> {
    match raw.operation {
        OP_READ => transfer(raw, Direction::Read),
        OP_WRITE | OP_WRITE_BARRIER | OP_FLUSH_DISKCACHE => {
            // Flush and barrier may come without data, as Linux sends them.
            if raw.nr_segments == 0 && raw.operation != OP_WRITE {
                let barrier = raw.operation == OP_WRITE_BARRIER;
                return Ok(Work::Flush { barrier });
            }
            transfer(raw, Direction::Write)
        }
        OP_DISCARD => {
            // Any bytes are a discard: there is nothing that could fail.
            let raw = prefix::<RequestDiscard>(raw);
            if raw.flag & blkif::DISCARD_SECURE != 0 {
                return Err(BadRequest::SecureDiscard);
            }
            Ok(Work::Discard {
                sector: raw.sector_number,
                sectors: raw.nr_sectors,
            })
        }
        OP_INDIRECT => {
            let raw = prefix::<RequestIndirect>(raw);
            let direction = match raw.indirect_op {
                OP_READ => Direction::Read,
                OP_WRITE => Direction::Write,
                other => return Err(BadRequest::IndirectOperation(other)),
            };
            let count = raw.nr_segments;
            if count == 0 || count > MAX_INDIRECT_SEGMENTS {
                return Err(BadRequest::Segments(count));
            }
            Ok(Work::Transfer {
                direction,
                sector: raw.sector_number,
                parts: Parts::Indirect {
                    page: GrantRef(raw.indirect_grefs[0]),
                    count,
                },
                flush_before: false,
                barrier: false,
            })
        }
        other => Err(BadRequest::Operation(other)),
    }
}

fn transfer(raw: &blkif::Request, direction: Direction) -> Result<Work, BadRequest> {
    let count = usize::from(raw.nr_segments);
    if count == 0 || count > MAX_SEGMENTS_PER_REQUEST {
        return Err(BadRequest::Segments(raw.nr_segments.into()));
    }
    Ok(Work::Transfer {
        direction,
        sector: raw.sector_number,
        parts: Parts::Direct(check_segments(&raw.seg[..count])?),
        flush_before: matches!(raw.operation, OP_FLUSH_DISKCACHE | OP_WRITE_BARRIER),
        barrier: raw.operation == OP_WRITE_BARRIER,
    })
}

/// The slot's bytes as the structure that its operation says it is.
fn prefix<T: FromBytes>(raw: &blkif::Request) -> T {
    let (value, _) = T::read_from_prefix(raw.as_bytes())
        .unwrap_or_else(|_| unreachable!("a slot is longer than any of its structures"));
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(operation: u8, segments: &[(u8, u8)]) -> blkif::Request {
        let mut raw = blkif::Request {
            operation,
            nr_segments: u8::try_from(segments.len()).unwrap(),
            id: 77,
            sector_number: 5,
            ..blkif::Request::default()
        };
        for (slot, (first, last)) in raw.seg.iter_mut().zip(segments) {
            (slot.gref, slot.first_sect, slot.last_sect) = (9, *first, *last);
        }
        raw
    }

    #[test]
    fn every_pair_of_first_and_last_sector_is_taken_or_refused() {
        for first in 0..=255 {
            for last in 0..=255 {
                let (tag, work) = parse(&request(OP_READ, &[(0, 7), (first, last)]));
                assert_eq!(
                    tag,
                    Tag {
                        id: 77,
                        operation: OP_READ
                    }
                );
                let good = first <= last && last <= 7;
                match work {
                    Ok(Work::Transfer {
                        parts: Parts::Direct(parts),
                        ..
                    }) if good => {
                        assert_eq!(parts[1].offset, u16::from(first) * 512);
                        assert_eq!(parts[1].len, u16::from(last - first + 1) * 512);
                    }
                    other => assert_eq!(other, Err(BadRequest::Segment { first, last })),
                }
            }
        }
    }

    #[test]
    fn operations_say_what_they_need() {
        let none: &[(u8, u8)] = &[];
        let flush = |op| parse(&request(op, none)).1;
        assert_eq!(
            flush(OP_FLUSH_DISKCACHE),
            Ok(Work::Flush { barrier: false })
        );
        assert_eq!(flush(OP_WRITE_BARRIER), Ok(Work::Flush { barrier: true }));
        assert_eq!(flush(OP_READ), Err(BadRequest::Segments(0)));
        assert_eq!(flush(OP_WRITE), Err(BadRequest::Segments(0)));
        for op in (7..=255).chain([blkif::OP_RESERVED_1]) {
            assert_eq!(flush(op), Err(BadRequest::Operation(op)));
        }
        assert!(
            parse(&request(OP_WRITE_BARRIER, &[(0, 7)]))
                .1
                .unwrap()
                .is_barrier()
        );
        let mut raw = request(OP_READ, &[(0, 7)]);
        raw.nr_segments = 12;
        assert_eq!(parse(&raw).1, Err(BadRequest::Segments(12)));
    }

    #[test]
    fn an_indirect_request_is_read_at_its_own_offsets() {
        let mut raw = RequestIndirect {
            operation: OP_INDIRECT,
            indirect_op: OP_WRITE,
            nr_segments: 256,
            id: 3,
            sector_number: 1 << 40,
            ..RequestIndirect::default()
        };
        raw.indirect_grefs[0] = 1234;
        let slot = |raw: &RequestIndirect| {
            let mut slot = blkif::Request::default();
            slot.as_mut_bytes()[..64].copy_from_slice(raw.as_bytes());
            slot
        };
        let expected = Work::Transfer {
            direction: Direction::Write,
            sector: 1 << 40,
            parts: Parts::Indirect {
                page: GrantRef(1234),
                count: 256,
            },
            flush_before: false,
            barrier: false,
        };
        assert_eq!(parse(&slot(&raw)).1, Ok(expected));
        assert_eq!(parse(&slot(&raw)).0.operation, raw.indirect_op);
        raw.nr_segments = 257;
        assert_eq!(parse(&slot(&raw)).1, Err(BadRequest::Segments(257)));
        raw.indirect_op = OP_FLUSH_DISKCACHE;
        assert_eq!(parse(&slot(&raw)).1, Err(BadRequest::IndirectOperation(3)));
    }

    proptest! {
        #[test]
        fn any_slot_gives_bounded_parts_or_a_reason(bytes in proptest::collection::vec(any::<u8>(), 112)) {
            let raw = blkif::Request::read_from_bytes(&bytes).unwrap();
            let (tag, work) = parse(&raw);
            let inner = usize::from(bytes[0] == OP_INDIRECT);
            prop_assert_eq!(tag.operation, bytes[inner]);
            if let Ok(Work::Transfer { parts: Parts::Direct(parts), .. }) = work {
                prop_assert!(!parts.is_empty() && parts.len() <= 11);
                prop_assert!(parts.iter().all(|p| p.len > 0 && p.offset + p.len <= 4096));
            }
        }
    }
}
