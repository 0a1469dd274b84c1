//! What a block frontend writes.

use backend_blk::nodes::{FrontendNodes, MAX_RING_PAGE_ORDER};
use backend_blk::protocol::{Parts, Work, bytes_of, check_segments, parse};
use xen_abi::io::blkif::{MAX_SEGMENTS_PER_REQUEST, Request, Segment};
use zerocopy::FromBytes;

/// Slots of a ring, and the same bytes as a page of indirect segments.
pub fn requests(data: &[u8]) {
    for slot in data.chunks(size_of::<Request>()) {
        let mut bytes = [0; size_of::<Request>()];
        bytes[..slot.len()].copy_from_slice(slot);
        let Ok(raw) = Request::read_from_bytes(&bytes) else {
            continue;
        };
        let (tag, work) = parse(&raw);
        assert_eq!((tag.id, tag.operation), (raw.id, raw.operation));
        match work {
            Ok(Work::Transfer {
                parts: Parts::Direct(parts),
                ..
            }) => {
                assert!((1..=MAX_SEGMENTS_PER_REQUEST).contains(&parts.len()));
                assert!(usize::try_from(bytes_of(&parts)).is_ok_and(|n| n <= parts.len() * 4096));
            }
            Ok(_) | Err(_) => {}
        }
    }
    let segments: Vec<Segment> = data
        .chunks_exact(size_of::<Segment>())
        .take(512)
        .filter_map(|bytes| Segment::read_from_bytes(bytes).ok())
        .collect();
    if let Ok(parts) = check_segments(&segments) {
        assert_eq!(parts.len(), segments.len());
    }
}

/// A frontend's nodes: `name=value` lines.
pub fn frontend_nodes(data: &[u8]) {
    let lines: Vec<(&[u8], &[u8])> = data
        .split(|b| *b == b'\n')
        .filter_map(|line| {
            let at = line.iter().position(|b| *b == b'=')?;
            Some((&line[..at], &line[at + 1..]))
        })
        .collect();
    let nodes = FrontendNodes::parse(|name| {
        let (_, value) = lines.iter().find(|(n, _)| *n == name.as_bytes())?;
        Some(value.to_vec())
    });
    if let Ok(nodes) = nodes {
        assert!((1..=1 << MAX_RING_PAGE_ORDER).contains(&nodes.ring.len()));
    }
}
