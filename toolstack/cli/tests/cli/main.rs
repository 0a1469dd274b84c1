//! The program `closer` against a fake host, from the outside.
#![forbid(unsafe_code)]

mod bad_input;
mod commands;
mod common;
mod json;
