//! Entry points for fuzzers: any bytes may come from a guest or stand on a disk. Each
//! panics if what was accepted is not sound.

use crate::gpt::format::Header;
use crate::images::fuzz_catalog;
use crate::protocol::{Parts, Work, bytes_of, check_segments, parse};
use xen_abi::io::blkif::{OP_INDIRECT, Request, Segment};
use zerocopy::FromBytes;

/// Ring slots of 112 bytes, one after the other.
pub fn requests(bytes: &[u8]) {
    for slot in bytes.chunks_exact(size_of::<Request>()) {
        let Ok(raw) = Request::read_from_bytes(slot) else {
            continue;
        };
        let (tag, work) = parse(&raw);
        assert_eq!(tag.id, raw.id);
        // The operation inside an indirect request is its second byte.
        let inner = usize::from(raw.operation == OP_INDIRECT);
        assert_eq!(tag.operation, slot[inner]);
        if let Ok(Work::Transfer {
            parts: Parts::Direct(parts),
            ..
        }) = work
        {
            assert!((512..=11 * 4096).contains(&bytes_of(&parts)));
        }
    }
}

/// A page of descriptors of an indirect request.
pub fn descriptors(bytes: &[u8]) {
    let segments: alloc::vec::Vec<_> = bytes
        .chunks_exact(size_of::<Segment>())
        .take(256)
        .filter_map(|raw| Segment::read_from_bytes(raw).ok())
        .collect();
    if let Ok(parts) = check_segments(&segments) {
        assert!(bytes_of(&parts) <= 256 * 4096);
        assert!(
            parts
                .iter()
                .all(|p| p.len >= 512 && p.offset + p.len <= 4096)
        );
    }
}

/// A header block, and the blocks of its entries, on a disk of a million blocks.
pub fn partition_table(bytes: &[u8]) {
    const BLOCKS: u64 = 1_000_000;
    let Some((block, entries)) = bytes.split_at_checked(512) else {
        return;
    };
    for at in [1, BLOCKS - 1] {
        let Ok(header) = Header::parse(block, at, BLOCKS) else {
            continue;
        };
        assert!(header.first_usable <= header.last_usable && header.last_usable < BLOCKS);
        let needed = header.entries_blocks(512) * 512;
        if (entries.len() as u64) < needed {
            continue;
        }
        if let Ok(entries) = header.parse_entries(entries) {
            let inside = |first, last| header.first_usable <= first && last <= header.last_usable;
            assert!(
                entries
                    .iter()
                    .flatten()
                    .all(|e| e.first <= e.last && inside(e.first, e.last))
            );
        }
    }
}

/// A slot of the image area's catalog.
pub fn image_catalog(bytes: &[u8]) {
    fuzz_catalog(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            requests(&bytes);
            descriptors(&bytes);
            partition_table(&bytes);
            image_catalog(&bytes);
        }

        /// Behind right signatures and checksums.
        #[test]
        fn no_numbers_in_a_header_panic(
            numbers in proptest::collection::vec(prop_oneof![0u64..200, 999_900u64..1_000_100, any::<u64>()], 6),
            counts in proptest::collection::vec(prop_oneof![Just(128u32), 0u32..600, any::<u32>()], 2),
        ) {
            let mut block = alloc::vec![0u8; 512 + 33 * 512];
            block[..8].copy_from_slice(b"EFI PART");
            block[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
            block[12..16].copy_from_slice(&92u32.to_le_bytes());
            for (n, at) in [24, 32, 40, 48, 72].into_iter().enumerate() {
                block[at..at + 8].copy_from_slice(&numbers[n].to_le_bytes());
            }
            block[80..84].copy_from_slice(&counts[0].to_le_bytes());
            block[84..88].copy_from_slice(&counts[1].to_le_bytes());
            let crc = crc32fast::hash(&block[..92]);
            block[16..20].copy_from_slice(&crc.to_le_bytes());
            partition_table(&block);
        }
    }
}
