//! `version.h`: which Xen this is.

use crate::abi_check;

/// `XENVER_version`: the answer is major << 16 | minor.
pub const XENVER_VERSION: u32 = 0;
/// `XENVER_extraversion`.
pub const XENVER_EXTRAVERSION: u32 = 1;
/// `XENVER_compile_info`.
pub const XENVER_COMPILE_INFO: u32 = 2;
/// `XENVER_capabilities`.
pub const XENVER_CAPABILITIES: u32 = 3;
/// `XENVER_changeset`.
pub const XENVER_CHANGESET: u32 = 4;
/// `XENVER_get_features`.
pub const XENVER_GET_FEATURES: u32 = 6;
/// `XENVER_pagesize`.
pub const XENVER_PAGESIZE: u32 = 7;
/// `XENVER_commandline`.
pub const XENVER_COMMANDLINE: u32 = 9;

abi_check! {
    header "version.h";
    const "XENVER_version" = XENVER_VERSION;
    const "XENVER_extraversion" = XENVER_EXTRAVERSION;
    const "XENVER_compile_info" = XENVER_COMPILE_INFO;
    const "XENVER_capabilities" = XENVER_CAPABILITIES;
    const "XENVER_changeset" = XENVER_CHANGESET;
    const "XENVER_get_features" = XENVER_GET_FEATURES;
    const "XENVER_pagesize" = XENVER_PAGESIZE;
    const "XENVER_commandline" = XENVER_COMMANDLINE;
}
