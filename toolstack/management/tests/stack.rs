//! The management address, frame by frame.
#![allow(
    clippy::cast_possible_truncation,
    reason = "made-up test data and lengths"
)]

use smoltcp::iface::SocketHandle;
use smoltcp::time::{Duration, Instant};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::rc::Rc;
use toolstack_boot::Address;
use toolstack_domain::placement::SOCKETS;
use toolstack_management::link::Link;
use toolstack_management::{PEER_TIMEOUT, Port, Stack};

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ADDRESS: [u8; 4] = [10, 0, 0, 1];
/// The router, which gives addresses, too.
const SERVER: [u8; 4] = [10, 0, 0, 254];
const RPC: u16 = 8443;

/// Who tries to connect beside those that only begin to.
const HONEST: u16 = 8;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

#[derive(Clone, Default)]
struct Wire(Rc<RefCell<Frames>>);

#[derive(Default)]
struct Frames {
    coming: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

impl Port for Wire {
    fn receive(&mut self) -> Option<Vec<u8>> {
        self.0.borrow_mut().coming.pop_front()
    }

    fn send(&mut self, frame: &[u8]) {
        self.0.borrow_mut().sent.push(frame.to_vec());
    }
}

fn fixed() -> Address {
    Address::Static {
        address: ADDRESS.into(),
        prefix: 16,
        gateway: Some(SERVER.into()),
        dns: None,
    }
}

struct Bed {
    wire: Wire,
    stack: Stack<Wire>,
    now: Instant,
}

impl Bed {
    fn new(address: Address) -> Self {
        Self::on(address, false)
    }

    fn on(address: Address, checksums: bool) -> Self {
        let wire = Wire::default();
        let link = Link {
            port: wire.clone(),
            checksums,
        };
        let now = Instant::ZERO;
        Self {
            stack: Stack::new(link, OURS, address, RPC, 7, now),
            wire,
            now,
        }
    }

    fn fixed() -> Self {
        Self::new(fixed())
    }

    fn arrives(&self, frame: Vec<u8>) {
        self.wire.0.borrow_mut().coming.push_back(frame);
    }

    /// Polls until nothing that came is left; a millisecond passes. What was sent.
    fn poll(&mut self) -> Vec<Vec<u8>> {
        loop {
            self.stack.poll(self.now);
            if self.wire.0.borrow().coming.is_empty() {
                break;
            }
        }
        self.now += Duration::from_millis(1);
        std::mem::take(&mut self.wire.0.borrow_mut().sent)
    }

    /// A peer makes itself known by ARP, begins and ends its handshake.
    fn connect(&mut self, peer: Peer) -> SocketHandle {
        self.arrives(peer.asks_for_us());
        self.arrives(peer.sends(SYN, 0, 0));
        let answer = self.poll();
        let sequence = peer.synack(&answer).expect("an answer");
        self.arrives(peer.sends(ACK, 1, sequence + 1));
        self.poll();
        self.stack.accept().expect("a connection")
    }
}

/// Somebody else on the network, at one of its ports.
#[derive(Clone, Copy, Debug)]
struct Peer {
    address: [u8; 4],
    port: u16,
}

impl Peer {
    fn new(number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        Self {
            address: [10, 0, 1 + high, low],
            port: 40_000,
        }
    }

    fn at(self, port: u16) -> Self {
        Self { port, ..self }
    }

    fn mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.address;
        [6, 0, a, b, c, d]
    }

    fn frame(self, to: [u8; 6], kind: u16, packet: &[u8]) -> Vec<u8> {
        [&to[..], &self.mac(), &kind.to_be_bytes(), packet].concat()
    }

    fn asks_for_us(self) -> Vec<u8> {
        let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
        let from = [&self.mac()[..], &self.address].concat();
        let packet = [&fixed[..], &from, &[0; 6], &ADDRESS].concat();
        self.frame([0xff; 6], 0x0806, &packet)
    }

    fn sends(self, flags: u8, sequence: u32, acknowledged: u32) -> Vec<u8> {
        let mut tcp = [self.port.to_be_bytes(), RPC.to_be_bytes()].concat();
        tcp.extend(sequence.to_be_bytes());
        tcp.extend(acknowledged.to_be_bytes());
        tcp.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self.frame(OURS, 0x0800, &ipv4(6, self.address, ADDRESS, &tcp))
    }

    /// Our sequence number, if a frame accepts its connection.
    fn synack(self, frames: &[Vec<u8>]) -> Option<u32> {
        let mut ours = frames.iter().filter(|frame| self.is_answered_by(frame));
        ours.find(|frame| frame[47] == SYN | ACK)
            .map(|frame| sequence(frame))
    }

