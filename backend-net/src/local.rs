//! The port of our own management stack: plain frames, all checksums in place.

use crate::headers::{self, Prefix};
use crate::offload::{Next, Segments, checksum_is_right, fill_checksum};
use crate::switch::{Port, Source, Verdict, View};
use alloc::vec::Vec;
use core::task::{Context, Poll};
use hal::VcpuId;
use hal::net::{Checksum, Frame, MacAddr, PacketPool};

/// Frames looked at in vain before [`LocalPort::try_recv`] gives up for now.
const MAX_DROPPED: usize = 8;

/// Our own station at the switch. Used by one task.
#[derive(Debug)]
pub struct LocalPort {
    port: Port,
    view: View,
    pool: PacketPool,
    cutting: Option<Segments>,
    /// Frames lost for want of memory or with a wrong checksum.
    dropped: u64,
}

impl LocalPort {
    /// The station behind `port`, served on `vcpu` with memory from `pool`.
    pub fn new(port: Port, vcpu: VcpuId, pool: PacketPool) -> Self {
        Self {
            view: port.view(vcpu),
            port,
            pool,
            cutting: None,
            dropped: 0,
        }
    }

    /// Its address.
    pub fn mac(&self) -> MacAddr {
        self.port.mac()
    }

    /// Frames lost here so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The next frame for us: at most an MTU long, its TCP or UDP checksum filled in, or
    /// checked if the NIC has not done that. `None`: there is none, or so many had to be
    /// dropped that others should have their turn ([`Self::poll_recv`] knows).
    pub fn try_recv(&mut self) -> Option<Vec<u8>> {
        for _ in 0..MAX_DROPPED {
            let mut frame = match &mut self.cutting {
                Some(segments) => match segments.next(&self.pool) {
                    Next::Segment(segment) => segment,
                    Next::NoMemory => {
                        // TCP sends the rest again.
                        self.dropped += 1;
                        self.cutting = None;
                        continue;
                    }
                    Next::Done => {
                        self.cutting = None;
                        continue;
                    }
                },
                None => match Segments::of(self.port.inbox().pop()?) {
                    Ok(segments) => {
                        self.cutting = Some(segments);
                        continue;
                    }
                    Err(frame) => frame,
                },
            };
            fill_checksum(&mut frame);
            if frame.checksum == Checksum::Unknown && !plausible(&frame) {
                self.dropped += 1;
                continue;
            }
            let mut bytes = alloc::vec![0; frame.len()];
            frame.read(0, &mut bytes);
            return Some(bytes);
        }
        None
    }

    /// Ready when [`Self::try_recv`] may give a frame; registers the waker otherwise.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.cutting.is_some() {
            return Poll::Ready(());
        }
        self.port.inbox().poll_readable(cx)
    }

    /// Sends a whole frame, with our address as its source and all checksums in place.
    /// `false`: dropped, as on a wire that is busy or leads nowhere.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.view.refresh();
        let Some(frame) = Frame::from_bytes(&self.pool, bytes) else {
            return false;
        };
        let verdict = self
            .view
            .forward(Source::Station(self.port.mac()), frame, &self.pool);
        matches!(verdict, Verdict::Forwarded(_))
    }
}

/// Whether a frame of unknown state has a right checksum, or none that we know.
fn plausible(frame: &Frame) -> bool {
    let prefix = Prefix::of(frame);
    match headers::parse(prefix.as_slice(), frame.len()) {
        Some(layout) => {
            let mut field = [0; 2];
            frame.read(layout.checksum_at(), &mut field);
            // UDP over IPv4 may have none.
            let none = layout.l4 == hal::net::L4::Udp && field == [0, 0];
            none || checksum_is_right(frame, &layout)
        }
        None => true,
    }
}
