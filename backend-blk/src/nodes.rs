//! The xenstore nodes by which a frontend and this backend connect (`io/blkif.h`).

use crate::disk::Geometry;
use crate::protocol::MAX_INDIRECT_SEGMENTS;
use crate::ring::Protocol;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use xen_abi::io::blkif::VDISK_READONLY;
use xen_abi::{EvtchnPort, GrantRef};

/// log2 of the most ring pages we accept: 16 pages hold 512 requests.
pub const MAX_RING_PAGE_ORDER: u32 = 4;

/// What a frontend wrote, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendNodes {
    /// Grants of the ring's pages, in order: 1, 2, 4, 8 or 16 of them.
    pub ring: Vec<GrantRef>,
    /// The frontend's unbound event channel.
    pub event_channel: EvtchnPort,
    /// Layout of the ring.
    pub protocol: Protocol,
}

/// What is wrong with a frontend's nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodesError {
    /// A node that must be there is not.
    Missing(String),
    /// A node that is not a number of 32 bits in decimal.
    NotANumber(String),
    /// More ring pages than we offer.
    RingPageOrder(u32),
    /// A protocol of no x86.
    Protocol,
}

impl fmt::Display for NodesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(node) => write!(f, "frontend has no {node}"),
            Self::NotANumber(node) => write!(f, "frontend's {node} is not a number"),
            Self::RingPageOrder(order) => {
                write!(f, "ring-page-order {order} is above {MAX_RING_PAGE_ORDER}")
            }
            Self::Protocol => f.write_str("its protocol is neither x86_64-abi nor x86_32-abi"),
        }
    }
}

impl core::error::Error for NodesError {}

