//! A domain's ring, with a guest on the other side that is honest, slow or hostile.
mod common;

use common::{Answer, Op, packet, parse};
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use toolstack_xenstore::{Pumped, RingConnection, RingFault, Server};
use xen_abi::DomId;
use xen_abi::io::xs_wire::{
    XENSTORE_ERROR_PROTO, XENSTORE_ERROR_RINGIDX, XENSTORE_RECONNECT,
    XenstoreDomainInterface as Interface,
};
use xen_ring::SharedPages;

const SIZE: u32 = 1024;

/// The domain's end.
struct Guest {
    page: SharedPages,
    received: Vec<u8>,
}

impl Guest {
    fn word(&self, offset: usize) -> u32 {
        self.page.load_u32(offset, Ordering::Acquire)
    }

    fn set(&self, offset: usize, value: u32) {
        self.page.store_u32(offset, value, Ordering::Release);
    }

    /// Puts as much of a stream into the ring as fits; how much.
    fn write(&self, bytes: &[u8]) -> usize {
        let (prod, cons) = (
            self.word(offset_of!(Interface, req_prod)),
            self.word(offset_of!(Interface, req_cons)),
        );
        let room = SIZE - prod.wrapping_sub(cons);
        let count = bytes.len().min(room as usize);
        for (i, byte) in (0u32..).zip(&bytes[..count]) {
            let at = prod.wrapping_add(i) % SIZE;
            self.page
                .write_bytes(offset_of!(Interface, req) + at as usize, &[*byte]);
        }
        let count = u32::try_from(count).unwrap();
        self.set(offset_of!(Interface, req_prod), prod.wrapping_add(count));
        count as usize
    }

    /// Takes what is in the ring.
    fn read(&mut self) {
        let mut cons = self.word(offset_of!(Interface, rsp_cons));
        let prod = self.word(offset_of!(Interface, rsp_prod));
        while cons != prod {
            let mut byte = [0];
            let at = offset_of!(Interface, rsp) + (cons % SIZE) as usize;
            self.page.read_bytes(at, &mut byte);
            self.received.push(byte[0]);
            cons = cons.wrapping_add(1);
        }
        self.set(offset_of!(Interface, rsp_cons), cons);
    }

    fn answers(&mut self) -> Vec<Answer> {
        self.read();
        parse(&mut self.received)
    }
}

struct Bed {
    server: Server,
    ring: RingConnection,
    guest: Guest,
}

/// A ring whose indices all start at `start`.
fn bed(start: u32) -> Bed {
    let (ours, theirs) = SharedPages::pair(4096);
    let guest = Guest {
        page: theirs,
        received: Vec::new(),
    };
    for index in [
        offset_of!(Interface, req_cons),
        offset_of!(Interface, req_prod),
        offset_of!(Interface, rsp_cons),
        offset_of!(Interface, rsp_prod),
    ] {
        guest.set(index, start);
    }
    guest.set(offset_of!(Interface, server_features), 0xffff);
    let mut server = Server::new(Default::default());
    server.write("/tool/big", &[b'x'; 4000]).unwrap();
    server
        .set_perms(
            "/tool/big",
            &[toolstack_xenstore::Perm {
                domid: DomId(0),
                access: toolstack_xenstore::Access::READ,
            }],
        )
        .unwrap();
    let ring = RingConnection::attach(&mut server, DomId(5), ours);
    Bed {
        server,
        ring,
        guest,
    }
}

impl Bed {
    fn pump(&mut self) -> Result<Pumped, RingFault> {
        self.ring.pump(&mut self.server)
    }
}

#[test]
fn a_request_is_answered_and_the_guest_is_told() {
    // Indices need not start at 0, and wrap.
    for start in [0, 1000, u32::MAX - 5] {
        let mut bed = bed(start);
        assert_eq!(bed.guest.word(offset_of!(Interface, server_features)), 0);
        bed.guest.write(&packet(Op::GET_DOMAIN_PATH, 9, 0, b"5\0"));
        assert_eq!(
            bed.pump(),
            Ok(Pumped {
                notify: true,
                more: false
            })
        );
        let answers = bed.guest.answers();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].payload, b"/local/domain/5\0");
        assert_eq!(
            bed.pump(),
            Ok(Pumped::default()),
            "nothing new, nothing to tell"
        );
    }
}

