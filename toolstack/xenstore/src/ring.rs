//! A domain's connection through its shared page (docs/misc/xenstore-ring.txt).

use crate::server::{ConnId, ConnectionError, Server};
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use xen_abi::DomId;
use xen_abi::io::xs_wire::{
    XENSTORE_CONNECTED, XENSTORE_ERROR_NONE, XENSTORE_ERROR_PROTO, XENSTORE_ERROR_RINGIDX,
    XENSTORE_RECONNECT, XENSTORE_RING_SIZE, XenstoreDomainInterface as Interface,
};
use xen_ring::{ByteRing, ByteRingLayout, RingError, SharedPages};

const SERVER_FEATURES: usize = offset_of!(Interface, server_features);
const CONNECTION: usize = offset_of!(Interface, connection);
const ERROR: usize = offset_of!(Interface, error);

/// Rings' worth of bytes moved each way in one call of [`RingConnection::pump`]; a
/// domain that refills the ring as fast as it is read gets no more than that.
const ROUNDS: usize = 8;

/// What [`RingConnection::pump`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pumped {
    /// The page changed: signal the event channel.
    pub notify: bool,
    /// There is more to do that needs no event: call again after others had their turn.
    pub more: bool,
}

/// What a domain did wrong. Its watches and transactions are gone; it is ignored until
/// it is introduced anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFault {
    /// An index that cannot be.
    Index(RingError),
    /// A payload that is too long.
    PayloadTooLong,
    /// The server does not know the connection: the domain was released.
    Released,
}

impl core::fmt::Display for RingFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Index(error) => write!(f, "xenstore ring index: {error:?}"),
            Self::PayloadTooLong => f.write_str("xenstore payload over 4096 bytes"),
            Self::Released => f.write_str("xenstore connection of a released domain"),
        }
    }
}

impl core::error::Error for RingFault {}

/// The serving end of one domain's ring. Dropping it does not end the connection:
/// [`Server::disconnect`] or [`Server::domain_released`] do.
#[derive(Debug)]
pub struct RingConnection {
    ring: ByteRing,
    conn: ConnId,
    /// What we published last: our index in each stream.
    consumed: u32,
    produced: u32,
    /// The domain waits to hear that it is connected.
    greet: bool,
    /// For good: see [`RingConnection::pump`].
    ended: bool,
}

impl RingConnection {
    /// Introduces `domid` with its xenstore page. The first time, what the domain has
    /// written already is served; when it is introduced again, its connection starts
    /// anew and the ring is emptied. Call [`Self::pump`] next, and notify as it says: a domain that
    /// found the connection word set, by whoever built it, is waiting for that. This is the
    /// only time the word is looked at, as in xenstored's `do_introduce`.
    pub fn attach(server: &mut Server, domid: DomId, page: SharedPages) -> Self {
        let layout = ByteRingLayout::XENSTORE;
        // What xenstored 4.20 offers: neither reconnection nor the error word.
        page.store_u32(SERVER_FEATURES, 0, Ordering::Relaxed);
        page.store_u32(ERROR, XENSTORE_ERROR_NONE, Ordering::Relaxed);
        let consumed = page.load_u32(layout.from_cons, Ordering::Acquire);
        let produced = page.load_u32(layout.to_prod, Ordering::Acquire);
        let greet = page.load_u32(CONNECTION, Ordering::Acquire) == XENSTORE_RECONNECT;
        let again = server.is_introduced(domid) && server.connection_of(domid).is_some();
        let mut this = Self {
            ring: ByteRing::attach(page, layout),
            conn: server.domain_introduced(domid),
            consumed,
            produced,
            greet,
            ended: false,
        };
        if again {
            this.empty();
        }
        let page = this.ring.pages();
        page.store_u32(CONNECTION, XENSTORE_CONNECTED, Ordering::Release);
        this
    }

