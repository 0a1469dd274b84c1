//! The server: connections, domains, watches and the store, with no I/O of its own.

use crate::account::{Quotas, count};
use crate::connection::Connection;
use crate::domains::Domains;
use crate::firing::Watch;
use crate::perms::Actor;
use crate::store::Store;
use crate::trace::Trace;
use crate::watches::{WatchId, WatchIndex};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::task::{Context, Poll, Waker};
use xen_abi::io::xs_wire::XsError;
use xen_abi::{DomId, EvtchnPort};

/// Names a connection; not used again before 2^32 others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u32);

/// Work that one call of [`Server::input`] does before it gives the core back:
/// requests, nodes and watches touched.
const WORK_PER_CALL: usize = 256;
/// Bytes a privileged client may leave unread before it is no longer read itself.
const PRIVILEGED_BACKLOG: usize = 256 * 1024;
/// Actions that wait for the caller before privileged clients are no longer read.
const ACTIONS_MAX: usize = 64;
/// Lines about one domain's memory.
const MAX_TOLD: u32 = 8;
/// Bytes of old states that open transactions may keep alive, by [`Store::copied`].
const PINNED_MAX: u64 = 4 * 1024 * 1024;

/// Limits and times.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What each domain may hold, unless it has limits of its own.
    pub quotas: Quotas,
    /// Milliseconds after which an unprivileged domain's unread event is dropped.
    pub event_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            quotas: Quotas::GUEST,
            event_timeout_ms: 20_000,
        }
    }
}

/// Something that a client asked for and only the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Map the domain's xenstore page, bind its event channel and serve its ring
    /// ([`crate::RingConnection::attach`]). The server already treats the domain as
    /// introduced; if that fails, call [`Server::domain_released`].
    Introduce {
        /// Whose ring.
        domid: DomId,
        /// The domain's end of the event channel.
        port: EvtchnPort,
    },
    /// Serve the domain's ring no longer and unmap it.
    Release {
        /// Whose ring.
        domid: DomId,
    },
}

/// What [`Server::input`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// Bytes taken. The rest is to be offered again: when `more` is set, as soon as
    /// others had their turn; else when [`Server::next_ready`] names the connection.
    pub consumed: usize,
    /// The work of one call was done before the input was.
    pub more: bool,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionError {
    /// No such connection.
    Unknown,
    /// A packet's payload is longer than `XENSTORE_PAYLOAD_MAX`, now or before:
    /// nothing that follows makes sense until the connection is reset.
    PayloadTooLong,
}

impl core::fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "no such xenstore connection",
            Self::PayloadTooLong => "xenstore packet with a payload over 4096 bytes",
        })
    }
}

impl core::error::Error for ConnectionError {}

/// A xenstore server; see the crate's documentation.
#[derive(Debug)]
pub struct Server {
    pub(crate) store: Store,
    pub(crate) domains: Domains,
    pub(crate) index: WatchIndex,
    pub(crate) watches: BTreeMap<WatchId, Watch>,
    pub(crate) next_watch: u64,
    pub(crate) connections: BTreeMap<ConnId, Connection>,
    next_connection: u32,
    /// Open transactions, oldest first.
    pub(crate) open: BTreeMap<u64, (ConnId, u32)>,
    pub(crate) next_age: u64,
    pub(crate) actions: VecDeque<Action>,
    ready: BTreeSet<ConnId>,
    /// Those to be named because of a new deadline, however often they are served
    /// before somebody asks.
    timed: BTreeSet<ConnId>,
    ready_waker: Option<Waker>,
    /// Connections with input that is not taken for the moment.
    stalled: BTreeSet<ConnId>,
    pub(crate) graveyard: Rc<RefCell<Vec<WatchId>>>,
    pub(crate) now_ms: u64,
    pub(crate) event_timeout_ms: u64,
    pub(crate) trace: Trace,
    /// Done since the current call of `input` began.
    pub(crate) work: usize,
}

