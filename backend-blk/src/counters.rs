//! What one guest disk has done, for whoever charges or watches.

use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counted by the block task; readable from any vCPU.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// The counters at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// All of them; each is right, but they are not of the same instant.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Read requests taken.
    reads,
    /// Write requests taken, barriers and flushes with data among them.
    writes,
    /// Flush requests without data.
    flushes,
    /// Discard requests.
    discards,
    /// Bytes read for the guest.
    bytes_read,
    /// Bytes written for the guest.
    bytes_written,
    /// Requests that the disk failed.
    disk_errors,
    /// Requests that broke the protocol, or whose grants could not be used.
    bad_requests,
    /// The ring itself was broken, and the device closed.
    ring_errors,
    /// Pages mapped for the device, and unmapped.
    pages_mapped,
    /// Grant copy operations.
    copies,
    /// Hypercalls for mapping, unmapping and copying.
    grant_calls,
    /// Notifications sent to the guest.
    notifications,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
