//! The management address: TCP and DHCP for those who manage the host.
//!
//! smoltcp, and what it needs to stand against anybody who can send to that address: which
//! frames it must not see ([`link`]), who keeps a place when more want to connect than there
//! are ([`backlog`]), what is believed of a DHCP server. [`Stack`] is all of it, and does
//! nothing by itself: its user polls it, and knows the time.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod backlog;
pub mod fuzz;
pub mod link;
mod stack;

pub use link::Port;
pub use stack::{KEEP_ALIVE, PEER_TIMEOUT, Stack};
