//! The Intel 82576 gigabit controller, which QEMU offers as `igb`.
//!
//! A queue pair for each vCPU, up to 16 or as many as there are MSI-X vectors (QEMU has
//! 10); received flows are spread over them by RSS. Vector 0 is the link's, vector
//! `n + 1` queue `n`'s. Advanced descriptors; checksums and TCP segmentation by the
//! device. No SR-IOV, no VMDq, no VLAN handling.
//!
//! The datasheet is "Intel 82576EB Gigabit Ethernet Controller", revision 2.65;
//! sections in comments are its.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod descriptor;
mod queue;
mod registers;
mod statistics;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use hal::net::{Filtering, Link, MacAddr, NetDevice, NetQueue, Offloads, PacketPool, Statistics};
use hal::timer::sleep;
use hal::{DmaAllocator, Interrupt, Mmio, Node, PciFunction, Timer, VcpuId};
use queue::{Queue, Seat};
use registers as reg;
use spin::Mutex;
use statistics::Sums;

/// Queue pairs that the device has (7.1.2).
const MAX_QUEUES: usize = 16;
/// Shortest time between two interrupts of a queue, in microseconds: long enough to
/// gather a few frames at full speed, too short to be noticed by one.
const INTERRUPT_SPACING_US: u32 = 20;
/// RSS key: any bits do that are not periodic.
const RSS_KEY: [u32; 10] = [
    0x9e37_79b9,
    0x7f4a_7c15,
    0xf39c_c060,
    0x5ced_c834,
    0x1082_276b,
    0xf3a2_7251,
    0xf86c_6a11,
    0xd0c1_8e95,
    0x2767_f0b1,
    0x53d2_7b7f,
];

/// Vendor and device ids this driver knows: the ones with a copper PHY of their own.
pub const IDS: [(u16, u16); 3] = [(0x8086, 0x10c9), (0x8086, 0x10e8), (0x8086, 0x1526)];

/// Why the device could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IgbError {
    /// Not a device of [`IDS`].
    Unknown(u16, u16),
    /// The function could not be set up.
    Pci(hal::pci::PciError),
    /// No vCPU to serve, or no vector for a queue.
    NoQueues,
    /// Its own memory accesses did not stop before the reset.
    Busy,
    /// It did not come out of reset.
    Reset,
    /// Its PHY did not take a command.
    Phy,
    /// The EEPROM gave it no address.
    NoAddress,
    /// No memory for the rings.
    NoMemory,
}

impl fmt::Display for IgbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(vendor, device) => write!(f, "{vendor:04x}:{device:04x} is no 82576"),
            Self::Pci(error) => error.fmt(f),
            Self::NoQueues => write!(f, "no vCPU or no MSI-X vector for a queue"),
            Self::Busy => write!(f, "does not stop its memory accesses"),
            Self::Reset => write!(f, "does not come out of reset"),
            Self::Phy => write!(f, "its PHY does not answer"),
            Self::NoAddress => write!(f, "has no MAC address"),
            Self::NoMemory => write!(f, "no memory for its rings"),
        }
    }
}

impl core::error::Error for IgbError {}

impl From<hal::pci::PciError> for IgbError {
    fn from(error: hal::pci::PciError) -> Self {
        Self::Pci(error)
    }
}

/// How to start the device.
#[derive(Clone, Debug)]
pub struct Config {
    /// The vCPUs that want a queue, best first, and their nodes. Those for which no queue
    /// is left do without.
    pub vcpus: Vec<(VcpuId, Node)>,
    /// Payload of a frame: 1500, or up to 9000.
    pub mtu: u16,
}

/// What queues and control share.
#[derive(Debug)]
struct Shared {
    regs: Mmio,
    counted: Sums,
    /// There is a link, or nobody has looked yet.
    carrier: AtomicBool,
    /// Held for the few registers that several queues have in common.
    common: Mutex<()>,
}

