use super::{BUFFER_SIZE, PacketBuffer, PacketPool};
use crate::DmaSegment;
use alloc::vec::Vec;
use core::num::NonZeroU16;

/// Parts a frame may have: 64 KiB over pages, and one page for a header of its own.
pub const MAX_PARTS: usize = 18;

/// The version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// A transport protocol whose checksum can be left to hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl L4 {
    /// Offset of the checksum in the transport header.
    pub const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Where the headers of a TCP or UDP frame lie. Checked against the frame's bytes by
/// whoever makes it: all three headers are inside the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of Ethernet header, with a VLAN tag if there is one.
    pub l2_len: u8,
    /// Bytes of IP header, with options or extension headers.
    pub l3_len: u16,
    /// Bytes of transport header.
    pub l4_len: u8,
    /// Which IP.
    pub ip: IpVersion,
    /// Which transport.
    pub l4: L4,
}

impl Layout {
    /// Offset of the IP header.
    pub fn l3_start(&self) -> usize {
        self.l2_len.into()
    }

    /// Offset of the transport header: the checksum is over all bytes from here.
    pub fn l4_start(&self) -> usize {
        self.l3_start() + usize::from(self.l3_len)
    }

    /// Offset of the transport checksum.
    pub fn checksum_at(&self) -> usize {
        self.l4_start() + self.l4.checksum_offset()
    }

    /// Bytes of all headers.
    pub fn headers(&self) -> usize {
        self.l4_start() + usize::from(self.l4_len)
    }
}

/// What is known of the transport checksum of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing: it is in the frame, right or wrong.
    Unknown,
    /// It is in the frame and was found right.
    Verified,
    /// It is still to be filled in. What the field holds meanwhile is unspecified, but for
    /// a frame given to a NIC: the sum over the pseudo header, with the transport length,
    /// or with length 0 if [`Frame::mss`] is set, as the 82576 and its like want it.
    Partial(Layout),
}

/// Some bytes of one buffer.
#[derive(Debug)]
pub struct FramePart {
    /// The page they are in.
    pub buffer: PacketBuffer,
    /// Where they start.
    pub offset: u16,
    /// How many they are.
    pub len: u16,
}

impl FramePart {
    /// As a scatter-list entry.
    pub fn segment(&self) -> DmaSegment {
        self.buffer.segment(self.offset.into(), self.len.into())
    }
}

/// One Ethernet frame, without FCS, and the memory it is in.
#[derive(Debug)]
pub struct Frame {
    parts: Vec<FramePart>,
    len: usize,
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// To be cut into TCP segments with this much payload each before it reaches a wire;
    /// the checksum is [`Checksum::Partial`] then.
    pub mss: Option<NonZeroU16>,
}

impl Frame {
    /// A frame of no byte yet.
    pub fn empty() -> Self {
        Self {
            parts: Vec::new(),
            len: 0,
            checksum: Checksum::Unknown,
            mss: None,
        }
    }

    /// Room for `len` bytes in as few buffers as hold them, contents unspecified. `None`:
    /// the pool has too few buffers, or `len` is 0 or too much for [`MAX_PARTS`] parts.
    pub fn with_room(pool: &PacketPool, len: usize) -> Option<Self> {
        let count = len.div_ceil(BUFFER_SIZE);
        if count == 0 || count > MAX_PARTS || pool.available() < count {
            return None;
        }
        let mut frame = Self::empty();
        frame.parts.reserve_exact(count);
        for n in 0..count {
            let part = (len - n * BUFFER_SIZE).min(BUFFER_SIZE);
            frame.push(FramePart {
                buffer: pool.get()?,
                offset: 0,
                len: u16::try_from(part).expect("at most a page"),
            });
        }
        Some(frame)
    }

    /// A copy of `bytes`.
    pub fn from_bytes(pool: &PacketPool, bytes: &[u8]) -> Option<Self> {
        let frame = Self::with_room(pool, bytes.len())?;
        frame.write(0, bytes);
        Some(frame)
    }

