//! Network devices: what a NIC driver offers.
