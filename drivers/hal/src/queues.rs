//! Which queue a vCPU uses that has none of its own.

use crate::VcpuId;

/// The vCPU whose queue a task of `vcpu` uses, of those that have one: its own; else, on a
/// device with fewer queues than there are vCPUs, one of those for which `far` is least, and
/// not the same for all vCPUs. `vcpu` itself if there is none at all.
pub fn nearest_queue<R: Ord>(
    vcpu: VcpuId,
    queues: impl Iterator<Item = VcpuId> + Clone,
    far: impl Fn(VcpuId) -> R,
) -> VcpuId {
    if queues.clone().any(|queue| queue == vcpu) {
        return vcpu;
    }
    let least = queues.clone().map(&far).min();
    let near = queues.filter(|queue| Some(far(*queue)) == least);
    let count = near.clone().count().max(1);
    near.clone().nth(vcpu.0 as usize % count).unwrap_or(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_of_the_own_node_are_shared_out_and_the_first_vcpu_is_spared() {
        // Vcpu 0 manages; 0 to 5 are of one node, 6 to 11 of the other; these have queues.
        let queues = [0, 1, 2, 6, 7].map(VcpuId);
        let to = |vcpu: u32| {
            let far = |queue: VcpuId| ((queue.0 < 6) != (vcpu < 6), queue.0 == 0);
            nearest_queue(VcpuId(vcpu), queues.into_iter(), far).0
        };
        assert_eq!([0, 1, 2, 6, 7].map(to), [0, 1, 2, 6, 7]);
        assert_eq!([3, 4, 5].map(to), [2, 1, 2]);
        assert_eq!([8, 9, 10, 11].map(to), [6, 7, 6, 7]);
    }

    #[test]
    fn without_one_on_the_node_another_serves() {
        let far = |queue: VcpuId| (true, queue.0 == 0);
        let to = |vcpu, queues: &[u32]| {
            let queues = queues.iter().copied().map(VcpuId);
            nearest_queue(VcpuId(vcpu), queues, far)
        };
        assert_eq!(to(6, &[0, 1, 2]), VcpuId(1));
        assert_eq!(to(7, &[0, 1, 2]), VcpuId(2));
        assert_eq!(to(7, &[0]), VcpuId(0));
        assert_eq!(to(7, &[]), VcpuId(7));
    }
}