impl FrontendNodes {
    /// Reads a frontend's nodes; `read` gives the value of one by its name in the
    /// frontend's directory.
    pub fn parse(read: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Self, NodesError> {
        // Absent means "native", which header and Linux take as this machine's own.
        let protocol = match read("protocol").as_deref() {
            None | Some(b"x86_64-abi") => Protocol::X86_64,
            Some(b"x86_32-abi") => Protocol::X86_32,
            Some(_) => return Err(NodesError::Protocol),
        };
        let number = |node: &str| -> Result<Option<u32>, NodesError> {
            let Some(value) = read(node) else {
                return Ok(None);
            };
            let text = core::str::from_utf8(&value).ok();
            // Digits only: `parse` would take a sign.
            let text = text.filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            match text.and_then(|text| text.parse().ok()) {
                Some(number) => Ok(Some(number)),
                None => Err(NodesError::NotANumber(node.to_string())),
            }
        };
        let need = |node: &str| number(node)?.ok_or_else(|| NodesError::Missing(node.to_string()));
        let order = number("ring-page-order")?.unwrap_or(0);
        if order > MAX_RING_PAGE_ORDER {
            return Err(NodesError::RingPageOrder(order));
        }
        let ring = match (order, number("ring-ref")?) {
            // A ring of one page has the old name, in Linux also next to an order of 0.
            (0, Some(gref)) => Vec::from([GrantRef(gref)]),
            (0, None) if read("ring-page-order").is_none() => {
                return Err(NodesError::Missing("ring-ref".to_string()));
            }
            _ => (0..1u32 << order)
                .map(|n| need(&format!("ring-ref{n}")).map(GrantRef))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self {
            ring,
            event_channel: EvtchnPort(need("event-channel")?),
            protocol,
        })
    }
}

/// Nodes that this backend writes into its own directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendNodes {
    /// What it offers: before it enters InitWait.
    pub features: Vec<(&'static str, String)>,
    /// What the disk is: before it enters Connected.
    pub disk: Vec<(&'static str, String)>,
}

/// The nodes for a disk, opened read-only or not.
pub fn backend_nodes(geometry: &Geometry, read_only: bool) -> BackendNodes {
    let flag = |on: bool| u8::from(on).to_string();
    let writable_cache = geometry.volatile_write_cache && !read_only;
    let mut features = Vec::from([
        ("feature-flush-cache", flag(writable_cache)),
        ("feature-barrier", flag(writable_cache)),
        (
            "feature-max-indirect-segments",
            MAX_INDIRECT_SEGMENTS.to_string(),
        ),
        ("max-ring-page-order", MAX_RING_PAGE_ORDER.to_string()),
        // Granted pages are mapped for the device only, so keeping them saves nothing.
        ("feature-persistent", flag(false)),
    ]);
    if geometry.discard && !read_only {
        features.extend([
            ("feature-discard", flag(true)),
            ("discard-granularity", geometry.block_size.to_string()),
            ("discard-alignment", 0.to_string()),
            ("discard-secure", flag(false)),
        ]);
    }
    let info = if read_only { VDISK_READONLY } else { 0 };
    let disk = Vec::from([
        ("sectors", geometry.sectors.to_string()),
        ("sector-size", geometry.block_size.to_string()),
        ("physical-sector-size", geometry.block_size.to_string()),
        ("info", info.to_string()),
        ("mode", if read_only { "r" } else { "w" }.to_string()),
    ]);
    BackendNodes { features, disk }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(nodes: &[(&str, &str)]) -> Result<FrontendNodes, NodesError> {
        FrontendNodes::parse(|name| {
            let found = nodes.iter().find(|(node, _)| *node == name);
            found.map(|(_, value)| value.as_bytes().to_vec())
        })
    }

    #[test]
    fn what_linux_writes_is_understood() {
        let one = parse(&[
            ("ring-ref", "8"),
            ("event-channel", "15"),
            ("protocol", "x86_64-abi"),
            ("feature-persistent", "1"),
        ]);
        let expected = FrontendNodes {
            ring: Vec::from([GrantRef(8)]),
            event_channel: EvtchnPort(15),
            protocol: Protocol::X86_64,
        };
        assert_eq!(one.unwrap(), expected);
        let two = parse(&[
            ("ring-page-order", "1"),
            ("ring-ref0", "8"),
            ("ring-ref1", "11"),
            ("event-channel", "15"),
        ]);
        assert_eq!(two.unwrap().ring, [GrantRef(8), GrantRef(11)]);
        let zero = parse(&[
            ("ring-page-order", "0"),
            ("ring-ref0", "4"),
            ("event-channel", "1"),
        ]);
        assert_eq!(zero.unwrap().ring, [GrantRef(4)]);
        let grub = parse(&[
            ("ring-ref", "1"),
            ("event-channel", "2"),
            ("protocol", "x86_32-abi"),
        ]);
        assert_eq!(grub.unwrap().protocol, Protocol::X86_32);
    }

    #[test]
    fn what_is_missing_or_odd_is_named() {
        let missing = |node: &str| Err(NodesError::Missing(node.to_string()));
        assert_eq!(parse(&[]), missing("ring-ref"));
        assert_eq!(parse(&[("ring-ref", "1")]), missing("event-channel"));
        assert_eq!(
            parse(&[
                ("ring-page-order", "1"),
                ("ring-ref0", "1"),
                ("event-channel", "1")
            ]),
            missing("ring-ref1")
        );
        for bad in ["", "-1", "+1", "4294967296", "0x10", "1 ", "\u{661}"] {
            assert_eq!(
                parse(&[("ring-ref", bad), ("event-channel", "1")]),
                Err(NodesError::NotANumber("ring-ref".to_string()))
            );
        }
        assert_eq!(
            parse(&[("ring-page-order", "5")]),
            Err(NodesError::RingPageOrder(5))
        );
        assert_eq!(parse(&[("protocol", "arm-abi")]), Err(NodesError::Protocol));
    }

    proptest! {
        #[test]
        fn any_values_give_a_bounded_ring_or_a_reason(
            values in proptest::collection::vec(proptest::option::of("[0-9a-z-]{0,12}"), 20)
        ) {
            let names = ["protocol", "ring-page-order", "ring-ref", "event-channel"];
            let refs: Vec<_> = (0..16).map(|n| format!("ring-ref{n}")).collect();
            let all: Vec<_> = names.into_iter().chain(refs.iter().map(String::as_str)).collect();
            let parsed = FrontendNodes::parse(|name| {
                let at = all.iter().position(|node| *node == name)?;
                values[at].clone().map(String::into_bytes)
            });
            if let Ok(nodes) = parsed {
                prop_assert!(nodes.ring.len().is_power_of_two() && nodes.ring.len() <= 16);
            }
        }
    }
}
