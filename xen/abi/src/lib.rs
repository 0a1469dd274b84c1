//! Xen's public ABI in Rust: types, numbers and layouts, and nothing else.
//!
//! One module for each header of `xen/include/public`, with the header's own
//! names. Nothing here issues a hypercall or decides anything. Sizes and far
//! offsets are asserted beside each structure; `cargo xtask abi-check`
//! compares them with the headers of each supported Xen.
#![no_std]
#![forbid(unsafe_code)]

pub mod check;
pub mod ids;
pub mod io;

pub use ids::{DomId, EvtchnPort, GrantRef};

/// Bytes in a page; Xen's x86 ABI knows no other granule.
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Every header that has a list, for `cargo xtask abi-check`.
pub const CHECKED_HEADERS: &[check::Header] = &[io::netif::CHECK];
