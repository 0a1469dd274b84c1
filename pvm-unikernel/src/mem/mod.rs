//! Memory: the direct map, frames by node, the heap, and windows on memory of others.
//!
//! Every frame of the reservation is mapped once, writable and not executable, at
//! `DIRECT_BASE + mfn * 4096`: an address and a machine frame number are the same thing
//! here, and runs that are contiguous in the machine are contiguous to us. Page tables and
//! the image's code are read-only there. Guests' memory and devices are mapped in windows.
//!
//! Invariants that the unsafe code here rests on:
//! - a frame is on a free list, or has one owner, or belongs to the kernel for ever (image,
//!   page tables, the allocator's own bytes); only the allocator moves it between these;
//! - page-table frames are never given back.
#![allow(
    dead_code,
    unused_imports,
    reason = "a kernel interface: what no service needs yet waits for one"
)]
#![allow(unsafe_code, reason = "page tables, frames and the heap")]

mod boot_map;
mod buddy;
pub mod device;
pub mod foreign;
mod frames;
mod heap;
pub mod layout;
mod paging;
mod reservation;
pub mod window;

pub use boot_map::{BootFrames, init};
pub use buddy::{NodeCount, counts, pages_of_node, set_node_ranges};
pub use device::{map_mmio, map_phys_ro};
pub use foreign::{ForeignMap, LocalForeignMap, MapError};
pub use frames::{Frames, NodeFrames};
pub use heap::{heap_held_bytes, heap_used_bytes};
pub use paging::{frame_of, root};
pub use reservation::{give_back, grow, of_domain, shrink};

/// A page-table entry that maps one frame for reading and writing. For boot, before the
/// direct map.
pub fn mapping_of(mfn: u64) -> u64 {
    paging::data(mfn)
}
