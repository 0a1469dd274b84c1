//! `xen/include/public/io/blkif.h`: the block protocol, native 64-bit layout.
//!
//! All sectors on the ring are of 512 bytes, whatever `sector-size` says.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in every sector that the ring speaks of.
pub const SECTOR_SIZE: usize = 512;
/// Sectors in a granted page.
pub const SECTORS_PER_PAGE: u8 = 8;

/// `BLKIF_OP_READ`.
pub const OP_READ: u8 = 0;
/// `BLKIF_OP_WRITE`.
pub const OP_WRITE: u8 = 1;
/// `BLKIF_OP_WRITE_BARRIER`.
pub const OP_WRITE_BARRIER: u8 = 2;
/// `BLKIF_OP_FLUSH_DISKCACHE`.
pub const OP_FLUSH_DISKCACHE: u8 = 3;
/// `BLKIF_OP_RESERVED_1`.
pub const OP_RESERVED_1: u8 = 4;
/// `BLKIF_OP_DISCARD`.
pub const OP_DISCARD: u8 = 5;
/// `BLKIF_OP_INDIRECT`.
pub const OP_INDIRECT: u8 = 6;

/// `BLKIF_MAX_SEGMENTS_PER_REQUEST`.
pub const MAX_SEGMENTS_PER_REQUEST: usize = 11;
/// `BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`.
pub const MAX_INDIRECT_PAGES_PER_REQUEST: usize = 8;
/// Segments that one granted page of an indirect request holds.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = 4096 / size_of::<Segment>();

/// `BLKIF_DISCARD_SECURE`.
pub const DISCARD_SECURE: u8 = 1;

/// `BLKIF_RSP_EOPNOTSUPP`.
pub const RSP_EOPNOTSUPP: i16 = -2;
/// `BLKIF_RSP_ERROR`.
pub const RSP_ERROR: i16 = -1;
/// `BLKIF_RSP_OKAY`.
pub const RSP_OKAY: i16 = 0;

/// `VDISK_CDROM`, a bit of the `info` node.
pub const VDISK_CDROM: u32 = 1;
/// `VDISK_REMOVABLE`.
pub const VDISK_REMOVABLE: u32 = 2;
/// `VDISK_READONLY`.
pub const VDISK_READONLY: u32 = 4;

/// `struct blkif_request_segment`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Segment {
    /// Grant of the page.
    pub gref: u32,
    /// First sector in the page, inclusive.
    pub first_sect: u8,
    /// Last sector in the page, inclusive.
    pub last_sect: u8,
    /// Padding.
    pub pad: u16,
}

/// `struct blkif_request`: read, write, barrier, flush.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// `OP_*`; says which of the three structures it is.
    pub operation: u8,
    /// Segments used.
    pub nr_segments: u8,
    /// `blkif_vdev_t`.
    pub handle: u16,
    /// Padding.
    pub pad: u32,
    /// Echoed in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector_number: u64,
    /// Where the data is.
    pub seg: [Segment; MAX_SEGMENTS_PER_REQUEST],
}
const _: () = assert!(size_of::<Request>() == 112);

/// `struct blkif_request_discard`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RequestDiscard {
    /// `OP_DISCARD`.
    pub operation: u8,
    /// [`DISCARD_SECURE`] or 0.
    pub flag: u8,
    /// `blkif_vdev_t`.
    pub handle: u16,
    /// Padding.
    pub pad: u32,
    /// Echoed in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector_number: u64,
    /// How many.
    pub nr_sectors: u64,
}
const _: () = assert!(size_of::<RequestDiscard>() == 32);

/// `struct blkif_request_indirect`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RequestIndirect {
    /// `OP_INDIRECT`.
    pub operation: u8,
    /// [`OP_READ`] or [`OP_WRITE`].
    pub indirect_op: u8,
    /// Segments used.
    pub nr_segments: u16,
    /// Padding.
    pub pad: u32,
    /// Echoed in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector_number: u64,
    /// `blkif_vdev_t`.
    pub handle: u16,
    /// Padding.
    pub pad2: u16,
    /// Grants of pages full of [`Segment`]s.
    pub indirect_grefs: [u32; MAX_INDIRECT_PAGES_PER_REQUEST],
    /// Padding.
    pub pad3: u32,
}
const _: () = assert!(size_of::<RequestIndirect>() == 64);

/// `struct blkif_response`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Response {
    /// Copied from the request.
    pub id: u64,
    /// Copied from the request.
    pub operation: u8,
    /// Padding.
    pub pad: u8,
    /// `RSP_*`.
    pub status: i16,
    /// Padding.
    pub pad2: u32,
}
const _: () = assert!(size_of::<Response>() == 16);

/// The layout of 32-bit x86 frontends (node `protocol` = `x86_32-abi`), where a `u64` is
/// aligned to 4 bytes: the native one without the padding before `id` and after `status`.
pub mod x86_32 {
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

    /// A request of any kind.
    #[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
    #[repr(C)]
    pub struct Request([u8; 108]);

    /// `struct blkif_response`.
    #[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
    #[repr(C)]
    pub struct Response([u8; 12]);