#[test]
fn packets_longer_than_the_ring_pass_both_ways() {
    let mut bed = bed(u32::MAX - 700);
    // 4096 bytes in: an error, but a whole answer; then 4000 bytes out.
    let mut stream = packet(Op::READ, 1, 0, &[b'p'; 4096]);
    stream.extend(packet(Op::READ, 2, 0, b"/tool/big\0"));
    let mut answers = Vec::new();
    for _ in 0..40 {
        let count = bed.guest.write(&stream);
        stream.drain(..count);
        bed.pump().unwrap();
        answers.extend(bed.guest.answers());
    }
    assert!(stream.is_empty());
    assert_eq!(answers.len(), 2);
    assert_eq!(
        (answers[0].op, &answers[0].payload[..]),
        (Op::ERROR, &b"EINVAL\0"[..])
    );
    assert_eq!(answers[1].payload, [b'x'; 4000]);
}

#[test]
fn a_guest_that_does_not_read_stops_being_served_and_goes_on_later() {
    let mut bed = bed(0);
    let request = packet(Op::READ, 1, 0, b"/tool/big\0");
    let mut written = 0;
    for _ in 0..200 {
        if bed.guest.write(&request) < request.len() {
            break;
        }
        written += 1;
        bed.pump().unwrap();
    }
    // 20 outstanding, and the requests that lie in the ring.
    assert!((20..100).contains(&written), "{written}");
    let stats = bed.server.stats(DomId(5)).unwrap();
    assert!(stats.outstanding.now <= 20 && stats.memory.now < 100_000);
    let mut answers = 0;
    for _ in 0..1000 {
        answers += bed.guest.answers().len();
        bed.pump().unwrap();
    }
    // The last one was cut off.
    assert_eq!(answers, written);
}

#[test]
fn a_bad_index_ends_this_connection_only() {
    for (index, value) in [
        (offset_of!(Interface, req_prod), 1025),
        (offset_of!(Interface, req_prod), u32::MAX),
        (offset_of!(Interface, rsp_cons), 1),
        (offset_of!(Interface, rsp_cons), 0x8000_0000),
    ] {
        let mut bed = bed(0);
        let other = bed.server.domain_introduced(DomId(6));
        let watch = packet(Op::WATCH, 1, 0, b"/x\0t\0");
        bed.guest.write(&watch);
        bed.pump().unwrap();
        // As far from where the other end stands.
        let peer = if index == offset_of!(Interface, rsp_cons) {
            offset_of!(Interface, rsp_prod)
        } else {
            offset_of!(Interface, req_cons)
        };
        bed.guest
            .set(index, bed.guest.word(peer).wrapping_add(value));
        bed.server.write("/x", b"").unwrap();
        // Something to send, so that the guest's index is looked at.
        if index == offset_of!(Interface, rsp_cons) {
            bed.guest.write(&watch);
        }
        assert!(
            matches!(bed.pump(), Err(RingFault::Index(_))),
            "{index} {value:#x}"
        );
        assert_eq!(
            bed.guest.word(offset_of!(Interface, error)),
            XENSTORE_ERROR_RINGIDX
        );
        assert_eq!(bed.server.stats(DomId(5)).unwrap().watches.now, 0);
        // Told once; then silence.
        assert_eq!(bed.pump(), Ok(Pumped::default()));
        assert_eq!(bed.server.wants(other), 16);
    }
}

#[test]
fn a_too_long_payload_is_told_in_the_error_word() {
    let mut bed = bed(0);
    let mut long = packet(Op::READ, 1, 0, b"");
    long[12..16].copy_from_slice(&5000u32.to_le_bytes());
    bed.guest.write(&long);
    assert_eq!(bed.pump(), Err(RingFault::PayloadTooLong));
    assert_eq!(
        bed.guest.word(offset_of!(Interface, error)),
        XENSTORE_ERROR_PROTO
    );
}

