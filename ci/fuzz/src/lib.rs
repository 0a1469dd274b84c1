//! Everything that reads bytes which a guest, a peer on the network or a file's author
//! chose, as functions of those bytes. None may panic, hang, or take memory out of
//! proportion.
//!
//! - `cargo test -p fuzz` runs each over its committed corpus and over a fixed set of
//!   changes to it: seconds, with the stable compiler.
//! - `ci/fuzz/libfuzzer` makes a libFuzzer program of them, which needs a nightly compiler
//!   and cargo-fuzz; what it learns stays out of the committed corpus, its second folder:
//!   `cargo +nightly fuzz run --fuzz-dir ci/fuzz/libfuzzer xlcfg /tmp/xlcfg ci/fuzz/corpus/xlcfg`
//!
//! A finding becomes a file of `corpus/TARGET/`, so that it stays fixed.
#![forbid(unsafe_code)]

mod blk;

/// A parser under test.
pub type Target = fn(&[u8]);

/// All of them, by the name of their corpus.
pub const TARGETS: &[(&str, Target)] = &[
    // From a guest, through its rings and its xenstore nodes.
    ("net_frame_headers", backend_net::fuzz::frame_headers),
    ("net_transmit_slots", backend_net::fuzz::transmit_slots),
    ("net_frontend_nodes", backend_net::fuzz::frontend_nodes),
    ("blk_requests", backend_blk::fuzz::requests),
    ("blk_descriptors", backend_blk::fuzz::descriptors),
    ("blk_frontend_nodes", blk::frontend_nodes),
    ("xenstore_bytes", toolstack_xenstore::fuzz::bytes),
    ("xenstore_ring", toolstack_xenstore::fuzz::ring),
    ("xenstore_requests", toolstack_xenstore::fuzz::requests),
    // From the network.
    ("management_frames", toolstack_management::fuzz::frames),
    ("rpc_messages", toolstack_rpc::fuzz::messages),
    ("rpc_frames", toolstack_rpc::fuzz::frames),
    ("rpc_host_handshake", toolstack_rpc::fuzz::host_handshake),
    (
        "rpc_client_handshake",
        toolstack_rpc::fuzz::client_handshake,
    ),
    (
        "rpc_host_conversation",
        toolstack_rpc::fuzz::host_conversation,
    ),
    (
        "rpc_client_conversation",
        toolstack_rpc::fuzz::client_conversation,
    ),
    // From disks and files.
    ("blk_partition_table", backend_blk::fuzz::partition_table),
    ("blk_image_catalog", backend_blk::fuzz::image_catalog),
    ("boot", toolstack_boot::fuzz::parse),
    ("xlcfg", closer::xlcfg::fuzz::parse),
    ("kernel_image", closer::kernel_image::fuzz::parse),
];

/// Runs one target.
///
/// # Panics
/// If there is none of this name, or it finds something.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS
        .iter()
        .find(|(target, _)| *target == name)
        .expect("a name in TARGETS");
    target(data);
}
