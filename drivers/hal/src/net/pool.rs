use super::WakerQueue;
use crate::{DmaAllocator, DmaBuffer, Node};
use alloc::rc::Rc;
use alloc::sync::Arc;
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::{Context, Poll};
use crossbeam_queue::ArrayQueue;

/// Bytes in a packet buffer: one page, since neither a grant copy nor a PCI page
/// protection can cross one.
pub const BUFFER_SIZE: usize = 4096;

/// What the buffers of one pool share: reachable from every vCPU.
struct Home {
    free: ArrayQueue<DmaBuffer>,
    /// Buffers that exist: free ones and those in somebody's hands.
    allocated: AtomicUsize,
    max: usize,
    waiters: WakerQueue,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// Buffers that exist.
    pub allocated: usize,
    /// Those of them that nobody holds.
    pub free: usize,
    /// As many may exist.
    pub max: usize,
}

/// Page-sized packet buffers on one node: at most `max`, allocated when first needed,
/// and reused. Each vCPU has its own; the buffers travel.
#[derive(Clone)]
pub struct PacketPool {
    home: Arc<Home>,
    allocator: Rc<dyn DmaAllocator>,
    node: Node,
}

impl fmt::Debug for PacketPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketPool({:?}, {:?})", self.node, self.usage())
    }
}

impl PacketPool {
    /// An empty pool that may grow to `max` buffers.
    ///
    /// # Panics
    /// If `max` is 0.
    pub fn new(allocator: Rc<dyn DmaAllocator>, node: Node, max: usize) -> Self {
        Self {
            home: Arc::new(Home {
                free: ArrayQueue::new(max),
                allocated: AtomicUsize::new(0),
                max,
                waiters: WakerQueue::default(),
            }),
            allocator,
            node,
        }
    }

    /// A buffer with unspecified contents. `None`: all `max` are in use, or memory is
    /// short.
    pub fn get(&self) -> Option<PacketBuffer> {
        let dma = match self.home.free.pop() {
            Some(dma) => dma,
            None => self.grow()?,
        };
        Some(PacketBuffer {
            dma: Some(dma),
            home: self.home.clone(),
        })
    }

    fn grow(&self) -> Option<DmaBuffer> {
        let home = &self.home;
        // Only this pool's vCPU grows it, so the count cannot rise in between.
        if home.allocated.load(Ordering::Relaxed) >= home.max {
            return None;
        }
        let dma = self.allocator.alloc(1, self.node)?;
        home.allocated.fetch_add(1, Ordering::Relaxed);
        Some(dma)
    }

    /// Ready when `count` buffers could be had; registers the waker otherwise. Being
    /// woken is a hint: another task may be faster.
    pub fn poll_available(&self, count: usize, cx: &mut Context<'_>) -> Poll<()> {
        if self.available() >= count {
            return Poll::Ready(());
        }
        self.home.waiters.register(cx.waker());
        // A buffer that came back between the look and the push woke nobody.
        if self.available() >= count {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Buffers that could be had now, if there is memory for those that do not exist yet:
    /// be ready for [`Self::get`] to fail nevertheless, and do not ask again at once.
    pub fn available(&self) -> usize {
        let home = &self.home;
        home.free.len()
            + home
                .max
                .saturating_sub(home.allocated.load(Ordering::Relaxed))
    }

    /// Ready when a buffer is there, registers the waker otherwise. For one whose
    /// [`Self::get`] failed, and who does not know whether for want of memory.
    pub fn poll_returned(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.home.free.is_empty() {
            self.home.waiters.register(cx.waker());
        }
        // As above.
        if self.home.free.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// How full it is.
    pub fn usage(&self) -> PoolUse {
        self.gauge().usage()
    }

    /// Tells how full it is on any vCPU.
    pub fn gauge(&self) -> PoolGauge {
        PoolGauge(self.home.clone())
    }

    /// The node its buffers are wanted on.
    pub fn node(&self) -> Node {
        self.node
    }
}

/// Tells how full a pool is, on any vCPU.
#[derive(Clone)]
pub struct PoolGauge(Arc<Home>);

impl fmt::Debug for PoolGauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolGauge({:?})", self.usage())
    }
}

impl PoolGauge {
    /// How full it is: exact while nobody takes or gives one back.
    pub fn usage(&self) -> PoolUse {
        let home = &self.0;
        PoolUse {
            allocated: home.allocated.load(Ordering::Relaxed),
            free: home.free.len(),
            max: home.max,
        }
    }
}

/// One page of packet memory. Goes back to its pool when dropped, on any vCPU.
pub struct PacketBuffer {
    /// Always there, until `drop` takes it.
    dma: Option<DmaBuffer>,
    home: Arc<Home>,
}

impl fmt::Debug for PacketBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketBuffer({:#x})", self.bus_addr())
    }
}

impl Deref for PacketBuffer {
    type Target = DmaBuffer;

    fn deref(&self) -> &DmaBuffer {
        self.dma
            .as_ref()
            .expect("only `drop` takes the memory out of a packet buffer")
    }
}

impl Drop for PacketBuffer {
    fn drop(&mut self) {
        if let Some(dma) = self.dma.take() {
            // There is room: the queue holds as many as may exist. Were there none, the
            // page would go back to the allocator, which is right as well.
            if self.home.free.push(dma).is_err() {
                self.home.allocated.fetch_sub(1, Ordering::Relaxed);
            }
            self.home.waiters.wake_all();
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::net::tests::HeapDma;
    use alloc::vec::Vec;
    use core::task::Waker;

    #[test]
    fn a_pool_never_grows_past_its_limit_and_reuses_what_comes_back() {
        let pool = PacketPool::new(Rc::new(HeapDma::default()), Node(1), 3);
        let held: Vec<_> = (0..3).map(|_| pool.get().unwrap()).collect();
        assert!(pool.get().is_none());
        let address = held[1].bus_addr();
        drop(held);
        let again: Vec<_> = (0..3).map(|_| pool.get().unwrap()).collect();
        assert!(again.iter().any(|buffer| buffer.bus_addr() == address));
        assert_eq!(pool.usage().allocated, 3);
    }

    #[test]
    fn a_buffer_dropped_on_another_thread_wakes_a_waiter() {
        use alloc::task::Wake;
        #[derive(Default)]
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let pool = PacketPool::new(Rc::new(HeapDma::default()), Node(0), 1);
        let held = pool.get().unwrap();
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(pool.poll_available(1, &mut cx).is_pending());
        std::thread::spawn(move || drop(held)).join().unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(pool.poll_available(1, &mut cx).is_ready());
    }
}
