//! Advanced descriptors, datasheet 7.1.5 and 7.2.2: 16 bytes each.

use hal::net::{Checksum, IpVersion, L4, Layout};

/// Bytes of a descriptor.
pub const SIZE: usize = 16;
/// Offset of the word that says when the device is done, in both rings.
pub const RX_STATUS: usize = 8;
/// The same for transmit.
pub const TX_STATUS: usize = 12;
/// Descriptor done, in both.
pub const DONE: u32 = 1;

/// The low and the high half of an address.
pub fn halves(bus_addr: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = bus_addr.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

/// A receive descriptor for the device: where the buffer is, and no header buffer.
pub fn rx_read(bus_addr: u64) -> [u64; 2] {
    [bus_addr, 0]
}

/// What the device wrote back for one receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxDone {
    status_error: u32,
    /// Bytes in the buffer.
    pub len: u16,
}

impl RxDone {
    /// Takes the second half of a descriptor apart.
    pub fn from_words(status_error: u32, len_vlan: u32) -> Self {
        Self {
            status_error,
            len: u16::try_from(len_vlan & 0xffff).unwrap_or(0),
        }
    }

    /// The frame's last buffer.
    pub fn end_of_packet(self) -> bool {
        self.status_error & 1 << 1 != 0
    }

    /// Damaged on the wire.
    pub fn is_bad(self) -> bool {
        self.status_error & 1 << 31 != 0
    }

    /// What the device found of the transport checksum.
    pub fn checksum(self) -> Checksum {
        const L4_ERROR: u32 = 1 << 29;
        const IP_ERROR: u32 = 1 << 30;
        const L4_CHECKED: u32 = 1 << 5 | 1 << 4;
        if self.status_error & (L4_ERROR | IP_ERROR) == 0 && self.status_error & L4_CHECKED != 0 {
            Checksum::Verified
        } else {
            // A wrong one is the receiver's to count.
            Checksum::Unknown
        }
    }
}

const DEXT: u32 = 1 << 29;
const EOP: u32 = 1 << 24;
const IFCS: u32 = 1 << 25;
const REPORT_STATUS: u32 = 1 << 27;
const TSE: u32 = 1 << 31;
const DATA: u32 = 3 << 20;
const CONTEXT: u32 = 2 << 20;
const POPTS_IP: u32 = 1 << 8;
const POPTS_L4: u32 = 1 << 9;
const PAYLEN_SHIFT: u32 = 14;

/// A context descriptor: where the headers are, for the data that follows.
pub fn context(layout: &Layout, mss: Option<u16>) -> [u32; 4] {
    let lens = u32::from(layout.l3_len) | u32::from(layout.l2_len) << 9;
    let ip = match layout.ip {
        IpVersion::V4 => 1 << 10,
        IpVersion::V6 => 0,
    };
    let l4 = match layout.l4 {
        L4::Tcp => 1 << 11,
        L4::Udp => 0,
    };
    let mss = u32::from(mss.unwrap_or(0));
    [
        lens,
        0,
        DEXT | CONTEXT | ip | l4,
        mss << 16 | u32::from(layout.l4_len) << 8,
    ]
}

/// What the device shall do with a frame.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    command: u32,
    options: u32,
}

impl Work {
    /// For a frame of `len` bytes. Segmentation counts the payload, all else the frame.
    pub fn of(len: usize, checksum: Checksum, segment: bool) -> Self {
        let mut command = DEXT | DATA | IFCS;
        let (mut options, mut paylen) = (0, len);
        if let Checksum::Partial(layout) = checksum {
            options |= POPTS_L4;
            if segment {
                command |= TSE;
                paylen = len - layout.headers();
                if layout.ip == IpVersion::V4 {
                    options |= POPTS_IP;
                }
            }
        }
        let paylen = u32::try_from(paylen).expect("a frame is far below 256 KiB");
        Self {
            command,
            options: options | paylen << PAYLEN_SHIFT,
        }
    }

    /// The descriptor of one part.
    pub fn data(self, bus_addr: u64, len: u32, last: bool) -> [u32; 4] {
        let end = if last { EOP | REPORT_STATUS } else { 0 };
        let [low, high] = halves(bus_addr);
        [low, high, self.command | end | len, self.options]
    }
}
