//! What happens when packet memory, or memory, is short.

mod common;

use backend_net::uplink::{Counters, Uplink, serve};
use backend_net::{Limits, stop_pair};
use common::{Bed, LINUX, POOL, Tcp, pattern, raw, tcp};
use hal::VcpuId;
use hal::net::{Frame, MAX_PARTS, MacAddr, NetQueue, Offloads, PacketBuffer, PacketPool};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use xen_abi::io::netif::{gso_type, txf};
use xen_sim::Sending;

const OUTSIDE: MacAddr = MacAddr([0x52, 0x55, 10, 0, 2, 2]);

/// The nodes of a frontend that takes long frames, but none that it would have to cut.
const SG_ONLY: &[(&str, &str)] = &[
    ("request-rx-copy", "1"),
    ("feature-rx-notify", "1"),
    ("feature-sg", "1"),
];

/// A frame to be cut into segments of 15 pages.
fn long_segments() -> Sending {
    Sending {
        flags: txf::CSUM_BLANK,
        gso: Some((60_000, gso_type::TCPV4)),
        ..Sending::default()
    }
}

const PLAIN_TCP: Tcp = Tcp {
    v6: false,
    flags: 0,
    options: false,
};

/// Two guests that read nothing hold nearly all packet memory, and a frame for a third has
/// to be cut into segments that need more than is left.
#[test]
fn a_frame_that_cannot_be_cut_for_want_of_memory_is_dropped() {
    let bed = Bed::new();
    let mut sender = bed.guest(1, LINUX, 0);
    let mut receiver = bed.guest(2, SG_ONLY, 0);
    let idle = [bed.guest(3, SG_ONLY, 0), bed.guest(4, SG_ONLY, 0)];
    receiver.front.post_rx(64);
    let mut send = |to: MacAddr, len: usize| {
        let frame = raw(sender.mac, to, &pattern(1, len));
        sender.front.send(&frame, &Sending::default());
        bed.run();
        sender.front.collect_tx();
    };
    for guest in &idle {
        for _ in 0..40 {
            send(guest.mac, 12 * 4096 - 14);
        }
    }
    for guest in idle.iter().cycle().take(100) {
        if bed.pool.available() > 28 {
            send(guest.mac, 1000);
        }
    }
    assert_eq!(bed.pool.available(), 28);

    let frame = tcp(sender.mac, receiver.mac, PLAIN_TCP, &pattern(5, 64_000));
    sender.front.send(&frame, &long_segments());
    bed.run();
    assert_eq!(receiver.counters.snapshot().rx_dropped, 1);
    // Its memory is there again: the next one, which needs less, arrives.
    let frame = raw(sender.mac, receiver.mac, &pattern(6, 20_000));
    sender.front.send(&frame, &Sending::default());
    bed.run();
    assert_eq!(receiver.front.recv().len(), 1);
}

/// Twelve guests send at the same time: frames of most may stay in their pages, until the
/// receiver, which has no buffers, takes them home.
#[test]
fn a_receiver_takes_no_more_home_than_its_inbox_may_hold() {
    let bed = Bed::new();
    let mut senders: Vec<_> = (1..=12).map(|n| bed.guest(n, LINUX, 0)).collect();
    let receiver = bed.guest(13, LINUX, 0);
    for sender in &mut senders {
        for n in 0..4 {
            let frame = raw(sender.mac, receiver.mac, &pattern(n, 65_000));
            sender.front.send(&frame, &Sending::default());
        }
    }
    bed.run();
    let held = bed.pool.usage();
    let held = held.allocated - held.free;
    // All that was sent is 768.
    assert!(held > 400, "{held} pages held");
    // Besides: the frame that comes next.
    assert!(held <= Limits::VIF.pages + 16, "{held} pages held");
    assert!(receiver.counters.snapshot().rx_dropped > 0);
}

#[test]
fn frames_of_which_only_the_head_is_here_have_memory_for_the_rest() {
    let bed = Bed::new();
    let mut sender = bed.guest(1, LINUX, 0);
    // Takes long frames, but none in the sender's pages.
    let mut receiver = bed.guest(2, SG_ONLY, 0);
    let mut taken = Vec::new();
    // Two frames of 15 pages, and not four.
    while bed.pool.available() > 40 {
        taken.extend(bed.pool.get());
    }
    receiver.front.post_rx(64);
    let frames: Vec<_> = (0..4)
        .map(|n| raw(sender.mac, receiver.mac, &pattern(n, 60_000)))
        .collect();
    for frame in &frames {
        sender.front.send(frame, &Sending::default());
    }
    bed.run();
    let got = receiver.front.recv().into_iter().map(|frame| frame.bytes);
    assert!(got.eq(frames));
    assert_eq!(sender.counters.snapshot().tx_errors, 0);
}

/// One that takes five long frames a second, a moment before it would be given up.
#[test]
fn a_slow_receiver_holds_no_more_than_its_inbox_may() {
    let bed = Bed::new();
    let mut sender = bed.guest(1, LINUX, 0);
    let mut slow = bed.guest(2, LINUX, 0);
    let (mut most, mut received) = (0, 0);
    for cycle in 0..50 {
        for n in 0..12 {
            sender.front.collect_tx();
            if sender.front.tx_free() < 20 {
                break;
            }
            let frame = raw(sender.mac, slow.mac, &pattern(cycle * 31 + n, 60_000));
            sender.front.send(&frame, &Sending::default());
        }
        slow.front.post_rx(75);
        bed.run();
        received += slow.front.recv().len();
        bed.executor.timer().advance(900_000_000);
        bed.run();
        let held = bed.pool.usage();
        most = most.max(held.allocated - held.free);
    }
    assert!(received > 200, "{received} frames arrived");
    // Besides: the frame that comes next, and one on its way from the sender's ring.
    assert!(most <= Limits::VIF.pages + 2 * 17, "{most} pages held");
}

