//! Block devices: what a disk driver offers.
