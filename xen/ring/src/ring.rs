//! The request/response rings of `xen/include/public/io/ring.h`.
//!
//! Layout: `req_prod`, `req_event`, `rsp_prod`, `rsp_event` (four u32), 48 bytes of
//! padding, then a power of two of slots, each the larger of request and response.
//! Indices run freely and wrap at 2^32: only distances are compared.

use crate::SharedPages;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{Ordering, fence};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
/// Bytes before the first slot.
const HEADER: usize = 64;

/// Why a ring can be used no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The peer claims more entries than the ring holds. Stop using this ring.
    Overrun {
        /// Entries between our index and the peer's.
        claimed: u32,
        /// Slots in the ring.
        size: u32,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Overrun { claimed, size } = self;
        write!(f, "peer claims {claimed} entries in a ring of {size}")
    }
}

impl core::error::Error for RingError {}

/// Whether the peer asked to be woken for what was just published.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// Notify the event channel.
    Needed,
    /// The peer is still looking; a notification would be wasted.
    NotNeeded,
}

/// Whether publishing `old..new` passes the entry the peer wants to be woken for.
const fn wakes_peer(old: u32, new: u32, event: u32) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

/// Slots that fit in `bytes` of shared memory, rounded down to a power of two
/// (`__RING_SIZE`).
const fn slots_in(bytes: usize, slot: usize) -> u32 {
    let n = (bytes - HEADER) / slot;
    assert!(n > 0);
    // A ring is at most a few pages: this fits.
    1 << n.ilog2()
}

/// The backend's end: consumes requests, produces responses.
#[derive(Debug)]
pub struct BackRing<Req, Rsp> {
    pages: SharedPages,
    size: u32,
    req_cons: u32,
    rsp_prod_pvt: u32,
    /// `rsp_prod` as last published.
    rsp_prod: u32,
    types: PhantomData<fn() -> (Req, Rsp)>,
}

impl<Req: FromBytes + IntoBytes, Rsp: IntoBytes + Immutable> BackRing<Req, Rsp> {
    const SLOT: usize = if size_of::<Req>() > size_of::<Rsp>() {
        size_of::<Req>()
    } else {
        size_of::<Rsp>()
    };

    /// Attaches to a ring that the frontend initialised. A ring whose counters are
    /// not zero continues from its `rsp_prod` (`BACK_RING_ATTACH`).
    pub fn attach(pages: SharedPages) -> Result<Self, RingError> {
        let size = slots_in(pages.len(), Self::SLOT);
        let rsp_prod = pages.load_u32(RSP_PROD, Ordering::Acquire);
        let ring = Self {
            pages,
            size,
            req_cons: rsp_prod,
            rsp_prod_pvt: rsp_prod,
            rsp_prod,
            types: PhantomData,
        };
        ring.unconsumed()?;
        Ok(ring)
    }

    /// Slots in the ring.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Requests published by the frontend and not taken yet.
    pub fn unconsumed(&self) -> Result<u32, RingError> {
        let claimed = self
            .pages
            .load_u32(REQ_PROD, Ordering::Acquire)
            .wrapping_sub(self.req_cons);
        // What is consumed but not answered also occupies slots.
        let outstanding = self.req_cons.wrapping_sub(self.rsp_prod_pvt);
        if claimed > self.size - outstanding {
            return Err(RingError::Overrun {
                claimed: claimed.wrapping_add(outstanding),
                size: self.size,
            });
        }
        Ok(claimed)
    }

    /// Takes the next request: one private copy, out of the peer's reach.
    /// `None`: nothing there now.
    pub fn next_request(&mut self) -> Result<Option<Req>, RingError> {
        if self.unconsumed()? == 0 {
            return Ok(None);
        }
        let request = self.pages.read(self.slot(self.req_cons));
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(Some(request))
    }

    /// The index the next taken request has; netif's receive path needs it, because
    /// the response's id must equal the slot.
    pub fn req_cons(&self) -> u32 {
        self.req_cons
    }

