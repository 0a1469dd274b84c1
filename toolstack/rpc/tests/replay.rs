//! A recording of an administrator's connection, played to the host by somebody who has no key.

use core::future::{Future, pending};
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread;

use toolstack_rpc::client::connect;
use toolstack_rpc::frame::FrameError;
use toolstack_rpc::fuzz::{self, Canned, Fixed};
use toolstack_rpc::noise::FIRST_LEN;
use toolstack_rpc::server::{ServerKeys, accept};
use toolstack_rpc::stream::ByteStream;
use toolstack_rpc::tcp::{SystemEntropy, Tcp, block_on};
use toolstack_rpc::{ConnectionError, PrivateKey, Request, Response};

/// Hello and first message: all that a client sends before it hears "welcome".
const HANDSHAKE: usize = toolstack_rpc::hello::CLIENT_LEN + 2 + FIRST_LEN;

/// Keeps what is sent.
struct Tapped {
    wire: Tcp,
    sent: Vec<u8>,
}

impl ByteStream for Tapped {
    type Error = io::Error;

    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, io::Error> {
        self.wire.read(buf).await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> Result<(), io::Error> {
        self.sent.extend_from_slice(bytes);
        self.wire.write_all(bytes).await
    }
}

/// A peer that keeps the connection open when it has nothing more to say.
struct Waiting<'a>(Canned<'a>);

impl ByteStream for Waiting<'_> {
    type Error = core::convert::Infallible;

    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Self::Error> {
        if self.0.input.is_empty() {
            pending::<()>().await;
        }
        self.0.read(buf).await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.write_all(bytes).await
    }
}

/// What an administrator sent who was served one request, and the keys of that host.
fn recording() -> (Vec<u8>, ServerKeys) {
    let admin = PrivateKey::generate(&mut SystemEntropy).unwrap();
    let private = PrivateKey::generate(&mut SystemEntropy).unwrap();
    let host = private.public();
    let keys = ServerKeys {
        private,
        administrators: vec![admin.public()],
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        block_on(async {
            let accepted = accept(Tcp(stream), &keys, &mut SystemEntropy).await;
            let mut client = accepted.unwrap();
            let request = client.next_request().await.unwrap();
            assert_eq!(request, Some(Request::VolumeList));
            client.respond(&Response::Done).await.unwrap();
            // The first frame is given out once.
            assert_eq!(client.next_request().await.unwrap(), None);
        });
        keys
    });
    let tapped = Tapped {
        wire: Tcp(TcpStream::connect(address).unwrap()),
        sent: Vec::new(),
    };
    let sent = block_on(async {
        let mut client = connect(tapped, &admin, &host, &mut SystemEntropy)
            .await
            .unwrap();
        client.call(&Request::VolumeList).await.unwrap();
        client.stream_mut().sent.clone()
    });
    (sent, server.join().unwrap())
}

#[test]
fn a_recorded_handshake_makes_no_connection_however_long_its_player_waits() {
    let (sent, keys) = recording();
    let mut entropy = Fixed(1);
    let mut stream = Waiting(Canned::new(&sent[..HANDSHAKE]));
    {
        let mut accepted = pin!(accept(&mut stream, &keys, &mut entropy));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..100 {
            assert!(matches!(
                accepted.as_mut().poll(&mut context),
                Poll::Pending
            ));
        }
    }
    // It got as far as anybody can without the key.
    assert!(stream.0.input.is_empty());
    let answers = toolstack_rpc::hello::HOST_LEN + 2 + toolstack_rpc::noise::SECOND_LEN;
    assert_eq!(stream.0.output.len(), answers);
    // Nor does one that ends.
    let stream = Canned::new(&sent[..HANDSHAKE]);
    let accepted = fuzz::run(accept(stream, &keys, &mut entropy));
    assert!(matches!(accepted, Err(ConnectionError::Cut)));
}

#[test]
fn a_recorded_request_does_not_open_in_another_handshake() {
    let (sent, keys) = recording();
    assert!(sent.len() > HANDSHAKE);
    let accepted = fuzz::run(accept(Canned::new(&sent), &keys, &mut Fixed(1)));
    assert!(matches!(
        accepted,
        Err(ConnectionError::Frame(FrameError::Forged))
    ));
}
