//! One client's connection: what came in so far, what waits to go out.

use crate::account::{Account, Charge, Ticket};
use crate::path::Path;
use crate::transaction::Transaction;
use crate::watches::WatchId;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use xen_abi::DomId;
use xen_abi::io::xs_wire::{MessageType, SockMsg, XENSTORE_PAYLOAD_MAX};
use zerocopy::{FromBytes, IntoBytes};

/// What a queued packet is taken to cost beside its bytes.
pub(crate) const PACKET_COST: usize = 176;
/// Bytes of a packet's header.
pub(crate) const HEADER: usize = size_of::<SockMsg>();

/// A packet on its way out.
#[derive(Debug)]
pub(crate) struct Packet {
    bytes: Box<[u8]>,
    sent: usize,
    _charge: Charge,
    /// The request whose answer or effect this is.
    _ticket: Option<Rc<Ticket>>,
    event: Option<(WatchId, Path)>,
    /// When an event that nobody read is dropped.
    deadline_ms: Option<u64>,
}

/// A packet whose header or payload is still coming in.
#[derive(Debug, Default)]
struct Incoming {
    header: [u8; HEADER],
    have: usize,
    payload: Vec<u8>,
}

/// The client said that more is to come than a packet may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

#[derive(Debug)]
pub(crate) struct Connection {
    pub domid: DomId,
    pub privileged: bool,
    /// Where relative paths start.
    pub home: alloc::string::String,
    pub account: Rc<Account>,
    /// Broke the protocol: nothing more is read or sent until it is reset.
    pub failed: bool,
    pub watches: BTreeMap<(Path, Box<[u8]>), WatchId>,
    /// By number; each with its age among all open ones.
    pub transactions: BTreeMap<u32, (u64, Transaction)>,
    next_transaction: u32,
    incoming: Incoming,
    output: VecDeque<Packet>,
    /// Bytes in `output` still to be sent.
    output_bytes: usize,
    /// The deadlines that whoever keeps the time was told of: the oldest event's, and
    /// whether the writes wait for their rate.
    told: (Option<u64>, bool),
    waiting: BTreeSet<(WatchId, Path)>,
}

impl Connection {
    pub(crate) fn new(domid: DomId, privileged: bool, account: Rc<Account>) -> Self {
        Self {
            domid,
            privileged,
            home: crate::path::home(domid),
            account,
            failed: false,
            watches: BTreeMap::new(),
            transactions: BTreeMap::new(),
            next_transaction: 1,
            incoming: Incoming::default(),
            output: VecDeque::new(),
            output_bytes: 0,
            told: (None, false),
            waiting: BTreeSet::new(),
        }
    }

    /// Bytes until the current header or payload is complete; never 0.
    pub(crate) fn missing(&self) -> usize {
        let incoming = &self.incoming;
        if incoming.have < HEADER {
            HEADER - incoming.have
        } else {
            self.payload_len().saturating_sub(incoming.payload.len())
        }
    }

    fn payload_len(&self) -> usize {
        self.header().len as usize
    }

    fn header(&self) -> SockMsg {
        SockMsg::read_from_bytes(&self.incoming.header).expect("sizes are equal")
    }