/// The same receiver, a sender, and a guest for which frames have to be cut, for minutes.
#[test]
fn three_guests_of_a_core_do_not_stop_it() {
    let bed = Bed::new();
    let mut sender = bed.guest(1, LINUX, 0);
    let mut slow = bed.guest(2, LINUX, 0);
    let mut cut = bed.guest(3, SG_ONLY, 0);
    cut.front.post_rx(200);
    let mut arrived = 0;
    for cycle in 0..40 {
        for n in 0..12 {
            sender.front.collect_tx();
            if sender.front.tx_free() < 40 {
                break;
            }
            let frame = raw(sender.mac, slow.mac, &pattern(cycle * 31 + n, 60_000));
            sender.front.send(&frame, &Sending::default());
            if n % 4 == 1 {
                let frame = tcp(sender.mac, cut.mac, PLAIN_TCP, &pattern(5, 64_000));
                sender.front.send(&frame, &long_segments());
            }
        }
        slow.front.post_rx(75);
        bed.run();
        slow.front.recv();
        arrived += cut.front.recv().len();
        cut.front.post_rx(200);
        bed.executor.timer().advance(900_000_000);
        bed.run();
    }
    // Two segments of each frame.
    assert!(arrived > 200, "{arrived} segments arrived");
    assert!(bed.pool.available() > POOL / 4);
}

/// How many of its slots a guest has unanswered a minute after the uplink, which was full,
/// has been emptied, if another one that waits for it as well kicks so often.
fn unanswered_after(kicks: usize) -> usize {
    let bed = Bed::new();
    let uplink = bed
        .switch
        .add_uplink(VcpuId(0), Limits::UPLINK)
        .expect("there is none yet");
    let mut kicker = bed.guest(1, LINUX, 0);
    let mut victim = bed.guest(2, LINUX, 0);
    let mut filler = bed.guest(3, LINUX, 0);
    let long = |from| raw(from, OUTSIDE, &pattern(1, 60_000));
    for _ in 0..34 {
        filler.front.send(&long(filler.mac), &Sending::default());
        bed.run();
        filler.front.collect_tx();
    }
    kicker.front.send(&long(kicker.mac), &Sending::default());
    bed.run();
    for _ in 0..kicks {
        kicker.front.notify();
        bed.run();
    }
    // The second is taken from the ring when the first is through.
    for _ in 0..2 {
        victim.front.send(&long(victim.mac), &Sending::default());
        bed.run();
        victim.front.collect_tx();
    }
    let inbox = uplink.inbox().clone();
    while !inbox.is_empty() {
        while inbox.pop().is_some() {}
        bed.run();
    }
    bed.executor.timer().advance(60_000_000_000);
    bed.run();
    victim.front.collect_tx();
    victim.front.tx_unanswered()
}

#[test]
fn a_guest_is_woken_however_often_another_one_kicks() {
    assert_eq!(unanswered_after(0), 0);
    assert_eq!(unanswered_after(50), 0);
    assert_eq!(unanswered_after(500), 0);
}

/// A NIC queue that posts receive buffers, and gets no frame.
struct IdleNic {
    pool: PacketPool,
    posted: Rc<RefCell<Vec<PacketBuffer>>>,
}

const RING: usize = 128;

impl NetQueue for IdleNic {
    fn has_carrier(&self) -> bool {
        true
    }
    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        Err(frame)
    }
    fn kick(&mut self) {}
    fn reclaim(&mut self) -> usize {
        0
    }
    fn restart_tx(&mut self) {
        panic!("nothing is stuck");
    }
    fn has_room(&self) -> bool {
        true
    }
    fn recv(&mut self) -> Option<Frame> {
        None
    }
    fn refill(&mut self) -> usize {
        let mut posted = self.posted.borrow_mut();
        while posted.len() < RING {
            match self.pool.get() {
                Some(buffer) => posted.push(buffer),
                None => break,
            }
        }
        RING - posted.len()
    }
    fn poll_work(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

#[test]
fn a_nic_queue_waits_for_memory_and_gets_it() {
    let bed = Bed::new();
    bed.allocator.limit(100);
    let posted = Rc::default();
    let uplink = Uplink {
        queue: Box::new(IdleNic {
            pool: bed.pool.clone(),
            posted: Rc::clone(&posted),
        }),
        offloads: Offloads {
            rx_checksum: true,
            tx_checksum_v4: true,
            tx_checksum_v6: true,
            tso_v4: true,
            tso_v6: true,
            max_parts: MAX_PARTS,
        },
        max_frame: 1518,
        port: bed
            .switch
            .add_uplink(VcpuId(0), Limits::UPLINK)
            .expect("there is none yet"),
        pool: bed.pool.clone(),
        timer: bed.executor.timer(),
        counters: Arc::new(Counters::default()),
    };
    let (_stopper, stop) = stop_pair();
    drop(bed.executor.spawn(serve(uplink, stop)));
    bed.run();
    assert_eq!(posted.borrow().len(), 100);
    // Nobody says that there is memory again.
    bed.allocator.limit(110);
    bed.executor.timer().advance(200_000_000);
    bed.run();
    assert_eq!(posted.borrow().len(), 110);
    bed.allocator.limit(1000);
    bed.executor.timer().advance(200_000_000);
    bed.run();
    assert_eq!(posted.borrow().len(), RING);
}
