//! From Xen's boot mapping of a few MiB to the direct map of the whole reservation.
//!
//! The tables are filled offline, through three scratch pages whose mapping is moved
//! about, and hooked into the root by one update for each root slot: Xen then checks the
//! whole tree at once. A frame may become a page table only if it is mapped writable
//! nowhere, so table frames are taken from beyond the boot mapping, and the direct map
//! shows them read-only.

use super::layout::{DIRECT_FRAMES, DIRECT_SLOTS, IMAGE_BASE, PAGE, STATE_BASE, direct, pointer};
use super::{buddy, paging};
use crate::arch::entry;
use crate::arch::hypercall::mmu::{self, Flush};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use xen_abi::DomId;
use xen_abi::xen::{MmuUpdate, SIF_MOD_START_PFN, StartInfo};

/// What the rest of the kernel wants to know about the reservation at boot.
#[derive(Debug)]
pub struct BootFrames {
    /// The boot archive; empty if there is none.
    pub initrd: &'static [u8],
}

/// The next frame to use, counted down from the end of the reservation.
static NEXT: AtomicU64 = AtomicU64::new(0);
static LIST: AtomicU64 = AtomicU64::new(0);
static INITRD_START: AtomicU64 = AtomicU64::new(0);
static INITRD_END: AtomicU64 = AtomicU64::new(0);

/// Machine frame of a boot frame number, while Xen's list is mapped.
fn mfn(pfn: u64) -> u64 {
    let list = pointer::<u64>(LIST.load(Ordering::Relaxed));
    let index = usize::try_from(pfn).expect("frame numbers fit");
    // SAFETY: callers stay below `nr_pages`, the length of Xen's list, which `init` unmaps
    // only at its end.
    unsafe { list.wrapping_add(index).read() }
}

fn initrd() -> Range<u64> {
    INITRD_START.load(Ordering::Relaxed)..INITRD_END.load(Ordering::Relaxed)
}

/// A frame from the end of the reservation, for good.
fn bump() -> u64 {
    let mut pfn = NEXT.load(Ordering::Relaxed) - 1;
    if initrd().contains(&pfn) {
        pfn = initrd().start - 1;
    }
    NEXT.store(pfn, Ordering::Relaxed);
    mfn(pfn)
}

fn symbol(of: *const u8) -> u64 {
    of.addr() as u64
}

/// Machine frame behind an address of the image.
fn image_mfn(va: u64) -> u64 {
    mfn((va - IMAGE_BASE) / PAGE)
}

/// Three windows, each showing one frame.
struct Scratch {
    shown: [u64; 3],
}

impl Scratch {
    fn va(window: usize) -> u64 {
        symbol(&raw const entry::scratch_pages) + window as u64 * PAGE
    }

    /// Shows `mfn` in a window.
    fn show(&mut self, window: usize, mfn: u64) -> *mut [u64; 512] {
        let va = Self::va(window);
        if self.shown[window] != mfn {
            // SAFETY: the scratch pages hold nothing; `mfn` is a table under construction.
            unsafe { mmu::update_va_mapping(va, paging::data(mfn), Flush::Local) }
                .expect("an own frame can be mapped");
            self.shown[window] = mfn;
        }
        pointer(va)
    }

    /// The table that entry `index` of the table shown in `window` names; made if missing.
    fn below(&mut self, window: usize, mfn: u64, index: usize) -> u64 {
        let table = self.show(window, mfn);
        // SAFETY: the window shows a table that only this code knows.
        let entry = unsafe { (*table)[index] };
        if let Some(below) = paging::frame(entry) {
            return below;
        }
        let new = self.make(window + 1);
        let table = self.show(window, mfn);
        // SAFETY: as above.
        unsafe { (*table)[index] = paging::table(new) };
        new
    }

    /// A new, empty table, shown in `window`.
    fn make(&mut self, window: usize) -> u64 {
        let new = bump();
        let table = self.show(window, new);
        // SAFETY: a fresh frame, shown here and nowhere else.
        unsafe { (*table).fill(0) };
        new
    }
}

