//! Which node and which cores a new guest gets.
//!
//! Algorithm 1 of the paper sends all work for a guest to a core that the guest runs
//! on, with memory from that core's node. That is worth most if the guest has one
//! node: so it goes onto one node if its memory fits there and there is a core for each
//! of its vCPUs, and is spread over as few as possible if not. Cores of the MC are
//! nobody's; Xen will not keep guests off them, so each vCPU gets a hard affinity.

use crate::build::{Placement, frame_list_bytes, memory_pages};
use crate::config::{GuestConfig, GuestType};
use crate::hypercalls::NodeId;
use crate::xen::HostFacts;
use alloc::vec::Vec;
use core::fmt;
use xen_abi::PAGE_SIZE;

const fn kib(kib: u64) -> u64 {
    (kib << 10).div_ceil(PAGE_SIZE as u64)
}

/// Pages of packets that the tasks of one of the pVM's vCPUs may hold, on its node.
pub const PACKETS: usize = (8 << 20) / PAGE_SIZE;
/// Administrators that the host serves at once.
pub const CLIENTS: usize = 12;
/// Peers of the RPC port at once that have not proved to be administrators.
pub const STRANGERS: usize = 8;
/// Connections of the management address at once, and bytes of buffers for each: what is
/// received, and what is sent. Each fits in one block of the heap (64 KiB with the
/// allocator's own words): a buffer of 64 KiB would take two.
pub const SOCKETS: usize = 24;
/// See [`SOCKETS`].
pub const SOCKET_BUFFERS: (usize, usize) = (60 << 10, 32 << 10);
/// Drivers, the partition table, the catalog of images.
const HEAP_OF_DRIVERS: u64 = kib(4 << 10);
/// Old states that transactions keep, which are charged to nobody (`PINNED_MAX` of
/// `toolstack/xenstore/src/server.rs`), and a quarter of it for what an allocator loses.
const HEAP_OF_XENSTORE: u64 = kib(4_096 * 5 / 4);
/// The management address.
const HEAP_OF_SOCKETS: u64 =
    (SOCKETS * (SOCKET_BUFFERS.0 + SOCKET_BUFFERS.1)).div_ceil(PAGE_SIZE) as u64;
/// Strangers' handshakes.
const HEAP_OF_STRANGERS: u64 = STRANGERS as u64 * kib(64);
/// What an administrator can make it hold by reading slowly: the longest text (1 MiB of
/// xenstore or of Xen's log, in a vector that has grown to twice that), a request, frames.
const HEAP_OF_CLIENT: u64 = kib(2_048 + 256);
/// Of them one at a time has his text copied as its vector grows.
const HEAP_OF_CLIENTS: u64 = CLIENTS as u64 * HEAP_OF_CLIENT + kib(1_024);
/// Pages of the pVM's heap that no guest is the reason for.
const HEAP: u64 =
    HEAP_OF_DRIVERS + HEAP_OF_XENSTORE + HEAP_OF_SOCKETS + HEAP_OF_STRANGERS + HEAP_OF_CLIENTS;
/// What one guest can make the heap hold: its quota in xenstore (2,560 KiB) and a quarter
/// of it for what an allocator loses, the tail of its console (64 KiB), its domain.
const HEAP_OF_GUEST: u64 = kib(2_560 * 5 / 4 + 128);
/// What a disk can: 32 requests with 1,024 pages between them (`backend-blk/src/limits.rs`).
const HEAP_OF_DISK: u64 = kib(160);
/// What a network device can: an inbox of 256 frames, and two rings' requests.
const HEAP_OF_VIF: u64 = kib(160);

/// What Xen may need for a guest's grants (`xen/domains.rs`): 64 frames, as is Xen's default,
/// of 512 grants with at most 64 bytes of Xen's for each; and 16 frames of what it maps.
const GRANTS: u64 = 64 + 64 * 512 / (PAGE_SIZE as u64 / 64) + 16;

/// Pages that a guest with memory on several nodes leaves alone on all but the first: Xen's
/// structures for its vCPUs there, which Xen takes from the vCPU's node.
const ELSEWHERE: u64 = 64;

/// Pages of the pVM's heap that these guests can make it hold, all together: with the list of
/// a PV guest's frames while it is built, on a host whose memory is fragmented to the last.
pub fn heap_pages<'a>(guests: impl Iterator<Item = &'a GuestConfig>) -> u64 {
    // Also of one that runs: it may reboot.
    let frames = |config: &GuestConfig| match config.kind {
        GuestType::Pv => frame_list_bytes(memory_pages(config)).div_ceil(PAGE_SIZE as u64),
        GuestType::Pvh => 0,
    };
    let of = |config: &GuestConfig| {
        HEAP_OF_GUEST
            + frames(config)
            + HEAP_OF_DISK * config.disks.len() as u64
            + HEAP_OF_VIF * config.vifs.len() as u64
    };
    guests.map(of).fold(HEAP, u64::saturating_add)
}

/// What the pVM has and may need on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Its vCPUs there.
    pub vcpus: u64,
    /// Pages of heap there; see [`heap_pages`].
    pub heap: u64,
    /// Pages that it has there already, used or not.
    pub pages: u64,
}

