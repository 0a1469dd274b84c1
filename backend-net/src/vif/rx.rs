//! From the switch to the guest.

use super::request::Fatal;
use super::tx::copy_with_retry;
use crate::counters::{Counters, add};
use crate::direct::{Source, frame_sources};
use crate::nodes::FrontendFeatures;
use crate::offload::{Next, Segments, fill_checksum};
use crate::port::{Inbox, Packet};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use core::task::Context;
use hal::net::{Checksum, Frame, IpVersion, PacketPool};
use xen_abi::io::netif::{
    ExtraInfo, RxRequest, RxResponse, RxSlot, extra_type, gso_type, rsp, rxf,
};
use xen_abi::{GrantRef, PAGE_SIZE};
use xen_ring::peer::{CopyEnd, CopyOp, GrantStatus, Grants};
use xen_ring::{BackRing, Kick, SharedPages};

/// Slots filled in one go.
const BUDGET: usize = 64;
/// How long frames wait for a guest to post buffers before they are dropped.
const STALL_NS: u64 = 1_000_000_000;
/// The same for a guest that does not say when it posts some (no `feature-rx-notify`).
const UNNOTIFIED_NS: u64 = 30_000_000;

/// A slot about to be filled.
struct Slot {
    id: u16,
    len: usize,
    ops: core::ops::Range<usize>,
}

/// A frame about to be copied; it holds its memory until then.
struct Placed {
    packet: Packet,
    slots: Vec<Slot>,
    gso: Option<ExtraInfo>,
}

impl Packet {
    fn len(&self) -> usize {
        match self {
            Self::Owned(frame) => frame.len(),
            Self::Direct(direct) => direct.len(),
        }
    }

    fn checksum(&self) -> Checksum {
        match self {
            Self::Owned(frame) => frame.checksum,
            Self::Direct(direct) => direct.checksum(),
        }
    }

    fn mss(&self) -> Option<NonZeroU16> {
        match self {
            Self::Owned(frame) => frame.mss,
            Self::Direct(direct) => direct.mss(),
        }
    }

    fn walk(&self, at: usize, len: usize, visit: impl FnMut(Source)) {
        match self {
            Self::Owned(frame) => frame_sources(frame, at, len, visit),
            Self::Direct(direct) => direct.walk(at, len, visit),
        }
    }
}

pub(super) struct Rx {
    ring: BackRing<RxRequest, RxSlot>,
    features: FrontendFeatures,
    /// The next frame, waiting for slots.
    next: Option<Packet>,
    /// Frames taken out of the inbox early, to answer their senders. The inbox still
    /// counts their pages.
    brought_home: VecDeque<Frame>,
    /// A frame being cut for a guest that takes no long ones.
    cutting: Option<Segments>,
    /// Since when the next frame has waited for the guest's buffers, and until when it does.
    starved_until: Option<u64>,
    /// It had no buffers for the last frame: its senders keep theirs.
    behind: bool,
    /// The guest did not post buffers in time: its inbox is closed until it does.
    stalled: bool,
    ops: Vec<CopyOp>,
}

impl Rx {
    pub(super) fn attach(pages: SharedPages, features: FrontendFeatures) -> Result<Self, Fatal> {
        Ok(Self {
            ring: BackRing::attach(pages)?,
            features,
            next: None,
            brought_home: VecDeque::new(),
            cutting: None,
            starved_until: None,
            behind: false,
            stalled: false,
            ops: Vec::new(),
        })
    }

    /// Copies a batch of frames into the guest's buffers. Whether anything was done.
    pub(super) fn step(
        &mut self,
        grants: &impl Grants,
        inbox: &Inbox,
        pool: &PacketPool,
        counters: &Counters,
        notify: impl FnOnce(),
    ) -> Result<bool, Fatal> {
        let mut batch = Vec::new();
        let mut budget = BUDGET;
        while budget > 0 {
            if !self.fetch(inbox, pool, counters, &mut budget) {
                break;
            }
            let Some(packet) = self.next.take() else {
                break;
            };
            let slots = slots_for(&packet);
            if self.ring.unconsumed()? < slots {
                self.next = Some(packet);
                self.behind = true;
                inbox.set_takes_direct(false);
                break;
            }
            self.starved_until = None;
            if self.behind && self.brought_home.is_empty() {
                self.behind = false;
                inbox.set_takes_direct(self.can_take_direct());
            }
            batch.push(self.place(packet)?);
            budget = budget.saturating_sub(slots as usize);
        }
        if self.next.is_some() {
            self.bring_home(grants, inbox, pool, counters);
        }
        if batch.is_empty() {
            return Ok(false);
        }
        copy_with_retry(grants, &mut self.ops);
        add(&counters.copy_ops, self.ops.len());
        add(&counters.copy_calls, 1);
        for placed in batch {
            self.answer(placed, counters);
        }
        self.ops.clear();
        if self.ring.publish() == Kick::Needed {
            add(&counters.notifies, 1);
            notify();
        }
        Ok(true)
    }

