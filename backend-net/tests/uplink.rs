//! The uplink's task between the switch and a NIC that can do more or less.
#![allow(
    clippy::cast_possible_truncation,
    reason = "made-up test data and lengths"
)]

mod common;

use backend_net::headers::{PREFIX, Sum, parse};
use backend_net::switch::{Source, Verdict};
use backend_net::uplink::{Counters, Uplink, serve};
use backend_net::{Limits, Stopper, Switch, stop_pair};
use common::{Bed, Guest, LINUX, Tcp, checked_tcp, mac, pattern, raw, tcp};
use hal::net::{Checksum, Frame, Layout, MAX_PARTS, MacAddr, NetQueue, Offloads};
use hal::{Node, VcpuId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use xen_abi::io::netif::{gso_type, rxf, txf};
use xen_sim::Sending;

const OUTSIDE: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);

const ALL: Offloads = Offloads {
    rx_checksum: true,
    tx_checksum_v4: true,
    tx_checksum_v6: true,
    tso_v4: true,
    tso_v6: true,
    max_parts: MAX_PARTS,
};

/// The wire end of a fake NIC.
#[derive(Default)]
struct Wire {
    unplugged: bool,
    restarts: usize,
    room: usize,
    ring: Vec<Frame>,
    sent: Vec<Sent>,
    incoming: VecDeque<Frame>,
    waker: Option<Waker>,
}

/// A frame as the NIC was given it.
struct Sent {
    bytes: Vec<u8>,
    checksum: Checksum,
    mss: Option<u16>,
}

#[derive(Clone)]
struct Nic(Rc<RefCell<Wire>>, Offloads);

impl Nic {
    /// Sends what is in the ring, which makes room for as much.
    fn drain(&self) {
        self.drain_some(usize::MAX);
    }

    fn drain_some(&self, most: usize) {
        let mut wire = self.0.borrow_mut();
        let count = wire.ring.len().min(most);
        let gone: Vec<Frame> = wire.ring.drain(..count).collect();
        for frame in gone {
            let mut bytes = vec![0; frame.len()];
            frame.read(0, &mut bytes);
            wire.room += 1;
            wire.sent.push(Sent {
                bytes,
                checksum: frame.checksum,
                mss: frame.mss.map(std::num::NonZero::get),
            });
        }
        if let Some(waker) = wire.waker.take() {
            waker.wake();
        }
    }

    fn arrive(&self, frame: Frame) {
        let mut wire = self.0.borrow_mut();
        wire.incoming.push_back(frame);
        if let Some(waker) = wire.waker.take() {
            waker.wake();
        }
    }

    /// Pulls the cable, or plugs it in.
    fn plug(&self, plugged: bool) {
        let mut wire = self.0.borrow_mut();
        wire.unplugged = !plugged;
        if let Some(waker) = wire.waker.take() {
            waker.wake();
        }
    }

    fn take_sent(&self) -> Vec<Sent> {
        self.drain();
        std::mem::take(&mut self.0.borrow_mut().sent)
    }
}

impl NetQueue for Nic {
    fn has_carrier(&self) -> bool {
        !self.0.borrow().unplugged
    }
    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        assert!(self.1.can_send(&frame), "more than the NIC can do");
        assert!(frame.len() >= 60, "shorter than a wire takes");
        let mut wire = self.0.borrow_mut();
        assert!(!wire.unplugged, "the device would keep it");
        if wire.room == 0 {
            return Err(frame);
        }
        wire.room -= 1;
        wire.ring.push(frame);
        Ok(())
    }
    fn kick(&mut self) {}
    fn reclaim(&mut self) -> usize {
        let mut wire = self.0.borrow_mut();
        if wire.unplugged {
            wire.room += wire.ring.len();
            wire.ring.clear();
        }
        wire.ring.len()
    }
    fn restart_tx(&mut self) {
        let mut wire = self.0.borrow_mut();
        wire.restarts += 1;
        wire.room += wire.ring.len();
        wire.ring.clear();
    }
    fn has_room(&self) -> bool {
        self.0.borrow().room > 0
    }
    fn recv(&mut self) -> Option<Frame> {
        self.0.borrow_mut().incoming.pop_front()
    }
    fn refill(&mut self) -> usize {
        0
    }
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut wire = self.0.borrow_mut();
        wire.waker = Some(cx.waker().clone());
        if wire.incoming.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

