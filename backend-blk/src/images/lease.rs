//! What creates in progress keep from being collected.
//!
//! A create asks for its images, puts those that are missing, and names them in a guest's
//! definition only after that. Until then its connection's lease is all that tells them
//! from images that nobody needs. Not counted in objects: however many creates there are
//! at once, none takes another's, and once they are over nothing is kept.

use super::{ImageArea, ObjectHandle, ObjectId};
use alloc::collections::{BTreeMap, BTreeSet};
use core::fmt;
use core::time::Duration;

/// How long a lease holds after it was last used: much longer than a create pauses between
/// two steps, short enough for others to wait for the end of one that stands still.
pub const LEASE_TIME: Duration = Duration::from_secs(60);

/// All leases of an area.
#[derive(Default)]
pub(super) struct Leases {
    next: u64,
    given: BTreeMap<u64, Terms>,
}

#[derive(Default)]
struct Terms {
    objects: BTreeSet<ObjectId>,
    /// When it was used last.
    used: Duration,
}

impl Leases {
    /// Whether a lease keeps this object.
    pub(super) fn keep(&self, id: &ObjectId, now: Duration) -> bool {
        let holds = |terms: &Terms| now.saturating_sub(terms.used) < LEASE_TIME;
        let mut given = self.given.values();
        given.any(|terms| holds(terms) && terms.objects.contains(id))
    }

    /// An object is gone: no lease names more than there is.
    pub(super) fn forget(&mut self, id: &ObjectId) {
        for terms in self.given.values_mut() {
            terms.objects.remove(id);
        }
    }
}

/// Keeps objects from [`ImageArea::collect`] until it is dropped or released, or was not
/// used for [`LEASE_TIME`]. `now` is the time since any moment, the same for all leases.
pub struct Lease<D> {
    area: ImageArea<D>,
    key: u64,
}

impl<D> fmt::Debug for Lease<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({})", self.key)
    }
}

impl<D> Lease<D> {
    pub(super) fn new(area: ImageArea<D>) -> Self {
        let key = {
            let leases = &mut area.0.state.borrow_mut().leases;
            leases.next += 1;
            leases.given.insert(leases.next, Terms::default());
            leases.next
        };
        Self { area, key }
    }

    /// Whether an object is there, and how long it is. If so, it is kept from now on.
    pub fn has(&self, id: &ObjectId, now: Duration) -> Option<u64> {
        let len = self.area.has(id);
        self.with(|terms| {
            terms.used = now;
            if len.is_some() {
                terms.objects.insert(*id);
            }
        });
        len
    }

    /// Keeps an object that was just put.
    pub fn keep(&self, object: &ObjectHandle, now: Duration) {
        self.with(|terms| {
            terms.used = now;
            terms.objects.insert(object.id());
        });
    }

    /// The create goes on: what is kept stays so.
    pub fn renew(&self, now: Duration) {
        self.with(|terms| terms.used = now);
    }

    /// Keeps nothing any more.
    pub fn release(&self) {
        self.with(|terms| terms.objects.clear());
    }

    fn with(&self, change: impl FnOnce(&mut Terms)) {
        let mut state = self.area.0.state.borrow_mut();
        // There as long as we are.
        if let Some(terms) = state.leases.given.get_mut(&self.key) {
            change(terms);
        }
    }
}

impl<D> Drop for Lease<D> {
    fn drop(&mut self) {
        let mut state = self.area.0.state.borrow_mut();
        state.leases.given.remove(&self.key);
    }
}
