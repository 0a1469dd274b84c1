//! Each vCPU on a core of its own, for good.
//!
//! `dom0_vcpus_pin` does it at Xen's boot; without it the kernel asks for the same: vCPU n
//! on physical CPU n. Xen would move vCPUs otherwise, and neither locality nor who pays
//! could be told.
#![allow(unsafe_code, reason = "a domctl carries addresses of bitmaps")]

use crate::arch::hypercall::{Errno, system, vcpu};

/// `XEN_DOMCTL_setvcpuaffinity`.
const SET_VCPU_AFFINITY: u32 = 9;
/// `XEN_VCPUAFFINITY_HARD`.
const HARD: u32 = 1;

/// `struct xen_domctl` with `struct xen_domctl_vcpuaffinity`; the same in 4.17 to 4.22.
#[repr(C)]
struct VcpuAffinity {
    command: u32,
    version: u32,
    domain: u16,
    pad: [u16; 3],
    vcpu: u32,
    flags: u32,
    hard_bitmap: u64,
    hard_bits: u32,
    pad_hard: u32,
    soft_bitmap: u64,
    soft_bits: u32,
    pad_soft: u32,
    rest: [u64; 11],
}

const _: () = assert!(size_of::<VcpuAffinity>() == 16 + 128);
const _: () = assert!(core::mem::offset_of!(VcpuAffinity, hard_bitmap) == 24);

/// `XEN_DOMCTL_INTERFACE_VERSION` of a Xen 4.x.
pub fn domctl_version(xen: (u32, u32)) -> Option<u32> {
    match xen {
        (4, 17) => Some(0x15),
        (4, 18) => Some(0x16),
        (4, 19..=21) => Some(0x17),
        (4, 22) => Some(0x18),
        _ => None,
    }
}

/// Pins every vCPU that is not pinned yet. What cannot be pinned is said and left.
pub fn pin_all(vcpus: u32, xen: (u32, u32)) {
    let Some(version) = domctl_version(xen) else {
        log::warn!(
            "boot: Xen {}.{} is not known: vCPUs stay where it puts them",
            xen.0,
            xen.1
        );
        return;
    };
    for number in 0..vcpus {
        // Xen tells the physical id of pinned vCPUs only.
        if vcpu::physid(number).is_ok() {
            continue;
        }
        if let Err(errno) = pin(number, version) {
            log::warn!("boot: vCPU {number} cannot be pinned: {errno}");
        }
    }
}

fn pin(number: u32, version: u32) -> Result<(), Errno> {
    let mut bitmap = [0u8; 512];
    bitmap[number as usize / 8] = 1 << (number % 8);
    let mut argument = VcpuAffinity {
        command: SET_VCPU_AFFINITY,
        version,
        domain: 0,
        pad: [0; 3],
        vcpu: number,
        flags: HARD,
        hard_bitmap: (&raw mut bitmap).addr() as u64,
        hard_bits: 4096,
        pad_hard: 0,
        soft_bitmap: 0,
        soft_bits: 0,
        pad_soft: 0,
        rest: [0; 11],
    };
    // SAFETY: a whole `xen_domctl`; its bitmap outlives the call; pinning moves no memory.
    unsafe { system::domctl(&mut argument) }.map(|_| ())
}
