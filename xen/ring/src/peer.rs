//! How a backend reaches another domain: grants and events, as needs.
//!
//! A backend task owns one object of each trait, made for its guest by the
//! kernel; `xen-sim` has the strict versions for tests. Calls are synchronous:
//! each is one hypercall for a whole list.

use crate::SharedPages;
use core::fmt;
use core::task::{Context, Poll};
use xen_abi::GrantRef;

/// `GNTST_*` (grant_table.h): what Xen answered for one grant operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantStatus(pub i16);

impl GrantStatus {
    /// `GNTST_okay`.
    pub const OKAY: Self = Self(0);
    /// `GNTST_general_error`.
    pub const GENERAL_ERROR: Self = Self(-1);
    /// `GNTST_bad_gntref`.
    pub const BAD_GNTREF: Self = Self(-3);
    /// `GNTST_bad_copy_arg`.
    pub const BAD_COPY_ARG: Self = Self(-10);
    /// `GNTST_eagain`: the page is paged out; try again, but not for ever.
    pub const EAGAIN: Self = Self(-12);

    /// Whether the operation was carried out.
    pub fn is_okay(self) -> bool {
        self == Self::OKAY
    }
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grant status {}", self.0)
    }
}

impl core::error::Error for GrantStatus {}

/// What the pVM (or its device) does with a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reads: disk write, network transmit. Frontends grant such pages
    /// read-only, so a writable map of them fails.
    Read,
    /// Writes: disk read, network receive.
    Write,
}

/// One end of a [`CopyOp`].
#[derive(Clone, Copy, Debug)]
pub enum CopyEnd {
    /// A page that the guest granted.
    Granted(GrantRef),
    /// A page that another guest granted to us.
    GrantedBy(xen_abi::DomId, GrantRef),
    /// Our own memory, by machine frame number.
    Frame(u64),
}

/// One `GNTTABOP_copy` of at most a page; neither end may cross a page.
#[derive(Clone, Copy, Debug)]
pub struct CopyOp {
    /// Where the bytes come from.
    pub source: CopyEnd,
    /// Offset in the source page.
    pub source_offset: u16,
    /// Where they go.
    pub dest: CopyEnd,
    /// Offset in the destination page.
    pub dest_offset: u16,
    /// How many.
    pub len: u16,
    /// Xen's answer, filled by [`Grants::copy`].
    pub status: GrantStatus,
}

/// A granted page made reachable by a device: `GNTMAP_device_map`.
#[derive(Debug)]
pub struct DeviceMapping {
    /// `grant_handle_t`.
    pub handle: u32,
    /// Bus (machine) address of the page.
    pub bus_addr: u64,
}

/// The grants of one guest.
pub trait Grants {
    /// Maps ring pages, adjacent and in order, until the result is dropped.
    /// All of them or none.
    fn map_ring(&self, refs: &[GrantRef]) -> Result<SharedPages, GrantStatus>;

    /// Carries out every copy, in one hypercall; each answer is in its `status`.
    /// Order operations by source, then destination: Xen keeps the last mapping of each.
    fn copy(&self, ops: &mut [CopyOp]);

    /// Makes granted pages reachable by DMA, in one hypercall. One result for each ref,
    /// in order, pushed to `out`.
    fn map_device(
        &self,
        refs: &[GrantRef],
        access: Access,
        out: &mut alloc::vec::Vec<Result<DeviceMapping, GrantStatus>>,
    );

    /// Ends device mappings, in full batches: each batch of 32 flushes the TLB of every
    /// CPU that holds pVM state. Must come before the response that tells the guest.
    fn unmap_device(&self, mappings: alloc::vec::Vec<DeviceMapping>);
}

/// One interdomain event channel, bound on the vCPU whose task waits on it.
pub trait Events {
    /// Kicks the peer (`EVTCHNOP_send`).
    fn notify(&self);

    /// Ready once for each (merged) event since the last `Ready`; registers the waker
    /// otherwise.
    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Waits for the next event.
pub async fn event(events: &impl Events) {
    core::future::poll_fn(|cx| events.poll_event(cx)).await;
}
