//! smoltcp's device.

use alloc::vec;
use alloc::vec::Vec;
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetFrame;

/// Ethernet frame without FCS.
const MAX_FRAME: usize = 1514;
/// EtherType of IPv4, and where its source address is in an untagged frame.
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV4_SOURCE: usize = 14 + 12;

/// Where frames come from and go to.
pub trait Port {
    /// The next frame that came.
    fn receive(&mut self) -> Option<Vec<u8>>;

    /// Sends a frame, or drops it, as a wire does.
    fn send(&mut self, frame: &[u8]);
}

/// A [`Port`] as smoltcp sees it.
#[derive(Debug)]
pub struct Link<P> {
    /// The port.
    pub port: P,
    /// Whether checksums are looked at. A fuzzer has better to do.
    pub checksums: bool,
}

/// One frame that came.
#[derive(Debug)]
pub struct Received(Vec<u8>);

/// Room for one to send.
#[derive(Debug)]
pub struct Transmit<'a, P>(&'a mut P);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl<P: Port> TxToken for Transmit<'_, P> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        // If it is dropped, TCP sends it again.
        self.0.send(&frame);
        result
    }
}

impl<P: Port> Device for Link<P> {
    type RxToken<'a>
        = Received
    where
        P: 'a;
    type TxToken<'a>
        = Transmit<'a, P>
    where
        P: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received, Transmit<'_, P>)> {
        let mut frame = self.port.receive()?;
        if is_from_nobody(&frame) {
            // Less than a header, which smoltcp drops: this is its turn all the same.
            frame.truncate(EthernetFrame::<&[u8]>::header_len() - 1);
        }
        Some((Received(frame), Transmit(&mut self.port)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_, P>> {
        Some(Transmit(&mut self.port))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        if !self.checksums {
            let of = &mut capabilities.checksum;
            for checksum in [&mut of.ipv4, &mut of.udp, &mut of.tcp, &mut of.icmpv4] {
                *checksum = Checksum::Tx;
            }
        }
        capabilities
    }
}

/// Whether a frame is IPv4 from 0.0.0.0. smoltcp panics when it answers one: a DHCP server's
/// renewal goes to the source of its offer.
fn is_from_nobody(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&IPV4) && frame.get(IPV4_SOURCE..IPV4_SOURCE + 4) == Some(&[0; 4])
}