/// The direct map while it is built: its L3 tables by root slot.
struct Builder {
    scratch: Scratch,
    roots: [u64; DIRECT_SLOTS],
}

impl Builder {
    fn set(&mut self, mfn: u64, entry: u64) {
        assert!(
            mfn < DIRECT_FRAMES,
            "frame {mfn:#x} is beyond the direct map"
        );
        let part = |shift: u32| usize::try_from(mfn >> shift & 511).unwrap_or(0);
        let slot = usize::try_from(mfn >> 27).unwrap_or(0);
        if self.roots[slot] == 0 {
            self.roots[slot] = self.scratch.make(0);
        }
        let l2 = self.scratch.below(0, self.roots[slot], part(18));
        let l1 = self.scratch.below(1, l2, part(9));
        let table = self.scratch.show(2, l1);
        // SAFETY: the window shows a table under construction.
        unsafe { (*table)[part(0)] = entry };
    }
}

/// Maps the reservation, starts the allocator, and takes the boot mapping down but for
/// the image, whose parts get the rights they need. `start` is a copy of Xen's page.
pub fn init(start: &StartInfo) -> BootFrames {
    let image_start = symbol(&raw const entry::__image_start);
    let text_end = symbol(&raw const entry::__text_end);
    let constants_end = symbol(&raw const entry::__rodata_end);
    let image_end = symbol(&raw const entry::__image_end);
    let guard = symbol(&raw const entry::boot_stack_guard);
    let shared = symbol(&raw const entry::shared_info_page);
    let pfn_of = |va: u64| (va - IMAGE_BASE) / PAGE;
    let page_tables = pfn_of(start.pt_base)..pfn_of(start.pt_base) + start.nr_pt_frames;
    let pages = start.nr_pages;

    LIST.store(start.mfn_list, Ordering::Relaxed);
    NEXT.store(pages, Ordering::Relaxed);
    if start.mod_len > 0 && start.flags & SIF_MOD_START_PFN != 0 {
        INITRD_START.store(start.mod_start, Ordering::Relaxed);
        let end = start.mod_start + start.mod_len.div_ceil(PAGE);
        INITRD_END.store(end, Ordering::Relaxed);
    }

    let root = mfn(pfn_of(start.pt_base));
    build_direct_map(pages, root, |pfn| {
        page_tables.contains(&pfn) || (pfn_of(image_start)..pfn_of(constants_end)).contains(&pfn)
    });
    paging::set_root(root);

    *buddy::EARLY.lock() = Some(bump);
    for_each_run(0..pages, |first, count| {
        buddy::note(first, count).expect("the reservation has room for the allocator");
    });
    *buddy::EARLY.lock() = None;

    // From here on nothing is bumped: free what lies between the boot mapping and the
    // frames used so far.
    let used = NEXT.load(Ordering::Relaxed);
    let mut boot_end = pfn_of(image_end);
    while paging::lookup(IMAGE_BASE + boot_end * PAGE) != 0 {
        boot_end += 1;
    }
    assert!(boot_end < used, "dom0_mem is too small");
    let archive = initrd();
    let split = if archive.is_empty() {
        used..used
    } else {
        archive.start.clamp(boot_end, used)..archive.end.clamp(boot_end, used)
    };
    for range in [boot_end..split.start, split.end..used] {
        for_each_run(range, |first, count| {
            // SAFETY: none of these frames is image, page table, archive or boot mapping.
            unsafe { buddy::free(first, count) };
        });
    }
    let initrd = archive_bytes(start.mod_len);

    // The list itself goes with the boot mapping: no `mfn` below.
    for pfn in 0..boot_end {
        let va = IMAGE_BASE + pfn * PAGE;
        let frame = paging::frame_of(va).expect("Xen mapped all up to the end");
        let entry = match va {
            va if va < image_start || va >= image_end || va == guard => 0,
            va if va == shared => continue,
            va if va < text_end => paging::code(frame),
            va if va < constants_end => paging::constant(frame),
            _ => paging::data(frame),
        };
        // SAFETY: outside the image nothing is used any more: the start info was copied,
        // the frame list was the last. Inside, the rights are those of the sections.
        unsafe { mmu::update_va_mapping(va, entry, Flush::None) }
            .expect("the boot mapping may be changed");
        let outside = va < image_start || va >= image_end;
        if outside && !page_tables.contains(&pfn) {
            // SAFETY: its only other mapping has just gone.
            unsafe { buddy::free(frame, 1) };
        }
    }
    mmu::flush_all();
    BootFrames { initrd }
}