    /// Whether frames can be copied to this guest as they are in their senders' pages.
    pub(super) fn can_take_direct(&self) -> bool {
        let FrontendFeatures {
            sg,
            gso_v4,
            gso_v6,
            checksum_v4,
            checksum_v6,
            ..
        } = self.features;
        sg && gso_v4 && gso_v6 && checksum_v4 && checksum_v6
    }

    /// The guest has no buffers now: copies the frames that wait in their senders' pages
    /// into memory of ours, so that the senders wait for nobody.
    fn bring_home(
        &mut self,
        grants: &impl Grants,
        inbox: &Inbox,
        pool: &PacketPool,
        counters: &Counters,
    ) {
        let mut home = |packet| match packet {
            Packet::Owned(frame) => Some(frame),
            Packet::Direct(direct) => {
                add(&counters.copy_calls, 1);
                let frame = direct.copy_home(grants, pool);
                if frame.is_none() {
                    add(&counters.rx_dropped, 1);
                }
                frame
            }
        };
        self.next = self.next.take().and_then(&mut home).map(Packet::Owned);
        while inbox.directs() > 0
            && let Some(packet) = inbox.pop_packet()
        {
            let Some(frame) = home(packet) else { continue };
            if inbox.hold(frame.parts().len()) {
                self.brought_home.push_back(frame);
            } else {
                add(&counters.rx_dropped, 1);
            }
        }
    }

    /// Sees to it that `next` holds a frame fit for this guest; `false`: there is none now,
    /// or dropping those that are not fit took all of `budget`.
    fn fetch(
        &mut self,
        inbox: &Inbox,
        pool: &PacketPool,
        counters: &Counters,
        budget: &mut usize,
    ) -> bool {
        while self.next.is_none() {
            if *budget == 0 {
                return false;
            }
            let mut frame = match &mut self.cutting {
                Some(segments) => match segments.next(pool) {
                    Next::Segment(segment) => segment,
                    Next::NoMemory => {
                        // The frame's own pages may be what is lacking: TCP sends it again.
                        add(&counters.rx_dropped, 1);
                        self.cutting = None;
                        *budget -= 1;
                        continue;
                    }
                    Next::Done => {
                        self.cutting = None;
                        continue;
                    }
                },
                None => {
                    let waiting = self.brought_home.pop_front().map(|frame| {
                        inbox.release(frame.parts().len());
                        Packet::Owned(frame)
                    });
                    match waiting.or_else(|| inbox.pop_packet()) {
                        Some(Packet::Owned(frame)) => frame,
                        // Only guests that take anything get those.
                        Some(direct) => {
                            self.next = Some(direct);
                            return true;
                        }
                        None => return false,
                    }
                }
            };
            if frame.len() > PAGE_SIZE && !self.features.sg && frame.mss.is_none() {
                add(&counters.rx_errors, 1);
                *budget -= 1;
                continue;
            }
            if let Checksum::Partial(layout) = frame.checksum {
                let (gso, checksum) = match layout.ip {
                    IpVersion::V4 => (self.features.gso_v4, self.features.checksum_v4),
                    IpVersion::V6 => (self.features.gso_v6, self.features.checksum_v6),
                };
                // A long frame always has a blank checksum, so it needs both.
                if frame.mss.is_some() && !(gso && checksum) {
                    match Segments::of(frame) {
                        Ok(segments) => {
                            self.cutting = Some(segments);
                            continue;
                        }
                        Err(back) => frame = back,
                    }
                }
                if !checksum {
                    fill_checksum(&mut frame);
                }
            }
            if frame.len() > PAGE_SIZE && !self.features.sg {
                add(&counters.rx_errors, 1);
                *budget -= 1;
                continue;
            }
            self.next = Some(Packet::Owned(frame));
        }
        true
    }

    /// Takes the slots of a frame and plans the copies into them.
    fn place(&mut self, packet: Packet) -> Result<Placed, Fatal> {
        let gso = match (packet.mss(), packet.checksum()) {
            (Some(mss), Checksum::Partial(layout)) => Some(ExtraInfo {
                kind: extra_type::GSO,
                flags: 0,
                gso_size: mss.get(),
                gso_type: match layout.ip {
                    IpVersion::V4 => gso_type::TCPV4,
                    IpVersion::V6 => gso_type::TCPV6,
                },
                gso_pad: 0,
                gso_features: 0,
            }),
            _ => None,
        };
        let mut slots = Vec::with_capacity(packet.len().div_ceil(PAGE_SIZE) + 1);
        let mut at = 0;
        while at < packet.len() {
            // `step` has seen that they are there; the guest cannot take one back.
            let request = self.ring.next_request()?.ok_or(Fatal::Truncated)?;
            if slots.len() == 1 && gso.is_some() {
                // The extra info takes the second slot, so this buffer stays unused.
                slots.push(Slot {
                    id: request.id,
                    len: 0,
                    ops: 0..0,
                });
                continue;
            }
            let len = (packet.len() - at).min(PAGE_SIZE);
            let first = self.ops.len();
            let mut dest_offset = 0;
            packet.walk(at, len, |source| {
                self.ops.push(CopyOp {
                    source: source.end,
                    source_offset: source.offset,
                    dest: CopyEnd::Granted(GrantRef(request.gref)),
                    dest_offset,
                    len: source.len,
                    status: GrantStatus::GENERAL_ERROR,
                });
                dest_offset += source.len;
            });
            slots.push(Slot {
                id: request.id,
                len,
                ops: first..self.ops.len(),
            });
            at += len;
        }
        if slots.len() == 1 && gso.is_some() {
            let request = self.ring.next_request()?.ok_or(Fatal::Truncated)?;
            slots.push(Slot {
                id: request.id,
                len: 0,
                ops: 0..0,
            });
        }
        Ok(Placed { packet, slots, gso })
    }

