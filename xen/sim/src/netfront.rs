//! A simulated network frontend: a guest's end of the netif rings, as Linux drives it.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "slot numbers and sizes of a simulated frontend"
)]

use crate::{GuestPages, Machine, SimEvents, SimGuest};
use std::collections::{BTreeMap, VecDeque};
use xen_abi::io::netif::{
    EXTRA_FLAG_MORE, ExtraInfo, RxRequest, RxSlot, TxRequest, TxResponse, TxSlot, extra_type, rsp,
    rxf, txf,
};
use xen_abi::{DomId, GrantRef, PAGE_SIZE};
use xen_ring::peer::{Access, Events};
use xen_ring::{FrontRing, Kick};

/// A frame as the guest gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// `NETRXF_*` of its first slot.
    pub flags: u16,
    /// `gso_size` and `gso_type`.
    pub gso: Option<(u16, u8)>,
}

/// How a frame is put into the transmit ring.
#[derive(Clone, Debug, Default)]
pub struct Sending {
    /// Bytes in each slot, the last size repeated; empty: a page each.
    pub slot_sizes: Vec<usize>,
    /// `NETTXF_*` beside those the slots need.
    pub flags: u16,
    /// `gso_size` and `gso_type`.
    pub gso: Option<(u16, u8)>,
}

struct RxBuffer {
    page: GuestPages,
    gref: GrantRef,
}

/// A guest's network device with one queue.
pub struct NetFront {
    guest: SimGuest,
    events: SimEvents,
    tx: FrontRing<TxSlot, TxResponse>,
    rx: FrontRing<RxRequest, RxSlot>,
    tx_ring: GrantRef,
    rx_ring: GrantRef,
    /// Pages lent for sending, by request id. `None`: an extra info's place.
    sending: BTreeMap<u16, (GuestPages, GrantRef)>,
    next_id: u16,
    /// Statuses of answered data slots, oldest first.
    statuses: VecDeque<i16>,
    /// Receive buffers by ring slot: Linux does not look at a response's id.
    posted: BTreeMap<u32, RxBuffer>,
    rx_prod: u32,
    rx_cons: u32,
    /// Slots of a frame whose end has not come.
    partial: Option<Received>,
    /// The next slot is extra info.
    extra_next: bool,
    /// A slot of the current frame was an error.
    damaged: bool,
}

impl std::fmt::Debug for NetFront {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NetFront(d{})", self.guest.domid())
    }
}

impl NetFront {
    /// A guest `domid` with its rings granted, all their counters at `start`. The second
    /// value is the backend's end of its event channel.
    pub fn new(machine: &Machine, domid: DomId, start: u32) -> (Self, SimEvents) {
        let guest = SimGuest::new(machine, domid);
        let (events, theirs) = SimEvents::pair();
        let ring = || {
            let page = guest.alloc(1);
            let gref = guest.grant(page.mfns[0], Access::Write);
            (page.bytes, gref)
        };
        let (tx, tx_ring) = ring();
        let (rx, rx_ring) = ring();
        let front = Self {
            events,
            tx: FrontRing::init(tx, start),
            rx: FrontRing::init(rx, start),
            tx_ring,
            rx_ring,
            sending: BTreeMap::new(),
            next_id: 0,
            statuses: VecDeque::new(),
            posted: BTreeMap::new(),
            rx_prod: start,
            rx_cons: start,
            partial: None,
            extra_next: false,
            damaged: false,
            guest,
        };
        (front, theirs)
    }

    /// The guest.
    pub fn guest(&self) -> &SimGuest {
        &self.guest
    }

    /// `tx-ring-ref` and `rx-ring-ref`.
    pub fn ring_refs(&self) -> (GrantRef, GrantRef) {
        (self.tx_ring, self.rx_ring)
    }

    /// The transmit ring, for a frontend that does not behave.
    pub fn tx_ring_mut(&mut self) -> &mut FrontRing<TxSlot, TxResponse> {
        &mut self.tx
    }

    /// The receive ring, for a frontend that does not behave.
    pub fn rx_ring_mut(&mut self) -> &mut FrontRing<RxRequest, RxSlot> {
        &mut self.rx
    }

    /// Tells the backend, whatever the ring says.
    pub fn notify(&self) {
        self.events.notify();
    }

    /// Free transmit slots.
    pub fn tx_free(&self) -> u32 {
        self.tx.free()
    }

    /// Sends a frame, cut over slots as `how` says, each at another offset in its page.
    ///
    /// # Panics
    /// If the ring has no room for it.
    pub fn send(&mut self, bytes: &[u8], how: &Sending) {
        let mut slots = Vec::new();
        let mut sizes = how.slot_sizes.iter();
        let mut size = PAGE_SIZE;
        let mut rest = bytes;
        while !rest.is_empty() || slots.is_empty() {
            size = sizes.next().copied().unwrap_or(size);
            let (now, later) = rest.split_at(size.min(rest.len()));
            slots.push(now);
            rest = later;
        }
        let count = slots.len();
        for (n, part) in slots.into_iter().enumerate() {
            let mut flags = if n + 1 < count { txf::MORE_DATA } else { 0 };
            let mut size = part.len();
            if n == 0 {
                flags |= how.flags;
                size = bytes.len();
                if how.gso.is_some() {
                    flags |= txf::EXTRA_INFO;
                }
            }
            // Any place does, as long as the data stays in the page.
            let offset = (n * 37).min(PAGE_SIZE - part.len());
            let page = self.guest.alloc(1);
            page.bytes.write_bytes(offset, part);
            let gref = self.guest.grant(page.mfns[0], Access::Read);
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            self.sending.insert(id, (page, gref));
            self.tx.push_request(&TxSlot::from(TxRequest {
                gref: gref.0,
                offset: offset as u16,
                flags,
                id,
                size: size as u16,
            }));
            if let Some((gso_size, gso_type)) = how.gso.filter(|_| n == 0) {
                self.tx.push_request(&TxSlot::from_extra(ExtraInfo {
                    kind: extra_type::GSO,
                    flags: 0,
                    gso_size,
                    gso_type,
                    gso_pad: 0,
                    gso_features: 0,
                }));
            }
        }
        self.publish_tx();
    }

