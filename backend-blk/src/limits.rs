//! What one guest disk may have in work, may map together with all others, and may write
//! into the log.
//!
//! Without these a ring of 16 pages is 512 requests of 256 pages: one disk maps half of
//! what Xen lets dom0 map, and two of them leave nothing for anybody's rings.

use crate::protocol::MAX_INDIRECT_SEGMENTS;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Requests of a device in work. Each has at most one command at the disk, so this is also
/// the device's share of its vCPU's queue there: half of the 63 that `driver-nvme` has, so
/// that a neighbour's first command waits behind few of ours. It is still what disks need
/// to be busy: 32 commands of 4 KiB at 80 us each are 400,000 a second.
pub const MAX_REQUESTS: usize = 32;

/// Pages that the requests of a device in work name: all of [`MAX_REQUESTS`] at the 32
/// segments that Linux's frontend uses unless told otherwise. These 4 MiB keep a disk of
/// 7 GB/s busy for 600 us, several times what it takes for a command.
///
/// It bounds the heap too: about 70 bytes a page while its request is being mapped.
pub const MAX_PAGES: usize = MAX_REQUESTS * 32;

// The largest request fits, or it would wait for ever.
const _: () = assert!(MAX_INDIRECT_SEGMENTS as usize <= MAX_PAGES);

/// What is in work of one device.
#[derive(Clone, Copy, Debug, Default)]
pub struct InWork {
    /// Pages that its requests name.
    pub pages: usize,
}

impl InWork {
    /// Whether another request may be taken, however large, next to `requests` others.
    pub fn has_room(self, requests: usize) -> bool {
        requests < MAX_REQUESTS && self.pages + usize::from(MAX_INDIRECT_SEGMENTS) <= MAX_PAGES
    }
}

/// How many pages the devices of a host may map together.
///
/// When it is reached, requests are copied as small ones are, slower but in bounded
/// memory.
#[derive(Debug)]
pub struct MapLimit {
    left: AtomicUsize,
}

impl MapLimit {
    /// At most `pages` at once.
    pub const fn new(pages: usize) -> Self {
        Self {
            left: AtomicUsize::new(pages),
        }
    }

    /// Takes `pages`, if there are so many.
    pub fn take(&'static self, pages: usize) -> Option<MapShare> {
        // Only a number: nothing is read or written because of it.
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(pages)
            })
            .ok()?;
        Some(MapShare { limit: self, pages })
    }
}

/// Pages taken from a [`MapLimit`]; they go back when this is dropped.
#[derive(Debug)]
pub struct MapShare {
    limit: &'static MapLimit,
    pages: usize,
}

impl Drop for MapShare {
    fn drop(&mut self) {
        self.limit.left.fetch_add(self.pages, Ordering::Relaxed);
    }
}

/// What a device has written into the log about what its guest, or the disk, did wrong.
/// It outlives the device's connections, which the guest can make as often as it likes.
#[derive(Debug, Default)]
pub struct Told {
    guest: AtomicU32,
    disk: AtomicU32,
}

/// Lines about a device's guest, and about its disk; the rest is only counted.
const MAX_TOLD: u32 = 3;

impl Told {
    /// Tells what the guest did.
    pub(crate) fn guest(&self, name: &str, what: fmt::Arguments<'_>) {
        tell(&self.guest, name, what);
    }

    /// Tells what the disk did.
    pub(crate) fn disk(&self, name: &str, what: fmt::Arguments<'_>) {
        tell(&self.disk, name, what);
    }
}

fn tell(count: &AtomicU32, name: &str, what: fmt::Arguments<'_>) {
    let told = count.load(Ordering::Relaxed);
    if told >= MAX_TOLD {
        return;
    }
    // One task at a time serves a device, so nobody counts in between.
    count.store(told + 1, Ordering::Relaxed);
    log::warn!("{name}: {what}");
    if told + 1 == MAX_TOLD {
        log::warn!("{name}: more of this is only counted");
    }
}
