//! The bounded queue in front of every receiver of frames.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::{Context, Poll};
use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use hal::net::{Frame, WakerQueue};

/// Tasks that may wait for room in one inbox.
const WAITERS: usize = 64;

/// What an inbox may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frames.
    pub frames: usize,
    /// Pages of packet memory in them: somebody else's pool.
    pub pages: usize,
}

impl Limits {
    /// For a guest device: about four full receive windows of 64 KiB frames.
    pub const VIF: Self = Self {
        frames: 256,
        pages: 512,
    };
    /// For a NIC queue, which empties at wire speed.
    pub const UPLINK: Self = Self {
        frames: 256,
        pages: 512,
    };
    /// For our own stack.
    pub const LOCAL: Self = Self {
        frames: 128,
        pages: 256,
    };
}

/// Why an inbox did not take a frame, which comes back.
#[derive(Debug)]
pub enum Refused {
    /// It holds as much as it may.
    Full(Frame),
    /// Its reader is gone, or does not read.
    Closed(Frame),
}

/// Frames on their way to one reader, from writers on any vCPU.
pub struct Inbox {
    queue: ArrayQueue<Frame>,
    pages: AtomicUsize,
    limits: Limits,
    reader: AtomicWaker,
    writers: WakerQueue,
    closed: AtomicBool,
    refused: AtomicU64,
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
            writers: WakerQueue::new(WAITERS),
            closed: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        }
    }

    /// Hands a frame over, and wakes the reader.
    pub fn push(&self, frame: Frame) -> Result<(), Refused> {
        if self.closed.load(Ordering::Acquire) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::Closed(frame));
        }
        let pages = frame.parts().len();
        let before = self.pages.fetch_add(pages, Ordering::AcqRel);
        let pushed = if before + pages > self.limits.pages {
            Err(frame)
        } else {
            self.queue.push(frame)
        };
        match pushed {
            Ok(()) => {
                self.reader.wake();
                Ok(())
            }
            Err(frame) => {
                self.pages.fetch_sub(pages, Ordering::AcqRel);
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(Refused::Full(frame))
            }
        }
    }

    /// Takes the oldest frame.
    pub fn pop(&self) -> Option<Frame> {
        let frame = self.queue.pop()?;
        self.pages.fetch_sub(frame.parts().len(), Ordering::AcqRel);
        self.writers.wake_one();
        Some(frame)
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

    fn has_room(&self) -> bool {
        self.closed.load(Ordering::Acquire)
            || (self.queue.len() < self.limits.frames
                && self.pages.load(Ordering::Acquire) + hal::net::MAX_PARTS <= self.limits.pages)
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

    /// Takes frames (again), or refuses all. The reader's business.
    pub fn set_open(&self, open: bool) {
        self.closed.store(!open, Ordering::Release);
        if !open {
            self.writers.wake_all();
        }
    }

    /// Drops what is waiting; how many frames.
    pub fn purge(&self) -> usize {
        let mut count = 0;
        // Writers may add while we drop: stop at what can have been there.
        while count < self.limits.frames && self.pop().is_some() {
            count += 1;
        }
        count
    }
}
