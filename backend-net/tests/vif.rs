//! Frontends and backends joined in one process, over strict grants and events.
#![allow(
    clippy::cast_possible_truncation,
    reason = "made-up test data and lengths"
)]

mod common;

use common::{Bed, Guest, LINUX, PLAIN, Tcp, checked_tcp, mac, pattern, raw, tcp};
use hal::net::MacAddr;
use xen_abi::GrantRef;
use xen_abi::io::netif::{TxRequest, TxSlot, gso_type, rsp, rxf, txf};
use xen_sim::Sending;

const V4: Tcp = Tcp {
    v6: false,
    flags: 0x08,
    options: true,
};

fn pair(start: u32) -> (Bed, Guest, Guest) {
    let bed = Bed::new();
    let a = bed.guest(1, LINUX, start);
    let b = bed.guest(2, LINUX, start);
    (bed, a, b)
}

/// Marks the checksum as blank, as Linux does: the field holds anything.
fn blank(frame: &mut [u8], v6: bool) {
    let at = if v6 { 14 + 40 } else { 14 + 20 } + 16;
    frame[at..at + 2].copy_from_slice(&[0xab, 0xcd]);
}

#[test]
fn frames_of_all_sizes_arrive_whole_wherever_the_ring_wraps() {
    for start in [0, u32::MAX - 100] {
        let (bed, mut a, mut b) = pair(start);
        // Around the page size, the MTU, and the longest that there is.
        for (n, len) in [1, 46, 1486, 4081, 4082, 4083, 8178, 9000, 40_000, 65_521]
            .into_iter()
            .cycle()
            .take(60)
            .enumerate()
        {
            let frame = raw(a.mac, b.mac, &pattern(n as u32, len));
            b.front.post_rx(32);
            a.front.send(&frame, &Sending::default());
            bed.run();
            assert_eq!(a.front.next_status(), Some(rsp::OKAY));
            while a.front.next_status().is_some() {}
            assert_eq!(a.front.tx_unanswered(), 0);
            let got = b.front.recv();
            assert_eq!(got.len(), 1, "frame of {len} bytes");
            assert!(got[0].bytes == frame, "frame of {len} bytes differs");
            assert_eq!(got[0].flags & (rxf::CSUM_BLANK | rxf::DATA_VALIDATED), 0);
        }
        assert_eq!(b.counters.snapshot().rx_frames, 60);
        bed.assert_no_memory_held();
    }
}

#[test]
fn frames_spread_over_slots_in_any_way_arrive_whole() {
    let (bed, mut a, mut b) = pair(7);
    let layouts: [&[usize]; 5] = [&[1], &[14, 20, 1], &[4096, 1, 4096], &[100], &[2000, 4000]];
    for (n, sizes) in layouts.into_iter().enumerate() {
        // At most 18 slots.
        let len = sizes.iter().sum::<usize>() + sizes[sizes.len() - 1] * (17 - sizes.len()) + 1;
        let frame = raw(a.mac, b.mac, &pattern(n as u32, len.clamp(15, 65_535) - 14));
        b.front.post_rx(32);
        let how = Sending {
            slot_sizes: sizes.to_vec(),
            ..Sending::default()
        };
        a.front.send(&frame, &how);
        bed.run();
        let got = b.front.recv();
        assert_eq!(got.len(), 1, "{sizes:?}: {:?}", a.counters.snapshot());
        assert_eq!(got[0].bytes, frame);
        a.front.collect_tx();
        assert_eq!(a.front.tx_unanswered(), 0);
    }
}

#[test]
fn a_batch_is_copied_in_one_hypercall() {
    let (bed, mut a, mut b) = pair(0);
    b.front.post_rx(64);
    for n in 0..20 {
        let frame = raw(a.mac, b.mac, &pattern(n, 1486));
        a.front.send(&frame, &Sending::default());
    }
    let before = (
        a.grants.counters().copy_calls,
        b.grants.counters().copy_calls,
    );
    bed.run();
    assert_eq!(b.front.recv().len(), 20);
    let after = (
        a.grants.counters().copy_calls,
        b.grants.counters().copy_calls,
    );
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 1));
}

