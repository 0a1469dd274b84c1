//! Writing into a guest's memory through windows of bounded size.

use super::frames::MachineFrames;
use super::image::ImageSource;
use super::{BuildError, CallError, PAGE};
use crate::config::ImageId;
use crate::hypercalls::{DomainPages, Hypercalls, MAP_PAGES};
use alloc::vec;
use alloc::vec::Vec;
use xen_abi::DomId;

/// A guest's memory by its own physical addresses.
pub(super) struct Memory<'a, H> {
    pub(super) calls: &'a H,
    pub(super) domain: DomId,
    /// For PV, whose frames are mapped by machine frame; `None`: by guest frame.
    pub(super) machine_frames: Option<&'a MachineFrames>,
}

/// Buffer between the image source and the guest.
const STREAM: usize = 64 * 1024;

impl<H: Hypercalls> Memory<'_, H> {
    /// Maps the pages around `len` bytes (at most a window) at `paddr`.
    fn window(&self, paddr: u64, len: u64) -> Result<H::Map, CallError> {
        let first = paddr / PAGE;
        let last = (paddr + len - 1) / PAGE;
        let frames: Vec<u64> = match self.machine_frames {
            None => (first..=last).collect(),
            Some(list) => (first..=last)
                .map(|pfn| list.get(pfn).unwrap_or(u64::MAX))
                .collect(),
        };
        self.calls
            .map_foreign(self.domain, &frames)
            .map_err(|errno| CallError {
                call: "mmu_update(foreign)",
                errno,
            })
    }

    /// Length of the first piece of `len` bytes at `paddr` that one window holds.
    fn piece(paddr: u64, len: u64) -> u64 {
        (MAP_PAGES as u64 * PAGE - paddr % PAGE).min(len)
    }

    /// Writes `bytes` at `paddr`.
    pub(super) async fn write(&self, mut paddr: u64, mut bytes: &[u8]) -> Result<(), CallError> {
        while !bytes.is_empty() {
            let piece = usize_of(Self::piece(paddr, bytes.len() as u64));
            let mut map = self.window(paddr, piece as u64)?;
            map.write(usize_of(paddr % PAGE), &bytes[..piece]);
            drop(map);
            bytes = &bytes[piece..];
            paddr += piece as u64;
            self.calls.breathe().await;
        }
        Ok(())
    }

    /// Clears `len` bytes at `paddr`.
    pub(super) async fn zero(&self, mut paddr: u64, mut len: u64) -> Result<(), CallError> {
        while len > 0 {
            let piece = Self::piece(paddr, len);
            let mut map = self.window(paddr, piece)?;
            map.zero(usize_of(paddr % PAGE), usize_of(piece));
            drop(map);
            paddr += piece;
            len -= piece;
            self.calls.breathe().await;
        }
        Ok(())
    }

    /// Copies `len` bytes of a stored image from `offset` to `paddr`.
    pub(super) async fn stream<S: ImageSource>(
        &self,
        mut paddr: u64,
        images: &mut S,
        image: ImageId,
        mut offset: u64,
        mut len: u64,
    ) -> Result<(), BuildError> {
        let mut buffer = vec![0; usize_of(len.min(STREAM as u64))];
        while len > 0 {
            let chunk = usize_of(len.min(STREAM as u64));
            images.read(image, offset, &mut buffer[..chunk]).await?;
            self.write(paddr, &buffer[..chunk]).await?;
            paddr += chunk as u64;
            offset += chunk as u64;
            len -= chunk as u64;
        }
        Ok(())
    }

    /// Clears from `paddr` to the end of its page, if it is not at the start of one.
    pub(super) async fn zero_rest_of_page(&self, paddr: u64) -> Result<(), CallError> {
        match paddr % PAGE {
            0 => Ok(()),
            used => self.zero(paddr, PAGE - used).await,
        }
    }
}

/// Lengths here are bounded by a window or a buffer.
pub(super) fn usize_of(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// `value` rounded up to whole pages; `None` beyond 2^64.
pub(super) fn round_up(value: u64) -> Option<u64> {
    value.checked_next_multiple_of(PAGE)
}
