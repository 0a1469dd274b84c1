//! What the two ends of a network device say to each other in xenstore.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use xen_abi::{EvtchnPort, GrantRef};

/// Queues that we offer a frontend (`multi-queue-max-queues`).
pub const MAX_QUEUES: u32 = 1;

/// The nodes that the backend writes into its directory before it says InitWait:
/// name and value.
pub type BackendNodes = Vec<(&'static str, &'static str)>;

/// What we can do, for every frontend.
pub fn backend_nodes() -> BackendNodes {
    Vec::from([
        ("feature-sg", "1"),
        ("feature-gso-tcpv4", "1"),
        ("feature-gso-tcpv6", "1"),
        ("feature-ipv6-csum-offload", "1"),
        ("feature-rx-copy", "1"),
        ("feature-rx-flip", "0"),
        ("feature-split-event-channels", "1"),
        ("multi-queue-max-queues", "1"),
    ])
}

/// Why a frontend's nodes are of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodesError {
    /// Not there.
    Missing(&'static str),
    /// Not a number, or not one that can be.
    Malformed(&'static str),
    /// The frontend wants its pages flipped, not copied: nobody does that any more.
    NoReceiveCopy,
    /// More queues than we offered, or none.
    Queues(u32),
}

impl fmt::Display for NodesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(key) => write!(f, "frontend node {key} is missing"),
            Self::Malformed(key) => write!(f, "frontend node {key} is malformed"),
            Self::NoReceiveCopy => write!(f, "frontend does not ask for request-rx-copy"),
            Self::Queues(n) => write!(f, "frontend asks for {n} queues"),
        }
    }
}

impl core::error::Error for NodesError {}

/// The event channels of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueEvents {
    /// `event-channel`: one for both directions.
    Shared(EvtchnPort),
    /// `feature-split-event-channels`.
    Split {
        /// `event-channel-tx`
        tx: EvtchnPort,
        /// `event-channel-rx`
        rx: EvtchnPort,
    },
}

/// One queue: a ring pair and its event channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueNodes {
    /// `tx-ring-ref`
    pub tx_ring: GrantRef,
    /// `rx-ring-ref`
    pub rx_ring: GrantRef,
    /// How it is notified.
    pub events: QueueEvents,
}

/// What the frontend can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "one for each feature node of the protocol"
)]
pub struct FrontendFeatures {
    /// `feature-sg`: frames of more than one slot.
    pub sg: bool,
    /// `feature-gso-tcpv4`
    pub gso_v4: bool,
    /// `feature-gso-tcpv6`
    pub gso_v6: bool,
    /// Not `feature-no-csum-offload`: IPv4 frames with a blank checksum.
    pub checksum_v4: bool,
    /// `feature-ipv6-csum-offload`: IPv6 frames with a blank checksum.
    pub checksum_v6: bool,
    /// `feature-rx-notify`: an event when it posts buffers.
    pub rx_notify: bool,
}

/// What the frontend wrote before it said Connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendNodes {
    /// Its queues; 1 to [`MAX_QUEUES`].
    pub queues: Vec<QueueNodes>,
    /// What it can take.
    pub features: FrontendFeatures,
}

impl FrontendNodes {
    /// Reads and checks the frontend's directory. `read` gives a node's value by its
    /// name in that directory.
    pub fn parse(read: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Self, NodesError> {
        let count = number(&read, "multi-queue-num-queues", "multi-queue-num-queues")?.unwrap_or(1);
        if count == 0 || count > MAX_QUEUES {
            return Err(NodesError::Queues(count));
        }
        let flag = |key: &'static str| Ok(number(&read, key, key)?.unwrap_or(0) != 0);
        if !flag("request-rx-copy")? {
            return Err(NodesError::NoReceiveCopy);
        }
        let sg = flag("feature-sg")?;
        let features = FrontendFeatures {
            sg,
            // A frame of 64 KiB needs many slots.
            gso_v4: flag("feature-gso-tcpv4")? && sg,
            gso_v6: flag("feature-gso-tcpv6")? && sg,
            checksum_v4: !flag("feature-no-csum-offload")?,
            checksum_v6: flag("feature-ipv6-csum-offload")?,
            rx_notify: flag("feature-rx-notify")?,
        };
        let queues = (0..count)
            .map(|n| {
                // One queue's keys stand in the device's own directory.
                let prefix = match count {
                    1 => String::new(),
                    _ => format!("queue-{n}/"),
                };
                queue(&read, &prefix)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { queues, features })
    }
}

fn queue(read: &impl Fn(&str) -> Option<Vec<u8>>, prefix: &str) -> Result<QueueNodes, NodesError> {
    let optional = |key: &'static str| number(read, &format!("{prefix}{key}"), key);
    let required = |key: &'static str| optional(key)?.ok_or(NodesError::Missing(key));
    let events = match optional("event-channel-tx")? {
        Some(tx) => QueueEvents::Split {
            tx: EvtchnPort(tx),
            rx: EvtchnPort(required("event-channel-rx")?),
        },
        None => QueueEvents::Shared(EvtchnPort(required("event-channel")?)),
    };
    Ok(QueueNodes {
        tx_ring: GrantRef(required("tx-ring-ref")?),
        rx_ring: GrantRef(required("rx-ring-ref")?),
        events,
    })
}

/// A decimal number, as frontends write all their nodes. `None`: not there.
fn number(
    read: &impl Fn(&str) -> Option<Vec<u8>>,
    path: &str,
    key: &'static str,
) -> Result<Option<u32>, NodesError> {
    let Some(value) = read(path) else {
        return Ok(None);
    };
    core::str::from_utf8(&value)
        .ok()
        .map(|text| text.trim_end_matches('\0'))
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or(NodesError::Malformed(key))
}