impl Shared {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "there are at most 16 queues"
    )]
    const fn queue_vector(queue: usize) -> u16 {
        queue as u16 + 1
    }

    /// Says which vector a queue raises, and whether also for sent frames.
    fn set_vectors(&self, queue: usize, vector: u16, for_tx: bool) {
        let entry = u32::from(vector) | reg::IVAR_VALID;
        let rx = entry << reg::ivar_rx_shift(queue);
        let tx = if for_tx {
            entry << reg::ivar_tx_shift(queue)
        } else {
            0
        };
        let mask = 0xffff << reg::ivar_rx_shift(queue);
        let _held = self.common.lock();
        let old = self.regs.read32(reg::ivar(queue));
        self.regs.write32(reg::ivar(queue), old & !mask | rx | tx);
    }
}

/// A started 82576.
#[derive(Debug)]
pub struct Igb {
    shared: Arc<Shared>,
    mac: MacAddr,
    max_frame: usize,
    seats: Mutex<Vec<Option<Seat>>>,
    vcpus: Vec<VcpuId>,
}

impl Igb {
    /// Resets the device and starts it, with its queues still closed. Frames come once
    /// a queue is taken and the link is up, which takes the PHY up to some seconds.
    pub async fn start(
        function: &dyn PciFunction,
        dma: &dyn DmaAllocator,
        timer: &dyn Timer,
        config: &Config,
    ) -> Result<Self, IgbError> {
        let (vendor, device) = function.id();
        if !IDS.contains(&(vendor, device)) {
            return Err(IgbError::Unknown(vendor, device));
        }
        let vectors = usize::from(function.vectors());
        let queues = config
            .vcpus
            .len()
            .min(MAX_QUEUES)
            .min(vectors.saturating_sub(1));
        if queues == 0 {
            return Err(IgbError::NoQueues);
        }
        let regs = function.bar(0)?;
        reset(&regs, timer).await?;
        let mac = permanent_address(&regs).ok_or(IgbError::NoAddress)?;
        let vcpus = config.vcpus.iter().take(queues);
        let mut seats = Vec::with_capacity(queues);
        for (_, node) in vcpus.clone() {
            let ring = || dma.alloc(1, *node).ok_or(IgbError::NoMemory);
            seats.push(Some(Seat {
                rx_ring: ring()?,
                tx_ring: ring()?,
            }));
        }
        // Ethernet header and one VLAN tag.
        let max_frame = usize::from(config.mtu) + 18;
        let igb = Self {
            shared: Arc::new(Shared {
                regs,
                counted: Sums::default(),
                carrier: AtomicBool::new(true),
                common: Mutex::new(()),
            }),
            mac,
            max_frame,
            seats: Mutex::new(seats),
            vcpus: vcpus.map(|(vcpu, _)| *vcpu).collect(),
        };
        igb.program(queues);
        write_phy(
            &igb.shared.regs,
            timer,
            reg::PHY_CONTROL,
            reg::PHY_CONTROL_AUTONEG_RESTART,
        )
        .await?;
        Ok(igb)
    }

