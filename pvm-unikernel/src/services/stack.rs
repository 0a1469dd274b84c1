//! The management network: TCP on the pVM's own switch port.
//!
//! One task polls smoltcp; sockets wake their users through smoltcp's wakers. On no
//! guest's path: of guests' frames only those for the management address come here, and
//! `LocalPort` gives what comes from the wire its turn whatever they send.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use backend_net::LocalPort;
use backend_net::local::Losses;
use futures_util::future::select;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr};
use toolstack_boot::Address;
use toolstack_boot::settings::is_host_address;
use toolstack_domain::placement;
use toolstack_rpc::stream::ByteStream;

use crate::exec;
use crate::sync::Notify;
use crate::time;

/// Bytes of a connection's receive buffer: the window that a volume import fills.
const RECEIVE_BUFFER: usize = placement::SOCKET_BUFFERS.0;
/// Bytes of a connection's send buffer.
const SEND_BUFFER: usize = placement::SOCKET_BUFFERS.1;
/// Listening sockets kept ready: connections that may arrive before one is accepted.
const BACKLOG: usize = 4;
/// Connections at once, listening sockets included; bounds the stack's memory.
const MAX_SOCKETS: usize = placement::SOCKETS;
/// A peer silent for this long, with keep-alives unanswered, is gone. This many seconds are
/// the most that one which vanished holds its place: see [`Connection::ended`].
const PEER_TIMEOUT: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);
const KEEP_ALIVE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(10);
/// How long the start waits for an address.
const ADDRESS_TIME_NS: u64 = 30_000_000_000;
/// How long DHCP waits for an answer before it asks again: not for long, since a link takes
/// some seconds to come up, and what is sent before that is lost.
const DISCOVER_TIMEOUT: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(2);
/// Ethernet frame without FCS.
const MAX_FRAME: usize = 1514;
/// Lines about addresses given and taken by DHCP, one after the other; then one each
/// [`TELL_EVERY`]. Anybody on the network may answer for its server, as often as he likes.
const MAX_TOLD: u32 = 32;
/// How often something is told that others can bring about.
const TELL_EVERY: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);
/// Frames one poll takes in before other tasks of this vCPU get their turn.
const FRAMES_PER_POLL: usize = 64;

/// smoltcp's device: the switch's local port.
struct PortDevice {
    port: LocalPort,
    pending: VecDeque<Vec<u8>>,
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
        // A full queue drops the frame, as a wire does; TCP sends it again.
        let _sent: bool = self.0.send(&frame);
        result
    }
}

impl Device for PortDevice {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Transmit<'_>)> {
        let frame = self.pending.pop_front()?;
        Some((Received(frame), Transmit(&mut self.port)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        Some(Transmit(&mut self.port))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }
}

struct Inner {
    device: PortDevice,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    /// What it said last of a router.
    router: Option<Ipv4Address>,
    /// It changed the address, and nobody was told yet.
    untold: bool,
    /// Lines about that.
    dhcp_lines: Lines,
    /// The losses that were told last.
    losses: Losses,
    /// Lines about them.
    loss_lines: Lines,
    listening: VecDeque<SocketHandle>,
    /// Closed by their users, waiting for the peer to agree until then.
    closing: Vec<(SocketHandle, Instant)>,
    open: usize,
    port: u16,
}

/// Lines that may be logged: some at once, and one each [`TELL_EVERY`] in the long run.
struct Lines {
    most: u32,
    left: u32,
    /// When the last one was added.
    added: Instant,
}

impl Lines {
    fn new(most: u32) -> Self {
        Self {
            most,
            left: most,
            added: Instant::ZERO,
        }
    }

    /// Whether one may be logged now, which is one less then.
    fn take(&mut self, now: Instant) -> bool {
        while self.left < self.most && self.added + TELL_EVERY <= now {
            self.left += 1;
            self.added += TELL_EVERY;
        }
        if self.left == self.most {
            self.added = now;
        }
        let may = self.left > 0;
        self.left -= u32::from(may);
        may
    }