    /// The connection that this ring carries.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// Moves what the domain wrote into the server and the server's output into the
    /// ring, a bounded amount. To be called on each event of the channel, whenever
    /// [`Server::next_ready`] names [`Self::conn`], and again if `more` is set.
    ///
    /// An error is reported once: signal the event channel, for the error word was
    /// written. After that nothing happens in this introduction, whatever the domain does: the
    /// connection word holds nothing valid where no reconnection is offered, and a domain
    /// that could come back by it would make errors, and lines in the log, at will.
    pub fn pump(&mut self, server: &mut Server) -> Result<Pumped, RingFault> {
        server.begin_turn();
        let mut pumped = Pumped {
            notify: core::mem::take(&mut self.greet),
            more: false,
        };
        if self.ended {
            server.end_turn(self.conn);
            return Ok(pumped);
        }
        match self.exchange(server, &mut pumped) {
            Ok(()) => Ok(pumped),
            Err(fault) => {
                server.fail_connection(self.conn);
                self.ended = true;
                let word = match fault {
                    RingFault::PayloadTooLong => XENSTORE_ERROR_PROTO,
                    RingFault::Index(_) | RingFault::Released => XENSTORE_ERROR_RINGIDX,
                };
                self.ring.pages().store_u32(ERROR, word, Ordering::Release);
                Err(fault)
            }
        }
    }

    fn exchange(&mut self, server: &mut Server, pumped: &mut Pumped) -> Result<(), RingFault> {
        for _ in 0..ROUNDS {
            // Answers first: their room in the quotas lets more requests in.
            let sent = self.send(server)?;
            let (received, more) = self.receive(server)?;
            pumped.notify |= sent + received > 0;
            pumped.more = more;
            if more || sent + received == 0 {
                break;
            }
            pumped.more = true;
        }
        let sent = self.send(server)?;
        pumped.notify |= sent > 0;
        // What is left waits for the domain to read, or for `more`.
        server.end_turn(self.conn);
        Ok(())
    }

    fn send(&mut self, server: &mut Server) -> Result<usize, RingFault> {
        let mut total = 0;
        loop {
            let output = server.output(self.conn);
            if output.is_empty() || total >= XENSTORE_RING_SIZE {
                return Ok(total);
            }
            let count = self.ring.write(output).map_err(RingFault::Index)?;
            if count == 0 {
                return Ok(total);
            }
            self.produced = self.produced.wrapping_add(index(count));
            server.sent(self.conn, count);
            total += count;
        }
    }

    /// Bytes taken, and whether the server had enough for one call.
    fn receive(&mut self, server: &mut Server) -> Result<(usize, bool), RingFault> {
        let mut buffer = [0; XENSTORE_RING_SIZE];
        let mut total = 0;
        while total < XENSTORE_RING_SIZE {
            // Only as much as the server takes for certain: what is out of the ring
            // has no other place to wait.
            if server.is_tired() {
                return Ok((total, true));
            }
            let want = server.wants(self.conn).min(buffer.len());
            if want == 0 {
                break;
            }
            let count = self
                .ring
                .read(&mut buffer[..want])
                .map_err(RingFault::Index)?;
            if count == 0 {
                break;
            }
            self.consumed = self.consumed.wrapping_add(index(count));
            total += count;
            let input = server.input_in_turn(self.conn, &buffer[..count]);
            input.map_err(|error| match error {
                ConnectionError::Unknown => RingFault::Released,
                ConnectionError::PayloadTooLong => RingFault::PayloadTooLong,
            })?;
        }
        Ok((total, false))
    }

    fn empty(&mut self) {
        let (layout, page) = (ByteRingLayout::XENSTORE, self.ring.pages());
        // Who introduces a domain again has stopped it or has its word, so its own two
        // indices are ours to set: each to where our side stands.
        page.store_u32(layout.from_prod, self.consumed, Ordering::Relaxed);
        page.store_u32(layout.from_cons, self.consumed, Ordering::Relaxed);
        page.store_u32(layout.to_cons, self.produced, Ordering::Relaxed);
        page.store_u32(layout.to_prod, self.produced, Ordering::Relaxed);
    }
}

/// A length bounded by the ring's size, as an index step.
fn index(count: usize) -> u32 {
    u32::try_from(count).expect("at most the ring's size")
}
