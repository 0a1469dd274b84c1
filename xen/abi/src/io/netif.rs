//! `xen/include/public/io/netif.h`: network frames between a guest and its backend.

use crate::GrantRef;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XEN_NETIF_NR_SLOTS_MIN`: slots that a backend must accept for one frame.
pub const NR_SLOTS_MIN: usize = 18;
/// `XEN_NETIF_MAX_TX_SIZE`: the longest frame.
pub const MAX_TX_SIZE: usize = 0xffff;

/// `NETTXF_*`: flags of a [`TxRequest`].
pub mod txf {
    /// The checksum field holds the pseudo header's sum only.
    pub const CSUM_BLANK: u16 = 1;
    /// The checksum was found right.
    pub const DATA_VALIDATED: u16 = 2;
    /// The frame goes on in the next slot.
    pub const MORE_DATA: u16 = 4;
    /// An [`super::ExtraInfo`] follows.
    pub const EXTRA_INFO: u16 = 8;
}

/// `NETRXF_*`: flags of an [`RxResponse`].
pub mod rxf {
    /// The checksum was found right.
    pub const DATA_VALIDATED: u16 = 1;
    /// The checksum field holds the pseudo header's sum only.
    pub const CSUM_BLANK: u16 = 2;
    /// The frame goes on in the next slot.
    pub const MORE_DATA: u16 = 4;
    /// An [`super::ExtraInfo`] follows.
    pub const EXTRA_INFO: u16 = 8;
}

/// `NETIF_RSP_*`: how a slot ended.
pub mod rsp {
    /// Dropped.
    pub const DROPPED: i16 = -2;
    /// Refused.
    pub const ERROR: i16 = -1;
    /// Done.
    pub const OKAY: i16 = 0;
    /// Answers an extra info slot.
    pub const NULL: i16 = 1;
}

/// `XEN_NETIF_EXTRA_TYPE_*`.
pub mod extra_type {
    /// Segmentation.
    pub const GSO: u8 = 1;
    /// Adds a multicast address to the guest's filter.
    pub const MCAST_ADD: u8 = 2;
    /// Takes one out.
    pub const MCAST_DEL: u8 = 3;
    /// A receive hash.
    pub const HASH: u8 = 4;
}

/// `XEN_NETIF_EXTRA_FLAG_MORE`: another [`ExtraInfo`] follows.
pub const EXTRA_FLAG_MORE: u8 = 1;

/// `XEN_NETIF_GSO_TYPE_*`.
pub mod gso_type {
    /// TCP over IPv4.
    pub const TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const TCPV6: u8 = 2;
}

/// `struct netif_tx_request`
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct TxRequest {
    /// `grant_ref_t`: the page.
    pub gref: u32,
    /// Where in the page.
    pub offset: u16,
    /// [`txf`].
    pub flags: u16,
    /// Comes back in the response.
    pub id: u16,
    /// Bytes: of the whole frame in its first slot, of the slot in the others.
    pub size: u16,
}

impl TxRequest {
    /// The grant as a type.
    pub const fn grant(&self) -> GrantRef {
        GrantRef(self.gref)
    }
}

/// `struct netif_tx_response`
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct TxResponse {
    /// Of the request.
    pub id: u16,
    /// [`rsp`].
    pub status: i16,
}

/// `struct netif_rx_request`
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RxRequest {
    /// Comes back in the response; equals the ring slot.
    pub id: u16,
    /// Unused.
    pub pad: u16,
    /// `grant_ref_t`: a whole page to be filled.
    pub gref: u32,
}

/// `struct netif_rx_response`
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RxResponse {
    /// Of the request.
    pub id: u16,
    /// Where in the page the bytes start.
    pub offset: u16,
    /// [`rxf`].
    pub flags: u16,
    /// Bytes in this slot, or one of [`rsp`] below 0.
    pub status: i16,
}

/// `struct netif_extra_info` with `u.gso`; stands in a slot of either ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ExtraInfo {
    /// [`extra_type`].
    pub kind: u8,
    /// [`EXTRA_FLAG_MORE`].
    pub flags: u8,
    /// `u.gso.size`: payload of each segment.
    pub gso_size: u16,
    /// `u.gso.type`: [`gso_type`].
    pub gso_type: u8,
    /// `u.gso.pad`.
    pub gso_pad: u8,
    /// `u.gso.features`: none is defined.
    pub gso_features: u16,
}

impl ExtraInfo {
    /// `u.mcast.addr`: the same bytes as an Ethernet address.
    pub const fn mcast_addr(&self) -> [u8; 6] {
        let size = self.gso_size.to_le_bytes();
        let features = self.gso_features.to_le_bytes();
        [
            size[0],
            size[1],
            self.gso_type,
            self.gso_pad,
            features[0],
            features[1],
        ]
    }
}

/// A slot of the transmit ring as bytes: request or extra info, which only the slot
/// before it tells.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct TxSlot {
    words: [u32; 3],
}

impl TxSlot {
    /// Read as a request.
    pub fn request(&self) -> TxRequest {
        zerocopy::transmute!(*self)
    }

    /// Read as extra info, which takes the first 8 of the 12 bytes.
    pub fn extra(&self) -> ExtraInfo {
        zerocopy::transmute!([self.words[0], self.words[1]])
    }

    /// A slot that holds extra info.
    pub fn from_extra(extra: ExtraInfo) -> Self {
        let [a, b]: [u32; 2] = zerocopy::transmute!(extra);
        Self { words: [a, b, 0] }
    }
}

impl From<TxRequest> for TxSlot {
    fn from(request: TxRequest) -> Self {
        zerocopy::transmute!(request)
    }
}

/// What we put into a slot of the receive ring: response or extra info.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RxSlot {
    words: [u32; 2],
}

impl RxSlot {
    /// Read as a response.
    pub fn response(&self) -> RxResponse {
        zerocopy::transmute!(*self)
    }

    /// Read as extra info.
    pub fn extra(&self) -> ExtraInfo {
        zerocopy::transmute!(*self)
    }
}

impl From<RxResponse> for RxSlot {
    fn from(response: RxResponse) -> Self {
        zerocopy::transmute!(response)
    }
}

impl From<ExtraInfo> for RxSlot {
    fn from(extra: ExtraInfo) -> Self {
        zerocopy::transmute!(extra)
    }
}

const _: () = assert!(size_of::<TxSlot>() == 12 && size_of::<TxRequest>() == 12);
const _: () = assert!(size_of::<TxResponse>() == 4);
const _: () = assert!(size_of::<RxSlot>() == 8 && size_of::<RxRequest>() == 8);
const _: () = assert!(size_of::<RxResponse>() == 8 && size_of::<ExtraInfo>() == 8);

crate::abi_check! {
    header "io/netif.h";
    struct "struct netif_tx_request" = TxRequest {
        "gref" => gref, "offset" => offset, "flags" => flags, "id" => id, "size" => size,
    };
    struct "struct netif_tx_response" = TxResponse { "id" => id, "status" => status };
    struct "struct netif_rx_request" = RxRequest { "id" => id, "gref" => gref };
    struct "struct netif_rx_response" = RxResponse {
        "id" => id, "offset" => offset, "flags" => flags, "status" => status,
    };
    struct "struct netif_extra_info" = ExtraInfo {
        "type" => kind, "flags" => flags, "u.gso.size" => gso_size,
        "u.gso.type" => gso_type, "u.gso.features" => gso_features,
    };
    const "XEN_NETIF_NR_SLOTS_MIN" = NR_SLOTS_MIN;
    const "XEN_NETIF_MAX_TX_SIZE" = MAX_TX_SIZE;
    const "NETTXF_csum_blank" = txf::CSUM_BLANK;
    const "NETTXF_data_validated" = txf::DATA_VALIDATED;
    const "NETTXF_more_data" = txf::MORE_DATA;
    const "NETTXF_extra_info" = txf::EXTRA_INFO;
    const "NETRXF_data_validated" = rxf::DATA_VALIDATED;
    const "NETRXF_csum_blank" = rxf::CSUM_BLANK;
    const "NETRXF_more_data" = rxf::MORE_DATA;
    const "NETRXF_extra_info" = rxf::EXTRA_INFO;
    const "NETIF_RSP_DROPPED" = rsp::DROPPED;
    const "NETIF_RSP_ERROR" = rsp::ERROR;
    const "NETIF_RSP_OKAY" = rsp::OKAY;
    const "NETIF_RSP_NULL" = rsp::NULL;
    const "XEN_NETIF_EXTRA_TYPE_GSO" = extra_type::GSO;
    const "XEN_NETIF_EXTRA_TYPE_MCAST_ADD" = extra_type::MCAST_ADD;
    const "XEN_NETIF_EXTRA_TYPE_MCAST_DEL" = extra_type::MCAST_DEL;
    const "XEN_NETIF_EXTRA_TYPE_HASH" = extra_type::HASH;
    const "XEN_NETIF_EXTRA_FLAG_MORE" = EXTRA_FLAG_MORE;
    const "XEN_NETIF_GSO_TYPE_TCPV4" = gso_type::TCPV4;
    const "XEN_NETIF_GSO_TYPE_TCPV6" = gso_type::TCPV6;
}
