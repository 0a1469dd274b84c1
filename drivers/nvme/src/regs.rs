//! Controller registers (section 3.1).

use hal::Mmio;

pub const CAP: usize = 0x00;
pub const CC: usize = 0x14;
pub const CSTS: usize = 0x1c;
pub const AQA: usize = 0x24;
pub const ASQ: usize = 0x28;
pub const ACQ: usize = 0x30;
/// First doorbell; the pages before it hold everything else.
pub const DOORBELLS: usize = 0x1000;

/// CC: enable; 64-byte submission and 16-byte completion entries; 4 KiB pages, NVM
/// command set, round robin.
pub const CC_ENABLE: u32 = 1 | 6 << 16 | 4 << 20;
/// CC.SHN: normal shutdown.
pub const CC_SHUTDOWN: u32 = 1 << 14;
/// CSTS.RDY.
pub const CSTS_READY: u32 = 1;
/// CSTS.CFS: the controller has failed.
pub const CSTS_FATAL: u32 = 1 << 1;
/// CSTS.SHST: mask, and "shutdown complete".
pub const CSTS_SHUTDOWN: u32 = 3 << 2;
/// Shutdown processing complete.
pub const CSTS_SHUTDOWN_DONE: u32 = 2 << 2;

/// What CAP says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Entries a queue may have (MQES + 1).
    pub max_entries: u32,
    /// Longest wait for CSTS.RDY to follow CC.EN.
    pub ready_timeout_ns: u64,
    /// Bytes between doorbells.
    pub stride: usize,
    /// log2 of the smallest page the controller can work with.
    pub min_page_shift: u32,
}

impl Capabilities {
    /// Reads CAP, in halves: any controller allows 32-bit accesses.
    pub fn read(regs: &Mmio) -> Self {
        Self::parse(regs.read32(CAP), regs.read32(CAP + 4))
    }

    fn parse(low: u32, high: u32) -> Self {
        Self {
            max_entries: (low & 0xffff) + 1,
            // Units of 500 ms; 0 is read as one of them.
            ready_timeout_ns: u64::from((low >> 24).max(1)) * 500_000_000,
            stride: 4 << (high & 0xf),
            min_page_shift: 12 + (high >> 16 & 0xf),
        }
    }
}

/// Stores a 64-bit register in halves.
pub fn write_pair(regs: &Mmio, offset: usize, value: u64) {
    let bytes = value.to_le_bytes();
    let half = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        u32::from_le_bytes(word)
    };
    regs.write32(offset, half(0));
    regs.write32(offset + 4, half(4));
}

/// Where the doorbells of queue `qid` are: submission tail, completion head.
pub fn doorbells(stride: usize, qid: u16) -> (usize, usize) {
    let first = DOORBELLS + 2 * usize::from(qid) * stride;
    (first, first + stride)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_cap_is_read() {
        // CAP of QEMU 10's NVMe: MQES 2047, CQR, TO 15, CSS, MPSMAX 4.
        let cap = Capabilities::parse(0x0f01_07ff, 0x0040_2020 & !0xf);
        assert_eq!(cap.max_entries, 2048);
        assert_eq!(cap.ready_timeout_ns, 7_500_000_000);
        assert_eq!(cap.stride, 4);
        assert_eq!(cap.min_page_shift, 12);
        assert_eq!(doorbells(cap.stride, 3), (0x1018, 0x101c));
    }
}