struct Outside {
    nic: Nic,
    counters: Arc<Counters>,
    _stopper: Stopper,
}

fn attach(bed: &Bed, offloads: Offloads, room: usize) -> Outside {
    let nic = Nic(
        Rc::new(RefCell::new(Wire {
            room,
            ..Wire::default()
        })),
        offloads,
    );
    let counters = Arc::new(Counters::default());
    let uplink = Uplink {
        queue: Box::new(nic.clone()),
        offloads,
        max_frame: 1518,
        port: bed.switch.add_uplink(VcpuId(0), Limits::UPLINK).unwrap(),
        pool: bed.pool.clone(),
        timer: bed.executor.timer(),
        counters: counters.clone(),
    };
    let (stopper, stop) = stop_pair();
    drop(bed.executor.spawn(serve(uplink, stop)));
    bed.run();
    Outside {
        nic,
        counters,
        _stopper: stopper,
    }
}

/// What the 82576 does with a frame that it is to put a checksum into: adds up what is
/// there, the field included.
fn finish(bytes: &mut [u8], layout: &Layout, extra: u16) {
    let mut sum = Sum::default();
    sum.add(&bytes[layout.l4_start()..]);
    sum.add_word(extra);
    let at = layout.checksum_at();
    bytes[at..at + 2].copy_from_slice(&sum.finish().to_be_bytes());
}

fn sending(v6: bool, mss: Option<u16>) -> Sending {
    let kind = if v6 { gso_type::TCPV6 } else { gso_type::TCPV4 };
    Sending {
        flags: txf::CSUM_BLANK | txf::DATA_VALIDATED,
        gso: mss.map(|mss| (mss, kind)),
        ..Sending::default()
    }
}

fn blank(frame: &mut [u8], v6: bool) {
    let at = if v6 { 54 } else { 34 } + 16;
    frame[at..at + 2].copy_from_slice(&[0xab, 0xcd]);
}

const V4: Tcp = Tcp {
    v6: false,
    flags: 0x08,
    options: true,
};

#[test]
fn a_nic_with_offloads_finds_the_sum_it_needs() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 100);
    let mut guest = bed.guest(1, LINUX, 0);
    for v6 in [false, true] {
        // One frame whose checksum the NIC fills in.
        let good = tcp(guest.mac, OUTSIDE, Tcp { v6, ..V4 }, &pattern(1, 1001));
        let mut sent = good.clone();
        blank(&mut sent, v6);
        guest.front.send(&sent, &sending(v6, None));
        bed.run();
        let mut seen = outside.nic.take_sent().pop().unwrap();
        let Checksum::Partial(layout) = seen.checksum else {
            panic!("not left to the NIC");
        };
        finish(&mut seen.bytes, &layout, 0);
        assert_eq!(seen.bytes, good);

        // One that the NIC cuts: the sum has no length, which each segment adds.
        let mut long = tcp(guest.mac, OUTSIDE, Tcp { v6, ..V4 }, &pattern(2, 30_000));
        blank(&mut long, v6);
        guest.front.send(&long, &sending(v6, Some(1400)));
        bed.run();
        let seen = outside.nic.take_sent().pop().unwrap();
        assert_eq!((seen.mss, seen.bytes.len()), (Some(1400), long.len()));
        let mut one = seen.bytes[..layout.headers() + 1400].to_vec();
        finish(&mut one, &layout, 1400 + u16::from(layout.l4_len));
        let l3 = layout.l3_start();
        let ip_len = (one.len() - l3) as u16;
        if v6 {
            one[l3 + 4..l3 + 6].copy_from_slice(&(ip_len - 40).to_be_bytes());
        } else {
            one[l3 + 2..l3 + 4].copy_from_slice(&ip_len.to_be_bytes());
            one[l3 + 10..l3 + 12].fill(0);
            let mut sum = Sum::default();
            sum.add(&one[l3..layout.l4_start()]);
            one[l3 + 10..l3 + 12].copy_from_slice(&sum.finish().to_be_bytes());
        }
        assert_eq!(checked_tcp(&one).1, pattern(2, 30_000)[..1400]);
    }
}