    /// When there will be one, if there is none.
    fn next(&self) -> Instant {
        self.added + TELL_EVERY
    }
}

/// The management stack. Lives on one MC vCPU.
#[derive(Clone)]
pub struct Stack {
    inner: Rc<RefCell<Inner>>,
    /// A socket has work for the poll task.
    work: Rc<Notify>,
    /// A listening socket may have become a connection.
    arrivals: Rc<Notify>,
}

impl Stack {
    /// Brings the stack up and starts its poll task. `seed` feeds TCP's sequence numbers.
    pub fn start(port: LocalPort, address: Address, rpc_port: u16, seed: u64) -> Self {
        let mac = port.mac();
        let mut device = PortDevice {
            port,
            pending: VecDeque::new(),
        };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, now());
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = match address {
            Address::Dhcp => {
                let mut socket = dhcpv4::Socket::new();
                let mut retry = socket.get_retry_config();
                retry.discover_timeout = DISCOVER_TIMEOUT;
                socket.set_retry_config(retry);
                Some(sockets.add(socket))
            }
            Address::Static {
                address,
                prefix,
                gateway,
                ..
            } => {
                set_address(
                    &mut interface,
                    Some(Ipv4Cidr::new(address, prefix)),
                    gateway,
                );
                None
            }
        };
        let stack = Self {
            inner: Rc::new(RefCell::new(Inner {
                device,
                interface,
                sockets,
                dhcp,
                router: None,
                untold: false,
                dhcp_lines: Lines::new(MAX_TOLD),
                losses: Losses::default(),
                loss_lines: Lines::new(1),
                listening: VecDeque::new(),
                closing: Vec::new(),
                open: 0,
                port: rpc_port,
            })),
            work: Rc::new(Notify::new()),
            arrivals: Rc::new(Notify::new()),
        };
        stack.inner.borrow_mut().refill_backlog();
        exec::spawn_local(stack.clone().run());
        stack
    }

    /// The address in use, once there is one.
    pub fn address(&self) -> Option<Ipv4Cidr> {
        self.inner.borrow().address()
    }

    /// Waits until the host has an address, some time at most: a host without one still
    /// runs its guests.
    pub async fn up(&self) {
        let until = time::now_ns() + ADDRESS_TIME_NS;
        while self.address().is_none() {
            let seen = self.arrivals.generation();
            let left = Duration::from_nanos(until.saturating_sub(time::now_ns()));
            if time::timeout(self.arrivals.changed(seen), left)
                .await
                .is_err()
            {
                return log::error!("management: still no address");
            }
        }
        if let Some(address) = self.address() {
            log::info!("management: {address}, port {}", self.inner.borrow().port);
        }
    }

    async fn run(self) {
        loop {
            let seen = self.work.generation();
            let delay = self.poll();
            self.arrivals.notify_all();
            exec::checkpoint().await;
            let frames = pin!(poll_fn(|cx| self
                .inner
                .borrow_mut()
                .device
                .port
                .poll_recv(cx)));
            let work = pin!(self.work.changed(seen));
            let wake = select(frames, work);
            // Whichever it was: poll again.
            let _early: bool = match delay {
                Some(delay) => time::timeout(wake, delay).await.is_ok(),
                None => {
                    wake.await;
                    true
                }
            };
        }
    }

    /// One bounded round; returns how long nothing needs doing.
    fn poll(&self) -> Option<Duration> {
        let inner = &mut *self.inner.borrow_mut();
        while inner.device.pending.len() < FRAMES_PER_POLL {
            match inner.device.port.try_recv() {
                Some(frame) => inner.device.pending.push_back(frame),
                None => break,
            }
        }
        let now = now();
        inner.give_up(now);
        inner
            .interface
            .poll(now, &mut inner.device, &mut inner.sockets);
        inner.follow_dhcp();
        inner.tell(now);
        inner.reap();
        inner.refill_backlog();
        let work = inner.interface.poll_delay(now, &inner.sockets);
        let line = inner.untold.then(|| inner.dhcp_lines.next() - now);
        let delay = work.into_iter().chain(line).min();
        delay.map(|delay| Duration::from_micros(delay.total_micros()))
    }

    /// The next connection.
    pub async fn accept(&self) -> Connection {
        loop {
            let seen = self.arrivals.generation();
            if let Some(connection) = self.try_accept() {
                return connection;
            }
            self.arrivals.changed(seen).await;
        }
    }