#[test]
fn a_long_tcp_frame_stays_whole_for_a_guest_that_takes_it() {
    let (bed, mut a, mut b) = pair(0);
    for (v6, kind) in [(false, gso_type::TCPV4), (true, gso_type::TCPV6)] {
        for len in [2000, 4000, 4042, 65_000] {
            let mut frame = tcp(a.mac, b.mac, Tcp { v6, ..V4 }, &pattern(9, len));
            blank(&mut frame, v6);
            b.front.post_rx(32);
            let how = Sending {
                flags: txf::CSUM_BLANK | txf::DATA_VALIDATED,
                gso: Some((1448, kind)),
                ..Sending::default()
            };
            a.front.send(&frame, &how);
            bed.run();
            let got = b.front.recv();
            assert_eq!(got.len(), 1, "{len} {:?}", a.counters.snapshot());
            assert_eq!(got[0].gso, Some((1448, kind)));
            assert_ne!(got[0].flags & rxf::CSUM_BLANK, 0);
            assert_eq!(got[0].bytes, frame);
            a.front.collect_tx();
            assert_eq!(a.front.tx_unanswered(), 0);
        }
    }
}

#[test]
fn a_plain_guest_gets_segments_with_right_checksums() {
    let bed = Bed::new();
    let mut a = bed.guest(1, LINUX, 0);
    let mut b = bed.guest(2, PLAIN, 0);
    for v6 in [false, true] {
        let payload = pattern(3, 60_000);
        let kind = Tcp {
            v6,
            flags: 0x89,
            options: true,
        };
        let mut frame = tcp(a.mac, b.mac, kind, &payload);
        blank(&mut frame, v6);
        let how = Sending {
            flags: txf::CSUM_BLANK | txf::DATA_VALIDATED,
            gso: Some((1448, if v6 { gso_type::TCPV6 } else { gso_type::TCPV4 })),
            ..Sending::default()
        };
        b.front.post_rx(200);
        a.front.send(&frame, &how);
        bed.run();
        let got = b.front.recv();
        assert_eq!(got.len(), payload.len().div_ceil(1448));
        let mut whole = Vec::new();
        for (n, segment) in got.iter().enumerate() {
            assert_eq!(segment.gso, None);
            assert_eq!(segment.flags, rxf::DATA_VALIDATED);
            let (header, part) = checked_tcp(&segment.bytes);
            let at = 0xffff_f000_u32.wrapping_add(whole.len() as u32);
            assert_eq!(header.sequence_number, at);
            assert_eq!(header.cwr, n == 0);
            assert_eq!(
                (header.fin, header.psh),
                (n + 1 == got.len(), n + 1 == got.len())
            );
            whole.extend(part);
        }
        assert_eq!(whole, payload);
    }
    bed.assert_no_memory_held();
}

#[test]
fn a_blank_checksum_is_filled_in_for_a_guest_without_offload() {
    let bed = Bed::new();
    let mut a = bed.guest(1, LINUX, 0);
    let mut b = bed.guest(2, PLAIN, 0);
    for v6 in [false, true] {
        for len in [0, 1, 2, 1447, 1448] {
            let good = tcp(a.mac, b.mac, Tcp { v6, ..V4 }, &pattern(len as u32, len));
            let mut sent = good.clone();
            blank(&mut sent, v6);
            let how = Sending {
                flags: txf::CSUM_BLANK | txf::DATA_VALIDATED,
                ..Sending::default()
            };
            b.front.post_rx(8);
            a.front.send(&sent, &how);
            bed.run();
            assert_eq!(b.front.recv()[0].bytes, good);
        }
    }
}

#[test]
fn a_frame_without_its_own_source_address_goes_nowhere() {
    let (bed, mut a, mut b) = pair(0);
    b.front.post_rx(8);
    let forged = raw(mac(9), b.mac, &pattern(1, 100));
    a.front.send(&forged, &Sending::default());
    bed.run();
    assert!(b.front.recv().is_empty());
    assert_eq!(a.counters.snapshot().tx_spoofed, 1);
    // It is answered like any other.
    assert_eq!(a.front.next_status(), Some(rsp::OKAY));
}

#[test]
fn broadcast_reaches_all_but_the_sender() {
    let (bed, mut a, mut b) = pair(0);
    let mut c = bed.guest(3, LINUX, 0);
    for guest in [&mut a, &mut b, &mut c] {
        guest.front.post_rx(8);
    }
    let frame = raw(a.mac, MacAddr::BROADCAST, &pattern(1, 100));
    a.front.send(&frame, &Sending::default());
    bed.run();
    assert!(a.front.recv().is_empty());
    assert_eq!(b.front.recv()[0].bytes, frame);
    assert_eq!(c.front.recv()[0].bytes, frame);
    bed.assert_no_memory_held();
}

