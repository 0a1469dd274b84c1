//! The parts of the program `closer` that do not need a host: guest definitions and
//! kernels, read on the administrator's machine.
#![forbid(unsafe_code)]

pub mod kernel_image;
pub mod xlcfg;
