//! Taking a domain down so that its memory is clean and free when the call returns.
//!
//! Xen scrubs every page that a *dying* domain still owns, lazily, and for a second
//! time if we cleared it. So a PVH guest's memory is cleared and given back while the
//! domain still lives, each node's part by a task near it ([`clear_node`] on a vCPU of
//! the node); [`end`] leaves Xen the rest: special pages, page tables, structures. A PV
//! guest's pages are pinned by its own page tables, so they all are Xen's to scrub.
//!
//! Before any of it the domain is paused, and every mapping and grant of its devices
//! ended: a page that something still maps keeps the domain as a zombie.

use crate::build::{self, NodeMap, NodeRun};
use crate::hypercalls::{DomainPages, Hypercalls, MAP_PAGES, NodeId, Pacer};
use crate::xen::{CallError, Xen};
use alloc::vec::Vec;
use core::fmt;
use xen_abi::errno::Errno;
use xen_abi::{DomId, PAGE_SIZE};

/// Why a domain is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestroyError {
    /// Xen refused.
    Call(CallError),
    /// Xen has it as dying since the time limit: somebody still maps its memory.
    StillThere {
        /// Pages that are held.
        pages: u64,
    },
}

impl From<CallError> for DestroyError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl fmt::Display for DestroyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => error.fmt(f),
            Self::StillThere { pages } => {
                write!(f, "the domain stays: {pages} of its pages are still mapped")
            }
        }
    }
}

impl core::error::Error for DestroyError {}

/// What [`clear_node`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Pages cleared and given back.
    pub pages: u64,
    /// Frames that hold nothing (the guest gave them back before), or that Xen would
    /// not take: left to the domain's end.
    pub skipped: u64,
}

/// Clears and gives back the pages of a paused PVH guest that came from `node`. Tasks
/// for different nodes may run at the same time on different vCPUs.
///
/// # Errors
/// Xen's own, other than for frames that are not there.
pub async fn clear_node<H: Hypercalls>(
    xen: &Xen<'_, H>,
    domain: DomId,
    nodes: &NodeMap,
    node: NodeId,
) -> Result<Cleared, DestroyError> {
    let calls = xen.calls();
    let mut cleared = Cleared::default();
    // Mapping, unmapping and the TLB flush cost what clearing some pages does.
    const LEAST: usize = 32;
    let mut pacer = Pacer::new(LEAST, MAP_PAGES);
    for run in nodes.runs.iter().filter(|run| run.node == node) {
        let mut at = run.start;
        let end = run.start + run.pages;
        while at < end {
            let start_ns = calls.now_ns();
            let count = (pacer.batch() as u64).min(end - at);
            let frames: Vec<u64> = (at..at + count).collect();
            let done = clear(calls, domain, &frames)?;
            cleared.pages += done;
            cleared.skipped += count - done;
            at += count;
            pacer.pause(calls, start_ns).await;
        }
    }
    Ok(cleared)
}

/// Clears `frames` and gives them back; returns how many.
fn clear<H: Hypercalls>(calls: &H, domain: DomId, frames: &[u64]) -> Result<u64, CallError> {
    match calls.map_foreign(domain, frames) {
        Ok(mut map) => {
            map.zero(0, frames.len() * PAGE_SIZE);
            // Unmapped first: a page that we map is not free when it is given back.
            drop(map);
            let done = calls.decrease_reservation(domain, frames);
            let Some((_, rest)) = frames.get(done..).and_then(<[u64]>::split_first) else {
                return Ok(done as u64);
            };
            // Xen stops at a page it will not take: go on behind it.
            let more = calls.decrease_reservation(domain, rest);
            Ok((done + more) as u64)
        }
        // One of them is a hole: find out which.
        Err(Errno::EINVAL | Errno::ENOENT | Errno::ESRCH) if frames.len() > 1 => {
            let (low, high) = frames.split_at(frames.len() / 2);
            Ok(clear(calls, domain, low)? + clear(calls, domain, high)?)
        }
        Err(Errno::EINVAL | Errno::ENOENT | Errno::ESRCH) => Ok(0),
        Err(errno) => Err(CallError {
            call: "mmu_update(foreign)",
            errno,
        }),
    }
}

/// `destroydomain`, and waits until Xen has ended it, `limit_ms` at most. The call
/// cannot be cut in Xen: on an MC vCPU.
///
/// # Errors
/// Xen's own, or the time limit.
pub async fn end<H: Hypercalls>(
    xen: &Xen<'_, H>,
    domain: DomId,
    limit_ms: u32,
) -> Result<(), DestroyError> {
    while build::destroy(xen, domain)? == build::Progress::Again {
        xen.calls().breathe().await;
    }
    let start_ns = xen.calls().now_ns();
    let mut pause_ms = 1;
    loop {
        // Returning 0 does not mean that the number is free: only this does.
        let Some(info) = xen.domain_info(domain)? else {
            return Ok(());
        };
        let waited_ns = xen.calls().now_ns().saturating_sub(start_ns);
        if waited_ns >= u64::from(limit_ms) * 1_000_000 {
            return Err(DestroyError::StillThere { pages: info.pages });
        }
        xen.calls().sleep_ms(pause_ms).await;
        pause_ms = (pause_ms * 2).min(100);
    }
}

/// The whole way in one task: pause, clear every node (PVH), end.
///
/// `nodes`: where the memory of a PVH guest is; empty if that is not known, and Xen
/// scrubs all of it.
///
/// # Errors
/// See [`clear_node`] and [`end`].
pub async fn destroy<H: Hypercalls>(
    xen: &Xen<'_, H>,
    domain: DomId,
    nodes: &NodeMap,
    limit_ms: u32,
) -> Result<Cleared, DestroyError> {
    let mut cleared = Cleared::default();
    let Some(info) = xen.domain_info(domain)? else {
        return Ok(cleared);
    };
    if !info.dying {
        xen.pause_domain(domain)?;
        if info.hvm {
            for node in nodes_of(nodes) {
                let part = clear_node(xen, domain, nodes, node).await?;
                cleared.pages += part.pages;
                cleared.skipped += part.skipped;
            }
        }
    }
    end(xen, domain, limit_ms).await?;
    Ok(cleared)
}

/// The nodes that hold memory of a guest, each once.
pub fn nodes_of(map: &NodeMap) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = map.runs.iter().map(|run: &NodeRun| run.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}
