//! The choice of the management NIC, and what is said when there is none.

use alloc::vec::Vec;
use core::fmt;

use crate::{Nic, PciAddress};

impl fmt::Display for Nic {
    /// As `nic=` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Nic::Index(index) => write!(f, "{index}"),
            Nic::Mac(mac) => Mac(*mac).fmt(f),
            Nic::Pci(address) => address.fmt(f),
        }
    }
}

impl Nic {
    /// Whether this is the NIC with that number and address; a MAC address is known only
    /// once the NIC is started, so that any may be.
    #[must_use]
    pub fn may_be(self, index: usize, address: PciAddress) -> bool {
        match self {
            Nic::Index(wanted) => usize::try_from(wanted) == Ok(index),
            Nic::Pci(wanted) => wanted == address,
            Nic::Mac(_) => true,
        }
    }
}

struct Mac([u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A NIC of the host that has a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it sits.
    pub address: PciAddress,
    /// What became of it.
    pub state: FoundState,
}

/// What became of a NIC when the management NIC was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundState {
    /// It was not the one, and left alone.
    NotTried,
    /// It works, and has this MAC address, which is another.
    Other([u8; 6]),
    /// It does not work; a line of its own has said why.
    Broken,
}

/// Why nobody could manage the host. `Display` gives one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoNic {
    /// What `nic=` says.
    pub wanted: Nic,
    /// What there is, in the order of PCI addresses.
    pub found: Vec<Found>,
}

impl fmt::Display for NoNic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody could manage this host: ")?;
        if self.found.is_empty() {
            return f.write_str("it has no NIC that Closer has a driver for; add one");
        }
        let wanted = self.wanted;
        let broken = |(index, nic): (usize, &Found)| {
            nic.state == FoundState::Broken && wanted.may_be(index, nic.address)
        };
        if !self.found.iter().enumerate().any(broken) {
            write!(f, "nic={wanted} is not there; set nic= to one of: ")?;
        } else if let Nic::Mac(_) = wanted {
            write!(f, "nic={wanted} is not there, or broken; there is: ")?;
        } else {
            write!(f, "nic={wanted} does not work; set nic= to another of: ")?;
        }
        for (index, nic) in self.found.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{index} ({}", nic.address)?;
            match nic.state {
                FoundState::NotTried => f.write_str(")")?,
                FoundState::Other(mac) => write!(f, ", {})", Mac(mac))?,
                FoundState::Broken => f.write_str(", does not work)")?,
            }
        }
        Ok(())
    }
}
