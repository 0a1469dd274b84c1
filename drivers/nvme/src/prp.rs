//! Physical region pages (section 4.3).
//!
//! A command's data is a list of pieces, none crossing a 4 KiB page: the first may
//! start anywhere (4-byte aligned) in its page, all others start at a page's
//! beginning; all but the last end at a page's end.

use hal::DmaSegment;

/// The controller's page.
pub const PAGE: u64 = 4096;

/// Cuts a segment at page ends; gives address and length of each piece.
fn pieces(segment: DmaSegment) -> impl Iterator<Item = (u64, u64)> {
    let end = segment.bus_addr + u64::from(segment.len);
    let mut at = segment.bus_addr;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let stop = ((at / PAGE + 1) * PAGE).min(end);
        let piece = (at, stop - at);
        at = stop;
        Some(piece)
    })
}

/// How many bytes from the list's start, up to `max`, one command can carry: a
/// multiple of `block_size` (a power of two).
pub fn prefix(segments: impl Iterator<Item = DmaSegment>, max: u32, block_size: u32) -> u32 {
    let mut bytes = 0u64;
    // Whether the last piece ended with its page, so that another may follow.
    let mut open = true;
    for (addr, len) in segments.flat_map(pieces) {
        let fits = if bytes == 0 {
            addr % 4 == 0
        } else {
            open && addr % PAGE == 0
        };
        if !fits || bytes >= u64::from(max) {
            break;
        }
        bytes += len;
        open = (addr + len) % PAGE == 0;
    }
    // At most `max`, which is a u32.
    u32::try_from(bytes.min(max.into())).unwrap_or(max) & !(block_size - 1)
}

/// The two pointers of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pointers {
    /// PRP entry 1.
    pub prp1: u64,
    /// PRP entry 2: nothing, the second page, or the list.
    pub prp2: u64,
}

/// Builds the pointers for a list that [`prefix`] accepted whole. From three pieces on
/// a list is needed: `put(n, address)` writes its entry `n`, and `list` is its address.
pub fn build(
    segments: impl Iterator<Item = DmaSegment>,
    list: u64,
    mut put: impl FnMut(usize, u64),
) -> Pointers {
    let mut pointers = Pointers::default();
    for (n, (addr, _)) in segments.flat_map(pieces).enumerate() {
        match n {
            0 => pointers.prp1 = addr,
            1 => {
                pointers.prp2 = addr;
                put(0, addr);
            }
            _ => {
                pointers.prp2 = list;
                put(n - 1, addr);
            }
        }
    }
    pointers
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn segment(bus_addr: u64, len: u32) -> DmaSegment {
        DmaSegment { bus_addr, len }
    }

    fn fits(list: &[DmaSegment]) -> u32 {
        prefix(list.iter().copied(), 1 << 20, 512)
    }

    #[test]
    fn lists_that_prps_cannot_express_are_cut_where_they_break() {
        // Head and tail may be partial, the middle not.
        assert_eq!(
            fits(&[
                segment(0x1e00, 512),
                segment(0x5000, 4096),
                segment(0x9000, 512)
            ]),
            512 + 4096 + 512
        );
        // Adjacent in memory counts as one, whatever the cut.
        assert_eq!(fits(&[segment(0x1200, 512), segment(0x1400, 1024)]), 512);
        assert_eq!(fits(&[segment(0x1000, 512), segment(0x2000, 512)]), 512);
        assert_eq!(fits(&[segment(0x1e00, 512), segment(0x2200, 512)]), 512);
        assert_eq!(fits(&[segment(0x1002, 512)]), 0);
        // Half a block in the first page cannot be a command by itself.
        assert_eq!(fits(&[segment(0x1f00, 256), segment(0x7100, 256)]), 0);
        assert_eq!(fits(&[segment(0x1f00, 256), segment(0x7000, 256)]), 512);
    }

    #[test]
    fn long_runs_are_cut_at_the_limit() {
        let run = [segment(0x10_0200, 4 << 20)];
        assert_eq!(prefix(run.iter().copied(), 1 << 20, 4096), 1 << 20);
    }

    proptest! {
        /// Walking the pointers as a controller does gives the bytes of the list.
        #[test]
        fn what_the_controller_walks_is_what_was_asked(
            parts in proptest::collection::vec((1u64..1000, 0u64..8, 1u32..24), 1..20)
        ) {
            let parts: Vec<_> = parts
                .into_iter()
                .map(|(page, sector, len)| segment(page * PAGE + sector * 512, len * 512))
                .collect();
            let bytes = fits(&parts);
            prop_assert!(bytes >= 512);
            let (now, _) = hal::block::Segments::new(&parts).split_at(bytes.into());
            let mut list = [0u64; 512];
            let pointers = build(now.iter(), 0xabc_d000, |n, addr| list[n] = addr);

            let mut walked = Vec::new();
            let mut left = u64::from(bytes);
            let mut step = |addr: u64| {
                let len = (PAGE - addr % PAGE).min(left);
                left -= len;
                walked.extend((addr..addr + len).step_by(512));
                left
            };
            let left = step(pointers.prp1);
            if left > 0 && left <= PAGE {
                prop_assert_eq!(pointers.prp2 % PAGE, 0);
                prop_assert_eq!(step(pointers.prp2), 0);
            } else if left > 0 {
                prop_assert_eq!(pointers.prp2, 0xabc_d000);
                let mut n = 0;
                while { prop_assert_eq!(list[n] % PAGE, 0); step(list[n]) } > 0 {
                    n += 1;
                }
            }
            let asked: Vec<_> = now
                .iter()
                .flat_map(|s| (s.bus_addr..s.bus_addr + u64::from(s.len)).step_by(512))
                .collect();
            prop_assert_eq!(walked, asked);
        }
    }
}
