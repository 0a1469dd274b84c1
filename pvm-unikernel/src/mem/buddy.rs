//! The frame allocator: one buddy system for each node, over machine frame numbers.
//!
//! A block of order k is 2^k frames, aligned in the machine. The state of each frame is a
//! byte at `STATE_BASE + mfn`; a free block's links lie in its own first frame.

use super::layout::{PAGE, STATE_BASE, direct, pointer};
use super::paging;
use crate::arch::SpinLock;

/// Orders 0 to 12: runs of up to 16 MiB.
pub const ORDERS: usize = 13;
/// Nodes the allocator tells apart; frames of higher ones count for the last.
pub const MAX_NODES: usize = 16;
/// Node ranges it remembers.
const MAX_RANGES: usize = 64;
/// Frames kept for page tables, so that memory can still be added when none is free.
const RESERVE: usize = 32;

/// Not ours.
const ABSENT: u8 = 0;
/// Owned by somebody, or inside a free block.
const TAKEN: u8 = 1;
/// First frame of a free block; the order is in the low bits.
const FREE: u8 = 0x40;

const NIL: u64 = u64::MAX;

/// Pages of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCount {
    /// Of our reservation.
    pub total: u64,
    /// Free in the allocator.
    pub free: u64,
}

struct Buddy {
    heads: [[u64; ORDERS]; MAX_NODES],
    counts: [NodeCount; MAX_NODES],
    /// Start, end and node, ascending.
    ranges: [(u64, u64, u32); MAX_RANGES],
    range_count: usize,
    reserve: [u64; RESERVE],
    reserve_count: usize,
    /// Lowest and highest frame ever added.
    bounds: (u64, u64),
}

static BUDDY: SpinLock<Buddy> = SpinLock::new(Buddy {
    heads: [[NIL; ORDERS]; MAX_NODES],
    counts: [NodeCount { total: 0, free: 0 }; MAX_NODES],
    ranges: [(0, 0, 0); MAX_RANGES],
    range_count: 0,
    reserve: [0; RESERVE],
    reserve_count: 0,
    bounds: (u64::MAX, 0),
});

/// Frames before the allocator stands: the boot code's bump allocator.
pub(super) static EARLY: SpinLock<Option<fn() -> u64>> = SpinLock::new(None);

fn state(mfn: u64) -> u8 {
    // SAFETY: `note` mapped the byte when the frame, or one of its 4096 neighbours, became
    // ours; `present` guards the others.
    unsafe { pointer::<u8>(STATE_BASE + mfn).read_volatile() }
}

fn set_state(mfn: u64, to: u8) {
    // SAFETY: as for `state`; the allocator's lock is held.
    unsafe { pointer::<u8>(STATE_BASE + mfn).write_volatile(to) };
}

/// Whether the state byte of `mfn` is mapped.
fn present(mfn: u64) -> bool {
    paging::frame_of(STATE_BASE + mfn).is_some()
}

/// Links of a free block: previous, next.
fn links(mfn: u64) -> *mut [u64; 2] {
    pointer(direct(mfn))
}

impl Buddy {
    fn node(&self, mfn: u64) -> usize {
        let range = self.ranges[..self.range_count]
            .iter()
            .find(|(start, end, _)| (*start..*end).contains(&mfn));
        range.map_or(0, |(_, _, node)| (*node as usize).min(MAX_NODES - 1))
    }

    fn push(&mut self, mfn: u64, order: usize) {
        let node = self.node(mfn);
        let head = self.heads[node][order];
        // SAFETY: the block is free and mapped writable; its first bytes are the list's.
        unsafe { links(mfn).write([NIL, head]) };
        if head != NIL {
            // SAFETY: the head of the list is a free block.
            unsafe { (*links(head))[0] = mfn };
        }
        self.heads[node][order] = mfn;
        self.counts[node].free += 1 << order;
        set_state(mfn, FREE | u8::try_from(order).unwrap_or(0));
    }

    fn remove(&mut self, mfn: u64, order: usize) {
        let node = self.node(mfn);
        // SAFETY: the block is on the list, so its first bytes are links.
        let [previous, next] = unsafe { links(mfn).read() };
        if previous == NIL {
            self.heads[node][order] = next;
        } else {
            // SAFETY: a neighbour on the list.
            unsafe { (*links(previous))[1] = next };
        }
        if next != NIL {
            // SAFETY: a neighbour on the list.
            unsafe { (*links(next))[0] = previous };
        }
        self.counts[node].free -= 1 << order;
        set_state(mfn, TAKEN);
    }

