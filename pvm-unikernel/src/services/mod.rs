//! What the pVM does for guests and administrators: the toolstack crates' logic, wired to
//! hypercalls, the executor and each other. Everything here runs on an MC vCPU but for the
//! tasks that `devices`, `storage` and `network` start on others.

pub mod console;
pub mod devices;
pub mod guests;
pub mod host;
pub mod network;
pub mod nodes;
pub mod rpc;
pub mod stack;
pub mod storage;
pub mod store;