    fn is_reset(self, frames: &[Vec<u8>]) -> bool {
        let mut ours = frames.iter().filter(|frame| self.is_answered_by(frame));
        ours.any(|frame| frame[47] & RST != 0)
    }

    fn is_answered_by(self, frame: &[u8]) -> bool {
        frame.len() >= 54
            && frame[23] == 6
            && frame[30..34] == self.address
            && frame[36..38] == self.port.to_be_bytes()
    }
}

/// TCP's sequence number.
fn sequence(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[38..42].try_into().unwrap())
}

fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let head = [0x45, 0, len[0], len[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
    [&head[..], &from, &to, payload].concat()
}

/// How many of `honest` peers connect, one after the other and with `delay` polls between
/// our answer and theirs, while each poll has `rate` connections begun by `attackers`
/// addresses.
fn connects_through_flood(bed: &mut Bed, rate: u16, attackers: u16, delay: u32) -> u32 {
    for number in 0..attackers {
        bed.arrives(Peer::new(number).asks_for_us());
    }
    let mut port = 0;
    let mut flood = |bed: &Bed| {
        for number in 0..rate {
            port = port % 60_000 + 1;
            bed.arrives(Peer::new(number % attackers).at(port).sends(SYN, 0, 0));
        }
    };
    let mut connected = 0;
    for number in 0..HONEST {
        let honest = Peer::new(1000 + number);
        flood(bed);
        bed.arrives(honest.asks_for_us());
        bed.arrives(honest.sends(SYN, 0, 0));
        flood(bed);
        let answer = bed.poll();
        assert!(!honest.is_reset(&answer), "at once");
        let sequence = honest.synack(&answer).expect("an answer");
        for _ in 0..delay {
            flood(bed);
            bed.poll();
        }
        bed.arrives(honest.sends(ACK, 1, sequence + 1));
        bed.poll();
        let Some(handle) = bed.stack.accept() else {
            continue;
        };
        let peer = bed.stack.socket(handle).remote_endpoint().unwrap().addr;
        assert_eq!(peer, Ipv4Addr::from(honest.address).into());
        connected += 1;
        bed.stack.socket(handle).abort();
        bed.stack.close(handle, bed.now);
        bed.poll();
    }
    connected
}

#[test]
fn who_begins_many_connections_keeps_nobody_of_another_address_out() {
    for attackers in [1, 4, SOCKETS as u16 / 2] {
        for (rate, delay) in [(1, 50), (16, 20), (100, 3)] {
            let mut bed = Bed::fixed();
            let connected = connects_through_flood(&mut bed, rate, attackers, delay);
            assert_eq!(
                connected,
                u32::from(HONEST),
                "{attackers} of {rate}, {delay}"
            );
        }
    }
}

/// As many administrators and strangers as the host serves: few places are left.
#[test]
fn who_begins_many_connections_keeps_nobody_out_of_the_last_places() {
    let mut bed = Bed::fixed();
    for number in 0..20 {
        bed.connect(Peer::new(2000 + number));
    }
    for attackers in [1, 2] {
        let connected = connects_through_flood(&mut bed, 16, attackers, 20);
        assert_eq!(connected, u32::from(HONEST), "{attackers}");
    }
}

#[test]
fn with_all_places_in_use_who_comes_is_refused_until_one_is_free() {
    let mut bed = Bed::fixed();
    let used: Vec<_> = (0..SOCKETS as u16)
        .map(|number| bed.connect(Peer::new(number)))
        .collect();
    let late = Peer::new(500);
    bed.arrives(late.asks_for_us());
    bed.arrives(late.sends(SYN, 0, 0));
    let answer = bed.poll();
    assert!(late.is_reset(&answer));
    // Two peers that do not agree to the end: one makes room for who comes.
    for handle in &used[..2] {
        bed.stack.close(*handle, bed.now);
    }
    bed.poll();
    bed.connect(late);
}

#[test]
fn the_place_of_a_connection_that_ended_is_free_again() {
    let mut bed = Bed::fixed();
    let peers = (0..SOCKETS as u16).map(Peer::new);
    let used: Vec<_> = peers.map(|peer| (peer, bed.connect(peer))).collect();
    let (peer, handle) = used[0];
    bed.stack.close(handle, bed.now);
    let sent = bed.poll();
    let end = sent.iter().find(|frame| peer.is_answered_by(frame));
    let ours = sequence(end.expect("its end is sent"));
    bed.arrives(peer.sends(FIN | ACK, 1, ours + 1));
    bed.poll();
    bed.connect(Peer::new(500));
}

#[test]
fn who_vanishes_while_its_connection_is_in_use_is_given_up() {
    let mut bed = Bed::fixed();
    let handle = bed.connect(Peer::new(1));
    // The first keep-alive, and the time for its answer, in steps as a vCPU has them.
    for _ in 0..50 {
        bed.now += Duration::from_secs(1);
        bed.poll();
    }
    assert!(!bed.stack.socket(handle).is_open());
}

#[test]
fn an_idle_connection_stays_while_its_peer_answers() {
    let mut bed = Bed::fixed();
    let peer = Peer::new(1);
    let handle = bed.connect(peer);
    let end = bed.now + PEER_TIMEOUT * 3;
    while bed.now < end {
        bed.now += Duration::from_secs(1);
        // A keep-alive repeats the byte before the next one.
        for asked in bed.poll() {
            bed.arrives(if peer.is_answered_by(&asked) {
                peer.sends(ACK, 1, sequence(&asked) + 1)
            } else {
                peer.asks_for_us()
            });
        }
    }
    assert!(bed.stack.socket(handle).is_open());
}

#[test]
fn one_poll_takes_some_frames_only() {
    const CAME: usize = 500;
    let mut bed = Bed::fixed();
    for _ in 0..CAME {
        bed.arrives(Peer::new(1).asks_for_us());
    }
    bed.stack.poll(bed.now);
    let left = bed.wire.0.borrow().coming.len();
    assert!((1..CAME).contains(&left), "{left} left");
}

#[test]
fn a_closed_connection_is_reset_when_its_peer_does_not_agree_in_time() {
    let mut bed = Bed::fixed();
    let peer = Peer::new(1);
    let handle = bed.connect(peer);
    bed.stack.socket(handle).send_slice(b"last words").unwrap();
    bed.stack.close(handle, bed.now);
    let sent = bed.poll();
    let last = sent.last().expect("its end is sent");
    assert!(last[47] & FIN != 0 && last.ends_with(b"last words"));
    // It has read all of it, but does not end its side.
    let grace = Duration::from_secs(5);
    bed.now += PEER_TIMEOUT - grace;
    bed.arrives(peer.sends(ACK, 1, sequence(last) + 11));
    assert!(!peer.is_reset(&bed.poll()));
    bed.now += grace;
    assert!(peer.is_reset(&bed.poll()), "given up");
}

/// Else each frame to one of them would wait for an answer by ARP, of which one is asked a
/// second.
#[test]
fn many_stations_are_remembered() {
    let mut bed = Bed::fixed();
    let first = Peer::new(0);
    let handle = bed.connect(first);
    for number in 1..60 {
        bed.arrives(Peer::new(number).asks_for_us());
    }
    bed.poll();
    bed.stack.socket(handle).send_slice(b"hello").unwrap();
    let sent = bed.poll();
    assert!(sent.iter().any(|frame| frame.ends_with(b"hello")));
}

/// A DHCP server's message, to the client that asked last.
fn dhcp(kind: u8, source: [u8; 4], router: Option<[u8; 4]>, asked: &[u8]) -> Vec<u8> {
    let id = &asked[46..50];
    let mut message = [
        &[2, 1, 6, 0],
        id,
        &[0; 8],
        &ADDRESS,
        &SERVER,
        &[0; 4],
        &OURS,
    ]
    .concat();
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind, 54, 4]);
    message.extend(SERVER);
    message.extend([51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 0, 0]);
    if let Some([a, b, c, d]) = router {
        message.extend([3, 4, a, b, c, d]);
    }
    message.push(255);
    let len = (8 + message.len() as u16).to_be_bytes();
    let udp = [&[0, 67, 0, 68, len[0], len[1], 0, 0], &message[..]].concat();
    Peer::new(9).frame(OURS, 0x0800, &ipv4(17, source, ADDRESS, &udp))
}

