//! Entry points for fuzzers: bytes in, a panic out if something is wrong.
//!
//! Three depths: raw bytes on connections, a hostile page behind a ring, and requests
//! that are well-formed more often than not. Each runs a fresh server, checks the
//! quotas as it goes and the server's own books at the end.

use crate::{Access, ConnId, Perm, Quotas, RingConnection, Server, home};
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use xen_abi::DomId;
use xen_abi::io::xs_wire::{SockMsg, XenstoreDomainInterface as Interface};
use xen_ring::SharedPages;
use zerocopy::IntoBytes;

const GUESTS: [DomId; 3] = [DomId(1), DomId(2), DomId(3)];

/// Small, so that short inputs reach them.
const QUOTAS: Quotas = Quotas {
    nodes: 20,
    watches: 8,
    outstanding: 4,
    memory: 48 * 1024,
    memory_soft: 40 * 1024,
    transactions: 3,
    transaction_nodes: 12,
    ..Quotas::GUEST
};

/// What a guest's memory may be above its quota at any time: the answers it was still
/// owed when it passed the quota, and nodes that dom0 made it the owner of.
const SLACK: usize = 64 * 1024;

/// The bytes that decide what happens.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let byte = self.byte()?;
        Some(from[usize::from(byte) % from.len()])
    }

    fn bytes(&mut self, most: usize) -> Option<&'a [u8]> {
        let len = usize::from(self.byte()?).min(self.0.len()).min(most);
        let (first, rest) = self.0.split_at(len);
        self.0 = rest;
        Some(first)
    }

    fn word(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes([
            self.byte()?,
            self.byte()?,
            self.byte()?,
            self.byte()?,
        ]))
    }
}

fn server() -> Server {
    let mut server = Server::new(crate::Config {
        quotas: QUOTAS,
        event_timeout_ms: 100,
    });
    for domid in GUESTS {
        introduce(&mut server, domid);
    }
    server
}

/// A guest as the toolstack sets it up.
fn introduce(server: &mut Server, domid: DomId) -> ConnId {
    let path = home(domid);
    let perms = [Perm {
        domid,
        access: Access::NONE,
    }];
    server.mkdir(&path).expect("dom0 may");
    server.set_perms(&path, &perms).expect("dom0 may");
    server.domain_introduced(domid)
}

fn check_quotas(server: &Server) {
    for domid in GUESTS {
        let Some(stats) = server.stats(domid) else {
            continue;
        };
        assert!(
            stats.memory.now <= QUOTAS.memory + SLACK,
            "d{domid}: {stats:?}"
        );
        assert!(stats.watches.now <= QUOTAS.watches);
        assert!(stats.transactions.now <= QUOTAS.transactions);
        assert!(stats.outstanding.now <= QUOTAS.outstanding);
    }
}

fn check_books(server: &Server) {
    if let Err(what) = server.check() {
        panic!("{what}");
    }
}

fn drain(server: &mut Server, id: ConnId, most: usize) {
    let count = server.output(id).len().min(most);
    server.sent(id, count);
}

/// Raw bytes from three guests and one privileged client, read back or not.
pub fn bytes(data: &[u8]) {
    let mut input = Input(data);
    let mut server = server();
    let tools = server.connect(DomId(0), true);
    let mut conns: Vec<ConnId> = GUESTS
        .iter()
        .filter_map(|d| server.connection_of(*d))
        .collect();
    conns.push(tools);
    let mut now_ms = 0;
    while let Some((what, conn)) = input.byte().zip(input.pick(&conns)) {
        match what % 8 {
            0..=4 => {
                let Some(sent) = input.bytes(255) else { break };
                if server.input(conn, sent).is_err() {
                    server.reset_connection(conn);
                }
            }
            5 => drain(&mut server, conn, usize::MAX),
            6 => drain(&mut server, conn, 7),
            _ => {
                now_ms += u64::from(what);
                server.advance(now_ms);
            }
        }
        while server.next_action().is_some() {}
        check_quotas(&server);
    }
    check_books(&server);
}

