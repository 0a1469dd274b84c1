//! Counters of the device, which clear when read, added up.

use crate::registers::statistics as reg;
use core::sync::atomic::{AtomicU64, Ordering};
use hal::Mmio;
use hal::net::Statistics;

/// One of the sums.
#[derive(Clone, Copy, Debug)]
pub enum Counted {
    RxFrames,
    RxBytes,
    RxMissed,
    RxErrors,
    TxFrames,
    TxBytes,
    /// Frames the driver could make nothing of.
    RxBad,
    /// Frames taken back from a transmit ring.
    TxUnsent,
}

/// Sums since the start; updated from any vCPU.
#[derive(Debug, Default)]
pub struct Sums([AtomicU64; 8]);

impl Sums {
    pub fn add(&self, which: Counted, n: u64) {
        self.0[which as usize].fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self, which: Counted) -> u64 {
        self.0[which as usize].load(Ordering::Relaxed)
    }

    /// Adds what the device counted since the last call.
    pub fn update(&self, regs: &Mmio) -> Statistics {
        let word = |at| u64::from(regs.read32(at));
        // Reading the high half clears both.
        let long = |low, high| {
            let low = word(low);
            low | word(high) << 32
        };
        self.add(Counted::RxFrames, word(reg::GPRC));
        self.add(Counted::RxBytes, long(reg::GORCL, reg::GORCH));
        self.add(Counted::RxMissed, word(reg::MPC) + word(reg::RNBC));
        self.add(Counted::RxErrors, word(reg::CRCERRS) + word(reg::RXERRC));
        self.add(Counted::TxFrames, word(reg::GPTC));
        self.add(Counted::TxBytes, long(reg::GOTCL, reg::GOTCH));
        Statistics {
            rx_frames: self.get(Counted::RxFrames),
            rx_bytes: self.get(Counted::RxBytes),
            rx_missed: self.get(Counted::RxMissed),
            rx_errors: self.get(Counted::RxErrors) + self.get(Counted::RxBad),
            tx_frames: self.get(Counted::TxFrames),
            tx_bytes: self.get(Counted::TxBytes),
            tx_unsent: self.get(Counted::TxUnsent),
        }
    }
}
