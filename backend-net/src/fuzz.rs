//! Entry points for fuzzers: every parser of what a guest or the wire wrote.
//!
//! Each takes any bytes and panics only if the code under it is wrong.

use crate::headers;
use crate::nodes::FrontendNodes;
use crate::vif::Request;
use xen_abi::io::netif::{NR_SLOTS_MIN, TxRequest, TxSlot};

/// Parses the headers of a frame, and sums what they say.
pub fn frame_headers(bytes: &[u8]) {
    let prefix = &bytes[..bytes.len().min(headers::PREFIX)];
    if let Some(layout) = headers::parse(prefix, bytes.len()) {
        assert!(layout.headers() <= prefix.len());
        assert!(layout.checksum_at() + 2 <= layout.headers());
        let end = layout.l4_start() + headers::l4_bytes(prefix, &layout);
        assert!(end <= bytes.len() && end >= layout.headers());
        headers::pseudo_sum(prefix, &layout, end - layout.l4_start()).finish();
    }
}

/// Takes frames from a transmit ring whose slots are these bytes, 12 each.
pub fn transmit_slots(bytes: &[u8]) {
    let mut slots = bytes.chunks_exact(12).map(|slot| {
        let half = |at: usize| u16::from_le_bytes([slot[at], slot[at + 1]]);
        TxSlot::from(TxRequest {
            gref: u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]),
            offset: half(4),
            flags: half(6),
            id: half(8),
            size: half(10),
        })
    });
    while let Ok(Some(request)) = Request::take(|| Ok(slots.next())) {
        let Ok(content) = request.content else {
            continue;
        };
        assert!(content.pieces.len() <= NR_SLOTS_MIN);
        assert_eq!(content.pieces.len(), request.ids.len());
        let sum: usize = content.pieces.iter().map(|p| usize::from(p.len)).sum();
        assert_eq!(sum, content.len);
        assert!((14..=0xffff).contains(&content.len));
        for piece in &content.pieces {
            assert!(usize::from(piece.offset) + usize::from(piece.len) <= 4096);
        }
    }
}

/// Parses a frontend's nodes: every node has these bytes as its value.
pub fn frontend_nodes(bytes: &[u8]) {
    let (start, rest) = bytes.split_at(bytes.len().min(1));
    let skip = usize::from(start.first().copied().unwrap_or(0));
    let nodes = FrontendNodes::parse(|name| match name.len() % 8 {
        n if n == skip % 8 => None,
        _ if name == "multi-queue-num-queues" => Some(b"1".to_vec()),
        _ if name == "request-rx-copy" => Some(b"1".to_vec()),
        _ => Some(rest.to_vec()),
    });
    if let Ok(nodes) = nodes {
        assert_eq!(nodes.queues.len(), 1);
    }
}
