//! Pages of ours that data passes through where the device does not reach the guest's.
//!
//! A device of a guest holds them only while it has requests in work: [`Bounce::trim`]
//! gives back what is kept for reuse.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};
use hal::block::BlockError;
use hal::{DmaAllocator, DmaBuffer, DmaSegment, Node};
use xen_abi::PAGE_SIZE;

/// Pages that a device without requests keeps.
const KEPT_PAGES: usize = 4;

/// A bounded source of pages for one guest device.
pub struct Bounce {
    dma: Rc<dyn DmaAllocator>,
    node: Node,
    max: usize,
    out: Cell<usize>,
    free: RefCell<Vec<DmaBuffer>>,
    waiting: RefCell<Vec<Waker>>,
}

impl fmt::Debug for Bounce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bounce({} of {} pages)", self.out.get(), self.max)
    }
}

impl Bounce {
    /// At most `max` pages on `node`.
    pub fn new(dma: Rc<dyn DmaAllocator>, node: Node, max: usize) -> Rc<Self> {
        Rc::new(Self {
            dma,
            node,
            max,
            out: Cell::new(0),
            free: RefCell::default(),
            waiting: RefCell::default(),
        })
    }

    /// Takes `count` pages, at most the source's bound, waiting for others to give theirs
    /// back. Who holds pages must not take more: that could wait for ever.
    pub async fn take(self: &Rc<Self>, count: usize) -> Result<Pages, BlockError> {
        poll_fn(|cx| self.poll_take(count, cx)).await
    }

    fn poll_take(
        self: &Rc<Self>,
        count: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Pages, BlockError>> {
        if self.out.get() + count > self.max {
            self.waiting.borrow_mut().push(cx.waker().clone());
            return Poll::Pending;
        }
        let mut free = self.free.borrow_mut();
        while free.len() < count {
            match self.dma.alloc(1, self.node) {
                Some(page) => free.push(page),
                // Others of this device will give some back.
                None if self.out.get() > 0 => {
                    self.waiting.borrow_mut().push(cx.waker().clone());
                    return Poll::Pending;
                }
                None => return Poll::Ready(Err(BlockError::NoMemory)),
            }
        }
        self.out.set(self.out.get() + count);
        let at = free.len() - count;
        Poll::Ready(Ok(Pages {
            pages: free.split_off(at),
            home: self.clone(),
        }))
    }

    /// Gives kept pages back to the allocator, but for a few: a guest that has one small
    /// request at a time shall not pay for clearing pages with each.
    pub fn trim(&self) {
        self.free.borrow_mut().truncate(KEPT_PAGES);
    }
}

/// Pages taken from a [`Bounce`]; they go back when dropped.
#[derive(Debug)]
pub struct Pages {
    pages: Vec<DmaBuffer>,
    home: Rc<Bounce>,
}

impl Pages {
    /// The page that holds byte `at`, and the offset of that byte in it.
    pub fn locate(&self, at: usize) -> (&DmaBuffer, usize) {
        (&self.pages[at / PAGE_SIZE], at % PAGE_SIZE)
    }

    /// The first `len` bytes as a scatter list.
    pub fn segments(&self, len: usize) -> Vec<DmaSegment> {
        (0..len)
            .step_by(PAGE_SIZE)
            .zip(&self.pages)
            .map(|(at, page)| page.segment(0, PAGE_SIZE.min(len - at)))
            .collect()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.home.out.set(self.home.out.get() - self.pages.len());
        self.home.free.borrow_mut().append(&mut self.pages);
        for waker in self.home.waiting.take() {
            waker.wake();
        }
    }
}
