//! `arch-x86/hvm/start_info.h`: what a PVH kernel finds at `ebx`.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
pub const MEMMAP_RAM: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RESERVED`.
pub const MEMMAP_RESERVED: u32 = 2;
/// `XEN_HVM_MEMMAP_TYPE_ACPI`.
pub const MEMMAP_ACPI: u32 = 3;

/// `struct hvm_start_info`, version 1.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct HvmStartInfo {
    pub magic: u32,
    pub version: u32,
    pub flags: u32,
    pub nr_modules: u32,
    pub modlist_paddr: u64,
    pub cmdline_paddr: u64,
    pub rsdp_paddr: u64,
    pub memmap_paddr: u64,
    pub memmap_entries: u32,
    pub reserved: u32,
}

/// `struct hvm_modlist_entry`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ModlistEntry {
    pub paddr: u64,
    pub size: u64,
    pub cmdline_paddr: u64,
    pub reserved: u64,
}

/// `struct hvm_memmap_table_entry`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout,
)]
#[repr(C)]
pub struct MemmapEntry {
    pub addr: u64,
    pub size: u64,
    pub kind: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<HvmStartInfo>() == 56);

abi_check! {
    header "arch-x86/hvm/start_info.h";
    struct "struct hvm_start_info" = HvmStartInfo {
        "magic" => magic, "version" => version, "flags" => flags, "nr_modules" => nr_modules, "modlist_paddr" => modlist_paddr,
        "cmdline_paddr" => cmdline_paddr, "rsdp_paddr" => rsdp_paddr, "memmap_paddr" => memmap_paddr, "memmap_entries" => memmap_entries
    };
    struct "struct hvm_modlist_entry" = ModlistEntry { "paddr" => paddr, "size" => size, "cmdline_paddr" => cmdline_paddr };
    struct "struct hvm_memmap_table_entry" = MemmapEntry { "addr" => addr, "size" => size, "type" => kind };
    const "XEN_HVM_START_MAGIC_VALUE" = MAGIC;
    const "XEN_HVM_MEMMAP_TYPE_RAM" = MEMMAP_RAM;
    const "XEN_HVM_MEMMAP_TYPE_RESERVED" = MEMMAP_RESERVED;
    const "XEN_HVM_MEMMAP_TYPE_ACPI" = MEMMAP_ACPI;
}
