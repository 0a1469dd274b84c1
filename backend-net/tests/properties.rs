//! Random frames, slots and ports against simple models.
#![allow(
    clippy::cast_possible_truncation,
    reason = "made-up test data and lengths"
)]

mod common;

use backend_net::offload::{Next, Segments, fill_checksum};
use backend_net::switch::{Source, Verdict};
use backend_net::{Limits, Switch, fuzz};
use common::{Bed, LINUX, PLAIN, Tcp, checked_tcp, mac, pattern, raw, tcp};
use hal::VcpuId;
use hal::net::{Checksum, Frame, MacAddr};
use proptest::prelude::*;
use std::num::NonZeroU16;
use xen_abi::io::netif::{gso_type, txf};
use xen_sim::Sending;

/// A UDP frame with a right checksum, built by etherparse.
fn udp(v6: bool, payload: &[u8]) -> Vec<u8> {
    let step = etherparse::PacketBuilder::ethernet2(mac(1).0, mac(2).0);
    let ip = if v6 {
        step.ipv6([0x20; 16], [0x21; 16], 64)
    } else {
        step.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut frame = Vec::new();
    ip.udp(4000, 5001).write(&mut frame, payload).unwrap();
    frame
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn segments_add_up_to_the_whole(
        len in 1usize..60_000,
        mss in 48u16..9000,
        v6: bool,
        options: bool,
        flags in prop::sample::select(vec![0u8, 0x01, 0x08, 0x80, 0x89]),
    ) {
        let bed = Bed::new();
        let payload = pattern(len as u32, len);
        let bytes = tcp(mac(1), mac(2), Tcp { v6, flags, options }, &payload);
        let mut frame = Frame::from_bytes(&bed.pool, &bytes).unwrap();
        let prefix = &bytes[..bytes.len().min(backend_net::headers::PREFIX)];
        let layout = backend_net::headers::parse(prefix, bytes.len()).unwrap();
        frame.checksum = Checksum::Partial(layout);
        frame.mss = NonZeroU16::new(mss);
        let mut segments = Segments::of(frame).unwrap();
        let longest = segments.max_len();
        let mut whole = Vec::new();
        let mut ids = Vec::new();
        loop {
            let mut segment = match segments.next(&bed.pool) {
                Next::Segment(segment) => segment,
                Next::Done => break,
                Next::NoMemory => panic!("one segment at a time fits"),
            };
            prop_assert!(segment.len() <= longest);
            fill_checksum(&mut segment);
            let mut bytes = vec![0; segment.len()];
            segment.read(0, &mut bytes);
            let (header, part) = checked_tcp(&bytes);
            prop_assert_eq!(header.sequence_number, 0xffff_f000_u32.wrapping_add(whole.len() as u32));
            prop_assert!(part.len() == usize::from(mss) || whole.len() + part.len() == len);
            let last = whole.len() + part.len() == len;
            prop_assert_eq!(header.fin, last && flags & 0x01 != 0);
            prop_assert_eq!(header.psh, last && flags & 0x08 != 0);
            prop_assert_eq!(header.cwr, whole.is_empty() && flags & 0x80 != 0);
            prop_assert!(header.ack);
            if !v6 {
                ids.push(u16::from_be_bytes([bytes[18], bytes[19]]));
            }
            whole.extend(part);
        }
        prop_assert_eq!(whole, payload);
        for pair in ids.windows(2) {
            prop_assert_eq!(pair[0].wrapping_add(1), pair[1]);
        }
    }

    /// Zero would say that there is none (RFC 768).
    #[test]
    fn a_udp_sum_of_zero_is_written_as_ones(v6: bool, words in prop::collection::vec(any::<u16>(), 0..800)) {
        const SUM: std::ops::Range<usize> = 6..8;
        let mut payload: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        payload.extend([0, 0]);
        let at = |bytes: &[u8]| bytes.len() - payload.len() - 8;
        let bytes = udp(v6, &payload);
        // The word that the rest lacks.
        let lacking = bytes[at(&bytes)..][SUM].to_vec();
        let end = payload.len() - 2;
        let mut whole = payload.clone();
        whole[end..].copy_from_slice(&lacking);
        let right = udp(v6, &whole);
        let mut blank = right.clone();
        blank[at(&right)..][SUM].fill(0);

        let bed = Bed::new();
        let mut frame = Frame::from_bytes(&bed.pool, &blank).unwrap();
        let prefix = &blank[..blank.len().min(backend_net::headers::PREFIX)];
        let layout = backend_net::headers::parse(prefix, blank.len()).unwrap();
        frame.checksum = Checksum::Partial(layout);
        fill_checksum(&mut frame);
        let mut filled = vec![0; blank.len()];
        frame.read(0, &mut filled);
        prop_assert_eq!(&filled[at(&filled)..][SUM], &[0xff, 0xff]);
        prop_assert_eq!(filled, right);
    }

    #[test]
    fn any_bytes_go_through_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz::frame_headers(&bytes);
        fuzz::transmit_slots(&bytes);
        fuzz::frontend_nodes(&bytes);
    }

    #[test]
    fn damaged_frames_go_through_the_header_parser(
        v6: bool,
        options: bool,
        len in 0usize..300,
        damage in prop::collection::vec((0usize..120, any::<u8>()), 0..6),
        cut in 0usize..400,
    ) {
        let mut bytes = tcp(mac(1), mac(2), Tcp { v6, flags: 0, options }, &pattern(1, len));
        for (at, byte) in damage {
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
        }
        bytes.truncate(cut);
        fuzz::frame_headers(&bytes);
    }

    #[test]
    fn plausible_slots_go_through_the_ring_parser(
        slots in prop::collection::vec((0u16..5000, 0u16..16, 0u16..9000), 1..30),
    ) {
        let mut bytes = Vec::new();
        for (n, (offset, flags, size)) in slots.into_iter().enumerate() {
            bytes.extend(8u32.to_le_bytes());
            bytes.extend((offset % 4096).to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((n as u16).to_le_bytes());
            bytes.extend(size.to_le_bytes());
        }
        fuzz::transmit_slots(&bytes);
    }

    #[test]
    fn the_switch_agrees_with_a_list(
        steps in prop::collection::vec((0u8..3, 0u8..6, 0u8..8), 1..60),
        uplink: bool,
    ) {
        let bed = Bed::new();
        let switch = Switch::new(&[]);
        let wire = uplink.then(|| switch.add_uplink(VcpuId(3), Limits::UPLINK).unwrap());
        let mut view = switch.view(VcpuId(1));
        let mut ports: Vec<backend_net::Port> = Vec::new();
        for (step, a, b) in steps {
            view.refresh();
            match step {
                0 => match switch.add_port(mac(a), Limits::LOCAL) {
                    Ok(port) => {
                        prop_assert!(ports.iter().all(|p| p.mac() != mac(a)));
                        ports.push(port);
                    }
                    Err(_) => prop_assert!(ports.iter().any(|p| p.mac() == mac(a))),
                },
                1 => ports.retain(|p| p.mac() != mac(a)),
                _ => {
                    let to = if b == 7 { MacAddr::BROADCAST } else { mac(b) };
                    let from_wire = a == 5;
                    let source = if from_wire { Source::Uplink } else { Source::Station(mac(a)) };
                    let bytes = raw(mac(a), to, &[a, b]);
                    let frame = Frame::from_bytes(&bed.pool, &bytes).unwrap();
                    let verdict = view.forward(source, frame, &bed.pool);
                    let known = ports.iter().any(|p| p.mac() == to);
                    let mut expected = 0;
                    for port in &ports {
                        let own = !from_wire && port.mac() == mac(a);
                        let wanted = !own && (to.is_multicast() || port.mac() == to);
                        expected += usize::from(wanted);
                        prop_assert_eq!(port.inbox().pop().is_some(), wanted);
                        prop_assert!(port.inbox().pop().is_none());
                    }
                    if let Some(wire) = &wire {
                        let wanted = !from_wire && (to.is_multicast() || !known);
                        expected += usize::from(wanted);
                        prop_assert_eq!(wire.inbox().pop().is_some(), wanted);
                    }
                    match verdict {
                        Verdict::Forwarded(n) => prop_assert_eq!(n, expected),
                        Verdict::Dropped => prop_assert_eq!(expected, 0),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        drop(ports);
        bed.assert_no_memory_held();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn random_traffic_arrives_in_order_and_whole(
        start: u32,
        plain: bool,
        frames in prop::collection::vec((15usize..65_000, 240usize..5000, any::<bool>()), 1..40),
    ) {
        let bed = Bed::new();
        let mut a = bed.guest(1, LINUX, start);
        let mut b = bed.guest(2, if plain { PLAIN } else { LINUX }, start ^ 0xffff);
        for (n, (len, slot, long)) in frames.into_iter().enumerate() {
            // No more slots than the protocol allows.
            let slot = slot.max(len.div_ceil(17)).min(4096);
            let slot_sizes = vec![slot];
            if long && len > 100 {
                let payload = pattern(n as u32, len.min(60_000));
                let bytes = tcp(a.mac, b.mac, Tcp { v6: n % 2 == 0, flags: 0, options: true }, &payload);
                let kind = if n % 2 == 0 { gso_type::TCPV6 } else { gso_type::TCPV4 };
                let slot = slot.max(bytes.len().div_ceil(17)).min(4096);
                let how = Sending { slot_sizes: vec![slot], flags: txf::CSUM_BLANK, gso: Some((1448, kind)) };
                b.front.post_rx(60);
                a.front.send(&bytes, &how);
                bed.run();
                let mut whole = Vec::new();
                for frame in b.front.recv() {
                    if frame.gso.is_some() {
                        prop_assert_eq!(&frame.bytes, &bytes);
                        whole.extend(&payload);
                    } else if plain {
                        whole.extend(checked_tcp(&frame.bytes).1);
                    } else {
                        // Short enough not to be cut.
                        prop_assert!(payload.len() <= 1448);
                        prop_assert_eq!(&frame.bytes, &bytes);
                        whole.extend(&payload);
                    }
                }
                prop_assert_eq!(whole, payload);
            } else {
                let bytes = raw(a.mac, b.mac, &pattern(n as u32, len - 14));
                b.front.post_rx(20);
                a.front.send(&bytes, &Sending { slot_sizes, ..Sending::default() });
                bed.run();
                let got = b.front.recv();
                if plain && bytes.len() > 4096 {
                    prop_assert!(got.is_empty());
                } else {
                    prop_assert_eq!(&got[0].bytes, &bytes);
                }
            }
            a.front.collect_tx();
            prop_assert_eq!(a.front.tx_unanswered(), 0);
        }
        bed.assert_no_memory_held();
    }
}