    impl From<Request> for super::Request {
        fn from(Request(from): Request) -> Self {
            let mut native = [0; size_of::<Self>()];
            native[..4].copy_from_slice(&from[..4]);
            native[8..].copy_from_slice(&from[4..]);
            transmute!(native)
        }
    }

    impl From<super::Request> for Request {
        fn from(native: super::Request) -> Self {
            let native: [u8; size_of::<super::Request>()] = transmute!(native);
            let mut to = [0; size_of::<Self>()];
            to[..4].copy_from_slice(&native[..4]);
            to[4..].copy_from_slice(&native[8..]);
            Self(to)
        }
    }

    impl From<super::Response> for Response {
        fn from(native: super::Response) -> Self {
            let native: [u8; size_of::<super::Response>()] = transmute!(native);
            let mut to = [0; size_of::<Self>()];
            to.copy_from_slice(&native[..size_of::<Self>()]);
            Self(to)
        }
    }

    impl From<Response> for super::Response {
        fn from(Response(from): Response) -> Self {
            let mut native = [0; size_of::<Self>()];
            native[..from.len()].copy_from_slice(&from);
            transmute!(native)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::super::{OP_DISCARD, OP_INDIRECT, RequestDiscard, RequestIndirect};
        use super::*;

        /// Offsets are those that a 32-bit compiler gives the header's structures.
        #[test]
        fn fields_are_where_a_32_bit_frontend_has_them() {
            let mut raw = [0; 108];
            raw[0] = OP_DISCARD;
            raw[4..12].copy_from_slice(&7u64.to_le_bytes());
            raw[12..20].copy_from_slice(&8u64.to_le_bytes());
            raw[20..28].copy_from_slice(&9u64.to_le_bytes());
            let native = super::super::Request::from(Request(raw));
            let (discard, _) = RequestDiscard::read_from_prefix(native.as_bytes()).unwrap();
            assert_eq!(
                (discard.id, discard.sector_number, discard.nr_sectors),
                (7, 8, 9)
            );
            raw[0] = OP_INDIRECT;
            raw[24..28].copy_from_slice(&10u32.to_le_bytes());
            let native = super::super::Request::from(Request(raw));
            let (indirect, _) = RequestIndirect::read_from_prefix(native.as_bytes()).unwrap();
            assert_eq!((indirect.id, indirect.indirect_grefs[0]), (7, 10));
            raw[20..24].copy_from_slice(&11u32.to_le_bytes());
            raw[24] = 1;
            raw[25] = 2;
            let native = super::super::Request::from(Request(raw));
            let first = native.seg[0];
            assert_eq!((first.gref, first.first_sect, first.last_sect), (11, 1, 2));
            assert_eq!(Request::from(native).0, raw);

            let Response(raw) = Response::from(super::super::Response {
                id: 3,
                operation: 4,
                status: -1,
                ..Default::default()
            });
            assert_eq!(raw, [3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0xff, 0xff]);
        }
    }
}

crate::abi_check! {
    header "io/blkif.h";
    struct "struct blkif_request_segment" = Segment {
        "gref" => gref, "first_sect" => first_sect, "last_sect" => last_sect,
    };
    struct "struct blkif_request" = Request {
        "operation" => operation, "nr_segments" => nr_segments, "handle" => handle,
        "id" => id, "sector_number" => sector_number, "seg" => seg,
    };
    struct "struct blkif_request_discard" = RequestDiscard {
        "operation" => operation, "flag" => flag, "handle" => handle, "id" => id,
        "sector_number" => sector_number, "nr_sectors" => nr_sectors,
    };
    struct "struct blkif_request_indirect" = RequestIndirect {
        "operation" => operation, "indirect_op" => indirect_op, "nr_segments" => nr_segments,
        "id" => id, "sector_number" => sector_number, "handle" => handle,
        "indirect_grefs" => indirect_grefs,
    };
    struct "struct blkif_response" = Response {
        "id" => id, "operation" => operation, "status" => status,
    };
    const "BLKIF_OP_READ" = OP_READ;
    const "BLKIF_OP_WRITE" = OP_WRITE;
    const "BLKIF_OP_WRITE_BARRIER" = OP_WRITE_BARRIER;
    const "BLKIF_OP_FLUSH_DISKCACHE" = OP_FLUSH_DISKCACHE;
    const "BLKIF_OP_RESERVED_1" = OP_RESERVED_1;
    const "BLKIF_OP_DISCARD" = OP_DISCARD;
    const "BLKIF_OP_INDIRECT" = OP_INDIRECT;
    const "BLKIF_MAX_SEGMENTS_PER_REQUEST" = MAX_SEGMENTS_PER_REQUEST;
    const "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST" = MAX_INDIRECT_PAGES_PER_REQUEST;
    const "BLKIF_DISCARD_SECURE" = DISCARD_SECURE;
    const "BLKIF_RSP_EOPNOTSUPP" = RSP_EOPNOTSUPP;
    const "BLKIF_RSP_ERROR" = RSP_ERROR;
    const "BLKIF_RSP_OKAY" = RSP_OKAY;
    const "VDISK_CDROM" = VDISK_CDROM;
    const "VDISK_REMOVABLE" = VDISK_REMOVABLE;
    const "VDISK_READONLY" = VDISK_READONLY;
}