#[test]
fn a_nic_without_offloads_gets_finished_frames() {
    let bed = Bed::new();
    let outside = attach(
        &bed,
        Offloads {
            max_parts: 1,
            ..Offloads::default()
        },
        100,
    );
    let mut guest = bed.guest(1, LINUX, 0);
    for v6 in [false, true] {
        let payload = pattern(3, 50_000);
        let mut long = tcp(guest.mac, OUTSIDE, Tcp { v6, ..V4 }, &payload);
        blank(&mut long, v6);
        guest.front.send(&long, &sending(v6, Some(1400)));
        bed.run();
        let mut whole = Vec::new();
        for seen in outside.nic.take_sent() {
            assert_eq!((seen.checksum, seen.mss), (Checksum::Verified, None));
            assert!(seen.bytes.len() <= 1514);
            whole.extend(checked_tcp(&seen.bytes).1);
        }
        assert_eq!(whole, payload);
    }
}

#[test]
fn a_full_nic_holds_the_guest_back_and_loses_nothing() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 4);
    let mut guest = bed.guest(1, LINUX, 0);
    let mut sent = Vec::new();
    let mut seen = Vec::new();
    for n in 0..1000 {
        if guest.front.tx_free() < 2 {
            guest.front.collect_tx();
        }
        // The ring is full when nothing drains: memory is bounded.
        while guest.front.tx_free() < 2 {
            assert!(sent.len() > 256);
            assert!(bed.pool.usage().allocated < 512);
            seen.extend(outside.nic.take_sent());
            bed.run();
            guest.front.collect_tx();
        }
        let frame = raw(guest.mac, OUTSIDE, &pattern(n, 1486));
        guest.front.send(&frame, &Sending::default());
        sent.push(frame);
        bed.run();
    }
    for _ in 0..1000 {
        seen.extend(outside.nic.take_sent());
        bed.run();
    }
    assert_eq!(seen.len(), sent.len());
    assert!(
        seen.iter()
            .zip(&sent)
            .all(|(seen, sent)| seen.bytes == *sent)
    );
    assert_eq!(guest.counters.snapshot().tx_dropped, 0);
}

#[test]
fn received_frames_go_to_their_guests_and_nowhere_else() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 4);
    let mut a = bed.guest(1, LINUX, 0);
    let mut b = bed.guest(2, LINUX, 0);
    for guest in [&mut a, &mut b] {
        guest.front.post_rx(16);
    }
    let to_a = raw(OUTSIDE, a.mac, &pattern(1, 1000));
    let to_b = tcp(OUTSIDE, b.mac, V4, &pattern(2, 1000));
    let to_nobody = raw(OUTSIDE, mac(77), &pattern(3, 100));
    let to_all = raw(OUTSIDE, MacAddr::BROADCAST, &pattern(4, 100));
    for bytes in [&to_a, &to_b, &to_nobody, &to_all] {
        let mut frame = Frame::from_bytes(&bed.pool, bytes).unwrap();
        if bytes == &to_b {
            frame.checksum = Checksum::Verified;
        }
        outside.nic.arrive(frame);
    }
    bed.run();
    let got: Vec<_> = a.front.recv().into_iter().map(|f| f.bytes).collect();
    assert_eq!(got, [to_a, to_all.clone()]);
    let got = b.front.recv();
    assert_eq!(got[0].bytes, to_b);
    assert_eq!(got[0].flags, rxf::DATA_VALIDATED);
    assert_eq!(got[1].bytes, to_all);
    assert_eq!(outside.counters.rx_dropped.load(Ordering::Relaxed), 1);
    // Nothing of it is sent back.
    assert!(outside.nic.take_sent().is_empty());
    bed.assert_no_memory_held();
}

#[test]
fn frames_that_no_wire_takes_are_dropped_or_padded() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 100);
    let mut guest = bed.guest(1, LINUX, 0);
    let too_long = raw(guest.mac, OUTSIDE, &pattern(1, 1505));
    let short = raw(guest.mac, OUTSIDE, &[7]);
    let mut wide = tcp(guest.mac, OUTSIDE, V4, &pattern(2, 9000));
    blank(&mut wide, false);
    guest.front.send(&too_long, &Sending::default());
    guest.front.send(&wide, &sending(false, Some(4000)));
    guest.front.send(&short, &Sending::default());
    bed.run();
    let sent = outside.nic.take_sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].bytes.len(), 60);
    assert_eq!(sent[0].bytes[..15], short[..]);
    assert!(sent[0].bytes[15..].iter().all(|byte| *byte == 0));
    assert_eq!(outside.counters.tx_dropped.load(Ordering::Relaxed), 2);
    bed.run();
    bed.assert_no_memory_held();
}

