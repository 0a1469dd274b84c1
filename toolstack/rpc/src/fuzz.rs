//! Entry points for fuzzers: everything that reads a peer's bytes.
//!
//! None may panic, run for ever or hold memory out of proportion to `data`.

use alloc::vec::Vec;
use core::convert::Infallible;
use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use crate::client::ClientConnection;
use crate::connection::{Connection, ConnectionError};
use crate::error::RpcError;
use crate::frame::{FrameReader, FrameWriter, Kind, MAX_PAYLOAD};
use crate::hello;
use crate::key::{PrivateKey, PublicKey};
use crate::message::{Request, Response};
use crate::noise::{Ciphers, ciphers_for_tests};
use crate::server::{ServerKeys, accept};
use crate::stream::{ByteStream, Entropy, NoEntropy};

/// A stream whose peer has sent all it ever will.
#[derive(Debug)]
pub struct Canned<'a> {
    /// What is left to be read.
    pub input: &'a [u8],
    /// Bytes that were written.
    pub output: Vec<u8>,
}

impl<'a> Canned<'a> {
    /// A stream that yields `input`, and then is closed.
    #[must_use]
    pub fn new(input: &'a [u8]) -> Self {
        Canned {
            input,
            output: Vec::new(),
        }
    }
}

impl ByteStream for Canned<'_> {
    type Error = Infallible;

    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        let count = buf.len().min(self.input.len());
        let (now, later) = self.input.split_at(count);
        buf[..count].copy_from_slice(now);
        self.input = later;
        Ok(count)
    }

    async fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.output.extend_from_slice(bytes);
        Ok(())
    }
}

/// Entropy that has none, but enough for a fuzzer.
#[derive(Clone, Copy, Debug)]
pub struct Fixed(
    /// Every byte of it.
    pub u8,
);

impl Entropy for Fixed {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), NoEntropy> {
        out.fill(self.0);
        Ok(())
    }
}

/// Runs a future over a [`Canned`] stream, which never waits.
///
/// # Panics
/// If it waits nevertheless.
pub fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a canned stream never waits"),
    }
}

/// Messages: what decodes is encoded again to something that decodes to the same.
pub fn messages(data: &[u8]) {
    if let Ok(request) = postcard::from_bytes::<Request>(data) {
        let bytes = postcard::to_allocvec(&request).expect("encodes");
        assert_eq!(postcard::from_bytes::<Request>(&bytes), Ok(request));
    }
    if let Ok(response) = postcard::from_bytes::<Response>(data) {
        let bytes = postcard::to_allocvec(&response).expect("encodes");
        assert_eq!(postcard::from_bytes::<Response>(&bytes), Ok(response));
    }
    if let Ok(error) = postcard::from_bytes::<RpcError>(data) {
        assert!(!alloc::format!("{error}").is_empty());
    }
}

