//! Done when 4: creates and destroys leave nothing behind.

use super::Test;
use crate::lab::{BOOT_LIMIT, GuestSpec, Lab};
use crate::report::Outcome;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub const TESTS: &[Test] = &[Test {
    name: "fifty-creates-and-destroys",
    run: fifty,
}];

const ROUNDS: usize = 50;
/// Rounds after which caches have their size.
const WARM: usize = 5;
/// What Xen may keep of its own over 45 rounds, in bytes: 16 pages, for its own tables
/// that grow by chunks.
const XEN_SLACK: u64 = 16 * 4096;
/// What Closer may use more, in bytes: a connection whose program is gone, which takes 13 KiB
/// until TCP is done with it. So 364 bytes that each guest left would be too much.
const OWN_SLACK: u64 = 16 * 1024;
/// Blocks of frames that the heap may hold more, in bytes. The connection that asks has two
/// buffers, which begin a block each or lie in one that is there already, as it comes: the
/// same host at rest holds 19, 20 or 21 blocks.
const HEAP_SLACK: u64 = 2 * 64 * 1024;
/// Rounds of which the least counts: there is not always such a connection.
const SOME: usize = 5;

fn fifty(lab: &mut Lab) -> Result<Outcome> {
    lab.volume("v", "8M")?;
    let mut at_first = None;
    let (mut own_first, mut own_last) = (Own::MOST, Own::MOST);
    for round in 1..=ROUNDS {
        let mut spec = GuestSpec::new("g").disk("v").net("10.0.2.30");
        // Mostly PV, which boots twice as fast under emulation.
        spec.pvh = round % 5 == 0;
        let mut guest = lab.boot(&spec)?;
        guest.ok("head -c 100000 /dev/urandom > /dev/xvda; sync; ping -c 1 -W 10 10.0.2.2")?;
        drop(guest);
        lab.closer(&["destroy", "g"])?;
        // And some that are ended in the middle of their boot.
        if matches!(round % 20, 4 | 15) {
            let mut guest = lab.create(&spec)?;
            if spec.pvh {
                // Whatever it says first: under PV that is when it is up.
                guest.console.wait_for("\n", BOOT_LIMIT)?;
            }
            drop(guest);
            lab.closer(&["destroy", "g"])?;
        }
        if round == WARM {
            at_first = Some(counts(lab, 0)?);
        }
        let own = own_used(lab)?;
        if (WARM..WARM + SOME).contains(&round) {
            own_first = own_first.min(own);
        } else if round > ROUNDS - SOME {
            own_last = own_last.min(own);
        }
    }
    let first = at_first.context("there was no first count")?;
    let last = counts(lab, first.free.saturating_sub(XEN_SLACK))?;
    let lost = first.free.saturating_sub(last.free);
    ensure!(
        lost <= XEN_SLACK,
        "{lost} bytes of Xen's free memory are gone: {} to {}",
        first.free,
        last.free
    );
    let grown = own_last.heap.saturating_sub(own_first.heap);
    let blocks = own_last.blocks.saturating_sub(own_first.blocks);
    let frames = own_last.frames.saturating_sub(own_first.frames);
    ensure!(
        grown <= OWN_SLACK && blocks <= HEAP_SLACK && frames == 0,
        "Closer grew by {grown} bytes of its heap, {blocks} of the heap's blocks and {frames} \
         of other frames: {own_first:?} to {own_last:?}"
    );
    let info = lab.json(&["info"])?;
    let vcpus = info
        .pointer("/closer_cpu/vcpu_ns")
        .and_then(Value::as_array);
    let vcpus = vcpus.with_context(|| format!("info has no closer_cpu.vcpu_ns: {info}"))?;
    let most = first.maptrack.max(vcpus.len());
    ensure!(
        last.maptrack <= most,
        "frames of mapped grants: {} before, {} after {ROUNDS} rounds, {most} at most",
        first.maptrack,
        last.maptrack
    );
    for (what, before, after) in [
        ("ports", first.ports, last.ports),
        ("xenstore nodes", first.nodes, last.nodes),
        ("domains", first.domains, last.domains),
    ] {
        ensure!(
            before == after,
            "{what}: {before} before, {after} after {ROUNDS} rounds"
        );
    }
    Ok(Outcome::Passed(format!(
        "Xen {lost} B, Closer's heap {grown} B, the heap's blocks {blocks} B, \
         other frames {frames} B"
    )))
}

/// What is counted.
#[derive(Debug)]
struct Counts {
    /// Bytes that Xen has free.
    free: u64,
    /// Frames of dom0's table of foreign grants that it has mapped. Xen gives each vCPU one,
    /// of 256 entries, when it first maps a grant, takes another if all are in use, and
    /// never gives one back (`get_maptrack_handle` in Xen's grant_table.c). A single leaked
    /// mapping shows in `domains`: it keeps the granter dying.
    maptrack: usize,
    /// Event channels of dom0 that are not free.
    ports: usize,
    /// Nodes in xenstore.
    nodes: usize,
    /// Domains that Xen knows, dying ones (which a leaked mapping keeps) included.
    domains: usize,
}

/// Bytes of memory that are Closer's own.
#[derive(Clone, Copy, Debug)]
struct Own {
    /// What is allocated of the heap.
    heap: u64,
    /// The frames that the heap holds for it.
    blocks: u64,
    /// The other frames in use. Those that wait for the next packet do not count: each
    /// vCPU keeps as many as its traffic has ever needed at once, up to a limit.
    frames: u64,
}

impl Own {
    const MOST: Self = Self {
        heap: u64::MAX,
        blocks: u64::MAX,
        frames: u64::MAX,
    };

    fn min(self, other: Self) -> Self {
        Self {
            heap: self.heap.min(other.heap),
            blocks: self.blocks.min(other.blocks),
            frames: self.frames.min(other.frames),
        }
    }
}

fn own_used(lab: &mut Lab) -> Result<Own> {
    let info = lab.json(&["info"])?;
    let bytes = |name: &str| {
        info["closer_memory"][name]
            .as_u64()
            .with_context(|| format!("info does not say what Closer uses: {info}"))
    };
    let blocks = bytes("heap_held_bytes")?;
    Ok(Own {
        heap: bytes("heap_used_bytes")?,
        blocks,
        frames: bytes("used_bytes")? - bytes("packets_idle_bytes")? - blocks,
    })
}

/// Counts; what can be is asked of Xen, not of Closer. Waits a while for `wanted` bytes to be
/// free: the last domain's may still be on their way.
fn counts(lab: &mut Lab, wanted: u64) -> Result<Counts> {
    let free = lab.settled_free_memory(wanted)?;
    let nodes = lab.closer(&["xenstore-ls", "/"])?.lines().count();
    let bed = lab.bed()?;
    let domains = bed
        .ask_xen('q')?
        .matches("General information for domain")
        .count();
    let events = bed.ask_xen('e')?;
    let ours = events
        .split("information for domain ")
        .find(|part| part.starts_with("0:"));
    let ports = ours.context("Xen lists no events of dom0")?;
    let ports = ports.lines().filter(|line| line.contains("]: s=")).count();
    let grants = bed.ask_xen('g')?;
    let ours = grants
        .lines()
        .skip_while(|line| !line.contains("remote d0 "));
    let maptrack = ours.take(3).find_map(|line| {
        line.split(" maptrack frames")
            .next()?
            .rsplit(' ')
            .next()?
            .parse()
            .ok()
    });
    let maptrack = maptrack.context("Xen lists no grant table of dom0")?;
    Ok(Counts {
        free,
        maptrack,
        ports,
        nodes,
        domains,
    })
}
