//! `grant_table.h`: grant tables.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `GNTTABOP_map_grant_ref`.
pub const GNTTABOP_MAP_GRANT_REF: u32 = 0;
/// `GNTTABOP_unmap_grant_ref`.
pub const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
/// `GNTTABOP_setup_table`.
pub const GNTTABOP_SETUP_TABLE: u32 = 2;
/// `GNTTABOP_copy`.
pub const GNTTABOP_COPY: u32 = 5;
/// `GNTTABOP_query_size`.
pub const GNTTABOP_QUERY_SIZE: u32 = 6;
/// `GNTTABOP_set_version`.
pub const GNTTABOP_SET_VERSION: u32 = 8;
/// `GNTTABOP_get_version`.
pub const GNTTABOP_GET_VERSION: u32 = 10;
/// `GNTMAP_device_map`.
pub const GNTMAP_DEVICE_MAP: u32 = 1;
/// `GNTMAP_host_map`.
pub const GNTMAP_HOST_MAP: u32 = 2;
/// `GNTMAP_readonly`.
pub const GNTMAP_READONLY: u32 = 4;
/// `GNTMAP_contains_pte`.
pub const GNTMAP_CONTAINS_PTE: u32 = 16;
/// `GNTCOPY_source_gref`.
pub const GNTCOPY_SOURCE_GREF: u16 = 1;
/// `GNTCOPY_dest_gref`.
pub const GNTCOPY_DEST_GREF: u16 = 2;
/// `GTF_permit_access`.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// `GTF_readonly`.
pub const GTF_READONLY: u16 = 4;
/// `GTF_reading`.
pub const GTF_READING: u16 = 8;
/// `GTF_writing`.
pub const GTF_WRITING: u16 = 16;
/// `GNTST_okay`.
pub const GNTST_OKAY: i16 = 0;
/// `GNTST_general_error`.
pub const GNTST_GENERAL_ERROR: i16 = -1;
/// `GNTST_bad_domain`.
pub const GNTST_BAD_DOMAIN: i16 = -2;
/// `GNTST_bad_gntref`.
pub const GNTST_BAD_GNTREF: i16 = -3;
/// `GNTST_bad_handle`.
pub const GNTST_BAD_HANDLE: i16 = -4;
/// `GNTST_bad_virt_addr`.
pub const GNTST_BAD_VIRT_ADDR: i16 = -5;
/// `GNTST_bad_dev_addr`.
pub const GNTST_BAD_DEV_ADDR: i16 = -6;
/// `GNTST_no_device_space`.
pub const GNTST_NO_DEVICE_SPACE: i16 = -7;
/// `GNTST_permission_denied`.
pub const GNTST_PERMISSION_DENIED: i16 = -8;
/// `GNTST_bad_page`.
pub const GNTST_BAD_PAGE: i16 = -9;
/// `GNTST_bad_copy_arg`.
pub const GNTST_BAD_COPY_ARG: i16 = -10;
/// `GNTST_address_too_big`.
pub const GNTST_ADDRESS_TOO_BIG: i16 = -11;
/// `GNTST_eagain`.
pub const GNTST_EAGAIN: i16 = -12;
/// `GNTST_no_space`.
pub const GNTST_NO_SPACE: i16 = -13;
/// `GNTTAB_RESERVED_CONSOLE`.
pub const GNTTAB_RESERVED_CONSOLE: u32 = 0;
/// `GNTTAB_RESERVED_XENSTORE`.
pub const GNTTAB_RESERVED_XENSTORE: u32 = 1;

/// `struct gnttab_map_grant_ref`: makes a granted page reachable.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MapGrantRef {
    /// Where to map it.
    pub host_addr: u64,
    /// `GNTMAP_*`.
    pub flags: u32,
    /// The grant.
    pub gref: u32,
    /// Who granted.
    pub dom: u16,
    /// `GNTST_*`, out.
    pub status: i16,
    /// Out.
    pub handle: u32,
    /// Out.
    pub dev_bus_addr: u64,
}

/// `struct gnttab_unmap_grant_ref`: ends a mapping.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct UnmapGrantRef {
    /// 0: no host mapping.
    pub host_addr: u64,
    /// What the map gave; 0: no device mapping.
    pub dev_bus_addr: u64,
    /// What the map gave.
    pub handle: u32,
    /// `GNTST_*`, out.
    pub status: i16,
    /// Unused.
    pub pad: u16,
}

/// `struct gnttab_setup_table`: the frames of a grant table.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SetupTable {
    /// Whose.
    pub dom: u16,
    /// Unused.
    pub pad0: u16,
    /// How many.
    pub nr_frames: u32,
    /// `GNTST_*`, out.
    pub status: i16,
    /// Unused.
    pub pad1: [u8; 6],
    /// Pointer to room for the frame numbers.
    pub frame_list: u64,
}

/// `struct gnttab_copy_ptr`: one end of a copy.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct CopyPtr {
    /// A grant reference, or a frame number.
    pub u: u64,
    /// Who granted, or `DOMID_SELF`.
    pub domid: u16,
    /// In the page.
    pub offset: u16,
    /// Unused.
    pub pad: u32,
}

/// `struct gnttab_copy`: one copy inside a page.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Copy {
    /// From.
    pub source: CopyPtr,
    /// To.
    pub dest: CopyPtr,
    /// Bytes.
    pub len: u16,
    /// `GNTCOPY_*`.
    pub flags: u16,
    /// `GNTST_*`, out.
    pub status: i16,
    /// Unused.
    pub pad: u16,
}

