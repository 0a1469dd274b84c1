//! Which vCPU of ours is on which core and node, and which of them are the main container.

use alloc::vec::Vec;

use hal::{Node, VcpuId, by_turns};
use toolstack_domain::xen::HostFacts;

/// The machine as the executor sees it. vCPU n is pinned to physical CPU n.
#[derive(Clone, Debug)]
pub struct Topology {
    nodes: Vec<Node>,
    mc: u32,
}

impl Topology {
    /// `vcpus` of ours are up, of which the first `mc` are the main container's. The options'
    /// parser leaves one for guests, if there is more than one.
    pub fn new(facts: &HostFacts, vcpus: u32, mc: u32) -> Self {
        let node = |cpu| {
            let found = facts.cpus.iter().find(|c| c.id == cpu);
            Node(found.map_or(0, |c| c.node.0))
        };
        Self {
            nodes: (0..vcpus).map(node).collect(),
            mc: mc.clamp(1, vcpus),
        }
    }

    /// The node of a vCPU's core.
    pub fn node_of(&self, vcpu: VcpuId) -> Node {
        self.nodes.get(vcpu.0 as usize).copied().unwrap_or(Node(0))
    }

    /// The node of each vCPU, by its number.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The vCPU that runs on a physical CPU; the first, if none of ours does.
    pub fn vcpu_on(&self, cpu: u32) -> VcpuId {
        VcpuId(if cpu < self.vcpus() { cpu } else { 0 })
    }

    /// vCPUs that are up.
    pub fn vcpus(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    /// Whether a vCPU is the main container's.
    pub fn is_mc(&self, vcpu: VcpuId) -> bool {
        vcpu.0 < self.mc
    }

    /// Physical CPUs of the main container, which guests do not get; on a machine with
    /// nothing else, guests share them.
    pub fn reserved_cpus(&self) -> Vec<u32> {
        if self.mc < self.vcpus() {
            (0..self.mc).collect()
        } else {
            Vec::new()
        }
    }

    /// Every vCPU with its node, those that serve guests first, and of these the nodes by
    /// turns: where devices want queues.
    pub fn service_vcpus(&self) -> Vec<(VcpuId, Node)> {
        let some = |mc| {
            let all = (0..self.vcpus()).map(VcpuId);
            let some = all.filter(move |vcpu| self.is_mc(*vcpu) == mc);
            by_turns(some.map(|vcpu| (vcpu, self.node_of(vcpu))))
        };
        [some(false), some(true)].concat()
    }
}
