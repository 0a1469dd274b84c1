//! Nobody's frames keep a vCPU, and none stays where nobody reads.

mod common;

use backend_net::port::Inbox;
use backend_net::uplink::{self, Uplink};
use backend_net::{Limits, stop_pair};
use common::{Bed, LINUX, PLAIN, mac, pattern};
use hal::VcpuId;
use hal::net::{Frame, NetQueue, Offloads};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use xen_abi::io::netif::txf;
use xen_sim::Sending;

/// IPv4 UDP from one guest to another, with a checksum that is wrong.
fn bad_udp(from: u8, to: u8, len: usize) -> Vec<u8> {
    let mut frame = [&mac(to).0[..], &mac(from).0, &[8, 0]].concat();
    frame.extend(pattern(3, len - 14));
    frame[14] = 0x45;
    let ip_len = u16::try_from(len - 14).expect("a frame's length");
    frame[16..18].copy_from_slice(&ip_len.to_be_bytes());
    frame[20..22].fill(0);
    frame[23] = 17;
    let udp_len = ip_len - 20;
    frame[38..40].copy_from_slice(&udp_len.to_be_bytes());
    frame[40..42].copy_from_slice(&[1, 2]);
    frame
}

/// Long frames for a guest that takes none: they cost turns as others do, and nobody fills
/// their checksums in.
#[test]
fn frames_that_are_not_fit_for_a_guest_are_dropped_in_turns() {
    let bed = Bed::new();
    let mut sender = bed.guest(1, LINUX, 0);
    let mut plain = bed.guest(2, PLAIN, 0);
    plain.front.post_rx(64);
    bed.run();
    for _ in 0..10 {
        let sending = Sending {
            flags: txf::CSUM_BLANK,
            ..Sending::default()
        };
        sender.front.send(&bad_udp(1, 2, 20_000), &sending);
        bed.run();
        sender.front.collect_tx();
    }
    assert_eq!(plain.counters.snapshot().rx_errors, 10);
    assert!(plain.front.recv().is_empty());
    bed.assert_no_memory_held();
}

/// A NIC that has so many frames, all at once.
struct Flood(Rc<Cell<usize>>);

impl NetQueue for Flood {
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
        self.0.set(self.0.get().checked_sub(1)?);
        Some(Frame::empty())
    }
    fn refill(&mut self) -> usize {
        0
    }
    fn poll_work(&mut self, _: &mut Context<'_>) -> Poll<()> {
        if self.0.get() > 0 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

#[test]
fn frames_from_the_wire_are_taken_in_turns() {
    const CAME: usize = 10_000;
    let bed = Bed::new();
    let left = Rc::new(Cell::new(CAME));
    let uplink = Uplink {
        queue: Box::new(Flood(left.clone())),
        offloads: Offloads::default(),
        max_frame: 1518,
        port: bed.switch.add_uplink(VcpuId(0), Limits::UPLINK).unwrap(),
        pool: bed.pool.clone(),
        timer: bed.executor.timer(),
        counters: Arc::default(),
    };
    let (_stopper, stop) = stop_pair();
    drop(bed.executor.spawn(uplink::serve(uplink, stop)));
    let seen = left.clone();
    let other = bed.executor.spawn(async move { seen.get() });
    bed.run();
    assert_eq!(left.get(), 0);
    let seen = other.take().expect("its turn");
    assert!((1..CAME).contains(&seen), "{seen} left at another's turn");
}

/// One that pushes while the reader closes: between its look and its push it may be stopped
/// for as long as another guest runs on its core.
#[test]
fn a_closed_inbox_keeps_no_frame() {
    for round in 0..2000 {
        let inbox = Arc::new(Inbox::new(Limits::VIF));
        let started = Arc::new(AtomicBool::new(false));
        let writer = {
            let (inbox, started) = (inbox.clone(), started.clone());
            std::thread::spawn(move || {
                started.store(true, Ordering::SeqCst);
                while inbox.push(Frame::empty()).is_ok() {}
                // Full, or closed.
                for _ in 0..200 {
                    drop(inbox.push(Frame::empty()));
                }
            })
        };
        while !started.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
        for _ in 0..(round % 200) * 5 {
            std::hint::spin_loop();
        }
        inbox.set_open(false);
        inbox.purge();
        writer.join().expect("no panic");
        assert_eq!(inbox.len(), 0, "round {round}");
    }
}
