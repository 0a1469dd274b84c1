//! From the guest to the switch.

use super::request::{Content, Fatal, Request};
use crate::counters::{Counters, add};
use crate::direct::{Completions, Direct, Done, HEAD};
use crate::headers::{self, Prefix};
use crate::offload::MIN_MSS;
use crate::port::{Inbox, Packet};
use crate::switch::{Source, Verdict, View};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use core::ops::Range;
use core::task::Context;
use hal::net::{BUFFER_SIZE, Checksum, Frame, L4, MacAddr, PacketPool};
use xen_abi::io::netif::{MAX_TX_SIZE, TxResponse, TxSlot, rsp};
use xen_abi::{DomId, PAGE_SHIFT};
use xen_ring::peer::{CopyEnd, CopyOp, GrantStatus, Grants};
use xen_ring::{BackRing, Kick, SharedPages};

/// Slots taken in one go: bounds the copy hypercall (at most 256 KiB) and the time until
/// another task of the vCPU has its turn.
const BUDGET: usize = 64;
/// Buffers that the longest frame needs.
const MAX_BUFFERS: usize = MAX_TX_SIZE.div_ceil(BUFFER_SIZE);
/// Frames from this length on stay in the sender's memory if they are for a guest. Below, a
/// second copy costs less than finding out who they are for.
const DIRECT_FROM: usize = 2 * BUFFER_SIZE;

/// How long frames wait for room at the uplink, in ns. One that moves has room in a few
/// milliseconds; behind one that does not, frames for others must not wait for ever.
const UPLINK_NS: u64 = 1_000_000_000;

/// One frame of a batch, until its responses.
struct Taken {
    request: Request,
    state: State,
}

/// How far a frame of a batch is.
enum State {
    /// It is answered with an error.
    Refused,
    /// These copies bring all of it into this memory.
    Copying(Frame, Range<usize>),
    /// These copies bring its head here; the rest may stay where it is.
    CopyingHead(Frame, Range<usize>),
    /// All of it is here.
    Copied(Frame),
    /// Its head is here; the rest stays where it is, for the guest with this inbox.
    Staying(Frame, Arc<Inbox>),
}

/// A frame that the switch has not taken yet.
enum Waiting {
    /// For whom its destination says.
    Any(Frame),
    /// For this guest, in its sender's memory.
    Guest(Box<Direct>, Arc<Inbox>),
}

/// Whether the uplink takes frames.
enum Uplink {
    /// As far as known.
    Taking,
    /// The first waiting frame waits for room there, until then.
    Full(Arc<Inbox>, u64),
    /// One has waited in vain: those that find no room are dropped, until there is some.
    Stuck(Arc<Inbox>),
}

pub(super) struct Tx {
    ring: BackRing<TxSlot, TxResponse>,
    mac: MacAddr,
    /// Whose pages frames for other guests may be left in.
    guest: Option<DomId>,
    /// Frames that the switch has not taken yet, in order. No further slot is taken
    /// meanwhile.
    waiting: VecDeque<Waiting>,
    uplink: Uplink,
    short_of_memory: bool,
    ops: Vec<CopyOp>,
    /// Frames that other guests' tasks are done with.
    completions: Arc<Completions>,
    /// Frames that they are not done with.
    outstanding: usize,
}

impl Tx {
    pub(super) fn attach(
        pages: SharedPages,
        mac: MacAddr,
        guest: Option<DomId>,
    ) -> Result<Self, Fatal> {
        let ring: BackRing<TxSlot, TxResponse> = BackRing::attach(pages)?;
        let slots = ring.size() as usize;
        Ok(Self {
            ring,
            mac,
            guest,
            waiting: VecDeque::new(),
            uplink: Uplink::Taking,
            short_of_memory: false,
            ops: Vec::new(),
            completions: Arc::new(Completions::new(slots)),
            outstanding: 0,
        })
    }

