//! Long frames between guests: copied once, and nobody's ring waits for somebody else.
#![allow(
    clippy::cast_possible_truncation,
    reason = "made-up test data and lengths"
)]

mod common;

use backend_net::Limits;
use common::{Bed, Guest, LINUX, Tcp, mac, pattern, raw, tcp};
use hal::VcpuId;
use hal::net::MacAddr;
use xen_abi::io::netif::{TxRequest, TxSlot, gso_type, rsp, txf};
use xen_sim::Sending;

/// Bytes that are always copied into memory of ours.
const HEAD: usize = backend_net::direct::HEAD;

fn received(guest: &mut Guest) -> Vec<Vec<u8>> {
    let frames = guest.front.recv().into_iter();
    frames.map(|frame| frame.bytes).collect()
}

fn pair() -> (Bed, Guest, Guest) {
    let bed = Bed::new();
    let a = bed.guest(1, LINUX, 0);
    let b = bed.guest(2, LINUX, u32::MAX - 20);
    (bed, a, b)
}

fn long(from: MacAddr, to: MacAddr, seed: u32) -> Vec<u8> {
    raw(from, to, &pattern(seed, 60_000))
}

#[test]
fn only_the_head_of_a_long_frame_is_ever_in_memory_of_ours() {
    let (bed, mut a, mut b) = pair();
    for n in 0..30 {
        let frame = long(a.mac, b.mac, n);
        b.front.post_rx(64);
        a.front.send(&frame, &Sending::default());
        bed.run();
        assert_eq!(b.front.recv()[0].bytes, frame);
        a.front.collect_tx();
        assert_eq!(a.front.tx_unanswered(), 0);
    }
    // One page each for the head; nothing for the 15 pages of the rest.
    assert_eq!(bed.pool.usage().allocated, 1);
    let (a, b) = (a.counters.snapshot(), b.counters.snapshot());
    assert_eq!((a.copy_calls, a.copy_ops), (30, 30));
    assert_eq!((b.rx_frames, b.copy_calls), (30, 30));
    bed.assert_no_memory_held();
}

#[test]
fn a_sender_is_answered_only_once_its_pages_are_free() {
    let (bed, mut a, mut b) = pair();
    b.front.post_rx(64);
    bed.run();
    let frame = long(a.mac, b.mac, 1);
    a.front.send(&frame, &Sending::default());
    // The sender's task alone: its frame is in the other's inbox.
    assert!(bed.executor.step());
    assert_eq!(a.counters.snapshot().tx_frames, 1);
    a.front.collect_tx();
    assert!(a.front.tx_unanswered() > 0);
    bed.run();
    assert_eq!(b.front.recv()[0].bytes, frame);
    a.front.collect_tx();
    assert_eq!(a.front.tx_unanswered(), 0);
}

#[test]
fn what_a_sender_changes_later_does_not_change_the_headers() {
    let (bed, mut a, mut b) = pair();
    b.front.post_rx(64);
    bed.run();
    let frame = long(a.mac, b.mac, 1);
    a.front.send(&frame, &Sending::default());
    assert!(bed.executor.step());
    a.front.scribble(0xee);
    bed.run();
    let got = &b.front.recv()[0].bytes;
    assert_eq!(got[..HEAD], frame[..HEAD]);
    // That it was in time shows that the rest is what the pages held at the copy.
    assert!(got[HEAD..].iter().all(|byte| *byte == 0xee));
}

#[test]
fn a_receiver_without_buffers_holds_no_sender_up() {
    let (bed, mut a, mut b) = pair();
    let mut frames = Vec::new();
    for n in 0..5 {
        let frame = long(a.mac, b.mac, n);
        a.front.send(&frame, &Sending::default());
        bed.run();
        a.front.collect_tx();
        assert_eq!(a.front.tx_unanswered(), 0, "frame {n}");
        frames.push(frame);
    }
    // They are not lost, if buffers come in time.
    b.front.post_rx(200);
    bed.run();
    let got = received(&mut b);
    assert!(got == frames);
    bed.assert_no_memory_held();

    // And then it takes frames from where they are again.
    let copies = a.counters.snapshot().copy_ops;
    b.front.post_rx(64);
    let frame = long(a.mac, b.mac, 9);
    a.front.send(&frame, &Sending::default());
    bed.run();
    assert_eq!(b.front.recv()[0].bytes, frame);
    assert_eq!(a.counters.snapshot().copy_ops, copies + 1);
}

