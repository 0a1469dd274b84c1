//! Registers of the 82576, by the datasheet's chapter 8 (revision 2.65). Offsets into
//! BAR 0; all are 32 bits wide.

/// Device control, 8.2.1.
pub const CTRL: usize = 0x0000;
/// Stops the device's own memory accesses.
pub const CTRL_GIO_MASTER_DISABLE: u32 = 1 << 2;
/// Set link up.
pub const CTRL_SLU: u32 = 1 << 6;
/// Software reset; clears itself.
pub const CTRL_RST: u32 = 1 << 26;

/// Device status, 8.2.2.
pub const STATUS: usize = 0x0008;
/// Full duplex.
pub const STATUS_FD: u32 = 1;
/// Link up.
pub const STATUS_LU: u32 = 1 << 1;
/// Transmission is held up by the peer's PAUSE frames.
pub const STATUS_TXOFF: u32 = 1 << 4;
/// Bits of the speed: 10, 100, 1000 Mbit/s.
pub const STATUS_SPEED_SHIFT: u32 = 6;
/// Memory accesses of the device are enabled or under way.
pub const STATUS_GIO_MASTER_ENABLE: u32 = 1 << 19;

/// EEPROM control, 8.4.1.
pub const EECD: usize = 0x0010;
/// The registers that the EEPROM presets have their values.
pub const EECD_AUTO_RD: u32 = 1 << 9;

/// Extended device control, 8.2.3.
pub const CTRL_EXT: usize = 0x0018;
/// A driver is in charge, for the management firmware.
pub const CTRL_EXT_DRV_LOAD: u32 = 1 << 28;

/// PHY access, 8.2.4.
pub const MDIC: usize = 0x0020;
/// Write operation on the internal PHY (address 1).
pub const MDIC_WRITE_PHY1: u32 = 1 << 26 | 1 << 21;
/// Shift of the PHY register number.
pub const MDIC_REG_SHIFT: u32 = 16;
/// The operation is done.
pub const MDIC_READY: u32 = 1 << 28;
/// It failed.
pub const MDIC_ERROR: u32 = 1 << 30;
/// PHY control register (IEEE 802.3 clause 22, register 0).
pub const PHY_CONTROL: u32 = 0;
/// Auto-negotiation enable, and restart.
pub const PHY_CONTROL_AUTONEG_RESTART: u32 = 1 << 12 | 1 << 9;

/// Receive control, 8.10.1.
pub const RCTL: usize = 0x0100;
/// Receiver enable.
pub const RCTL_EN: u32 = 1 << 1;
/// Accept all unicast frames.
pub const RCTL_UPE: u32 = 1 << 3;
/// Accept all multicast frames.
pub const RCTL_MPE: u32 = 1 << 4;
/// Accept frames up to RLPML.
pub const RCTL_LPE: u32 = 1 << 5;
/// Accept broadcast.
pub const RCTL_BAM: u32 = 1 << 15;
/// Strip the FCS.
pub const RCTL_SECRC: u32 = 1 << 26;

/// Transmit control, 8.12.1.
pub const TCTL: usize = 0x0400;
/// Transmitter enable.
pub const TCTL_EN: u32 = 1 << 1;
/// Pad short frames.
pub const TCTL_PSP: u32 = 1 << 3;
/// Collision threshold 15, collision distance 64 bytes, retransmit on late collision.
pub const TCTL_COLLISIONS: u32 = 15 << 4 | 64 << 12 | 1 << 24;

/// Interrupt cause, 8.8.9. This and the next two by their old addresses, which the device
/// keeps as aliases, and which are the only ones that QEMU knows.
pub const ICR: usize = 0x00c0;
/// Interrupt mask set, 8.8.12.
pub const IMS: usize = 0x00d0;
/// Interrupt mask clear, 8.8.13.
pub const IMC: usize = 0x00d8;
/// Link status change, in ICR, IMS and IMC.
pub const ICR_LSC: u32 = 1 << 2;

/// General purpose interrupt enable, 8.8.20.
pub const GPIE: usize = 0x1514;
/// ICR clears on read whatever the masks say.
pub const GPIE_NSICR: u32 = 1;
/// One vector for each cause.
pub const GPIE_MSIX: u32 = 1 << 4;
/// The mask of 8.8.6 applies on reads of ICR.
pub const GPIE_EIAME: u32 = 1 << 30;
/// PBA bits clear by writing 1.
pub const GPIE_PBA: u32 = 1 << 31;

/// Extended interrupt cause set, mask set, mask clear, auto clear: 8.8.2 to 8.8.5. Bit `n` is MSI-X vector `n`.
/// A bit written here raises its vector.
pub const EICS: usize = 0x1520;
/// Mask set.
pub const EIMS: usize = 0x1524;
/// Mask clear.
pub const EIMC: usize = 0x1528;
/// Causes that clear when their message is sent.
pub const EIAC: usize = 0x152c;

/// Shortest time between two interrupts of a vector, 8.8.14.
pub const fn eitr(vector: u16) -> usize {
    0x1680 + 4 * vector as usize
}
/// Microseconds start at this bit.
pub const EITR_SHIFT: u32 = 2;