/// Frames as they come off the wire, in pieces whose sizes are in `data` too.
pub fn frames(data: &[u8]) {
    let Some(Ciphers { opener, .. }) = ciphers_for_tests([7; 32]) else {
        return;
    };
    let mut reader = FrameReader::new(opener);
    let mut rest = data;
    while !rest.is_empty() {
        let wanted = reader.wanted();
        let count = wanted.len().min(rest.len()).min(usize::from(rest[0]) + 1);
        wanted[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        if reader.filled(count).is_err() {
            return;
        }
        assert!(reader.payload().len() <= MAX_PAYLOAD);
    }
}

/// A stranger's bytes at the host's door. They must not become a connection.
pub fn host_handshake(data: &[u8]) {
    let private = PrivateKey::from_bytes([3; 32]);
    let keys = ServerKeys {
        administrators: Vec::from([PrivateKey::from_bytes([4; 32]).public()]),
        private,
    };
    // Also behind a good hello, where random bytes seldom get.
    let hello = hello::encode_client(hello::OURS);
    let with_hello = [&hello[..], &96u16.to_le_bytes(), data].concat();
    for input in [data, &with_hello] {
        let mut stream = Canned::new(input);
        assert!(run(accept(&mut stream, &keys, &mut Fixed(5))).is_err());
        // A stranger gets a hello and an empty second message at most.
        assert!(stream.output.len() <= hello::HOST_LEN + 2);
    }
}

/// What a wrong host answers. It must not become a connection.
pub fn client_handshake(data: &[u8]) {
    let key = PrivateKey::from_bytes([3; 32]);
    let host = PrivateKey::from_bytes([4; 32]).public();
    let hello = hello::encode_host(hello::HostHello {
        versions: hello::OURS,
        chosen: Some(hello::VERSION),
    });
    let with_hello = [&hello[..], &49u16.to_le_bytes(), data].concat();
    for input in [data, &with_hello] {
        let connected = run(crate::client::connect(
            Canned::new(input),
            &key,
            &host,
            &mut Fixed(5),
        ));
        assert!(connected.is_err());
    }
}

/// Frames that an authenticated peer sends, made from `data`: kind, length (two bytes),
/// payload, and again.
fn sealed(data: &[u8]) -> Option<(Vec<u8>, Ciphers)> {
    let mut writer = FrameWriter::new(ciphers_for_tests([7; 32])?.sealer);
    let mut out = Vec::new();
    let mut rest = data;
    while let [kind, low, high, tail @ ..] = rest {
        let kind = match kind % 10 {
            0 | 1 => Kind::Message,
            2 => Kind::MessagePart,
            3 => Kind::Data,
            4 => Kind::Zeros,
            5 => Kind::End,
            6 => Kind::Abort,
            7 => Kind::Ack,
            8 => Kind::Reject,
            _ => Kind::Received,
        };
        let len = usize::from(u16::from_le_bytes([*low, *high]) % 1024).min(tail.len());
        let (payload, tail) = tail.split_at(len);
        out.extend_from_slice(writer.seal(kind, payload).ok()?);
        rest = tail;
    }
    Some((out, ciphers_for_tests([7; 32])?))
}

const PEER: PublicKey = PublicKey([9; 32]);

/// An administrator with a mind of his own: requests, then what belongs to them.
pub fn host_conversation(data: &[u8]) {
    let Some((bytes, ciphers)) = sealed(data) else {
        return;
    };
    let connection = Connection::new(Canned::new(&bytes), ciphers, PEER);
    let mut server = crate::server::ServerConnection::for_fuzz(connection);
    run(async {
        while let Ok(Some(request)) = server.next_request().await {
            let end = match request {
                Request::VolumeImport { len, .. } => receive(&mut server, Some(len)).await,
                Request::ImagePut { .. } => receive(&mut server, None).await,
                Request::ConsoleAttach { .. } => {
                    while let Ok(Some(bytes)) = server.read_console().await {
                        assert!(bytes.len() <= MAX_PAYLOAD);
                    }
                    return;
                }
                Request::HostLog { .. } => server.respond_stream(&[b'x'; 70_000]).await,
                _ => server.respond(&Response::Done).await,
            };
            if end.is_err() {
                return;
            }
        }
    });
}

async fn receive(
    connection: &mut Connection<Canned<'_>>,
    len: Option<u64>,
) -> Result<(), ConnectionError<Infallible>> {
    let mut incoming = connection.incoming(len);
    loop {
        match incoming.next().await {
            Ok(Some(_)) => {}
            Ok(None) => {
                assert!(len.is_none_or(|l| l == incoming.received()));
                return Ok(());
            }
            Err(crate::transfer::TransferError::Connection(e)) => return Err(e),
            Err(_) => return Ok(()),
        }
        if incoming.received() % 1024 == 1000 {
            return incoming.reject(&RpcError::UnknownRequest).await;
        }
    }
}

/// A host with a mind of its own: answers, then what belongs to them.
pub fn client_conversation(data: &[u8]) {
    let Some((bytes, ciphers)) = sealed(data) else {
        return;
    };
    let connection = Connection::new(Canned::new(&bytes), ciphers, PEER);
    let mut client = ClientConnection::for_fuzz(connection);
    run(async {
        let mut upload = false;
        while let Ok(response) = client.call(&Request::HostInfo).await {
            let Response::Ready { .. } = response else {
                continue;
            };
            upload = !upload;
            if upload {
                let mut outgoing = client.outgoing();
                let sent = match outgoing.send(&[0x55; 70_000]).await {
                    Ok(()) => outgoing.finish().await,
                    Err(e) => Err(e),
                };
                if sent.is_err() {
                    return;
                }
            } else if receive(&mut client, None).await.is_err() {
                return;
            }
        }
    });
}
