//! Frontend and backend joined in one process, on strict grants and a slow disk.
#![allow(clippy::cast_possible_truncation, reason = "small made-up numbers")]

mod guest;

use backend_blk::{BlockError, End, Protocol};
use guest::{Bed, Options, VOLUME_START, indirect, request};
use proptest::prelude::*;
use xen_abi::GrantRef;
use xen_abi::io::blkif::{
    OP_DISCARD, OP_FLUSH_DISKCACHE, OP_READ, OP_WRITE, OP_WRITE_BARRIER, RSP_EOPNOTSUPP, RSP_ERROR,
    RSP_OKAY, Segment,
};
use xen_ring::RingError;
use xen_ring::peer::{Access, GrantStatus};
use xen_sim::GuestPages;
use zerocopy::IntoBytes;

fn fill(pages: &GuestPages, seed: u32) {
    let bytes: Vec<u8> = (0..pages.bytes.len() as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
        .collect();
    pages.bytes.write_bytes(0, &bytes);
}

fn bytes(pages: &GuestPages) -> Vec<u8> {
    let mut bytes = vec![0; pages.bytes.len()];
    pages.bytes.read_bytes(0, &mut bytes);
    bytes
}

fn volume(bed: &Bed) -> Vec<u8> {
    let data = bed.ram.data.borrow();
    let edge = VOLUME_START as usize * 512;
    data[edge..data.len() - edge].to_vec()
}

/// Grants every page of an allocation.
fn grant_all(bed: &Bed, pages: &GuestPages, access: Access) -> Vec<GrantRef> {
    (0..pages.mfns.len())
        .map(|n| bed.grant(pages, n, access))
        .collect()
}

fn whole(refs: &[GrantRef]) -> Vec<(GrantRef, u8, u8)> {
    refs.iter().map(|gref| (*gref, 0, 7)).collect()
}

#[test]
fn small_requests_are_copied_and_large_ones_mapped() {
    for (pages, mapped) in [(1, false), (4, false), (5, true), (11, true)] {
        let mut bed = Bed::new(Options::default());
        let (out, back) = (bed.guest.alloc(pages), bed.guest.alloc(pages));
        fill(&out, 7);
        // As frontends do: what the disk only reads is granted for reading only.
        let from = grant_all(&bed, &out, Access::Read);
        let to = grant_all(&bed, &back, Access::Write);
        let id = bed.push(request(OP_WRITE, 100, &whole(&from)));
        assert_eq!(bed.answer(id), RSP_OKAY);
        assert!(volume(&bed)[100 * 512..][..pages * 4096] == bytes(&out));
        let id = bed.push(request(OP_READ, 100, &whole(&to)));
        assert_eq!(bed.answer(id), RSP_OKAY);
        assert!(bytes(&back) == bytes(&out));
        for gref in from.iter().chain(&to) {
            bed.guest.end(*gref).unwrap();
        }
        let grants = bed.grants.counters();
        assert_eq!((grants.maps > 0, grants.copies > 0), (mapped, !mapped));
        let seen = bed.counters.snapshot();
        assert_eq!((seen.reads, seen.writes), (1, 1));
        assert_eq!(seen.bytes_read, pages as u64 * 4096);
        bed.finish();
    }
}

#[test]
fn many_requests_are_in_flight_and_share_unmaps_and_notifications() {
    let mut bed = Bed::new(Options {
        ring_pages: 4,
        ..Options::default()
    });
    assert_eq!(bed.front.size(), 128);
    let pages = bed.guest.alloc(11);
    let refs = whole(&grant_all(&bed, &pages, Access::Write));
    let ids: Vec<_> = (0..128)
        .map(|n| bed.push(request(OP_READ, n * 8, &refs)))
        .collect();
    bed.settle();
    assert!(ids.iter().all(|id| bed.answers[id] == RSP_OKAY));
    assert_eq!(bed.ram.most_in_flight.get(), 32);
    let seen = bed.counters.snapshot();
    assert_eq!(seen.pages_mapped, 128 * 11);
    assert_eq!(bed.grants.counters().unmaps, 128 * 11);
    assert!(bed.grants.counters().unmap_calls < 128);
    assert!(seen.notifications < 128);
    bed.finish();
}

#[test]
fn indirect_requests_of_one_mebibyte_move_and_are_mapped() {
    let mut bed = Bed::new(Options::default());
    let (data, table) = (bed.guest.alloc(256), bed.guest.alloc(1));
    fill(&data, 1);
    let refs = grant_all(&bed, &data, Access::Read);
    for (n, gref) in refs.iter().enumerate() {
        let segment = Segment {
            gref: gref.0,
            first_sect: 0,
            last_sect: 7,
            pad: 0,
        };
        table.bytes.write_bytes(n * 8, segment.as_bytes());
    }
    let page = bed.grant(&table, 0, Access::Read);
    let id = bed.push_indirect(&indirect(OP_WRITE, 0, page, 256));
    assert_eq!(bed.answer(id), RSP_OKAY);
    assert!(volume(&bed)[..256 * 4096] == bytes(&data));
    assert_eq!(bed.grants.counters().maps, 256);
    bed.finish();
}

#[test]
fn a_page_that_cannot_be_mapped_is_copied() {
    let mut bed = Bed::new(Options::default());
    let (out, table) = (bed.guest.alloc(40), bed.guest.alloc(1));
    fill(&out, 3);
    for n in 0..40 {
        let gref = bed.grant(&out, n, Access::Read);
        if n == 38 {
            bed.grants.refuse_map(gref);
        }
        let segment = Segment {
            gref: gref.0,
            first_sect: 1,
            last_sect: 7,
            pad: 0,
        };
        table.bytes.write_bytes(n * 8, segment.as_bytes());
    }
    let page = bed.grant(&table, 0, Access::Read);
    let id = bed.push_indirect(&indirect(OP_WRITE, 9, page, 40));
    assert_eq!(bed.answer(id), RSP_OKAY);
    let expected: Vec<u8> = bytes(&out)
        .chunks(4096)
        .flat_map(|page| page[512..].to_vec())
        .collect();
    assert!(volume(&bed)[9 * 512..][..expected.len()] == expected);
    let grants = bed.grants.counters();
    assert_eq!((grants.maps, grants.unmaps), (39, 39));
    assert!(grants.copies > 40);
    bed.finish();
}

#[test]
fn lists_that_the_disk_cannot_take_are_copied() {
    let mut bed = Bed::new(Options::default());
    bed.ram.picky.set(true);
    let pages = bed.guest.alloc(11);
    fill(&pages, 5);
    let refs = grant_all(&bed, &pages, Access::Read);
    let segments: Vec<_> = refs.iter().map(|gref| (*gref, 1, 6)).collect();
    let id = bed.push(request(OP_WRITE, 0, &segments));
    assert_eq!(bed.answer(id), RSP_OKAY);
    let expected: Vec<u8> = bytes(&pages)
        .chunks(4096)
        .flat_map(|p| p[512..3584].to_vec())
        .collect();
    assert!(volume(&bed)[..expected.len()] == expected);
    bed.finish();
}

#[test]
fn flush_and_discard_and_barrier_do_what_they_say() {
    let mut bed = Bed::new(Options::default());
    let pages = bed.guest.alloc(1);
    fill(&pages, 5);
    let gref = bed.grant(&pages, 0, Access::Read);
    let flush = bed.push(request(OP_FLUSH_DISKCACHE, 0, &[]));
    assert_eq!(bed.answer(flush), RSP_OKAY);
    assert_eq!(bed.ram.flushes.get(), 1);

    let before: Vec<_> = (0..8)
        .map(|n| bed.push(request(OP_WRITE, n, &[(gref, 0, 0)])))
        .collect();
    let barrier = bed.push(request(OP_WRITE_BARRIER, 20, &[(gref, 0, 0)]));
    let after: Vec<_> = (0..8)
        .map(|n| bed.push(request(OP_WRITE, 40 + n, &[(gref, 0, 0)])))
        .collect();
    bed.ram.log.borrow_mut().clear();
    bed.settle();
    for id in before.iter().chain([&barrier]).chain(&after) {
        assert_eq!(bed.answers[id], RSP_OKAY);
    }
    let log = bed.ram.log.borrow().clone();
    let write = |n: u64| format!("write {}", VOLUME_START + n);
    let at = log.iter().position(|entry| *entry == write(20)).unwrap();
    assert_eq!(
        (log[at - 1].as_str(), log[at + 1].as_str()),
        ("flush", "flush")
    );
    assert!((0..8).all(|n| log[..at].contains(&write(n))));
    assert!((40..48).all(|n| log[at..].contains(&write(n))));

    let mut raw = request(OP_DISCARD, 0, &[]);
    // `nr_sectors` lies where a normal request has its first segment.
    raw.seg[0] = Segment {
        gref: 8,
        ..Segment::default()
    };
    let id = bed.push(raw);
    assert_eq!(bed.answer(id), RSP_OKAY);
    assert!(volume(&bed)[..8 * 512].iter().all(|b| *b == 0));
    bed.finish();
}

#[test]
fn a_discard_beyond_the_disk_or_unsupported_or_secure_is_refused() {
    let mut bed = Bed::new(Options::default());
    for (sector, sectors) in [(2048, 1), (2047, 2), (u64::MAX, 2), (1, u64::MAX)] {
        let mut raw = request(OP_DISCARD, sector, &[]);
        raw.seg[0].gref = sectors as u32;
        raw.seg[0].first_sect = (sectors >> 32) as u8;
        (raw.seg[0].last_sect, raw.seg[0].pad) = ((sectors >> 40) as u8, (sectors >> 48) as u16);
        let id = bed.push(raw);
        assert_eq!(bed.answer(id), RSP_ERROR);
    }
    let mut raw = request(OP_DISCARD, 0, &[]);
    raw.nr_segments = 1;
    let id = bed.push(raw);
    assert_eq!(bed.answer(id), RSP_ERROR);
    bed.finish();
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut bed = Bed::new(Options {
        read_only: true,
        ..Options::default()
    });
    let pages = bed.guest.alloc(8);
    fill(&pages, 5);
    let refs = whole(&grant_all(&bed, &pages, Access::Write));
    for (operation, segments) in [
        (OP_WRITE, &refs[..1]),
        (OP_WRITE, &refs[..]),
        (OP_WRITE_BARRIER, &refs[..1]),
    ] {
        let id = bed.push(request(operation, 0, segments));
        assert_eq!(bed.answer(id), RSP_ERROR);
    }
    let id = bed.push(request(OP_READ, 0, &refs));
    assert_eq!(bed.answer(id), RSP_OKAY);
    bed.finish();
}

#[test]
fn sectors_beyond_the_volume_or_off_its_blocks_are_refused() {
    let mut bed = Bed::new(Options {
        block_size: 4096,
        ..Options::default()
    });
    let pages = bed.guest.alloc(1);
    let gref = bed.grant(&pages, 0, Access::Write);
    for (sector, first, last, expected) in [
        (2040, 0, 7, RSP_OKAY),
        (2048, 0, 7, RSP_ERROR),
        (u64::MAX - 7, 0, 7, RSP_ERROR),
        (2041, 0, 7, RSP_ERROR),
        (8, 0, 3, RSP_ERROR),
    ] {
        for operation in [OP_READ, OP_WRITE] {
            let id = bed.push(request(operation, sector, &[(gref, first, last)]));
            assert_eq!(bed.answer(id), expected, "{sector} {first} {last}");
        }
    }
    bed.finish();
}

#[test]
fn a_disk_error_is_an_error_response() {
    let mut bed = Bed::new(Options::default());
    let pages = bed.guest.alloc(11);
    let refs = whole(&grant_all(&bed, &pages, Access::Write));
    for segments in [&refs[..1], &refs[..]] {
        bed.ram.fail.set(Some((BlockError::Media(0x281), 0)));
        let id = bed.push(request(OP_READ, 0, segments));
        assert_eq!(bed.answer(id), RSP_ERROR);
    }
    assert_eq!(bed.counters.snapshot().disk_errors, 2);
    bed.finish();
}

#[test]
fn after_a_timeout_the_guest_hears_nothing_until_the_disk_lets_go_of_its_pages() {
    let mut bed = Bed::new(Options::default());
    let pages = bed.guest.alloc(11);
    let grefs = grant_all(&bed, &pages, Access::Write);
    bed.ram.fail.set(Some((BlockError::Timeout, 1_000_000)));
    let id = bed.push(request(OP_READ, 0, &whole(&grefs)));
    bed.publish();
    for _ in 0..100 {
        bed.exec.run_until_stalled();
        bed.exec.timer().advance(1000);
    }
    assert!(bed.front.next_response().is_none());
    assert_eq!(bed.grants.live_mappings(), 11);
    assert_eq!(bed.answer(id), RSP_ERROR);
    assert_eq!(bed.grants.live_mappings(), 0);
    for gref in grefs {
        bed.guest.end(gref).unwrap();
    }
    bed.finish();
}

#[test]
fn a_task_dropped_in_the_middle_unmaps_when_the_disk_is_done() {
    let mut bed = Bed::new(Options::default());
    let pages = bed.guest.alloc(11);
    let refs = whole(&grant_all(&bed, &pages, Access::Write));
    for n in 0..20 {
        bed.push(request(OP_READ, n, &refs[..(n as usize % 11) + 1]));
    }
    bed.publish();
    bed.exec.run_until_stalled();
    assert!(bed.grants.live_mappings() > 0);
    bed.task.cancel();
    // The disk's DMA goes on: the strict machine faults if a mapping is gone too early.
    bed.settle();
    assert!(bed.answers.is_empty());
    assert_eq!(
        (bed.grants.live_mappings(), bed.grants.live_rings()),
        (0, 1)
    );
    assert_eq!(bed.dma.live_pages(), 0);
}

#[test]
fn stopping_answers_what_is_in_flight() {
    let mut bed = Bed::new(Options::default());
    let pages = bed.guest.alloc(11);
    let refs = whole(&grant_all(&bed, &pages, Access::Write));
    for n in 0..20 {
        bed.push(request(OP_READ, n, &refs));
    }
    bed.publish();
    bed.exec.run_until_stalled();
    bed.stop.request();
    bed.settle();
    assert_eq!(bed.answers.len(), 20);
    bed.finish();
}

#[test]
fn a_broken_ring_ends_the_device_after_what_is_in_flight() {
    for ahead in [33, 1 << 31, u32::MAX] {
        let mut bed = Bed::new(Options {
            start: 100,
            ..Options::default()
        });
        let pages = bed.guest.alloc(11);
        let refs = whole(&grant_all(&bed, &pages, Access::Write));
        for n in 0..5 {
            bed.push(request(OP_READ, n, &refs));
        }
        bed.publish();
        bed.exec.run_until_stalled();
        bed.front.forge_req_prod(100u32.wrapping_add(ahead));
        xen_ring::peer::Events::notify(&bed.port);
        bed.drain();
        let end = bed.task.take();
        assert!(
            matches!(end, Some(End::Ring(RingError::Overrun { size: 32, .. }))),
            "{end:?}"
        );
        assert_eq!(bed.grants.live_mappings(), 0);
        assert_eq!(bed.grants.live_rings(), 1);
        assert_eq!(bed.counters.snapshot().ring_errors, 1);
    }
}

#[test]
fn a_ring_that_cannot_be_mapped_or_lies_from_the_start_is_refused() {
    let mut bed = Bed::new(Options::default());
    bed.grants.fail_next(1, GrantStatus::BAD_GNTREF);
    bed.settle();
    assert_eq!(bed.task.take(), Some(End::Map(GrantStatus::BAD_GNTREF)));
    let mut bed = Bed::new(Options {
        start: 0,
        ..Options::default()
    });
    bed.front.forge_req_prod(4000);
    bed.exec.run_until_stalled();
    assert!(matches!(bed.task.take(), Some(End::Ring(_))));
    bed.settle();
}

#[test]
fn grants_that_are_not_there_or_for_reading_only_are_errors() {
    let mut bed = Bed::new(Options::default());
    let pages = bed.guest.alloc(11);
    let read_only = whole(&grant_all(&bed, &pages, Access::Read));
    let mut missing = read_only.clone();
    missing[10].0 = GrantRef(0xffff_ffff);
    for segments in [&read_only[..1], &read_only[..]] {
        let id = bed.push(request(OP_READ, 0, segments));
        assert_eq!(bed.answer(id), RSP_ERROR);
    }
    for segments in [&missing[10..], &missing[..]] {
        let id = bed.push(request(OP_WRITE, 0, segments));
        assert_eq!(bed.answer(id), RSP_ERROR);
    }
    let id = bed.push_indirect(&indirect(OP_READ, 0, GrantRef(0xffff), 20));
    assert_eq!(bed.answer(id), RSP_ERROR);
    assert_eq!(bed.counters.snapshot().bad_requests, 5);
    bed.finish();
}

#[test]
fn copies_of_pages_that_xen_must_fetch_are_retried_within_bounds() {
    let mut bed = Bed::new(Options::default());
    let pages = bed.guest.alloc(1);
    let gref = bed.grant(&pages, 0, Access::Read);
    bed.exec.run_until_stalled();
    bed.grants.fail_next(3, GrantStatus::EAGAIN);
    let id = bed.push(request(OP_WRITE, 0, &[(gref, 0, 7)]));
    assert_eq!(bed.answer(id), RSP_OKAY);
    bed.grants.fail_next(1000, GrantStatus::EAGAIN);
    let id = bed.push(request(OP_WRITE, 0, &[(gref, 0, 7)]));
    assert_eq!(bed.answer(id), RSP_ERROR);
    assert!(bed.grants.counters().copy_calls < 20);
    bed.finish();
}

#[test]
fn descriptors_that_change_after_the_copy_change_nothing() {
    let mut bed = Bed::new(Options::default());
    let (data, table) = (bed.guest.alloc(20), bed.guest.alloc(1));
    fill(&data, 9);
    for n in 0..20 {
        let segment = Segment {
            gref: bed.grant(&data, n, Access::Read).0,
            first_sect: 0,
            last_sect: 7,
            pad: 0,
        };
        table.bytes.write_bytes(n * 8, segment.as_bytes());
    }
    let page = bed.grant(&table, 0, Access::Read);
    let id = bed.push_indirect(&indirect(OP_WRITE, 0, page, 20));
    bed.publish();
    while bed.grants.counters().copies == 0 {
        assert!(bed.exec.step());
    }
    table.bytes.write_bytes(0, &[0xff; 4096]);
    assert_eq!(bed.answer(id), RSP_OKAY);
    assert!(volume(&bed)[..20 * 4096] == bytes(&data));
    bed.finish();
}

#[test]
fn an_idle_device_holds_few_pages_and_sends_nothing() {
    let mut bed = Bed::new(Options::default());
    let pages = bed.guest.alloc(4);
    let refs = whole(&grant_all(&bed, &pages, Access::Write));
    for n in 0..32 {
        bed.push(request(OP_READ, n, &refs));
    }
    bed.settle();
    assert!(bed.dma.live_pages() <= 4);
    let sent = bed.port.received();
    bed.settle();
    assert_eq!(bed.port.received(), sent);
    assert!(!bed.exec.step() && !bed.exec.timer().jump());
    bed.finish();
}

#[test]
fn without_a_discarding_disk_discard_is_not_supported() {
    // The geometry is asked per request: a disk that lost the ability says so.
    let exec = xen_sim::Executor::new();
    let machine = xen_sim::Machine::new();
    let ram = guest::RamDisk::new(&exec, &machine, 64);
    let mut plain = ram.clone();
    plain.geometry.discard = false;
    let nodes = backend_blk::backend_nodes(&plain.geometry, false);
    assert!(
        !nodes
            .features
            .iter()
            .any(|(name, _)| *name == "feature-discard")
    );
    let nodes = backend_blk::backend_nodes(&ram.geometry, false);
    assert!(
        nodes
            .features
            .iter()
            .any(|(name, _)| *name == "feature-discard")
    );
    assert_eq!(RSP_EOPNOTSUPP, -2);
}

/// A table of descriptors for all pages of `data`.
fn table_for(bed: &Bed, data: &GuestPages) -> GrantRef {
    let table = bed.guest.alloc(1);
    for (n, gref) in grant_all(bed, data, Access::Write).iter().enumerate() {
        let segment = Segment {
            gref: gref.0,
            first_sect: 0,
            last_sect: 7,
            pad: 0,
        };
        table.bytes.write_bytes(n * 8, segment.as_bytes());
    }
    bed.grant(&table, 0, Access::Read)
}

#[test]
fn however_many_requests_a_ring_holds_few_pages_are_mapped_and_all_are_answered() {
    let mut bed = Bed::new(Options {
        ring_pages: 16,
        ..Options::default()
    });
    let data = bed.guest.alloc(256);
    let table = table_for(&bed, &data);
    // 512 requests of 256 pages: 131,072, half of what Xen lets dom0 map.
    assert_eq!(bed.front.size(), 512);
    let ids: Vec<_> = (0..512)
        .map(|_| bed.push_indirect(&indirect(OP_READ, 0, table, 256)))
        .collect();
    bed.publish();
    let mut most = 0;
    loop {
        while bed.exec.step() {
            most = most.max(bed.grants.live_mappings());
        }
        if !bed.exec.timer().jump() {
            break;
        }
    }
    assert_eq!(most, 1024);
    bed.settle();
    assert!(ids.iter().all(|id| bed.answers[id] == RSP_OKAY));
    bed.finish();
}

#[test]
fn a_disk_has_no_more_requests_at_work_than_its_share_of_the_queue() {
    let mut bed = Bed::new(Options {
        ring_pages: 16,
        ..Options::default()
    });
    let page = bed.guest.alloc(1);
    let gref = bed.grant(&page, 0, Access::Write);
    for n in 0..512 {
        bed.push(request(OP_READ, n, &[(gref, 0, 0)]));
    }
    bed.settle();
    assert_eq!(bed.ram.most_in_flight.get(), 32);
    assert_eq!(bed.answers.len(), 512);
    // The page count came back to nothing: large ones go on.
    let data = bed.guest.alloc(256);
    let table = table_for(&bed, &data);
    let id = bed.push_indirect(&indirect(OP_READ, 0, table, 256));
    assert_eq!(bed.answer(id), RSP_OKAY);
    bed.finish();
}

#[test]
fn when_all_disks_together_have_mapped_enough_requests_are_copied() {
    let mut bed = Bed::new(Options {
        maps: 300,
        ..Options::default()
    });
    let data = bed.guest.alloc(256);
    fill(&data, 4);
    let table = table_for(&bed, &data);
    let ids: Vec<_> = (0..8)
        .map(|_| bed.push_indirect(&indirect(OP_WRITE, 0, table, 256)))
        .collect();
    bed.settle();
    assert!(ids.iter().all(|id| bed.answers[id] == RSP_OKAY));
    assert!(volume(&bed)[..256 * 4096] == bytes(&data));
    // Some were mapped, one at a time; and the share came back, or the last would not be.
    let mapped = bed.grants.counters().maps;
    assert!(mapped.is_multiple_of(256) && (256..8 * 256).contains(&mapped));
    let id = bed.push_indirect(&indirect(OP_WRITE, 0, table, 256));
    assert_eq!(bed.answer(id), RSP_OKAY);
    assert_eq!(bed.grants.counters().maps, mapped + 256);
    bed.finish();
}

#[test]
fn without_any_more_memory_good_requests_are_served_slowly() {
    // No more than what a device keeps.
    let mut bed = Bed::new(Options {
        memory: 4,
        ..Options::default()
    });
    let (out, back) = (bed.guest.alloc(20), bed.guest.alloc(20));
    fill(&out, 6);
    let from = grant_all(&bed, &out, Access::Read);
    let to = grant_all(&bed, &back, Access::Write);
    // Small ones, one that needs a page for its table, and some that cannot be mapped.
    for gref in &from {
        bed.grants.refuse_map(*gref);
    }
    let mut ids = Vec::new();
    for first in [0, 4, 8] {
        let segments = whole(&from[first..first + 4]);
        ids.push(bed.push(request(OP_WRITE, first as u64 * 8, &segments)));
    }
    ids.push(bed.push(request(OP_WRITE, 12 * 8, &whole(&from[12..20]))));
    bed.settle();
    assert!(ids.iter().all(|id| bed.answers[id] == RSP_OKAY));
    assert!(volume(&bed)[..20 * 4096] == bytes(&out));
    let table = table_for(&bed, &back);
    let large = bed.push_indirect(&indirect(OP_READ, 0, table, 20));
    let small = bed.push(request(OP_READ, 0, &whole(&to[..4])));
    bed.settle();
    assert_eq!(
        (bed.answers[&large], bed.answers[&small]),
        (RSP_OKAY, RSP_OKAY)
    );
    assert!(bytes(&back) == bytes(&out));
    assert_eq!(bed.counters.snapshot().disk_errors, 0);
    bed.finish();
}

#[test]
fn a_disk_without_its_first_pages_is_not_served() {
    let mut bed = Bed::new(Options {
        memory: 3,
        ..Options::default()
    });
    bed.settle();
    assert_eq!(bed.task.take(), Some(End::NoMemory));
    assert_eq!((bed.dma.live_pages(), bed.grants.live_rings()), (0, 1));
}

#[test]
fn what_a_reset_of_the_disk_cut_off_is_done_again_once() {
    let mut bed = Bed::new(Options::default());
    let pages = bed.guest.alloc(11);
    fill(&pages, 8);
    let refs = whole(&grant_all(&bed, &pages, Access::Write));
    // Copied and mapped, written and read.
    for (count, operation) in [(1, OP_WRITE), (11, OP_WRITE), (1, OP_READ), (11, OP_READ)] {
        bed.ram.fail.set(Some((BlockError::Reset, 0)));
        let id = bed.push(request(operation, 0, &refs[..count]));
        assert_eq!(bed.answer(id), RSP_OKAY);
    }
    assert!(volume(&bed)[..11 * 4096] == bytes(&pages));
    assert_eq!(bed.counters.snapshot().retries, 4);
    // Reset again: the disk may be gone for good.
    bed.ram.fails_left.set(1);
    bed.ram.fail.set(Some((BlockError::Reset, 0)));
    let id = bed.push(request(OP_READ, 0, &refs[..1]));
    assert_eq!(bed.answer(id), RSP_ERROR);
    assert_eq!(bed.counters.snapshot().retries, 5);
    bed.finish();
}

#[test]
fn a_flush_that_a_reset_cut_off_is_done_before_the_guest_is_told_so() {
    let mut bed = Bed::new(Options::default());
    bed.ram.fail_flush.set(Some(BlockError::Reset));
    let id = bed.push(request(OP_FLUSH_DISKCACHE, 0, &[]));
    assert_eq!(bed.answer(id), RSP_OKAY);
    assert_eq!(bed.ram.flushes.get(), 1);
    assert_eq!(bed.counters.snapshot().retries, 1);
    bed.finish();
}

#[derive(Clone, Debug)]
enum Step {
    Transfer {
        write: bool,
        sector: u64,
        parts: Vec<(usize, u8, u8)>,
        indirect: bool,
    },
    Flush,
    Run,
}

fn step() -> impl Strategy<Value = Step> {
    let part = (0usize..64, 0u8..8, 0u8..8);
    prop_oneof![
        8 => (any::<bool>(), 0u64..2100, proptest::collection::vec(part, 1..24), any::<bool>()).prop_map(
            |(write, sector, parts, indirect)| {
                let take = if indirect { parts.len() } else { parts.len().min(11) };
                let parts = parts[..take].iter().map(|(page, a, b)| (*page, *a.min(b), *a.max(b))).collect();
                Step::Transfer { write, sector, parts, indirect }
            }
        ),
        1 => Just(Step::Flush),
        2 => Just(Step::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// One request at a time against a plain array, memory and disk both compared.
    #[test]
    fn random_requests_agree_with_a_model(
        steps in proptest::collection::vec(step(), 1..40),
        protocol in prop_oneof![Just(Protocol::X86_64), Just(Protocol::X86_32)],
    ) {
        let mut bed = Bed::new(Options { protocol, ..Options::default() });
        let memory = bed.guest.alloc(64);
        let table = bed.guest.alloc(1);
        let table_ref = bed.grant(&table, 0, Access::Read);
        fill(&memory, 42);
        let grefs = grant_all(&bed, &memory, Access::Write);
        let mut disk = volume(&bed);
        let mut ram = bytes(&memory);
        for step in steps {
            match step {
                Step::Run => bed.settle(),
                Step::Flush => {
                    let id = bed.push(request(OP_FLUSH_DISKCACHE, 0, &[]));
                    prop_assert_eq!(bed.answer(id), RSP_OKAY);
                }
                Step::Transfer { write, sector, parts, indirect: through_table } => {
                    let sectors: u64 = parts.iter().map(|(_, a, b)| u64::from(b - a + 1)).sum();
                    let fits = sector + sectors <= 2048;
                    let operation = if write { OP_WRITE } else { OP_READ };
                    let id = if through_table {
                        for (n, (page, a, b)) in parts.iter().enumerate() {
                            let segment = Segment { gref: grefs[*page].0, first_sect: *a, last_sect: *b, pad: 0 };
                            table.bytes.write_bytes(n * 8, segment.as_bytes());
                        }
                        bed.push_indirect(&indirect(operation, sector, table_ref, parts.len() as u16))
                    } else {
                        let segments: Vec<_> = parts.iter().map(|(page, a, b)| (grefs[*page], *a, *b)).collect();
                        bed.push(request(operation, sector, &segments))
                    };
                    prop_assert_eq!(bed.answer(id), if fits { RSP_OKAY } else { RSP_ERROR });
                    if fits {
                        let mut at = sector as usize * 512;
                        for (page, a, b) in parts {
                            let (start, len) = (page * 4096 + usize::from(a) * 512, usize::from(b - a + 1) * 512);
                            if write {
                                disk[at..at + len].copy_from_slice(&ram[start..start + len]);
                            } else {
                                ram[start..start + len].copy_from_slice(&disk[at..at + len]);
                            }
                            at += len;
                        }
                    }
                    prop_assert!(bytes(&memory) == ram);
                    prop_assert!(volume(&bed) == disk);
                }
            }
        }
        bed.finish();
    }

    /// Any bytes in the slots: every request gets one answer, nothing else is touched,
    /// and the backend ends in order.
    #[test]
    fn garbage_in_the_ring_is_answered(
        slots in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 112), 1..32),
        plausible in any::<bool>(),
    ) {
        let mut bed = Bed::new(Options::default());
        let memory = bed.guest.alloc(8);
        // Not the ring's own page, granted before: read into, it is a broken ring.
        let first = grant_all(&bed, &memory, Access::Write)[0].0;
        let count = slots.len();
        for slot in slots {
            let mut raw = <xen_abi::io::blkif::Request as zerocopy::FromBytes>::read_from_bytes(&slot).unwrap();
            if plausible {
                raw.operation %= 8;
                raw.nr_segments %= 13;
                raw.sector_number %= 3000;
                for segment in &mut raw.seg {
                    segment.gref = first + segment.gref % 16;
                    segment.first_sect %= 9;
                    segment.last_sect %= 9;
                }
            }
            bed.push(raw);
        }
        bed.settle();
        prop_assert_eq!(bed.answers.len(), count);
        bed.finish();
    }
}
