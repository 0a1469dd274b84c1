//! The simulation refuses what Xen or an IOMMU would refuse.

use hal::{DmaAllocator, Node};
use xen_abi::DomId;
use xen_ring::peer::{Access, CopyEnd, CopyOp, Events, GrantStatus, Grants};
use xen_sim::{DmaFault, Executor, Machine, SimEvents, SimGuest, StillInUse};

fn copy(source: CopyEnd, dest: CopyEnd, len: u16) -> CopyOp {
    CopyOp {
        source,
        source_offset: 8,
        dest,
        dest_offset: 16,
        len,
        status: GrantStatus::GENERAL_ERROR,
    }
}

#[test]
fn a_device_reaches_a_guest_page_only_while_it_is_mapped() {
    let machine = Machine::new();
    let guest = SimGuest::new(&machine, DomId(3));
    let page = guest.alloc(1);
    let gref = guest.grant(page.mfns[0], Access::Read);
    let grants = guest.grants();
    let addr = page.mfns[0] << 12;
    page.bytes.write_bytes(100, b"hello");

    let mut buf = [0; 5];
    let fault = Err(DmaFault::NotMapped(addr + 100));
    assert_eq!(machine.dma_read(addr + 100, &mut buf), fault);

    let mut out = Vec::new();
    grants.map_device(&[gref], Access::Write, &mut out);
    assert_eq!(out.pop().unwrap().unwrap_err(), GrantStatus::GENERAL_ERROR);
    grants.map_device(&[gref], Access::Read, &mut out);
    let mapping = out.pop().unwrap().unwrap();
    machine.dma_read(addr + 100, &mut buf).unwrap();
    assert_eq!(&buf, b"hello");
    assert_eq!(machine.dma_write(addr + 100, &buf), fault);
    assert_eq!(guest.end(gref), Err(StillInUse));

    grants.unmap_device(vec![mapping]);
    assert_eq!(machine.dma_read(addr + 100, &mut buf), fault);
    guest.end(gref).unwrap();
    grants.assert_nothing_left();
}

#[test]
fn copies_are_checked_one_by_one() {
    let machine = Machine::new();
    let guest = SimGuest::new(&machine, DomId(3));
    let page = guest.alloc(1);
    let (ro, rw) = (
        guest.grant(page.mfns[0], Access::Read),
        guest.grant(page.mfns[0], Access::Write),
    );
    let own = machine.allocator().alloc(1, Node(0)).unwrap();
    let frame = CopyEnd::Frame(own.bus_addr() >> 12);
    own.write_bytes(8, b"disk");
    let grants = guest.grants();
    let mut ops = [
        copy(frame, CopyEnd::Granted(rw), 4),
        copy(frame, CopyEnd::Granted(ro), 4),
        copy(frame, CopyEnd::Granted(rw), 4096 - 15),
        copy(CopyEnd::GrantedBy(DomId(9), rw), frame, 4),
    ];
    grants.copy(&mut ops);
    assert!(ops[0].status.is_okay());
    assert!(ops[1..].iter().all(|op| !op.status.is_okay()));
    let mut seen = [0; 4];
    page.bytes.read_bytes(16, &mut seen);
    assert_eq!(&seen, b"disk");
}

#[test]
fn released_memory_faults_and_is_not_counted_as_live() {
    let machine = Machine::new();
    let allocator = machine.allocator();
    let buffer = allocator.alloc(2, Node(1)).unwrap();
    let addr = buffer.bus_addr();
    machine.dma_write(addr + 4090, b"across a page").unwrap();
    assert_eq!(allocator.live_pages(), 2);
    drop(buffer);
    assert_eq!(allocator.live_pages(), 0);
    assert_eq!(machine.dma_write(addr, b"x"), Err(DmaFault::Released(addr)));
}

#[test]
fn a_ring_is_mapped_whole_and_its_end_is_seen() {
    let machine = Machine::new();
    let guest = SimGuest::new(&machine, DomId(3));
    let ring = guest.alloc(2);
    let refs: Vec<_> = ring
        .mfns
        .iter()
        .map(|m| guest.grant(*m, Access::Write))
        .collect();
    let grants = guest.grants();
    assert!(grants.map_ring(&refs[..1]).is_err());
    let mapped = grants.map_ring(&refs).unwrap();
    ring.bytes.write_bytes(5000, b"ring");
    let mut seen = [0; 4];
    mapped.read_bytes(5000, &mut seen);
    assert_eq!(&seen, b"ring");
    assert_eq!(guest.end(refs[1]), Err(StillInUse));
    drop(mapped);
    guest.end(refs[1]).unwrap();
    grants.assert_nothing_left();
}

#[test]
#[should_panic(expected = "not mapped")]
fn a_mapping_ended_twice_panics() {
    let machine = Machine::new();
    let guest = SimGuest::new(&machine, DomId(3));
    let gref = guest.grant(guest.alloc(1).mfns[0], Access::Read);
    let grants = guest.grants();
    let mut out = Vec::new();
    grants.map_device(&[gref], Access::Read, &mut out);
    let mapping = out.pop().unwrap().unwrap();
    let again = xen_ring::peer::DeviceMapping { ..mapping };
    grants.unmap_device(vec![mapping]);
    grants.unmap_device(vec![again]);
}

#[test]
fn events_merge_and_wake() {
    let exec = Executor::new();
    let (back, front) = SimEvents::pair();
    assert!(front.take() && !front.take());
    let waiting = back.clone();
    let task = exec.spawn(async move {
        xen_ring::peer::event(&waiting).await;
        xen_ring::peer::event(&waiting).await;
    });
    exec.run_until_stalled();
    assert!(task.take().is_none());
    front.notify();
    front.notify();
    exec.run_until_stalled();
    assert!(task.take().is_some());
    assert_eq!(back.received(), 2);
}
