//! Where everything lies in a PVH guest's physical memory.
//!
//! As stock libxl has it, so that stock kernels find nothing new: RAM from 0 without a
//! hole for VGA, its low part ending at 0xfc000000 and the rest from 4 GiB; ACPI tables
//! at 0xfc000000; eight special pages below 0xff000000; kernel, ramdisk and start info
//! one after the other.

use super::acpi::{self, RSDP_LEN, Tables};
use super::memory::round_up;
use super::{BuildError, PAGE, memory_pages};
use crate::config::GuestConfig;
use alloc::vec::Vec;
use core::ops::Range;
use xen_abi::elfnote;
use xen_abi::hvm::start_info::{
    HvmStartInfo, MAGIC, MEMMAP_ACPI, MEMMAP_RAM, MEMMAP_RESERVED, MemmapEntry, ModlistEntry,
};
use zerocopy::IntoBytes;

const GIB_4: u64 = 1 << 32;
/// End of low RAM; the ACPI info page, then the tables.
const LOW_END: u64 = 0xfc00_0000;
/// `X86_HVM_END_SPECIAL_REGION` and `X86_HVM_NR_SPECIAL_PAGES` of xenguest.h.
const SPECIAL_END: u64 = 0xff000;
const SPECIAL_PAGES: u64 = 8;
/// `COMMAND_LINE_SIZE` of Linux, without the final zero.
const COMMAND_LINE_MOST: usize = 2047;

/// The special pages, by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    Paging = 0,
    Access = 1,
    Sharing = 2,
    BufferedIoreq = 3,
    Xenstore = 4,
    Ioreq = 5,
    IdentityPt = 6,
    Console = 7,
}

impl Special {
    /// Its guest frame.
    pub(super) fn frame(self) -> u64 {
        SPECIAL_END - SPECIAL_PAGES + self as u64
    }
}

/// The special pages' frames.
pub(super) fn special_frames() -> Range<u64> {
    SPECIAL_END - SPECIAL_PAGES..SPECIAL_END
}

/// A PVH guest's physical memory; addresses in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PvhLayout {
    /// RAM, in frames: low, and high if there is one.
    pub ram: Vec<Range<u64>>,
    /// From the first to the last byte of the kernel's segments.
    pub kernel: Range<u64>,
    /// The ramdisk's pages.
    pub ramdisk: Option<Range<u64>>,
    /// `hvm_start_info` and what it points at.
    pub start_info: Range<u64>,
    /// The ACPI info page, the tables, and the RSDP if it is not in low memory.
    pub acpi: Range<u64>,
    /// The RSDP.
    pub rsdp: u64,
    /// Memory map, in order.
    pub memmap: Vec<MemmapEntry>,
    /// Where the first vCPU starts, in 32-bit mode.
    pub entry: u64,
    pub(super) tables: Tables,
    /// The bytes of `start_info`.
    pub(super) start_info_bytes: Vec<u8>,
}

impl PvhLayout {
    /// Lays `config` out.
    ///
    /// # Errors
    /// If the kernel is not a PVH kernel, or does not fit.
    pub fn new(config: &GuestConfig) -> Result<Self, BuildError> {
        let memory = memory_pages(config) * PAGE;
        let low_end = memory.min(LOW_END);
        let mut ram = Vec::new();
        ram.push(0..low_end / PAGE);
        if memory > LOW_END {
            ram.push(GIB_4 / PAGE..(GIB_4 + memory - LOW_END) / PAGE);
        }
        let entry = config
            .kernel
            .number(elfnote::PHYS32_ENTRY)?
            .ok_or(BuildError::NoteMissing(elfnote::PHYS32_ENTRY))?;
        let kernel = kernel_range(config, low_end)?;
        if !kernel.contains(&entry) {
            return Err(BuildError::BadNote(elfnote::PHYS32_ENTRY));
        }

        // Everything that follows is checked against `low_end` at the end, where the
        // sum of what was asked for is known.
        let overflow = BuildError::DoesNotFit {
            needed: u64::MAX,
            memory,
        };
        let mut next = round_up(kernel.end).ok_or(overflow)?;
        let mut take = |len: u64| {
            let start = next;
            next = round_up(start.checked_add(len).ok_or(overflow)?).ok_or(overflow)?;
            Ok::<_, BuildError>(start..start + len)
        };
        let ramdisk = match config.ramdisk {
            Some(ramdisk) if ramdisk.len > 0 => Some(take(ramdisk.len)?),
            _ => None,
        };

        let rsdp_anywhere = config.kernel.rsdp_anywhere()?;
        let count = |vcpus| u8::try_from(vcpus).unwrap_or(u8::MAX).min(127);
        let tables = acpi::tables(
            u32::try_from(LOW_END + PAGE).unwrap_or(u32::MAX),
            count(config.max_vcpus),
            count(config.vcpus),
        );
        let tables_end = round_up(LOW_END + PAGE + tables.bytes.len() as u64).ok_or(overflow)?;
        let (rsdp, acpi_end) = if rsdp_anywhere {
            (tables_end, tables_end + PAGE)
        } else {
            // The last paragraph-aligned 64 bytes of the first MiB, where a BIOS has it.
            ((1 << 20) - 64, tables_end)
        };
        let acpi = LOW_END..acpi_end;
        let memmap = memmap(&ram, &acpi, (!rsdp_anywhere).then_some(rsdp));

        let len = start_info_len(config, &memmap)?;
        let start_info = take(len)?;
        if next > low_end {
            return Err(BuildError::DoesNotFit {
                needed: next,
                memory: low_end,
            });
        }
        let start_info_bytes =
            start_info_bytes(config, start_info.start, ramdisk.as_ref(), rsdp, &memmap);
        Ok(Self {
            ram,
            kernel,
            ramdisk,
            start_info,
            acpi,
            rsdp,
            memmap,
            entry,
            tables,
            start_info_bytes,
        })
    }

