//! Each vCPU on a core of its own, for good.
//!
//! `dom0_vcpus_pin` does it at Xen's boot; without it the kernel asks for the same: vCPU n
//! on physical CPU n. Xen would move vCPUs otherwise, and neither locality nor who pays
//! could be told.

use crate::arch::hypercall::vcpu;
use crate::services::host::CALLS;
use toolstack_domain::xen::Xen;
use xen_abi::DomId;

/// Pins every vCPU that is not pinned yet. What cannot be pinned is said and left.
pub fn pin_all(vcpus: u32) {
    let xen = match Xen::new(&CALLS) {
        Ok(xen) => xen,
        Err(error) => return log::warn!("boot: vCPUs stay where Xen puts them: {error}"),
    };
    for number in 0..vcpus {
        // Xen tells the physical id of pinned vCPUs only.
        if vcpu::physid(number).is_ok() {
            continue;
        }
        if let Err(error) = xen.set_hard_affinity(DomId(0), number, &[number]) {
            log::warn!("boot: vCPU {number} cannot be pinned: {error}");
        }
    }
}
