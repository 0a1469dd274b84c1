//! The fuzzers' entry points on random input: never a panic, never over the quotas.

use proptest::prelude::*;
use toolstack_xenstore::fuzz;

/// A packet with a likely header, and the length that the entry points want before it.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let header = (
        0u32..26,
        any::<u32>(),
        0u32..3,
        prop_oneof![0u32..40, any::<u32>()],
    );
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    (header, payload).prop_map(|((op, req, tx, len), payload)| {
        let words = [op, req, tx, len].map(u32::to_le_bytes).concat();
        let size = u8::try_from(words.len() + payload.len()).unwrap();
        [&[size][..], &words, &payload].concat()
    })
}

/// Steps of two bytes and a packet: what to do, and on which connection.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let step =
        (any::<[u8; 2]>(), packet()).prop_map(|(what, packet)| [&what, &packet[..]].concat());
    prop::collection::vec(step, 0..60).prop_map(|steps| steps.concat())
}

/// Packets put into a ring honestly, with the answers read, and now and then a word
/// that is not.
fn ring_steps() -> impl Strategy<Value = Vec<u8>> {
    let step = prop_oneof![
        6 => packet().prop_map(|packet| [&[0], &packet[..]].concat()),
        6 => Just(vec![2]),
        1 => any::<[u8; 5]>().prop_map(|word| [&[3], &word[..]].concat()),
        1 => Just(vec![4]),
    ];
    prop::collection::vec(step, 0..80).prop_map(|steps| steps.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_on_connections(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz::bytes(&data);
    }

    #[test]
    fn likely_packets_on_connections(data in packets()) {
        fuzz::bytes(&data);
    }

    #[test]
    fn any_page_behind_a_ring(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz::ring(&data);
    }

    #[test]
    fn likely_packets_in_a_ring(data in ring_steps()) {
        fuzz::ring(&data);
    }

    #[test]
    fn any_requests_by_anybody(data in prop::collection::vec(any::<u8>(), 0..4000)) {
        fuzz::requests(&data);
    }
}
