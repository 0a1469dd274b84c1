//! Small tools by which tasks wait for each other.
//!
//! [`channel()`], [`oneshot()`] and [`Notify`] work between vCPUs; their locks are held
//! for a few instructions and never across a wake. [`local`] is for tasks of one vCPU.
#![allow(
    dead_code,
    unused_imports,
    reason = "a kernel interface: what no service needs yet waits for one"
)]

mod channel;
pub mod local;
mod notify;
mod oneshot;

pub use channel::{Closed, Receiver, Sender, TrySend, channel};
pub use notify::Notify;
pub use oneshot::{OneshotReceiver, OneshotSender, oneshot};