    /// The RSDP's bytes.
    pub(super) fn rsdp_bytes(&self) -> &[u8; RSDP_LEN] {
        &self.tables.rsdp
    }
}

/// Checks the kernel's segments against low memory and each other.
fn kernel_range(config: &GuestConfig, low_end: u64) -> Result<Range<u64>, BuildError> {
    let mut range: Option<Range<u64>> = None;
    for segment in &config.kernel.segments {
        let bad = BuildError::BadSegment {
            paddr: segment.paddr,
            mem_size: segment.mem_size,
        };
        let end = segment.paddr.checked_add(segment.mem_size).ok_or(bad)?;
        if segment.file_size > segment.mem_size {
            return Err(bad);
        }
        if end > low_end {
            return Err(BuildError::DoesNotFit {
                needed: end,
                memory: low_end,
            });
        }
        if segment.mem_size == 0 {
            continue;
        }
        range = Some(match range {
            None => segment.paddr..end,
            Some(range) => {
                // In the order of their addresses, hence apart.
                if segment.paddr < range.end {
                    return Err(bad);
                }
                range.start..end
            }
        });
    }
    range.ok_or(BuildError::BadSegment {
        paddr: 0,
        mem_size: 0,
    })
}

/// RAM around the RSDP's page (if it is in low memory), ACPI, special pages, high RAM.
fn memmap(ram: &[Range<u64>], acpi: &Range<u64>, low_rsdp: Option<u64>) -> Vec<MemmapEntry> {
    let mut map = Vec::new();
    let mut add = |range: Range<u64>, kind| {
        if !range.is_empty() {
            map.push(MemmapEntry {
                addr: range.start,
                size: range.end - range.start,
                kind,
                reserved: 0,
            });
        }
    };
    let low = ram[0].start * PAGE..ram[0].end * PAGE;
    match low_rsdp {
        Some(rsdp) => {
            let page = rsdp / PAGE * PAGE;
            add(low.start..page, MEMMAP_RAM);
            add(page..page + PAGE, MEMMAP_ACPI);
            add(page + PAGE..low.end, MEMMAP_RAM);
        }
        None => add(low, MEMMAP_RAM),
    }
    add(acpi.clone(), MEMMAP_ACPI);
    let special = special_frames();
    add(special.start * PAGE..special.end * PAGE, MEMMAP_RESERVED);
    for high in &ram[1..] {
        add(high.start * PAGE..high.end * PAGE, MEMMAP_RAM);
    }
    map
}

/// Bytes of the command line with its final zero, rounded up to a word.
fn command_line_len(config: &GuestConfig) -> usize {
    (config.cmdline.len() + 1).next_multiple_of(8)
}

fn start_info_len(config: &GuestConfig, memmap: &[MemmapEntry]) -> Result<u64, BuildError> {
    let len = config.cmdline.len();
    if len > COMMAND_LINE_MOST || config.cmdline.as_bytes().contains(&0) {
        return Err(BuildError::CommandLine {
            len,
            most: COMMAND_LINE_MOST,
        });
    }
    Ok((size_of::<HvmStartInfo>()
        + command_line_len(config)
        + size_of::<ModlistEntry>()
        + size_of_val(memmap)) as u64)
}

/// The structure, the command line, the module list and the memory map, in this order.
fn start_info_bytes(
    config: &GuestConfig,
    at: u64,
    ramdisk: Option<&Range<u64>>,
    rsdp: u64,
    memmap: &[MemmapEntry],
) -> Vec<u8> {
    let cmdline = at + size_of::<HvmStartInfo>() as u64;
    let modlist = cmdline + command_line_len(config) as u64;
    let map = modlist + size_of::<ModlistEntry>() as u64;
    let info = HvmStartInfo {
        magic: MAGIC,
        version: 1,
        flags: 0,
        nr_modules: u32::from(ramdisk.is_some()),
        modlist_paddr: if ramdisk.is_some() { modlist } else { 0 },
        cmdline_paddr: cmdline,
        rsdp_paddr: rsdp,
        memmap_paddr: map,
        memmap_entries: u32::try_from(memmap.len()).unwrap_or(0),
        reserved: 0,
    };
    let module = ramdisk.map_or(ModlistEntry::default(), |range| ModlistEntry {
        paddr: range.start,
        size: range.end - range.start,
        ..Default::default()
    });
    let mut bytes = Vec::from(info.as_bytes());
    bytes.extend_from_slice(config.cmdline.as_bytes());
    bytes.resize(size_of::<HvmStartInfo>() + command_line_len(config), 0);
    bytes.extend_from_slice(module.as_bytes());
    bytes.extend_from_slice(memmap.as_bytes());
    bytes
}