    /// A deep copy, for one more receiver.
    pub fn duplicate(&self, pool: &PacketPool) -> Option<Self> {
        let mut copy = Self::with_room(pool, self.len)?;
        copy.checksum = self.checksum;
        copy.mss = self.mss;
        let mut chunk = [0; 512];
        let mut at = 0;
        while at < self.len {
            let n = chunk.len().min(self.len - at);
            self.read(at, &mut chunk[..n]);
            copy.write(at, &chunk[..n]);
            at += n;
        }
        Some(copy)
    }

    /// Adds bytes at the end.
    ///
    /// # Panics
    /// If there are [`MAX_PARTS`] already, or the part leaves its buffer.
    pub fn push(&mut self, part: FramePart) {
        assert!(self.parts.len() < MAX_PARTS, "a frame of too many parts");
        assert!(usize::from(part.offset) + usize::from(part.len) <= part.buffer.len());
        self.len += usize::from(part.len);
        self.parts.push(part);
    }

    /// Where the bytes are, in order.
    pub fn parts(&self) -> &[FramePart] {
        &self.parts
    }

    /// The parts, for a ring that keeps them until the device is done.
    pub fn into_parts(self) -> Vec<FramePart> {
        self.parts
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Cuts bytes off the end.
    pub fn truncate(&mut self, len: usize) {
        while self.len > len {
            let Some(last) = self.parts.last_mut() else {
                break;
            };
            let cut = (self.len - len).min(last.len.into());
            last.len -= u16::try_from(cut).expect("at most the part's length");
            self.len -= cut;
            if last.len == 0 {
                self.parts.pop();
            }
        }
    }

    /// Adds zeros up to `len` bytes, in the last part's buffer. `false`: it has no room.
    pub fn pad_to(&mut self, len: usize) -> bool {
        let missing = len.saturating_sub(self.len);
        if missing == 0 {
            return true;
        }
        let Some(last) = self.parts.last_mut() else {
            return false;
        };
        let end = usize::from(last.offset) + usize::from(last.len);
        let Ok(more) = u16::try_from(missing) else {
            return false;
        };
        if end + missing > last.buffer.len() {
            return false;
        }
        let zeros = [0; 64];
        let mut at = end;
        while at < end + missing {
            let n = zeros.len().min(end + missing - at);
            last.buffer.write_bytes(at, &zeros[..n]);
            at += n;
        }
        last.len += more;
        self.len += missing;
        true
    }

    /// Copies `to.len()` bytes out, from `at` on.
    ///
    /// # Panics
    /// If the range leaves the frame.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        let mut done = 0;
        self.walk(at, to.len(), |part, offset, n| {
            part.buffer.read_bytes(offset, &mut to[done..done + n]);
            done += n;
        });
    }

    /// Copies bytes in, from `at` on.
    ///
    /// # Panics
    /// If the range leaves the frame.
    pub fn write(&self, at: usize, from: &[u8]) {
        let mut done = 0;
        self.walk(at, from.len(), |part, offset, n| {
            part.buffer.write_bytes(offset, &from[done..done + n]);
            done += n;
        });
    }

    /// Calls `visit` for each run of `at..at + len`: the part, the offset in its buffer,
    /// and the number of bytes.
    ///
    /// # Panics
    /// If the range leaves the frame.
    pub fn walk(&self, at: usize, len: usize, mut visit: impl FnMut(&FramePart, usize, usize)) {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {at} leave a frame of {}",
            self.len
        );
        let mut skip = at;
        let mut left = len;
        for part in &self.parts {
            if left == 0 {
                break;
            }
            let size = usize::from(part.len);
            if skip >= size {
                skip -= size;
                continue;
            }
            let n = (size - skip).min(left);
            visit(part, usize::from(part.offset) + skip, n);
            skip = 0;
            left -= n;
        }
    }
}
