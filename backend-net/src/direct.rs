//! Long frames from guest to guest, copied once: from the sender's grants to the
//! receiver's, by the receiver's task.
//!
//! Only the headers are copied into memory of ours, where they are checked and from where
//! the receiver gets them; a sender that changes them meanwhile changes nothing. The
//! sender's slots are answered once the copy is done, or the frame is dropped, on the
//! way of a [`Completions`] queue back to its task. A receiver that falls behind copies
//! what waits into memory of ours ([`Direct::copy_home`]), so that no guest's ring waits
//! for another guest.

use crate::vif::Piece;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use core::task::{Context, Poll};
use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use hal::net::{Checksum, Frame, PacketPool};
use xen_abi::{DomId, PAGE_SHIFT};
use xen_ring::peer::{CopyEnd, CopyOp, GrantStatus, Grants};

/// Bytes that are copied into memory of ours: all headers that are looked at.
pub const HEAD: usize = crate::headers::PREFIX;

/// The slots of a frame that is done, to be answered by the sender's task.
#[derive(Debug)]
pub struct Done {
    /// Ids of its data slots.
    pub ids: Vec<u16>,
    /// Extra info slots.
    pub extras: usize,
    /// Whether its data was there. A frame dropped on its way counts as sent.
    pub good: bool,
}

/// Frames of one sender that are done, from receivers on any vCPU.
#[derive(Debug)]
pub struct Completions {
    queue: ArrayQueue<Done>,
    waker: AtomicWaker,
}

impl Completions {
    /// Room for as many frames as a ring has slots: there is always a place.
    pub fn new(slots: usize) -> Self {
        Self {
            queue: ArrayQueue::new(slots),
            waker: AtomicWaker::new(),
        }
    }

    /// The next one.
    pub fn pop(&self) -> Option<Done> {
        self.queue.pop()
    }

    /// Ready when there is one; registers the sender's waker otherwise.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.queue.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

/// A frame whose bytes, but for the first [`HEAD`], are in its sender's pages. Dropping
/// it answers the sender.
#[derive(Debug)]
pub struct Direct {
    head: Frame,
    from: DomId,
    /// What follows the head.
    rest: Vec<Piece>,
    len: usize,
    checksum: Checksum,
    mss: Option<NonZeroU16>,
    done: Option<Done>,
    back: Arc<Completions>,
}

/// Some bytes of a frame, as one end of a copy.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The page.
    pub end: CopyEnd,
    /// Where in the page.
    pub offset: u16,
    /// How many.
    pub len: u16,
}

impl Direct {
    /// The frame that starts with `head`, which has been checked, and whose bytes are all
    /// at `pieces`, those of the head again included. `done` goes to `back` in the end.
    pub fn new(
        head: Frame,
        from: DomId,
        pieces: &[Piece],
        done: Done,
        back: Arc<Completions>,
    ) -> Self {
        let mut skip = head.len();
        let mut len = 0;
        let mut rest = Vec::with_capacity(pieces.len());
        for piece in pieces {
            len += usize::from(piece.len);
            let cut = skip.min(piece.len.into());
            skip -= cut;
            let cut = u16::try_from(cut).expect("at most the piece's length");
            if cut < piece.len {
                rest.push(Piece {
                    gref: piece.gref,
                    offset: piece.offset + cut,
                    len: piece.len - cut,
                });
            }
        }
        Self {
            checksum: head.checksum,
            mss: head.mss,
            head,
            from,
            rest,
            len,
            done: Some(done),
            back,
        }
    }

    /// The part in memory of ours.
    pub fn head(&self) -> &Frame {
        &self.head
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// As [`Frame::checksum`].
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// As [`Frame::mss`].
    pub fn mss(&self) -> Option<NonZeroU16> {
        self.mss
    }

    /// Says that some of its bytes could not be copied.
    pub fn mark_bad(&mut self) {
        if let Some(done) = &mut self.done {
            done.good = false;
        }
    }

    /// Calls `visit` for each run of `at..at + len` that lies in one page.
    pub fn walk(&self, at: usize, len: usize, mut visit: impl FnMut(Source)) {
        let head = self.head.len();
        if at < head {
            let n = len.min(head - at);
            frame_sources(&self.head, at, n, &mut visit);
        }
        let mut skip = at.saturating_sub(head);
        let mut left = (at + len).saturating_sub(head.max(at));
        for piece in &self.rest {
            if left == 0 {
                break;
            }
            let size = usize::from(piece.len);
            if skip >= size {
                skip -= size;
                continue;
            }
            let n = (size - skip).min(left);
            visit(Source {
                end: CopyEnd::GrantedBy(self.from, piece.gref),
                offset: piece.offset + u16::try_from(skip).expect("inside the piece"),
                len: u16::try_from(n).expect("at most the piece"),
            });
            skip = 0;
            left -= n;
        }
    }

    /// Copies it into memory of ours, and answers its sender. `None`: there is no memory,
    /// or the sender's pages are not there: the frame is lost.
    pub fn copy_home(mut self, grants: &impl Grants, pool: &PacketPool) -> Option<Frame> {
        let mut frame = Frame::with_room(pool, self.len)?;
        frame.checksum = self.checksum;
        frame.mss = self.mss;
        let mut ops = Vec::new();
        let mut at = 0;
        self.walk(0, self.len, |source| {
            let mut source_offset = source.offset;
            frame.walk(at, source.len.into(), |part, offset, n| {
                let len = u16::try_from(n).expect("at most a page");
                ops.push(CopyOp {
                    source: source.end,
                    source_offset,
                    dest: CopyEnd::Frame(part.buffer.bus_addr() >> PAGE_SHIFT),
                    dest_offset: u16::try_from(offset).expect("inside a page"),
                    len,
                    status: GrantStatus::GENERAL_ERROR,
                });
                source_offset += len;
            });
            at += usize::from(source.len);
        });
        grants.copy(&mut ops);
        if ops.iter().all(|op| op.status.is_okay()) {
            return Some(frame);
        }
        self.mark_bad();
        None
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            // There are never more than slots.
            let pushed = self.back.queue.push(done);
            debug_assert!(pushed.is_ok(), "more frames than slots");
            self.back.waker.wake();
        }
    }
}

/// As [`Direct::walk`], for a frame in memory of ours.
pub fn frame_sources(frame: &Frame, at: usize, len: usize, mut visit: impl FnMut(Source)) {
    frame.walk(at, len, |part, offset, n| {
        visit(Source {
            end: CopyEnd::Frame(part.buffer.bus_addr() >> PAGE_SHIFT),
            offset: u16::try_from(offset).expect("inside a page"),
            len: u16::try_from(n).expect("at most a page"),
        });
    });
}