    /// Frees one aligned block and merges it upwards.
    fn free_block(&mut self, mut mfn: u64, mut order: usize) {
        // A block must not span nodes, or its far half would be on the wrong list.
        if self.node(mfn) != self.node(mfn + (1 << order) - 1) {
            self.free_block(mfn, order - 1);
            self.free_block(mfn + (1 << (order - 1)), order - 1);
            return;
        }
        while order + 1 < ORDERS {
            let buddy = mfn ^ (1 << order);
            let free = FREE | u8::try_from(order).unwrap_or(0);
            if !present(buddy) || state(buddy) != free || self.node(buddy) != self.node(mfn) {
                break;
            }
            self.remove(buddy, order);
            mfn = mfn.min(buddy);
            order += 1;
        }
        self.push(mfn, order);
    }

    /// Frees a run, cut into aligned blocks.
    fn free_run(&mut self, mut mfn: u64, mut pages: u64) {
        while pages > 0 {
            let align = mfn.trailing_zeros().min(63 - pages.leading_zeros());
            let order = (align as usize).min(ORDERS - 1);
            self.free_block(mfn, order);
            mfn += 1 << order;
            pages -= 1 << order;
        }
    }

    fn take(&mut self, node: usize, pages: u64) -> Option<u64> {
        let order = pages.next_power_of_two().trailing_zeros() as usize;
        let found = (order..ORDERS).find(|&order| self.heads[node][order] != NIL)?;
        let mfn = self.heads[node][found];
        self.remove(mfn, found);
        // What is too much goes back at once.
        self.free_run(mfn + pages, (1 << found) - pages);
        Some(mfn)
    }

    fn refill_reserve(&mut self) {
        while self.reserve_count < RESERVE {
            let Some(mfn) = (0..MAX_NODES).find_map(|node| self.take(node, 1)) else {
                return;
            };
            self.reserve[self.reserve_count] = mfn;
            self.reserve_count += 1;
        }
    }
}

static NOTING: SpinLock<()> = SpinLock::new(());

/// Makes the state bytes for a run that becomes ours, and marks it taken.
/// The run is in the direct map.
pub(super) fn note(mfn: u64, pages: u64) -> Result<(), crate::arch::hypercall::Errno> {
    // Two runs may share a page of state bytes, which must be made once.
    let _noting = NOTING.lock();
    let first = (STATE_BASE + mfn) & !(PAGE - 1);
    let mut page = first;
    while page < STATE_BASE + mfn + pages {
        if paging::frame_of(page).is_none() {
            let frame = table_frame().ok_or(crate::arch::hypercall::Errno::ENOMEM)?;
            // SAFETY: `table_frame` gave the frame away.
            unsafe { pointer::<u8>(direct(frame)).write_bytes(ABSENT, 4096) };
            // SAFETY: fills an empty entry.
            unsafe { paging::set(page, 1, xen_abi::DomId::SELF, |_| paging::data(frame)) }
                .map_err(|(_, errno)| errno)?;
        }
        page += PAGE;
    }
    let mut buddy = BUDDY.lock();
    for frame in mfn..mfn + pages {
        set_state(frame, TAKEN);
        let node = buddy.node(frame);
        buddy.counts[node].total += 1;
    }
    buddy.bounds = (buddy.bounds.0.min(mfn), buddy.bounds.1.max(mfn + pages));
    Ok(())
}

/// Forgets a run that no longer is ours.
pub(super) fn forget(mfn: u64, pages: u64) {
    let mut buddy = BUDDY.lock();
    for frame in mfn..mfn + pages {
        set_state(frame, ABSENT);
        let node = buddy.node(frame);
        buddy.counts[node].total -= 1;
    }
}

/// Puts a noted run, which nobody uses, on the free lists.
///
/// # Safety
/// Nobody owns the frames, and they are mapped writable in the direct map.
pub(super) unsafe fn free(mfn: u64, pages: u64) {
    let mut buddy = BUDDY.lock();
    for frame in mfn..mfn + pages {
        assert!(state(frame) == TAKEN, "frame {frame:#x} freed twice");
    }
    buddy.free_run(mfn, pages);
    if buddy.reserve_count < RESERVE {
        buddy.refill_reserve();
    }
}

