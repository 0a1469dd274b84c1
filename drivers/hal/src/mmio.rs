//! Device registers.
#![allow(
    unsafe_code,
    reason = "the register layer: the one place that touches MMIO"
)]

use alloc::boxed::Box;
use core::fmt;
use core::ptr::NonNull;

/// A run of device registers (a BAR or part of one), mapped uncached for good.
///
/// Every access is one load or store of exactly its width. Registers are
/// little-endian, as is every machine Closer runs on.
#[derive(Clone, Copy)]
pub struct Mmio {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: register accesses are single volatile loads and stores, valid on any CPU;
// what they mean to the device is the driver's business.
unsafe impl Send for Mmio {}
// SAFETY: as above.
unsafe impl Sync for Mmio {}

impl fmt::Debug for Mmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mmio({:p}+{:#x})", self.base, self.len)
    }
}

macro_rules! access {
    ($read:ident, $write:ident, $ty:ty, $bits:literal) => {
        #[doc = concat!("Loads a ", $bits, "-bit register.\n\n# Panics\nIf it lies outside the run or is not aligned.")]
        pub fn $read(&self, offset: usize) -> $ty {
            // SAFETY: `at` checked bounds and alignment, and the maker of `self` promised
            // that the run stays mapped.
            unsafe { self.at::<$ty>(offset).read_volatile() }
        }

        #[doc = concat!("Stores a ", $bits, "-bit register.\n\n# Panics\nIf it lies outside the run or is not aligned.")]
        pub fn $write(&self, offset: usize, value: $ty) {
            // SAFETY: as for the load.
            unsafe { self.at::<$ty>(offset).write_volatile(value) }
        }
    };
}

impl Mmio {
    /// Wraps `len` bytes of registers mapped at `base`.
    ///
    /// # Safety
    /// The run is device memory mapped uncached and is never unmapped; for tests,
    /// ordinary memory that outlives the value.
    pub const unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    /// Ordinary zeroed memory in place of registers, never freed: for a fake device that
    /// looks at what its driver wrote, and puts there what the driver shall read.
    pub fn leaked(len: usize) -> Self {
        let words = Box::leak(alloc::vec![0u64; len.div_ceil(8)].into_boxed_slice());
        let base = NonNull::new(words.as_mut_ptr().cast::<u8>()).expect("a box is never null");
        Self { base, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the run holds no register.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    access!(read8, write8, u8, "8");
    access!(read16, write16, u16, "16");
    access!(read32, write32, u32, "32");
    access!(read64, write64, u64, "64");

    fn at<T>(&self, offset: usize) -> NonNull<T> {
        assert!(
            offset
                .checked_add(size_of::<T>())
                .is_some_and(|end| end <= self.len)
                && offset.is_multiple_of(size_of::<T>()),
            "register {offset:#x} is not in a run of {:#x} bytes",
            self.len
        );
        // SAFETY: inside the run by the assertion above.
        unsafe { self.base.add(offset) }.cast()
    }
}
