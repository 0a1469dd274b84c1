//! What the builders' tests share.

use crate::config::{Action, GuestConfig, GuestType, ImageId, Kernel, Segment, TscMode};
use alloc::string::String;
use alloc::vec::Vec;

pub(super) const KERNEL: ImageId = ImageId([1; 32]);

/// A guest with one vCPU and an empty kernel.
pub(super) fn config(kind: GuestType, memory_mib: u32) -> GuestConfig {
    GuestConfig {
        name: String::from("test"),
        uuid: [7; 16],
        kind,
        kernel: Kernel {
            image: KERNEL,
            segments: Vec::new(),
            notes: Vec::new(),
            entry: 0,
        },
        ramdisk: None,
        cmdline: String::from("console=hvc0 root=/dev/xvda"),
        memory_mib,
        vcpus: 1,
        max_vcpus: 1,
        cpus: Vec::new(),
        disks: Vec::new(),
        vifs: Vec::new(),
        on_poweroff: Action::Destroy,
        on_reboot: Action::Restart,
        on_crash: Action::Destroy,
        tsc_mode: TscMode::Native,
    }
}

/// A segment whose bytes lie in the image where they go in memory.
pub(super) fn segment(paddr: u64, file_size: u64, mem_size: u64) -> Segment {
    Segment {
        paddr,
        vaddr: paddr,
        offset: paddr,
        file_size,
        mem_size,
    }
}
