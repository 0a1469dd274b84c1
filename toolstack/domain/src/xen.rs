//! Xen's unstable interfaces behind one safe face.
//!
//! [`Xen`] fills in the numbers and the layouts that the running Xen wants (chosen by
//! `XENVER_version`: 0x17 alone stands for three versions), and turns its answers into
//! types. 4.17 and 4.20 are checked against their headers; 4.18, 4.19, 4.21 and 4.22
//! were compared with them by eye.

mod domains;
mod host;

pub use domains::NewDomain;
pub use host::{Cpu, HostFacts, Node};

use crate::hypercalls::{Buffer, Hypercalls};
use core::fmt;
use xen_abi::DomId;
use xen_abi::domctl::Domctl;
use xen_abi::errno::Errno;
use xen_abi::sysctl::Sysctl;
use xen_abi::{domctl, sysctl};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// A hypercall that Xen refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallError {
    /// Its name in Xen's headers.
    pub call: &'static str,
    /// Why.
    pub errno: Errno,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.errno)
    }
}

impl core::error::Error for CallError {}

/// The running Xen is none that we know the interface of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsupportedXen {
    /// 4
    pub major: u32,
    /// 20
    pub minor: u32,
}

impl fmt::Display for UnsupportedXen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Xen {}.{} is not supported: 4.17 to 4.22 are",
            self.major, self.minor
        )
    }
}

impl core::error::Error for UnsupportedXen {}

/// Which of the layouts in [`xen_abi::domctl`] the running Xen uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CreateLayout {
    V4_17,
    V4_19,
}

/// Numbers and layouts of one Xen version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) domctl: u32,
    pub(crate) sysctl: u32,
    pub(crate) create: CreateLayout,
}

impl Interface {
    fn of(version: u32) -> Result<Self, UnsupportedXen> {
        let (major, minor) = (version >> 16, version & 0xffff);
        let (domctl, sysctl, create) = match (major, minor) {
            (4, 17) => (
                domctl::v4_17::INTERFACE_VERSION,
                sysctl::INTERFACE_VERSION,
                CreateLayout::V4_17,
            ),
            (4, 18) => (
                domctl::v4_17::INTERFACE_VERSION_4_18,
                sysctl::INTERFACE_VERSION,
                CreateLayout::V4_17,
            ),
            (4, 19 | 20) => (
                domctl::v4_19::INTERFACE_VERSION,
                sysctl::INTERFACE_VERSION,
                CreateLayout::V4_19,
            ),
            (4, 21) => (
                domctl::v4_19::INTERFACE_VERSION,
                sysctl::INTERFACE_VERSION_4_21,
                CreateLayout::V4_19,
            ),
            (4, 22) => (
                domctl::v4_19::INTERFACE_VERSION_4_22,
                sysctl::INTERFACE_VERSION_4_21,
                CreateLayout::V4_19,
            ),
            _ => return Err(UnsupportedXen { major, minor }),
        };
        Ok(Self {
            domctl,
            sysctl,
            create,
        })
    }
}

/// The running Xen.
#[derive(Debug)]
pub struct Xen<'a, H> {
    calls: &'a H,
    interface: Interface,
}

impl<H> Clone for Xen<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H> Copy for Xen<'_, H> {}

impl<'a, H: Hypercalls> Xen<'a, H> {
    /// Finds out which Xen this is.
    ///
    /// # Errors
    /// If it is a version with an unknown interface.
    pub fn new(calls: &'a H) -> Result<Self, UnsupportedXen> {
        Ok(Self {
            calls,
            interface: Interface::of(calls.version())?,
        })
    }

    /// The hypercalls that need no version.
    pub fn calls(&self) -> &'a H {
        self.calls
    }

    /// One domctl: `payload` goes in, and what Xen made of it comes out.
    fn domctl<P: IntoBytes + FromBytes + Immutable>(
        &self,
        call: &'static str,
        cmd: u32,
        domain: DomId,
        payload: &mut P,
        buffers: &mut [Buffer<'_>],
    ) -> Result<DomId, CallError> {
        let mut op = Domctl {
            cmd,
            interface_version: self.interface.domctl,
            domain: domain.0,
            ..Domctl::new_zeroed()
        };
        let size = size_of::<P>();
        op.u[..size].copy_from_slice(payload.as_bytes());
        self.calls
            .domctl(&mut op, buffers)
            .map_err(|errno| CallError { call, errno })?;
        if let Ok(answer) = P::read_from_bytes(&op.u[..size]) {
            *payload = answer;
        }
        Ok(DomId(op.domain))
    }

    /// A domctl with neither payload nor list.
    fn plain(&self, call: &'static str, cmd: u32, domain: DomId) -> Result<(), CallError> {
        self.domctl(call, cmd, domain, &mut [0u8; 0], &mut [])
            .map(drop)
    }

    /// One sysctl.
    fn sysctl<P: IntoBytes + FromBytes + Immutable>(
        &self,
        call: &'static str,
        cmd: u32,
        payload: &mut P,
        buffers: &mut [Buffer<'_>],
    ) -> Result<(), CallError> {
        let mut op = Sysctl {
            cmd,
            interface_version: self.interface.sysctl,
            ..Sysctl::new_zeroed()
        };
        let size = size_of::<P>();
        op.u[..size].copy_from_slice(payload.as_bytes());
        self.calls
            .sysctl(&mut op, buffers)
            .map_err(|errno| CallError { call, errno })?;
        if let Ok(answer) = P::read_from_bytes(&op.u[..size]) {
            *payload = answer;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_supported_version_has_its_own_numbers_and_others_are_refused() {
        let numbers = |minor| Interface::of(4 << 16 | minor).map(|i| (i.domctl, i.sysctl));
        assert_eq!(numbers(17), Ok((0x15, 0x15)));
        assert_eq!(numbers(18), Ok((0x16, 0x15)));
        assert_eq!(numbers(19), Ok((0x17, 0x15)));
        assert_eq!(numbers(20), Ok((0x17, 0x15)));
        assert_eq!(numbers(21), Ok((0x17, 0x16)));
        assert_eq!(numbers(22), Ok((0x18, 0x16)));
        for minor in [16, 23] {
            assert_eq!(numbers(minor), Err(UnsupportedXen { major: 4, minor }));
        }
    }
}
