//! Facts about the host: memory of each node, where each CPU is, how busy it was,
//! and what Xen printed.

use super::{CallError, Xen};
use crate::hypercalls::{Buffer, Hypercalls, NodeId};
use alloc::vec;
use alloc::vec::Vec;
use core::mem::offset_of;
use xen_abi::PAGE_SIZE;
use xen_abi::sysctl::{self, CpuTopo, CpuTopoInfo, MemInfo, NumaInfo, PhysInfo, ReadConsole, cmd};
use zerocopy::IntoBytes;

/// Memory of a NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Which.
    pub id: NodeId,
    /// Bytes.
    pub memory: u64,
    /// Bytes that no domain has.
    pub free: u64,
}

/// Where a physical CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Xen's number.
    pub id: u32,
    /// Core within the socket: hyperthreads have the same.
    pub core: u32,
    /// Socket.
    pub socket: u32,
    /// NUMA node.
    pub node: NodeId,
}

/// What the machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes that no domain has.
    pub free: u64,
    /// Clock of a CPU.
    pub cpu_khz: u32,
    /// Whether PVH guests can run: hardware virtualisation with nested paging.
    pub pvh: bool,
    /// Whether PV guests can run.
    pub pv: bool,
    /// Whether an IOMMU is in use.
    pub iommu: bool,
    /// CPUs that are online.
    pub cpus: Vec<Cpu>,
    /// Nodes with memory.
    pub nodes: Vec<Node>,
}

impl<H: Hypercalls> Xen<'_, H> {
    /// `physinfo`, `cputopoinfo` and `numainfo`.
    ///
    /// # Errors
    /// Xen's own.
    pub fn host_facts(&self) -> Result<HostFacts, CallError> {
        let mut info = PhysInfo::default();
        self.sysctl("physinfo", cmd::PHYSINFO, &mut info, &mut [])?;
        let can = |bits| info.capabilities & bits == bits;
        Ok(HostFacts {
            memory: info.total_pages.saturating_mul(PAGE_SIZE as u64),
            free: info.free_pages.saturating_mul(PAGE_SIZE as u64),
            cpu_khz: info.cpu_khz,
            pvh: can(sysctl::PHYSCAP_HVM | sysctl::PHYSCAP_HAP),
            pv: can(sysctl::PHYSCAP_PV),
            iommu: can(sysctl::PHYSCAP_DIRECTIO),
            cpus: self.cpu_topology(info.max_cpu_id)?,
            nodes: self.nodes(info.max_node_id)?,
        })
    }

    fn cpu_topology(&self, max_cpu_id: u32) -> Result<Vec<Cpu>, CallError> {
        let room = max_cpu_id.saturating_add(1);
        let mut raw = vec![CpuTopo::default(); room as usize];
        let mut info = CpuTopoInfo {
            num_cpus: room,
            ..Default::default()
        };
        self.sysctl(
            "cputopoinfo",
            cmd::CPUTOPOINFO,
            &mut info,
            &mut [Buffer {
                pointer_at: offset_of!(CpuTopoInfo, cputopo),
                bytes: raw.as_mut_bytes(),
            }],
        )?;
        Ok(raw
            .iter()
            .zip(0..info.num_cpus.min(room))
            .filter(|(cpu, _)| is_present(cpu))
            .map(|(cpu, id)| Cpu {
                id,
                core: cpu.core,
                socket: cpu.socket,
                // A machine without NUMA is one node.
                node: NodeId(if cpu.node == sysctl::INVALID_ID {
                    0
                } else {
                    cpu.node
                }),
            })
            .collect())
    }

    /// `numainfo`: cheap enough to ask before each placement.
    fn nodes(&self, max_node_id: u32) -> Result<Vec<Node>, CallError> {
        let room = max_node_id.saturating_add(1);
        let mut raw = vec![MemInfo::default(); room as usize];
        let mut info = NumaInfo {
            num_nodes: room,
            ..Default::default()
        };
        self.sysctl(
            "numainfo",
            cmd::NUMAINFO,
            &mut info,
            &mut [Buffer {
                pointer_at: offset_of!(NumaInfo, meminfo),
                bytes: raw.as_mut_bytes(),
            }],
        )?;
        Ok(raw
            .iter()
            .zip(0..info.num_nodes.min(room))
            // XEN_INVALID_MEM_SZ is a 32-bit ~0.
            .filter(|(node, _)| node.memsize != u64::from(u32::MAX) && node.memsize != 0)
            .map(|(node, id)| Node {
                id: NodeId(id),
                memory: node.memsize,
                free: node.memfree,
            })
            .collect())
    }

    /// `readconsole`: what Xen printed from `index` on (`None`: from the oldest it
    /// still has). Returns the bytes in `to`, and the index to go on from.
    ///
    /// # Errors
    /// Xen's own.
    pub fn read_console(
        &self,
        index: Option<u32>,
        to: &mut [u8],
    ) -> Result<(usize, u32), CallError> {
        let room = to.len();
        let mut read = ReadConsole {
            incremental: u8::from(index.is_some()),
            index: index.unwrap_or(0),
            count: u32::try_from(room).unwrap_or(u32::MAX),
            ..Default::default()
        };
        self.sysctl(
            "readconsole",
            cmd::READCONSOLE,
            &mut read,
            &mut [Buffer {
                pointer_at: offset_of!(ReadConsole, buffer),
                bytes: to,
            }],
        )?;
        Ok(((read.count as usize).min(room), read.index))
    }
}

/// Whether Xen has the CPU: of one that is not there all numbers are invalid. The core of
/// the only CPU of a machine can be.
fn is_present(cpu: &CpuTopo) -> bool {
    [cpu.core, cpu.socket, cpu.node]
        .iter()
        .any(|number| *number != sysctl::INVALID_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_of_which_anything_is_known_is_present() {
        let cpu = |core, socket, node| CpuTopo { core, socket, node };
        let no = sysctl::INVALID_ID;
        assert!(is_present(&cpu(0, 0, 0)) && is_present(&cpu(no, no, 0)));
        assert!(!is_present(&cpu(no, no, no)));
    }
}
