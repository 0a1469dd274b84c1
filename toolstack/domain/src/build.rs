//! Building a guest: from a [`GuestConfig`] and a placement to a paused domain.
//!
//! Kernel and ramdisk bytes go straight into the guest's pages through a small
//! buffer. If anything fails half way (or the build is given up by dropping its
//! future) the half-made domain is destroyed.

mod acpi;
mod cpuid;
mod error;
mod frames;
mod image;
mod kernel;
mod memory;
mod notes;
mod populate;
mod pv;
mod pv_layout;
mod pvh;
mod pvh_layout;
mod pvh_vcpu;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_support;

pub use error::BuildError;
pub(crate) use frames::most_bytes as frame_list_bytes;
pub use image::{ImageError, ImageSource};
pub use populate::{NodeMap, NodeRun};
pub use pvh_layout::PvhLayout;

use crate::config::{GuestConfig, GuestType};
use crate::hypercalls::{Hypercalls, NodeId};
use crate::xen::{CallError, NewDomain, Xen};
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use memory::Memory;
use xen_abi::errno::Errno;
use xen_abi::grant_table::{
    EntryV1, GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE, GTF_PERMIT_ACCESS,
};
use xen_abi::{DomId, EvtchnPort, PAGE_SIZE};

const PAGE: u64 = xen_abi::PAGE_SIZE as u64;

/// Where a guest goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// For each vCPU the physical CPUs it may run on; not empty.
    pub pins: Vec<Vec<u32>>,
    /// How many pages come from each node; their sum is the guest's memory.
    pub memory: Vec<(NodeId, u64)>,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (vcpu, cpus) in self.pins.iter().enumerate() {
            let all: Vec<_> = cpus.iter().map(|cpu| format!("{cpu}")).collect();
            write!(f, "vCPU {vcpu} on CPU {}, ", all.join(" or "))?;
        }
        for (at, (node, pages)) in self.memory.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            let mib = (pages * PAGE_SIZE as u64) >> 20;
            write!(f, "{comma}{mib} MiB of node {node}")?;
        }
        Ok(())
    }
}

/// A domain that is built and paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Its number.
    pub domain: DomId,
    /// Its end of xenstore's event channel, for us to bind.
    pub store_port: EvtchnPort,
    /// Its end of the console's event channel, for us to bind.
    pub console_port: EvtchnPort,
    /// Frame of the xenstore ring (grant reference 1): guest frame for PVH, machine
    /// frame for PV.
    pub store_frame: u64,
    /// Frame of the console ring (grant reference 0), likewise.
    pub console_frame: u64,
    /// Which node each of its pages came from.
    pub nodes: NodeMap,
}

/// Builds `config` where `placement` says. The domain is left paused: start it with
/// [`Xen::unpause_domain`] once its devices are in xenstore.
///
/// `placing` is what keeps others from placing a guest in the same memory: it is dropped as
/// soon as Xen counts all of it as this domain's, before the images are read; or, if that
/// fails, when Xen has it back.
///
/// # Errors
/// What Xen, the kernel image or the image source refused. Nothing is left of the
/// domain then.
pub async fn build<H: Hypercalls, S: ImageSource>(
    xen: Xen<'_, H>,
    config: &GuestConfig,
    placement: &Placement,
    images: &mut S,
    placing: impl Sized,
) -> Result<Built, BuildError> {
    check(config, placement)?;
    let id = xen.create_domain(&NewDomain {
        uuid: config.uuid,
        hvm: config.kind == GuestType::Pvh,
        max_vcpus: config.max_vcpus,
    })?;
    let mut half_made = HalfMade { xen, id: Some(id) };
    let placing = &mut Some(placing);
    let built = match config.kind {
        GuestType::Pvh => pvh::build(xen, id, config, placement, images, placing).await,
        GuestType::Pv => pv::build(xen, id, config, placement, images, placing).await,
    };
    match built {
        Ok(built) => {
            half_made.id = None;
            Ok(built)
        }
        Err(error) => {
            half_made.end().await;
            Err(error)
        }
    }
}

/// What can be said before there is a domain.
fn check(config: &GuestConfig, placement: &Placement) -> Result<(), BuildError> {
    let most = match config.kind {
        // 2 x vCPU is an 8-bit APIC id.
        GuestType::Pvh => 127,
        GuestType::Pv => 512,
    };
    if config.vcpus == 0 || config.vcpus > config.max_vcpus || config.max_vcpus > most {
        return Err(BuildError::Vcpus {
            asked: config.max_vcpus.max(config.vcpus),
            most,
        });
    }
    let pages = memory_pages(config);
    let placed: u64 = placement.memory.iter().map(|&(_, pages)| pages).sum();
    if placement.pins.len() != config.max_vcpus as usize
        || placement.pins.iter().any(Vec::is_empty)
        || placed != pages
    {
        return Err(BuildError::PlacementDoesNotMatch {
            pages,
            placed,
            vcpus: config.max_vcpus,
        });
    }
    Ok(())
}

/// Pages of the guest's memory.
pub fn memory_pages(config: &GuestConfig) -> u64 {
    u64::from(config.memory_mib) << (20 - xen_abi::PAGE_SHIFT)
}

