//! Pages of ours that data passes through where the device does not reach the guest's.
//!
//! A device of a guest holds them only while it has requests in work, but for a few that
//! it has from its beginning to its end ([`Bounce::trim`] gives back the others): with
//! these every request is served, however short memory is. Others only make it faster.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};
use hal::{DmaAllocator, DmaBuffer, DmaSegment, Node};
use xen_abi::PAGE_SIZE;

/// Pages that a device has and keeps, with requests and without.
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
    /// At most `max` pages on `node`. `None`: there is no memory even for those that are
    /// kept.
    pub fn try_new(dma: Rc<dyn DmaAllocator>, node: Node, max: usize) -> Option<Rc<Self>> {
        let kept: Option<Vec<_>> = (0..KEPT_PAGES).map(|_| dma.alloc(1, node)).collect();
        Some(Rc::new(Self {
            dma,
            node,
            max,
            out: Cell::new(0),
            free: RefCell::new(kept?),
            waiting: RefCell::default(),
        }))
    }

    /// Takes `count` pages, at most the source's bound, waiting for others to give theirs
    /// back; when memory is short, fewer, but at least one. Who holds pages must not take
    /// more: that could wait for ever.
    pub async fn take(self: &Rc<Self>, count: usize) -> Pages {
        poll_fn(|cx| self.poll_take(count, cx)).await
    }

    fn poll_take(self: &Rc<Self>, count: usize, cx: &mut Context<'_>) -> Poll<Pages> {
        let mut free = self.free.borrow_mut();
        if self.out.get() + count <= self.max {
            while free.len() < count {
                let Some(page) = self.dma.alloc(1, self.node) else {
                    break;
                };
                free.push(page);
            }
            let count = count.min(free.len());
            if count > 0 {
                self.out.set(self.out.get() + count);
                let at = free.len() - count;
                return Poll::Ready(Pages {
                    pages: free.split_off(at),
                    home: self.clone(),
                });
            }
        }
        // Others have pages, if only those that are kept, and will give them back.
        self.waiting.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }

    /// Gives pages back to the allocator, but for a few: a guest that has one small
    /// request at a time shall not pay for clearing pages with each, and with these it is
    /// served when there are no others.
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
    /// Bytes in them.
    pub fn len(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

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
