//! The backend task of one guest disk.

use crate::bounce::Bounce;
use crate::counters::{Counters, add};
use crate::data::{BOUNCE_PAGES, Context, Failure, Finished};
use crate::disk::Disk;
use crate::limits::{InWork, MapLimit, Told};
use crate::protocol::{self, Tag, Work};
use crate::ring::{Protocol, Ring};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context as TaskContext, Poll, Waker};
use futures_util::stream::{FuturesUnordered, Stream};
use hal::{DmaAllocator, Node, yield_now};
use xen_abi::GrantRef;
use xen_abi::io::blkif::RSP_ERROR;
use xen_ring::peer::{Events, GrantStatus, Grants};
use xen_ring::{Kick, RingError};

/// Requests taken from a ring before the vCPU's other tasks get their turn.
const BUDGET: usize = 32;

/// What [`serve`] works on.
pub struct Device<G, E, D> {
    /// Guest and device, for the log: `d3/xvda`.
    pub name: String,
    /// The guest's grants.
    pub grants: G,
    /// The event channel, bound on this vCPU.
    pub events: E,
    /// The volume.
    pub disk: D,
    /// The ring's pages, from [`crate::FrontendNodes`].
    pub ring: Vec<GrantRef>,
    /// Their layout.
    pub protocol: Protocol,
    /// Where pages for copied requests come from.
    pub dma: Rc<dyn DmaAllocator>,
    /// The guest's node.
    pub node: Node,
    /// Where to count.
    pub counters: Arc<Counters>,
    /// What was told of this device so far, over all its connections.
    pub told: Arc<Told>,
    /// What all devices of the host together may map.
    pub maps: &'static MapLimit,
    /// Ends the task.
    pub stop: Stop,
}

impl<G, E, D> fmt::Debug for Device<G, E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name)
    }
}

/// Asks a [`serve`] to end; clones are the same request.
#[derive(Clone, Debug, Default)]
pub struct Stop(Rc<StopState>);

#[derive(Debug, Default)]
struct StopState {
    requested: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Stop {
    /// Not asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the task to end: it takes no more requests, answers those it has, unmaps
    /// everything, and returns.
    pub fn request(&self) {
        self.0.requested.set(true);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }

    fn poll(&self, cx: &mut TaskContext<'_>) -> bool {
        *self.0.waker.borrow_mut() = Some(cx.waker().clone());
        self.0.requested.get()
    }
}

/// How a [`serve`] ended. In every case nothing of the guest is mapped any more.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// [`Stop::request`].
    Stopped,
    /// The ring could not be mapped.
    Map(GrantStatus),
    /// The frontend broke the ring: the device is to be closed.
    Ring(RingError),
    /// There is no memory for the few pages that a device needs.
    NoMemory,
}

/// Serves a guest's disk until it is stopped or the guest breaks its ring.
///
/// Dropping the future is safe too, but answers nothing: requests in flight are
/// unmapped as the disk finishes with them.
pub async fn serve<G, E, D>(device: Device<G, E, D>) -> End
where
    G: Grants + 'static,
    E: Events,
    D: Disk + 'static,
{
    let pages = match device.grants.map_ring(&device.ring) {
        Ok(pages) => pages,
        Err(status) => {
            let what = format_args!("ring cannot be mapped: {status}");
            device.told.guest(&device.name, what);
            return End::Map(status);
        }
    };
    let ring = match Ring::attach(pages, device.protocol) {
        Ok(ring) => ring,
        Err(error) => {
            device.told.guest(&device.name, format_args!("{error}"));
            add(&device.counters.ring_errors, 1);
            return End::Ring(error);
        }
    };
    let Some(bounce) = Bounce::try_new(device.dma, device.node, BOUNCE_PAGES) else {
        return End::NoMemory;
    };
    let context = Rc::new(Context {
        bounce,
        grants: device.grants,
        disk: device.disk,
        counters: device.counters,
        maps: device.maps,
    });
    let task = Task {
        name: device.name,
        context,
        ring,
        events: device.events,
        stop: device.stop,
        barrier: None,
        alone: false,
        end: None,
        in_work: InWork::default(),
        told: device.told,
    };
    task.run().await
}

struct Task<G, E, D> {
    name: String,
    context: Rc<Context<G, D>>,
    ring: Ring,
    events: E,
    stop: Stop,
    /// A barrier that waits for the requests before it.
    barrier: Option<(Tag, Work)>,
    /// A barrier is in work: nothing else may start.
    alone: bool,
    /// No more requests are taken; how it will end.
    end: Option<End>,
    in_work: InWork,
    told: Arc<Told>,
}

