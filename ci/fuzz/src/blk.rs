//! What a block frontend writes into xenstore.

use backend_blk::nodes::{FrontendNodes, MAX_RING_PAGE_ORDER};

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
