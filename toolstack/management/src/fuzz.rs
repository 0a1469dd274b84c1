//! An entry point for fuzzers: what anybody sends to the management address.
//!
//! Checksums are not looked at, and a record may ask for a frame to be made to fit what the
//! stack said last, so that changed bytes come further than the first look at them.

use crate::link::Link;
use crate::{Port, Stack};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem;
use core::net::Ipv4Addr;
use smoltcp::iface::SocketHandle;
use smoltcp::time::{Duration, Instant};
use toolstack_boot::Address;

const OURS: [u8; 6] = [0, 0x16, 0x3e, 0, 0, 1];
const ADDRESS: [u8; 4] = [10, 0, 2, 15];
const ROUTER: [u8; 4] = [10, 0, 2, 2];
const RPC: u16 = 8443;
/// Bytes that a record starts with: what to do, how, and how many bytes follow.
const RECORD: usize = 4;
/// Where the headers of a frame without options are.
const IP: usize = 14;
const TRANSPORT: usize = IP + 20;
const DHCP: usize = TRANSPORT + 8;

/// Runs records: byte 0 says what happens, byte 1 how, two bytes how long the frame behind
/// them is. Panics only if the stack does.
pub fn frames(data: &[u8]) {
    let Some((first, mut rest)) = data.split_first() else {
        return;
    };
    let mut bed = Bed::new(first & 1 == 1);
    bed.poll();
    while let Some((head, behind)) = rest.split_first_chunk::<RECORD>() {
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let (bytes, behind) = behind.split_at(len.min(behind.len()));
        rest = behind;
        match head[0] % 3 {
            0 => bed.arrives(head[1], bytes),
            1 => bed.now += Duration::from_millis(1 << (head[1] % 28)),
            _ => bed.use_connections(head[1]),
        }
        bed.poll();
    }
    // What is left to be done is done or given up in some time.
    for _ in 0..64 {
        let Some(delay) = bed.poll() else { break };
        bed.now += delay;
    }
}

/// What the stack said last that an answer must fit.
#[derive(Debug, Default)]
struct Said {
    /// TCP's next sequence number of ours, and the one that we expect.
    sequence: u32,
    expected: u32,
    dhcp_id: [u8; 4],
}

#[derive(Debug, Default)]
struct Wire {
    coming: VecDeque<Vec<u8>>,
    said: Said,
}

impl Port for Wire {
    fn receive(&mut self) -> Option<Vec<u8>> {
        self.coming.pop_front()
    }

    fn send(&mut self, frame: &[u8]) {
        self.said.note(frame);
    }
}

struct Bed {
    stack: Stack<Wire>,
    accepted: Vec<SocketHandle>,
    now: Instant,
}

impl Bed {
    fn new(by_dhcp: bool) -> Self {
        let address = if by_dhcp {
            Address::Dhcp
        } else {
            Address::Static {
                address: Ipv4Addr::from(ADDRESS),
                prefix: 24,
                gateway: Some(Ipv4Addr::from(ROUTER)),
                dns: None,
            }
        };
        let link = Link {
            port: Wire::default(),
            checksums: false,
        };
        let now = Instant::ZERO;
        Self {
            stack: Stack::new(link, OURS, address, RPC, 1, now),
            accepted: Vec::new(),
            now,
        }
    }

    fn poll(&mut self) -> Option<Duration> {
        let delay = self.stack.poll(self.now);
        self.accepted.extend(self.stack.accept());
        delay
    }

    fn arrives(&mut self, how: u8, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        let wire = self.stack.port();
        wire.said.fit(&mut bytes, how);
        wire.coming.push_back(bytes);
    }

    /// What the pVM does with its connections.
    fn use_connections(&mut self, how: u8) {
        if how % 4 == 3 {
            for handle in mem::take(&mut self.accepted) {
                self.stack.close(handle, self.now);
            }
        }
        for handle in &self.accepted {
            let socket = self.stack.socket(*handle);
            match how % 4 {
                0 => {
                    // Refused if the peer has closed it.
                    let _read = socket.recv_slice(&mut [0; 3000]);
                }
                1 => {
                    let _written = socket.send_slice(&[how; 3000]);
                }
                _ => socket.abort(),
            }
        }
    }
}

impl Said {
    fn note(&mut self, frame: &[u8]) {
        match frame.get(IP + 9) {
            Some(6) => {
                let word = |at| {
                    frame
                        .get(at..at + 4)?
                        .try_into()
                        .ok()
                        .map(u32::from_be_bytes)
                };
                let flags = frame.get(TRANSPORT + 13).copied().unwrap_or(0);
                let offset = frame.get(TRANSPORT + 12).map_or(0, |byte| byte >> 4);
                let headers = TRANSPORT + usize::from(offset) * 4;
                let payload = u32::try_from(frame.len().saturating_sub(headers)).unwrap_or(0);
                // FIN and SYN take a number too.
                let taken = payload + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
                self.sequence = word(TRANSPORT + 4).unwrap_or(0).wrapping_add(taken);
                self.expected = word(TRANSPORT + 8).unwrap_or(0);
            }
            Some(17) => {
                if let Some(id) = frame.get(DHCP + 4..DHCP + 8) {
                    self.dhcp_id.copy_from_slice(id);
                }
            }
            _ => {}
        }
    }

    /// Makes of a frame what the stack takes for an answer; each bit of `how` is one field.
    fn fit(&self, frame: &mut [u8], how: u8) {
        let is = |bit: u8| how >> bit & 1 == 1;
        if is(0) {
            put(frame, 0, &OURS);
        }
        if is(1) {
            put(frame, IP + 16, &ADDRESS);
        }
        if is(2) {
            let len = u16::try_from(frame.len().saturating_sub(IP)).unwrap_or(u16::MAX);
            put(frame, IP + 2, &len.to_be_bytes());
        }
        if is(3) {
            put(frame, TRANSPORT + 2, &RPC.to_be_bytes());
        }
        if is(4) {
            put(frame, TRANSPORT + 4, &self.expected.to_be_bytes());
        }
        if is(5) {
            put(frame, TRANSPORT + 8, &self.sequence.to_be_bytes());
        }
        if is(6) {
            put(frame, DHCP + 4, &self.dhcp_id);
        }
    }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = frame.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
