//! PCI functions: what is on the bus, from configuration space alone.
//!
//! Enumeration, BAR decoding and the MSI-X capability (PCI Local Bus 3.0, PCI
//! Express base specification). Everything reads through [`ConfigSpace`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;
use core::fmt;

/// Segment, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// PCI segment group.
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device << 3 | function.
    pub devfn: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment,
            bus,
            devfn,
        } = self;
        write!(
            f,
            "{segment:04x}:{bus:02x}:{:02x}.{}",
            devfn >> 3,
            devfn & 7
        )
    }
}

/// Configuration space of every function. Absent functions read as all ones.
pub trait ConfigSpace {
    /// Loads the aligned 32-bit register at `offset`.
    fn read32(&self, at: Address, offset: u16) -> u32;
    /// Stores the aligned 16-bit register at `offset`: Xen refuses other widths where it
    /// matters (the MSI-X control word).
    fn write16(&self, at: Address, offset: u16, value: u16);
    /// Stores the aligned 32-bit register at `offset`.
    fn write32(&self, at: Address, offset: u16, value: u32);
}

/// Registers of the type 0 header.
const COMMAND: u16 = 0x04;
const CLASS: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0c;
const BAR0: u16 = 0x10;
const SECONDARY_BUS: u16 = 0x18;
const CAPABILITIES: u16 = 0x34;
/// `COMMAND`: memory decode.
const COMMAND_MEMORY: u16 = 0x0002;
/// `COMMAND` bits: memory decode, bus master, INTx off.
const COMMAND_ON: u16 = COMMAND_MEMORY | 0x0004 | 0x0400;
/// Capability ids.
const CAP_MSIX: u8 = 0x11;

/// A function that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it sits.
    pub address: Address,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass, programming interface: 0x010802 is NVMe, 0x020000 Ethernet.
    pub class: u32,
}

/// The MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    /// Offset of the capability.
    pub offset: u16,
    /// Vectors in the table.
    pub vectors: u16,
    /// BAR that holds the table.
    pub table_bar: u8,
}

fn read16(config: &impl ConfigSpace, at: Address, offset: u16) -> u16 {
    let word = config.read32(at, offset & !3);
    let shifted = word >> (8 * u32::from(offset & 2));
    (shifted & 0xffff) as u16
}

/// Every function behind the root buses, bridges followed, in bus order.
pub fn enumerate(
    config: &impl ConfigSpace,
    segment: u16,
    first_bus: u8,
    last_bus: u8,
) -> Vec<Function> {
    let mut found = Vec::new();
    let mut buses = alloc::vec![first_bus];
    let mut seen = [false; 256];
    while let Some(bus) = buses.pop() {
        if core::mem::replace(&mut seen[usize::from(bus)], true) {
            continue;
        }
        for slot in 0..32u8 {
            for function in 0..8u8 {
                let at = Address {
                    segment,
                    bus,
                    devfn: slot << 3 | function,
                };
                let id = config.read32(at, 0);
                if id & 0xffff == 0xffff {
                    if function == 0 {
                        break;
                    }
                    continue;
                }
                let header = (config.read32(at, HEADER_TYPE) >> 16 & 0xff) as u8;
                found.push(Function {
                    address: at,
                    vendor: (id & 0xffff) as u16,
                    device: (id >> 16) as u16,
                    class: config.read32(at, CLASS) >> 8,
                });
                if header & 0x7f == 1 {
                    let secondary = (config.read32(at, SECONDARY_BUS) >> 8 & 0xff) as u8;
                    if secondary > bus && secondary <= last_bus {
                        buses.push(secondary);
                    }
                }
                if function == 0 && header & 0x80 == 0 {
                    break;
                }
            }
        }
    }
    found.sort_by_key(|f| f.address);
    found
}

/// Turns on memory decoding and bus mastering, and INTx off.
pub fn enable(config: &impl ConfigSpace, at: Address) {
    config.write16(at, COMMAND, read16(config, at, COMMAND) | COMMAND_ON);
}

/// Takes bus mastering away: after it the function does no DMA.
pub fn quiesce(config: &impl ConfigSpace, at: Address) {
    config.write16(at, COMMAND, read16(config, at, COMMAND) & !0x0004);
}

/// Physical address of a memory BAR; `None`: I/O ports, absent, or not assigned.
pub fn memory_bar(config: &impl ConfigSpace, at: Address, index: u8) -> Option<u64> {
    if index > 5 {
        return None;
    }
    let offset = BAR0 + 4 * u16::from(index);
    let low = config.read32(at, offset);
    if low & 1 == 1 {
        return None;
    }
    let high = match low >> 1 & 3 {
        2 if index < 5 => config.read32(at, offset + 4),
        2 => return None,
        _ => 0,
    };
    let base = u64::from(high) << 32 | u64::from(low & !0xf);
    (base != 0).then_some(base)
}

/// Bytes that a memory BAR decodes, found the usual way (all ones written, read back and
/// put right again), with decoding off meanwhile: before anything of the function is in use.
pub fn memory_bar_size(config: &impl ConfigSpace, at: Address, index: u8) -> Option<u64> {
    memory_bar(config, at, index)?;
    let command = read16(config, at, COMMAND);
    config.write16(at, COMMAND, command & !COMMAND_MEMORY);
    let probe = |offset| {
        let before = config.read32(at, offset);
        config.write32(at, offset, u32::MAX);
        let mask = config.read32(at, offset);
        config.write32(at, offset, before);
        mask
    };
    let offset = BAR0 + 4 * u16::from(index);
    let wide = config.read32(at, offset) >> 1 & 3 == 2;
    let low = probe(offset) & !0xf;
    let high = if wide { probe(offset + 4) } else { u32::MAX };
    config.write16(at, COMMAND, command);
    let mask = u64::from(high) << 32 | u64::from(low);
    let size = mask.wrapping_neg();
    (low != 0 || high != u32::MAX && high != 0)
        .then_some(size)
        .filter(|s| s.is_power_of_two())
}

/// The function's MSI-X capability, if it has one.
pub fn msix(config: &impl ConfigSpace, at: Address) -> Option<Msix> {
    let mut offset = (config.read32(at, CAPABILITIES) & 0xfc) as u16;
    // A list longer than the space has a loop in it.
    for _ in 0..48 {
        if offset < 0x40 {
            return None;
        }
        let head = config.read32(at, offset);
        if (head & 0xff) as u8 == CAP_MSIX {
            let table = config.read32(at, offset + 4);
            return Some(Msix {
                offset,
                vectors: (head >> 16 & 0x7ff) as u16 + 1,
                table_bar: (table & 7) as u8,
            });
        }
        offset = (head >> 8 & 0xfc) as u16;
    }
    None
}

/// Sets MSI-X Enable and clears Function Mask, by the 2-byte write that Xen lets
/// through (a 4-byte one is dropped without a word).
pub fn enable_msix(config: &impl ConfigSpace, at: Address, capability: Msix) {
    let control = read16(config, at, capability.offset + 2);
    config.write16(at, capability.offset + 2, control & !0x4000 | 0x8000);
}

#[cfg(test)]
mod tests;
