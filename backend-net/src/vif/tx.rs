//! From the guest to the switch.

use super::request::{Content, Fatal, Request};
use crate::counters::{Counters, add};
use crate::headers::{self, Prefix};
use crate::offload::MIN_MSS;
use crate::port::Inbox;
use crate::switch::{Source, Verdict, View};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use core::ops::Range;
use core::task::Context;
use hal::net::{Checksum, Frame, L4, MacAddr, PacketPool};
use xen_abi::PAGE_SHIFT;
use xen_abi::io::netif::{MAX_TX_SIZE, TxResponse, TxSlot, rsp};
use xen_ring::peer::{CopyEnd, CopyOp, GrantStatus, Grants};
use xen_ring::{BackRing, Kick, SharedPages};

/// Slots taken in one go: bounds the copy hypercall (at most 256 KiB) and the time until
/// another task of the vCPU has its turn.
const BUDGET: usize = 64;
/// Buffers that the longest frame needs.
const MAX_BUFFERS: usize = MAX_TX_SIZE.div_ceil(hal::net::BUFFER_SIZE);

/// One frame of a batch, between the copy and its responses.
struct Taken {
    request: Request,
    /// The memory its bytes go to, and the copies that fill it. `None`: refused.
    target: Option<(Frame, Range<usize>)>,
}

pub(super) struct Tx {
    ring: BackRing<TxSlot, TxResponse>,
    mac: MacAddr,
    /// Frames that the switch has not taken yet. No further slot is taken meanwhile.
    waiting: VecDeque<Frame>,
    /// Whose room they wait for.
    blocked_on: Option<Arc<Inbox>>,
    short_of_memory: bool,
    ops: Vec<CopyOp>,
}

impl Tx {
    pub(super) fn attach(pages: SharedPages, mac: MacAddr) -> Result<Self, Fatal> {
        Ok(Self {
            ring: BackRing::attach(pages)?,
            mac,
            waiting: VecDeque::new(),
            blocked_on: None,
            short_of_memory: false,
            ops: Vec::new(),
        })
    }

    /// Takes a batch from the ring, copies it, answers it, and forwards it. Whether
    /// anything was done.
    pub(super) fn step(
        &mut self,
        grants: &impl Grants,
        view: &View,
        pool: &PacketPool,
        counters: &Counters,
        notify: impl FnOnce(),
    ) -> Result<bool, Fatal> {
        if !self.waiting.is_empty() {
            return Ok(self.forward(view, pool, counters));
        }
        let batch = self.take_batch(pool);
        // What was taken before a fatal error is answered and sent all the same.
        let (batch, fatal) = batch;
        if batch.is_empty() {
            return fatal.map_or(Ok(false), Err);
        }
        if !self.ops.is_empty() {
            copy_with_retry(grants, &mut self.ops);
            add(&counters.copy_ops, self.ops.len());
            add(&counters.copy_calls, 1);
        }
        for taken in batch {
            self.finish(taken, counters);
        }
        self.ops.clear();
        if self.ring.publish() == Kick::Needed {
            add(&counters.notifies, 1);
            notify();
        }
        self.forward(view, pool, counters);
        fatal.map_or(Ok(true), Err)
    }

    fn take_batch(&mut self, pool: &PacketPool) -> (Vec<Taken>, Option<Fatal>) {
        let mut batch = Vec::new();
        let mut slots = 0;
        self.short_of_memory = false;
        while slots < BUDGET {
            // Looked at before the slots are taken, so that a frame that has no room yet
            // stays in the ring.
            if pool.available() < MAX_BUFFERS {
                self.short_of_memory = true;
                break;
            }
            let request = match Request::take(|| self.ring.next_request()) {
                Ok(Some(request)) => request,
                Ok(None) => break,
                Err(fatal) => return (batch, Some(fatal)),
            };
            slots += request.ids.len() + request.extras;
            let target = match &request.content {
                Ok(content) => self.plan(content, pool),
                Err(_) => None,
            };
            batch.push(Taken { request, target });
        }
        (batch, None)
    }

