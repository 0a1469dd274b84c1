//! `elfnote.h` and `features.h`: what a kernel says of itself.

use crate::abi_check;

/// `XEN_ELFNOTE_ENTRY`
pub const ENTRY: u32 = 1;
/// `XEN_ELFNOTE_HYPERCALL_PAGE`
pub const HYPERCALL_PAGE: u32 = 2;
/// `XEN_ELFNOTE_VIRT_BASE`
pub const VIRT_BASE: u32 = 3;
/// `XEN_ELFNOTE_PADDR_OFFSET`
pub const PADDR_OFFSET: u32 = 4;
/// `XEN_ELFNOTE_XEN_VERSION`
pub const XEN_VERSION: u32 = 5;
/// `XEN_ELFNOTE_GUEST_OS`
pub const GUEST_OS: u32 = 6;
/// `XEN_ELFNOTE_FEATURES`
pub const FEATURES: u32 = 10;
/// `XEN_ELFNOTE_INIT_P2M`
pub const INIT_P2M: u32 = 15;
/// `XEN_ELFNOTE_MOD_START_PFN`
pub const MOD_START_PFN: u32 = 16;
/// `XEN_ELFNOTE_SUPPORTED_FEATURES`
pub const SUPPORTED_FEATURES: u32 = 17;
/// `XEN_ELFNOTE_PHYS32_ENTRY`
pub const PHYS32_ENTRY: u32 = 18;

/// `XENFEAT_auto_translated_physmap`: a bit number of `FEATURES`
pub const XENFEAT_AUTO_TRANSLATED_PHYSMAP: u32 = 2;
/// `XENFEAT_linux_rsdp_unrestricted`: a bit number of `SUPPORTED_FEATURES`
pub const XENFEAT_LINUX_RSDP_UNRESTRICTED: u32 = 15;

abi_check! {
    header "elfnote.h";
    const "XEN_ELFNOTE_ENTRY" = ENTRY;
    const "XEN_ELFNOTE_HYPERCALL_PAGE" = HYPERCALL_PAGE;
    const "XEN_ELFNOTE_VIRT_BASE" = VIRT_BASE;
    const "XEN_ELFNOTE_PADDR_OFFSET" = PADDR_OFFSET;
    const "XEN_ELFNOTE_XEN_VERSION" = XEN_VERSION;
    const "XEN_ELFNOTE_GUEST_OS" = GUEST_OS;
    const "XEN_ELFNOTE_FEATURES" = FEATURES;
    const "XEN_ELFNOTE_INIT_P2M" = INIT_P2M;
    const "XEN_ELFNOTE_MOD_START_PFN" = MOD_START_PFN;
    const "XEN_ELFNOTE_SUPPORTED_FEATURES" = SUPPORTED_FEATURES;
    const "XEN_ELFNOTE_PHYS32_ENTRY" = PHYS32_ENTRY;
}

/// `features.h`.
pub mod features {
    crate::abi_check! {
        header "features.h";
        const "XENFEAT_auto_translated_physmap" = super::XENFEAT_AUTO_TRANSLATED_PHYSMAP;
        const "XENFEAT_linux_rsdp_unrestricted" = super::XENFEAT_LINUX_RSDP_UNRESTRICTED;
    }
}