/// Vector of a queue, 8.8.15: the register that holds the entries of `queue`.
pub const fn ivar(queue: usize) -> usize {
    0x1700 + 4 * (queue & 7)
}
/// Shift of the receive entry in [`ivar`].
pub const fn ivar_rx_shift(queue: usize) -> u32 {
    if queue < 8 { 0 } else { 16 }
}
/// Shift of the transmit entry in [`ivar`].
pub const fn ivar_tx_shift(queue: usize) -> u32 {
    ivar_rx_shift(queue) + 8
}
/// The entry is valid.
pub const IVAR_VALID: u32 = 0x80;
/// Vector of the other causes, 8.8.16, in bits 15:8.
pub const IVAR_MISC: usize = 0x1740;

/// Receive checksum control, 8.10.20.
pub const RXCSUM: usize = 0x5000;
/// Check IPv4 headers.
pub const RXCSUM_IPOFLD: u32 = 1 << 8;
/// Check TCP and UDP.
pub const RXCSUM_TUOFLD: u32 = 1 << 9;
/// Descriptors carry the RSS hash, not the packet checksum.
pub const RXCSUM_PCSD: u32 = 1 << 13;
/// Longest frame with FCS, 8.10.22.
pub const RLPML: usize = 0x5004;

/// Multicast table, 8.10.15: 128 words.
pub const MTA: usize = 0x5200;
/// Words of [`MTA`].
pub const MTA_WORDS: usize = 128;
/// Receive address `n` low; the high half follows. 8.10.16.
pub const fn receive_address(n: usize) -> usize {
    if n < 16 {
        0x5400 + 8 * n
    } else {
        0x54e0 + 8 * (n - 16)
    }
}
/// Receive addresses that there are.
pub const RECEIVE_ADDRESSES: usize = 24;
/// The address is valid (high half).
pub const RAH_VALID: u32 = 1 << 31;
/// VLAN filter table and unicast hash table are off by [`RCTL`]; only cleared.
pub const VFTA: usize = 0x5600;

/// Multiple receive queues, 8.10.23.
pub const MRQC: usize = 0x5818;
/// RSS over all queues.
pub const MRQC_RSS: u32 = 2;
/// Hash TCP and IP, versions 4 and 6.
pub const MRQC_FIELDS: u32 = 0x3f << 16;
/// RSS redirection table, 8.10.24: 32 words of 4 queues.
pub const RETA: usize = 0x5c00;
/// Words of [`RETA`].
pub const RETA_WORDS: usize = 32;
/// RSS key, 8.10.25: 10 words.
pub const RSSRK: usize = 0x5c80;

/// Statistics, 8.18; they clear on read.
pub mod statistics {
    /// FCS errors.
    pub const CRCERRS: usize = 0x4000;
    /// Symbol and length errors.
    pub const RXERRC: usize = 0x400c;
    /// Frames missed for want of FIFO room.
    pub const MPC: usize = 0x4010;
    /// Good frames received.
    pub const GPRC: usize = 0x4074;
    /// Good frames sent.
    pub const GPTC: usize = 0x4080;
    /// Good bytes received, low half.
    pub const GORCL: usize = 0x4088;
    /// High half.
    pub const GORCH: usize = 0x408c;
    /// Good bytes sent, low half.
    pub const GOTCL: usize = 0x4090;
    /// High half.
    pub const GOTCH: usize = 0x4094;
    /// Frames that found no buffer.
    pub const RNBC: usize = 0x40a0;
}

/// One receive queue's registers, 8.10.5 to 8.10.11.
pub mod rx {
    /// First register of a queue.
    pub const fn base(queue: usize) -> usize {
        0xc000 + 0x40 * queue
    }
    /// Ring address, low.
    pub const RDBAL: usize = 0x00;
    /// Ring address, high.
    pub const RDBAH: usize = 0x04;
    /// Ring length in bytes, a multiple of 128.
    pub const RDLEN: usize = 0x08;
    /// Split and replication control.
    pub const SRRCTL: usize = 0x0c;
    /// Head.
    pub const RDH: usize = 0x10;
    /// Tail.
    pub const RDT: usize = 0x18;
    /// Descriptor control.
    pub const RXDCTL: usize = 0x28;
    /// Buffers of 4 KiB, advanced descriptors with one buffer, drop when there is none:
    /// a full queue must not hold up the others.
    pub const SRRCTL_VALUE: u32 = 4 | 1 << 25 | 1 << 31;
    /// Prefetch below 8, from 8 on, write back each; enable.
    pub const RXDCTL_VALUE: u32 = 8 | 8 << 8 | 1 << 16 | ENABLE;
    /// Queue enable.
    pub const ENABLE: u32 = 1 << 25;
}

/// One transmit queue's registers, 8.12.8 to 8.12.15.
pub mod tx {
    /// First register of a queue.
    pub const fn base(queue: usize) -> usize {
        0xe000 + 0x40 * queue
    }
    /// Ring address, low.
    pub const TDBAL: usize = 0x00;
    /// Ring address, high.
    pub const TDBAH: usize = 0x04;
    /// Ring length in bytes, a multiple of 128.
    pub const TDLEN: usize = 0x08;
    /// Head.
    pub const TDH: usize = 0x10;
    /// Tail.
    pub const TDT: usize = 0x18;
    /// Descriptor control.
    pub const TXDCTL: usize = 0x28;
    /// Prefetch below 8, from 1 on; enable.
    pub const TXDCTL_VALUE: u32 = 8 | 1 << 8 | ENABLE;
    /// Queue enable. Setting it starts the queue anew; cleared, it reads as 0 once the queue
    /// has stopped all it was doing.
    pub const ENABLE: u32 = 1 << 25;
}
