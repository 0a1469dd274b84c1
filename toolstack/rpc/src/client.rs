//! The administrator's side of a connection.

use core::fmt;
use core::ops::{Deref, DerefMut};

use crate::connection::{Connection, ConnectionError, HandshakeError, read_exact};
use crate::error::RpcError;
use crate::hello::{self, OURS, Versions};
use crate::key::{PrivateKey, PublicKey};
use crate::message::{MAX_REQUEST, MAX_RESPONSE, Request, Response};
use crate::noise::{FIRST_LEN, Initiator, SECOND_LEN, Verdict};
use crate::stream::{ByteStream, Entropy};
use crate::transfer::TransferError;

/// A connection to the host that was meant, which knows us.
#[derive(Debug)]
pub struct ClientConnection<S> {
    connection: Connection<S>,
}

/// Why a request failed.
#[derive(Debug)]
pub enum CallError<E> {
    /// The connection is over; whether the host has done it is not known.
    Connection(ConnectionError<E>),
    /// The host has not done it. The connection lives.
    Host(RpcError),
    /// The host's answer is none to this request.
    WrongResponse,
}

impl<E> From<ConnectionError<E>> for CallError<E> {
    fn from(error: ConnectionError<E>) -> Self {
        CallError::Connection(error)
    }
}

impl<E> From<TransferError<E>> for CallError<E> {
    fn from(error: TransferError<E>) -> Self {
        match error {
            TransferError::Connection(e) => CallError::Connection(e),
            TransferError::Aborted(e) | TransferError::Rejected(e) => CallError::Host(e),
        }
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Connection(e) => e.fmt(f),
            CallError::Host(e) => e.fmt(f),
            CallError::WrongResponse => {
                f.write_str("protocol error: the host's answer does not fit the request")
            }
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for CallError<E> {}

/// Says hello and shakes hands with the host that has the key `host`.
///
/// # Errors
/// See [`HandshakeError`]; each is one clear reason.
pub async fn connect<S: ByteStream>(
    stream: S,
    key: &PrivateKey,
    host: &PublicKey,
    entropy: &mut dyn Entropy,
) -> Result<ClientConnection<S>, ConnectionError<S::Error>> {
    connect_versions(stream, key, host, OURS, entropy).await
}

/// [`connect`] of a client that speaks other versions, for tests.
///
/// # Errors
/// As [`connect`].
pub async fn connect_versions<S: ByteStream>(
    mut stream: S,
    key: &PrivateKey,
    host: &PublicKey,
    ours: Versions,
    entropy: &mut dyn Entropy,
) -> Result<ClientConnection<S>, ConnectionError<S::Error>> {
    let mut prologue = [0; hello::CLIENT_LEN + hello::HOST_LEN];
    let (asked, answer) = prologue.split_at_mut(hello::CLIENT_LEN);
    asked.copy_from_slice(&hello::encode_client(ours));
    stream
        .write_all(asked)
        .await
        .map_err(ConnectionError::Stream)?;

    let mut bytes = [0; hello::HOST_LEN];
    read_exact(&mut stream, &mut bytes).await?;
    let theirs = match hello::decode_host(&bytes) {
        Ok(theirs) => theirs,
        Err(hello::NotCloser) => return Err(HandshakeError::NotCloser.into()),
    };
    answer.copy_from_slice(&bytes);
    if !theirs
        .chosen
        .is_some_and(|v| (ours.lowest..=ours.highest).contains(&v))
    {
        let theirs = theirs.versions;
        return Err(HandshakeError::Version { ours, theirs }.into());
    }

    let (initiator, first) =
        Initiator::start(key, host, &prologue, entropy).map_err(HandshakeError::from)?;
    let mut framed = [0; 2 + FIRST_LEN];
    framed[0] = 96;
    framed[2..].copy_from_slice(&first);
    stream
        .write_all(&framed)
        .await
        .map_err(ConnectionError::Stream)?;

    let mut length = [0; 2];
    read_exact(&mut stream, &mut length).await?;
    match usize::from(u16::from_le_bytes(length)) {
        0 => return Err(HandshakeError::WrongHostKey.into()),
        SECOND_LEN => {}
        _ => return Err(HandshakeError::Malformed.into()),
    }
    let mut second = [0; SECOND_LEN];
    read_exact(&mut stream, &mut second).await?;
    let (verdict, ciphers) = initiator.finish(&second).map_err(HandshakeError::from)?;
    match verdict {
        Verdict::Welcome => Ok(ClientConnection {
            connection: Connection::new(stream, ciphers, *host),
        }),
        Verdict::UnknownKey => Err(HandshakeError::UnknownClientKey(key.public()).into()),
    }
}

impl<S: ByteStream> ClientConnection<S> {
    /// A connection without a handshake.
    pub(crate) fn for_fuzz(connection: Connection<S>) -> Self {
        ClientConnection { connection }
    }

    /// Sends a request and waits for its answer, which is never [`Response::Error`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(&mut self, request: &Request) -> Result<Response, CallError<S::Error>> {
        self.connection.send_message(request, MAX_REQUEST).await?;
        self.response().await
    }

    /// Waits for an answer: the second one, after a stream to the host.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn response(&mut self) -> Result<Response, CallError<S::Error>> {
        let first = self.connection.next_frame().await?;
        let first = first.ok_or(ConnectionError::Cut)?;
        match self.connection.rest_of_message(first, MAX_RESPONSE).await? {
            Ok(Response::Error(error)) => Err(CallError::Host(error)),
            Ok(response) => Ok(response),
            Err(_) => Err(ConnectionError::Malformed.into()),
        }
    }

    /// Sends a request whose answer is `Done`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call_done(&mut self, request: &Request) -> Result<(), CallError<S::Error>> {
        match self.call(request).await? {
            Response::Done => Ok(()),
            _ => Err(CallError::WrongResponse),
        }
    }

    /// The connection, for the two halves of a console.
    pub fn into_connection(self) -> Connection<S> {
        self.connection
    }
}

impl<S> Deref for ClientConnection<S> {
    type Target = Connection<S>;

    fn deref(&self) -> &Connection<S> {
        &self.connection
    }
}

impl<S> DerefMut for ClientConnection<S> {
    fn deref_mut(&mut self) -> &mut Connection<S> {
        &mut self.connection
    }
}