impl<G, E, D> Task<G, E, D>
where
    G: Grants + 'static,
    E: Events,
    D: Disk + 'static,
{
    async fn run(mut self) -> End {
        let mut in_flight = FuturesUnordered::new();
        let mut done: Vec<Finished<G, D>> = Vec::new();
        // A frontend may have filled the ring before we came.
        let mut more = true;
        loop {
            poll_fn(|cx| {
                // All that is finished by now shares one unmap and one notification.
                while let Poll::Ready(Some(finished)) = Pin::new(&mut in_flight).poll_next(cx) {
                    done.push(finished);
                }
                let stop = self.stop.poll(cx) && self.end.is_none();
                let event = self.events.poll_event(cx).is_ready();
                if !done.is_empty() || stop || event || more {
                    return Poll::Ready(());
                }
                Poll::Pending
            })
            .await;
            // Others on this vCPU have their turn: a guest whose requests end at once could
            // keep us here for ever.
            yield_now().await;
            self.respond(&mut done);
            if in_flight.is_empty() {
                self.alone = false;
                if let Some((tag, work)) = self.barrier.take() {
                    self.alone = true;
                    in_flight.push(self.context.clone().execute(tag, work));
                }
            }
            if self.stop.0.requested.get() && self.end.is_none() {
                self.end = Some(End::Stopped);
            }
            if let Some(end) = self.end {
                if in_flight.is_empty() {
                    return end;
                }
                more = false;
                continue;
            }
            let mut taken = 0;
            more = loop {
                if self.alone || self.barrier.is_some() {
                    break false;
                }
                // What ends is answered, and then we are here again.
                if !self.in_work.has_room(in_flight.len()) {
                    break false;
                }
                if taken == BUDGET {
                    break true;
                }
                match self.take(&mut done) {
                    Ok(Some((tag, work))) if work.is_barrier() => {
                        if in_flight.is_empty() {
                            self.alone = true;
                            in_flight.push(self.context.clone().execute(tag, work));
                        } else {
                            self.barrier = Some((tag, work));
                        }
                    }
                    Ok(Some((tag, work))) => {
                        in_flight.push(self.context.clone().execute(tag, work));
                    }
                    Ok(None) => match self.ring.final_check() {
                        Ok(true) => {}
                        Ok(false) => break false,
                        Err(error) => {
                            self.broken(error);
                            break false;
                        }
                    },
                    Err(error) => {
                        self.broken(error);
                        break false;
                    }
                }
                taken += 1;
            };
            self.respond(&mut done);
            if in_flight.is_empty() && !more {
                self.context.bounce.trim();
            }
            // To the end, even if nothing is in flight that would wake us.
            more |= self.end.is_some();
        }
    }

    /// Takes the next good request; bad ones are answered into `done`.
    fn take(&mut self, done: &mut Vec<Finished<G, D>>) -> Result<Option<(Tag, Work)>, RingError> {
        let Some(raw) = self.ring.next_request()? else {
            return Ok(None);
        };
        let (tag, work) = protocol::parse(&raw);
        match work {
            Ok(work) => {
                self.in_work.pages += work.pages();
                Ok(Some((tag, work)))
            }
            Err(bad) => {
                add(&self.context.counters.bad_requests, 1);
                done.push(Finished {
                    tag,
                    status: RSP_ERROR,
                    mapped: None,
                    failure: Some(Failure::Request(bad)),
                    pages: 0,
                });
                Ok(None)
            }
        }
    }

    /// The ring is unusable: what is in flight ends, nothing more is taken.
    fn broken(&mut self, error: RingError) {
        let what = format_args!("{error}; closing the device");
        self.told.guest(&self.name, what);
        add(&self.context.counters.ring_errors, 1);
        self.end = Some(End::Ring(error));
    }

    /// Unmaps and answers what is finished.
    fn respond(&mut self, done: &mut Vec<Finished<G, D>>) {
        if done.is_empty() {
            return;
        }
        let mut mappings = Vec::new();
        for finished in done.iter_mut() {
            if let Some(mapped) = &mut finished.mapped {
                mappings.append(&mut mapped.take());
            }
        }
        if !mappings.is_empty() {
            self.context.unmap(mappings);
        }
        for finished in done.drain(..) {
            self.in_work.pages -= finished.pages;
            if let Some(failure) = finished.failure {
                self.log_failure(failure);
            }
            self.ring
                .push_response(finished.tag.response(finished.status));
        }
        match self.ring.publish() {
            Kick::Needed => {
                add(&self.context.counters.notifications, 1);
                self.events.notify();
            }
            Kick::NotNeeded => {}
        }
    }

    fn log_failure(&self, failure: Failure) {
        let what = format_args!("request failed: {failure}");
        match failure {
            Failure::Disk(_) => self.told.disk(&self.name, what),
            _ => self.told.guest(&self.name, what),
        }
    }
}
