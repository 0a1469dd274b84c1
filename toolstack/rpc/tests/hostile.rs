//! What peers can do wrong, byte by byte, without a network.

use proptest::prelude::*;
use toolstack_rpc::frame::{
    FrameError, FrameReader, FrameWriter, HEADER_LEN, Kind, MAX_PAYLOAD, REKEY_EVERY, TAG_LEN,
};
use toolstack_rpc::fuzz::{self, Canned, Fixed};
use toolstack_rpc::message::{GuestRef, Request, Response};
use toolstack_rpc::noise::ciphers_for_tests;
use toolstack_rpc::server::{ServerKeys, accept, check_name};
use toolstack_rpc::{ConnectionError, HandshakeError, PrivateKey, RpcError};

fn pair() -> (FrameWriter, FrameReader) {
    let sealer = ciphers_for_tests([7; 32]).unwrap().sealer;
    let opener = ciphers_for_tests([7; 32]).unwrap().opener;
    (FrameWriter::new(sealer), FrameReader::new(opener))
}

fn feed(reader: &mut FrameReader, mut bytes: &[u8]) -> Result<Option<Kind>, FrameError> {
    let mut last = None;
    while !bytes.is_empty() {
        let wanted = reader.wanted();
        let count = wanted.len().min(bytes.len());
        wanted[..count].copy_from_slice(&bytes[..count]);
        bytes = &bytes[count..];
        last = reader.filled(count)?;
    }
    Ok(last)
}

#[test]
fn frames_of_every_size_arrive() {
    let (mut writer, mut reader) = pair();
    for len in [0, 1, 2, 15, 16, 17, 1000, MAX_PAYLOAD - 1, MAX_PAYLOAD] {
        let payload: Vec<u8> = (0..len).map(|i| i.to_le_bytes()[0]).collect();
        let frame = writer.seal(Kind::Data, &payload).unwrap();
        assert_eq!(frame.len(), HEADER_LEN + len + TAG_LEN);
        assert_eq!(feed(&mut reader, frame), Ok(Some(Kind::Data)));
        assert_eq!(reader.payload(), payload);
        assert!(reader.is_between_frames());
    }
    assert_eq!(
        writer.seal(Kind::Data, &[0; MAX_PAYLOAD + 1]),
        Err(FrameError::TooLong {
            asked: MAX_PAYLOAD + 1
        })
    );
}

#[test]
fn keys_change_in_step() {
    let (mut writer, mut reader) = pair();
    for _ in 0..2 * REKEY_EVERY + 2 {
        let frame = writer.seal(Kind::Ack, &[1]).unwrap();
        assert_eq!(feed(&mut reader, frame), Ok(Some(Kind::Ack)));
    }
}

#[test]
fn any_changed_bit_of_a_frame_is_noticed() {
    let (mut writer, _) = pair();
    let frame = writer.seal(Kind::Message, b"hello").unwrap().to_vec();
    for bit in 0..frame.len() * 8 {
        let mut forged = frame.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        let (_, mut reader) = pair();
        match feed(&mut reader, &forged) {
            Err(_) => {}
            // A longer length: it waits for the rest, which then does not open.
            Ok(None) => assert!(!reader.is_between_frames(), "bit {bit}"),
            Ok(Some(kind)) => panic!("bit {bit} went unnoticed: {kind:?}"),
        }
    }
}

#[test]
fn a_frame_repeated_left_out_or_moved_is_noticed() {
    let (mut writer, _) = pair();
    let first = writer.seal(Kind::Data, b"1").unwrap().to_vec();
    let second = writer.seal(Kind::Data, b"2").unwrap().to_vec();
    for order in [[&first, &first], [&second, &first]] {
        let (_, mut reader) = pair();
        assert_eq!(
            feed(&mut reader, &order.map(Vec::as_slice).concat()),
            Err(FrameError::Forged)
        );
    }
}

#[test]
fn impossible_headers_are_refused_at_once() {
    for length in [0u16, 1, 15, 16_401, 65_535] {
        let (_, mut reader) = pair();
        let [low, high] = length.to_le_bytes();
        assert_eq!(
            feed(&mut reader, &[low, high, 1, 0]),
            Err(FrameError::Length { found: length })
        );
    }
    for (kind, reserved) in [(0, 0), (3, 0), (0x17, 0), (0xff, 0), (1, 1)] {
        let (_, mut reader) = pair();
        assert_eq!(
            feed(&mut reader, &[32, 0, kind, reserved]),
            Err(FrameError::Header { kind, reserved })
        );
    }
}