impl Server {
    /// An empty store with the nodes that every xenstore has.
    pub fn new(config: Config) -> Self {
        let mut domains = Domains::new();
        domains.quotas = config.quotas;
        let mut server = Self {
            store: Store::new(DomId(0)),
            domains,
            index: WatchIndex::new(),
            watches: BTreeMap::new(),
            next_watch: 1,
            connections: BTreeMap::new(),
            next_connection: 1,
            open: BTreeMap::new(),
            next_age: 0,
            actions: VecDeque::new(),
            ready: BTreeSet::new(),
            timed: BTreeSet::new(),
            ready_waker: None,
            stalled: BTreeSet::new(),
            graveyard: Rc::default(),
            now_ms: 0,
            event_timeout_ms: config.event_timeout_ms,
            trace: Trace::default(),
            work: 0,
        };
        let usage = server.owned_usage();
        server.domains.settle(&usage);
        server
    }

    // ---- connections -----------------------------------------------------------

    /// Opens a connection that acts for `domid`. A privileged one may do everything
    /// and has no quotas: only for the pVM itself and for what it trusts like itself.
    /// For a domain's ring use [`Self::domain_introduced`].
    pub fn connect(&mut self, domid: DomId, privileged: bool) -> ConnId {
        let id = loop {
            let id = ConnId(self.next_connection);
            self.next_connection = self.next_connection.wrapping_add(1);
            if !self.connections.contains_key(&id) {
                break id;
            }
        };
        let account = self.domains.account(domid);
        self.connections
            .insert(id, Connection::new(domid, privileged, account));
        id
    }

    /// Ends a connection with all its watches and transactions.
    pub fn disconnect(&mut self, id: ConnId) {
        self.forget_watches_and_transactions(id);
        self.ready.remove(&id);
        self.timed.remove(&id);
        self.stalled.remove(&id);
        if let Some(connection) = self.connections.remove(&id)
            && let Some(domain) = self.domains.get_mut(connection.domid)
            && domain.conn == Some(id)
        {
            domain.conn = None;
        }
        self.unstall();
    }

    /// Brings a connection back to its first state: no watches, transactions or
    /// half-done packets.
    pub fn reset_connection(&mut self, id: ConnId) {
        self.forget_watches_and_transactions(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.clear();
            connection.failed = false;
        }
        self.unstall();
    }

    /// Like [`Self::reset_connection`], and ignores it from now on until it is reset.
    pub(crate) fn fail_connection(&mut self, id: ConnId) {
        self.reset_connection(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.failed = true;
        }
    }

    /// How many bytes the connection takes now: up to the end of the packet's header
    /// or payload; 0 while it is not served (its quota is used up, it does not read
    /// its answers, it writes too fast). [`Self::next_ready`] tells when that is over.
    pub fn wants(&mut self, id: ConnId) -> usize {
        if self.is_stalled(id) {
            if self.stalled.insert(id)
                && let Some(connection) = self.connections.get(&id)
            {
                count(&connection.account.stalls, 1);
            }
            return 0;
        }
        match self.connections.get(&id) {
            Some(connection) if !connection.failed => connection.missing(),
            _ => 0,
        }
    }

    fn is_stalled(&mut self, id: ConnId) -> bool {
        let Some(connection) = self.connections.get(&id) else {
            return false;
        };
        if connection.privileged {
            return self.actions.len() >= ACTIONS_MAX
                || connection.output_bytes() >= PRIVILEGED_BACKLOG;
        }
        let (domid, account) = (connection.domid, connection.account.clone());
        let quotas = *self.domains.quotas_of(domid);
        self.report_memory(domid, &quotas);
        account.outstanding.get() >= quotas.outstanding
            || account.memory.get() >= quotas.memory
            || self.domains.write_wait_ms(domid, self.now_ms).is_some()
    }