    /// Asks to be woken for the next request, then looks once more
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`). `true`: there is work already, do not sleep.
    pub fn final_check(&mut self) -> Result<bool, RingError> {
        self.sleep_until(1)
    }

    /// As [`Self::final_check`], but asks to be woken only once `count` further requests
    /// are there; `true`: they are there already.
    pub fn sleep_until(&mut self, count: u32) -> Result<bool, RingError> {
        if self.unconsumed()? >= count {
            return Ok(true);
        }
        self.pages.store_u32(
            REQ_EVENT,
            self.req_cons.wrapping_add(count),
            Ordering::Relaxed,
        );
        // The event index is visible before we look at `req_prod` a last time; without
        // this a request published now would wake nobody.
        fence(Ordering::SeqCst);
        Ok(self.unconsumed()? >= count)
    }

    /// Puts a response into the next slot; the peer sees it after [`Self::publish`].
    ///
    /// # Panics
    /// If there are more responses than consumed requests: our bug.
    pub fn push_response(&mut self, response: &Rsp) {
        assert!(
            self.rsp_prod_pvt != self.req_cons,
            "a response without a request"
        );
        self.pages.write(self.slot(self.rsp_prod_pvt), response);
        self.rsp_prod_pvt = self.rsp_prod_pvt.wrapping_add(1);
    }

    /// Makes the pushed responses visible (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
    pub fn publish(&mut self) -> Kick {
        let (old, new) = (self.rsp_prod, self.rsp_prod_pvt);
        self.rsp_prod = new;
        // Responses are visible before the index.
        self.pages.store_u32(RSP_PROD, new, Ordering::Release);
        // The index is visible before we look at `rsp_event`.
        fence(Ordering::SeqCst);
        let event = self.pages.load_u32(RSP_EVENT, Ordering::Relaxed);
        if wakes_peer(old, new, event) {
            Kick::Needed
        } else {
            Kick::NotNeeded
        }
    }

    fn slot(&self, index: u32) -> usize {
        HEADER + (index & (self.size - 1)) as usize * Self::SLOT
    }
}

/// The frontend's end: for tests, and for the simulated guests of `xen-sim`.
#[derive(Debug)]
pub struct FrontRing<Req, Rsp> {
    pages: SharedPages,
    size: u32,
    req_prod_pvt: u32,
    req_prod: u32,
    rsp_cons: u32,
    types: PhantomData<fn() -> (Req, Rsp)>,
}

impl<Req: IntoBytes + Immutable, Rsp: FromBytes + IntoBytes> FrontRing<Req, Rsp> {
    const SLOT: usize = if size_of::<Req>() > size_of::<Rsp>() {
        size_of::<Req>()
    } else {
        size_of::<Rsp>()
    };

    /// Initialises the shared ring with all its counters at `start` (0 on a real
    /// frontend; tests pass values near the wrap).
    pub fn init(pages: SharedPages, start: u32) -> Self {
        let size = slots_in(pages.len(), Self::SLOT);
        for (at, value) in [(REQ_PROD, start), (RSP_PROD, start)] {
            pages.store_u32(at, value, Ordering::Relaxed);
        }
        for at in [REQ_EVENT, RSP_EVENT] {
            pages.store_u32(at, start.wrapping_add(1), Ordering::Relaxed);
        }
        Self {
            pages,
            size,
            req_prod_pvt: start,
            req_prod: start,
            rsp_cons: start,
            types: PhantomData,
        }
    }

    /// Slots in the ring.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Slots free for requests.
    pub fn free(&self) -> u32 {
        self.size - self.req_prod_pvt.wrapping_sub(self.rsp_cons)
    }

    /// Puts a request into the next slot.
    ///
    /// # Panics
    /// If the ring is full.
    pub fn push_request(&mut self, request: &Req) {
        assert!(self.free() > 0, "the ring is full");
        self.pages.write(self.slot(self.req_prod_pvt), request);
        self.req_prod_pvt = self.req_prod_pvt.wrapping_add(1);
    }

    /// Makes the pushed requests visible.
    pub fn publish(&mut self) -> Kick {
        let (old, new) = (self.req_prod, self.req_prod_pvt);
        self.req_prod = new;
        self.pages.store_u32(REQ_PROD, new, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = self.pages.load_u32(REQ_EVENT, Ordering::Relaxed);
        if wakes_peer(old, new, event) {
            Kick::Needed
        } else {
            Kick::NotNeeded
        }
    }

    /// Takes the next response, and asks to be woken for the one after it.
    pub fn next_response(&mut self) -> Option<Rsp> {
        let ready = self
            .pages
            .load_u32(RSP_PROD, Ordering::Acquire)
            .wrapping_sub(self.rsp_cons);
        if ready == 0 {
            return None;
        }
        let response = self.pages.read(self.slot(self.rsp_cons));
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        self.pages
            .store_u32(RSP_EVENT, self.rsp_cons.wrapping_add(1), Ordering::SeqCst);
        Some(response)
    }

    /// Overwrites the published producer index: what a hostile frontend does.
    pub fn forge_req_prod(&self, value: u32) {
        self.pages.store_u32(REQ_PROD, value, Ordering::SeqCst);
    }

    fn slot(&self, index: u32) -> usize {
        HEADER + (index & (self.size - 1)) as usize * Self::SLOT
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "made-up test data")]
mod tests {
    use super::*;

    type Front = FrontRing<u64, u32>;
    type Back = BackRing<u64, u32>;

    fn joined(start: u32) -> (Front, Back) {
        let (a, b) = SharedPages::pair(4096);
        let front = Front::init(a, start);
        (front, Back::attach(b).unwrap())
    }

    #[test]
    fn every_request_is_answered_in_order_across_the_wrap() {
        // A start this close to 2^32 wraps inside the loop.
        let (mut front, mut back) = joined(u32::MAX - 100);
        assert_eq!(front.size(), 256); // (4096 - 64) / 8 = 504 -> 256
        for i in 0..1000u64 {
            front.push_request(&i);
            let _ = front.publish() == Kick::Needed;
            assert_eq!(back.next_request().unwrap(), Some(i));
            back.push_response(&(i as u32 * 3));
            let _ = back.publish() == Kick::Needed;
            assert_eq!(front.next_response(), Some(i as u32 * 3));
        }
    }

    #[test]
    fn overrun_is_reported_and_nothing_is_consumed() {
        for start in [0, u32::MAX - 3] {
            let (front, mut back) = joined(start);
            front.forge_req_prod(start.wrapping_add(257));
            assert_eq!(
                back.next_request(),
                Err(RingError::Overrun {
                    claimed: 257,
                    size: 256
                })
            );
            front.forge_req_prod(start.wrapping_sub(1));
            assert_eq!(
                back.next_request(),
                Err(RingError::Overrun {
                    claimed: u32::MAX,
                    size: 256
                })
            );
            assert_eq!(back.req_cons(), start);
        }
    }

    #[test]
    fn a_consumed_request_keeps_its_slot_until_answered() {
        let (mut front, mut back) = joined(7);
        for i in 0..256 {
            front.push_request(&i);
        }
        let _ = front.publish() == Kick::Needed;
        back.next_request().unwrap();
        // 256 are in flight, one of them taken: one more does not fit.
        front.forge_req_prod(7 + 257);
        assert!(back.next_request().is_err());
    }

    #[test]
    fn a_sleeping_backend_is_kicked_for_the_first_request_only() {
        let (mut front, mut back) = joined(0);
        assert!(!back.final_check().unwrap());
        front.push_request(&1);
        assert_eq!(front.publish(), Kick::Needed);
        front.push_request(&2);
        assert_eq!(front.publish(), Kick::NotNeeded);
        assert!(back.final_check().unwrap());
    }

    #[test]
    fn kicks_match_the_definition_for_all_near_wraps() {
        // An event index is passed iff it lies in (old, new].
        for old in (u32::MAX - 5)..=u32::MAX {
            for step in 0..8u32 {
                for ahead in 0..10u32 {
                    let event = old.wrapping_add(ahead);
                    let passed = ahead >= 1 && ahead <= step;
                    assert_eq!(wakes_peer(old, old.wrapping_add(step), event), passed);
                }
            }
        }
    }
}