/// Whether anybody said which frames lie where.
pub(super) fn knows_nodes() -> bool {
    BUDDY.lock().range_count > 0
}

/// Takes a machine-contiguous run from `node`.
pub(super) fn take(node: u32, pages: u64) -> Option<u64> {
    if pages == 0 || pages > 1 << (ORDERS - 1) {
        return None;
    }
    BUDDY.lock().take((node as usize).min(MAX_NODES - 1), pages)
}

/// Takes a run from any node, lowest first.
pub(super) fn take_anywhere(pages: u64) -> Option<u64> {
    (0..MAX_NODES).find_map(|node| take(u32::try_from(node).unwrap_or(0), pages))
}

/// A frame that becomes a page table, or the allocator's own, for ever.
pub(super) fn table_frame() -> Option<u64> {
    if let Some(early) = *EARLY.lock() {
        return Some(early());
    }
    let mut buddy = BUDDY.lock();
    if let Some(mfn) = (0..MAX_NODES).find_map(|node| buddy.take(node, 1)) {
        return Some(mfn);
    }
    buddy.reserve_count = buddy.reserve_count.checked_sub(1)?;
    let last = buddy.reserve_count;
    Some(buddy.reserve[last])
}

/// The node of a frame, 0 until the ranges are known.
pub(super) fn node_of(mfn: u64) -> u32 {
    u32::try_from(BUDDY.lock().node(mfn)).unwrap_or(0)
}

/// Free pages of a node.
pub(super) fn free_on(node: u32) -> u64 {
    BUDDY.lock().counts[(node as usize).min(MAX_NODES - 1)].free
}

/// Pages per node, for the first nodes up to the last that has any.
pub fn counts() -> alloc::vec::Vec<NodeCount> {
    let counts = BUDDY.lock().counts;
    let used = counts.iter().rposition(|count| count.total > 0);
    counts[..used.map_or(0, |last| last + 1)].to_vec()
}

/// Pages that the SRAT says a node has; none: it says nothing of that node. What Xen calls
/// its size (`memsize` of `numainfo`) spans the hole below 4 GiB.
pub fn pages_of_node(node: u32) -> Option<u64> {
    let buddy = BUDDY.lock();
    let ranges = buddy.ranges[..buddy.range_count].iter();
    let pages = ranges.filter(|(.., of)| *of == node);
    let sum = pages.map(|(start, end, _)| end - start).sum();
    (sum > 0).then_some(sum)
}

/// Tells the allocator which frames lie on which node (from the SRAT): start, end, node.
/// Frames in no range count for node 0. Ranges beyond 64 are ignored, with a warning.
pub fn set_node_ranges(ranges: &[(u64, u64, u32)]) {
    if ranges.len() > MAX_RANGES {
        log::warn!(
            "memory: {} node ranges, only {MAX_RANGES} used",
            ranges.len()
        );
    }
    let mut buddy = BUDDY.lock();
    // Empty the lists while the old ranges still say which list a block is on, chaining the
    // blocks through their own first words.
    let mut chain = NIL;
    for node in 0..MAX_NODES {
        for order in 0..ORDERS {
            while buddy.heads[node][order] != NIL {
                let mfn = buddy.heads[node][order];
                buddy.remove(mfn, order);
                // SAFETY: the block is nobody's between the lists.
                unsafe { links(mfn).write([chain, order as u64]) };
                chain = mfn;
            }
        }
    }
    buddy.range_count = ranges.len().min(MAX_RANGES);
    let count = buddy.range_count;
    buddy.ranges[..count].copy_from_slice(&ranges[..count]);
    while chain != NIL {
        // SAFETY: written just above.
        let [next, order] = unsafe { links(chain).read() };
        buddy.free_block(chain, usize::try_from(order).unwrap_or(0));
        chain = next;
    }
    for count in &mut buddy.counts {
        count.total = 0;
    }
    let (mut mfn, end) = buddy.bounds;
    while mfn < end {
        if !present(mfn) {
            mfn = (mfn | (PAGE - 1)) + 1;
            continue;
        }
        if state(mfn) != ABSENT {
            let node = buddy.node(mfn);
            buddy.counts[node].total += 1;
        }
        mfn += 1;
    }
}
