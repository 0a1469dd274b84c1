//! One frame in the transmit ring: its slots read, checked, and turned into a type that
//! holds only what can be.

use alloc::vec::Vec;
use core::fmt;
use hal::net::IpVersion;
use xen_abi::io::netif::{
    EXTRA_FLAG_MORE, ExtraInfo, NR_SLOTS_MIN, TxSlot, extra_type, gso_type, txf,
};
use xen_abi::{GrantRef, PAGE_SIZE};
use xen_ring::RingError;

/// The shortest frame: an Ethernet header.
const MIN_FRAME: usize = crate::headers::ETHERNET;
/// Slots at which a frontend counts as broken, not just wasteful: two more than the
/// protocol promises, as Linux has it (`fatal_skb_slots`).
const FATAL_SLOTS: usize = NR_SLOTS_MIN + 2;
/// Extra infos that one frame may carry: one of each kind.
const MAX_EXTRAS: usize = 4;

/// What ends a device: its frontend does not follow the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// The ring's index makes no sense.
    Ring(RingError),
    /// A frame's last published slot says that it goes on.
    Truncated,
    /// A frame of too many slots.
    Slots(usize),
    /// More extra infos than there are kinds.
    Extras(usize),
    /// Data that leaves its page.
    CrossesPage {
        /// Where it starts.
        offset: u16,
        /// Its length.
        len: u16,
    },
    /// An extra info of no known kind.
    ExtraType(u8),
    /// Segmentation of no known kind.
    GsoType(u8),
    /// Segments of no byte.
    GsoSize,
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Truncated => write!(f, "a frame was published in part"),
            Self::Slots(n) => write!(f, "a frame of {n} slots or more"),
            Self::Extras(n) => write!(f, "a frame with {n} extra infos"),
            Self::CrossesPage { offset, len } => {
                write!(f, "{len} bytes at {offset} leave their page")
            }
            Self::ExtraType(kind) => write!(f, "extra info of kind {kind}"),
            Self::GsoType(kind) => write!(f, "segmentation of kind {kind}"),
            Self::GsoSize => write!(f, "segments of no byte"),
        }
    }
}

impl core::error::Error for Fatal {}

impl From<RingError> for Fatal {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

/// Why a frame is answered with an error. The device goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// More slots than [`NR_SLOTS_MIN`].
    Slots,
    /// Its parts are longer than the whole.
    Sizes,
    /// Shorter than an Ethernet header.
    Short,
    /// An extra info for a feature that we do not offer.
    Extra,
}

/// Where some bytes of a frame are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The page.
    pub gref: GrantRef,
    /// Where in the page; `offset + len` is at most a page.
    pub offset: u16,
    /// How many; may be 0.
    pub len: u16,
}

/// Segmentation that the guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// TCP over this.
    pub ip: IpVersion,
    /// Payload of each segment; at least 1.
    pub mss: u16,
}

/// A frame that the guest wants to send: good as far as its slots go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The ids of its data slots, for the responses.
    pub ids: Vec<u16>,
    /// Extra info slots, to be answered as well.
    pub extras: usize,
    /// What it consists of, or why it is refused.
    pub content: Result<Content, Reject>,
}

/// The content of an acceptable frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// In order; their lengths add up to `len`.
    pub pieces: Vec<Piece>,
    /// Bytes, from an Ethernet header up to 65535.
    pub len: usize,
    /// `NETTXF_csum_blank`
    pub checksum_blank: bool,
    /// Segmentation.
    pub gso: Option<Gso>,
}

impl Request {
    /// Reads the slots of one frame; `next` gives the ring's next published slot.
    /// `Ok(None)`: the ring is empty. Every slot taken is answered, whatever comes out.
    pub fn take(
        mut next: impl FnMut() -> Result<Option<TxSlot>, RingError>,
    ) -> Result<Option<Self>, Fatal> {
        let Some(first) = next()? else {
            return Ok(None);
        };
        let first = first.request();
        let mut more = || next()?.ok_or(Fatal::Truncated);
        let mut extras = 0;
        let mut gso = None;
        let mut reject = None;
        let mut another = first.flags & txf::EXTRA_INFO != 0;
        while another {
            if extras == MAX_EXTRAS {
                return Err(Fatal::Extras(extras + 1));
            }
            let extra = more()?.extra();
            extras += 1;
            another = extra.flags & EXTRA_FLAG_MORE != 0;
            match extra.kind {
                extra_type::GSO => gso = Some(parse_gso(&extra)?),
                // Not offered: multicast control, hashing.
                extra_type::MCAST_ADD | extra_type::MCAST_DEL | extra_type::HASH => {
                    reject = Some(Reject::Extra);
                }
                kind => return Err(Fatal::ExtraType(kind)),
            }
        }
        let mut ids = Vec::from([first.id]);
        let mut pieces = Vec::from([Piece {
            gref: first.grant(),
            offset: first.offset,
            len: 0,
        }]);
        let mut rest = 0;
        let mut flags = first.flags;
        while flags & txf::MORE_DATA != 0 {
            if ids.len() >= FATAL_SLOTS {
                return Err(Fatal::Slots(ids.len() + 1));
            }
            let slot = more()?.request();
            let piece = Piece {
                gref: slot.grant(),
                offset: slot.offset,
                len: slot.size,
            };
            check_page(piece)?;
            ids.push(slot.id);
            pieces.push(piece);
            rest += usize::from(slot.size);
            flags = slot.flags;
        }
        let len = usize::from(first.size);
        // Only the whole is stated, so the first slot has what the others leave.
        match usize::from(first.size).checked_sub(rest) {
            Some(own) => {
                pieces[0].len = u16::try_from(own).unwrap_or(u16::MAX);
                check_page(pieces[0])?;
            }
            None => reject = Some(Reject::Sizes),
        }
        if ids.len() > NR_SLOTS_MIN {
            reject = Some(Reject::Slots);
        } else if len < MIN_FRAME && reject.is_none() {
            reject = Some(Reject::Short);
        }
        let content = match reject {
            Some(reject) => Err(reject),
            None => Ok(Content {
                pieces,
                len,
                checksum_blank: first.flags & txf::CSUM_BLANK != 0,
                gso,
            }),
        };
        Ok(Some(Self {
            ids,
            extras,
            content,
        }))
    }
}

fn check_page(piece: Piece) -> Result<(), Fatal> {
    if usize::from(piece.offset) + usize::from(piece.len) > PAGE_SIZE {
        return Err(Fatal::CrossesPage {
            offset: piece.offset,
            len: piece.len,
        });
    }
    Ok(())
}

fn parse_gso(extra: &ExtraInfo) -> Result<Gso, Fatal> {
    let ip = match extra.gso_type {
        gso_type::TCPV4 => IpVersion::V4,
        gso_type::TCPV6 => IpVersion::V6,
        kind => return Err(Fatal::GsoType(kind)),
    };
    match extra.gso_size {
        0 => Err(Fatal::GsoSize),
        mss => Ok(Gso { ip, mss }),
    }
}