#[test]
fn a_first_message_of_another_length_is_refused() {
    let keys = ServerKeys {
        private: PrivateKey::from_bytes([3; 32]),
        administrators: vec![],
    };
    let hello = toolstack_rpc::hello::encode_client(toolstack_rpc::hello::OURS);
    for length in [0u16, 95, 97, 65_535] {
        let input = [&hello[..], &length.to_le_bytes(), &[0; 200]].concat();
        let result = fuzz::run(accept(Canned::new(&input), &keys, &mut Fixed(1)));
        assert!(matches!(
            result,
            Err(ConnectionError::Handshake(HandshakeError::Malformed))
        ));
    }
}

/// Old programs must be understood by new ones: these bytes never change.
#[test]
fn the_encoding_of_messages_is_fixed() {
    let named = GuestRef::Name("g".into());
    let requests: [(Request, &[u8]); 7] = [
        (Request::HostInfo, &[0]),
        (Request::DomainList { only: None }, &[4, 0]),
        (
            Request::DomainDestroy {
                guest: GuestRef::Id(300),
            },
            &[6, 1, 0xac, 2],
        ),
        (
            Request::DomainPause {
                guest: named.clone(),
            },
            &[7, 0, 1, b'g'],
        ),
        (
            Request::ConsoleAttach {
                guest: named,
                replay: true,
            },
            &[10, 0, 1, b'g', 1],
        ),
        (Request::VolumeList, &[16]),
        (Request::XenstoreList { path: "/".into() }, &[19, 1, b'/']),
    ];
    for (request, bytes) in requests {
        assert_eq!(
            postcard::to_allocvec(&request).unwrap(),
            bytes,
            "{request:?}"
        );
    }
    let responses: [(Response, &[u8]); 4] = [
        (Response::Done, &[0]),
        (Response::Error(RpcError::UnknownRequest), &[1, 0]),
        (Response::Ready { len: 5 }, &[2, 5]),
        (Response::Volumes(vec![]), &[7, 0]),
    ];
    for (response, bytes) in responses {
        assert_eq!(
            postcard::to_allocvec(&response).unwrap(),
            bytes,
            "{response:?}"
        );
    }
}

#[test]
fn names_are_checked() {
    for good in ["a", "web-1", "9lives", "A.b_c+d", "x".repeat(64).as_str()] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "x y",
        "a/b",
        "-a",
        ".a",
        "17",
        "é",
        "a\n",
        "x".repeat(65).as_str(),
    ] {
        let error = check_name(bad).unwrap_err();
        assert!(matches!(error, RpcError::BadName { .. }), "{bad}");
        assert!(!error.to_string().contains('\n'), "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_messages(data in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz::messages(&data);
    }

    /// Nearly right messages get further than random ones.
    #[test]
    fn messages_with_a_known_variant(variant in 0u8..28, data in prop::collection::vec(0u8..40, 0..120)) {
        let mut bytes = vec![variant];
        bytes.extend(data);
        fuzz::messages(&bytes);
    }

    #[test]
    fn random_frames(data in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz::frames(&data);
    }

    #[test]
    fn frames_with_good_headers(len in 16u16..64, kind in 0u8..24, data in prop::collection::vec(any::<u8>(), 0..200)) {
        let [low, high] = len.to_le_bytes();
        let mut bytes = vec![low, high, kind, 0];
        bytes.extend(data);
        fuzz::frames(&bytes);
    }

    #[test]
    fn random_conversations(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz::host_conversation(&data);
        fuzz::client_conversation(&data);
    }

    /// Small payloads that are often a request which begins a stream.
    #[test]
    fn conversations_that_begin_streams(
        begin in prop::sample::select(vec![
            vec![0, 6, 0, 14, 1, b'v', 100, 100, 0],
            vec![0, 34, 0, 3],
            vec![0, 5, 0, 10, 0, 1, b'g', 1],
            vec![0, 2, 0, 12, 0],
            vec![0, 2, 0, 2, 5],
            vec![0, 1, 0, 0],
        ]),
        frames in prop::collection::vec((2u8..10, prop::collection::vec(0u8..12, 0..12)), 0..30),
    ) {
        let mut data = begin;
        for (kind, payload) in frames {
            data.extend([kind, payload.len().to_le_bytes()[0], 0]);
            data.extend(payload);
        }
        fuzz::host_conversation(&data);
        fuzz::client_conversation(&data);
    }
}

proptest! {
    // Each case computes Diffie-Hellman.
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_handshakes(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz::host_handshake(&data);
        fuzz::client_handshake(&data);
    }
}
