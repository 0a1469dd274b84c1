//! The headers of a frame, and the Internet checksum over it.
//!
//! Parses a private copy of a frame's first bytes, made by whoever else: nothing a
//! guest can still change. RFC 791, 8200, 9293, 768, 1071; IEEE 802.1Q (one tag).

use hal::net::{Frame, IpVersion, L4, Layout, MacAddr};

/// Bytes of an untagged Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of a frame that [`parse`] may need: Ethernet with a tag, IPv4 and TCP with all
/// their options, and IPv6 with a bounded run of extension headers.
pub const PREFIX: usize = 256;

const VLAN_TAG: u16 = 0x8100;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const MAC_CONTROL: u16 = 0x8808;
const UDP: u8 = 17;
/// Extension headers that are walked before the frame counts as neither TCP nor UDP.
const MAX_EXTENSIONS: usize = 8;

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Destination and source address.
pub fn addresses(prefix: &[u8]) -> Option<(MacAddr, MacAddr)> {
    let to = prefix.get(..6)?.try_into().ok()?;
    let from = prefix.get(6..12)?.try_into().ok()?;
    Some((MacAddr(to), MacAddr(from)))
}

/// Whether a frame that starts with `prefix` is for the other end of its link, so that no
/// bridge forwards it: to a reserved group address (IEEE 802.1Q table 8-1: spanning tree,
/// LACP, LLDP) or MAC control (IEEE 802.3 annex 31A), with which one station can keep another
/// from sending.
pub fn is_of_the_link(prefix: &[u8]) -> bool {
    let reserved = matches!(prefix, [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f, ..]);
    reserved || be16(prefix, 12) == Some(MAC_CONTROL)
}

/// Finds the headers of a TCP or UDP frame of `len` bytes that starts with `prefix`
/// (the whole frame if it is shorter than [`PREFIX`]).
///
/// `None`: something else, a fragment, a header that ends outside the frame, or a length
/// field that claims more than the frame has. The IP length may be less than the frame's:
/// short frames are padded.
pub fn parse(prefix: &[u8], len: usize) -> Option<Layout> {
    let (l2_len, ethertype) = match be16(prefix, 12)? {
        VLAN_TAG => (ETHERNET + 4, be16(prefix, 16)?),
        other => (ETHERNET, other),
    };
    let (ip, l3_len, protocol) = match ethertype {
        IPV4 => parse_v4(prefix.get(l2_len..)?, len.checked_sub(l2_len)?)?,
        IPV6 => parse_v6(prefix.get(l2_len..)?, len.checked_sub(l2_len)?)?,
        _ => return None,
    };
    let l4_start = l2_len + l3_len;
    let (l4, l4_len) = match protocol {
        TCP => {
            let len = usize::from(prefix.get(l4_start + 12)? >> 4) * 4;
            (L4::Tcp, (len >= 20).then_some(len)?)
        }
        UDP => (L4::Udp, 8),
        _ => return None,
    };
    if l4_start + l4_len > len.min(prefix.len()) {
        return None;
    }
    let layout = Layout {
        l2_len: u8::try_from(l2_len).ok()?,
        l3_len: u16::try_from(l3_len).ok()?,
        l4_len: u8::try_from(l4_len).ok()?,
        ip,
        l4,
    };
    // What IP says it carries must hold the transport header, too.
    (ip_payload_end(prefix, &layout)? >= layout.headers()).then_some(layout)
}

fn parse_v4(packet: &[u8], len: usize) -> Option<(IpVersion, usize, u8)> {
    let first = *packet.first()?;
    let header = usize::from(first & 0xf) * 4;
    let total = usize::from(be16(packet, 2)?);
    // Neither a later fragment nor a first one has a checksum that could be filled in.
    let fragment = be16(packet, 6)? & 0x3fff != 0;
    if first >> 4 != 4 || header < 20 || total < header || total > len || fragment {
        return None;
    }
    Some((IpVersion::V4, header, *packet.get(9)?))
}

fn parse_v6(packet: &[u8], len: usize) -> Option<(IpVersion, usize, u8)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    if packet.first()? >> 4 != 6 || usize::from(be16(packet, 4)?) + 40 > len {
        return None;
    }
    let mut next = *packet.get(6)?;
    let mut at = 40;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            // With a routing header the checksum's destination is not the header's.
            HOP_BY_HOP | DESTINATION => {
                next = *packet.get(at)?;
                at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
            }
            ROUTING => return None,
            _ => return Some((IpVersion::V6, at, next)),
        }
    }
    None
}

