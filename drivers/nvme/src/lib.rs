//! NVMe disks (NVM Express Base Specification 1.4).
//!
//! Multi-queue from the start: [`start`] brings up the controller with an admin queue
//! and one I/O queue pair for each vCPU it is given (fewer if the controller has
//! fewer; users of the disk then run where there is a queue). Each queue pair has its
//! MSI-X vector, bound to its vCPU, and its memory on that vCPU's node.
//!
//! Data goes through PRP lists ([`prp`]): what those cannot express in one command is
//! split; what they cannot express at all is `Unaligned`, and the caller bounces it.
//!
//! **When a command is not answered in time** ([`COMMAND_TIMEOUT_NS`]) its waiter gets
//! `Timeout` and the whole controller is reset by [`Supervisor::run`]: the command's
//! memory may still be written, and an Abort command promises nothing about that;
//! clearing CC.EN does. Once CSTS.RDY is 0, all holds are released, other waiters get
//! `Reset`, the queues are created anew, and submissions, which waited, go on. A
//! controller that does not stop, does not come back, or completes nothing between
//! [`MAX_RESETS`] resets is dead: everything answers `Reset`, and the memory of its
//! unfinished commands is kept for ever, because it may still be written.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod admin;
mod device;
mod identify;
mod io;
pub mod prp;
mod regs;
mod ring;
mod slots;
mod wire;

pub use device::{Nvme, StartError, Supervisor, start};

/// A command not answered for this long makes the controller suspect. Disks may be
/// slow for seconds while they clean up or spin up remote media; 30 s is what other
/// systems wait too.
pub const COMMAND_TIMEOUT_NS: u64 = 30_000_000_000;
/// The same for admin commands.
pub const ADMIN_TIMEOUT_NS: u64 = 30_000_000_000;
/// Resets without one completed command between them, after which the disk is given up.
pub const MAX_RESETS: u32 = 3;
/// Entries of an I/O submission queue; one less can be in flight.
pub const QUEUE_DEPTH: u16 = 64;
/// Longest transfer in one command that the driver builds: its PRP list fits a page.
pub const MAX_TRANSFER: u32 = 1 << 20;