impl Own {
    /// Pages that guests must leave to it.
    ///
    /// Its memory grows on demand: packets on the node of each vCPU, 8 MiB for each, and the
    /// heap. What guests take first is missing there for good, so as much stays free as the
    /// pVM can still come to need beyond what it has.
    fn missing(self) -> u64 {
        (self.vcpus * PACKETS as u64 + self.heap).saturating_sub(self.pages)
    }
}

/// A core that can run guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// Its CPUs: more than one with hyperthreads.
    pub cpus: Vec<u32>,
    /// Where it is.
    pub node: NodeId,
    /// vCPUs of guests pinned to it already.
    pub load: u32,
}

/// What there is to place guests on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Pages of each node that are free for guests.
    pub free: Vec<(NodeId, u64)>,
    /// Cores other than the MC's.
    pub cores: Vec<Core>,
}

impl Host {
    /// From Xen's facts, the CPUs of the MC, and the pins of the guests that run.
    pub fn new<'a>(
        facts: &HostFacts,
        mc_cpus: &[u32],
        pins: impl Iterator<Item = &'a [u32]>,
    ) -> Self {
        let mut cores: Vec<(u32, u32, Core)> = Vec::new();
        for cpu in &facts.cpus {
            match cores
                .iter_mut()
                .find(|(socket, core, _)| (*socket, *core) == (cpu.socket, cpu.core))
            {
                Some((_, _, core)) => core.cpus.push(cpu.id),
                None => cores.push((
                    cpu.socket,
                    cpu.core,
                    Core {
                        cpus: Vec::from([cpu.id]),
                        node: cpu.node,
                        load: 0,
                    },
                )),
            }
        }
        let mut cores: Vec<Core> = cores
            .into_iter()
            .map(|(_, _, core)| core)
            // A hyperthread of an MC core would take the MC's time.
            .filter(|core| !core.cpus.iter().any(|cpu| mc_cpus.contains(cpu)))
            .collect();
        for pin in pins {
            for core in &mut cores {
                if core.cpus.iter().any(|cpu| pin.contains(cpu)) {
                    core.load += 1;
                }
            }
        }
        Self {
            free: facts
                .nodes
                .iter()
                .map(|node| (node.id, node.free / PAGE_SIZE as u64))
                .collect(),
            cores,
        }
    }

    /// Leaves to the pVM what it may still need.
    #[must_use]
    pub fn without(mut self, own: impl Fn(NodeId) -> Own) -> Self {
        for (node, free) in &mut self.free {
            *free = free.saturating_sub(own(*node).missing());
        }
        self
    }
}

/// What a guest needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Pages of memory.
    pub pages: u64,
    /// Pages that Xen needs besides, on the first node.
    pub overhead: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// Physical CPUs that the administrator allows; empty: all.
    pub cpus: &'a [u32],
}

impl<'a> Request<'a> {
    /// What `config` needs.
    pub fn of(config: &'a GuestConfig) -> Self {
        // Special pages, ACPI tables, and Xen's structures of a domain: some pages
        // for each vCPU, and slack.
        let structures = 512 + 16 * u64::from(config.max_vcpus);
        let paging = match config.kind {
            GuestType::Pvh => 256 * u64::from(config.max_vcpus) + u64::from(config.memory_mib),
            GuestType::Pv => 0,
        };
        Self {
            pages: memory_pages(config),
            overhead: structures + GRANTS + paging,
            vcpus: config.max_vcpus,
            cpus: &config.cpus,
        }
    }
}

/// Why a guest fits nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlacementError {
    /// Not enough memory, even on all nodes together.
    Memory {
        /// Pages asked, with Xen's own.
        asked: u64,
        /// Pages of each node that are free for guests.
        free: Vec<(NodeId, u64)>,
    },
    /// None of the allowed CPUs can run guests: they are the MC's, or not there.
    NoCpu,
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PAGES_IN_MIB: u64 = (1 << 20) / PAGE_SIZE as u64;
        match self {
            Self::Memory { asked, free } => {
                write!(
                    f,
                    "not enough memory: {} MiB asked",
                    asked.div_ceil(PAGES_IN_MIB)
                )?;
                for (node, pages) in free {
                    let mib = pages / PAGES_IN_MIB;
                    write!(f, ", {mib} MiB free for guests on node {node}")?;
                }
                Ok(())
            }
            Self::NoCpu => f.write_str("none of the allowed CPUs runs guests"),
        }
    }
}

impl core::error::Error for PlacementError {}