    /// Says once in the log when a domain passes its memory quotas, and again when it has
    /// been far below: so often at most, since a guest can go up and down for ever.
    fn report_memory(&mut self, domid: DomId, quotas: &Quotas) {
        let Some(domain) = self.domains.get_mut(domid) else {
            return;
        };
        let memory = domain.account.memory.get();
        let over = memory >= quotas.memory && !domain.hard_reported;
        let much = memory >= quotas.memory_soft && !domain.soft_reported;
        domain.hard_reported |= over;
        domain.soft_reported |= much;
        if memory < quotas.memory_soft / 2 {
            domain.soft_reported = false;
            domain.hard_reported = false;
        }
        if !(over || much) || domain.told >= MAX_TOLD {
            return;
        }
        domain.told += 1;
        if over {
            log::warn!(
                "xenstore: d{domid} holds {memory} bytes, quota {}: not served until it holds less",
                quotas.memory
            );
        } else {
            log::warn!("xenstore: d{domid} holds {memory} bytes of xenstore memory");
        }
        if domain.told == MAX_TOLD {
            log::warn!("xenstore: no more is told of d{domid}'s memory");
        }
    }

    /// Takes what a client sent and does what it asks, a bounded amount in one call.
    pub fn input(&mut self, id: ConnId, bytes: &[u8]) -> Result<Input, ConnectionError> {
        self.begin_turn();
        let input = self.input_in_turn(id, bytes);
        self.tell_deadline(id);
        input
    }

    /// Starts to count the work of a client's turn.
    pub(crate) fn begin_turn(&mut self) {
        self.work = 0;
    }

    /// [`Self::input`] in a turn that began before.
    pub(crate) fn input_in_turn(
        &mut self,
        id: ConnId,
        bytes: &[u8],
    ) -> Result<Input, ConnectionError> {
        let connection = self.connections.get(&id).ok_or(ConnectionError::Unknown)?;
        if connection.failed {
            return Err(ConnectionError::PayloadTooLong);
        }
        let mut consumed = 0;
        while consumed < bytes.len() {
            if self.is_tired() {
                return Ok(Input {
                    consumed,
                    more: true,
                });
            }
            let step = self.wants(id).min(bytes.len() - consumed);
            if step == 0 {
                break;
            }
            let Some(connection) = self.connections.get_mut(&id) else {
                // A client released its own domain.
                return Err(ConnectionError::Unknown);
            };
            let taken = connection.take(&bytes[consumed..consumed + step]);
            consumed += step;
            match taken {
                Ok(Some((header, payload))) => self.request(id, &header, &payload),
                Ok(None) => {}
                Err(_) => {
                    self.fail_connection(id);
                    return Err(ConnectionError::PayloadTooLong);
                }
            }
        }
        Ok(Input {
            consumed,
            more: false,
        })
    }

    /// Whether enough was done for one turn.
    pub(crate) fn is_tired(&self) -> bool {
        self.work >= WORK_PER_CALL
    }

    /// What to send to a client next; empty: nothing now. Report with [`Self::sent`].
    pub fn output(&self, id: ConnId) -> &[u8] {
        self.connections.get(&id).map_or(&[], Connection::output)
    }