#[test]
fn a_guest_that_posts_no_buffers_loses_only_its_own_frames() {
    let (bed, mut a, mut b) = pair(0);
    let mut c = bed.guest(3, LINUX, 0);
    c.front.post_rx(100);
    for n in 0..300 {
        let target = if n % 3 == 0 { c.mac } else { b.mac };
        let frame = raw(a.mac, target, &pattern(n, 1486));
        a.front.send(&frame, &Sending::default());
        bed.run();
        a.front.collect_tx();
        assert_eq!(a.front.tx_unanswered(), 0, "the sender is not held up");
    }
    assert_eq!(c.front.recv().len(), 100);
    let held = bed.pool.usage();
    assert!(held.allocated - held.free <= 256);

    // After a second what waits is dropped, and nothing more is kept for it.
    bed.executor.timer().advance(1_000_000_000);
    bed.run();
    bed.assert_no_memory_held();
    let frame = raw(a.mac, b.mac, &pattern(1, 1486));
    a.front.send(&frame, &Sending::default());
    bed.run();
    bed.assert_no_memory_held();
    assert_eq!(b.counters.snapshot().rx_dropped, 200);

    // Once it posts buffers it is served again.
    b.front.post_rx(8);
    bed.run();
    a.front.send(&frame, &Sending::default());
    bed.run();
    assert_eq!(b.front.recv()[0].bytes, frame);
}

#[test]
fn a_sender_waits_in_its_ring_while_packet_memory_is_short() {
    let (bed, mut a, mut b) = pair(0);
    let mut taken = Vec::new();
    while let Some(buffer) = bed.pool.get() {
        taken.push(buffer);
    }
    b.front.post_rx(8);
    let frame = raw(a.mac, b.mac, &pattern(1, 1486));
    a.front.send(&frame, &Sending::default());
    bed.run();
    a.front.collect_tx();
    assert_eq!(a.front.tx_unanswered(), 1);
    drop(taken);
    bed.run();
    assert_eq!(b.front.recv()[0].bytes, frame);
}

#[test]
fn a_bad_grant_costs_its_own_frame_only() {
    let (bed, mut a, mut b) = pair(0);
    b.front.post_rx(8);
    a.front.tx_ring_mut().push_request(&TxSlot::from(TxRequest {
        gref: 4_000_000,
        offset: 0,
        flags: 0,
        id: 60_000,
        size: 100,
    }));
    let frame = raw(a.mac, b.mac, &pattern(1, 100));
    a.front.send(&frame, &Sending::default());
    bed.run();
    assert_eq!(a.front.next_status(), Some(rsp::ERROR));
    assert_eq!(a.front.next_status(), Some(rsp::OKAY));
    assert_eq!(b.front.recv()[0].bytes, frame);
}

#[test]
fn a_bad_receive_grant_costs_its_own_frame_only() {
    let (bed, mut a, mut b) = pair(0);
    b.front.post_rx_raw(GrantRef(4_000_000), None);
    b.front.publish_rx();
    b.front.post_rx(8);
    for n in 0..2 {
        let frame = raw(a.mac, b.mac, &pattern(n, 100));
        a.front.send(&frame, &Sending::default());
    }
    bed.run();
    let got = b.front.recv();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].bytes, raw(a.mac, b.mac, &pattern(1, 100)));
    assert_eq!(b.counters.snapshot().rx_errors, 1);
}

#[test]
fn a_broken_ring_ends_its_own_device_only() {
    let (bed, mut a, mut b) = pair(0);
    let mut c = bed.guest(3, LINUX, 0);
    a.front.tx_ring_mut().forge_req_prod(1000);
    a.front.notify();
    bed.run();
    assert!(a.task.take().unwrap().is_err());
    a.grants.assert_nothing_left();
    c.front.post_rx(4);
    let frame = raw(b.mac, c.mac, &pattern(1, 100));
    b.front.send(&frame, &Sending::default());
    bed.run();
    assert_eq!(c.front.recv()[0].bytes, frame);
    // The dead device's address is free again.
    let again = bed.guest(1, LINUX, 0);
    assert!(again.task.take().is_none());
    b.front.collect_tx();
}

