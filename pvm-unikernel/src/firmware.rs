//! The firmware's tables, read through temporary mappings.

#![expect(unsafe_code, reason = "reads physical memory through a mapping")]

use driver_acpi::{Acpi, PhysicalMemory};
use xen_abi::PAGE_SIZE;

use crate::mem;

/// Physical memory outside our reservation. Each piece stays mapped: there are a few dozen.
struct Physical;

impl PhysicalMemory for Physical {
    fn read(&self, at: u64, to: &mut [u8]) -> bool {
        let Ok(from) = mem::map_phys_ro(at, to.len()) else {
            return false;
        };
        // SAFETY: the whole range was just mapped, for good; firmware tables do not change
        // any more, and `to` is ours.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
        true
    }
}

/// Reads every table the BIOS left; empty on a machine whose tables are not in the BIOS
/// area (EFI boot is not supported yet).
pub fn load() -> Acpi {
    let acpi = Acpi::scan_bios(&Physical).unwrap_or_default();
    if acpi.tables().is_empty() {
        log::warn!("firmware: no ACPI tables found: one node is assumed, and there is no PCI");
    } else {
        log::debug!("firmware: {:?}", acpi.tables());
    }
    acpi
}

/// Which machine frames belong to which node, for the frame allocator.
///
/// Nodes are numbered as Xen does it: [`Acpi::proximity_domains`].
pub fn node_map(acpi: &Acpi) -> NodeMap {
    let domains = acpi.proximity_domains();
    let ranges = acpi
        .memory_ranges()
        .iter()
        .filter_map(|range| {
            let node = domains.iter().position(|d| *d == range.proximity)?;
            let page = PAGE_SIZE as u64;
            Some((
                range.start / page,
                range.end.div_ceil(page),
                u32::try_from(node).ok()?,
            ))
        })
        .collect();
    NodeMap { ranges }
}

/// Machine frames and their nodes: (first, one past the last, node).
#[derive(Clone, Debug)]
pub struct NodeMap {
    /// The ranges, in the SRAT's order.
    pub ranges: alloc::vec::Vec<(u64, u64, u32)>,
}