    fn program(&self, queues: usize) {
        let regs = &self.shared.regs;
        let set = |at, bits| regs.write32(at, regs.read32(at) | bits);
        set(reg::CTRL, reg::CTRL_SLU);
        set(reg::CTRL_EXT, reg::CTRL_EXT_DRV_LOAD);
        for word in 0..reg::MTA_WORDS {
            regs.write32(reg::MTA + 4 * word, 0);
            regs.write32(reg::VFTA + 4 * word, 0);
        }
        self.set_unicast_filters(&[]);
        // Queue 0 is open after a reset, with a ring of no length.
        for queue in 0..MAX_QUEUES {
            regs.write32(reg::rx::base(queue) + reg::rx::RXDCTL, 0);
            regs.write32(reg::tx::base(queue) + reg::tx::TXDCTL, 0);
        }

        regs.write32(
            reg::RXCSUM,
            reg::RXCSUM_IPOFLD | reg::RXCSUM_TUOFLD | reg::RXCSUM_PCSD,
        );
        if queues > 1 {
            for (n, word) in RSS_KEY.iter().enumerate() {
                regs.write32(reg::RSSRK + 4 * n, *word);
            }
            for word in 0..reg::RETA_WORDS {
                let queue = |i| u8::try_from((4 * word + i) % queues).unwrap_or(0);
                let entries = [0, 1, 2, 3].map(queue);
                regs.write32(reg::RETA + 4 * word, u32::from_le_bytes(entries));
            }
            regs.write32(reg::MRQC, reg::MRQC_RSS | reg::MRQC_FIELDS);
        } else {
            regs.write32(reg::MRQC, 0);
        }

        // One message per cause, which clears as it is sent; reading ICR clears it.
        regs.write32(
            reg::GPIE,
            reg::GPIE_MSIX | reg::GPIE_NSICR | reg::GPIE_EIAME | reg::GPIE_PBA,
        );
        let all = (1u32 << (queues + 1)) - 1;
        regs.write32(reg::EIAC, all);
        for queue in 0..queues {
            regs.write32(
                reg::eitr(Shared::queue_vector(queue)),
                INTERRUPT_SPACING_US << reg::EITR_SHIFT,
            );
        }
        regs.write32(reg::IVAR_MISC, (reg::IVAR_VALID) << 8);
        regs.write32(reg::EIMS, 1);
        regs.write32(reg::IMS, reg::ICR_LSC);

        let rlpml = u32::try_from(self.max_frame + 4).expect("below 64 KiB");
        regs.write32(reg::RLPML, rlpml);
        regs.write32(
            reg::TCTL,
            reg::TCTL_EN | reg::TCTL_PSP | reg::TCTL_COLLISIONS,
        );
        set(
            reg::RCTL,
            reg::RCTL_EN | reg::RCTL_MPE | reg::RCTL_LPE | reg::RCTL_BAM | reg::RCTL_SECRC,
        );
    }
}

/// Waits until `done`, looking every `step_us`, at most `limit_us`.
async fn wait(timer: &dyn Timer, step_us: u64, limit_us: u64, done: impl Fn() -> bool) -> bool {
    let until = timer.now_ns() + limit_us * 1000;
    loop {
        if done() {
            return true;
        }
        if timer.now_ns() >= until {
            return false;
        }
        sleep(timer, step_us * 1000).await;
    }
}

/// Brings the device into a known state (4.2.1.6, 4.3).
async fn reset(regs: &Mmio, timer: &dyn Timer) -> Result<(), IgbError> {
    regs.write32(reg::IMC, u32::MAX);
    regs.write32(reg::EIMC, u32::MAX);
    regs.write32(reg::RCTL, 0);
    regs.write32(reg::TCTL, reg::TCTL_PSP);
    regs.write32(
        reg::CTRL,
        regs.read32(reg::CTRL) | reg::CTRL_GIO_MASTER_DISABLE,
    );
    // A reset while the device has requests under way can hang the bus (5.2.3.3).
    let quiet = || regs.read32(reg::STATUS) & reg::STATUS_GIO_MASTER_ENABLE == 0;
    if !wait(timer, 100, 100_000, quiet).await {
        return Err(IgbError::Busy);
    }
    regs.write32(reg::CTRL, regs.read32(reg::CTRL) | reg::CTRL_RST);
    // The registers must not be touched for a millisecond.
    sleep(timer, 2_000_000).await;
    let out = || regs.read32(reg::CTRL) & reg::CTRL_RST == 0;
    if !wait(timer, 100, 100_000, out).await {
        return Err(IgbError::Reset);
    }
    // Some (QEMU's) never say that the EEPROM is read; the address shows whether it is.
    let read = || regs.read32(reg::EECD) & reg::EECD_AUTO_RD != 0;
    wait(timer, 1_000, 10_000, read).await;
    regs.write32(reg::IMC, u32::MAX);
    regs.write32(reg::EIMC, u32::MAX);
    regs.read32(reg::ICR);
    regs.write32(
        reg::CTRL,
        regs.read32(reg::CTRL) & !reg::CTRL_GIO_MASTER_DISABLE,
    );
    Ok(())
}

/// The address that the EEPROM put into the first filter.
fn permanent_address(regs: &Mmio) -> Option<MacAddr> {
    let low = regs.read32(reg::receive_address(0)).to_le_bytes();
    let high = regs.read32(reg::receive_address(0) + 4).to_le_bytes();
    let mac = MacAddr([low[0], low[1], low[2], low[3], high[0], high[1]]);
    (!mac.is_multicast() && mac.0 != [0; 6]).then_some(mac)
}