/// Finds the place for a guest.
///
/// # Errors
/// If its memory does not fit, or it may run nowhere.
pub fn place(host: &Host, request: &Request<'_>) -> Result<Placement, PlacementError> {
    let cores: Vec<&Core> = host
        .cores
        .iter()
        .filter(|core| {
            request.cpus.is_empty() || core.cpus.iter().any(|cpu| request.cpus.contains(cpu))
        })
        .collect();
    if cores.is_empty() {
        return Err(PlacementError::NoCpu);
    }
    // Nodes that have such a core; memory elsewhere is taken only if it must be.
    let mut nodes: Vec<Candidate> = host
        .free
        .iter()
        .map(|&(node, free)| Candidate::new(node, free, &cores, request.vcpus))
        .collect();
    let needed = request.pages + request.overhead;
    let one = nodes
        .iter()
        .filter(|node| node.cores >= request.vcpus as usize && node.free >= needed)
        // The least loaded; of those the one that this guest fills best, so that
        // large holes stay for large guests.
        .min_by_key(|node| (node.load, node.free, node.id));
    let chosen = match one {
        Some(node) => Vec::from([*node]),
        None => {
            // As few as possible: those with the most free memory first, those
            // without a core of ours last.
            nodes.sort_by_key(|node| (node.cores == 0, core::cmp::Reverse(node.free), node.id));
            let enough = (1..=nodes.len()).find(|&count| {
                let some = &nodes[..count];
                rooms(some).sum::<u64>() >= needed
                    && some.iter().map(|node| node.cores).sum::<usize>()
                        >= cores.len().min(request.vcpus as usize)
            });
            let Some(count) = enough else {
                return Err(PlacementError::Memory {
                    asked: needed,
                    free: host.free.clone(),
                });
            };
            nodes.truncate(count);
            nodes
        }
    };
    let (pins, on_node) = pin(&cores, &chosen, request);
    Ok(Placement {
        pins,
        memory: share(&chosen, &on_node, request),
    })
}

/// A node as a guest's place.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: NodeId,
    free: u64,
    /// Cores that this guest may use.
    cores: usize,
    /// Load of the busiest core that it would get there.
    load: u32,
}

impl Candidate {
    fn new(id: NodeId, free: u64, cores: &[&Core], vcpus: u32) -> Self {
        let mut loads: Vec<u32> = cores
            .iter()
            .filter(|core| core.node == id)
            .map(|core| core.load)
            .collect();
        loads.sort_unstable();
        Self {
            id,
            free,
            cores: loads.len(),
            load: loads
                .get((vcpus as usize).saturating_sub(1))
                .copied()
                .unwrap_or(u32::MAX),
        }
    }
}

/// Gives each vCPU the least loaded core of the chosen nodes; with more vCPUs than
/// cores some get the same. Also how many went to each node.
fn pin(
    cores: &[&Core],
    chosen: &[Candidate],
    request: &Request<'_>,
) -> (Vec<Vec<u32>>, Vec<(NodeId, u64)>) {
    let mut on_node: Vec<(NodeId, u64)> = chosen.iter().map(|node| (node.id, 0)).collect();
    let mut candidates: Vec<(u32, usize, &Core)> = cores
        .iter()
        .enumerate()
        .filter(|(_, core)| chosen.iter().any(|node| node.id == core.node))
        .map(|(index, core)| (core.load, index, *core))
        .collect();
    let mut pins = Vec::with_capacity(request.vcpus as usize);
    for _ in 0..request.vcpus {
        let Some((load, _, core)) = candidates
            .iter_mut()
            .min_by_key(|(load, index, _)| (*load, *index))
        else {
            break;
        };
        *load += 1;
        if let Some((_, count)) = on_node.iter_mut().find(|(node, _)| *node == core.node) {
            *count += 1;
        }
        pins.push(if request.cpus.is_empty() {
            core.cpus.clone()
        } else {
            // What the administrator allows is allowed to every vCPU, as xl has it,
            // but for the MC's cores.
            cores
                .iter()
                .flat_map(|core| &core.cpus)
                .copied()
                .filter(|cpu| request.cpus.contains(cpu))
                .collect()
        });
    }
    (pins, on_node)
}

/// Pages of each node that a guest on all of them may take.
fn rooms(nodes: &[Candidate]) -> impl Iterator<Item = u64> {
    let rooms = nodes.iter().enumerate();
    rooms.map(|(at, node)| match at {
        0 => node.free,
        _ => node.free.saturating_sub(ELSEWHERE),
    })
}

/// Shares the memory in proportion to the vCPUs, as far as each node has it.
fn share(
    chosen: &[Candidate],
    on_node: &[(NodeId, u64)],
    request: &Request<'_>,
) -> Vec<(NodeId, u64)> {
    let vcpus = u64::from(request.vcpus).max(1);
    let mut left = request.pages;
    let mut overhead = request.overhead;
    let mut shares: Vec<(NodeId, u64, u64)> = Vec::new();
    for (free, &(id, count)) in rooms(chosen).zip(on_node) {
        // Xen's own pages come from where they are found first.
        let own = overhead.min(free);
        overhead -= own;
        let room = free - own;
        // Whole 2 MiB extents, so that a border between nodes costs no large page.
        let part = (request.pages * count / vcpus)
            .next_multiple_of(512)
            .min(room)
            .min(left);
        left -= part;
        shares.push((id, part, room - part));
    }
    for (_, part, room) in &mut shares {
        let more = left.min(*room);
        *part += more;
        left -= more;
    }
    shares
        .into_iter()
        .map(|(id, part, _)| (id, part))
        .filter(|&(_, part)| part > 0)
        .collect()
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