    /// Memory for a frame, and the copies that bring it there, tightly packed: its headers
    /// are in one piece however many slots the guest spread them over.
    fn plan(&mut self, content: &Content, pool: &PacketPool) -> Option<(Frame, Range<usize>)> {
        let frame = Frame::with_room(pool, content.len)?;
        let first = self.ops.len();
        let mut at = 0;
        for piece in &content.pieces {
            let mut source_offset = piece.offset;
            frame.walk(at, piece.len.into(), |part, offset, n| {
                let len = u16::try_from(n).expect("at most a page");
                self.ops.push(CopyOp {
                    source: CopyEnd::Granted(piece.gref),
                    source_offset,
                    dest: CopyEnd::Frame(part.buffer.bus_addr() >> PAGE_SHIFT),
                    dest_offset: u16::try_from(offset).expect("inside a page"),
                    len,
                    status: GrantStatus::GENERAL_ERROR,
                });
                source_offset += len;
            });
            at += usize::from(piece.len);
        }
        Some((frame, first..self.ops.len()))
    }

    /// Answers a copied frame and queues it for the switch.
    fn finish(&mut self, taken: Taken, counters: &Counters) {
        let Taken { request, target } = taken;
        let frame = target.and_then(|(frame, ops)| {
            let copied = self.ops[ops].iter().all(|op| op.status.is_okay());
            let content = request.content.as_ref().ok().filter(|_| copied)?;
            classify(frame, content)
        });
        let status = match frame {
            Some(frame) => {
                add(&counters.tx_frames, 1);
                add(&counters.tx_bytes, frame.len());
                self.waiting.push_back(frame);
                rsp::OKAY
            }
            None => {
                add(&counters.tx_errors, 1);
                rsp::ERROR
            }
        };
        for id in request.ids {
            self.ring.push_response(&TxResponse { id, status });
        }
        for _ in 0..request.extras {
            self.ring.push_response(&TxResponse {
                id: 0,
                status: rsp::NULL,
            });
        }
    }

    /// Gives the switch what it takes; whether it took any.
    fn forward(&mut self, view: &View, pool: &PacketPool, counters: &Counters) -> bool {
        self.blocked_on = None;
        let mut any = false;
        while let Some(frame) = self.waiting.pop_front() {
            match view.forward(Source::Station(self.mac), frame, pool) {
                Verdict::Forwarded(_) => {}
                Verdict::Dropped => add(&counters.tx_dropped, 1),
                Verdict::Spoofed => add(&counters.tx_spoofed, 1),
                Verdict::Busy(frame, inbox) => {
                    self.waiting.push_front(frame);
                    self.blocked_on = Some(inbox);
                    break;
                }
            }
            any = true;
        }
        any
    }

    /// Whether [`Self::step`] would do something; registers wakers for what it waits for
    /// if not.
    pub(super) fn poll(&mut self, pool: &PacketPool, cx: &mut Context<'_>) -> Result<bool, Fatal> {
        if !self.waiting.is_empty() {
            return Ok(match &self.blocked_on {
                Some(inbox) => inbox.poll_room(cx).is_ready(),
                None => true,
            });
        }
        if self.short_of_memory {
            return Ok(pool.poll_available(MAX_BUFFERS, cx).is_ready());
        }
        Ok(self.ring.final_check()?)
    }
}

/// Copies; what a page being paged in made impossible is tried once more.
pub(super) fn copy_with_retry(grants: &impl Grants, ops: &mut [CopyOp]) {
    grants.copy(ops);
    if ops.iter().any(|op| op.status == GrantStatus::EAGAIN) {
        for op in ops.iter_mut().filter(|op| op.status == GrantStatus::EAGAIN) {
            grants.copy(core::slice::from_mut(op));
        }
    }
}

/// Reads the headers of our copy and says what the frame is. `None`: it asks for an
/// offload that does not fit what it is.
fn classify(mut frame: Frame, content: &Content) -> Option<Frame> {
    if !content.checksum_blank && content.gso.is_none() {
        return Some(frame);
    }
    let prefix = Prefix::of(&frame);
    let layout = headers::parse(prefix.as_slice(), frame.len())?;
    frame.checksum = Checksum::Partial(layout);
    if let Some(gso) = content.gso {
        if layout.l4 != L4::Tcp || layout.ip != gso.ip {
            return None;
        }
        let l4 = headers::l4_bytes(prefix.as_slice(), &layout);
        let payload = l4.checked_sub(layout.l4_len.into())?;
        // What follows the IP packet would be taken for payload.
        frame.truncate(layout.l4_start() + l4);
        if payload > usize::from(gso.mss) {
            if gso.mss < MIN_MSS {
                return None;
            }
            frame.mss = NonZeroU16::new(gso.mss);
        }
    }
    Some(frame)
}
