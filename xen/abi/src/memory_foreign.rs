//! `memory.h`, the part that only toolstacks use: resources and the memory map of other
//! domains.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XENMEM_acquire_resource`.
pub const XENMEM_ACQUIRE_RESOURCE: u32 = 28;
/// `XENMEM_resource_grant_table`.
pub const XENMEM_RESOURCE_GRANT_TABLE: u16 = 1;
/// `XENMEM_resource_grant_table_id_shared`.
pub const XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED: u32 = 0;
/// `XENMEM_set_memory_map`.
pub const XENMEM_SET_MEMORY_MAP: u32 = 13;

/// `struct xen_mem_acquire_resource`: frames behind a resource of another domain.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct AcquireResource {
    /// Whose.
    pub domid: u16,
    /// `XENMEM_resource_*`.
    pub ty: u16,
    /// Which of that type.
    pub id: u32,
    /// How many frames.
    pub nr_frames: u32,
    /// Unused.
    pub pad: u32,
    /// The first.
    pub frame: u64,
    /// Pointer to room for the machine frame numbers (of a PV caller).
    pub frame_list: u64,
}

/// `struct xen_foreign_memory_map`: the E820 map that a domain gets.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ForeignMemoryMap {
    /// Whose.
    pub domid: u16,
    /// Unused.
    pub pad0: [u8; 6],
    /// Entries.
    pub nr_entries: u32,
    /// Unused.
    pub pad1: u32,
    /// Pointer to them: packed {u64 address, u64 size, u32 type}.
    pub buffer: u64,
}

const _: () = assert!(size_of::<AcquireResource>() == 32);
const _: () = assert!(size_of::<ForeignMemoryMap>() == 24);

abi_check! {
    header "memory.h";
    struct "struct xen_mem_acquire_resource" = AcquireResource { "domid" => domid, "type" => ty, "id" => id, "nr_frames" => nr_frames, "frame" => frame, "frame_list" => frame_list };
    struct "struct xen_foreign_memory_map" = ForeignMemoryMap { "domid" => domid, "map.nr_entries" => nr_entries, "map.buffer" => buffer };
    const "XENMEM_acquire_resource" = XENMEM_ACQUIRE_RESOURCE;
    const "XENMEM_resource_grant_table" = XENMEM_RESOURCE_GRANT_TABLE;
    const "XENMEM_resource_grant_table_id_shared" = XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED;
    const "XENMEM_set_memory_map" = XENMEM_SET_MEMORY_MAP;
}