    /// Resets a connection that is still in use: reads and writes end.
    pub fn reset(&self, id: ConnectionId) {
        let inner = &mut *self.inner.borrow_mut();
        inner.sockets.get_mut::<tcp::Socket<'_>>(id.0).abort();
        self.work.notify_all();
    }

    fn try_accept(&self) -> Option<Connection> {
        let inner = &mut *self.inner.borrow_mut();
        let index = inner.listening.iter().position(|handle| {
            let socket = inner.sockets.get::<tcp::Socket<'_>>(*handle);
            socket.may_recv() && socket.may_send()
        })?;
        let handle = inner.listening.remove(index)?;
        let socket = inner.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_nagle_enabled(false);
        let peer = socket.remote_endpoint().map(|end| end.addr);
        inner.refill_backlog();
        Some(Connection {
            stack: self.clone(),
            handle,
            peer,
        })
    }
}

impl Inner {
    /// Keeps sockets ready for new peers. Those that do not finish what they began hold
    /// some of the others for a while, but never keep the next one out.
    fn refill_backlog(&mut self) {
        let mut ready = 0;
        let sockets = &mut self.sockets;
        self.listening.retain(|handle| {
            let state = sockets.get_mut::<tcp::Socket<'_>>(*handle).state();
            let begun = matches!(state, tcp::State::SynReceived | tcp::State::Established);
            if state == tcp::State::Listen {
                ready += 1;
            } else if !begun {
                // Gone before it was accepted.
                sockets.remove(*handle);
                self.open -= 1;
                return false;
            }
            true
        });
        while ready < BACKLOG {
            if self.open >= MAX_SOCKETS && !self.drop_one() {
                return;
            }
            let mut socket = tcp::Socket::new(
                tcp::SocketBuffer::new(vec![0; RECEIVE_BUFFER]),
                tcp::SocketBuffer::new(vec![0; SEND_BUFFER]),
            );
            socket.set_timeout(Some(PEER_TIMEOUT));
            if socket.listen(self.port).is_err() {
                log::error!("management: port {} cannot be listened on", self.port);
                return;
            }
            self.listening.push_back(self.sockets.add(socket));
            self.open += 1;
            ready += 1;
        }
    }

    /// Drops the oldest socket that nobody uses: a peer in the middle of its handshake, or
    /// one that does not agree to the end of its connection.
    fn drop_one(&mut self) -> bool {
        let sockets = &mut self.sockets;
        let half_open = self.listening.iter().position(|handle| {
            sockets.get_mut::<tcp::Socket<'_>>(*handle).state() == tcp::State::SynReceived
        });
        let handle = match half_open {
            Some(at) => self.listening.remove(at),
            None if self.closing.is_empty() => None,
            None => Some(self.closing.remove(0).0),
        };
        if let Some(handle) = handle {
            self.sockets.remove(handle);
            self.open -= 1;
        }
        handle.is_some()
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
            Some(dhcpv4::Event::Deconfigured) => set_address(&mut self.interface, None, None),
            None => return,
        }
        self.untold = true;
    }

    /// Logs what others brought about. Of an address that changes too often for that, the
    /// last one is told in the end.
    fn tell(&mut self, now: Instant) {
        if self.untold && self.dhcp_lines.take(now) {
            self.untold = false;
            match self.address() {
                Some(address) => match self.router {
                    Some(router) => {
                        log::info!("management: address {address}, router {router} by DHCP");
                    }
                    None => log::info!("management: address {address}, no router, by DHCP"),
                },
                None => log::warn!("management: no address; asking DHCP"),
            }
        }
        let losses = self.device.port.losses();
        if losses != self.losses && self.loss_lines.take(now) {
            self.losses = losses;
            log::info!("management: frames lost so far: {losses}");
        }
    }

    fn address(&self) -> Option<Ipv4Cidr> {
        let address = self.interface.ip_addrs().first();
        address.map(|IpCidr::Ipv4(cidr)| *cidr)
    }

    /// Resets what a peer keeps half open.
    fn give_up(&mut self, now: Instant) {
        for (handle, until) in &self.closing {
            if *until <= now {
                self.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
            }
        }
    }

    fn reap(&mut self) {
        let sockets = &mut self.sockets;
        let before = self.closing.len();
        self.closing.retain(|(handle, _)| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
            let done = !socket.is_open() || socket.state() == tcp::State::TimeWait;
            if done {
                sockets.remove(*handle);
            }
            !done
        });
        self.open -= before - self.closing.len();
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

