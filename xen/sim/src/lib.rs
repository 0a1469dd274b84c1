//! A strict simulated Xen for host tests and fuzzers.
//!
//! [`Machine`] holds memory by machine frame, of the pVM and of guests, and what
//! guests granted; [`SimGrants`] and [`SimEvents`] are the strict versions of the
//! backend traits of `xen-ring`. Stricter than the real thing: a device reaches only
//! memory that is the pVM's and not released, or a guest's and mapped for it at this
//! moment; a mapping that is ended twice, or with another address than it was given,
//! panics; what was never ended is counted. [`Executor`] polls backend tasks as one
//! vCPU of the pVM does, with [`SimTimer`] as its clock.
//!
//! Test code: it uses `std` and panics where the code under test is wrong. What a
//! *guest* does wrong is answered with a status, as Xen does.
#![forbid(unsafe_code)]

mod events;
mod exec;
mod grants;
mod memory;
mod netfront;
mod timer;

pub use events::SimEvents;
pub use exec::{Executor, Task};
pub use grants::{Counters, SimGrants, SimGuest, StillInUse};
pub use memory::{DmaFault, GuestPages, Machine, SimAllocator};
pub use netfront::{NetFront, Received, Sending};
pub use timer::SimTimer;
