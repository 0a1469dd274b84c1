//! What one guest disk has done, for whoever charges or watches.

pub(crate) use hal::counters::add;

hal::counters! {
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
    /// Commands sent to the disk again, because it was reset.
    retries,
    /// Requests that broke the protocol, asked for what the disk does not offer, or whose
    /// grants could not be used.
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