    /// Makes pushed transmit requests visible, and kicks if asked to.
    pub fn publish_tx(&mut self) {
        if self.tx.publish() == Kick::Needed {
            self.events.notify();
        }
    }

    /// Takes the transmit responses that are there, and their grants back.
    ///
    /// # Panics
    /// If a response names no request, or its page is still in use.
    pub fn collect_tx(&mut self) {
        while let Some(response) = self.tx.next_response() {
            if response.status == rsp::NULL {
                continue;
            }
            if let Some((_, gref)) = self.sending.remove(&response.id) {
                self.guest.end(gref).expect("answered, so no longer used");
            } else {
                assert!(
                    response.status < 0,
                    "good response for unknown id {}",
                    response.id
                );
            }
            self.statuses.push_back(response.status);
        }
    }

    /// Overwrites everything sent and not answered, as a guest can at any moment.
    pub fn scribble(&self, byte: u8) {
        for (page, _) in self.sending.values() {
            page.bytes.write_bytes(0, &[byte; PAGE_SIZE]);
        }
    }

    /// Data slots sent and not answered.
    pub fn tx_unanswered(&self) -> usize {
        self.sending.len()
    }

    /// The status of the oldest answered slot not asked for yet.
    pub fn next_status(&mut self) -> Option<i16> {
        self.collect_tx();
        self.statuses.pop_front()
    }

    /// Posts receive buffers, as many as have room, at most `count`.
    pub fn post_rx(&mut self, count: usize) {
        for _ in 0..count {
            if self.rx.free() == 0 {
                break;
            }
            let page = self.guest.alloc(1);
            let gref = self.guest.grant(page.mfns[0], Access::Write);
            self.post_rx_raw(gref, Some(page));
        }
        self.publish_rx();
    }

    /// Puts one receive request into the ring, perhaps with a grant that is none.
    pub fn post_rx_raw(&mut self, gref: GrantRef, page: Option<GuestPages>) {
        let slot = self.rx_prod % self.rx.size();
        self.rx.push_request(&RxRequest {
            id: slot as u16,
            pad: 0,
            gref: gref.0,
        });
        let page = page.unwrap_or_else(|| self.guest.alloc(1));
        self.posted.insert(slot, RxBuffer { page, gref });
        self.rx_prod = self.rx_prod.wrapping_add(1);
    }

    /// Makes posted buffers visible, and kicks if asked to.
    pub fn publish_rx(&mut self) {
        if self.rx.publish() == Kick::Needed {
            self.events.notify();
        }
    }

    /// The frames that have come. A frame with an error slot is left out.
    ///
    /// # Panics
    /// If the backend breaks the protocol: an id that is not the slot's, data outside the
    /// page, an extra info of no known kind.
    pub fn recv(&mut self) -> Vec<Received> {
        let mut frames = Vec::new();
        while let Some(slot) = self.rx.next_response() {
            let at = self.rx_cons % self.rx.size();
            self.rx_cons = self.rx_cons.wrapping_add(1);
            let buffer = self
                .posted
                .remove(&at)
                .expect("a response for a posted buffer");
            self.guest
                .end(buffer.gref)
                .expect("copied, so never mapped");
            if std::mem::take(&mut self.extra_next) {
                let extra = slot.extra();
                assert_eq!(extra.kind, extra_type::GSO);
                assert_eq!(extra.flags & EXTRA_FLAG_MORE, 0);
                let frame = self.partial.as_mut().expect("extra info follows a slot");
                frame.gso = Some((extra.gso_size, extra.gso_type));
                let goes_on = frame.flags & rxf::MORE_DATA != 0;
                self.finish_if(goes_on, &mut frames);
                continue;
            }
            let response = slot.response();
            assert_eq!(u32::from(response.id), at, "a response in another slot");
            let first = self.partial.is_none();
            let frame = self.partial.get_or_insert_with(|| Received {
                bytes: Vec::new(),
                flags: response.flags,
                gso: None,
            });
            if response.status < 0 {
                self.damaged = true;
            } else {
                let (offset, len) = (usize::from(response.offset), response.status as usize);
                assert!(offset + len <= PAGE_SIZE, "data outside the page");
                let mut bytes = vec![0; len];
                buffer.page.bytes.read_bytes(offset, &mut bytes);
                frame.bytes.extend(bytes);
            }
            if first && response.flags & rxf::EXTRA_INFO != 0 {
                self.extra_next = true;
                continue;
            }
            self.finish_if(response.flags & rxf::MORE_DATA != 0, &mut frames);
        }
        frames
    }

    fn finish_if(&mut self, goes_on: bool, frames: &mut Vec<Received>) {
        if goes_on {
            return;
        }
        let frame = self.partial.take().expect("a frame was begun");
        if !std::mem::take(&mut self.damaged) {
            frames.push(frame);
        }
    }
}