#[test]
fn slots_of_a_wasteful_frame_are_refused_and_of_a_broken_one_end_the_device() {
    for (slots, good, fatal) in [
        (18, true, false),
        (19, false, false),
        (20, false, false),
        (21, false, true),
    ] {
        let (bed, mut a, mut b) = pair(0);
        b.front.post_rx(8);
        let frame = raw(a.mac, b.mac, &pattern(1, 10 * slots - 14));
        let how = Sending {
            slot_sizes: vec![10; slots],
            ..Sending::default()
        };
        a.front.send(&frame, &how);
        bed.run();
        assert_eq!(b.front.recv().len(), usize::from(good), "{slots}");
        let status = if good { rsp::OKAY } else { rsp::ERROR };
        assert_eq!(a.front.next_status(), (!fatal).then_some(status), "{slots}");
        assert_eq!(
            a.task.take().is_some_and(|end| end.is_err()),
            fatal,
            "{slots}"
        );
    }
}

#[test]
fn what_the_protocol_forbids_ends_the_device() {
    let good = TxRequest {
        gref: 8,
        offset: 0,
        flags: 0,
        id: 0,
        size: 100,
    };
    let broken = [
        TxRequest {
            offset: 4000,
            ..good
        },
        TxRequest {
            flags: txf::MORE_DATA,
            ..good
        },
        TxRequest {
            flags: txf::EXTRA_INFO,
            ..good
        },
    ];
    for request in broken {
        let (bed, mut a, _b) = pair(0);
        a.front.tx_ring_mut().push_request(&request.into());
        a.front.publish_tx();
        bed.run();
        assert!(a.task.take().unwrap().is_err(), "{request:?}");
    }
}

#[test]
fn offloads_that_do_not_fit_the_frame_are_refused() {
    let (bed, mut a, b) = pair(0);
    let blank_only = Sending {
        flags: txf::CSUM_BLANK,
        ..Sending::default()
    };
    let gso = |mss, kind| Sending {
        flags: txf::CSUM_BLANK,
        gso: Some((mss, kind)),
        ..Sending::default()
    };
    let tcp4 = tcp(a.mac, b.mac, V4, &pattern(1, 3000));
    let cases = [
        (raw(a.mac, b.mac, &pattern(1, 100)), blank_only),
        (tcp4.clone(), gso(1448, gso_type::TCPV6)),
        // Thousands of segments from one frame.
        (tcp4, gso(1, gso_type::TCPV4)),
    ];
    for (frame, how) in cases {
        a.front.send(&frame, &how);
        bed.run();
        assert_eq!(a.front.next_status(), Some(rsp::ERROR));
        while a.front.next_status().is_some() {}
    }
    assert_eq!(a.counters.snapshot().tx_errors, 3);
    bed.assert_no_memory_held();
}

#[test]
fn stopping_leaves_nothing_behind() {
    let (bed, mut a, b) = pair(0);
    // Frames on their way to a guest without buffers.
    for n in 0..5 {
        let frame = raw(a.mac, b.mac, &pattern(n, 1486));
        a.front.send(&frame, &Sending::default());
    }
    bed.run();
    a.stopper.stop();
    b.stopper.stop();
    bed.run();
    assert_eq!(a.task.take(), Some(Ok(())));
    assert_eq!(b.task.take(), Some(Ok(())));
    a.grants.assert_nothing_left();
    b.grants.assert_nothing_left();
    bed.assert_no_memory_held();
    assert!(bed.switch.addresses().is_empty());
    let Bed {
        allocator,
        pool,
        executor,
        ..
    } = bed;
    drop((executor, pool));
    assert_eq!(allocator.live_pages(), 0);
}

#[test]
fn frames_that_an_inbox_refused_are_counted_with_its_device() {
    let (bed, mut a, b) = pair(0);
    for n in 0..300 {
        a.front.collect_tx();
        let frame = raw(a.mac, b.mac, &pattern(n, 100));
        a.front.send(&frame, &Sending::default());
        bed.run();
    }
    b.stopper.stop();
    bed.run();
    let refused = b.counters.snapshot().rx_refused;
    assert!(refused > 0);
    assert_eq!(refused, a.counters.snapshot().tx_dropped);
}

#[test]
fn an_idle_device_does_nothing() {
    let (bed, mut a, mut b) = pair(0);
    b.front.post_rx(8);
    a.front
        .send(&raw(a.mac, b.mac, &pattern(1, 100)), &Sending::default());
    bed.run();
    let before = (a.counters.snapshot().polls, b.counters.snapshot().polls);
    bed.executor.timer().advance(3_600_000_000_000);
    bed.run();
    let after = (a.counters.snapshot().polls, b.counters.snapshot().polls);
    assert_eq!(before, after);
    assert!(!bed.executor.timer().jump(), "an alarm is set");
}
