//! Placement on a machine of two sockets with four cores each.

use super::*;
use crate::config::{Action, Disk, ImageId, Kernel, TscMode, Vif};
use crate::xen::{Cpu, Node};
use alloc::string::ToString;
use alloc::vec;

const GIB: u64 = 1 << 30;
const GIB_PAGES: u64 = GIB / 4096;

/// CPU 0 of each node is the MC's.
const MC: [u32; 2] = [0, 4];

fn facts(free: [u64; 2]) -> HostFacts {
    HostFacts {
        memory: 64 * GIB,
        free: free[0] + free[1],
        cpu_khz: 2_000_000,
        pvh: true,
        pv: true,
        iommu: false,
        cpus: (0..8)
            .map(|id| Cpu {
                id,
                core: id % 4,
                socket: id / 4,
                node: NodeId(id / 4),
            })
            .collect(),
        nodes: (0..)
            .zip(free)
            .map(|(id, free)| Node {
                id: NodeId(id),
                memory: 32 * GIB,
                free,
            })
            .collect(),
    }
}

fn host(free: [u64; 2], pins: &[Vec<u32>]) -> Host {
    Host::new(&facts(free), &MC, pins.iter().map(Vec::as_slice))
}

fn request(pages: u64, vcpus: u32) -> Request<'static> {
    Request {
        pages,
        overhead: 1000,
        vcpus,
        cpus: &[],
    }
}

fn total(placement: &Placement) -> u64 {
    placement.memory.iter().map(|(_, pages)| pages).sum()
}

#[test]
fn a_guest_that_fits_gets_one_node_and_a_core_for_each_vcpu() {
    let placement = place(&host([8 * GIB, 16 * GIB], &[]), &request(GIB_PAGES, 2)).unwrap();
    // Both are idle: the one it fills better.
    assert_eq!(placement.memory, [(NodeId(0), GIB_PAGES)]);
    assert_eq!(placement.pins, [[1], [2]]);
}

#[test]
fn the_less_loaded_node_wins_over_the_better_fit() {
    let busy = [vec![1], vec![2], vec![3]];
    let placement = place(&host([8 * GIB, 16 * GIB], &busy), &request(GIB_PAGES, 2)).unwrap();
    assert_eq!(placement.memory, [(NodeId(1), GIB_PAGES)]);
    assert_eq!(placement.pins, [[5], [6]]);
}

#[test]
fn cores_of_the_mc_are_never_given_away() {
    for vcpus in 1..=20 {
        let placement = place(&host([32 * GIB; 2], &[]), &request(GIB_PAGES, vcpus)).unwrap();
        assert_eq!(placement.pins.len(), vcpus as usize);
        assert!(placement.pins.iter().flatten().all(|cpu| !MC.contains(cpu)));
        assert_eq!(total(&placement), GIB_PAGES);
    }
}

#[test]
fn more_vcpus_than_a_node_has_cores_spread_over_both_with_memory_in_proportion() {
    let placement = place(&host([32 * GIB; 2], &[]), &request(6 * GIB_PAGES, 6)).unwrap();
    let mut pins = placement.pins.concat();
    pins.sort_unstable();
    assert_eq!(pins, [1, 2, 3, 5, 6, 7]);
    assert_eq!(
        placement.memory,
        [(NodeId(0), 3 * GIB_PAGES), (NodeId(1), 3 * GIB_PAGES)]
    );
}

#[test]
fn memory_beyond_one_node_comes_from_two() {
    let placement = place(&host([3 * GIB, 4 * GIB], &[]), &request(5 * GIB_PAGES, 2)).unwrap();
    assert_eq!(total(&placement), 5 * GIB_PAGES);
    assert_eq!(placement.memory.len(), 2);
    for (node, pages) in placement.memory {
        assert!(pages <= [3, 4][node.0 as usize] * GIB_PAGES);
    }
}