#[test]
fn a_short_frame_has_its_checksum_before_it_is_padded() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 100);
    let mut guest = bed.guest(1, LINUX, 0);
    // 54 and 56 bytes over IPv4, as an acknowledgement or a SYN is; with and without the
    // padding of whoever sent them.
    for (len, padding) in [(0, 0), (1, 0), (2, 0), (0, 6), (40, 3)] {
        let kind = Tcp {
            options: false,
            ..V4
        };
        let good = tcp(guest.mac, OUTSIDE, kind, &pattern(1, len));
        let mut sent = good.clone();
        blank(&mut sent, false);
        sent.extend(vec![0xee; padding]);
        guest.front.send(&sent, &sending(false, None));
        bed.run();
        let mut seen = outside.nic.take_sent().pop().unwrap();
        if let Checksum::Partial(layout) = seen.checksum {
            // All that the NIC is given is summed up.
            finish(&mut seen.bytes, &layout, 0);
        }
        let (packet, rest) = seen.bytes.split_at(good.len());
        assert_eq!(packet, good, "{len} and {padding}");
        assert!(rest.iter().all(|byte| *byte == 0));
        assert_eq!(seen.checksum == Checksum::Verified, good.len() < 60);
    }
}

#[test]
fn headers_are_found_where_etherparse_put_them() {
    for v6 in [false, true] {
        for options in [false, true] {
            let kind = Tcp {
                v6,
                options,
                flags: 0,
            };
            let frame = tcp(mac(1), mac(2), kind, &pattern(1, 500));
            let layout = parse(&frame[..PREFIX], frame.len()).unwrap();
            assert_eq!(layout.headers(), frame.len() - 500);
            // A frame cut anywhere inside its headers is not taken for one.
            for len in 0..layout.headers() {
                assert_eq!(parse(&frame[..len], len), None, "{len}");
            }
        }
    }
}

/// Who is to manage the host comes from the wire: what guests send cannot wear our own stack
/// down, and they hear none of its questions, which they could answer.
#[test]
fn our_own_stack_hears_and_speaks_to_the_wire_only() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 100);
    let mut local = bed.local(9);
    let mut guest = bed.guest(1, LINUX, 0);
    guest.front.post_rx(16);
    for to in [mac(9), MacAddr::BROADCAST] {
        let frame = raw(guest.mac, to, &pattern(1, 46));
        guest.front.send(&frame, &Sending::default());
        let frame = raw(OUTSIDE, to, &pattern(2, 46));
        outside
            .nic
            .arrive(Frame::from_bytes(&bed.pool, &frame).unwrap());
        bed.run();
        assert_eq!(local.try_recv(), Some(frame));
        assert_eq!(local.try_recv(), None);
    }
    // To everybody: the wire and other guests, but not ours, which is not sent out either.
    assert_eq!(outside.nic.take_sent().len(), 1);
    assert_eq!(guest.front.recv().len(), 1, "the wire's");
    let to = [OUTSIDE, MacAddr::BROADCAST, guest.mac];
    let sent = to.map(|to| local.send(&raw(mac(9), to, &pattern(3, 46))));
    assert_eq!(sent, [true, true, false]);
    bed.run();
    assert_eq!(outside.nic.take_sent().len(), 2);
    assert_eq!(guest.front.recv().len(), 0);
    let losses = local.losses();
    assert_eq!((losses.received, losses.unsent), (0, 1));
}

/// A guest's PAUSE would keep the switch at the other end from sending to all of the host.
#[test]
fn frames_for_the_other_end_of_the_link_go_no_further() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 100);
    let mut guest = bed.guest(1, LINUX, 0);
    guest.front.post_rx(64);
    let group = |last| MacAddr([0x01, 0x80, 0xc2, 0, 0, last]);
    let pause = |to, from| {
        let mut frame = raw(from, to, &pattern(1, 46));
        frame[12..14].copy_from_slice(&[0x88, 0x08]);
        frame
    };
    let reserved = (0..=15).map(|last| raw(guest.mac, group(last), &pattern(1, 46)));
    let control = [OUTSIDE, MacAddr::BROADCAST].map(|to| pause(to, guest.mac));
    for frame in reserved.chain(control) {
        guest.front.send(&frame, &Sending::default());
    }
    let last = raw(guest.mac, group(16), &pattern(1, 46));
    guest.front.send(&last, &Sending::default());
    for frame in [
        raw(OUTSIDE, group(14), &pattern(1, 46)),
        pause(guest.mac, OUTSIDE),
    ] {
        outside
            .nic
            .arrive(Frame::from_bytes(&bed.pool, &frame).unwrap());
    }
    bed.run();
    let sent = outside.nic.take_sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].bytes, last);
    assert_eq!(guest.front.recv().len(), 0);
    assert_eq!(guest.counters.snapshot().tx_dropped, 18);
}

