//! The port of our own management stack: plain frames, all checksums in place.

use crate::headers::{self, Claim, Prefix};
use crate::offload::{Next, Segments, checksum_is_right, fill_checksum};
use crate::port::Inbox;
use crate::switch::{Port, Source, Verdict, View};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;
use core::task::{Context, Poll};
use hal::VcpuId;
use hal::net::{Checksum, Frame, MacAddr, PacketPool};

/// Frames looked at in vain before [`LocalPort::try_recv`] gives up for now.
const MAX_DROPPED: usize = 8;

/// UDP port of who asks a DHCP server (RFC 2131).
const DHCP_CLIENT: u16 = 68;

/// Stations of the wire whose address no guest can claim: more than a network of the usual
/// size has.
const MAX_KNOWN: usize = 256;

/// Who is who on the wire, by ARP: the last ones that spoke.
#[derive(Debug, Default)]
struct Known(VecDeque<(Ipv4Addr, MacAddr)>);

impl Known {
    fn note(&mut self, address: Ipv4Addr, mac: MacAddr) {
        self.0.retain(|(known, _)| *known != address);
        if self.0.len() == MAX_KNOWN {
            self.0.pop_front();
        }
        self.0.push_back((address, mac));
    }

    /// Whether it is another one's. A guest that came here from another host has its own.
    fn is_of_another(&self, address: Ipv4Addr, mac: MacAddr) -> bool {
        let mut known = self.0.iter();
        known.any(|(known, of)| *known == address && *of != mac)
    }
}

/// Where our frames come from: the wire, or some of the guests.
#[derive(Debug)]
struct Origin {
    inbox: Arc<Inbox>,
    cutting: Option<Segments>,
}

/// What [`Origin::next`] has to say.
enum Taken {
    Frame(Frame),
    /// One was lost for want of memory.
    Lost,
    Nothing,
}

impl Origin {
    fn new(inbox: &Arc<Inbox>) -> Self {
        Self {
            inbox: inbox.clone(),
            cutting: None,
        }
    }

    /// The next frame or segment.
    fn next(&mut self, pool: &PacketPool) -> Taken {
        loop {
            match &mut self.cutting {
                Some(segments) => match segments.next(pool) {
                    Next::Segment(segment) => return Taken::Frame(segment),
                    Next::NoMemory => {
                        // TCP sends the rest again.
                        self.cutting = None;
                        return Taken::Lost;
                    }
                    Next::Done => self.cutting = None,
                },
                None => match self.inbox.pop().map(Segments::of) {
                    Some(Ok(segments)) => self.cutting = Some(segments),
                    Some(Err(frame)) => return Taken::Frame(frame),
                    None => return Taken::Nothing,
                },
            }
        }
    }
}

/// Frames that our own stack lost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// From the wire, for want of room.
    pub wire: u64,
    /// From guests, for want of room.
    pub guests: u64,
    /// For want of memory, with a wrong checksum, or with a claim that is not credible.
    pub unusable: u64,
    /// Ours, that nobody took.
    pub unsent: u64,
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            wire,
            guests,
            unusable,
            unsent,
        } = self;
        write!(
            f,
            "{wire} from the wire, {guests} from guests, {unusable} unusable, {unsent} not sent"
        )
    }
}

/// Our own station at the switch. Used by one task.
#[derive(Debug)]
pub struct LocalPort {
    port: Port,
    view: View,
    pool: PacketPool,
    wire: Origin,
    guests: Vec<Origin>,
    known: Known,
    /// Whether a guest was the last to have its turn.
    guests_turn: bool,
    /// Which of them is next.
    guest: usize,
    unusable: u64,
    unsent: u64,
}

impl LocalPort {
    /// The station behind `port`, served on `vcpu` with memory from `pool`.
    pub fn new(port: Port, vcpu: VcpuId, pool: PacketPool) -> Self {
        Self {
            view: port.view(vcpu),
            wire: Origin::new(port.inbox()),
            guests: port.lanes().iter().map(Origin::new).collect(),
            port,
            pool,
            known: Known::default(),
            guests_turn: false,
            guest: 0,
            unusable: 0,
            unsent: 0,
        }
    }

    /// Its address.
    pub fn mac(&self) -> MacAddr {
        self.port.mac()
    }