#[test]
fn a_receiver_that_never_posts_buffers_loses_them() {
    let (bed, mut a, b) = pair();
    for n in 0..5 {
        a.front.send(&long(a.mac, b.mac, n), &Sending::default());
        bed.run();
    }
    bed.executor.timer().advance(1_000_000_000);
    bed.run();
    assert_eq!(b.counters.snapshot().rx_dropped, 5);
    bed.assert_no_memory_held();
    a.front.collect_tx();
    assert_eq!(a.front.tx_unanswered(), 0);
}

#[test]
fn frames_that_waited_for_buffers_in_vain_leave_room_for_others() {
    const FRAMES: u32 = 10;
    const ROUNDS: u32 = 20;
    let (bed, mut a, mut b) = pair();
    let frames: Vec<_> = (0..FRAMES).map(|n| long(a.mac, b.mac, n)).collect();
    // Each time it brings home some of them, in all more than its inbox may hold.
    for round in 1..=ROUNDS {
        // For the first frame.
        b.front.post_rx(15);
        bed.run();
        for frame in &frames {
            a.front.send(frame, &Sending::default());
        }
        bed.run();
        a.front.collect_tx();
        assert_eq!(b.front.recv()[0].bytes, frames[0]);
        if round < ROUNDS {
            bed.executor.timer().advance(1_000_000_000);
            bed.run();
            let dropped = b.counters.snapshot().rx_dropped;
            assert_eq!(dropped, u64::from(round * (FRAMES - 1)));
            bed.assert_no_memory_held();
        }
    }
    b.front.post_rx(200);
    bed.run();
    let got = received(&mut b);
    assert!(got == frames[1..]);
}

#[test]
fn without_memory_a_waiting_frame_is_lost_rather_than_held() {
    let (bed, mut a, b) = pair();
    let mut taken = Vec::new();
    // Enough for the sender to go on, too little for a whole frame once it has.
    while bed.pool.available() > 16 {
        taken.extend(bed.pool.get());
    }
    a.front
        .send(&raw(a.mac, b.mac, &pattern(1, 65_000)), &Sending::default());
    bed.run();
    a.front.collect_tx();
    assert_eq!(a.front.tx_unanswered(), 0);
    assert_eq!(b.counters.snapshot().rx_dropped, 1);
}

#[test]
fn pages_that_are_not_there_cost_the_frame_only() {
    let (bed, mut a, mut b) = pair();
    b.front.post_rx(64);
    // A good head, and 11 KiB of a page that was never granted.
    let start = raw(a.mac, b.mac, &pattern(1, 1000));
    let page = a.front.guest().alloc(1);
    page.bytes.write_bytes(0, &start);
    let gref = a
        .front
        .guest()
        .grant(page.mfns[0], xen_ring::peer::Access::Read);
    let slot = |gref: u32, more, id, size| {
        TxSlot::from(TxRequest {
            gref,
            offset: 0,
            flags: if more { txf::MORE_DATA } else { 0 },
            id,
            size,
        })
    };
    let ring = a.front.tx_ring_mut();
    ring.push_request(&slot(gref.0, true, 60_000, 1000 + 3 * 4000));
    for n in 1..4 {
        ring.push_request(&slot(4_000_000, n < 3, 60_000 + n, 4000));
    }
    a.front.publish_tx();
    bed.run();
    assert!(b.front.recv().is_empty());
    assert_eq!(b.counters.snapshot().rx_errors, 1);
    for _ in 0..4 {
        assert_eq!(a.front.next_status(), Some(rsp::ERROR));
    }
    let frame = long(a.mac, b.mac, 2);
    a.front.send(&frame, &Sending::default());
    bed.run();
    assert_eq!(b.front.recv()[0].bytes, frame);
}

