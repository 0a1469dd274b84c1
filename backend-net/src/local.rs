//! The port of our own management stack: plain frames from and to the wire.
//!
//! The switch keeps guests from it and it from guests: a stack that answers everybody is one
//! that everybody can wear down, and who manages this host is on another machine. It sends
//! by the NIC queue of some guests' core, where some room is for it ([`Limits::UPLINK`]).
//!
//! [`Limits::UPLINK`]: crate::Limits::UPLINK

use crate::switch::{Port, Source, Verdict, View};
use alloc::vec::Vec;
use core::fmt;
use core::task::{Context, Poll};
use hal::VcpuId;
use hal::net::{Frame, MacAddr, PacketPool};

/// Frames that our own stack lost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Received, for want of room.
    pub received: u64,
    /// Ours, that nobody took.
    pub unsent: u64,
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, unsent } = self;
        write!(f, "{received} received, {unsent} not sent")
    }
}

/// Our own station at the switch. Used by one task.
#[derive(Debug)]
pub struct LocalPort {
    port: Port,
    view: View,
    pool: PacketPool,
    unsent: u64,
}

impl LocalPort {
    /// The station behind `port`, served on `vcpu` with memory from `pool`.
    pub fn new(port: Port, vcpu: VcpuId, pool: PacketPool) -> Self {
        Self {
            view: port.view(vcpu),
            port,
            pool,
            unsent: 0,
        }
    }

    /// Its address.
    pub fn mac(&self) -> MacAddr {
        self.port.mac()
    }

    /// Frames lost here so far.
    pub fn losses(&self) -> Losses {
        Losses {
            received: self.port.inbox().refused(),
            unsent: self.unsent,
        }
    }

    /// The next frame for us, as it came from the wire: its checksums are the stack's to
    /// look at.
    pub fn try_recv(&mut self) -> Option<Vec<u8>> {
        let frame = self.port.inbox().pop()?;
        let mut bytes = alloc::vec![0; frame.len()];
        frame.read(0, &mut bytes);
        Some(bytes)
    }

    /// Ready when [`Self::try_recv`] may give a frame; registers the waker otherwise.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.port.inbox().poll_readable(cx)
    }

    /// Sends a whole frame to the wire, with our address as its source and all checksums in
    /// place. `false`: dropped, as on a wire that is busy or leads nowhere.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.view.refresh();
        let sent = Frame::from_bytes(&self.pool, bytes).is_some_and(|frame| {
            let verdict = self.view.forward(Source::Ourselves, frame, &self.pool);
            matches!(verdict, Verdict::Forwarded(_))
        });
        self.unsent += u64::from(!sent);
        sent
    }
}
