//! Domains: what one is, how it is built, and what its life looks like.
//!
//! Pure logic: plans and state tables over small traits; the kernel issues the
//! hypercalls.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod config;
