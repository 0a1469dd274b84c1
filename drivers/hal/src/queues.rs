//! Which vCPUs get a device's queues, and which queue one uses that has none of its own.

use crate::{Node, VcpuId};
use alloc::vec::Vec;

/// vCPUs in the order in which they get queues: the nodes by turns, so that a device with
/// fewer queues has some on each node.
pub fn by_turns(vcpus: impl Iterator<Item = (VcpuId, Node)> + Clone) -> Vec<(VcpuId, Node)> {
    let mut ordered: Vec<_> = vcpus.clone().collect();
    ordered.sort_by_cached_key(|(vcpu, node)| {
        let before = |(other, of): &(VcpuId, Node)| of == node && other < vcpu;
        (vcpus.clone().filter(before).count(), *vcpu)
    });
    ordered
}

/// The vCPU whose queue a task of `vcpu` uses, of those that have one: its own; else, on a
/// device with fewer queues than there are vCPUs, one on its node, and there one that is not
/// `spared`, if there are such. The vCPUs of a node take turns at them. `vcpu` itself if there
/// is none at all.
///
/// `nodes` has the node of each vCPU, by its number.
pub fn nearest_queue(
    vcpu: VcpuId,
    nodes: &[Node],
    queues: impl Iterator<Item = VcpuId> + Clone,
    spared: impl Fn(VcpuId) -> bool,
) -> VcpuId {
    let has_queue = |vcpu| queues.clone().any(|queue| queue == vcpu);
    if has_queue(vcpu) {
        return vcpu;
    }
    let node_of = |vcpu: VcpuId| nodes.get(vcpu.0 as usize);
    let node = node_of(vcpu);
    let far = |queue| (node_of(queue) != node, spared(queue));
    let least = queues.clone().map(far).min();
    let near = queues.clone().filter(|queue| Some(far(*queue)) == least);
    // Not its number: where those of a node are all even, they would share the even queues.
    let rank = (0..vcpu.0)
        .map(VcpuId)
        .filter(|other| node_of(*other) == node && !has_queue(*other))
        .count();
    let count = near.clone().count().max(1);
    near.clone().nth(rank % count).unwrap_or(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_queues_are_spread_over_the_nodes() {
        let by_socket = [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)];
        let vcpus = by_socket.map(|(vcpu, node)| (VcpuId(vcpu), Node(node)));
        let order = by_turns(vcpus.into_iter());
        assert_eq!(order, [0, 3, 1, 4, 2, 5].map(|at| vcpus[at]));
        assert_eq!(
            by_turns(order.into_iter().rev()),
            [0, 3, 1, 4, 2, 5].map(|at| vcpus[at])
        );
    }

    #[test]
    fn queues_of_the_own_node_are_shared_out_and_the_first_vcpu_is_spared() {
        // Vcpu 0 manages; 0 to 5 are of one node, 6 to 11 of the other; these have queues.
        let nodes: [Node; 12] = core::array::from_fn(|vcpu| Node(u32::from(vcpu >= 6)));
        let queues = [0, 1, 2, 6, 7].map(VcpuId);
        let to = |vcpu| {
            let spared = |queue| queue == VcpuId(0);
            nearest_queue(VcpuId(vcpu), &nodes, queues.into_iter(), spared).0
        };
        assert_eq!([0, 1, 2, 6, 7].map(to), [0, 1, 2, 6, 7]);
        assert_eq!([3, 4, 5].map(to), [1, 2, 1]);
        assert_eq!([8, 9, 10, 11].map(to), [6, 7, 6, 7]);
    }

    #[test]
    fn queues_are_shared_out_where_cpus_are_numbered_by_turns_over_the_sockets() {
        let nodes = [Node(0), Node(1)].repeat(6);
        let queues = [0, 1, 2, 3].map(VcpuId);
        let to = |vcpu| nearest_queue(VcpuId(vcpu), &nodes, queues.into_iter(), |_| false).0;
        assert_eq!([5, 7, 9, 11].map(to), [1, 3, 1, 3]);
        assert_eq!([4, 6, 8, 10].map(to), [0, 2, 0, 2]);
    }

    #[test]
    fn a_spared_queue_of_the_own_node_comes_before_one_of_another_node() {
        let nodes: [Node; 12] = core::array::from_fn(|vcpu| Node(u32::from(vcpu >= 6)));
        let queues = [0, 6, 7].map(VcpuId);
        let spared = |queue| queue == VcpuId(0);
        let to = |vcpu| nearest_queue(VcpuId(vcpu), &nodes, queues.into_iter(), spared).0;
        assert_eq!([1, 2, 5].map(to), [0, 0, 0]);
    }

    #[test]
    fn without_one_on_the_node_another_serves() {
        let nodes: [Node; 12] = core::array::from_fn(|vcpu| Node(u32::from(vcpu >= 6)));
        let to = |vcpu, queues: &[u32]| {
            let queues = queues.iter().copied().map(VcpuId);
            nearest_queue(VcpuId(vcpu), &nodes, queues, |queue| queue == VcpuId(0))
        };
        assert_eq!(to(6, &[0, 1, 2]), VcpuId(1));
        assert_eq!(to(7, &[0, 1, 2]), VcpuId(2));
        assert_eq!(to(7, &[0]), VcpuId(0));
        assert_eq!(to(7, &[]), VcpuId(7));
    }
}
