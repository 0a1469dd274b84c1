//! Two byte streams in one page: `struct xencons_interface` (io/console.h) and
//! `struct xenstore_domain_interface` (io/xs_wire.h), seen from the serving side.

use crate::{RingError, SharedPages};
use core::sync::atomic::Ordering;

/// Where the two streams and their indices lie in the shared page.
#[derive(Clone, Copy, Debug)]
pub struct ByteRingLayout {
    /// Buffer the guest writes: offset and length (a power of two).
    pub from_guest: (usize, usize),
    /// Buffer we write: offset and length (a power of two).
    pub to_guest: (usize, usize),
    /// Offset of the consumer index of the guest's stream.
    pub from_cons: usize,
    /// Offset of the producer index of the guest's stream.
    pub from_prod: usize,
    /// Offset of the consumer index of our stream.
    pub to_cons: usize,
    /// Offset of the producer index of our stream.
    pub to_prod: usize,
}

impl ByteRingLayout {
    /// `struct xencons_interface`: `in[1024]`, `out[2048]`, in_cons, in_prod, out_cons, out_prod.
    pub const CONSOLE: Self = Self {
        to_guest: (0, 1024),
        from_guest: (1024, 2048),
        to_cons: 3072,
        to_prod: 3076,
        from_cons: 3080,
        from_prod: 3084,
    };
    /// `struct xenstore_domain_interface`: `req[1024]`, `rsp[1024]`, req_cons, req_prod,
    /// rsp_cons, rsp_prod, then server_features, connection, error.
    pub const XENSTORE: Self = Self {
        from_guest: (0, 1024),
        to_guest: (1024, 1024),
        from_cons: 2048,
        from_prod: 2052,
        to_cons: 2056,
        to_prod: 2060,
    };
}

/// The serving side of two byte streams. Our own indices are kept privately: what
/// the guest writes over them changes nothing here.
#[derive(Debug)]
pub struct ByteRing {
    pages: SharedPages,
    layout: ByteRingLayout,
    from_cons: u32,
    to_prod: u32,
}

impl ByteRing {
    /// Attaches to a page, continuing from the indices found there: they need not be
    /// zero after a reconnect.
    pub fn attach(pages: SharedPages, layout: ByteRingLayout) -> Self {
        let from_cons = pages.load_u32(layout.from_cons, Ordering::Acquire);
        let to_prod = pages.load_u32(layout.to_prod, Ordering::Acquire);
        Self {
            pages,
            layout,
            from_cons,
            to_prod,
        }
    }

    /// The page, for the words beside the streams (xenstore's connection and error).
    pub fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// Moves what the guest wrote into `to`; 0: nothing there.
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, RingError> {
        let (base, size) = self.layout.from_guest;
        let prod = self
            .pages
            .load_u32(self.layout.from_prod, Ordering::Acquire);
        let ready = Self::distance(prod, self.from_cons, size)?;
        let count = ready.min(to.len());
        let start = self.from_cons as usize & (size - 1);
        let first = count.min(size - start);
        self.pages.read_bytes(base + start, &mut to[..first]);
        self.pages.read_bytes(base, &mut to[first..count]);
        self.from_cons = self.from_cons.wrapping_add(Self::index(count));
        // Bytes are out before their room is given back.
        self.pages
            .store_u32(self.layout.from_cons, self.from_cons, Ordering::Release);
        Ok(count)
    }

    /// Moves as much of `from` as fits; returns how much.
    pub fn write(&mut self, from: &[u8]) -> Result<usize, RingError> {
        let (base, size) = self.layout.to_guest;
        let cons = self.pages.load_u32(self.layout.to_cons, Ordering::Acquire);
        let used = Self::distance(self.to_prod, cons, size)?;
        let count = (size - used).min(from.len());
        let start = self.to_prod as usize & (size - 1);
        let first = count.min(size - start);
        self.pages.write_bytes(base + start, &from[..first]);
        self.pages.write_bytes(base, &from[first..count]);
        self.to_prod = self.to_prod.wrapping_add(Self::index(count));
        // Bytes are visible before the index.
        self.pages
            .store_u32(self.layout.to_prod, self.to_prod, Ordering::Release);
        Ok(count)
    }

    fn distance(prod: u32, cons: u32, size: usize) -> Result<usize, RingError> {
        let claimed = prod.wrapping_sub(cons);
        if claimed as usize > size {
            return Err(RingError::Overrun {
                claimed,
                size: Self::index(size),
            });
        }
        Ok(claimed as usize)
    }

    /// A length bounded by a ring's size, as an index step.
    fn index(count: usize) -> u32 {
        u32::try_from(count).expect("rings are smaller than a page")
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "made-up test data")]
mod tests {
    use super::*;

    #[test]
    fn a_stream_longer_than_the_ring_arrives_whole() {
        let (ours, guest) = SharedPages::pair(4096);
        let layout = ByteRingLayout::CONSOLE;
        let mut ring = ByteRing::attach(ours, layout);
        let (base, size) = layout.from_guest;
        let mut prod = 0u32;
        let mut seen = alloc::vec::Vec::new();
        let mut buf = [0; 300];
        for byte in 0..10_000u32 {
            guest.write_bytes(base + prod as usize % size, &[byte as u8]);
            prod += 1;
            guest.store_u32(layout.from_prod, prod, Ordering::Release);
            if byte % 1999 == 0 || byte == 9_999 {
                loop {
                    let n = ring.read(&mut buf).unwrap();
                    if n == 0 {
                        break;
                    }
                    seen.extend_from_slice(&buf[..n]);
                }
            }
        }
        assert!(seen.iter().enumerate().all(|(i, b)| *b == i as u8));
        assert_eq!(seen.len(), 10_000);
    }

    #[test]
    fn a_full_ring_takes_no_more_and_a_lying_peer_is_an_error() {
        let (ours, guest) = SharedPages::pair(4096);
        let layout = ByteRingLayout::XENSTORE;
        let mut ring = ByteRing::attach(ours, layout);
        assert_eq!(ring.write(&[7; 2000]).unwrap(), 1024);
        assert_eq!(ring.write(&[7; 1]).unwrap(), 0);
        guest.store_u32(layout.to_cons, 1025, Ordering::Relaxed);
        assert!(ring.write(&[7; 1]).is_err());
        guest.store_u32(layout.from_prod, 1025, Ordering::Relaxed);
        assert_eq!(
            ring.read(&mut [0; 8]),
            Err(RingError::Overrun {
                claimed: 1025,
                size: 1024
            })
        );
    }
}
