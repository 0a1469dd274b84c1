//! A PCI function as its driver sees it.

use crate::{Mmio, Node, VcpuId};
use alloc::boxed::Box;
use core::fmt;
use core::task::{Context, Poll};

/// Why a PCI function could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciError {
    /// The BAR is absent, an I/O port range, or could not be mapped.
    Bar(u8),
    /// The function has no MSI-X capability, or fewer vectors than asked for.
    Vector(u16),
    /// Xen refused with this errno.
    Xen(i32),
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bar(bar) => write!(f, "BAR {bar} cannot be mapped"),
            Self::Vector(vector) => write!(f, "no MSI-X vector {vector}"),
            Self::Xen(errno) => write!(f, "Xen answered {errno}"),
        }
    }
}

impl core::error::Error for PciError {}

/// One MSI-X vector, bound to the vCPU whose task waits on it.
pub trait Interrupt {
    /// Ready once for each (merged) interrupt since the last `Ready`; registers the
    /// waker otherwise. An interrupt that came before the first poll is not lost.
    fn poll_interrupt(&self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Waits for the next interrupt.
pub async fn interrupt(line: &dyn Interrupt) {
    core::future::poll_fn(|cx| line.poll_interrupt(cx)).await;
}

/// One PCI function handed to a driver: decoding and bus mastering are on.
pub trait PciFunction {
    /// Vendor and device id.
    fn id(&self) -> (u16, u16);
    /// The node the function hangs on, if the firmware says.
    fn node(&self) -> Node;
    /// Maps a memory BAR. The pages that hold the MSI-X table are read-only to us.
    fn bar(&self, index: u8) -> Result<Mmio, PciError>;
    /// MSI-X vectors the function has; 0: none.
    fn vectors(&self) -> u16;
    /// Allocates a vector through Xen and binds it to a vCPU (slow path, at set-up).
    /// The first call enables MSI-X, which must come before the device is enabled:
    /// QEMU's NVMe marks vectors as used at that moment only.
    fn vector(&self, index: u16, vcpu: VcpuId) -> Result<Box<dyn Interrupt>, PciError>;
}
