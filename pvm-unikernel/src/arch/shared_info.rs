//! The page that Xen and the kernel share, and each vCPU's info: event bits.
//!
//! Two-level event channels: a port has a pending and a mask bit; a word of pending bits
//! has a bit in each vCPU's selector.

use super::cpu::{self, MAX_VCPUS};
use super::entry;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};
use xen_abi::EvtchnPort;
use xen_abi::event_channel::EVTCHN_2L_NR_CHANNELS;
use xen_abi::xen::{SharedInfo, VcpuInfo};

/// Ports there are.
pub const PORTS: usize = EVTCHN_2L_NR_CHANNELS;
const _: () = assert!(PORTS == 64 * 64);

static VCPU_INFO: [AtomicPtr<VcpuInfo>; MAX_VCPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_VCPUS];

fn shared() -> NonNull<SharedInfo> {
    let page = (&raw const entry::shared_info_page).cast_mut().cast();
    NonNull::new(page).expect("the image is not at 0")
}

/// Masks every port and forgets what is pending. Once the page is mapped.
pub fn init() {
    set_vcpu_info(0, shared().cast());
    for word in 0..64 {
        mask_word(word).store(u64::MAX, Ordering::SeqCst);
        pending_word(word).store(0, Ordering::SeqCst);
    }
}

/// Says where a vCPU's info lies, from now on and for ever.
pub fn set_vcpu_info(vcpu: usize, at: NonNull<VcpuInfo>) {
    VCPU_INFO[vcpu].store(at.as_ptr(), Ordering::Release);
}

/// The running vCPU's info, which Xen writes: read it field by field.
pub fn vcpu_info() -> *const VcpuInfo {
    VCPU_INFO[cpu::id()].load(Ordering::Acquire)
}

fn word(at: *const u64) -> &'static AtomicU64 {
    // SAFETY: callers below pass fields of the shared-info page or of a vCPU's info, both
    // mapped for ever, aligned, and only ever accessed atomically.
    unsafe { AtomicU64::from_ptr(at.cast_mut()) }
}

fn pending_word(index: usize) -> &'static AtomicU64 {
    assert!(index < 64);
    let offset = core::mem::offset_of!(SharedInfo, evtchn_pending) + index * 8;
    // SAFETY: inside the page: the array has 64 words.
    word(unsafe { shared().as_ptr().cast::<u8>().add(offset).cast() })
}

fn mask_word(index: usize) -> &'static AtomicU64 {
    assert!(index < 64);
    let offset = core::mem::offset_of!(SharedInfo, evtchn_mask) + index * 8;
    // SAFETY: inside the page: the array has 64 words.
    word(unsafe { shared().as_ptr().cast::<u8>().add(offset).cast() })
}

fn upcall_pending() -> &'static AtomicU8 {
    let info = vcpu_info().cast_mut();
    // SAFETY: `vcpu_info` is this vCPU's, mapped for ever.
    let field = unsafe { &raw mut (*info).evtchn_upcall_pending };
    // SAFETY: as above, and only ever accessed atomically.
    unsafe { AtomicU8::from_ptr(field) }
}

fn selector() -> &'static AtomicU64 {
    let info = vcpu_info();
    // SAFETY: `vcpu_info` is this vCPU's, mapped for ever.
    word(unsafe { &raw const (*info).evtchn_pending_sel })
}

/// Whether an event waits for the running vCPU.
pub fn has_event() -> bool {
    upcall_pending().load(Ordering::Relaxed) != 0
}

/// Takes every pending, unmasked event of the running vCPU and hands on its port.
///
/// The pending flag is cleared before the selectors are read: an event after that sets it
/// again, and the next block returns at once (xen/common/event_2l.c).
pub fn take_events(mut each: impl FnMut(EvtchnPort)) {
    if !has_event() {
        return;
    }
    upcall_pending().store(0, Ordering::SeqCst);
    let mut words = selector().swap(0, Ordering::SeqCst);
    while words != 0 {
        let index = words.trailing_zeros();
        words &= words - 1;
        let mask = mask_word(index as usize).load(Ordering::SeqCst);
        let pending = pending_word(index as usize);
        let mut bits = pending.load(Ordering::SeqCst) & !mask;
        pending.fetch_and(!bits, Ordering::SeqCst);
        while bits != 0 {
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            each(EvtchnPort(index * 64 + bit));
        }
    }
}

/// Sets a port's mask bit, so that it gives no event any more.
pub fn mask(port: EvtchnPort) {
    let (index, bit) = place(port);
    mask_word(index).fetch_or(1 << bit, Ordering::SeqCst);
}

fn place(port: EvtchnPort) -> (usize, u32) {
    let number = port.0 as usize;
    assert!(number < PORTS, "Xen gave a port beyond the two-level ABI");
    (number / 64, port.0 % 64)
}

/// The address of the last page fault of the running vCPU.
pub fn fault_address() -> u64 {
    let info = vcpu_info();
    if info.is_null() {
        return 0;
    }
    // SAFETY: `vcpu_info` is this vCPU's, mapped for ever.
    let field = unsafe { &raw const (*info).cr2 };
    // SAFETY: as above; Xen writes it only before it enters the page-fault handler.
    unsafe { field.read_volatile() }
}