    /// Takes a batch from the ring, copies it, answers it, and forwards it. Whether
    /// anything was done.
    pub(super) fn step(
        &mut self,
        grants: &impl Grants,
        view: &View,
        pool: &PacketPool,
        now_ns: u64,
        counters: &Counters,
        notify: impl FnOnce(),
    ) -> Result<bool, Fatal> {
        let mut answered = self.answer_completed(counters);
        let mut busy = answered;
        let mut fatal = None;
        if self.waiting.is_empty() {
            // What was taken before a fatal error is answered and sent all the same.
            let (mut batch, error) = self.take_batch(pool);
            fatal = error;
            if !batch.is_empty() {
                self.fetch(&mut batch, grants, view, pool, counters);
                for taken in batch {
                    self.finish(taken, counters);
                }
                answered = true;
                busy = true;
            }
        }
        if answered && self.ring.publish() == Kick::Needed {
            add(&counters.notifies, 1);
            notify();
        }
        busy |= self.forward(view, pool, now_ns, counters);
        fatal.map_or(Ok(busy), Err)
    }

    fn take_batch(&mut self, pool: &PacketPool) -> (Vec<Taken>, Option<Fatal>) {
        let mut batch = Vec::new();
        let mut slots = 0;
        // Buffers that frames will need of which only the head is copied at first.
        let mut promised = 0;
        self.short_of_memory = false;
        while slots < BUDGET {
            // Looked at before the slots are taken, so that a frame that has no room yet
            // stays in the ring.
            if pool.available() < promised + MAX_BUFFERS {
                self.short_of_memory = true;
                break;
            }
            let request = match Request::take(|| self.ring.next_request()) {
                Ok(Some(request)) => request,
                Ok(None) => break,
                Err(fatal) => return (batch, Some(fatal)),
            };
            slots += request.ids.len() + request.extras;
            let state = match &request.content {
                Ok(content) if self.guest.is_some() && content.len >= DIRECT_FROM => {
                    promised += content.len.div_ceil(BUFFER_SIZE);
                    self.plan(content, HEAD, pool)
                        .map_or(State::Refused, |(head, ops)| State::CopyingHead(head, ops))
                }
                Ok(content) => self
                    .plan(content, content.len, pool)
                    .map_or(State::Refused, |(frame, ops)| State::Copying(frame, ops)),
                Err(_) => State::Refused,
            };
            batch.push(Taken { request, state });
        }
        (batch, None)
    }

    /// Carries out the copies: one hypercall, and another one if long frames turn out to
    /// be for somebody who cannot take them from where they are.
    fn fetch(
        &mut self,
        batch: &mut [Taken],
        grants: &impl Grants,
        view: &View,
        pool: &PacketPool,
        counters: &Counters,
    ) {
        while !self.ops.is_empty() {
            copy_with_retry(grants, &mut self.ops);
            add(&counters.copy_ops, self.ops.len());
            add(&counters.copy_calls, 1);
            let done = core::mem::take(&mut self.ops);
            let good = |ops: Range<usize>| done[ops].iter().all(|op| op.status.is_okay());
            for taken in batch.iter_mut() {
                let state = core::mem::replace(&mut taken.state, State::Refused);
                taken.state = match (state, &taken.request.content) {
                    (State::Copying(frame, ops), _) if good(ops.clone()) => State::Copied(frame),
                    (State::CopyingHead(head, ops), Ok(content)) if good(ops.clone()) => {
                        match self.receiver(view, &head, content) {
                            Some(inbox) => State::Staying(head, inbox),
                            None => self
                                .plan(content, content.len, pool)
                                .map_or(State::Refused, |(frame, ops)| State::Copying(frame, ops)),
                        }
                    }
                    (State::Copying(..) | State::CopyingHead(..), _) => State::Refused,
                    (other, _) => other,
                };
            }
        }
    }

    /// The guest that a frame with this head can be copied to from where it is.
    fn receiver(&self, view: &View, head: &Frame, content: &Content) -> Option<Arc<Inbox>> {
        let prefix = Prefix::of(head);
        let inbox = view.direct_target(self.mac, prefix.as_slice())?;
        let what = classify(&prefix, content)?;
        // What must be cut off is cut off a copy.
        (what.len == content.len).then_some(inbox)
    }

