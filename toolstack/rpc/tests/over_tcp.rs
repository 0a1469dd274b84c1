//! Client and host joined over real TCP connections of this machine.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use toolstack_domain::config::{Disk, GuestConfig, Vif};
use toolstack_rpc::client::{CallError, connect, connect_versions};
use toolstack_rpc::fake::{DISK, FakeHost};
use toolstack_rpc::hello::{OURS, Versions};
use toolstack_rpc::message::{GuestRef, HostInfo, ImportMode, LogSource};
use toolstack_rpc::tcp::{SystemEntropy, Tcp, block_on};
use toolstack_rpc::transfer::{ImageHasher, TransferError, WINDOW};
use toolstack_rpc::{
    Chunk, ClientConnection, ConnectionError, HandshakeError, PrivateKey, Request, Response,
    RpcError,
};

type Client = ClientConnection<Tcp>;

fn new_key() -> PrivateKey {
    PrivateKey::generate(&mut SystemEntropy).unwrap()
}

fn stream_to(host: &FakeHost) -> TcpStream {
    let stream = TcpStream::connect(host.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

fn host_and_client() -> (FakeHost, Client) {
    let key = new_key();
    let host = FakeHost::start(vec![key.public()]).unwrap();
    let client = client_of(&host, &key);
    (host, client)
}

fn client_of(host: &FakeHost, key: &PrivateKey) -> Client {
    block_on(connect(
        Tcp(stream_to(host)),
        key,
        &host.key,
        &mut SystemEntropy,
    ))
    .unwrap()
}

fn call(client: &mut Client, request: &Request) -> Result<Response, RpcError> {
    match block_on(client.call(request)) {
        Ok(response) => Ok(response),
        Err(CallError::Host(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

fn info(client: &mut Client) -> Box<HostInfo> {
    match call(client, &Request::HostInfo) {
        Ok(Response::HostInfo(info)) => info,
        other => panic!("{other:?}"),
    }
}

fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !test() {
        assert!(Instant::now() < limit, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn import(name: &str, len: u64) -> Request {
    Request::VolumeImport {
        name: name.into(),
        size: len,
        len,
        mode: ImportMode::New,
    }
}

/// Bytes without a period that a lost or doubled frame could hide behind.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0])
        .collect()
}

#[test]
fn requests_are_answered_one_after_another() {
    let (_host, mut client) = host_and_client();
    for _ in 0..3 {
        assert_eq!(info(&mut client).name, "fake");
    }
    let unknown = Request::DomainPause {
        guest: GuestRef::Name("nobody".into()),
    };
    let error = call(&mut client, &unknown).unwrap_err();
    assert_eq!(error.to_string(), "no such guest: nobody");
    // The connection has survived the error.
    assert_eq!(info(&mut client).nodes.len(), 2);
}

#[test]
fn several_clients_are_served_at_once() {
    let key = new_key();
    let host = FakeHost::start(vec![key.public()]).unwrap();
    let mut clients: Vec<_> = (0..5).map(|_| client_of(&host, &key)).collect();
    for client in clients.iter_mut().rev() {
        assert_eq!(info(client).name, "fake");
    }
}

#[test]
fn the_wrong_host_is_noticed_on_both_sides() {
    let key = new_key();
    let host = FakeHost::start(vec![key.public()]).unwrap();
    let other = new_key().public();
    let result = block_on(connect(
        Tcp(stream_to(&host)),
        &key,
        &other,
        &mut SystemEntropy,
    ));
    assert!(matches!(
        result,
        Err(ConnectionError::Handshake(HandshakeError::WrongHostKey))
    ));
    eventually("a line in the log", || {
        host.state().log == ["wrong host key"]
    });
}

#[test]
fn an_unknown_administrator_is_told_so() {
    let host = FakeHost::start(vec![new_key().public()]).unwrap();
    let key = new_key();
    let result = block_on(connect(
        Tcp(stream_to(&host)),
        &key,
        &host.key,
        &mut SystemEntropy,
    ));
    match result {
        Err(ConnectionError::Handshake(HandshakeError::UnknownClientKey(told))) => {
            assert_eq!(told, key.public());
        }
        other => panic!("{other:?}"),
    }
    let line = format!("the host does not know the key {}", key.public());
    eventually("a line in the log", || host.state().log == [line.clone()]);
}

#[test]
fn a_host_without_administrators_serves_nobody() {
    let host = FakeHost::start(vec![]).unwrap();
    let result = block_on(connect(
        Tcp(stream_to(&host)),
        &new_key(),
        &host.key,
        &mut SystemEntropy,
    ));
    assert!(matches!(
        result,
        Err(ConnectionError::Handshake(
            HandshakeError::UnknownClientKey(_)
        ))
    ));
}

#[test]
fn another_version_is_one_clear_error_on_both_sides() {
    let key = new_key();
    let newer = Versions {
        lowest: 7,
        highest: 9,
    };
    let host = FakeHost::start_speaking(vec![key.public()], newer).unwrap();
    let result = block_on(connect(
        Tcp(stream_to(&host)),
        &key,
        &host.key,
        &mut SystemEntropy,
    ));
    assert_eq!(
        result.unwrap_err().to_string(),
        "protocol version: this side speaks 2, the other 7 to 9"
    );
    eventually("a line in the log", || {
        host.state().log == ["protocol version: this side speaks 7 to 9, the other 2"]
    });

    // And a newer client that still speaks our version gets along.
    let host = FakeHost::start(vec![key.public()]).unwrap();
    let both = Versions {
        lowest: OURS.lowest,
        highest: OURS.highest + 3,
    };
    let stream = Tcp(stream_to(&host));
    let mut client = block_on(connect_versions(
        stream,
        &key,
        &host.key,
        both,
        &mut SystemEntropy,
    ))
    .unwrap();
    assert_eq!(info(&mut client).name, "fake");
}

#[test]
fn a_busy_host_says_so() {
    let key = new_key();
    let host = FakeHost::start(vec![key.public()]).unwrap();
    host.state().busy = true;
    let mut client = block_on(connect(
        Tcp(stream_to(&host)),
        &key,
        &host.key,
        &mut SystemEntropy,
    ))
    .unwrap();
    let answer = block_on(client.call(&Request::HostInfo));
    assert!(matches!(
        answer,
        Err(CallError::Host(RpcError::Busy { .. }))
    ));
}

#[test]
fn a_stranger_gets_no_byte() {
    let host = FakeHost::start(vec![]).unwrap();
    let mut stream = stream_to(&host);
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // Closed with our bytes unread, a reset is as good as an end.
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset),
    }
    assert_eq!(answer, b"");
}

#[test]
fn a_large_import_arrives_as_it_was_sent() {
    let (host, mut client) = host_and_client();
    // More than the window, and not a multiple of anything.
    let data = pattern(5_000_003);
    let zeros = 1 << 20;
    let len = data.len() as u64 + zeros;
    assert_eq!(
        call(&mut client, &import("root", len)),
        Ok(Response::Ready { len: 0 })
    );
    block_on(async {
        let mut outgoing = client.outgoing();
        outgoing.send(&data[..1_000_000]).await.unwrap();
        outgoing.send_zeros(zeros).await.unwrap();
        outgoing.send(&data[1_000_000..]).await.unwrap();
        assert_eq!(outgoing.sent(), len);
        outgoing.finish().await.unwrap();
        assert_eq!(client.response().await.unwrap(), Response::Done);
    });
    let mut expected = data.clone();
    let hole = vec![0; usize::try_from(zeros).unwrap()];
    expected.splice(1_000_000..1_000_000, hole);
    assert!(host.state().volumes["root"] == expected);

    // And back.
    let export = Request::VolumeExport {
        name: "root".into(),
    };
    assert_eq!(call(&mut client, &export), Ok(Response::Ready { len }));
    let back = block_on(async {
        let mut back = Vec::new();
        let mut incoming = client.incoming(Some(len));
        while let Some(chunk) = incoming.next().await.unwrap() {
            match chunk {
                Chunk::Bytes(bytes) => back.extend_from_slice(bytes),
                Chunk::Zeros(count) => {
                    back.resize(back.len() + usize::try_from(count).unwrap(), 0);
                }
            }
        }
        back
    });
    assert!(back == expected);
    assert_eq!(info(&mut client).name, "fake");
}

#[test]
fn an_import_cut_in_the_middle_leaves_nothing() {
    let (host, mut client) = host_and_client();
    assert!(call(&mut client, &import("half", 1 << 20)).is_ok());
    assert!(host.state().volumes.contains_key("half"));
    block_on(async { client.outgoing().send(&[7; 300_000]).await.unwrap() });
    client.stream_mut().0.shutdown(Shutdown::Both).unwrap();
    eventually("the volume is gone", || host.state().volumes.is_empty());
    assert_eq!(host.state().broken, 1);
}

#[test]
fn an_aborted_import_leaves_nothing_and_the_connection_lives() {
    let (host, mut client) = host_and_client();
    assert!(call(&mut client, &import("half", 1 << 20)).is_ok());
    block_on(async {
        let mut outgoing = client.outgoing();
        outgoing.send(&[7; 300_000]).await.unwrap();
        let why = RpcError::Aborted {
            why: "file: read error".into(),
        };
        outgoing.abort(&why).await.unwrap();
    });
    assert_eq!(info(&mut client).name, "fake");
    assert!(host.state().volumes.is_empty());
}

#[test]
fn a_host_that_fails_in_the_middle_is_noticed_soon() {
    let (host, mut client) = host_and_client();
    host.state().fail_import_at = Some(500_000);
    assert!(call(&mut client, &import("half", 32 << 20)).is_ok());
    let (sent, error) = block_on(async {
        let mut outgoing = client.outgoing();
        loop {
            match outgoing.send(&[7; 16_384]).await {
                Ok(()) => {}
                Err(TransferError::Rejected(error)) => return (outgoing.sent(), error),
                Err(other) => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(error.to_string(), "disk failed: write: NVMe status 0x280");
    assert!(sent <= 500_000 + 2 * WINDOW, "{sent} bytes sent in vain");
    assert_eq!(info(&mut client).name, "fake");
    assert!(host.state().volumes.is_empty());
}

#[test]
fn a_rejection_just_at_the_end_is_not_lost() {
    let (host, mut client) = host_and_client();
    host.state().fail_import_at = Some(40_000);
    assert!(call(&mut client, &import("half", 40_000)).is_ok());
    let result = block_on(async {
        let mut outgoing = client.outgoing();
        outgoing.send(&[7; 40_000]).await.unwrap();
        outgoing.finish().await
    });
    assert!(matches!(result, Err(TransferError::Rejected(_))));
    assert_eq!(info(&mut client).name, "fake");
}

#[test]
fn more_or_less_than_announced_is_refused() {
    let (host, mut client) = host_and_client();
    for sent in [0, 99_999, 100_001, 3_000_000] {
        assert!(call(&mut client, &import("odd", 100_000)).is_ok());
        let result = block_on(async {
            let mut outgoing = client.outgoing();
            match outgoing.send(&pattern(sent)).await {
                Ok(()) => outgoing.finish().await,
                Err(e) => Err(e),
            }
        });
        match result {
            Err(TransferError::Rejected(RpcError::WrongLength { announced, .. })) => {
                assert_eq!(announced, 100_000);
            }
            other => panic!("{sent}: {other:?}"),
        }
        assert_eq!(info(&mut client).name, "fake");
        assert!(host.state().volumes.is_empty());
    }
}

#[test]
fn an_image_that_is_not_what_it_says_is_refused() {
    let (host, mut client) = host_and_client();
    let bytes = pattern(70_000);
    let mut hasher = ImageHasher::new();
    hasher.update(Chunk::Bytes(&bytes));
    let id = hasher.finish();
    let put = Request::ImagePut {
        id,
        len: bytes.len() as u64,
    };
    let mut upload = |bytes: &[u8]| {
        assert_eq!(call(&mut client, &put), Ok(Response::Ready { len: 0 }));
        block_on(async {
            let mut outgoing = client.outgoing();
            outgoing.send(bytes).await.unwrap();
            outgoing.finish().await.unwrap();
            client.response().await
        })
    };
    let mut wrong = bytes.clone();
    wrong[69_999] ^= 1;
    assert!(matches!(
        upload(&wrong),
        Err(CallError::Host(RpcError::ImageCorrupt { .. }))
    ));
    assert!(matches!(upload(&bytes), Ok(Response::Done)));
    assert!(host.state().images[&id] == bytes);
    // Nothing is sent twice.
    assert_eq!(call(&mut client, &put), Ok(Response::Done));
    assert_eq!(
        call(&mut client, &Request::ImageHas { ids: vec![id] }),
        Ok(Response::Present(vec![true]))
    );
}

#[test]
fn an_image_is_hashed_the_same_with_and_without_holes() {
    let mut whole = ImageHasher::new();
    whole.update(Chunk::Bytes(&[0; 1300]));
    let mut holes = ImageHasher::new();
    holes.update(Chunk::Zeros(1));
    holes.update(Chunk::Bytes(&[0; 98]));
    holes.update(Chunk::Zeros(1201));
    assert_eq!(whole.finish(), holes.finish());
}

#[test]
fn a_client_that_wants_no_more_of_a_stream_says_so() {
    let (host, mut client) = host_and_client();
    let len = 8 << 20;
    host.state().volumes.insert("big".into(), pattern(len));
    let export = Request::VolumeExport { name: "big".into() };
    assert!(call(&mut client, &export).is_ok());
    block_on(async {
        let mut incoming = client.incoming(None);
        assert!(incoming.next().await.unwrap().is_some());
        incoming.reject(&RpcError::UnknownRequest).await.unwrap();
    });
    assert_eq!(info(&mut client).name, "fake");
}

#[test]
fn logs_come_as_streams() {
    let (_host, mut client) = host_and_client();
    let log = Request::HostLog {
        source: LogSource::Xen,
    };
    assert_eq!(call(&mut client, &log), Ok(Response::Ready { len: 12 }));
    block_on(async {
        let mut incoming = client.incoming(Some(12));
        assert_eq!(
            incoming.next().await.unwrap(),
            Some(Chunk::Bytes(b"(XEN) ready\n"))
        );
        assert_eq!(incoming.next().await.unwrap(), None);
        assert_eq!(incoming.next().await.unwrap(), None);
    });
}

/// Forwards one connection, and cuts it after `limit` bytes from the client.
fn cutting_proxy(host: &FakeHost, limit: usize) -> std::net::SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let target = host.address;
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut host = TcpStream::connect(target).unwrap();
        let (mut back_from, mut back_to) = (host.try_clone().unwrap(), client.try_clone().unwrap());
        let back = thread::spawn(move || io::copy(&mut back_from, &mut back_to).unwrap_or(0));
        let mut left = limit;
        let mut buf = [0; 4096];
        while left > 0 {
            let want = buf.len().min(left);
            let Ok(count @ 1..) = client.read(&mut buf[..want]) else {
                break;
            };
            host.write_all(&buf[..count]).unwrap();
            left -= count;
        }
        // The other direction ends when the host has seen the end of this one.
        host.shutdown(Shutdown::Write).unwrap();
        back.join().unwrap();
        // The client may have gone first.
        client.shutdown(Shutdown::Both).unwrap_or(());
    });
    address
}

#[test]
fn a_connection_cut_at_any_byte_of_its_beginning_is_an_error_and_harms_nothing() {
    let key = new_key();
    let host = FakeHost::start(vec![key.public()]).unwrap();
    // Hello 12, handshake 98, first request 4 + 1 + 16.
    let whole = 12 + 98 + 21;
    for limit in 0..=whole {
        let stream = TcpStream::connect(cutting_proxy(&host, limit)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let result = block_on(async {
            let mut client = connect(Tcp(stream), &key, &host.key, &mut SystemEntropy)
                .await
                .map_err(CallError::Connection)?;
            client.call(&Request::HostInfo).await
        });
        match result {
            Ok(Response::HostInfo(_)) if limit == whole => {}
            Err(CallError::Connection(ConnectionError::Cut | ConnectionError::Stream(_)))
                if limit < whole => {}
            other => panic!("cut after {limit} bytes: {other:?}"),
        }
    }
    let mut client = client_of(&host, &key);
    assert_eq!(info(&mut client).name, "fake");
}

#[test]
fn console_input_and_output_go_both_ways_at_once() {
    let (host, mut client) = host_and_client();
    host.state()
        .guests
        .insert("g".into(), common::guest("g", 1));
    let attach = Request::ConsoleAttach {
        guest: GuestRef::Id(1),
        replay: true,
    };
    assert!(call(&mut client, &attach).is_ok());
    let second = Tcp(client.stream_mut().0.try_clone().unwrap());
    let (mut reader, mut writer) = client.into_connection().into_halves(second);
    // More than all socket buffers hold: works only if both directions move.
    let sent = pattern(6 << 20);
    let input = sent.clone();
    let typist = thread::spawn(move || {
        block_on(async {
            for line in input.chunks(50_000) {
                writer.write(line).await.unwrap();
            }
            writer.write(b"halt").await.unwrap();
        });
    });
    let mut output = Vec::new();
    block_on(async {
        while let Some(bytes) = reader.read().await.unwrap() {
            output.extend_from_slice(bytes);
        }
    });
    typist.join().unwrap();
    assert!(output.starts_with(b"kept"));
    assert!(output[4..].strip_suffix(b"halt") == Some(&sent));
}

#[test]
fn no_volume_larger_than_the_disk() {
    let (_host, mut client) = host_and_client();
    let create = Request::VolumeCreate {
        name: "huge".into(),
        size: u64::MAX,
    };
    let error = call(&mut client, &create).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no space for volumes: {} bytes asked for, largest free run {DISK}",
            u64::MAX
        )
    );
}

#[test]
fn a_guest_has_no_device_twice_whatever_its_command_line_lets_through() {
    let (host, mut client) = host_and_client();
    let disk = |vdev: &str| Disk {
        volume: vdev.into(),
        vdev: vdev.into(),
        writable: true,
    };
    let vif = Vif {
        mac: [0, 0x16, 0x3e, 0, 0, 1],
        mtu: 1500,
    };
    let mut config = common::guest("g", 1).config;
    config.disks = vec![disk("xvda"), disk("xvdb"), disk("d0p0")];
    let mut refused = |config: &GuestConfig| {
        let create = Request::DomainCreate {
            config: Box::new(config.clone()),
            paused: false,
        };
        call(&mut client, &create).unwrap_err().to_string()
    };
    assert_eq!(refused(&config), "disk: vdev d0p0 is given twice");
    config.disks.pop();
    config.vifs = vec![vif; 2];
    let twice = "vif: mac 00:16:3e:00:00:01 is given twice";
    assert_eq!(refused(&config), twice);
    assert!(host.state().guests.is_empty());
}

mod common {
    use toolstack_domain::config::{
        Action, DomainState, GuestConfig, GuestType, ImageId, Kernel, TscMode,
    };
    use toolstack_rpc::fake::Guest;

    pub fn guest(name: &str, domid: u16) -> Guest {
        Guest {
            config: GuestConfig {
                name: name.into(),
                uuid: [1; 16],
                kind: GuestType::Pvh,
                kernel: Kernel {
                    image: ImageId([0; 32]),
                    segments: vec![],
                    notes: vec![],
                    entry: 0,
                },
                ramdisk: None,
                cmdline: String::new(),
                memory_mib: 64,
                vcpus: 1,
                max_vcpus: 1,
                cpus: vec![],
                disks: vec![],
                vifs: vec![],
                on_poweroff: Action::Destroy,
                on_reboot: Action::Restart,
                on_crash: Action::Destroy,
                tsc_mode: TscMode::Native,
            },
            domid,
            state: DomainState::Blocked,
            console: b"kept".to_vec(),
        }
    }
}
