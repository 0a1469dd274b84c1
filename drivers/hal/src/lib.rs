//! What a driver needs from the machine, and what a driver offers.
//!
//! A driver crate depends on this crate alone and contains no `unsafe`: registers
//! are reached through [`Mmio`], memory shared with a device through [`DmaBuffer`],
//! both bounds-checked. The kernel implements [`DmaAllocator`], [`Interrupt`] and
//! [`PciFunction`]; [`block`] and [`net`] hold what the drivers implement.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod block;
pub mod counters;
mod dma;
mod mmio;
pub mod net;
pub mod pci;
mod queues;
pub mod timer;
mod turn;

pub use dma::{DmaAllocator, DmaBuffer, DmaSegment};
pub use mmio::Mmio;
pub use pci::{Interrupt, PciFunction};
pub use queues::{by_turns, nearest_queue};
pub use timer::Timer;
pub use turn::yield_now;

/// A vCPU of the pVM, counted from 0. Queues and interrupts belong to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u32);

/// A NUMA node, counted from 0 as Xen does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u32);