    /// Takes no more than [`Self::missing`] bytes; gives back a packet that is whole.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Option<(SockMsg, Vec<u8>)>, TooLong> {
        let incoming = &mut self.incoming;
        if incoming.have < HEADER {
            incoming.header[incoming.have..incoming.have + bytes.len()].copy_from_slice(bytes);
            incoming.have += bytes.len();
            if incoming.have < HEADER {
                return Ok(None);
            }
            if self.payload_len() > XENSTORE_PAYLOAD_MAX {
                return Err(TooLong);
            }
        } else {
            incoming.payload.extend_from_slice(bytes);
        }
        if self.incoming.payload.len() < self.payload_len() {
            return Ok(None);
        }
        let header = self.header();
        let payload = core::mem::take(&mut self.incoming).payload;
        Ok(Some((header, payload)))
    }

    /// A number no open transaction has.
    pub(crate) fn new_transaction_id(&mut self) -> u32 {
        loop {
            let id = self.next_transaction;
            self.next_transaction = self.next_transaction.wrapping_add(1);
            if id != 0 && !self.transactions.contains_key(&id) {
                return id;
            }
        }
    }

    pub(crate) fn reply(
        &mut self,
        to: &SockMsg,
        message_type: MessageType,
        payload: &[u8],
        ticket: Option<Rc<Ticket>>,
    ) {
        let header = SockMsg {
            message_type: message_type.0,
            ..*to
        };
        self.queue(header, payload, ticket, None, None);
    }

    /// Queues a watch event, unless the very same waits already; special ones are all
    /// told. False: it waits already.
    pub(crate) fn event(
        &mut self,
        watch: WatchId,
        path: &Path,
        payload: &[u8],
        ticket: Option<Rc<Ticket>>,
        deadline_ms: Option<u64>,
    ) -> bool {
        let key = (watch, path.clone());
        if !path.is_special() && !self.waiting.insert(key.clone()) {
            return false;
        }
        let header = SockMsg {
            message_type: MessageType::WATCH_EVENT.0,
            req_id: 0,
            tx_id: 0,
            len: 0,
        };
        self.queue(header, payload, ticket, Some(key), deadline_ms);
        true
    }

    fn queue(
        &mut self,
        mut header: SockMsg,
        payload: &[u8],
        ticket: Option<Rc<Ticket>>,
        event: Option<(WatchId, Path)>,
        deadline_ms: Option<u64>,
    ) {
        header.len = u32::try_from(payload.len()).expect("at most XENSTORE_PAYLOAD_MAX");
        let bytes = [header.as_bytes(), payload].concat().into_boxed_slice();
        let path = event.as_ref().map_or(0, |(_, path)| path.as_str().len());
        self.output_bytes += bytes.len();
        self.output.push_back(Packet {
            sent: 0,
            _charge: Charge::new(&self.account, bytes.len() + path + PACKET_COST),
            bytes,
            _ticket: ticket,
            event,
            deadline_ms,
        });
    }

    /// What is to be sent next; empty: nothing.
    pub(crate) fn output(&self) -> &[u8] {
        self.output
            .front()
            .map_or(&[], |packet| &packet.bytes[packet.sent..])
    }

    /// Bytes waiting to be sent.
    pub(crate) fn output_bytes(&self) -> usize {
        self.output_bytes
    }

    /// Notes that `count` bytes of the output are with the client.
    pub(crate) fn sent(&mut self, mut count: usize) {
        while let Some(packet) = self.output.front_mut() {
            let step = count.min(packet.bytes.len() - packet.sent);
            packet.sent += step;
            count -= step;
            self.output_bytes -= step;
            if packet.sent < packet.bytes.len() {
                return;
            }
            if let Some(Packet {
                event: Some(key), ..
            }) = self.output.pop_front()
            {
                self.waiting.remove(&key);
            }
        }
    }

    /// When the oldest event that nobody read runs out.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        let waiting = self.output.iter().filter(|packet| packet.sent == 0);
        waiting.filter_map(|packet| packet.deadline_ms).next()
    }

    /// Whether there is a deadline that was not told of yet; it is now.
    pub(crate) fn has_new_deadline(&mut self, rate_wait: bool) -> bool {
        let (event, waits) = (self.deadline_ms(), rate_wait);
        let (told_event, told_waits) = core::mem::replace(&mut self.told, (event, waits));
        (event.is_some() && event != told_event) || (waits && !told_waits)
    }

    /// Drops the events whose time is over; those half sent stay. How many went.
    pub(crate) fn expire_events(&mut self, now_ms: u64) -> u64 {
        let mut gone = 0;
        let (waiting, output_bytes) = (&mut self.waiting, &mut self.output_bytes);
        self.output.retain(|packet| {
            let over = packet
                .deadline_ms
                .is_some_and(|deadline| deadline <= now_ms);
            if !over || packet.sent > 0 {
                return true;
            }
            if let Some(key) = &packet.event {
                waiting.remove(key);
            }
            *output_bytes -= packet.bytes.len();
            gone += 1;
            false
        });
        gone
    }

    /// Forgets everything that is half done; watches and transactions are the
    /// server's to end.
    pub(crate) fn clear(&mut self) {
        self.incoming = Incoming::default();
        self.output.clear();
        self.output_bytes = 0;
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_counted_through_sending_and_running_out() {
        let account = Rc::new(Account::default());
        let mut connection = Connection::new(DomId(1), false, account.clone());
        let path = Path::root();
        for (id, deadline_ms) in [(1, 10), (2, 20), (3, 30)] {
            assert!(connection.event(WatchId(id), &path, b"12345", None, Some(deadline_ms)));
        }
        let packet = HEADER + 5;
        assert_eq!(connection.output_bytes(), 3 * packet);
        // Half of the first is sent: it stays.
        connection.sent(7);
        assert_eq!(connection.expire_events(20), 1);
        assert_eq!(connection.output_bytes(), 2 * packet - 7);
        assert_eq!(connection.deadline_ms(), Some(30));
        connection.sent(2 * packet - 7);
        assert!(connection.output().is_empty());
        assert_eq!((connection.output_bytes(), account.memory.get()), (0, 0));
        // Neither the one that ran out nor those sent wait any more.
        for id in [1, 2, 3] {
            assert!(connection.event(WatchId(id), &path, b"", None, None));
        }
    }
}