#[test]
fn too_much_is_refused_with_the_numbers() {
    let error = place(&host([GIB, 2 * GIB], &[]), &request(3 * GIB_PAGES, 1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "not enough memory: 3076 MiB asked, 1024 MiB free for guests on node 0, \
         2048 MiB free for guests on node 1"
    );
}

fn one_disk_one_vif() -> GuestConfig {
    GuestConfig {
        name: "g".into(),
        uuid: [7; 16],
        kind: GuestType::Pv,
        kernel: Kernel {
            image: ImageId([1; 32]),
            segments: Vec::new(),
            notes: Vec::new(),
            entry: 0,
        },
        ramdisk: None,
        cmdline: "".into(),
        memory_mib: 192,
        vcpus: 1,
        max_vcpus: 1,
        cpus: Vec::new(),
        disks: vec![Disk {
            volume: "v".into(),
            vdev: "xvda".into(),
            writable: true,
        }],
        vifs: vec![Vif {
            mac: [0; 6],
            mtu: 1500,
        }],
        on_poweroff: Action::Destroy,
        on_reboot: Action::Restart,
        on_crash: Action::Destroy,
        tsc_mode: TscMode::Native,
    }
}

#[test]
fn what_the_pvm_may_still_need_is_left_free_on_each_node() {
    // The test bed: 64 MiB at boot, all on node 0, four vCPUs on each node, and heap for
    // eight guests.
    let guests: Vec<GuestConfig> = (0..8).map(|_| one_disk_one_vif()).collect();
    let heap = heap_pages(guests.iter());
    let of_host = 4096 + 5120 + 24 * 92 + 8 * 64 + 12 * 2304 + 1024;
    assert_eq!(heap * 4, of_host + 8 * (3200 + 128 + 160 + 160 + 200));
    let own = |node: NodeId| Own {
        vcpus: 4,
        heap: if node == NodeId(0) { heap } else { 0 },
        pages: if node == NodeId(0) { 16384 } else { 0 },
    };
    let mib = |pages: u64| pages / 256;
    let host = host([3 * GIB; 2], &[]).without(own);
    // 32 MiB of packets and 69.8 MiB of heap are 101.8 MiB, of which 64 are there.
    assert_eq!(mib(host.free[0].1), 3034);
    assert_eq!(mib(host.free[1].1), 3072 - 32);
    // Nobody gets the last of it, on one node or on both.
    let error = place(&host, &request(6 * GIB_PAGES - 8192, 1)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("3040 MiB free for guests on node 1")
    );
    let placement = place(&host, &request(6 * GIB_PAGES - 20_480, 1)).unwrap();
    for (node, pages) in &placement.memory {
        assert!(*pages <= host.free[node.0 as usize].1);
    }
}

#[test]
fn eight_small_guests_fit_the_test_bed() {
    let mut free = [3 * GIB; 2];
    let mut guests = Vec::new();
    let mut pins: Vec<Vec<u32>> = Vec::new();
    for _ in 0..8 {
        guests.push(one_disk_one_vif());
        let heap = heap_pages(guests.iter());
        let own = |node| match node {
            NodeId(0) => Own {
                vcpus: 4,
                heap,
                pages: 16384,
            },
            _ => Own {
                vcpus: 4,
                ..Own::default()
            },
        };
        let request = Request::of(&guests[0]);
        let placement = place(&host(free, &pins).without(own), &request).unwrap();
        let [(node, pages)] = placement.memory[..] else {
            panic!("{placement}");
        };
        free[node.0 as usize] -= (pages + request.overhead) * 4096;
        pins.extend(placement.pins);
    }
}

#[test]
fn a_node_needs_room_for_all_that_xen_keeps_for_the_guest() {
    let mut config = one_disk_one_vif();
    // The domain; 64 frames of grants with 512 pages of what Xen notes about them; 16 of maps.
    let pv = 528 + 64 + 512 + 16;
    // A page for each MiB and 256 for the vCPU.
    let pvh = pv + 192 + 256;
    for (kind, own) in [(GuestType::Pv, pv), (GuestType::Pvh, pvh)] {
        config.kind = kind;
        let needed = (memory_pages(&config) + own) * 4096;
        let placed = |free| place(&host([free, 0], &[]), &Request::of(&config));
        assert!(placed(needed).is_ok());
        assert!(matches!(
            placed(needed - 4096),
            Err(PlacementError::Memory { .. })
        ));
    }
}

#[test]
fn a_guest_on_two_nodes_fills_neither_to_the_last_page() {
    let config = one_disk_one_vif();
    let request = Request::of(&config);
    let needed = request.pages + request.overhead;
    let placed = |first: u64, second: u64| {
        place(&host([first * 4096, second * 4096], &[]), &request).map(|found| found.memory)
    };
    let first = needed / 2 + 100;
    assert_eq!(
        placed(first, needed - first + 64).unwrap(),
        [
            (NodeId(0), first - request.overhead),
            (NodeId(1), needed - first)
        ]
    );
    assert!(matches!(
        placed(first, needed - first + 63),
        Err(PlacementError::Memory { .. })
    ));
}

#[test]
fn a_pv_guest_is_charged_for_the_list_of_its_frames() {
    let mut config = one_disk_one_vif();
    config.memory_mib = 1024;
    let pv = heap_pages([&config].into_iter());
    config.kind = GuestType::Pvh;
    // 4 bytes a page, and what holds them.
    let list = pv - heap_pages([&config].into_iter());
    assert!((256..300).contains(&list), "{list} pages");
}

#[test]
fn a_node_with_less_than_the_pvm_needs_has_nothing_for_guests() {
    let host = host([GIB / 64, GIB], &[]).without(|_| Own {
        vcpus: 4,
        ..Own::default()
    });
    assert_eq!(host.free[0].1, 0);
    let placement = place(&host, &request(1000, 1)).unwrap();
    assert_eq!(placement.memory, [(NodeId(1), 1000)]);
}

#[test]
fn what_the_pvm_has_already_is_not_kept_twice() {
    let host = host([GIB; 2], &[]).without(|_| Own {
        vcpus: 4,
        heap: 100,
        pages: 1 << 30,
    });
    assert_eq!(host.free[0].1, GIB_PAGES);
}

#[test]
fn cpus_of_the_configuration_decide_the_node_and_are_allowed_to_every_vcpu() {
    let cpus = [4, 5, 6];
    let request = Request {
        cpus: &cpus,
        ..request(GIB_PAGES, 2)
    };
    let placement = place(&host([8 * GIB, 8 * GIB], &[]), &request).unwrap();
    assert_eq!(placement.memory, [(NodeId(1), GIB_PAGES)]);
    assert_eq!(placement.pins, [[5, 6], [5, 6]]);
    let only_mc = Request {
        cpus: &MC,
        ..request
    };
    assert_eq!(
        place(&host([8 * GIB, 8 * GIB], &[]), &only_mc),
        Err(PlacementError::NoCpu)
    );
}

#[test]
fn hyperthreads_are_one_core_and_the_mcs_sibling_is_not_used() {
    let mut facts = facts([8 * GIB; 2]);
    for cpu in &mut facts.cpus {
        cpu.core = cpu.id % 4 / 2;
    }
    let host = Host::new(&facts, &MC, core::iter::empty());
    let cpus: Vec<_> = host.cores.iter().map(|core| core.cpus.clone()).collect();
    assert_eq!(cpus, [[2, 3], [6, 7]]);
}

#[test]
fn whatever_is_placed_fits_and_is_complete() {
    // Every combination of a coarse grid.
    for free0 in 0..6 {
        for free1 in 0..6 {
            for gib in 1..8 {
                for vcpus in [1, 2, 3, 4, 6, 7, 13] {
                    let host = host([free0 * GIB, free1 * GIB], &[]);
                    let request = request(gib * GIB_PAGES, vcpus);
                    match place(&host, &request) {
                        Ok(placement) => {
                            assert_eq!(total(&placement), request.pages);
                            assert_eq!(placement.pins.len(), vcpus as usize);
                            assert!(placement.pins.iter().all(|pin| !pin.is_empty()));
                            for (node, pages) in &placement.memory {
                                let free = [free0, free1][node.0 as usize] * GIB_PAGES;
                                assert!(*pages <= free);
                            }
                        }
                        Err(PlacementError::Memory { asked, .. }) => {
                            assert!(asked > (free0 + free1) * GIB_PAGES);
                        }
                        Err(PlacementError::NoCpu) => panic!("there are cores"),
                    }
                }
            }
        }
    }
}