/// Asks for an address, and gets answers from `source` with this router.
fn by_dhcp(source: [u8; 4], router: [u8; 4]) -> Bed {
    let mut bed = Bed::new(Address::Dhcp);
    bed.poll();
    bed.now += Duration::from_secs(2);
    for kind in [2, 5] {
        let asked = bed.poll();
        let asked = asked.last().expect("a question").clone();
        bed.arrives(dhcp(kind, source, Some(router), &asked));
        bed.poll();
        bed.now += Duration::from_secs(20);
    }
    bed
}

#[test]
fn an_address_is_taken_from_a_dhcp_server_and_renewed() {
    let mut bed = by_dhcp(SERVER, SERVER);
    assert!(bed.stack.take_change() && !bed.stack.take_change());
    let address = bed.stack.address().expect("an address");
    assert_eq!(address.address().octets(), ADDRESS);
    assert_eq!(address.prefix_len(), 16);
    assert_eq!(bed.stack.router(), Some(SERVER.into()));
    // Half of the hour.
    bed.now += Duration::from_secs(1800);
    assert!(!bed.poll().is_empty());
    bed.now += Duration::from_secs(3600);
    bed.poll();
    assert_eq!(bed.stack.address(), None, "nobody renewed it");
    assert_eq!(bed.stack.router(), None);
    assert!(bed.stack.take_change());
}

