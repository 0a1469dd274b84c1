//! The network backend: the netif protocol, one task for each guest device, and the
//! static switch between them, the NIC's queues and our own stack.
//!
//! A frame is copied once on its way from a guest into memory of ours on the guest's
//! node, and its headers are read only there; it moves through the switch as an object
//! that owns that memory, into the bounded inbox of its receiver, whose own task copies
//! it on, on the receiver's core. Everything is written against the grant and event
//! traits of `xen_ring::peer` and the NIC traits of `hal::net`: no hypercall, no register.
//!
//! - [`nodes`]: what front and back say to each other in xenstore
//! - [`vif`]: the task of one guest device ([`vif::serve`])
//! - [`switch`]: who gets a frame; [`port`]: how it gets there
//! - [`direct`]: long frames between guests, which never lie in memory of ours
//! - [`uplink`]: the task of one NIC queue ([`uplink::serve`])
//! - [`local`]: the port of our own stack
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod counters;
pub mod direct;
pub mod fuzz;
pub mod headers;
pub mod local;
pub mod nodes;
pub mod offload;
pub mod port;
pub mod stop;
pub mod switch;
pub mod uplink;
pub mod vif;

pub use counters::Counters;
pub use local::LocalPort;
pub use nodes::{BackendNodes, FrontendNodes, backend_nodes};
pub use port::{Inbox, Limits};
pub use stop::{Stop, Stopper, stop_pair};
pub use switch::{Port, Switch, UplinkPort, View};
