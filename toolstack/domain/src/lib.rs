//! Domains: what one is, how it is built, and what its life looks like.
//!
//! Pure logic: plans and state tables over small traits; the kernel issues the
//! hypercalls ([`hypercalls::Hypercalls`]) and brings kernels and ramdisks
//! ([`build::ImageSource`]).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod build;
pub mod config;
pub mod destroy;
pub mod hypercalls;
pub mod info;
pub mod lifecycle;
pub mod nodes;
pub mod placement;
pub mod vdev;
pub mod xen;
pub mod xenbus;

#[cfg(test)]
mod fake;
