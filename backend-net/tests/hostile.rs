//! A frontend that writes anything into its rings, beside two that behave.
#![allow(
    clippy::cast_possible_truncation,
    reason = "made-up test data and lengths"
)]

mod common;

use common::{Bed, LINUX, PLAIN, Tcp, mac, pattern, raw, tcp};
use proptest::prelude::*;
use xen_abi::GrantRef;
use xen_abi::io::netif::{ExtraInfo, TxRequest, TxSlot, gso_type, txf};
use xen_ring::peer::Access;
use xen_sim::Sending;

/// One thing that the hostile guest does.
#[derive(Clone, Debug)]
enum Act {
    /// Any request: which grant, offset, flags, size.
    Slot(u8, u16, u16, u16),
    /// Any extra info: kind, flags, size, type.
    Extra(u8, u8, u16, u8),
    /// A frame that looks like one, perhaps with an offload that does not fit.
    Frame(u16, u8, u16),
    /// Receive buffers, some of them no grants.
    Post(u8, bool),
    /// Makes requests visible.
    Publish,
    /// Any producer index.
    Forge(bool, u32),
    /// A second goes by.
    Wait,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (any::<u8>(), 0u16..5000, 0u16..16, prop_oneof![0u16..5000, any::<u16>()])
            .prop_map(|(g, o, f, s)| Act::Slot(g, o, f, s)),
        2 => (0u8..6, 0u8..2, any::<u16>(), 0u8..4)
            .prop_map(|(k, f, s, t)| Act::Extra(k, f, s, t)),
        6 => (15u16..30_000, any::<u8>(), any::<u16>())
            .prop_map(|(l, h, m)| Act::Frame(l, h, m)),
        2 => (0u8..40, any::<bool>()).prop_map(|(n, g)| Act::Post(n, g)),
        6 => Just(Act::Publish),
        1 => (any::<bool>(), any::<u32>()).prop_map(|(t, i)| Act::Forge(t, i)),
        1 => Just(Act::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn a_hostile_guest_harms_only_itself(
        start: u32,
        plain: bool,
        acts in prop::collection::vec(act(), 1..80),
    ) {
        let bed = Bed::new();
        let mut bad = bed.guest(1, if plain { PLAIN } else { LINUX }, start);
        let mut a = bed.guest(2, LINUX, 0);
        let mut b = bed.guest(3, PLAIN, 0);
        // Some grants that are good: to read, to write, and a page of headers.
        let grefs: Vec<u32> = [Access::Read, Access::Write, Access::Read]
            .map(|access| {
                let page = bad.front.guest().alloc(1);
                let head = tcp(bad.mac, a.mac, Tcp { v6: plain, flags: 0, options: true }, &[7; 900]);
                page.bytes.write_bytes(0, &head);
                bad.front.guest().grant(page.mfns[0], access).0
            })
            .into();
        let mut id = 50_000u16;
        for (n, act) in acts.into_iter().enumerate() {
            match act {
                Act::Slot(gref, offset, flags, size) if bad.front.tx_free() > 0 => {
                    let gref = grefs.get(usize::from(gref % 4)).copied().unwrap_or(4_000_000);
                    id = id.wrapping_add(1);
                    let request = TxRequest { gref, offset, flags, id, size };
                    bad.front.tx_ring_mut().push_request(&TxSlot::from(request));
                }
                Act::Extra(kind, flags, gso_size, gso_type) if bad.front.tx_free() > 0 => {
                    let extra = ExtraInfo { kind, flags, gso_size, gso_type, gso_pad: 0, gso_features: 0 };
                    bad.front.tx_ring_mut().push_request(&TxSlot::from_extra(extra));
                }
                Act::Frame(len, how, mss) if bad.front.tx_free() > 20 => {
                    let to = [a.mac, b.mac, bad.mac, mac(9)][usize::from(how % 4)];
                    let v6 = how & 16 != 0;
                    let frame = if how & 8 != 0 {
                        raw(bad.mac, to, &pattern(u32::from(len), usize::from(len)))
                    } else {
                        tcp(bad.mac, to, Tcp { v6, flags: 0, options: true }, &pattern(1, usize::from(len)))
                    };
                    let kind = if how & 32 != 0 { gso_type::TCPV6 } else { gso_type::TCPV4 };
                    let sending = Sending {
                        slot_sizes: Vec::new(),
                        flags: if how & 64 != 0 { txf::CSUM_BLANK } else { 0 },
                        gso: (how & 128 != 0).then_some((mss.max(1), kind)),
                    };
                    bad.front.send(&frame, &sending);
                }
                Act::Post(count, good) => {
                    if good {
                        bad.front.post_rx(count.into());
                    } else if bad.front.rx_ring_mut().free() > 0 {
                        bad.front.post_rx_raw(GrantRef(5_000_000), None);
                        bad.front.publish_rx();
                    }
                }
                Act::Forge(true, value) => bad.front.tx_ring_mut().forge_req_prod(value),
                Act::Forge(false, value) => bad.front.rx_ring_mut().forge_req_prod(value),
                Act::Wait => bed.executor.timer().advance(1_100_000_000),
                _ => bad.front.publish_tx(),
            }
            if n % 3 == 0 {
                bad.front.notify();
                bed.run();
            }
            // The others go on, whatever comes from there.
            a.front.post_rx(16);
            b.front.post_rx(16);
            a.front.recv();
            b.front.recv();
            bed.run();
            a.front.recv();
            b.front.recv();
            if n % 8 == 0 {
                a.front.post_rx(16);
                let frame = raw(b.mac, a.mac, &pattern(n as u32, 3000));
                b.front.send(&frame, &Sending { slot_sizes: vec![3014], ..Sending::default() });
                bed.run();
                prop_assert!(a.front.recv().iter().any(|got| got.bytes == frame));
                let long = raw(a.mac, bad.mac, &pattern(n as u32, 20_000));
                a.front.send(&long, &Sending::default());
                bed.run();
                a.front.collect_tx();
                b.front.collect_tx();
                prop_assert_eq!(a.front.tx_unanswered() + b.front.tx_unanswered(), 0);
            }
        }
        for guest in [&bad, &a, &b] {
            guest.stopper.stop();
        }
        bed.run();
        prop_assert!(bad.task.take().is_some() && a.task.take().is_some() && b.task.take().is_some());
        for guest in [&bad, &a, &b] {
            guest.grants.assert_nothing_left();
        }
        bed.assert_no_memory_held();
    }
}
