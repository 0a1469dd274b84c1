//! Where everything lies in a PV guest's memory, and the page tables it starts with.
//!
//! As stock libxc has it (tools/libs/guest/xg_dom_core.c, xg_dom_x86.c), which
//! `struct start_info` of xen.h describes: from `virt_base` on, at guest frame 0,
//! kernel, ramdisk, frame list, start info, rings, page tables and boot stack, mapped
//! up to a multiple of 4 MiB with 512 KiB to spare. A kernel that says so finds its
//! ramdisk behind that, unmapped, and its frame list at an address of its own.

use super::memory::round_up;
use super::{BuildError, PAGE, memory_pages};
use crate::config::GuestConfig;
use alloc::vec::Vec;
use core::ops::Range;
use xen_abi::PAGE_SIZE;
use xen_abi::elfnote;

/// Bits of a virtual address that page tables look at.
const VIRT_MASK: u64 = (1 << 48) - 1;
/// `MAX_GUEST_CMDLINE`, with the final zero.
const COMMAND_LINE_MOST: usize = 1023;
/// Present, writable, accessed.
const LEAF: u64 = 0x23;
const WRITABLE: u64 = 2;
/// Present, writable, user, accessed, dirty.
const INNER: u64 = 0x67;

/// Guest frames that are mapped one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// First virtual address, cut to 48 bits.
    pub(super) virt: u64,
    /// First guest frame.
    pub(super) pfn: u64,
    pub(super) pages: u64,
}

/// A page table: level 0 is L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) level: u32,
    /// First virtual address it maps, cut to 48 bits.
    pub(super) virt: u64,
    pub(super) pfn: u64,
}

/// Bytes that an entry of a table maps.
const fn span(level: u32) -> u64 {
    PAGE << (9 * level)
}

/// A ramdisk's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PvRamdisk {
    pub(super) pfns: Range<u64>,
    /// Value of `start_info.mod_start`: an address, or a frame number.
    pub(super) mod_start: u64,
    /// Value of `start_info.mod_len`.
    pub(super) mod_len: u64,
    /// `mod_start` is a frame number.
    pub(super) by_frame: bool,
}

/// A PV guest's memory, in guest frames, and what the kernel said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PvLayout {
    pub(super) pages: u64,
    pub(super) virt_base: u64,
    /// What to take off a segment's `p_paddr` to get a guest physical address.
    pub(super) paddr_offset: u64,
    pub(super) kernel: Range<u64>,
    pub(super) ramdisk: Option<PvRamdisk>,
    /// The frame list, and the tables behind it if it has a mapping of its own.
    pub(super) p2m: Range<u64>,
    pub(super) p2m_virt: u64,
    /// The frame list has a mapping of its own.
    pub(super) p2m_apart: bool,
    pub(super) start_info: u64,
    pub(super) xenstore: u64,
    pub(super) console: u64,
    /// The tables of the first mapping: what `pt_base` and `nr_pt_frames` say.
    pub(super) page_tables: Range<u64>,
    pub(super) boot_stack: u64,
    pub(super) mappings: Vec<Mapping>,
    pub(super) tables: Vec<Table>,
    pub(super) entry: u64,
    /// Frame that Xen fills with hypercall stubs.
    pub(super) hypercall_page: Option<u64>,
}

/// Hands out guest frames in order.
struct Frames {
    next: u64,
    pages: u64,
}

impl Frames {
    fn take(&mut self, count: u64) -> Result<Range<u64>, BuildError> {
        let start = self.next;
        let end = start.saturating_add(count);
        if end > self.pages {
            return Err(BuildError::DoesNotFit {
                needed: end.saturating_mul(PAGE),
                memory: self.pages * PAGE,
            });
        }
        self.next = end;
        Ok(start..end)
    }

    fn one(&mut self) -> Result<u64, BuildError> {
        Ok(self.take(1)?.start)
    }
}

/// The tables that map `mapping` and are not among `have`, at frames from `pfn` on:
/// upper levels first.
fn tables_for(mapping: &Mapping, have: &[Table], mut pfn: u64) -> Vec<Table> {
    let mut tables = Vec::new();
    let last = mapping.virt + (mapping.pages * PAGE - 1);
    for level in (0..4).rev() {
        let covers = span(level + 1);
        let mut virt = mapping.virt / covers * covers;
        while virt <= last {
            if !have
                .iter()
                .any(|table| (table.level, table.virt) == (level, virt))
            {
                tables.push(Table { level, virt, pfn });
                pfn += 1;
            }
            virt += covers;
        }
    }
    tables
}