#[test]
fn long_and_short_frames_keep_their_order() {
    let (bed, mut a, mut b) = pair();
    let mut sent = Vec::new();
    b.front.post_rx(250);
    for n in 0..20 {
        let len = if n % 2 == 0 { 20_000 } else { 100 };
        let frame = raw(a.mac, b.mac, &pattern(n, len));
        a.front.send(&frame, &Sending::default());
        sent.push(frame);
    }
    bed.run();
    let got = received(&mut b);
    assert!(got == sent);
}

#[test]
fn guests_that_end_with_pages_of_each_other_do_not_wait_for_ever() {
    let (bed, mut a, mut b) = pair();
    for n in 0..4 {
        a.front.send(&long(a.mac, b.mac, n), &Sending::default());
        b.front.send(&long(b.mac, a.mac, n), &Sending::default());
    }
    // Both have handed frames over, and none has looked at its own inbox yet.
    assert!(bed.executor.step() && bed.executor.step());
    a.stopper.stop();
    b.stopper.stop();
    bed.run();
    assert_eq!(a.task.take(), Some(Ok(())));
    assert_eq!(b.task.take(), Some(Ok(())));
    a.grants.assert_nothing_left();
    b.grants.assert_nothing_left();
    bed.assert_no_memory_held();
    // Every slot was answered before the rings went.
    a.front.collect_tx();
    b.front.collect_tx();
    assert_eq!((a.front.tx_unanswered(), b.front.tx_unanswered()), (0, 0));
}

#[test]
fn a_frame_for_a_receiver_that_went_is_answered() {
    let (bed, mut a, b) = pair();
    a.front.send(&long(a.mac, b.mac, 1), &Sending::default());
    assert!(bed.executor.step());
    b.task.cancel();
    bed.run();
    a.front.collect_tx();
    assert_eq!(a.front.tx_unanswered(), 0);
    assert_eq!(bed.switch.addresses(), [mac(1)]);
    bed.assert_no_memory_held();
}

#[test]
fn a_long_frame_for_the_wire_is_copied_whole() {
    let bed = Bed::new();
    let mut a = bed.guest(1, LINUX, 0);
    let wire = bed.switch.add_uplink(VcpuId(0), Limits::UPLINK).unwrap();
    let payload = pattern(3, 30_000);
    let kind = Tcp {
        v6: false,
        flags: 0,
        options: true,
    };
    let frame = tcp(a.mac, mac(2), kind, &payload);
    let how = Sending {
        flags: txf::CSUM_BLANK,
        gso: Some((1448, gso_type::TCPV4)),
        ..Sending::default()
    };
    a.front.send(&frame, &how);
    bed.run();
    let whole = wire.inbox().pop().unwrap();
    let mut bytes = vec![0; whole.len()];
    whole.read(0, &mut bytes);
    assert!(bytes.ends_with(&payload));
    assert_eq!(a.counters.snapshot().copy_calls, 2);
}

#[test]
fn a_long_frame_without_its_own_source_address_goes_nowhere() {
    let (bed, mut a, mut b) = pair();
    b.front.post_rx(64);
    a.front.send(&long(mac(9), b.mac, 1), &Sending::default());
    bed.run();
    assert!(b.front.recv().is_empty());
    assert_eq!(a.counters.snapshot().tx_spoofed, 1);
}

#[test]
fn what_follows_the_packet_of_a_long_frame_is_cut_off() {
    let (bed, mut a, mut b) = pair();
    let kind = Tcp {
        v6: false,
        flags: 0,
        options: true,
    };
    let good = tcp(a.mac, b.mac, kind, &pattern(1, 30_000));
    let padded = [&good[..], &[0xee; 500]].concat();
    let how = Sending {
        flags: txf::CSUM_BLANK,
        gso: Some((1448, gso_type::TCPV4)),
        ..Sending::default()
    };
    b.front.post_rx(64);
    a.front.send(&padded, &how);
    bed.run();
    assert!(b.front.recv()[0].bytes == good);
}

#[test]
fn a_guest_does_not_hear_its_own_long_frame() {
    let (bed, mut a, _b) = pair();
    a.front.post_rx(64);
    a.front.send(&long(a.mac, a.mac, 1), &Sending::default());
    bed.run();
    assert_eq!(a.front.recv().len(), 0);
}
