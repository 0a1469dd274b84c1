//! Xen's public ABI in Rust: types, numbers and layouts, and nothing else.
//!
//! One module for each header of `xen/include/public`, with the header's own
//! names. Nothing here issues a hypercall or decides anything. Sizes and far
//! offsets are asserted beside each structure; `cargo xtask abi-check`
//! compares them with the headers of each supported Xen.
#![no_std]
#![forbid(unsafe_code)]

pub mod arch_x86;
pub mod check;
pub mod domctl;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod grant_table;
pub mod hvm;
pub mod ids;
pub mod io;
pub mod memory;
pub mod memory_foreign;
pub mod physdev;
pub mod platform;
pub mod sched;
pub mod sysctl;
pub mod vcpu;
pub mod version;
pub mod xen;

pub use ids::{DomId, EvtchnPort, GrantRef};

/// Bytes in a page; Xen's x86 ABI knows no other granule.
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Every header that has a list, for `cargo xtask abi-check`.
pub const CHECKED_HEADERS: &[check::Header] = &[
    arch_x86::CHECK,
    domctl::CHECK,
    domctl::v4_17::CHECK,
    domctl::v4_19::CHECK,
    elfnote::CHECK,
    elfnote::features::CHECK,
    errno::CHECK,
    event_channel::CHECK,
    grant_table::CHECK,
    hvm::params::CHECK,
    hvm::params::numbers::CHECK,
    hvm::save::CHECK,
    hvm::start_info::CHECK,
    memory::CHECK,
    memory_foreign::CHECK,
    physdev::CHECK,
    platform::CHECK,
    sched::CHECK,
    sysctl::CHECK,
    vcpu::CHECK,
    version::CHECK,
    xen::CHECK,
    io::blkif::CHECK,
    io::netif::CHECK,
    io::xs_wire::CHECK,
];
