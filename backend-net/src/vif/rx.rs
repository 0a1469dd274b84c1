//! From the switch to the guest.

use super::request::Fatal;
use super::tx::copy_with_retry;
use crate::counters::{Counters, add};
use crate::nodes::FrontendFeatures;
use crate::offload::{Next, Segments, fill_checksum};
use crate::port::Inbox;
use alloc::vec::Vec;
use core::task::Context;
use hal::Timer;
use hal::net::{Checksum, Frame, IpVersion, PacketPool};
use xen_abi::io::netif::{
    ExtraInfo, RxRequest, RxResponse, RxSlot, extra_type, gso_type, rsp, rxf,
};
use xen_abi::{GrantRef, PAGE_SHIFT, PAGE_SIZE};
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
    frame: Frame,
    slots: Vec<Slot>,
    gso: Option<ExtraInfo>,
}

pub(super) struct Rx {
    ring: BackRing<RxRequest, RxSlot>,
    features: FrontendFeatures,
    /// The next frame, waiting for slots.
    next: Option<Frame>,
    /// A frame being cut for a guest that takes no long ones.
    cutting: Option<Segments>,
    short_of_memory: bool,
    /// Since when the next frame has waited for the guest's buffers, and until when it does.
    starved_until: Option<u64>,
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
            cutting: None,
            short_of_memory: false,
            starved_until: None,
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
            if !self.fetch(inbox, pool, counters) {
                break;
            }
            let Some(frame) = self.next.take() else { break };
            let slots = self.slots_for(&frame);
            if self.ring.unconsumed()? < slots {
                self.next = Some(frame);
                break;
            }
            self.starved_until = None;
            batch.push(self.place(frame)?);
            budget = budget.saturating_sub(slots as usize);
        }
        if batch.is_empty() {
            return Ok(false);
        }
        copy_with_retry(grants, &mut self.ops);
        add(&counters.copy_ops, self.ops.len());
        add(&counters.copy_calls, 1);
        for placed in batch {
            self.answer(&placed, counters);
        }
        self.ops.clear();
        if self.ring.publish() == Kick::Needed {
            add(&counters.notifies, 1);
            notify();
        }
        Ok(true)
    }

    /// Sees to it that `next` holds a frame fit for this guest; `false`: there is none now.
    fn fetch(&mut self, inbox: &Inbox, pool: &PacketPool, counters: &Counters) -> bool {
        self.short_of_memory = false;
        while self.next.is_none() {
            let mut frame = match &mut self.cutting {
                Some(segments) => match segments.next(pool) {
                    Next::Segment(segment) => segment,
                    Next::NoMemory => {
                        self.short_of_memory = true;
                        return false;
                    }
                    Next::Done => {
                        self.cutting = None;
                        continue;
                    }
                },
                None => match inbox.pop() {
                    Some(frame) => frame,
                    None => return false,
                },
            };
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
                continue;
            }
            self.next = Some(frame);
        }
        true
    }

    fn slots_for(&self, frame: &Frame) -> u32 {
        let data = frame.len().div_ceil(PAGE_SIZE);
        u32::try_from(data + usize::from(frame.mss.is_some())).unwrap_or(u32::MAX)
    }

    /// Takes the slots of a frame and plans the copies into them.
    fn place(&mut self, frame: Frame) -> Result<Placed, Fatal> {
        let gso = match (frame.mss, frame.checksum) {
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
        let mut slots = Vec::with_capacity(frame.len().div_ceil(PAGE_SIZE));
        let mut at = 0;
        while at < frame.len() {
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
            let len = (frame.len() - at).min(PAGE_SIZE);
            let first = self.ops.len();
            let mut dest_offset = 0;
            frame.walk(at, len, |part, offset, n| {
                let len = u16::try_from(n).expect("at most a page");
                self.ops.push(CopyOp {
                    source: CopyEnd::Frame(part.buffer.bus_addr() >> PAGE_SHIFT),
                    source_offset: u16::try_from(offset).expect("inside a page"),
                    dest: CopyEnd::Granted(GrantRef(request.gref)),
                    dest_offset,
                    len,
                    status: GrantStatus::GENERAL_ERROR,
                });
                dest_offset += len;
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
        Ok(Placed { frame, slots, gso })
    }

    /// Answers the slots of a copied frame, in the order they were taken: a response
    /// stands in the very slot of its request, as frontends rely on.
    fn answer(&mut self, placed: &Placed, counters: &Counters) {
        let checksum_flags = match placed.frame.checksum {
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
            add(&counters.rx_bytes, placed.frame.len());
        } else {
            add(&counters.rx_errors, 1);
        }
    }

    /// Whether [`Self::step`] would do something; registers wakers for what it waits for
    /// if not. Frames that have waited too long for the guest's buffers are dropped here.
    pub(super) fn poll(
        &mut self,
        inbox: &Inbox,
        pool: &PacketPool,
        timer: &impl Timer,
        counters: &Counters,
        cx: &mut Context<'_>,
    ) -> Result<bool, Fatal> {
        if self.stalled {
            if !self.ring.final_check()? {
                return Ok(false);
            }
            self.stalled = false;
            inbox.set_open(true);
        }
        if let Some(frame) = &self.next {
            let slots = self.slots_for(frame);
            if self.ring.sleep_until(slots)? {
                self.starved_until = None;
                return Ok(true);
            }
            return Ok(self.wait_for_buffers(inbox, timer, counters, cx));
        }
        if self.short_of_memory {
            return Ok(pool.poll_available(1, cx).is_ready());
        }
        Ok(self.cutting.is_some() || inbox.poll_readable(cx).is_ready())
    }

    /// The guest has no buffers for the next frame: it has this long to post some.
    fn wait_for_buffers(
        &mut self,
        inbox: &Inbox,
        timer: &impl Timer,
        counters: &Counters,
        cx: &mut Context<'_>,
    ) -> bool {
        let patience = if self.features.rx_notify {
            STALL_NS
        } else {
            UNNOTIFIED_NS
        };
        let until = *self
            .starved_until
            .get_or_insert_with(|| timer.now_ns().saturating_add(patience));
        if timer.poll_deadline(until, cx).is_pending() {
            return false;
        }
        self.starved_until = None;
        self.next = None;
        self.cutting = None;
        if self.features.rx_notify {
            // Whoever sends to it now need not spend memory on it.
            self.stalled = true;
            inbox.set_open(false);
        }
        add(&counters.rx_dropped, 1 + inbox.purge());
        // Look again: a closed inbox is waited for in another way.
        true
    }
}