/// Writes a PHY register (8.2.4).
async fn write_phy(
    regs: &Mmio,
    timer: &dyn Timer,
    register: u32,
    value: u32,
) -> Result<(), IgbError> {
    regs.write32(
        reg::MDIC,
        reg::MDIC_WRITE_PHY1 | register << reg::MDIC_REG_SHIFT | value,
    );
    let ready = || regs.read32(reg::MDIC) & reg::MDIC_READY != 0;
    if !wait(timer, 50, 10_000, ready).await || regs.read32(reg::MDIC) & reg::MDIC_ERROR != 0 {
        return Err(IgbError::Phy);
    }
    Ok(())
}

impl NetDevice for Igb {
    fn mac(&self) -> MacAddr {
        self.mac
    }

    fn offloads(&self) -> Offloads {
        Shared::OFFLOADS
    }

    fn max_frame(&self) -> usize {
        self.max_frame
    }

    fn queues(&self) -> usize {
        self.vcpus.len()
    }

    fn queue_vector(&self, queue: usize) -> u16 {
        Shared::queue_vector(queue)
    }

    fn queue_vcpu(&self, queue: usize) -> VcpuId {
        self.vcpus[queue]
    }

    fn take_queue(
        &self,
        queue: usize,
        interrupt: Box<dyn Interrupt>,
        pool: PacketPool,
    ) -> Option<Box<dyn NetQueue>> {
        let seat = self.seats.lock().get_mut(queue)?.take()?;
        let shared = self.shared.clone();
        Some(Box::new(Queue::start(shared, queue, seat, interrupt, pool)))
    }

    fn link_vector(&self) -> u16 {
        0
    }

    fn service_link(&self) -> Link {
        let regs = &self.shared.regs;
        // Cleared first, so that a change after the look at STATUS raises it again.
        regs.read32(reg::ICR);
        regs.write32(reg::IMS, reg::ICR_LSC);
        regs.write32(reg::EIMS, 1);
        let status = regs.read32(reg::STATUS);
        let up = status & reg::STATUS_LU != 0;
        if self.shared.carrier.swap(up, Ordering::AcqRel) != up {
            // The queues' tasks see to their rings, each on its own vCPU.
            let queues = (0..self.vcpus.len()).map(|n| 1 << Shared::queue_vector(n));
            regs.write32(reg::EICS, queues.sum());
        }
        if !up {
            return Link::Down;
        }
        Link::Up {
            mbps: match status >> reg::STATUS_SPEED_SHIFT & 3 {
                0 => 10,
                1 => 100,
                _ => 1000,
            },
            full_duplex: status & reg::STATUS_FD != 0,
        }
    }

    fn set_unicast_filters(&self, macs: &[MacAddr]) -> Filtering {
        let regs = &self.shared.regs;
        let _held = self.shared.common.lock();
        let mut wanted = Vec::from([self.mac]);
        wanted.extend(macs.iter().filter(|mac| **mac != self.mac));
        for n in 0..reg::RECEIVE_ADDRESSES {
            let at = reg::receive_address(n);
            let (low, high) = match wanted.get(n) {
                Some(MacAddr([a, b, c, d, e, f])) => (
                    u32::from_le_bytes([*a, *b, *c, *d]),
                    u32::from_le_bytes([*e, *f, 0, 0]) | reg::RAH_VALID,
                ),
                None => (0, 0),
            };
            // An entry is invalid while its halves do not belong together.
            regs.write32(at + 4, 0);
            regs.write32(at, low);
            regs.write32(at + 4, high);
        }
        let rctl = regs.read32(reg::RCTL);
        if wanted.len() > reg::RECEIVE_ADDRESSES {
            regs.write32(reg::RCTL, rctl | reg::RCTL_UPE);
            Filtering::Promiscuous
        } else {
            regs.write32(reg::RCTL, rctl & !reg::RCTL_UPE);
            Filtering::Exact
        }
    }

    fn statistics(&self) -> Statistics {
        self.shared.counted.update(&self.shared.regs)
    }
}
