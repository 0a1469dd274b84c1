//! TCP sockets: who may connect.
//!
//! smoltcp has no listening socket that makes others: one that listens becomes the
//! connection, so some have to be kept ready. Each costs its buffers, so there are
//! [`SOCKETS`] of them and no more.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::Socket;
use smoltcp::socket::tcp::{self, State::SynReceived};
use smoltcp::time::{Duration, Instant};
use toolstack_domain::placement::{SOCKET_BUFFERS, SOCKETS};
use toolstack_rpc::strangers::oldest_of_most;

/// A peer silent for this long, with keep-alives unanswered, is gone. This many seconds are
/// the most that one which vanished holds its place.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a silent peer is asked whether it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Listening sockets kept ready while there is room: connections that may begin at once.
const READY: usize = 4;

/// All sockets of the RPC port.
#[derive(Debug)]
pub struct Backlog {
    port: u16,
    /// Listening, or in the middle of TCP's handshake, or not accepted yet; the oldest first.
    waiting: VecDeque<SocketHandle>,
    /// Closed by their users, waiting for the peer to agree until then.
    closing: Vec<(SocketHandle, Instant)>,
}

impl Backlog {
    /// None yet.
    pub fn new(port: u16) -> Self {
        Self {
            port,
            waiting: VecDeque::new(),
            closing: Vec::new(),
        }
    }

    /// Keeps sockets ready for new peers, whatever those do that came before: while there is
    /// a free place, some; else one, for which one goes that is in the middle of its
    /// handshake or does not agree to the end of its connection. It is the oldest of the
    /// address that has most of these. So nobody keeps an address out that has none of them,
    /// but by having as many addresses as there are such places.
    pub fn refill(&mut self, sockets: &mut SocketSet<'_>) {
        let mut ready = 0;
        self.waiting.retain(|handle| {
            let state = sockets.get::<tcp::Socket<'_>>(*handle).state();
            let begun = matches!(state, SynReceived | tcp::State::Established);
            if state == tcp::State::Listen {
                ready += 1;
            } else if !begun {
                // Gone before it was accepted.
                sockets.remove(*handle);
                return false;
            }
            true
        });
        while ready < READY {
            let open = sockets
                .iter()
                .filter(|(_, socket)| matches!(socket, Socket::Tcp(_)));
            if open.count() >= SOCKETS && (ready > 0 || !self.drop_one(sockets)) {
                return;
            }
            let mut socket = tcp::Socket::new(
                tcp::SocketBuffer::new(vec![0; SOCKET_BUFFERS.0]),
                tcp::SocketBuffer::new(vec![0; SOCKET_BUFFERS.1]),
            );
            socket.set_timeout(Some(PEER_TIMEOUT));
            socket
                .listen(self.port)
                .expect("a port that is not 0, and a socket that is closed");
            self.waiting.push_back(sockets.add(socket));
            ready += 1;
        }
    }

    /// Drops one that nobody uses, if there is more than the one that came last.
    fn drop_one(&mut self, sockets: &mut SocketSet<'_>) -> bool {
        let socket = |handle| sockets.get::<tcp::Socket<'_>>(handle);
        let half_open = self.waiting.iter().copied();
        let half_open = half_open.filter(|handle| socket(*handle).state() == SynReceived);
        let closing = self.closing.iter().map(|(handle, _)| *handle);
        let unused: Vec<SocketHandle> = closing.chain(half_open).collect();
        let peers = unused.iter().map(|handle| {
            let end = socket(*handle).remote_endpoint();
            end.map(|end| end.addr)
        });
        let Some(oldest) = oldest_of_most(peers).filter(|_| unused.len() > 1) else {
            return false;
        };
        let gone = unused[oldest];
        self.waiting.retain(|handle| *handle != gone);
        self.closing.retain(|(handle, _)| *handle != gone);
        sockets.remove(gone);
        true
    }

    /// The oldest connection that nobody has accepted yet.
    pub fn accept(&mut self, sockets: &mut SocketSet<'_>) -> Option<SocketHandle> {
        let at = self.waiting.iter().position(|handle| {
            let socket = sockets.get::<tcp::Socket<'_>>(*handle);
            socket.may_recv() && socket.may_send()
        })?;
        let handle = self.waiting.remove(at)?;
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_nagle_enabled(false);
        self.refill(sockets);
        Some(handle)
    }

    /// Its user has no more use for a connection that was accepted: it is closed after what
    /// was written is sent, and given up if the peer does not agree in time.
    pub fn close(&mut self, handle: SocketHandle, now: Instant, sockets: &mut SocketSet<'_>) {
        sockets.get_mut::<tcp::Socket<'_>>(handle).close();
        self.closing.push((handle, now + PEER_TIMEOUT));
    }

    /// Resets what a peer keeps half open.
    pub fn give_up(&mut self, now: Instant, sockets: &mut SocketSet<'_>) {
        for (handle, until) in &self.closing {
            if *until <= now {
                sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
            }
        }
    }

    /// Frees what is closed.
    pub fn reap(&mut self, sockets: &mut SocketSet<'_>) {
        self.closing.retain(|(handle, _)| {
            let socket = sockets.get::<tcp::Socket<'_>>(*handle);
            let done = !socket.is_open() || socket.state() == tcp::State::TimeWait;
            if done {
                sockets.remove(*handle);
            }
            !done
        });
    }
}