/// Guests wait for room at the NIC's queue; our own stack, which uses the same, does not.
#[test]
fn guests_that_send_more_than_the_wire_takes_leave_our_own_stack_its_turn() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 64);
    let mut local = bed.local(9);
    let mut guests = [1, 2].map(|n| bed.guest(n, LINUX, 0));
    let (mut ours, mut theirs) = (0, 0);
    for n in 0..100 {
        for guest in &mut guests {
            guest.front.collect_tx();
            while guest.front.tx_free() > 1 {
                let to = if n % 2 == 0 {
                    OUTSIDE
                } else {
                    MacAddr::BROADCAST
                };
                let frame = raw(guest.mac, to, &pattern(n, 1000));
                guest.front.send(&frame, &Sending::default());
            }
        }
        bed.run();
        assert!(local.send(&raw(mac(9), OUTSIDE, &pattern(n, 200))), "{n}");
        for sent in outside.nic.take_sent() {
            match sent.bytes[6..12] == mac(9).0 {
                true => ours += 1,
                false => theirs += 1,
            }
        }
        bed.run();
    }
    // The last ones are still on their way.
    assert!(ours > 90, "{ours}");
    assert!(theirs > 64 * 90, "{theirs}");
}

/// Fills what there is between a guest and a NIC that sends nothing.
fn send_in_vain(bed: &Bed, guest: &mut Guest) {
    for n in 0..1000 {
        guest.front.collect_tx();
        if guest.front.tx_free() < 6 {
            return;
        }
        let frame = raw(guest.mac, OUTSIDE, &pattern(n, 60));
        guest.front.send(&frame, &Sending::default());
        bed.run();
    }
}

#[test]
fn without_a_link_guests_reach_each_other_and_nothing_waits() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 4);
    let mut a = bed.guest(1, LINUX, 0);
    let mut b = bed.guest(2, LINUX, 0);
    b.front.post_rx(64);
    send_in_vain(&bed, &mut a);
    assert!(a.front.tx_free() < 6);
    outside.nic.plug(false);
    bed.run();
    a.front.collect_tx();
    for n in 0..10 {
        for to in [OUTSIDE, b.mac] {
            let frame = raw(a.mac, to, &pattern(n, 1000));
            a.front.send(&frame, &Sending::default());
        }
        bed.run();
        a.front.collect_tx();
    }
    assert_eq!(b.front.recv().len(), 10);
    assert_eq!(a.front.tx_unanswered(), 0);
    bed.assert_no_memory_held();
    let lost = outside.counters.tx_no_link.load(Ordering::Relaxed);
    assert!(lost > 250, "{lost} frames counted");

    outside.nic.take_sent();
    outside.nic.plug(true);
    let frame = raw(a.mac, OUTSIDE, &pattern(7, 1000));
    a.front.send(&frame, &Sending::default());
    bed.run();
    let sent = outside.nic.take_sent();
    assert_eq!(sent.len(), 1, "only what was sent with a link");
    assert_eq!(sent[0].bytes, frame);
}

/// A NIC that says it has a link.
#[test]
fn a_nic_that_sends_nothing_does_not_hold_up_frames_for_guests() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 4);
    let mut a = bed.guest(1, LINUX, 0);
    let mut b = bed.guest(2, LINUX, 0);
    b.front.post_rx(64);
    send_in_vain(&bed, &mut a);
    let mut both = |seed| {
        for to in [OUTSIDE, b.mac] {
            let frame = raw(a.mac, to, &pattern(seed, 1000));
            a.front.send(&frame, &Sending::default());
        }
        bed.run();
        a.front.collect_tx();
        b.front.recv().len()
    };
    assert_eq!(both(1), 0, "it may still take what waits");
    bed.executor.timer().advance(1_000_000_000);
    assert_eq!(both(2), 2);
    for n in 0..10 {
        assert_eq!(both(n), 1, "nobody waits again");
    }
    // It goes on, and what it takes is waited for again.
    for _ in 0..100 {
        outside.nic.take_sent();
        bed.run();
    }
    assert_eq!(both(11), 1);
    assert_eq!(outside.nic.take_sent().len(), 1);
    // What it had not taken was dropped, and counted.
    let dropped = a.counters.snapshot().tx_dropped;
    assert!(dropped > 250, "{dropped} frames counted");
}