/// Lays a guest out. If it does not fit, the error says how much memory it would take: some of
/// what it needs grows with its memory, so that is tried.
fn that_fits<L>(
    config: &GuestConfig,
    layout: impl Fn(&GuestConfig) -> Result<L, BuildError>,
) -> Result<L, BuildError> {
    const MOST_MIB: u32 = 64 << 10;
    let error = match layout(config) {
        Err(error @ BuildError::DoesNotFit { .. }) => error,
        other => return other,
    };
    let mut other = config.clone();
    let mut fits = |mib| {
        other.memory_mib = mib;
        !matches!(layout(&other), Err(BuildError::DoesNotFit { .. }))
    };
    // The most that is too little, and the least known to be enough.
    let mut little = config.memory_mib;
    let mut enough = little.max(1);
    while !fits(enough) {
        if enough > MOST_MIB {
            return Err(error);
        }
        (little, enough) = (enough, enough * 2);
    }
    while enough - little > 1 {
        let between = little.midpoint(enough);
        if fits(between) {
            enough = between;
        } else {
            little = between;
        }
    }
    let mib = |mib| u64::from(mib) << 20;
    Err(BuildError::DoesNotFit {
        needed: mib(enough),
        memory: mib(config.memory_mib),
    })
}

/// A domain that is not ready yet, and goes if the build does.
struct HalfMade<'a, H: Hypercalls> {
    xen: Xen<'a, H>,
    id: Option<DomId>,
}

impl<H: Hypercalls> HalfMade<'_, H> {
    /// Takes it down and waits until Xen says so, with a bound: a domain that stays
    /// is one that something still maps, and is Xen's to end.
    async fn end(mut self) {
        let Some(id) = self.id.take() else { return };
        for _ in 0..1000 {
            match destroy(&self.xen, id) {
                Ok(Progress::Again) => self.xen.calls().breathe().await,
                Ok(Progress::Done) => return,
                Err(error) => return log::error!("domain {id}: half built, and stays: {error}"),
            }
        }
        log::error!("domain {id}: half built, and Xen does not get done with its end");
    }
}

impl<H: Hypercalls> Drop for HalfMade<'_, H> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            // The future was dropped; Xen continues a destruction by itself.
            if let Err(error) = destroy(&self.xen, id) {
                log::error!("domain {id}: half built, and stays: {error}");
            }
        }
    }
}

/// Whether `destroydomain` wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Call again, after other tasks had their turn.
    Again,
    /// Xen does the rest by itself.
    Done,
}

/// One `destroydomain`.
pub(crate) fn destroy<H: Hypercalls>(xen: &Xen<'_, H>, id: DomId) -> Result<Progress, CallError> {
    // XEN_ERESTART, which Xen's continuations normally hide.
    const ERESTART: Errno = Errno(85);
    match xen.destroy_domain(id) {
        Ok(()) => Ok(Progress::Done),
        Err(CallError {
            errno: ERESTART | Errno::EAGAIN,
            ..
        }) => Ok(Progress::Again),
        // Somebody else was faster.
        Err(CallError {
            errno: Errno::ESRCH,
            ..
        }) => Ok(Progress::Done),
        Err(error) => Err(error),
    }
}

/// vCPUs, affinity, the limit of memory, and the ports: what is the same for both
/// kinds of guest.
fn make_vcpus<H: Hypercalls>(
    xen: &Xen<'_, H>,
    id: DomId,
    config: &GuestConfig,
    placement: &Placement,
) -> Result<(EvtchnPort, EvtchnPort), BuildError> {
    // libxl's slack, for special pages and ACPI tables.
    const SLACK_KIB: u64 = 1024;
    xen.set_max_vcpus(id, config.max_vcpus)?;
    for (vcpu, cpus) in (0..).zip(&placement.pins) {
        xen.set_hard_affinity(id, vcpu, cpus)?;
    }
    xen.set_tsc_mode(id, config.tsc_mode)?;
    xen.set_max_memory(id, u64::from(config.memory_mib) * 1024 + SLACK_KIB)?;
    let port = || {
        xen.calls().alloc_unbound(id).map_err(|errno| CallError {
            call: "evtchn_alloc_unbound",
            errno,
        })
    };
    Ok((port()?, port()?))
}

/// Writes the grants that the builder owes a new domain: 0, its console ring, and 1,
/// its xenstore ring, both to us.
fn seed_grants<H: Hypercalls>(
    xen: &Xen<'_, H>,
    id: DomId,
    console_frame: u64,
    store_frame: u64,
) -> Result<(), BuildError> {
    use crate::hypercalls::DomainPages;
    use zerocopy::IntoBytes;
    let mut table = xen.calls().map_grant_frame(id).map_err(|errno| CallError {
        call: "acquire_resource(grant_table)",
        errno,
    })?;
    let domid = xen.calls().own_domid().0;
    for (gref, frame) in [
        (GNTTAB_RESERVED_CONSOLE, console_frame),
        (GNTTAB_RESERVED_XENSTORE, store_frame),
    ] {
        let entry = EntryV1 {
            flags: GTF_PERMIT_ACCESS,
            domid,
            frame: u32::try_from(frame).map_err(|_| BuildError::FrameTooHigh { frame })?,
        };
        table.write(gref as usize * size_of::<EntryV1>(), entry.as_bytes());
    }
    Ok(())
}