/// Nobody offered a reconnection, so the word that asks for one holds nothing.
#[test]
fn a_reconnect_that_was_not_offered_does_nothing() {
    let mut bed = bed(77);
    bed.guest.write(&packet(Op::WATCH, 1, 0, b"/x\0t\0"));
    bed.pump().unwrap();
    assert_eq!(bed.guest.answers().len(), 2, "an answer and an event");
    bed.guest
        .set(offset_of!(Interface, connection), XENSTORE_RECONNECT);
    assert_eq!(bed.pump(), Ok(Pumped::default()));
    assert_eq!(bed.server.stats(DomId(5)).unwrap().watches.now, 1);
    bed.guest.write(&packet(Op::GET_DOMAIN_PATH, 3, 0, b"1\0"));
    assert!(bed.pump().unwrap().notify);
    assert_eq!(bed.guest.answers()[0].req_id, 3);
}

/// Each fault is a line in the host's log: a guest must not make them at will.
#[test]
fn a_guest_makes_one_fault_however_often_it_asks_for_a_reconnect() {
    let mut bed = bed(0);
    let mut faults = 0;
    for _ in 0..1000 {
        let consumed = bed.guest.word(offset_of!(Interface, req_cons));
        bed.guest
            .set(offset_of!(Interface, req_prod), consumed + 5000);
        faults += u32::from(bed.pump().is_err());
        bed.guest
            .set(offset_of!(Interface, connection), XENSTORE_RECONNECT);
        faults += u32::from(bed.pump().is_err());
        bed.guest.set(offset_of!(Interface, req_prod), consumed);
        bed.guest.write(&packet(Op::GET_DOMAIN_PATH, 3, 0, b"1\0"));
        faults += u32::from(bed.pump().is_err());
    }
    assert_eq!(faults, 1);
    assert_eq!(bed.guest.answers(), [], "ended for good");
    // Until it is introduced anew.
    let (ours, theirs) = SharedPages::pair(4096);
    bed.guest.page = theirs;
    bed.ring = RingConnection::attach(&mut bed.server, DomId(5), ours);
    bed.guest.write(&packet(Op::GET_DOMAIN_PATH, 4, 0, b"1\0"));
    bed.pump().unwrap();
    assert_eq!(bed.guest.answers()[0].req_id, 4);
}

/// Whoever builds a domain may set the word; the domain then waits for it to be cleared.
#[test]
fn a_domain_that_waits_for_its_connection_hears_of_it() {
    let (ours, theirs) = SharedPages::pair(4096);
    let guest = Guest {
        page: theirs,
        received: Vec::new(),
    };
    guest.set(offset_of!(Interface, connection), XENSTORE_RECONNECT);
    let mut server = Server::new(Default::default());
    let mut ring = RingConnection::attach(&mut server, DomId(5), ours);
    assert_eq!(guest.word(offset_of!(Interface, connection)), 0);
    assert!(ring.pump(&mut server).unwrap().notify);
    assert_eq!(ring.pump(&mut server), Ok(Pumped::default()), "told once");
}

#[test]
fn a_second_introduction_empties_the_ring() {
    let mut bed = bed(3);
    bed.guest.write(&packet(Op::WATCH, 1, 0, b"/x\0t\0"));
    bed.pump().unwrap();
    bed.guest.write(b"half a pack");
    // The same page, mapped again.
    let (ours, theirs) = SharedPages::pair(4096);
    let mut copy = vec![0; 4096];
    bed.guest.page.read_bytes(0, &mut copy);
    theirs.write_bytes(0, &copy);
    bed.guest = Guest {
        page: theirs,
        received: Vec::new(),
    };
    bed.ring = RingConnection::attach(&mut bed.server, DomId(5), ours);
    bed.guest.write(&packet(Op::GET_DOMAIN_PATH, 3, 0, b"1\0"));
    bed.pump().unwrap();
    let answers = bed.guest.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].req_id, 3);
    assert_eq!(bed.server.stats(DomId(5)).unwrap().watches.now, 0);
}

#[test]
fn what_was_written_before_the_first_introduction_is_served() {
    let (ours, theirs) = SharedPages::pair(4096);
    let mut guest = Guest {
        page: theirs,
        received: Vec::new(),
    };
    guest.write(&packet(Op::GET_DOMAIN_PATH, 1, 0, b"1\0"));
    let mut server = Server::new(Default::default());
    let mut ring = RingConnection::attach(&mut server, DomId(5), ours);
    assert!(ring.pump(&mut server).unwrap().notify);
    assert_eq!(guest.answers().len(), 1);
}

