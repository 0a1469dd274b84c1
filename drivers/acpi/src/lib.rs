//! The few firmware tables that the pVM needs, read and checked.
//!
//! ACPI 6.5 names and offsets. Xen interprets ACPI for the host; what is left to
//! us is where memory lies (SRAT), where PCI configuration space is mapped (MCFG)
//! and which sleep type powers the machine off (`_S5_` in the DSDT). There is no
//! AML interpreter: [`sleep_type_s5`] looks for the one name.
//!
//! Firmware is trusted as far as the machine is, but a wrong length must not crash
//! us: everything is bounds-checked, and a table with a bad checksum is left out.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod power;
mod tables;

pub use power::sleep_type_s5;
pub use tables::{Acpi, EcamRange, MemoryRange, PhysicalMemory, ProcessorNode, Table};