fn build_direct_map(pages: u64, root: u64, is_constant: impl Fn(u64) -> bool) {
    let mut builder = Builder {
        scratch: Scratch { shown: [0; 3] },
        roots: [0; DIRECT_SLOTS],
    };
    for pfn in 0..pages {
        let frame = mfn(pfn);
        let entry = if is_constant(pfn) {
            paging::constant(frame)
        } else {
            paging::data(frame)
        };
        builder.set(frame, entry);
    }
    // Every frame has its tables now, so no table is added below.
    let first_table = NEXT.load(Ordering::Relaxed);
    for pfn in (first_table..pages).filter(|pfn| !initrd().contains(pfn)) {
        builder.set(mfn(pfn), paging::constant(mfn(pfn)));
    }
    assert!(
        first_table == NEXT.load(Ordering::Relaxed),
        "a table was added late"
    );
    for window in 0..3 {
        let va = Scratch::va(window);
        // SAFETY: back to the page's own frame; no table is mapped writable any more.
        unsafe { mmu::update_va_mapping(va, paging::data(image_mfn(va)), Flush::Local) }
            .expect("the scratch page's own frame can be mapped");
    }
    for (slot, l3) in builder.roots.iter().enumerate().filter(|(_, l3)| **l3 != 0) {
        let hook = MmuUpdate {
            ptr: (root << 12) + (272 + slot as u64) * 8,
            val: paging::table(*l3),
        };
        // SAFETY: the slot is empty, and the tree below maps own frames, tables and code
        // read-only.
        unsafe { mmu::update(&[hook], DomId::SELF) }.expect("the direct map is well formed");
    }
    const { assert!(super::layout::DIRECT_BASE >> 39 & 511 == 272) };
    const { assert!(STATE_BASE >> 39 & 511 == 272 + DIRECT_SLOTS as u64) };
}

/// Calls `each` with the machine-contiguous runs of a range of boot frames.
fn for_each_run(range: Range<u64>, mut each: impl FnMut(u64, u64)) {
    let mut pfn = range.start;
    while pfn < range.end {
        let first = mfn(pfn);
        let mut count = 1;
        while pfn + count < range.end && mfn(pfn + count) == first + count {
            count += 1;
        }
        each(first, count);
        pfn += count;
    }
}

/// The boot archive as bytes; its frames need not be contiguous in the machine.
fn archive_bytes(len: u64) -> &'static [u8] {
    let pfns = initrd();
    if pfns.is_empty() {
        return &[];
    }
    let first = mfn(pfns.start);
    let contiguous = pfns
        .clone()
        .zip(first..)
        .all(|(pfn, frame)| mfn(pfn) == frame);
    let va = if contiguous {
        direct(first)
    } else {
        let va = super::window::reserve_permanent(pfns.end - pfns.start);
        // SAFETY: a fresh window; the archive's frames are owned by nobody else.
        unsafe {
            paging::set(va, pfns.end - pfns.start, DomId::SELF, |i| {
                paging::constant(mfn(pfns.start + i))
            })
        }
        .expect("own frames can be mapped");
        va
    };
    let len = usize::try_from(len).expect("the archive fits the address space");
    // SAFETY: mapped for ever, never written: its frames stay off the allocator.
    unsafe { core::slice::from_raw_parts(pointer(va), len) }
}