#[test]
fn events_from_others_make_the_connection_ready() {
    let mut bed = bed(0);
    bed.guest.write(&packet(Op::WATCH, 1, 0, b"data\0t\0"));
    bed.pump().unwrap();
    bed.guest.answers();
    assert_eq!(bed.server.next_ready(), None, "pumped, so not waiting");
    bed.server.write("/local/domain/5/data", b"").unwrap();
    let perms = [toolstack_xenstore::Perm {
        domid: DomId(5),
        access: toolstack_xenstore::Access::NONE,
    }];
    bed.server
        .set_perms("/local/domain/5/data", &perms)
        .unwrap();
    assert_eq!(bed.server.next_ready(), Some(bed.ring.conn()));
    assert!(bed.pump().unwrap().notify);
    assert_eq!(bed.guest.answers()[0].payload, b"data\0t\0");
}

#[test]
fn one_call_serves_a_bounded_amount() {
    let mut bed = bed(0);
    // Empty requests, as many as the ring holds.
    let request = packet(Op::RESET_WATCHES, 1, 0, b"");
    let stream = request.repeat(64);
    let mut calls_with_more = 0;
    for _ in 0..20 {
        bed.guest.write(&stream);
        calls_with_more += usize::from(bed.pump().unwrap().more);
        bed.guest.answers();
    }
    // Nobody reads while the call runs: at most the outstanding quota is served.
    let served = bed.server.stats(DomId(5)).unwrap().requests;
    assert!(served <= 20 * 64, "{served} in {calls_with_more}");
}

#[test]
fn a_released_domains_ring_is_silent() {
    let mut bed = bed(0);
    bed.guest.write(&packet(Op::GET_DOMAIN_PATH, 1, 0, b"1\0"));
    bed.server.domain_released(DomId(5));
    assert_eq!(bed.pump(), Ok(Pumped::default()));
    assert_eq!(bed.guest.answers(), []);
}

/// A kernel sleeps until a connection is ready or the deadline it knows of: whatever
/// makes a new deadline must therefore make a connection ready, once.
#[test]
fn a_new_deadline_is_told_once() {
    let mut bed = bed(0);
    let other = bed.server.domain_introduced(DomId(6));
    let start = packet(Op::TRANSACTION_START, 1, 0, b"\0");
    bed.server.input(other, &start).unwrap();
    let perms = [toolstack_xenstore::Perm {
        domid: DomId(5),
        access: toolstack_xenstore::Access::NONE,
    }];
    bed.server.mkdir("/local/domain/5").unwrap();
    bed.server.set_perms("/local/domain/5", &perms).unwrap();
    while bed.server.next_ready().is_some() {}
    assert_eq!(bed.server.next_deadline_ms(), None);
    // It writes too fast while the other has a transaction.
    while bed.server.stats(DomId(5)).unwrap().stalls == 0 {
        bed.guest.write(&packet(Op::WRITE, 1, 0, b"x\0y"));
        bed.pump().unwrap();
        bed.guest.answers();
    }
    assert_eq!(bed.server.next_ready(), Some(bed.ring.conn()));
    let deadline = bed
        .server
        .next_deadline_ms()
        .expect("it waits for its rate");
    bed.pump().unwrap();
    assert_eq!(bed.server.next_ready(), None, "told already");
    bed.server.advance(deadline);
    assert_eq!(
        bed.server.next_ready(),
        Some(bed.ring.conn()),
        "it may go on"
    );
    bed.server.advance(1_000_000);
    bed.pump().unwrap();
    bed.guest.answers();
    // An event that does not fit into the ring.
    bed.guest.write(&packet(Op::WATCH, 1, 0, b"x\0t\0"));
    bed.pump().unwrap();
    bed.guest.answers();
    bed.guest.write(&packet(Op::READ, 1, 0, b"/tool/big\0"));
    bed.pump().unwrap();
    while bed.server.next_ready().is_some() {}
    bed.server.write("/local/domain/5/x", b"").unwrap();
    // Pumped for another reason before anybody asked who is ready.
    bed.pump().unwrap();
    assert_eq!(bed.server.next_ready(), Some(bed.ring.conn()));
    assert!(bed.server.next_deadline_ms().is_some());
    bed.pump().unwrap();
    assert_eq!(bed.server.next_ready(), None, "told already");
}
