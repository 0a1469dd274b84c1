//! `xen/include/public/io`: the protocols between front ends and back ends.
//! One module for each header.

pub mod blkif;
pub mod netif;
pub mod xs_wire;
