//! A strict simulated Xen for host tests and fuzzers.