/// Where the IP packet ends in the frame: what follows is padding.
fn ip_payload_end(prefix: &[u8], layout: &Layout) -> Option<usize> {
    let l3 = layout.l3_start();
    Some(match layout.ip {
        IpVersion::V4 => l3 + usize::from(be16(prefix, l3 + 2)?),
        IpVersion::V6 => l3 + 40 + usize::from(be16(prefix, l3 + 4)?),
    })
}

/// The first bytes of a frame, as a private array.
#[derive(Debug)]
pub struct Prefix {
    bytes: [u8; PREFIX],
    len: usize,
}

impl Prefix {
    /// Reads them.
    pub fn of(frame: &Frame) -> Self {
        let mut bytes = [0; PREFIX];
        let len = frame.len().min(PREFIX);
        frame.read(0, &mut bytes[..len]);
        Self { bytes, len }
    }

    /// As a slice.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A ones' complement sum (RFC 1071), over pieces of any length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Carries are kept above 16 bits and folded at the end; 64 bits never overflow for
    /// what fits into a frame.
    total: u64,
    odd: bool,
}

impl Sum {
    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if self.odd
            && let [first, rest @ ..] = bytes
        {
            self.total += u64::from(*first);
            self.odd = false;
            bytes = rest;
        }
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            self.total += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
        }
        for pair in words.remainder().chunks(2) {
            self.total += u64::from(pair[0]) << 8;
            match pair.get(1) {
                Some(low) => self.total += u64::from(*low),
                None => self.odd = true,
            }
        }
    }

    /// Adds one big-endian word at an even place.
    pub fn add_word(&mut self, word: u16) {
        self.total += u64::from(word);
    }

    /// The sum, not complemented.
    pub fn folded(&self) -> u16 {
        let mut total = self.total;
        while total > 0xffff {
            total = (total >> 16) + (total & 0xffff);
        }
        u16::try_from(total).unwrap_or(0xffff)
    }

    /// As it is stored in IPv4 and TCP.
    pub fn finish(&self) -> u16 {
        !self.folded()
    }
}

/// The sum over the pseudo header, with this transport length. `prefix` holds the
/// headers that `layout` says.
pub fn pseudo_sum(prefix: &[u8], layout: &Layout, l4_bytes: usize) -> Sum {
    let l3 = layout.l3_start();
    let mut sum = Sum::default();
    sum.add(match layout.ip {
        IpVersion::V4 => &prefix[l3 + 12..l3 + 20],
        IpVersion::V6 => &prefix[l3 + 8..l3 + 40],
    });
    sum.add_word(match layout.l4 {
        L4::Tcp => TCP.into(),
        L4::Udp => UDP.into(),
    });
    // A jumbogram's length has more than 16 bits; a frame's has not, but sum both halves.
    sum.add_word(u16::try_from(l4_bytes >> 16).unwrap_or(0));
    sum.add_word(u16::try_from(l4_bytes & 0xffff).unwrap_or(0));
    sum
}

/// Transport bytes of the frame: header and payload, without padding.
pub fn l4_bytes(prefix: &[u8], layout: &Layout) -> usize {
    ip_payload_end(prefix, layout)
        .unwrap_or(0)
        .saturating_sub(layout.l4_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// None has all that a checksum is over.
    #[test]
    fn no_fragment_has_a_transport_header() {
        const DONT_FRAGMENT: u16 = 0x4000;
        const MORE_FRAGMENTS: u16 = 0x2000;
        let mut frame = [0; ETHERNET + 20 + 8];
        frame[12..14].copy_from_slice(&IPV4.to_be_bytes());
        frame[14] = 0x45;
        frame[17] = 20 + 8;
        frame[23] = UDP;
        for (fragment, whole) in [
            (0, true),
            (DONT_FRAGMENT, true),
            (MORE_FRAGMENTS, false),
            (MORE_FRAGMENTS | 1, false),
            (1, false),
            (0x1000, false),
        ] {
            frame[20..22].copy_from_slice(&fragment.to_be_bytes());
            let found = parse(&frame, frame.len()).is_some();
            assert_eq!(found, whole, "{fragment:#x}");
        }
    }
}