/// `struct gnttab_query_size`: how big a grant table is.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct QuerySize {
    /// Whose.
    pub dom: u16,
    /// Unused.
    pub pad0: u16,
    /// Out.
    pub nr_frames: u32,
    /// Out.
    pub max_nr_frames: u32,
    /// `GNTST_*`, out.
    pub status: i16,
    /// Unused.
    pub pad1: u16,
}

/// `struct gnttab_set_version`: which format to use.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SetVersion {
    /// 1 or 2.
    pub version: u32,
}

/// `struct grant_entry_v1`: one grant.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct EntryV1 {
    /// `GTF_*`.
    pub flags: u16,
    /// To whom.
    pub domid: u16,
    /// Which frame.
    pub frame: u32,
}

const _: () = assert!(size_of::<MapGrantRef>() == 32);
const _: () = assert!(size_of::<UnmapGrantRef>() == 24);
const _: () = assert!(size_of::<SetupTable>() == 24);
const _: () = assert!(size_of::<CopyPtr>() == 16);
const _: () = assert!(size_of::<Copy>() == 40);
const _: () = assert!(size_of::<QuerySize>() == 16);
const _: () = assert!(size_of::<SetVersion>() == 4);
const _: () = assert!(size_of::<EntryV1>() == 8);

abi_check! {
    header "grant_table.h";
    struct "struct gnttab_map_grant_ref" = MapGrantRef { "host_addr" => host_addr, "flags" => flags, "ref" => gref, "dom" => dom, "status" => status, "handle" => handle, "dev_bus_addr" => dev_bus_addr };
    struct "struct gnttab_unmap_grant_ref" = UnmapGrantRef { "host_addr" => host_addr, "dev_bus_addr" => dev_bus_addr, "handle" => handle, "status" => status };
    struct "struct gnttab_setup_table" = SetupTable { "dom" => dom, "nr_frames" => nr_frames, "status" => status, "frame_list" => frame_list };
    struct "struct gnttab_copy_ptr" = CopyPtr { "u" => u, "domid" => domid, "offset" => offset };
    struct "struct gnttab_copy" = Copy { "source" => source, "dest" => dest, "len" => len, "flags" => flags, "status" => status };
    struct "struct gnttab_query_size" = QuerySize { "dom" => dom, "nr_frames" => nr_frames, "max_nr_frames" => max_nr_frames, "status" => status };
    struct "struct gnttab_set_version" = SetVersion { "version" => version };
    struct "struct grant_entry_v1" = EntryV1 { "flags" => flags, "domid" => domid, "frame" => frame };
    const "GNTTABOP_map_grant_ref" = GNTTABOP_MAP_GRANT_REF;
    const "GNTTABOP_unmap_grant_ref" = GNTTABOP_UNMAP_GRANT_REF;
    const "GNTTABOP_setup_table" = GNTTABOP_SETUP_TABLE;
    const "GNTTABOP_copy" = GNTTABOP_COPY;
    const "GNTTABOP_query_size" = GNTTABOP_QUERY_SIZE;
    const "GNTTABOP_set_version" = GNTTABOP_SET_VERSION;
    const "GNTTABOP_get_version" = GNTTABOP_GET_VERSION;
    const "GNTMAP_device_map" = GNTMAP_DEVICE_MAP;
    const "GNTMAP_host_map" = GNTMAP_HOST_MAP;
    const "GNTMAP_readonly" = GNTMAP_READONLY;
    const "GNTMAP_contains_pte" = GNTMAP_CONTAINS_PTE;
    const "GNTCOPY_source_gref" = GNTCOPY_SOURCE_GREF;
    const "GNTCOPY_dest_gref" = GNTCOPY_DEST_GREF;
    const "GTF_permit_access" = GTF_PERMIT_ACCESS;
    const "GTF_readonly" = GTF_READONLY;
    const "GTF_reading" = GTF_READING;
    const "GTF_writing" = GTF_WRITING;
    const "GNTST_okay" = GNTST_OKAY;
    const "GNTST_general_error" = GNTST_GENERAL_ERROR;
    const "GNTST_bad_domain" = GNTST_BAD_DOMAIN;
    const "GNTST_bad_gntref" = GNTST_BAD_GNTREF;
    const "GNTST_bad_handle" = GNTST_BAD_HANDLE;
    const "GNTST_bad_virt_addr" = GNTST_BAD_VIRT_ADDR;
    const "GNTST_bad_dev_addr" = GNTST_BAD_DEV_ADDR;
    const "GNTST_no_device_space" = GNTST_NO_DEVICE_SPACE;
    const "GNTST_permission_denied" = GNTST_PERMISSION_DENIED;
    const "GNTST_bad_page" = GNTST_BAD_PAGE;
    const "GNTST_bad_copy_arg" = GNTST_BAD_COPY_ARG;
    const "GNTST_address_too_big" = GNTST_ADDRESS_TOO_BIG;
    const "GNTST_eagain" = GNTST_EAGAIN;
    const "GNTST_no_space" = GNTST_NO_SPACE;
    const "GNTTAB_RESERVED_CONSOLE" = GNTTAB_RESERVED_CONSOLE;
    const "GNTTAB_RESERVED_XENSTORE" = GNTTAB_RESERVED_XENSTORE;
}
