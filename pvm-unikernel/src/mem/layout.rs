//! Where things lie in the address space.
//!
//! Xen keeps 0xffff8000_00000000 to 0xffff8800_00000000; all else is the kernel's.

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Address of machine frame 0 in the direct map: root slots 272 to 399, 64 TiB.
pub const DIRECT_BASE: u64 = 0xffff_8800_0000_0000;
/// Root slots of the direct map.
pub const DIRECT_SLOTS: usize = 128;
/// First frame number beyond the direct map.
pub const DIRECT_FRAMES: u64 = 1 << (39 - 12 + 7);
/// One byte for each machine frame: root slot 400.
pub const STATE_BASE: u64 = 0xffff_c800_0000_0000;
/// Windows on devices and foreign memory: root slots 401 and 402.
pub const WINDOW_BASE: u64 = 0xffff_c880_0000_0000;
/// One past the last window.
pub const WINDOW_END: u64 = WINDOW_BASE + (2 << 39);
/// Where Xen maps boot frame 0.
pub const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;

/// The direct map's address of a frame.
pub const fn direct(mfn: u64) -> u64 {
    debug_assert!(mfn < DIRECT_FRAMES);
    DIRECT_BASE + mfn * PAGE
}

/// A pointer from an address of the kernel's own map.
pub fn pointer<T>(va: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut(usize::try_from(va).expect("addresses have 64 bits"))
}
