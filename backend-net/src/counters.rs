//! What one device did, for whoever charges for it.

use core::sync::atomic::AtomicU64;

hal::counters! {
    /// Frames the guest sent and the switch took.
    tx_frames,
    /// Bytes of them.
    tx_bytes,
    /// Frames of the guest refused: malformed, bad grants, or without memory for them.
    tx_errors,
    /// Frames of the guest with a source address that is not its own.
    tx_spoofed,
    /// Frames of the guest that had no receiver, or one whose queue was full.
    tx_dropped,
    /// Frames the guest received.
    rx_frames,
    /// Bytes of them.
    rx_bytes,
    /// Frames for the guest dropped because it posted no buffers in time, or for want of
    /// memory.
    rx_dropped,
    /// Frames for the guest that could not be copied or were not fit for it.
    rx_errors,
    /// Frames for the guest that found its inbox full, or closed while it posted no buffers.
    /// Counted when it disconnects.
    rx_refused,
    /// Grant copies asked for.
    copy_ops,
    /// Hypercalls they were asked for in.
    copy_calls,
    /// Events sent to the guest.
    notifies,
    /// Times the task ran.
    polls,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, n: usize) {
    hal::counters::add(counter, n as u64);
}
