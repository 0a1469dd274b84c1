//! What anybody sends to the management address: smoltcp behind our own port of the switch,
//! set up as the pVM does it (`pvm-unikernel/src/services/stack.rs`).
//!
//! Checksums are not looked at, and a record may ask for a frame to be made to fit what the
//! stack said last, so that changed bytes come further than the first look at them.

use std::rc::Rc;

use backend_net::switch::{Port, Source, UplinkPort, View};
use backend_net::{Limits, LocalPort, Switch};
use hal::net::{Checksum, Frame, MacAddr, PacketPool};
use hal::{Node, VcpuId};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr};
use toolstack_boot::settings::is_host_address;
use toolstack_domain::placement::SOCKET_BUFFERS;

const OURS: MacAddr = MacAddr([0, 0x16, 0x3e, 0, 0, 1]);
const GUEST: MacAddr = MacAddr([0, 0x16, 0x3e, 0, 0, 2]);
const ADDRESS: [u8; 4] = [10, 0, 2, 15];
const ROUTER: [u8; 4] = [10, 0, 2, 2];
const PORT: u16 = 8443;
/// Bytes that a record starts with: what to do, how, and how many bytes follow.
const RECORD: usize = 4;
/// Where the headers of a frame without options are.
const IP: usize = 14;
const TRANSPORT: usize = IP + 20;
const DHCP: usize = TRANSPORT + 8;

/// Runs records: byte 0 says what happens, byte 1 how, two bytes how long the frame behind
/// them is.
pub fn run(data: &[u8]) {
    let Some((first, mut rest)) = data.split_first() else {
        return;
    };
    let mut bed = Bed::new(first & 1 == 1);
    bed.poll();
    while let Some((head, behind)) = rest.split_first_chunk::<RECORD>() {
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let (bytes, behind) = behind.split_at(len.min(behind.len()));
        rest = behind;
        match head[0] % 4 {
            0 => bed.arrives(Source::Uplink, head[1], bytes),
            1 => bed.arrives(Source::Station(GUEST), head[1], bytes),
            2 => bed.now += Duration::from_millis(1 << (head[1] % 28)),
            _ => bed.use_connections(head[1]),
        }
        bed.poll();
    }
    // What is left to be done is done or given up in some time.
    for _ in 0..64 {
        let Some(delay) = bed.interface.poll_delay(bed.now, &bed.sockets) else {
            break;
        };
        bed.now += delay;
        bed.poll();
    }
}

/// What the stack said last that an answer must fit.
#[derive(Default)]
struct Said {
    /// TCP's next sequence number of ours, and the one that we expect.
    sequence: u32,
    expected: u32,
    dhcp_id: [u8; 4],
}

struct Link {
    port: LocalPort,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Transmit<'a>(&'a mut LocalPort);

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        let _sent: bool = self.0.send(&frame);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Transmit<'_>)> {
        let frame = self.port.try_recv()?;
        Some((Received(frame), Transmit(&mut self.port)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        Some(Transmit(&mut self.port))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

struct Bed {
    pool: PacketPool,
    wire: UplinkPort,
    guest: Port,
    view: View,
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    tcp: Vec<SocketHandle>,
    now: Instant,
    said: Said,
}

impl Bed {
    fn new(by_dhcp: bool) -> Self {
        let machine = xen_sim::Machine::new();
        let pool = PacketPool::new(Rc::new(machine.allocator()), Node(0), 64);
        let switch = Switch::new(&[]);
        let vcpu = VcpuId(0);
        let port = switch.add_local_port(OURS).expect("the first");
        let guest = switch.add_port(GUEST, Limits::VIF).expect("another");
        let wire = switch.add_uplink(vcpu, Limits::VIF).expect("the first");
        let mut link = Link {
            port: LocalPort::new(port, vcpu, pool.clone()),
        };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(OURS.0)));
        config.random_seed = 1;
        let now = Instant::ZERO;
        let mut interface = Interface::new(config, &mut link, now);
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = by_dhcp.then(|| sockets.add(dhcpv4::Socket::new()));
        if !by_dhcp {
            let address = Ipv4Cidr::new(ADDRESS.into(), 24);
            set_address(&mut interface, Some(address), Some(ROUTER.into()));
        }
        let tcp = vec![sockets.add(listening()), sockets.add(listening())];
        let mut view = switch.view(vcpu);
        view.refresh();
        Self {
            pool,
            wire,
            guest,
            view,
            link,
            interface,
            sockets,
            dhcp,
            tcp,
            now,
            said: Said::default(),
        }
    }

    fn poll(&mut self) {
        self.interface
            .poll(self.now, &mut self.link, &mut self.sockets);
        if let Some(handle) = self.dhcp {
            match self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
                Some(dhcpv4::Event::Configured(config)) => {
                    let router = config.router.filter(is_host_address);
                    set_address(&mut self.interface, Some(config.address), router);
                }
                Some(dhcpv4::Event::Deconfigured) => set_address(&mut self.interface, None, None),
                None => {}
            }
        }
        for inbox in [self.wire.inbox(), self.guest.inbox()] {
            while let Some(frame) = inbox.pop() {
                let mut bytes = vec![0; frame.len()];
                frame.read(0, &mut bytes);
                self.said.note(&bytes);
            }
        }
        for handle in &self.tcp {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if !socket.is_open() {
                *socket = listening();
            }
        }
    }

    fn arrives(&mut self, source: Source, how: u8, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        self.said.fit(&mut bytes, how);
        if let Source::Station(own) = source {
            put(&mut bytes, 6, &own.0);
        }
        let Some(mut frame) = Frame::from_bytes(&self.pool, &bytes) else {
            return;
        };
        frame.checksum = Checksum::Verified;
        self.view.forward(source, frame, &self.pool);
    }

    /// What the pVM does with its connections.
    fn use_connections(&mut self, how: u8) {
        for handle in &self.tcp {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            match how % 5 {
                0 => {
                    let mut room = [0; 3000];
                    // Refused if there is no connection.
                    let _read = socket.recv_slice(&mut room);
                }
                1 => {
                    let _written = socket.send_slice(&[how; 3000]);
                }
                2 => {
                    socket.set_keep_alive(Some(Duration::from_secs(10)));
                    socket.set_nagle_enabled(false);
                }
                3 => socket.close(),
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
            put(frame, 0, &OURS.0);
        }
        if is(1) {
            put(frame, IP + 16, &ADDRESS);
        }
        if is(2) {
            let len = u16::try_from(frame.len().saturating_sub(IP)).unwrap_or(u16::MAX);
            put(frame, IP + 2, &len.to_be_bytes());
        }
        if is(3) {
            put(frame, TRANSPORT + 2, &PORT.to_be_bytes());
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

fn listening() -> tcp::Socket<'static> {
    let mut socket = tcp::Socket::new(
        tcp::SocketBuffer::new(vec![0; SOCKET_BUFFERS.0]),
        tcp::SocketBuffer::new(vec![0; SOCKET_BUFFERS.1]),
    );
    socket.set_timeout(Some(Duration::from_secs(30)));
    socket.listen(PORT).expect("a port, and a new socket");
    socket
}

fn set_address(interface: &mut Interface, address: Option<Ipv4Cidr>, router: Option<Ipv4Address>) {
    interface.update_ip_addrs(|list| {
        list.clear();
        if let Some(address) = address {
            list.push(IpCidr::Ipv4(address)).expect("room for one");
        }
    });
    let routes = interface.routes_mut();
    routes.remove_default_ipv4_route();
    if let Some(router) = router {
        routes.add_default_ipv4_route(router).expect("room for one");
    }
}
