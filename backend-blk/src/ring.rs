//! A block ring in the layout that its frontend uses.

use xen_abi::io::blkif::{Request, Response, x86_32};
use xen_ring::{BackRing, Kick, RingError, SharedPages};

/// Layout of a frontend's ring: its `protocol` node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// `x86_64-abi`, or not said.
    #[default]
    X86_64,
    /// `x86_32-abi`: GRUB's loader for PVH guests.
    X86_32,
}

/// The backend's end of a ring; requests and responses in the native layout.
#[derive(Debug)]
pub(crate) enum Ring {
    X86_64(BackRing<Request, Response>),
    X86_32(BackRing<x86_32::Request, x86_32::Response>),
}

impl Ring {
    pub(crate) fn attach(pages: SharedPages, protocol: Protocol) -> Result<Self, RingError> {
        Ok(match protocol {
            Protocol::X86_64 => Self::X86_64(BackRing::attach(pages)?),
            Protocol::X86_32 => Self::X86_32(BackRing::attach(pages)?),
        })
    }

    pub(crate) fn next_request(&mut self) -> Result<Option<Request>, RingError> {
        match self {
            Self::X86_64(ring) => ring.next_request(),
            Self::X86_32(ring) => Ok(ring.next_request()?.map(Request::from)),
        }
    }

    pub(crate) fn final_check(&mut self) -> Result<bool, RingError> {
        match self {
            Self::X86_64(ring) => ring.final_check(),
            Self::X86_32(ring) => ring.final_check(),
        }
    }

    pub(crate) fn push_response(&mut self, response: Response) {
        match self {
            Self::X86_64(ring) => ring.push_response(&response),
            Self::X86_32(ring) => ring.push_response(&response.into()),
        }
    }

    pub(crate) fn publish(&mut self) -> Kick {
        match self {
            Self::X86_64(ring) => ring.publish(),
            Self::X86_32(ring) => ring.publish(),
        }
    }
}