impl PvLayout {
    pub(super) fn new(config: &GuestConfig) -> Result<Self, BuildError> {
        let kernel = &config.kernel;
        let cmdline = config.cmdline.len();
        if cmdline > COMMAND_LINE_MOST || config.cmdline.as_bytes().contains(&0) {
            return Err(BuildError::CommandLine {
                len: cmdline,
                most: COMMAND_LINE_MOST,
            });
        }
        if kernel.requires_auto_translation() {
            return Err(BuildError::AutoTranslated);
        }
        let virt_base = kernel.number(elfnote::VIRT_BASE)?.unwrap_or(0);
        if !virt_base.is_multiple_of(PAGE) {
            return Err(BuildError::BadNote(elfnote::VIRT_BASE));
        }
        let paddr_offset = kernel.number(elfnote::PADDR_OFFSET)?.unwrap_or(0);
        let pages = memory_pages(config);
        let kernel_bytes = kernel_range(config, paddr_offset, pages * PAGE)?;
        let in_kernel = |virt: u64| {
            virt.checked_sub(virt_base)
                .is_some_and(|at| kernel_bytes.contains(&at))
        };
        let entry = kernel.number(elfnote::ENTRY)?.unwrap_or(kernel.entry);
        if !in_kernel(entry) {
            return Err(BuildError::BadNote(elfnote::ENTRY));
        }
        let hypercall_page = match kernel.number(elfnote::HYPERCALL_PAGE)? {
            Some(virt) if in_kernel(virt) && virt.is_multiple_of(PAGE) => {
                Some((virt - virt_base) / PAGE)
            }
            Some(_) => return Err(BuildError::BadNote(elfnote::HYPERCALL_PAGE)),
            None => None,
        };
        // As libxc: an address above the kernel's base, or in the middle of a page,
        // is not taken.
        let p2m_base = kernel
            .number(elfnote::INIT_P2M)?
            .filter(|base| *base < virt_base && base.is_multiple_of(PAGE));
        let ramdisk_unmapped = kernel.number(elfnote::MOD_START_PFN)?.unwrap_or(0) != 0;

        let mut frames = Frames { next: 0, pages };
        let does_not_fit = |needed| BuildError::DoesNotFit {
            needed,
            memory: pages * PAGE,
        };
        let kernel_end = round_up(kernel_bytes.end).ok_or(does_not_fit(u64::MAX))?;
        frames.take(kernel_end / PAGE)?;
        let kernel = kernel_bytes.start / PAGE..kernel_end / PAGE;
        let ramdisk_len = config.ramdisk.map_or(0, |ramdisk| ramdisk.len);
        let ramdisk_pages = ramdisk_len.div_ceil(PAGE);
        let virt = |pfn: u64| virt_base.wrapping_add(pfn * PAGE);
        let mut ramdisk = None;
        if ramdisk_len > 0 && !ramdisk_unmapped {
            let pfns = frames.take(ramdisk_pages)?;
            ramdisk = Some(PvRamdisk {
                mod_start: virt(pfns.start),
                mod_len: ramdisk_len,
                by_frame: false,
                pfns,
            });
        }
        let p2m_pages = (pages * 8).div_ceil(PAGE);
        let mut p2m = 0..0;
        let mut p2m_virt = 0;
        if p2m_base.is_none() {
            p2m = frames.take(p2m_pages)?;
            p2m_virt = virt(p2m.start);
        }
        let start_info = frames.one()?;
        let xenstore = frames.one()?;
        let console = frames.one()?;

        let (first, mut tables) = first_mapping(virt_base, frames.next);
        if first.virt + first.pages * PAGE > VIRT_MASK + 1 {
            // A kernel in the last 2 GiB has no addresses for what is behind it.
            return Err(does_not_fit(first.pages * PAGE));
        }
        let page_tables = frames.take(tables.len() as u64)?;
        let boot_stack = frames.one()?;
        // All that is mapped is there, also behind the boot stack.
        frames.take(first.pages.saturating_sub(frames.next))?;
        let mut mappings = Vec::from([first]);

        if ramdisk_len > 0 && ramdisk_unmapped {
            let pfns = frames.take(ramdisk_pages)?;
            ramdisk = Some(PvRamdisk {
                mod_start: pfns.start,
                mod_len: ramdisk_pages * PAGE,
                by_frame: true,
                pfns,
            });
        }
        if let Some(base) = p2m_base {
            p2m_virt = base;
            let mapping = Mapping {
                virt: base & VIRT_MASK,
                pfn: frames.next,
                pages: p2m_pages,
            };
            frames.take(p2m_pages)?;
            let more = tables_for(&mapping, &tables, frames.next);
            frames.take(more.len() as u64)?;
            p2m = mapping.pfn..frames.next;
            tables.extend(more);
            mappings.push(mapping);
        }
        Ok(Self {
            pages,
            virt_base,
            paddr_offset,
            kernel,
            ramdisk,
            p2m,
            p2m_virt,
            p2m_apart: p2m_base.is_some(),
            start_info,
            xenstore,
            console,
            page_tables,
            boot_stack,
            mappings,
            tables,
            entry,
            hypercall_page,
        })
    }

