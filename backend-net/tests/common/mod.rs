//! A bed of simulated guests on one switch.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "made-up test data and lengths"
)]

use backend_net::vif::{Vif, VifError, VifEvents, serve};
use backend_net::{Counters, FrontendNodes, Limits, LocalPort, Stopper, Switch, stop_pair};
use hal::net::{MacAddr, PacketPool};
use hal::{Node, VcpuId};
use std::rc::Rc;
use std::sync::Arc;
use xen_abi::DomId;
use xen_sim::{Executor, Machine, NetFront, SimAllocator, SimGrants, Task};

/// Pages of packet memory of the one vCPU.
pub const POOL: usize = 1024;

pub struct Bed {
    pub machine: Machine,
    pub executor: Executor,
    pub switch: Switch,
    pub allocator: SimAllocator,
    pub pool: PacketPool,
}

pub struct Guest {
    pub front: NetFront,
    pub mac: MacAddr,
    pub counters: Arc<Counters>,
    pub grants: SimGrants,
    pub task: Task<Result<(), VifError>>,
    pub stopper: Stopper,
}

/// The nodes of a Linux frontend that can do everything.
pub const LINUX: &[(&str, &str)] = &[
    ("request-rx-copy", "1"),
    ("feature-rx-notify", "1"),
    ("feature-sg", "1"),
    ("feature-gso-tcpv4", "1"),
    ("feature-gso-tcpv6", "1"),
    ("feature-ipv6-csum-offload", "1"),
];

/// The nodes of one that can do nothing.
pub const PLAIN: &[(&str, &str)] = &[
    ("request-rx-copy", "1"),
    ("feature-rx-notify", "1"),
    ("feature-no-csum-offload", "1"),
];

pub fn mac(n: u8) -> MacAddr {
    MacAddr([0, 0x16, 0x3e, 0, 0, n])
}

impl Bed {
    pub fn new() -> Self {
        let machine = Machine::new();
        let allocator = machine.allocator();
        Self {
            executor: Executor::new(),
            switch: Switch::new(&[]),
            pool: PacketPool::new(Rc::new(allocator.clone()), Node(0), POOL),
            allocator,
            machine,
        }
    }

    /// Starts a guest with these nodes, and its rings' counters at `start`.
    pub fn guest(&self, n: u8, nodes: &[(&str, &str)], start: u32) -> Guest {
        let (front, events) = NetFront::new(&self.machine, DomId(u16::from(n)), start);
        let (tx_ring, rx_ring) = front.ring_refs();
        let nodes = FrontendNodes::parse(|key| match key {
            "tx-ring-ref" => Some(tx_ring.0.to_string().into_bytes()),
            "rx-ring-ref" => Some(rx_ring.0.to_string().into_bytes()),
            "event-channel" => Some(b"5".to_vec()),
            key => nodes
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value.as_bytes().to_vec()),
        })
        .unwrap();
        let counters = Arc::new(Counters::default());
        let (stopper, stop) = stop_pair();
        let grants = front.guest().grants();
        let vif = Vif {
            grants: grants.clone(),
            events: VifEvents {
                tx: events,
                rx: None,
            },
            queue: nodes.queues[0],
            features: nodes.features,
            port: self
                .switch
                .add_port(mac(n), Limits::VIF)
                .unwrap()
                .of_guest(DomId(u16::from(n))),
            vcpu: VcpuId(0),
            pool: self.pool.clone(),
            timer: self.executor.timer(),
            counters: counters.clone(),
        };
        let task = self.executor.spawn(serve(vif, stop));
        self.run();
        Guest {
            front,
            mac: mac(n),
            counters,
            grants,
            task,
            stopper,
        }
    }

    pub fn local(&self, n: u8) -> LocalPort {
        let port = self.switch.add_local_port(mac(n)).unwrap();
        LocalPort::new(port, VcpuId(0), self.pool.clone())
    }

    pub fn run(&self) {
        self.executor.run_until_stalled();
    }

    /// # Panics
    /// If packet memory is held by anybody.
    pub fn assert_no_memory_held(&self) {
        let held = self.pool.usage();
        assert_eq!(held.allocated, held.free, "packet buffers held");
    }
}

/// Bytes that differ everywhere, and with `seed`.
pub fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 11) as u8
        })
        .collect()
}

/// An Ethernet frame of a protocol that nobody knows.
pub fn raw(from: MacAddr, to: MacAddr, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &[0x88, 0xb5], payload].concat()
}

/// What a TCP frame is made of.
#[derive(Clone, Copy)]
pub struct Tcp {
    pub v6: bool,
    pub flags: u8,
    pub options: bool,
}

/// A TCP frame with a right checksum, built by etherparse.
pub fn tcp(from: MacAddr, to: MacAddr, kind: Tcp, payload: &[u8]) -> Vec<u8> {
    use etherparse::{PacketBuilder, TcpOptionElement};
    let step = PacketBuilder::ethernet2(from.0, to.0);
    let ip = if kind.v6 {
        let mut source = [0x20; 16];
        let mut target = [0x21; 16];
        source[15] = from.0[5];
        target[15] = to.0[5];
        step.ipv6(source, target, 64)
    } else {
        step.ipv4([10, 0, 0, from.0[5]], [10, 0, 0, to.0[5]], 64)
    };
    let mut tcp = ip.tcp(40_000, 5001, 0xffff_f000, 4096).ack(77);
    if kind.flags & 0x01 != 0 {
        tcp = tcp.fin();
    }
    if kind.flags & 0x08 != 0 {
        tcp = tcp.psh();
    }
    if kind.flags & 0x80 != 0 {
        tcp = tcp.cwr();
    }
    if kind.options {
        tcp = tcp
            .options(&[
                TcpOptionElement::Noop,
                TcpOptionElement::Noop,
                TcpOptionElement::Timestamp(1, 2),
            ])
            .unwrap();
    }
    let mut frame = Vec::new();
    tcp.write(&mut frame, payload).unwrap();
    frame
}

/// A frame's TCP header and payload, once etherparse found lengths and all checksums
/// right.
pub fn checked_tcp(frame: &[u8]) -> (etherparse::TcpHeader, Vec<u8>) {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        panic!("no TCP in {packet:?}");
    };
    let header = tcp.to_header();
    let payload = tcp.payload().to_vec();
    match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let sum = header.calc_checksum_ipv4(&ip, &payload).unwrap();
            assert_eq!(header.checksum, sum, "TCP over IPv4");
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header().to_header();
            let sum = header.calc_checksum_ipv6(&ip, &payload).unwrap();
            assert_eq!(header.checksum, sum, "TCP over IPv6");
        }
        other => panic!("no IP in {other:?}"),
    }
    (header, payload)
}
