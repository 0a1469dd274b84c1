//! The bounded queue in front of every receiver of frames.

use crate::direct::Direct;
use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use core::task::{Context, Poll};
use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use hal::net::{Frame, WakerQueue};

/// What an inbox may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frames.
    pub frames: usize,
    /// Pages of packet memory in them: somebody else's pool.
    pub pages: usize,
    /// Frames and pages of these that are not for guests: [`Inbox::has_room`] leaves them
    /// free, give or take a frame of each sender.
    pub reserve: usize,
}

impl Limits {
    /// For a guest device: about four full receive windows of 64 KiB frames.
    pub const VIF: Self = Self {
        frames: 256,
        pages: 512,
        reserve: 0,
    };
    /// For a NIC queue, which empties at wire speed. Our own stack sends by it, too, and does
    /// not wait for room: guests that do would always be first.
    pub const UPLINK: Self = Self {
        frames: 256,
        pages: 512,
        reserve: 32,
    };
    /// For our own stack.
    pub const LOCAL: Self = Self {
        frames: 64,
        pages: 128,
        reserve: 0,
    };
}

/// A frame on its way.
#[derive(Debug)]
pub enum Packet {
    /// In memory of ours.
    Owned(Frame),
    /// Still in its sender's memory, but for its headers. Only in inboxes that
    /// [`Inbox::takes_direct`].
    Direct(Box<Direct>),
}

impl Packet {
    /// Pages of packet memory it holds.
    fn pages(&self) -> usize {
        match self {
            Self::Owned(frame) => frame.parts().len(),
            Self::Direct(direct) => direct.head().parts().len(),
        }
    }
}

/// Why an inbox did not take a frame, which comes back.
#[derive(Debug)]
pub enum Refused {
    /// It holds as much as it may.
    Full(Packet),
    /// Its reader is gone, or does not read.
    Closed(Packet),
}

/// Frames in an inbox above which none is left in its sender's memory: the reader is
/// behind, and a sender's ring is no place to wait.
const DIRECT_BACKLOG: usize = 32;

/// Frames on their way to one reader, from writers on any vCPU.
pub struct Inbox {
    queue: ArrayQueue<Packet>,
    pages: AtomicUsize,
    limits: Limits,
    reader: AtomicWaker,
    writers: WakerQueue,
    closed: AtomicBool,
    refused: AtomicU64,
    /// The reader can copy from its senders' memory, and is not behind.
    direct: AtomicBool,
    /// Frames of that kind waiting.
    directs: AtomicUsize,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("frames", &self.queue.len())
            .field("pages", &self.pages)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Inbox {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self {
            queue: ArrayQueue::new(limits.frames),
            pages: AtomicUsize::new(0),
            limits,
            reader: AtomicWaker::new(),
            writers: WakerQueue::default(),
            closed: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            direct: AtomicBool::new(false),
            directs: AtomicUsize::new(0),
        }
    }

    /// Hands a frame over, and wakes the reader.
    pub fn push(&self, frame: Frame) -> Result<(), Refused> {
        self.push_packet(Packet::Owned(frame))
    }

    /// As [`Self::push`], for either kind.
    pub fn push_packet(&self, packet: Packet) -> Result<(), Refused> {
        if self.closed.load(Ordering::Acquire) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::Closed(packet));
        }
        let pages = packet.pages();
        let direct = usize::from(matches!(packet, Packet::Direct(_)));
        let before = self.pages.fetch_add(pages, Ordering::AcqRel);
        self.directs.fetch_add(direct, Ordering::AcqRel);
        let pushed = if before + pages > self.limits.pages {
            Err(packet)
        } else {
            self.queue.push(packet)
        };
        match pushed {
            Ok(()) => {
                // Who closes it drops what is in it afterwards, and we look again after the
                // push: one of the two sees the other, and nothing is left in it.
                fence(Ordering::SeqCst);
                if self.closed.load(Ordering::Relaxed) {
                    self.purge();
                }
                self.reader.wake();
                Ok(())
            }
            Err(packet) => {
                self.pages.fetch_sub(pages, Ordering::AcqRel);
                self.directs.fetch_sub(direct, Ordering::AcqRel);
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(Refused::Full(packet))
            }
        }
    }

    /// Takes the oldest frame.
    pub fn pop_packet(&self) -> Option<Packet> {
        let packet = self.queue.pop()?;
        if matches!(packet, Packet::Direct(_)) {
            self.directs.fetch_sub(1, Ordering::AcqRel);
        }
        self.release(packet.pages());
        Some(packet)
    }

    /// Counts pages that its reader keeps as if they were still in it; `false`: there are
    /// too many, and it must not keep them.
    pub fn hold(&self, pages: usize) -> bool {
        let before = self.pages.fetch_add(pages, Ordering::AcqRel);
        let held = before + pages <= self.limits.pages;
        if !held {
            self.release(pages);
        }
        held
    }

    /// The opposite of [`Self::hold`].
    pub fn release(&self, pages: usize) {
        self.pages.fetch_sub(pages, Ordering::AcqRel);
        if self.has_room() {
            self.writers.wake_all();
        }
    }

    /// Takes the oldest frame, for a reader that never says that it takes direct ones.
    pub fn pop(&self) -> Option<Frame> {
        loop {
            match self.pop_packet()? {
                Packet::Owned(frame) => return Some(frame),
                // Not reached; dropping it answers its sender.
                Packet::Direct(_) => {}
            }
        }
    }

    /// Whether a frame may be handed over in its sender's memory. A hint: the reader
    /// deals with one that comes when it no longer wants any.
    pub fn takes_direct(&self) -> bool {
        self.direct.load(Ordering::Acquire)
            && !self.closed.load(Ordering::Acquire)
            && self.queue.len() < DIRECT_BACKLOG
    }

    /// Says whether the reader wants frames in their senders' memory.
    pub fn set_takes_direct(&self, direct: bool) {
        self.direct.store(direct, Ordering::Release);
    }

    /// Frames waiting in their senders' memory.
    pub fn directs(&self) -> usize {
        self.directs.load(Ordering::Acquire)
    }

    /// Ready when there is a frame; registers the reader's waker otherwise.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.queue.is_empty() {
            return Poll::Ready(());
        }
        self.reader.register(cx.waker());
        if self.queue.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Ready when a frame would probably be taken; registers a writer's waker otherwise.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        self.writers.register(cx.waker());
        if self.has_room() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Whether a guest's frame would probably be taken.
    pub fn has_room(&self) -> bool {
        let Limits {
            frames,
            pages,
            reserve,
        } = self.limits;
        self.closed.load(Ordering::Acquire)
            || (self.queue.len() + reserve < frames
                && self.pages.load(Ordering::Acquire) + hal::net::MAX_PARTS + reserve <= pages)
    }

    /// Frames waiting.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether no frame waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Frames it did not take so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Takes frames (again), or refuses all. The reader's business, who then calls
    /// [`Self::purge`].
    pub fn set_open(&self, open: bool) {
        self.closed.store(!open, Ordering::Release);
        // See `push_packet`.
        fence(Ordering::SeqCst);
        if !open {
            self.writers.wake_all();
        }
    }

    /// Drops what is waiting; how many frames.
    pub fn purge(&self) -> usize {
        let mut count = 0;
        // Writers may add while we drop: stop at what can have been there.
        while count < self.limits.frames && self.pop_packet().is_some() {
            count += 1;
        }
        count
    }
}