    /// Memory for the first `len` bytes of a frame, and the copies that bring them there,
    /// tightly packed: its headers are in one piece however many slots the guest spread
    /// them over.
    fn plan(
        &mut self,
        content: &Content,
        len: usize,
        pool: &PacketPool,
    ) -> Option<(Frame, Range<usize>)> {
        let frame = Frame::with_room(pool, len)?;
        let first = self.ops.len();
        let mut at = 0;
        for piece in &content.pieces {
            let mut source_offset = piece.offset;
            let now = usize::from(piece.len).min(len - at);
            frame.walk(at, now, |part, offset, n| {
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
            at += now;
        }
        Some((frame, first..self.ops.len()))
    }

    /// Queues a frame for the switch, and answers it unless its pages are still needed.
    fn finish(&mut self, taken: Taken, counters: &Counters) {
        let Taken { request, state } = taken;
        let Request {
            ids,
            extras,
            content,
        } = request;
        let good = match (state, content) {
            (State::Copied(frame), Ok(content)) => match apply(frame, &content) {
                Some(frame) => {
                    count_sent(counters, frame.len());
                    self.waiting.push_back(Waiting::Any(frame));
                    true
                }
                None => false,
            },
            (State::Staying(head, inbox), Ok(content)) => {
                if let Some((guest, what)) = self.guest.zip(classify(&Prefix::of(&head), &content))
                {
                    let mut head = head;
                    head.checksum = what.checksum;
                    head.mss = what.mss;
                    let done = Done {
                        ids,
                        extras,
                        good: true,
                    };
                    let back = self.completions.clone();
                    let direct = Direct::new(head, guest, &content.pieces, done, back);
                    count_sent(counters, direct.len());
                    self.outstanding += 1;
                    self.waiting
                        .push_back(Waiting::Guest(Box::new(direct), inbox));
                    return;
                }
                false
            }
            _ => false,
        };
        if !good {
            add(&counters.tx_errors, 1);
        }
        self.answer(&ids, extras, good);
    }

    fn answer(&mut self, ids: &[u16], extras: usize, good: bool) {
        let status = if good { rsp::OKAY } else { rsp::ERROR };
        for id in ids {
            self.ring.push_response(&TxResponse { id: *id, status });
        }
        for _ in 0..extras {
            self.ring.push_response(&TxResponse {
                id: 0,
                status: rsp::NULL,
            });
        }
    }

    /// Answers the frames that other guests' tasks are done with; whether there were any.
    fn answer_completed(&mut self, counters: &Counters) -> bool {
        let mut any = false;
        while let Some(done) = self.completions.pop() {
            self.outstanding -= 1;
            if !done.good {
                add(&counters.tx_errors, 1);
            }
            self.answer(&done.ids, done.extras, done.good);
            any = true;
        }
        any
    }

    /// Gives the switch what it takes; whether it took any.
    fn forward(
        &mut self,
        view: &View,
        pool: &PacketPool,
        now_ns: u64,
        counters: &Counters,
    ) -> bool {
        if matches!(&self.uplink, Uplink::Stuck(inbox) if inbox.has_room()) {
            self.uplink = Uplink::Taking;
        }
        let mut any = false;
        while let Some(waiting) = self.waiting.pop_front() {
            any = true;
            let frame = match waiting {
                Waiting::Any(frame) => frame,
                Waiting::Guest(direct, inbox) => {
                    if inbox.push_packet(Packet::Direct(direct)).is_err() {
                        add(&counters.tx_dropped, 1);
                    }
                    continue;
                }
            };
            let (frame, inbox) = match view.forward(Source::Station(self.mac), frame, pool) {
                Verdict::Busy(frame, inbox) => (frame, inbox),
                done => {
                    match done {
                        Verdict::Dropped => add(&counters.tx_dropped, 1),
                        Verdict::Spoofed => add(&counters.tx_spoofed, 1),
                        _ => {}
                    }
                    if let Uplink::Full(..) = self.uplink {
                        // It was the one that waited.
                        self.uplink = Uplink::Taking;
                    }
                    continue;
                }
            };
            let until = match &self.uplink {
                Uplink::Taking => now_ns.saturating_add(UPLINK_NS),
                Uplink::Full(_, until) => *until,
                Uplink::Stuck(_) => now_ns,
            };
            if until > now_ns {
                self.waiting.push_front(Waiting::Any(frame));
                self.uplink = Uplink::Full(inbox, until);
                break;
            }
            add(&counters.tx_dropped, 1);
            self.uplink = Uplink::Stuck(inbox);
        }
        any
    }

    /// Stops taking frames; what is waiting is dropped. [`Self::poll_drained`] says when
    /// all slots are answered.
    pub(super) fn stop(&mut self) {
        self.waiting.clear();
    }

    /// Ready when no other task holds pages of this guest, and all is answered.
    pub(super) fn poll_drained(
        &mut self,
        counters: &Counters,
        notify: impl Fn(),
        cx: &mut Context<'_>,
    ) -> bool {
        loop {
            if self.answer_completed(counters) && self.ring.publish() == Kick::Needed {
                notify();
            }
            if self.outstanding == 0 {
                return true;
            }
            if self.completions.poll(cx).is_pending() {
                return false;
            }
        }
    }

    /// When [`Self::step`] will do something, whatever happens.
    pub(super) fn deadline(&self) -> Option<u64> {
        match &self.uplink {
            Uplink::Full(_, until) if !self.waiting.is_empty() => Some(*until),
            _ => None,
        }
    }

    /// Whether [`Self::step`] would do something; registers wakers for what it waits for
    /// if not, but for [`Self::deadline`].
    pub(super) fn poll(&mut self, pool: &PacketPool, cx: &mut Context<'_>) -> Result<bool, Fatal> {
        if self.outstanding > 0 && self.completions.poll(cx).is_ready() {
            return Ok(true);
        }
        if !self.waiting.is_empty() {
            return Ok(match &self.uplink {
                Uplink::Full(inbox, _) => inbox.poll_room(cx).is_ready(),
                _ => true,
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

fn count_sent(counters: &Counters, len: usize) {
    add(&counters.tx_frames, 1);
    add(&counters.tx_bytes, len);
}

/// What a frame is, by its headers and by what the guest asks for.
struct What {
    checksum: Checksum,
    mss: Option<NonZeroU16>,
    /// Bytes of it that mean something.
    len: usize,
}

/// Reads the headers in our copy of a frame's start. `None`: the guest asks for an
/// offload that does not fit what the frame is.
fn classify(prefix: &Prefix, content: &Content) -> Option<What> {
    let mut what = What {
        checksum: Checksum::Unknown,
        mss: None,
        len: content.len,
    };
    if !content.checksum_blank && content.gso.is_none() {
        return Some(what);
    }
    let layout = headers::parse(prefix.as_slice(), content.len)?;
    what.checksum = Checksum::Partial(layout);
    // What follows the IP packet would be summed up by a NIC, or sent as payload.
    let l4 = headers::l4_bytes(prefix.as_slice(), &layout);
    what.len = layout.l4_start() + l4;
    if let Some(gso) = content.gso {
        if layout.l4 != L4::Tcp || layout.ip != gso.ip {
            return None;
        }
        let payload = l4.checked_sub(layout.l4_len.into())?;
        if payload > usize::from(gso.mss) {
            if gso.mss < MIN_MSS {
                return None;
            }
            what.mss = NonZeroU16::new(gso.mss);
        }
    }
    Some(what)
}

/// Makes the copied frame what it says it is.
fn apply(mut frame: Frame, content: &Content) -> Option<Frame> {
    let what = classify(&Prefix::of(&frame), content)?;
    frame.checksum = what.checksum;
    frame.mss = what.mss;
    frame.truncate(what.len);
    Some(frame)
}
