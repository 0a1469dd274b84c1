//! A guest's disk is served in turns.

mod guest;

use backend_blk::{Counters, Device, Extent, MapLimit, Protocol, Stop, Volume, serve};
use guest::{RamDisk, VOLUME_START, request};
use hal::Node;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use xen_abi::io::blkif::{OP_READ, Request, Response};
use xen_abi::{DomId, GrantRef};
use xen_ring::FrontRing;
use xen_ring::peer::{Access, Events, Grants};
use xen_sim::{Executor, Machine, SimEvents, SimGuest};

/// A read that fails at once: it begins far behind the volume's end.
fn bad_read() -> Request {
    request(OP_READ, 1 << 40, &[(GrantRef(1), 0, 7)])
}

/// The guest's other vCPU: whenever it is notified it asks anew for all that was answered.
struct Refill {
    inner: SimEvents,
    front: Rc<RefCell<FrontRing<Request, Response>>>,
    answered: Rc<Cell<usize>>,
}

/// Where it stops, for the test to end if nobody else stops it.
const MOST: usize = 20_000;

impl Events for Refill {
    fn notify(&self) {
        let mut front = self.front.borrow_mut();
        while front.next_response().is_some() {
            self.answered.set(self.answered.get() + 1);
            if self.answered.get() < MOST {
                front.push_request(&bad_read());
            }
        }
        let _kick = front.publish();
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_event(cx)
    }
}

#[test]
fn requests_that_end_at_once_do_not_keep_the_vcpu() {
    let machine = Machine::new();
    let executor = Executor::new();
    let guest = SimGuest::new(&machine, DomId(3));
    let disk = RamDisk::new(&executor, &machine, 2048 + 2 * VOLUME_START);
    let extent = Extent {
        first: VOLUME_START,
        sectors: 2048,
    };
    let ring = guest.alloc(1);
    let grant = |mfn: &u64| guest.grant(*mfn, Access::Write);
    let refs: Vec<_> = ring.mfns.iter().map(grant).collect();
    let grants = guest.grants();
    let pages = grants.map_ring(&refs).expect("granted");
    let front = Rc::new(RefCell::new(FrontRing::<Request, Response>::init(pages, 0)));
    let size = front.borrow().size() as usize;
    for _ in 0..size {
        front.borrow_mut().push_request(&bad_read());
    }
    let _kick = front.borrow_mut().publish();
    let (inner, _port) = SimEvents::pair();
    let answered = Rc::new(Cell::new(0));
    let device = Device {
        name: "d3/xvda".into(),
        grants,
        events: Refill {
            inner,
            front,
            answered: answered.clone(),
        },
        disk: Volume::new(disk, extent, false).expect("it is on the disk"),
        ring: refs,
        protocol: Protocol::X86_64,
        dma: Rc::new(machine.allocator()),
        node: Node(0),
        counters: Arc::new(Counters::default()),
        told: Arc::default(),
        maps: Box::leak(Box::new(MapLimit::new(1 << 20))),
        stop: Stop::new(),
    };
    let mut task = Box::pin(serve(device));
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..20 {
        let before = answered.get();
        assert!(task.as_mut().poll(&mut cx).is_pending());
        let now = answered.get() - before;
        assert!(now <= 2 * size, "{now} requests answered in one go");
    }
    assert!(answered.get() > size, "the guest is served");
}