    /// Answers the slots of a copied frame, in the order they were taken: a response
    /// stands in the very slot of its request, as frontends rely on.
    fn answer(&mut self, mut placed: Placed, counters: &Counters) {
        let checksum_flags = match placed.packet.checksum() {
            Checksum::Unknown => 0,
            Checksum::Verified => rxf::DATA_VALIDATED,
            Checksum::Partial(_) => rxf::CSUM_BLANK | rxf::DATA_VALIDATED,
        };
        let mut good = true;
        let last = placed.slots.len() - 1;
        // The extra info does not count as data that goes on.
        let last_data = if placed.gso.is_some() && last == 1 {
            0
        } else {
            last
        };
        for (n, slot) in placed.slots.iter().enumerate() {
            if let Some(extra) = placed.gso.filter(|_| n == 1) {
                self.ring.push_response(&extra.into());
                continue;
            }
            let mut flags = 0;
            if n == 0 {
                flags |= checksum_flags;
                if placed.gso.is_some() {
                    flags |= rxf::EXTRA_INFO;
                }
            }
            if n < last_data {
                flags |= rxf::MORE_DATA;
            }
            let copied = self.ops[slot.ops.clone()]
                .iter()
                .all(|op| op.status.is_okay());
            good &= copied;
            let status = if copied {
                i16::try_from(slot.len).expect("at most a page")
            } else {
                rsp::ERROR
            };
            let response = RxResponse {
                id: slot.id,
                offset: 0,
                flags,
                status,
            };
            self.ring.push_response(&response.into());
        }
        if good {
            add(&counters.rx_frames, 1);
            add(&counters.rx_bytes, placed.packet.len());
        } else {
            if let Packet::Direct(direct) = &mut placed.packet {
                direct.mark_bad();
            }
            add(&counters.rx_errors, 1);
        }
    }

    /// When [`Self::poll`] will do something, whatever happens.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.starved_until.filter(|_| self.next.is_some())
    }

    /// Whether [`Self::step`] would do something; registers wakers for what it waits for
    /// if not, but for [`Self::deadline`]. Frames that have waited too long for the guest's buffers are dropped here.
    pub(super) fn poll(
        &mut self,
        inbox: &Inbox,
        now_ns: u64,
        counters: &Counters,
        cx: &mut Context<'_>,
    ) -> Result<bool, Fatal> {
        if self.stalled {
            if !self.ring.final_check()? {
                return Ok(false);
            }
            self.stalled = false;
            inbox.set_takes_direct(self.can_take_direct());
            inbox.set_open(true);
        }
        if let Some(packet) = &self.next {
            let slots = slots_for(packet);
            if self.ring.sleep_until(slots)? {
                self.starved_until = None;
                return Ok(true);
            }
            return Ok(self.wait_for_buffers(inbox, now_ns, counters));
        }
        let ready = self.cutting.is_some() || !self.brought_home.is_empty();
        Ok(ready || inbox.poll_readable(cx).is_ready())
    }

    /// The guest has no buffers for the next frame: it has this long to post some.
    fn wait_for_buffers(&mut self, inbox: &Inbox, now_ns: u64, counters: &Counters) -> bool {
        let patience = if self.features.rx_notify {
            STALL_NS
        } else {
            UNNOTIFIED_NS
        };
        let until = *self
            .starved_until
            .get_or_insert_with(|| now_ns.saturating_add(patience));
        if now_ns < until {
            return false;
        }
        self.starved_until = None;
        self.next = None;
        self.cutting = None;
        let mut dropped = 1 + self.brought_home.len();
        for frame in self.brought_home.drain(..) {
            inbox.release(frame.parts().len());
        }
        if self.features.rx_notify {
            // Whoever sends to it now need not spend memory on it.
            self.stalled = true;
            inbox.set_open(false);
        }
        dropped += inbox.purge();
        add(&counters.rx_dropped, dropped);
        // Look again: a closed inbox is waited for in another way.
        true
    }
}

/// Slots that a frame takes.
fn slots_for(packet: &Packet) -> u32 {
    let data = packet.len().div_ceil(PAGE_SIZE);
    u32::try_from(data + usize::from(packet.mss().is_some())).unwrap_or(u32::MAX)
}
