#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod account;
mod children;
mod connection;
mod control;
mod domains;
mod events;
mod firing;
pub mod fuzz;
mod lifecycle;
mod local;
mod node;
mod ops;
mod path;
mod perms;
mod rate;
mod requests;
mod ring;
mod server;
mod stats;
mod store;
mod trace;
mod transaction;
mod watches;

pub use account::Quotas;
pub use events::{EventQueue, WatchEvent};
pub use local::LocalTransaction;
pub use path::{Path, home};
pub use perms::{Access, Perm};
pub use ring::{Pumped, RingConnection, RingFault};
pub use server::{Action, Config, ConnId, ConnectionError, Input, Server};
pub use stats::{DomainStats, Level};
pub use xen_abi::io::xs_wire::XsError;