/// A ring whose page another writes at will, between calls of `pump`.
pub fn ring(data: &[u8]) {
    let mut input = Input(data);
    let mut server = server();
    let (ours, theirs) = SharedPages::pair(4096);
    let mut ring = RingConnection::attach(&mut server, GUESTS[0], ours);
    let words = [
        offset_of!(Interface, req_cons),
        offset_of!(Interface, req_prod),
        offset_of!(Interface, rsp_cons),
        offset_of!(Interface, rsp_prod),
        offset_of!(Interface, server_features),
        offset_of!(Interface, connection),
        offset_of!(Interface, error),
    ];
    let mut faults = 0;
    while let Some(what) = input.byte() {
        match what % 6 {
            // An honest request, as far as it fits.
            0 | 1 => {
                let Some(bytes) = input.bytes(200) else { break };
                let mut prod = theirs.load_u32(offset_of!(Interface, req_prod), Ordering::Relaxed);
                for byte in bytes {
                    theirs.write_bytes(prod as usize % 1024, &[*byte]);
                    prod = prod.wrapping_add(1);
                }
                theirs.store_u32(offset_of!(Interface, req_prod), prod, Ordering::Relaxed);
            }
            // Everything read.
            2 => {
                let prod = theirs.load_u32(offset_of!(Interface, rsp_prod), Ordering::Relaxed);
                theirs.store_u32(offset_of!(Interface, rsp_cons), prod, Ordering::Relaxed);
            }
            // Any word, any value.
            3 => {
                let Some((word, value)) = input.pick(&words).zip(input.word()) else {
                    break;
                };
                theirs.store_u32(word, value, Ordering::Relaxed);
            }
            4 => theirs.store_u32(offset_of!(Interface, connection), 1, Ordering::Relaxed),
            _ => {
                let Some(bytes) = input.bytes(255) else { break };
                theirs.write_bytes(usize::from(what) * 3, bytes);
            }
        }
        // A fault is the guest's, and its last one.
        if ring.pump(&mut server).is_err() {
            faults += 1;
            assert_eq!(faults, 1, "a second fault on one introduction");
            assert_ne!(
                theirs.load_u32(offset_of!(Interface, error), Ordering::Relaxed),
                0
            );
        }
        check_quotas(&server);
    }
    check_books(&server);
}

/// Requests over a small vocabulary, by everybody, in and out of transactions, with
/// domains that come and go in between.
pub fn requests(data: &[u8]) {
    const PATHS: [&[u8]; 12] = [
        b"a",
        b"a/b",
        b"a/b/c/d",
        b"/",
        b"/shared",
        b"/shared/x",
        b"/local/domain/1",
        b"/local/domain/1/a",
        b"/local/domain/2/a/b",
        b"@releaseDomain",
        b"@introduceDomain",
        b"a//b",
    ];
    const TAILS: [&[u8]; 12] = [
        b"",
        b"\0",
        b"\0value",
        b"\0token\0",
        b"\0other\0",
        b"\0n0\0b1\0",
        b"\0n1\0r2\0",
        b"\0b2\0",
        b"\x000\0",
        b"\x0099\0",
        b"\0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        b"\0\0\0",
    ];
    const WHOLE: [&[u8]; 8] = [
        b"T\0",
        b"F\0",
        b"1\0",
        b"2\x000\x005\0",
        b"1\x002\0",
        b"check\0",
        b"quota\x001\0",
        b"\0",
    ];
    let mut input = Input(data);
    let mut server = server();
    let tools = server.connect(DomId(0), true);
    server.mkdir("/shared").expect("dom0 may");
    let everybody = [Perm {
        domid: DomId(0),
        access: Access::BOTH,
    }];
    server.set_perms("/shared", &everybody).expect("dom0 may");
    let mut now_ms = 0;
    let mut step = || -> Option<()> {
        let who = input.byte()?;
        let domid = GUESTS[usize::from(who) % GUESTS.len()];
        let conn = match who {
            0..200 => server.connection_of(domid),
            200..240 => Some(tools),
            240..246 => {
                server.domain_released(domid);
                None
            }
            246..252 => Some(introduce(&mut server, domid)),
            _ => {
                now_ms += u64::from(who);
                server.advance(now_ms);
                None
            }
        };
        let Some(conn) = conn else {
            return Some(());
        };
        let operation = input.byte()?;
        let payload = if input.byte()? % 3 == 0 {
            input.pick(&WHOLE)?.to_vec()
        } else {
            [input.pick(&PATHS)?, input.pick(&TAILS)?].concat()
        };
        let header = SockMsg {
            message_type: u32::from(operation % 25),
            req_id: 1,
            // Numbers start at 1 on each connection.
            tx_id: u32::from(input.byte()? % 8).saturating_sub(3),
            len: u32::try_from(payload.len()).ok()?,
        };
        let packet = [header.as_bytes(), &payload].concat();
        let taken = server
            .input(conn, &packet)
            .map_or(0, |input| input.consumed);
        assert!(
            taken == 0 || taken == packet.len(),
            "half a request was taken"
        );
        if operation >= 32 {
            while !server.output(conn).is_empty() {
                drain(&mut server, conn, usize::MAX);
            }
        }
        while server.next_action().is_some() {}
        check_quotas(&server);
        Some(())
    };
    while step().is_some() {}
    check_books(&server);
}