    /// Virtual address of a frame in the first mapping.
    pub(super) fn virt(&self, pfn: u64) -> u64 {
        self.virt_base.wrapping_add(pfn * PAGE)
    }

    /// The root of the page tables.
    pub(super) fn root(&self) -> u64 {
        self.page_tables.start
    }

    /// The contents of a table, with the machine frames that `mfn` tells.
    pub(super) fn entries(&self, table: &Table, mfn: impl Fn(u64) -> u64) -> Vec<u64> {
        let mut entries = alloc::vec![0; 512];
        if table.level > 0 {
            for child in &self.tables {
                let at = child.virt.wrapping_sub(table.virt) / span(table.level);
                if child.level + 1 == table.level && child.virt >= table.virt && at < 512 {
                    entries[super::memory::usize_of(at)] = mfn(child.pfn) << 12 | INNER;
                }
            }
            return entries;
        }
        for mapping in &self.mappings {
            let end = mapping.virt + mapping.pages * PAGE;
            for (slot, virt) in entries.iter_mut().zip((table.virt..).step_by(PAGE_SIZE)) {
                if (mapping.virt..end).contains(&virt) {
                    let pfn = mapping.pfn + (virt - mapping.virt) / PAGE;
                    // Xen takes no page table that is mapped writable.
                    let flags = if self.is_table(pfn) {
                        LEAF & !WRITABLE
                    } else {
                        LEAF
                    };
                    *slot = mfn(pfn) << 12 | flags;
                }
            }
        }
        entries
    }

    fn is_table(&self, pfn: u64) -> bool {
        // Of the second mapping's tables the frames follow the list.
        let apart = if self.p2m_apart {
            let list = self.mappings.last().map_or(0, |mapping| mapping.pages);
            self.p2m.start + list..self.p2m.end
        } else {
            0..0
        };
        self.page_tables.contains(&pfn) || apart.contains(&pfn)
    }
}

/// The mapping from guest frame 0 on that holds what is below `used`, its own tables,
/// a boot stack and 512 KiB, up to a multiple of 4 MiB; and its tables.
fn first_mapping(virt_base: u64, used: u64) -> (Mapping, Vec<Table>) {
    const EXTRA: u64 = 1 + 512 * 1024 / PAGE;
    const ALIGN: u64 = 4 << 20;
    let virt = virt_base & VIRT_MASK;
    let mut tables = 0;
    loop {
        let end = (virt + (used + EXTRA + tables) * PAGE).next_multiple_of(ALIGN);
        let mapping = Mapping {
            virt,
            pfn: 0,
            pages: (end - virt) / PAGE,
        };
        let list = tables_for(&mapping, &[], used);
        let count = list.len() as u64;
        if virt + (used + EXTRA + count) * PAGE <= end {
            return (mapping, list);
        }
        tables = count;
    }
}

/// Checks the kernel's segments; the range of guest physical bytes they take.
fn kernel_range(
    config: &GuestConfig,
    paddr_offset: u64,
    memory: u64,
) -> Result<Range<u64>, BuildError> {
    let mut range: Option<Range<u64>> = None;
    for segment in &config.kernel.segments {
        let bad = BuildError::BadSegment {
            paddr: segment.paddr,
            mem_size: segment.mem_size,
        };
        let start = segment.paddr.checked_sub(paddr_offset).ok_or(bad)?;
        let end = start.checked_add(segment.mem_size).ok_or(bad)?;
        if segment.file_size > segment.mem_size {
            return Err(bad);
        }
        if end > memory {
            return Err(BuildError::DoesNotFit {
                needed: end,
                memory,
            });
        }
        if segment.mem_size == 0 {
            continue;
        }
        range = Some(match range {
            None => start..end,
            Some(range) if start < range.end => return Err(bad),
            Some(range) => range.start..end,
        });
    }
    range.ok_or(BuildError::BadSegment {
        paddr: 0,
        mem_size: 0,
    })
}

#[cfg(test)]
#[path = "pv_layout_tests.rs"]
mod tests;
