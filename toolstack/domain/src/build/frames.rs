//! Machine frames of a PV guest.

use super::BuildError;
use super::memory::usize_of;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Pages of a chunk: 2 MiB, which Xen gives in one piece if it can.
const CHUNK: u64 = 512;

/// The machine frames of a chunk of the guest.
#[derive(Debug)]
enum Chunk {
    /// This one and those after it.
    Run(u64),
    /// Each for itself.
    List(Box<[u32]>),
}

/// Bytes that the list of a guest of `pages` pages can take, with what an allocator loses
/// between pieces of 2 KiB.
pub(crate) const fn most_bytes(pages: u64) -> u64 {
    const LOST: u64 = 64;
    let each = size_of::<Chunk>() as u64 + CHUNK * size_of::<u32>() as u64 + LOST;
    pages.div_ceil(CHUNK).saturating_mul(each)
}

/// Which machine frame each guest frame is.
///
/// That costs nearly nothing where Xen gave 2 MiB in one piece. Where its memory is
/// fragmented, as any guest can make it by ballooning, it costs 4 bytes for each page, in
/// pieces of half a page. Frame numbers of 32 bits end at 16 TiB of machine memory, as those
/// of version 1 grants do: a guest that gets memory beyond is not built.
#[derive(Debug)]
pub(super) struct MachineFrames {
    /// All full but for the last one.
    chunks: Vec<Chunk>,
    /// Guest frames so far.
    known: u64,
}

impl MachineFrames {
    /// For a guest of so many pages.
    ///
    /// # Errors
    /// [`BuildError::NoHeap`]
    pub(super) fn try_new(pages: u64) -> Result<Self, BuildError> {
        let mut chunks = Vec::new();
        chunks
            .try_reserve_exact(usize_of(pages.div_ceil(CHUNK)))
            .map_err(|_| BuildError::NoHeap { known: 0 })?;
        Ok(Self { chunks, known: 0 })
    }

    /// Adds the next `pages` guest frames: `mfn` and those after it.
    ///
    /// # Errors
    /// [`BuildError::NoHeap`], [`BuildError::FrameTooHigh`]
    pub(super) fn push(&mut self, mut mfn: u64, pages: u64) -> Result<(), BuildError> {
        let end = mfn + pages;
        if end > 1 << 32 {
            return Err(BuildError::FrameTooHigh { frame: end - 1 });
        }
        while mfn < end {
            let at = self.known % CHUNK;
            let count = (CHUNK - at).min(end - mfn);
            match self.chunks.last_mut().filter(|_| at > 0) {
                Some(chunk) => {
                    let known = self.known;
                    chunk
                        .set(at, mfn, count)
                        .ok_or(BuildError::NoHeap { known })?;
                }
                // There is room: `try_new` made it.
                None => self.chunks.push(Chunk::Run(mfn)),
            }
            self.known += count;
            mfn += count;
        }
        Ok(())
    }

    /// The machine frame of a guest frame.
    pub(super) fn get(&self, pfn: u64) -> Option<u64> {
        let at = pfn % CHUNK;
        match self.chunks.get(usize_of(pfn / CHUNK))? {
            _ if pfn >= self.known => None,
            Chunk::Run(start) => Some(start + at),
            Chunk::List(list) => list.get(usize_of(at)).map(|&frame| frame.into()),
        }
    }
}

impl Chunk {
    /// Notes `count` frames from `mfn` on at `at`, up to which all are known. `None`: no
    /// memory for a list.
    fn set(&mut self, at: u64, mfn: u64, count: u64) -> Option<()> {
        let low = |frame| u32::try_from(frame).unwrap_or(u32::MAX);
        if let Self::Run(start) = *self {
            if start + at == mfn {
                return Some(());
            }
            let mut list = Vec::new();
            list.try_reserve_exact(usize_of(CHUNK)).ok()?;
            // What is not known yet is written when it is.
            list.extend((start..start + CHUNK).map(low));
            *self = Self::List(list.into());
        }
        let Self::List(list) = self else { return None };
        for (to, frame) in list.iter_mut().skip(usize_of(at)).zip(mfn..mfn + count) {
            *to = low(frame);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl MachineFrames {
        /// Bytes of all that is allocated, and of the largest piece.
        fn allocated(&self) -> (usize, usize) {
            let table = self.chunks.capacity() * size_of::<Chunk>();
            let list = |chunk: &Chunk| match chunk {
                Chunk::Run(_) => 0,
                Chunk::List(list) => size_of_val(&**list),
            };
            let lists: usize = self.chunks.iter().map(list).sum();
            (table + lists, table.max(lists.min(2048)))
        }
    }

    #[test]
    fn frames_are_found_in_whole_extents_and_single_pages() {
        let mut frames = MachineFrames::try_new(1540).unwrap();
        // One chunk; one and a part of the next, which goes on so, and then does not.
        for (mfn, pages) in [
            (1000, 512),
            (5000, 514),
            (5514, 1),
            (7, 1),
            (6, 1),
            (9000, 511),
        ] {
            frames.push(mfn, pages).unwrap();
        }
        let found: Vec<_> = (0..1541).map_while(|pfn| frames.get(pfn)).collect();
        let pushed = (1000..1512)
            .chain(5000..5515)
            .chain([7, 6])
            .chain(9000..9511);
        assert_eq!(found, pushed.collect::<Vec<_>>());
        assert!(matches!(
            frames.chunks[..],
            [
                Chunk::Run(1000),
                Chunk::Run(5000),
                Chunk::List(_),
                Chunk::Run(9507)
            ]
        ));
    }

    #[test]
    fn memory_in_one_piece_costs_next_to_nothing() {
        let mut frames = MachineFrames::try_new(1 << 18).unwrap();
        frames.push(1 << 20, 1 << 18).unwrap();
        assert_eq!(frames.allocated(), (8192, 8192));
    }

    /// As Xen hands out the halves of a block that it splits: from the top down.
    fn fragmented(pages: u64) -> MachineFrames {
        let mut frames = MachineFrames::try_new(pages).unwrap();
        for pfn in 0..pages {
            frames.push(10_000_000 - pfn, 1).unwrap();
        }
        assert_eq!(frames.get(pages - 1), Some(10_000_001 - pages));
        frames
    }

    #[test]
    fn a_fragmented_gib_costs_no_more_than_a_plain_list() {
        let (bytes, _) = fragmented((1 << 30) / 4096).allocated();
        assert!(bytes <= 2 << 20, "{bytes} bytes for 1 GiB");
        assert!(bytes as u64 <= most_bytes((1 << 30) / 4096));
    }

    #[test]
    fn nothing_is_allocated_in_one_piece_that_the_kernels_heap_lacks() {
        // `BLOCK` of `pvm-unikernel/src/mem/heap.rs`.
        let (_, largest) = fragmented((2 << 30) / 4096 + 1).allocated();
        assert!(largest <= 64 << 10, "{largest} bytes in one allocation");
    }

    #[test]
    fn what_cannot_be_held_is_an_error() {
        let none = MachineFrames::try_new(1 << 60).unwrap_err();
        assert_eq!(none, BuildError::NoHeap { known: 0 });
        let mut frames = MachineFrames::try_new(1024).unwrap();
        frames.push((1 << 32) - 512, 512).unwrap();
        assert_eq!(frames.get(511), Some((1 << 32) - 1));
        let beyond = frames.push((1 << 32) - 1, 2);
        assert_eq!(beyond, Err(BuildError::FrameTooHigh { frame: 1 << 32 }));
    }
}
