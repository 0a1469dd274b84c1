//! The management network: TCP on the pVM's own switch port.
//!
//! One task polls the stack ([`toolstack_management`]); sockets wake their users through
//! smoltcp's wakers. On no guest's path.

use alloc::rc::Rc;
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
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, Ipv4Cidr};
use toolstack_boot::Address;
use toolstack_management as management;
use toolstack_management::link::Link;
use toolstack_rpc::stream::ByteStream;

use crate::exec;
use crate::sync::Notify;
use crate::time;

/// How long the start waits for an address.
const ADDRESS_TIME_NS: u64 = 30_000_000_000;
/// Lines about addresses given and taken by DHCP, one after the other; then one each
/// [`TELL_EVERY`]. Anybody on the network may answer for its server, as often as he likes.
const MAX_TOLD: u32 = 32;
/// How often something is told that others can bring about.
const TELL_EVERY: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);

/// The switch's local port.
struct Port(LocalPort);

impl management::Port for Port {
    fn receive(&mut self) -> Option<Vec<u8>> {
        self.0.try_recv()
    }

    fn send(&mut self, frame: &[u8]) {
        // Counted there.
        let _sent: bool = self.0.send(frame);
    }
}

struct Inner {
    stack: management::Stack<Port>,
    /// DHCP changed the address, and nobody was told yet.
    untold: bool,
    /// Lines about that.
    dhcp_lines: Lines,
    /// The losses that were told last.
    losses: Losses,
    /// Lines about them.
    loss_lines: Lines,
    rpc_port: u16,
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
        let mac = port.mac().0;
        let link = Link {
            port: Port(port),
            checksums: true,
        };
        let stack = Self {
            inner: Rc::new(RefCell::new(Inner {
                stack: management::Stack::new(link, mac, address, rpc_port, seed, now()),
                untold: false,
                dhcp_lines: Lines::new(MAX_TOLD),
                losses: Losses::default(),
                loss_lines: Lines::new(1),
                rpc_port,
            })),
            work: Rc::new(Notify::new()),
            arrivals: Rc::new(Notify::new()),
        };
        exec::spawn_local(stack.clone().run());
        stack
    }

    /// The address in use, once there is one.
    pub fn address(&self) -> Option<Ipv4Cidr> {
        self.inner.borrow().stack.address()
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
            log::info!(
                "management: {address}, port {}",
                self.inner.borrow().rpc_port
            );
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
                .stack
                .port()
                .0
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
        let now = now();
        let work = inner.stack.poll(now);
        inner.tell(now);
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
        inner.stack.socket(id.0).abort();
        self.work.notify_all();
    }

    fn try_accept(&self) -> Option<Connection> {
        let stack = &mut self.inner.borrow_mut().stack;
        let handle = stack.accept()?;
        let peer = stack.socket(handle).remote_endpoint().map(|end| end.addr);
        Some(Connection {
            stack: self.clone(),
            handle,
            peer,
        })
    }
}

impl Inner {
    /// Logs what others brought about. Of an address that changes too often for that, the
    /// last one is told in the end.
    fn tell(&mut self, now: Instant) {
        self.untold |= self.stack.take_change();
        if self.untold && self.dhcp_lines.take(now) {
            self.untold = false;
            match self.stack.address() {
                Some(address) => match self.stack.router() {
                    Some(router) => {
                        log::info!("management: address {address}, router {router} by DHCP");
                    }
                    None => log::info!("management: address {address}, no router, by DHCP"),
                },
                None => log::warn!("management: no address; asking DHCP"),
            }
        }
        let losses = self.stack.port().0.losses();
        if losses != self.losses && self.loss_lines.take(now) {
            self.losses = losses;
            log::info!("management: frames lost so far: {losses}");
        }
    }
}

fn now() -> Instant {
    Instant::from_micros(i64::try_from(time::now_ns() / 1000).unwrap_or(i64::MAX))
}

/// One TCP connection. Dropping it closes the connection after what was written is
/// sent; a peer that does not answer is given up after [`management::PEER_TIMEOUT`].
pub struct Connection {
    stack: Stack,
    handle: SocketHandle,
    peer: Option<IpAddress>,
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
    /// - One that vanished, with its machine or its network: after [`management::PEER_TIMEOUT`], 30 s
    ///   after the last packet from it. What it leaves unanswered is a keep-alive, which is
    ///   sent each [`management::KEEP_ALIVE`] whatever the windows are.
    /// - One that wrote more than our receive buffer and then ended: its end is behind what
    ///   it cannot send, so nothing says so on the wire, and its system answers our
    ///   keep-alives. TCP cannot tell it from one that waits. It is that system's to give
    ///   up: Linux probes a shut window of a socket without a process ever more rarely and
    ///   drops it after about six minutes (345 s measured); the keep-alive after that is
    ///   answered with a reset.
    pub async fn ended(&self) {
        poll_fn(|cx| {
            let inner = &mut *self.stack.inner.borrow_mut();
            let socket = inner.stack.socket(self.handle);
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
pub struct PeerName(Option<IpAddress>);

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
            let socket = inner.stack.socket(self.handle);
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
                let socket = inner.stack.socket(self.handle);
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
        inner.stack.close(self.handle, now());
        self.stack.work.notify_all();
    }
}