    /// Notes that the client got the first `count` bytes of [`Self::output`].
    pub fn sent(&mut self, id: ConnId, count: usize) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.sent(count);
            self.unstall();
        }
    }

    /// A connection that has output again, takes input again, or waits for a time
    /// ([`Self::next_deadline_ms`]) from now on. Serve it: it is not named a second time
    /// for the same reason.
    pub fn next_ready(&mut self) -> Option<ConnId> {
        self.ready.pop_first().or_else(|| self.timed.pop_first())
    }

    /// [`Self::next_ready`], registering the waker of the one task that asks.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<ConnId> {
        match self.next_ready() {
            Some(id) => Poll::Ready(id),
            None => {
                self.ready_waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Whether [`Self::next_ready`] would name one.
    pub fn has_ready(&self) -> bool {
        !(self.ready.is_empty() && self.timed.is_empty())
    }

    pub(crate) fn set_ready(&mut self, id: ConnId) {
        self.ready.insert(id);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.ready_waker.take() {
            waker.wake();
        }
    }

    /// Ends a turn in which everything that could be done for a connection was done.
    pub(crate) fn end_turn(&mut self, id: ConnId) {
        self.ready.remove(&id);
        self.tell_deadline(id);
    }

    /// Names a connection once more if it waits for a time that nobody knows of yet:
    /// who then looks at [`Self::next_deadline_ms`] does.
    fn tell_deadline(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let (domid, privileged) = (connection.domid, connection.privileged);
        let rate_wait = !privileged
            && self.stalled.contains(&id)
            && self.domains.write_wait_ms(domid, self.now_ms).is_some();
        let connection = self.connections.get_mut(&id);
        if connection.is_some_and(|connection| connection.has_new_deadline(rate_wait)) {
            self.timed.insert(id);
            self.wake();
        }
    }

    /// Finds the connections whose reason to wait is gone.
    pub(crate) fn unstall(&mut self) {
        if self.stalled.is_empty() {
            return;
        }
        for id in core::mem::take(&mut self.stalled) {
            if self.is_stalled(id) {
                self.stalled.insert(id);
            } else if self.connections.contains_key(&id) {
                self.set_ready(id);
            }
        }
    }

    /// What clients asked for that the caller has to do.
    pub fn next_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if action.is_some() {
            self.unstall();
        }
        action
    }

    // ---- time --------------------------------------------------------------------

    /// Tells the server what time it is (monotonic): drops events that ran out, lets
    /// writers go on.
    pub fn advance(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        for connection in self.connections.values_mut() {
            if connection
                .deadline_ms()
                .is_some_and(|deadline| deadline <= self.now_ms)
            {
                let gone = connection.expire_events(self.now_ms);
                count(&connection.account.events_dropped, gone);
            }
        }
        self.unstall();
    }

    /// When [`Self::advance`] has something to do next, in its milliseconds.
    pub fn next_deadline_ms(&mut self) -> Option<u64> {
        let events = self
            .connections
            .values()
            .filter_map(Connection::deadline_ms)
            .min();
        let mut writers = None;
        for id in &self.stalled {
            if let Some(connection) = self.connections.get(id)
                && !connection.privileged
                && let Some(wait) = self.domains.write_wait_ms(connection.domid, self.now_ms)
            {
                let at = self.now_ms.saturating_add(wait);
                writers = Some(writers.map_or(at, |other: u64| other.min(at)));
            }
        }
        events.into_iter().chain(writers).min()
    }

    pub(crate) fn actor(&self, connection: &Connection) -> Actor {
        let domain = self.domains.get(connection.domid);
        Actor {
            domid: connection.domid,
            target: domain.and_then(|domain| domain.target),
            privileged: connection.privileged,
        }
    }

    // ---- snapshots -----------------------------------------------------------------

    /// Lets old states go that transactions have kept for too much of others' work:
    /// those transactions will have to be tried again.
    pub(crate) fn bound_snapshots(&mut self) {
        while let Some((age, (id, number))) = self.open.first_key_value().map(|(a, b)| (*a, *b)) {
            let connection = self.connections.get_mut(&id);
            let transaction = connection.and_then(|c| c.transactions.get_mut(&number));
            if let Some((_, transaction)) = transaction {
                if self.store.copied() - transaction.copied_at_start <= PINNED_MAX {
                    return;
                }
                transaction.give_up(XsError::EAGAIN);
            }
            // No longer among those that keep a state, but still the client's.
            self.open.remove(&age);
        }
    }

    /// Takes a change out of the actor's share of the write rate, if any transaction is open
    /// that it may bring to nothing: what was copied since [`Store::copied`] was `before`
    /// counts, too, since the oldest states are let go when it is too much.
    pub(crate) fn pay_write(&mut self, actor: &Actor, before: u64) {
        if !self.open.is_empty() && !actor.privileged {
            let copied = self.store.copied() - before;
            self.domains.pay_write(actor.domid, copied, self.now_ms);
        }
    }
}
