//! All of it.

use crate::backlog::Backlog;
pub use crate::backlog::{KEEP_ALIVE, PEER_TIMEOUT};
use crate::link::{Link, Port};
use alloc::vec::Vec;
use core::fmt;
use smoltcp::iface::SocketSet;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr};
use toolstack_boot::Address;
use toolstack_boot::settings::is_host_address;

/// How long DHCP waits for an answer before it asks again: not for long, since a link takes
/// some seconds to come up, and what is sent before that is lost.
const DISCOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Frames one poll takes in before others get their turn.
const FRAMES_PER_POLL: usize = 64;

/// The management address, at `P`.
pub struct Stack<P> {
    link: Link<P>,
    interface: Interface,
    sockets: SocketSet<'static>,
    backlog: Backlog,
    dhcp: Option<SocketHandle>,
    /// What DHCP said last of a router.
    router: Option<Ipv4Address>,
    /// DHCP changed the address.
    changed: bool,
}

impl<P: Port> fmt::Debug for Stack<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack")
            .field("address", &self.address())
            .field("backlog", &self.backlog)
            .finish_non_exhaustive()
    }
}

impl<P: Port> Stack<P> {
    /// A station with this Ethernet address that listens on TCP port `rpc_port`. `seed`
    /// feeds TCP's sequence numbers.
    pub fn new(
        mut link: Link<P>,
        mac: [u8; 6],
        address: Address,
        rpc_port: u16,
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut link, now);
        let mut sockets = SocketSet::new(Vec::new());
        let mut dhcp = None;
        match address {
            Address::Dhcp => {
                let mut socket = dhcpv4::Socket::new();
                let mut retry = socket.get_retry_config();
                retry.discover_timeout = DISCOVER_TIMEOUT;
                socket.set_retry_config(retry);
                dhcp = Some(sockets.add(socket));
            }
            Address::Static {
                address,
                prefix,
                gateway,
                ..
            } => {
                let address = Ipv4Cidr::new(address, prefix);
                set_address(&mut interface, Some(address), gateway);
            }
        }
        let mut backlog = Backlog::new(rpc_port);
        backlog.refill(&mut sockets);
        Self {
            link,
            interface,
            sockets,
            backlog,
            dhcp,
            router: None,
            changed: false,
        }
    }

    /// One bounded round: takes in what came, sends what there is to send. Returns after
    /// which time there is something to do though nothing comes.
    pub fn poll(&mut self, now: Instant) -> Option<Duration> {
        self.backlog.give_up(now, &mut self.sockets);
        self.interface.poll_maintenance(now);
        for _ in 0..FRAMES_PER_POLL {
            let result = self
                .interface
                .poll_ingress_single(now, &mut self.link, &mut self.sockets);
            match result {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed => {}
                // Each connection that begins takes a listening socket, and the next one in
                // this round shall find one.
                PollIngressSingleResult::SocketStateChanged => {
                    self.backlog.refill(&mut self.sockets);
                }
            }
        }
        loop {
            let result = self
                .interface
                .poll_egress(now, &mut self.link, &mut self.sockets);
            if result == PollResult::None {
                break;
            }
        }
        self.follow_dhcp();
        self.backlog.reap(&mut self.sockets);
        self.backlog.refill(&mut self.sockets);
        self.interface.poll_delay(now, &self.sockets)
    }

    /// The oldest connection that nobody has accepted yet.
    pub fn accept(&mut self) -> Option<SocketHandle> {
        self.backlog.accept(&mut self.sockets)
    }

    /// An accepted connection's socket.
    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Ends an accepted connection after what was written is sent. Not to be used again.
    pub fn close(&mut self, handle: SocketHandle, now: Instant) {
        self.backlog.close(handle, now, &mut self.sockets);
    }

    /// Where its frames come from.
    pub fn port(&mut self) -> &mut P {
        &mut self.link.port
    }

    /// The address in use, once there is one.
    pub fn address(&self) -> Option<Ipv4Cidr> {
        let address = self.interface.ip_addrs().first();
        address.map(|IpCidr::Ipv4(cidr)| *cidr)
    }

    /// The router by which DHCP says that others are reached.
    pub fn router(&self) -> Option<Ipv4Address> {
        self.router
    }

    /// Whether DHCP changed the address since this was last asked.
    pub fn take_change(&mut self) -> bool {
        core::mem::take(&mut self.changed)
    }

    fn follow_dhcp(&mut self) {
        let Some(handle) = self.dhcp else { return };
        match self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(config)) => {
                // A server says what it likes. smoltcp looks at the address, but panics when it
                // sends something by a router that no host can be.
                self.router = config.router.filter(is_host_address);
                set_address(&mut self.interface, Some(config.address), self.router);
            }
            Some(dhcpv4::Event::Deconfigured) => {
                self.router = None;
                set_address(&mut self.interface, None, None);
            }
            None => return,
        }
        self.changed = true;
    }
}

fn set_address(interface: &mut Interface, address: Option<Ipv4Cidr>, router: Option<Ipv4Address>) {
    interface.update_ip_addrs(|list| {
        list.clear();
        if let Some(address) = address {
            // The list was just emptied and holds two.
            list.push(IpCidr::Ipv4(address))
                .expect("room for one address");
        }
    });
    let routes = interface.routes_mut();
    routes.remove_default_ipv4_route();
    if let Some(router) = router {
        // Likewise.
        routes
            .add_default_ipv4_route(router)
            .expect("room for one route");
    }
}