#[test]
fn a_nic_queue_that_sends_nothing_is_started_anew() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 4);
    let mut guest = bed.guest(1, LINUX, 0);
    let restarts = || outside.nic.0.borrow().restarts;
    let mut send = |seed, pass_ns| {
        let frame = raw(guest.mac, OUTSIDE, &pattern(seed, 1000));
        guest.front.send(&frame, &Sending::default());
        bed.run();
        bed.executor.timer().advance(pass_ns);
        bed.run();
        guest.front.collect_tx();
        frame
    };
    send(1, 3_000_000_000);
    send(2, 1_900_000_000);
    assert_eq!(restarts(), 0);
    send(3, 200_000_000);
    assert_eq!(restarts(), 1);
    bed.assert_no_memory_held();
    // It sends again, and is watched again.
    let frame = send(4, 4_000_000_000);
    let sent = outside.nic.take_sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].bytes, frame);
    for n in 0..3 {
        send(n, 4_000_000_000);
    }
    assert_eq!(restarts(), 2);
}

#[test]
fn a_nic_queue_that_is_slow_or_has_no_link_is_left_alone() {
    let bed = Bed::new();
    let outside = attach(&bed, ALL, 4);
    let mut guest = bed.guest(1, LINUX, 0);
    for n in 0..20 {
        let frame = raw(guest.mac, OUTSIDE, &pattern(n, 1000));
        guest.front.send(&frame, &Sending::default());
        bed.run();
        guest.front.collect_tx();
        // There is always some frame in the ring, and one goes in time.
        bed.executor.timer().advance(4_900_000_000);
        if n > 0 {
            outside.nic.drain_some(1);
        }
        bed.run();
        assert!(!outside.nic.0.borrow().ring.is_empty());
    }
    outside.nic.plug(false);
    bed.run();
    for _ in 0..20 {
        bed.executor.timer().advance(4_900_000_000);
        bed.run();
    }
    assert_eq!(outside.nic.0.borrow().restarts, 0);
}

#[test]
fn a_vcpu_without_a_nic_queue_sends_by_one_on_its_node() {
    let bed = Bed::new();
    // 0 to 5 are on one node, 6 to 11 on the other.
    let nodes = [[Node(0); 6], [Node(1); 6]].concat();
    let switch = Switch::new(&nodes);
    let port = switch.add_port(mac(1), Limits::VIF).unwrap();
    let mut views: Vec<_> = (0..12).map(|vcpu| port.view(VcpuId(vcpu))).collect();
    let mut uplinks: Vec<_> = [1, 2, 6, 7]
        .map(|vcpu| switch.add_uplink(VcpuId(vcpu), Limits::UPLINK).unwrap())
        .into();
    let mut send = |vcpu: usize, to| {
        let frame = Frame::from_bytes(&bed.pool, &raw(mac(1), to, &[7; 46])).unwrap();
        views[vcpu].refresh();
        let verdict = views[vcpu].forward(Source::Station(mac(1)), frame, &bed.pool);
        assert!(matches!(verdict, Verdict::Forwarded(1)));
    };
    let took = |uplinks: &[backend_net::switch::UplinkPort]| -> Vec<u32> {
        let took = uplinks
            .iter()
            .filter(|uplink| uplink.inbox().pop().is_some());
        took.map(|uplink| uplink.vcpu().0).collect()
    };
    for (vcpu, by) in [1, 1, 2, 2, 1, 2, 6, 7, 6, 7, 6, 7].into_iter().enumerate() {
        for to in [OUTSIDE, MacAddr::BROADCAST] {
            send(vcpu, to);
            assert_eq!(took(&uplinks), [by], "vCPU {vcpu}");
        }
    }
    // Without any on its node, by another.
    uplinks.truncate(2);
    send(9, OUTSIDE);
    assert_eq!(took(&uplinks).len(), 1);
}
