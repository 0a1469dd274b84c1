//! In software, what a NIC or a frontend cannot do: checksums and TCP segmentation.

use crate::headers::{Prefix, Sum, l4_bytes, pseudo_sum};
use hal::net::{Checksum, Frame, IpVersion, L4, Layout, PacketPool};

/// The smallest segment that we cut (`TCP_MIN_SND_MSS` of Linux). A guest that asks for
/// less wants 64 thousand frames from one.
pub const MIN_MSS: u16 = 48;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Fills in a [`Checksum::Partial`]. A frame that is to be cut is left alone: its
/// segments get theirs.
pub fn fill_checksum(frame: &mut Frame) {
    let Checksum::Partial(layout) = frame.checksum else {
        return;
    };
    if frame.mss.is_some() {
        return;
    }
    let prefix = Prefix::of(frame);
    let bytes = l4_bytes(prefix.as_slice(), &layout);
    frame.write(layout.checksum_at(), &[0, 0]);
    let mut sum = pseudo_sum(prefix.as_slice(), &layout, bytes);
    add_bytes(&mut sum, frame, layout.l4_start(), bytes);
    let value = match (layout.l4, sum.finish()) {
        // Zero means "none" in UDP (RFC 768).
        (L4::Udp, 0) => 0xffff,
        (_, value) => value,
    };
    frame.write(layout.checksum_at(), &value.to_be_bytes());
    frame.checksum = Checksum::Verified;
}

/// Puts the pseudo header's sum where a NIC wants to find it.
pub fn prepare_for_nic(frame: &Frame) {
    let Checksum::Partial(layout) = frame.checksum else {
        return;
    };
    let prefix = Prefix::of(frame);
    let bytes = match frame.mss {
        // The NIC adds each segment's length itself.
        Some(_) => 0,
        None => l4_bytes(prefix.as_slice(), &layout),
    };
    let sum = pseudo_sum(prefix.as_slice(), &layout, bytes).folded();
    frame.write(layout.checksum_at(), &sum.to_be_bytes());
}

fn add_bytes(sum: &mut Sum, frame: &Frame, at: usize, len: usize) {
    let mut chunk = [0; 512];
    let mut done = 0;
    while done < len {
        let n = chunk.len().min(len - done);
        frame.read(at + done, &mut chunk[..n]);
        sum.add(&chunk[..n]);
        done += n;
    }
}

/// What [`Segments::next`] has to say.
#[derive(Debug)]
pub enum Next {
    /// A segment; its checksum is still [`Checksum::Partial`].
    Segment(Frame),
    /// The pool is empty: try again later.
    NoMemory,
    /// There are no more.
    Done,
}

/// Cuts a TCP frame into segments, one at a time, so that no more memory is taken than
/// the receiver has room for.
#[derive(Debug)]
pub struct Segments {
    whole: Frame,
    headers: Prefix,
    layout: Layout,
    mss: usize,
    payload: usize,
    /// Payload bytes cut off already.
    done: usize,
    count: u16,
}

impl Segments {
    /// Starts cutting; a frame that needs no cutting comes back.
    pub fn of(frame: Frame) -> Result<Self, Frame> {
        let (Some(mss), Checksum::Partial(layout)) = (frame.mss, frame.checksum) else {
            return Err(frame);
        };
        let headers = Prefix::of(&frame);
        let payload = l4_bytes(headers.as_slice(), &layout).saturating_sub(layout.l4_len.into());
        Ok(Self {
            whole: frame,
            headers,
            layout,
            mss: usize::from(mss.get().max(MIN_MSS)),
            payload,
            done: 0,
            count: 0,
        })
    }

    /// Bytes of the longest segment.
    pub fn max_len(&self) -> usize {
        self.layout.headers() + self.mss.min(self.payload)
    }

    /// Cuts the next segment off.
    pub fn next(&mut self, pool: &PacketPool) -> Next {
        // A frame of no payload is one segment.
        if self.done >= self.payload && self.count > 0 {
            return Next::Done;
        }
        let headers = self.layout.headers();
        let len = (self.payload - self.done).min(self.mss);
        let Some(mut segment) = Frame::with_room(pool, headers + len) else {
            return Next::NoMemory;
        };
        let mut head = [0; crate::headers::PREFIX];
        let head = &mut head[..headers];
        head.copy_from_slice(&self.headers.as_slice()[..headers]);
        self.fix_headers(head, len);
        segment.write(0, head);
        let mut chunk = [0; 1024];
        let mut copied = 0;
        while copied < len {
            let n = chunk.len().min(len - copied);
            self.whole
                .read(headers + self.done + copied, &mut chunk[..n]);
            segment.write(headers + copied, &chunk[..n]);
            copied += n;
        }
        segment.checksum = Checksum::Partial(self.layout);
        self.done += len;
        self.count = self.count.wrapping_add(1);
        Next::Segment(segment)
    }

    fn fix_headers(&self, head: &mut [u8], len: usize) {
        let layout = &self.layout;
        let l3 = layout.l3_start();
        let l4 = layout.l4_start();
        let ip_len = head.len() - l3 + len;
        match layout.ip {
            IpVersion::V4 => {
                put16(head, l3 + 2, ip_len);
                let id = u16::from_be_bytes([head[l3 + 4], head[l3 + 5]]);
                let id = id.wrapping_add(self.count);
                head[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes());
                head[l3 + 10..l3 + 12].fill(0);
                let mut sum = Sum::default();
                sum.add(&head[l3..l4]);
                head[l3 + 10..l3 + 12].copy_from_slice(&sum.finish().to_be_bytes());
            }
            IpVersion::V6 => put16(head, l3 + 4, ip_len - 40),
        }
        let seq = u32::from_be_bytes([head[l4 + 4], head[l4 + 5], head[l4 + 6], head[l4 + 7]]);
        let done = u32::try_from(self.done).unwrap_or(0);
        head[l4 + 4..l4 + 8].copy_from_slice(&seq.wrapping_add(done).to_be_bytes());
        if self.done + len < self.payload {
            head[l4 + 13] &= !(FIN | PSH);
        }
        if self.count > 0 {
            // "Congestion window reduced" is said once (RFC 3168).
            head[l4 + 13] &= !CWR;
        }
    }
}

fn put16(bytes: &mut [u8], at: usize, value: usize) {
    let value = u16::try_from(value).unwrap_or(u16::MAX);
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