fn now() -> Instant {
    Instant::from_micros(i64::try_from(time::now_ns() / 1000).unwrap_or(i64::MAX))
}

/// One TCP connection. Dropping it closes the connection after what was written is
/// sent; a peer that does not answer is given up after [`PEER_TIMEOUT`].
pub struct Connection {
    stack: Stack,
    handle: SocketHandle,
    peer: Option<smoltcp::wire::IpAddress>,
}

/// Names a connection, as long as it is not dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId(SocketHandle);

impl Connection {
    /// Its name.
    pub fn id(&self) -> ConnectionId {
        ConnectionId(self.handle)
    }

    /// Resolves when the peer has ended the connection, or is given up, though there may
    /// be bytes left to read. How soon, while nobody reads them:
    ///
    /// - A peer that ends the connection with room left in our receive buffer: at once. So
    ///   does a reset, room or not.
    /// - One that vanished, with its machine or its network: after [`PEER_TIMEOUT`], 30 s
    ///   after the last packet from it. What it leaves unanswered is a keep-alive, which is
    ///   sent each [`KEEP_ALIVE`] whatever the windows are.
    /// - One that wrote more than [`RECEIVE_BUFFER`] and then ended: its end is behind what
    ///   it cannot send, so nothing says so on the wire, and its system answers our
    ///   keep-alives. TCP cannot tell it from one that waits. It is that system's to give
    ///   up: Linux probes a shut window of a socket without a process ever more rarely and
    ///   drops it after about six minutes (345 s measured); the keep-alive after that is
    ///   answered with a reset.
    pub async fn ended(&self) {
        poll_fn(|cx| {
            let inner = &mut *self.stack.inner.borrow_mut();
            let socket = inner.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
            if socket.state() != tcp::State::Established {
                return Poll::Ready(());
            }
            // A change of state wakes who waits for bytes.
            socket.register_recv_waker(cx.waker());
            Poll::Pending
        })
        .await;
    }

    /// The peer's address.
    pub fn peer(&self) -> PeerName {
        PeerName(self.peer)
    }
}

/// Where a peer connects from, as it is named in logs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PeerName(Option<smoltcp::wire::IpAddress>);

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("a peer that is gone"),
        }
    }
}

/// The connection ended: reset, timed out, or closed by the peer while we wrote.
#[derive(Clone, Copy, Debug)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection ended")
    }
}

impl ByteStream for Connection {
    type Error = Closed;

    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Closed> {
        let count = poll_fn(|cx| {
            let inner = &mut *self.stack.inner.borrow_mut();
            let socket = inner.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
            if socket.can_recv() {
                return Poll::Ready(socket.recv_slice(buf).map_err(|_| Closed));
            }
            if !socket.may_recv() {
                // Closed in order reads as an end; reset or timed out is an error.
                return Poll::Ready(if socket.is_open() { Ok(0) } else { Err(Closed) });
            }
            socket.register_recv_waker(cx.waker());
            Poll::Pending
        })
        .await?;
        // The window grew: the peer must hear of it.
        self.stack.work.notify_all();
        Ok(count)
    }

    async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), Closed> {
        while !bytes.is_empty() {
            let count = poll_fn(|cx| {
                let inner = &mut *self.stack.inner.borrow_mut();
                let socket = inner.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
                if !socket.may_send() {
                    return Poll::Ready(Err(Closed));
                }
                if socket.can_send() {
                    return Poll::Ready(socket.send_slice(bytes).map_err(|_| Closed));
                }
                socket.register_send_waker(cx.waker());
                Poll::Pending
            })
            .await?;
            bytes = &bytes[count..];
            self.stack.work.notify_all();
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let inner = &mut *self.stack.inner.borrow_mut();
        inner
            .sockets
            .get_mut::<tcp::Socket<'_>>(self.handle)
            .close();
        inner.closing.push((self.handle, now() + PEER_TIMEOUT));
        self.stack.work.notify_all();
    }
}
