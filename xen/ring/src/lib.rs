//! Shared memory with a peer that is not trusted, as safe objects.
//!
//! [`SharedPages`] is the one way to touch memory that somebody else may write
//! at any moment: it copies out and in, and never lends a reference. On it stand
//! [`BackRing`] and [`FrontRing`] (the request/response rings of `io/ring.h`, one
//! code for every protocol) and [`ByteRing`] (the console's and xenstore's
//! byte streams). [`peer`] holds the traits by which a backend reaches grants
//! and events; the kernel implements them with hypercalls, `xen-sim` for tests.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod byte_ring;
pub mod peer;
mod ring;
mod shared;

pub use byte_ring::{ByteRing, ByteRingLayout};
pub use ring::{BackRing, FrontRing, Kick, RingError};
pub use shared::{SharedHeap, SharedPages};