#[test]
fn a_lease_without_a_router_leaves_none() {
    let mut bed = by_dhcp(SERVER, SERVER);
    // Of another network, so that the answer goes by the router, who is asked for by ARP.
    let far = echo(Peer::new(3), [192, 0, 2, 1]);
    bed.arrives(far.clone());
    assert_eq!(bed.poll().len(), 1);
    // Half of the hour. The server is asked for by ARP, too.
    bed.now += Duration::from_secs(1800);
    bed.poll();
    let server = Peer {
        address: SERVER,
        port: 67,
    };
    bed.arrives(server.asks_for_us());
    let asked = bed.poll();
    let asked = asked.last().expect("a question").clone();
    bed.arrives(dhcp(5, SERVER, None, &asked));
    bed.poll();
    assert!(bed.stack.address().is_some());
    assert_eq!(bed.stack.router(), None);
    // Who is asked for is asked for once a second.
    bed.now += Duration::from_secs(2);
    bed.arrives(far);
    assert!(bed.poll().is_empty(), "sent by a router that is none");
}

/// smoltcp panics when it sends by such a router.
#[test]
fn a_router_that_no_host_can_be_is_not_believed() {
    for router in [[0; 4], [255; 4], [224, 0, 0, 1], [127, 0, 0, 1]] {
        let mut bed = by_dhcp(SERVER, router);
        assert!(bed.stack.address().is_some());
        assert_eq!(bed.stack.router(), None);
        // Of another network, so that the answer goes by the router.
        let mut frame = Peer::new(3).sends(SYN, 0, 0);
        frame[26..30].copy_from_slice(&[192, 0, 2, 1]);
        bed.arrives(frame);
        bed.poll();
    }
}

/// smoltcp renews at the source of the offer, and panics if that is nobody.
#[test]
fn frames_from_nobody_are_not_looked_at() {
    let mut bed = Bed::new(Address::Dhcp);
    bed.poll();
    bed.now += Duration::from_secs(2);
    let asked = bed.poll();
    let asked = asked.last().expect("a question").clone();
    bed.arrives(dhcp(2, [0; 4], Some(SERVER), &asked));
    bed.poll();
    bed.arrives(dhcp(5, [0; 4], Some(SERVER), &asked));
    bed.poll();
    assert_eq!(bed.stack.address(), None);
}

fn echo(by: Peer, from: [u8; 4]) -> Vec<u8> {
    let echo = [8, 0, 0, 0, 0, 1, 0, 1, b'p', b'i', b'n', b'g'];
    by.frame(OURS, 0x0800, &ipv4(1, from, ADDRESS, &echo))
}

#[test]
fn pings_are_answered() {
    let mut bed = Bed::fixed();
    let peer = Peer::new(1);
    bed.arrives(peer.asks_for_us());
    bed.arrives(echo(peer, peer.address));
    let sent = bed.poll();
    let answer = sent.last().expect("an answer");
    assert_eq!((answer[23], answer[34]), (1, 0));
    assert!(answer.ends_with(b"ping"));
}

/// Of an even number of bytes. All ones if they hold a checksum that is right.
fn sum(bytes: &[u8]) -> u16 {
    bytes.chunks_exact(2).fold(0, |sum: u16, pair| {
        let (sum, carry) = sum.overflowing_add(u16::from_be_bytes([pair[0], pair[1]]));
        sum + u16::from(carry)
    })
}

/// The sums of a TCP frame's IPv4 header, and of its TCP with the pseudo header.
fn sums(frame: &[u8]) -> [u16; 2] {
    let tcp = &frame[34..];
    let pseudo = [&frame[26..34], &[0, 6, 0, tcp.len() as u8], tcp].concat();
    [sum(&frame[14..34]), sum(&pseudo)]
}

#[test]
fn frames_with_wrong_checksums_are_not_looked_at() {
    const IP: usize = 24;
    const TCP: usize = 50;
    let mut bed = Bed::on(fixed(), true);
    let peer = Peer::new(1);
    bed.arrives(peer.asks_for_us());
    bed.poll();
    let mut right = peer.sends(SYN, 0, 0);
    let [ip, tcp] = sums(&right);
    right[IP..IP + 2].copy_from_slice(&(!ip).to_be_bytes());
    right[TCP..TCP + 2].copy_from_slice(&(!tcp).to_be_bytes());
    for at in [IP, TCP] {
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        bed.arrives(wrong);
        assert!(bed.poll().is_empty(), "wrong at {at}");
    }
    bed.arrives(right);
    let sent = bed.poll();
    assert!(peer.synack(&sent).is_some());
    assert_eq!(sums(&sent[0]), [0xffff; 2]);
}