    /// Frames lost here so far.
    pub fn losses(&self) -> Losses {
        Losses {
            wire: self.wire.inbox.refused(),
            guests: self.guests.iter().map(|guest| guest.inbox.refused()).sum(),
            unusable: self.unusable,
            unsent: self.unsent,
        }
    }

    /// The next frame for us: at most an MTU long, its TCP or UDP checksum filled in, or
    /// checked if the NIC has not done that. Every other one is from the wire as long as it
    /// has any, the rest from guests in turn. `None`: there is none, or so many had to be
    /// dropped that others should have their turn ([`Self::poll_recv`] knows).
    pub fn try_recv(&mut self) -> Option<Vec<u8>> {
        for _ in 0..MAX_DROPPED {
            let (taken, of_guest) = self.take();
            let mut frame = match taken {
                Taken::Frame(frame) if self.is_credible(&frame, of_guest) => frame,
                Taken::Frame(_) | Taken::Lost => {
                    self.unusable += 1;
                    continue;
                }
                Taken::Nothing => return None,
            };
            fill_checksum(&mut frame);
            if frame.checksum == Checksum::Unknown && !plausible(&frame) {
                self.unusable += 1;
                continue;
            }
            let mut bytes = alloc::vec![0; frame.len()];
            frame.read(0, &mut bytes);
            return Some(bytes);
        }
        None
    }

    /// Whether our stack may believe a frame. Who says what our address or our peers' is can
    /// cut us off from those who manage this host, so a guest must not, and our own questions
    /// reach guests, too.
    fn is_credible(&mut self, frame: &Frame, of_guest: bool) -> bool {
        match headers::claim(Prefix::of(frame).as_slice()) {
            // smoltcp panics when it answers it.
            Some(Claim::V4(source, _)) if source.is_unspecified() => false,
            Some(Claim::V4(_, Some(DHCP_CLIENT))) => !of_guest,
            Some(Claim::Arp(address, mac)) if of_guest => !self.known.is_of_another(address, mac),
            Some(Claim::Arp(address, mac)) => {
                self.known.note(address, mac);
                true
            }
            _ => true,
        }
    }

    /// A frame of whose turn it is, or else of who has one, and whether it is a guest's.
    fn take(&mut self) -> (Taken, bool) {
        self.guests_turn = !self.guests_turn;
        for of_guest in [self.guests_turn, !self.guests_turn] {
            let taken = if of_guest {
                self.take_of_guests()
            } else {
                self.wire.next(&self.pool)
            };
            if !matches!(taken, Taken::Nothing) {
                return (taken, of_guest);
            }
        }
        (Taken::Nothing, false)
    }

    fn take_of_guests(&mut self) -> Taken {
        for _ in 0..self.guests.len() {
            self.guest = (self.guest + 1) % self.guests.len();
            match self.guests[self.guest].next(&self.pool) {
                Taken::Nothing => {}
                taken => return taken,
            }
        }
        Taken::Nothing
    }

    /// Ready when [`Self::try_recv`] may give a frame; registers the waker otherwise.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for origin in core::iter::once(&self.wire).chain(&self.guests) {
            if origin.cutting.is_some() || origin.inbox.poll_readable(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Sends a whole frame, with our address as its source and all checksums in place.
    /// `false`: dropped, as on a wire that is busy or leads nowhere.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.view.refresh();
        let sent = Frame::from_bytes(&self.pool, bytes).is_some_and(|frame| {
            let ours = Source::Station(self.port.mac());
            let verdict = self.view.forward(ours, frame, &self.pool);
            matches!(verdict, Verdict::Forwarded(_))
        });
        self.unsent += u64::from(!sent);
        sent
    }
}

/// Whether a frame of unknown state has a right checksum, or none that we know.
fn plausible(frame: &Frame) -> bool {
    let prefix = Prefix::of(frame);
    match headers::parse(prefix.as_slice(), frame.len()) {
        Some(layout) => {
            let mut field = [0; 2];
            frame.read(layout.checksum_at(), &mut field);
            // UDP over IPv4 may have none.
            let none = layout.l4 == hal::net::L4::Udp && field == [0, 0];
            none || checksum_is_right(frame, &layout)
        }
        None => true,
    }
}
