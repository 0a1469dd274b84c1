//! Giving a domain its memory, from the nodes that placement chose.

use super::BuildError;
use super::frames::MachineFrames;
use crate::hypercalls::{Hypercalls, NodeId, Pacer};
use alloc::vec::Vec;
use core::ops::Range;
use xen_abi::DomId;

/// A run of a guest's frames that came from one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRun {
    /// First guest frame.
    pub start: u64,
    /// How many.
    pub pages: u64,
    /// Whence.
    pub node: NodeId,
}

/// Which node each frame of a guest came from: Xen has no call that tells later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeMap {
    /// In the order of their frames; they do not overlap.
    pub runs: Vec<NodeRun>,
}

impl NodeMap {
    /// The node of a frame.
    pub fn node_of(&self, frame: u64) -> Option<NodeId> {
        let after = self.runs.partition_point(|run| run.start <= frame);
        let run = &self.runs[after.checked_sub(1)?];
        (frame - run.start < run.pages).then_some(run.node)
    }
}

/// Cuts `ranges` of guest frames, in order, into the parts of each node.
pub(super) fn split(ranges: &[Range<u64>], nodes: &[(NodeId, u64)]) -> NodeMap {
    let mut left = nodes.iter().copied();
    let mut current = left.next();
    let mut runs = Vec::new();
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let Some((node, pages)) = current else { break };
            let take = pages.min(range.end - at);
            if take > 0 {
                runs.push(NodeRun {
                    start: at,
                    pages: take,
                    node,
                });
            }
            at += take;
            current = if take == pages {
                left.next()
            } else {
                Some((node, pages - take))
            };
        }
    }
    NodeMap { runs }
}

/// log2 of pages in the extents that are tried, from the largest on: 1 GiB, 2 MiB,
/// 4 KiB.
const ORDERS: [u32; 3] = [18, 9, 0];
/// Extents in one hypercall at most.
const MOST: usize = 512;

/// Populates the frames of `map`, each run from its own node alone, in extents as
/// large as their alignment and Xen's free memory allow. For a PV domain,
/// `machine_frames` receives the machine frame of each page.
///
/// Each frame is asked for once only: populating a frame twice succeeds, and loses a
/// page to the domain.
pub(super) async fn populate<H: Hypercalls>(
    calls: &H,
    domain: DomId,
    map: &NodeMap,
    mut machine_frames: Option<&mut MachineFrames>,
) -> Result<(), BuildError> {
    for run in &map.runs {
        let end = run.start + run.pages;
        let mut at = run.start;
        // Pages of an order that Xen could not give are not asked for again in this run.
        let mut largest = ORDERS[0];
        let mut pacers = ORDERS.map(|order| {
            let least = if order == 0 { 16 } else { 1 };
            (order, Pacer::new(least, MOST))
        });
        while at < end {
            let (order, pacer) = pacers
                .iter_mut()
                .find(|(order, _)| {
                    let pages = 1u64 << order;
                    *order == 0
                        || *order <= largest && at.is_multiple_of(pages) && end - at >= pages
                })
                .map(|(order, pacer)| (*order, pacer))
                .unwrap_or_else(|| unreachable!("order 0 always fits"));
            let pages = 1u64 << order;
            // Up to the next boundary of a larger extent that will be tried there.
            let boundary = ORDERS
                .iter()
                .rev()
                .copied()
                .find(|&o| o > order && o <= largest)
                .and_then(|o| (at + 1).checked_next_multiple_of(1 << o))
                .unwrap_or(end)
                .min(end);
            let count = ((boundary - at) / pages).min(pacer.batch() as u64).max(1);
            let mut extents: Vec<u64> = (0..count).map(|i| at + i * pages).collect();
            let start_ns = calls.now_ns();
            let done = calls
                .populate_physmap(domain, &mut extents, order, Some(run.node))
                .min(extents.len());
            if let Some(list) = machine_frames.as_deref_mut() {
                for &mfn in &extents[..done] {
                    list.push(mfn, pages)?;
                }
            }
            at += done as u64 * pages;
            if done < extents.len() {
                let Some(smaller) = ORDERS.iter().copied().find(|&o| o < order) else {
                    return Err(BuildError::NoMemory {
                        node: Some(run.node),
                        asked: run.pages,
                        got: at - run.start,
                    });
                };
                largest = smaller;
            }
            pacer.pause(calls, start_ns).await;
        }
    }
    Ok(())
}

/// Populates single pages wherever Xen likes best: the few that are not RAM.
pub(super) fn populate_few<H: Hypercalls>(
    calls: &H,
    domain: DomId,
    frames: Range<u64>,
) -> Result<(), BuildError> {
    let mut extents: Vec<u64> = frames.collect();
    let done = calls.populate_physmap(domain, &mut extents, 0, None);
    if done < extents.len() {
        return Err(BuildError::NoMemory {
            node: None,
            asked: extents.len() as u64,
            got: done as u64,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn memory_is_cut_at_the_hole_and_between_nodes() {
        let map = split(&[0..100, 200..300], &[(NodeId(0), 120), (NodeId(1), 80)]);
        let run = |start, pages, node| NodeRun {
            start,
            pages,
            node: NodeId(node),
        };
        assert_eq!(
            map.runs,
            vec![run(0, 100, 0), run(200, 20, 0), run(220, 80, 1)]
        );
        assert_eq!(map.node_of(99), Some(NodeId(0)));
        assert_eq!(map.node_of(100), None);
        assert_eq!(map.node_of(219), Some(NodeId(0)));
        assert_eq!(map.node_of(299), Some(NodeId(1)));
        assert_eq!(map.node_of(300), None);
    }
}
