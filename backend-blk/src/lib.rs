//! Disks for guests: the blkif protocol, the task that serves one guest's disk, the
//! volumes it serves, and the area that keeps what guests boot from.
//!
//! [`protocol`] turns ring slots into checked requests, [`nodes`] xenstore nodes into
//! checked connection data. [`serve`] is the backend task of one guest disk: it works
//! on `xen-ring`'s grant and event traits and on a [`Disk`], which is a [`Volume`] of
//! a driver's queue. [`gpt`] keeps the volumes of a disk, [`images`] the image area.
//!
//! Guests are hostile: what they wrote is copied once, checked once, and then used. A
//! guest that breaks the protocol gets error responses; one that breaks its ring loses
//! the device, and nothing else.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bounce;
mod bytes;
mod counters;
mod data;
mod disk;
pub mod fuzz;
pub mod gpt;
pub mod images;
mod limits;
pub mod nodes;
pub mod protocol;
mod ring;
mod task;

pub use bytes::ByteIo;
pub use counters::{Counters, Snapshot};
pub use disk::{Disk, Extent, Geometry, QueueDisk, SECTOR, Volume};
pub use hal::block::{BlockError, Hold};
pub use limits::{MapLimit, MapShare, Told};
pub use nodes::{FrontendNodes, NodesError, backend_nodes};
pub use ring::Protocol;
pub use task::{Device, End, Stop, serve};
