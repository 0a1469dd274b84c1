//! `memory.h`: memory reservations.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XENMEM_increase_reservation`.
pub const XENMEM_INCREASE_RESERVATION: u32 = 0;
/// `XENMEM_decrease_reservation`.
pub const XENMEM_DECREASE_RESERVATION: u32 = 1;
/// `XENMEM_maximum_ram_page`.
pub const XENMEM_MAXIMUM_RAM_PAGE: u32 = 2;
/// `XENMEM_current_reservation`.
pub const XENMEM_CURRENT_RESERVATION: u32 = 3;
/// `XENMEM_maximum_reservation`.
pub const XENMEM_MAXIMUM_RESERVATION: u32 = 4;
/// `XENMEM_populate_physmap`.
pub const XENMEM_POPULATE_PHYSMAP: u32 = 6;
/// `XENMEM_memory_map`.
pub const XENMEM_MEMORY_MAP: u32 = 9;
/// `XENMEM_machine_memory_map`.
pub const XENMEM_MACHINE_MEMORY_MAP: u32 = 10;
/// `XENMEM_set_memory_map`.
pub const XENMEM_SET_MEMORY_MAP: u32 = 13;
/// `XENMEMF_exact_node_request`: fail rather than use another node.
pub const XENMEMF_EXACT_NODE_REQUEST: u32 = 1 << 17;

/// `struct xen_memory_reservation`: a list of extents.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Reservation {
    /// Pointer to the frame list.
    pub extent_start: u64,
    /// Its length.
    pub nr_extents: u64,
    /// log2 of pages in each.
    pub extent_order: u32,
    /// `XENMEMF_*`.
    pub mem_flags: u32,
    /// Whose.
    pub domid: u16,
    /// Unused.
    pub pad: [u8; 6],
}

/// `struct xen_memory_domain`: a domain asked about.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MemoryDomain {
    /// Which.
    pub domid: u16,
}

/// `struct xen_memory_map`: an E820 map.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MemoryMap {
    /// Room, then entries.
    pub nr_entries: u32,
    /// Unused.
    pub pad: u32,
    /// Pointer to the entries.
    pub buffer: u64,
}

const _: () = assert!(size_of::<Reservation>() == 32);
const _: () = assert!(size_of::<MemoryDomain>() == 2);
const _: () = assert!(size_of::<MemoryMap>() == 16);

abi_check! {
    header "memory.h";
    struct "struct xen_memory_reservation" = Reservation { "extent_start" => extent_start, "nr_extents" => nr_extents, "extent_order" => extent_order, "mem_flags" => mem_flags, "domid" => domid };
    struct "struct xen_memory_domain" = MemoryDomain { "domid" => domid };
    struct "struct xen_memory_map" = MemoryMap { "nr_entries" => nr_entries, "buffer" => buffer };
    const "XENMEM_increase_reservation" = XENMEM_INCREASE_RESERVATION;
    const "XENMEM_decrease_reservation" = XENMEM_DECREASE_RESERVATION;
    const "XENMEM_maximum_ram_page" = XENMEM_MAXIMUM_RAM_PAGE;
    const "XENMEM_current_reservation" = XENMEM_CURRENT_RESERVATION;
    const "XENMEM_maximum_reservation" = XENMEM_MAXIMUM_RESERVATION;
    const "XENMEM_populate_physmap" = XENMEM_POPULATE_PHYSMAP;
    const "XENMEM_memory_map" = XENMEM_MEMORY_MAP;
    const "XENMEM_machine_memory_map" = XENMEM_MACHINE_MEMORY_MAP;
    const "XENMEM_set_memory_map" = XENMEM_SET_MEMORY_MAP;
    const "XENMEMF_exact_node_request" = XENMEMF_EXACT_NODE_REQUEST;
}
