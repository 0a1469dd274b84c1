//! An authenticated connection, the same on both sides: messages and console data.

use alloc::vec::Vec;
use core::fmt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{FrameError, FrameReader, FrameWriter, Kind, MAX_PAYLOAD};
use crate::hello::Versions;
use crate::key::PublicKey;
use crate::noise::{Ciphers, NoiseError};
use crate::stream::{ByteStream, NoEntropy};

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// What answers (or asks) is not Closer.
    NotCloser,
    /// No common version of the protocol.
    Version {
        /// This side speaks.
        ours: Versions,
        /// The other side speaks.
        theirs: Versions,
    },
    /// The host has another key than the client expects; on the host: the client
    /// expects another key.
    WrongHostKey,
    /// The client's key is not on the host's list.
    UnknownClientKey(PublicKey),
    /// The other side does not keep to the protocol.
    Malformed,
    /// No random numbers.
    Entropy(NoEntropy),
}

impl From<NoiseError> for HandshakeError {
    fn from(error: NoiseError) -> Self {
        match error {
            NoiseError::Undecipherable => HandshakeError::WrongHostKey,
            NoiseError::Entropy(e) => HandshakeError::Entropy(e),
            NoiseError::Setup => HandshakeError::Malformed,
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::NotCloser => {
                f.write_str("the other side does not speak Closer's protocol")
            }
            HandshakeError::Version { ours, theirs } => {
                f.write_str("protocol version: this side speaks ")?;
                range(f, *ours)?;
                f.write_str(", the other ")?;
                range(f, *theirs)
            }
            HandshakeError::WrongHostKey => f.write_str("wrong host key"),
            HandshakeError::UnknownClientKey(key) => {
                write!(f, "the host does not know the key {key}")
            }
            HandshakeError::Malformed => f.write_str("the handshake is malformed"),
            HandshakeError::Entropy(e) => write!(f, "{e}"),
        }
    }
}

fn range(f: &mut fmt::Formatter<'_>, versions: Versions) -> fmt::Result {
    if versions.lowest == versions.highest {
        write!(f, "{}", versions.highest)
    } else {
        write!(f, "{} to {}", versions.lowest, versions.highest)
    }
}

impl core::error::Error for HandshakeError {}

/// Why a connection is over. Nothing more can be done with it but to drop it.
#[derive(Debug)]
pub enum ConnectionError<E> {
    /// The stream failed.
    Stream(E),
    /// It was closed where something had to follow.
    Cut,
    /// It never came to be.
    Handshake(HandshakeError),
    /// A frame is no good.
    Frame(FrameError),
    /// A frame that has no place here.
    Unexpected(Kind),
    /// A message longer than allowed.
    MessageTooLong {
        /// Most bytes it may have.
        limit: usize,
    },
    /// A message or a payload that cannot be read.
    Malformed,
}

impl<E> From<FrameError> for ConnectionError<E> {
    fn from(error: FrameError) -> Self {
        ConnectionError::Frame(error)
    }
}

impl<E> From<HandshakeError> for ConnectionError<E> {
    fn from(error: HandshakeError) -> Self {
        ConnectionError::Handshake(error)
    }
}

impl<E: fmt::Display> fmt::Display for ConnectionError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionError::Stream(e) => e.fmt(f),
            ConnectionError::Cut => f.write_str("the connection was cut"),
            ConnectionError::Handshake(e) => e.fmt(f),
            ConnectionError::Frame(e) => write!(f, "protocol error: {e}"),
            ConnectionError::Unexpected(kind) => {
                write!(f, "protocol error: a frame of kind {kind:?} out of place")
            }
            ConnectionError::MessageTooLong { limit } => {
                write!(f, "protocol error: a message of more than {limit} bytes")
            }
            ConnectionError::Malformed => f.write_str("protocol error: an unreadable message"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for ConnectionError<E> {}

/// Reads until `out` is full.
pub(crate) async fn read_exact<S: ByteStream>(
    stream: &mut S,
    out: &mut [u8],
) -> Result<(), ConnectionError<S::Error>> {
    let mut have = 0;
    while have < out.len() {
        match stream.read(&mut out[have..]).await {
            Ok(0) => return Err(ConnectionError::Cut),
            Ok(count) => have += count,
            Err(e) => return Err(ConnectionError::Stream(e)),
        }
    }
    Ok(())
}

/// An authenticated connection.
///
/// Futures that send, and those that receive messages, must be awaited to their end, or
/// the connection be dropped; [`Connection::read_console`] may be dropped and called anew.
#[derive(Debug)]
pub struct Connection<S> {
    pub(crate) stream: S,
    reader: FrameReader,
    writer: FrameWriter,
    peer: PublicKey,
}

impl<S: ByteStream> Connection<S> {
    pub(crate) fn new(stream: S, ciphers: Ciphers, peer: PublicKey) -> Self {
        Connection {
            stream,
            reader: FrameReader::new(ciphers.opener),
            writer: FrameWriter::new(ciphers.sealer),
            peer,
        }
    }

    /// Who the other side is.
    #[must_use]
    pub fn peer(&self) -> PublicKey {
        self.peer
    }

    /// The stream below, to wait on it or to close it. Reading or writing breaks the
    /// connection.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends one frame.
    pub(crate) async fn send_frame(
        &mut self,
        kind: Kind,
        payload: &[u8],
    ) -> Result<(), ConnectionError<S::Error>> {
        let frame = self.writer.seal(kind, payload)?;
        self.stream
            .write_all(frame)
            .await
            .map_err(ConnectionError::Stream)
    }

    /// The next frame's kind; `None`: closed between two frames. May be dropped.
    pub(crate) async fn next_frame(&mut self) -> Result<Option<Kind>, ConnectionError<S::Error>> {
        loop {
            let count = self
                .stream
                .read(self.reader.wanted())
                .await
                .map_err(ConnectionError::Stream)?;
            if count == 0 {
                return if self.reader.is_between_frames() {
                    Ok(None)
                } else {
                    Err(ConnectionError::Cut)
                };
            }
            if let Some(kind) = self.reader.filled(count)? {
                return Ok(Some(kind));
            }
        }
    }

    /// What the last frame held.
    pub(crate) fn payload(&self) -> &[u8] {
        self.reader.payload()
    }

    /// The last frame's payload, if it is one number.
    pub(crate) fn number(&self) -> Result<u64, ConnectionError<S::Error>> {
        self.payload()
            .try_into()
            .map(u64::from_le_bytes)
            .map_err(|_| ConnectionError::Malformed)
    }

    /// Sends a message, in as many frames as it takes.
    pub(crate) async fn send_message<T: Serialize>(
        &mut self,
        message: &T,
        limit: usize,
    ) -> Result<(), ConnectionError<S::Error>> {
        let bytes = postcard::to_allocvec(message).map_err(|_| ConnectionError::Malformed)?;
        if bytes.len() > limit {
            return Err(ConnectionError::MessageTooLong { limit });
        }
        let mut rest = bytes.as_slice();
        while rest.len() > MAX_PAYLOAD {
            let (part, tail) = rest.split_at(MAX_PAYLOAD);
            self.send_frame(Kind::MessagePart, part).await?;
            rest = tail;
        }
        self.send_frame(Kind::Message, rest).await
    }

    /// Receives a message that begins with the frame `first`, which has just been read.
    pub(crate) async fn rest_of_message<T: DeserializeOwned>(
        &mut self,
        first: Kind,
        limit: usize,
    ) -> Result<Result<T, postcard::Error>, ConnectionError<S::Error>> {
        let mut parts = Vec::new();
        let mut kind = first;
        loop {
            let part = self.reader.payload();
            if parts.len() + part.len() > limit {
                return Err(ConnectionError::MessageTooLong { limit });
            }
            match kind {
                Kind::Message if parts.is_empty() => return Ok(exactly(part)),
                Kind::Message => {
                    parts.extend_from_slice(part);
                    return Ok(exactly(&parts));
                }
                // An empty part would let a peer keep us here for ever at no cost.
                Kind::MessagePart if !part.is_empty() => parts.extend_from_slice(part),
                Kind::MessagePart => return Err(ConnectionError::Malformed),
                other => return Err(ConnectionError::Unexpected(other)),
            }
            kind = self.next_frame().await?.ok_or(ConnectionError::Cut)?;
        }
    }

    /// What the other side of a console sends next; `None`: it has ended the console or
    /// closed the connection. May be dropped and called anew, nothing gets lost.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn read_console(&mut self) -> Result<Option<&[u8]>, ConnectionError<S::Error>> {
        match self.next_frame().await? {
            Some(Kind::Data) => Ok(Some(self.reader.payload())),
            Some(Kind::End) | None => Ok(None),
            Some(other) => Err(ConnectionError::Unexpected(other)),
        }
    }

    /// Sends `bytes` to the other side of a console.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn write_console(&mut self, bytes: &[u8]) -> Result<(), ConnectionError<S::Error>> {
        for chunk in bytes.chunks(MAX_PAYLOAD) {
            self.send_frame(Kind::Data, chunk).await?;
        }
        Ok(())
    }

    /// Ends the console. The host then drops the connection; so does the client when it sees it.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn end_console(&mut self) -> Result<(), ConnectionError<S::Error>> {
        self.send_frame(Kind::End, &0u64.to_le_bytes()).await
    }

    /// Takes the two directions of a console apart, for two threads. `other` is the same
    /// stream again (`TcpStream::try_clone`); it is used for writing.
    pub fn into_halves(self, other: S) -> (ConsoleReader<S>, ConsoleWriter<S>) {
        (
            ConsoleReader {
                stream: self.stream,
                reader: self.reader,
            },
            ConsoleWriter {
                stream: other,
                writer: self.writer,
            },
        )
    }
}

/// Reads one `T` that takes all of `bytes`.
fn exactly<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
    match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}

/// The receiving half of a console.
#[derive(Debug)]
pub struct ConsoleReader<S> {
    stream: S,
    reader: FrameReader,
}

impl<S: ByteStream> ConsoleReader<S> {
    /// See [`Connection::read_console`], but a closed connection without an `End` is
    /// [`ConnectionError::Cut`].
    ///
    /// # Errors
    /// The connection is over.
    pub async fn read(&mut self) -> Result<Option<&[u8]>, ConnectionError<S::Error>> {
        loop {
            let count = self
                .stream
                .read(self.reader.wanted())
                .await
                .map_err(ConnectionError::Stream)?;
            if count == 0 {
                return Err(ConnectionError::Cut);
            }
            match self.reader.filled(count)? {
                None => {}
                Some(Kind::Data) => return Ok(Some(self.reader.payload())),
                Some(Kind::End) => return Ok(None),
                Some(other) => return Err(ConnectionError::Unexpected(other)),
            }
        }
    }
}

/// The sending half of a console.
#[derive(Debug)]
pub struct ConsoleWriter<S> {
    stream: S,
    writer: FrameWriter,
}

impl<S: ByteStream> ConsoleWriter<S> {
    /// See [`Connection::write_console`].
    ///
    /// # Errors
    /// The connection is over.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ConnectionError<S::Error>> {
        for chunk in bytes.chunks(MAX_PAYLOAD) {
            let frame = self.writer.seal(Kind::Data, chunk)?;
            self.stream
                .write_all(frame)
                .await
                .map_err(ConnectionError::Stream)?;
        }
        Ok(())
    }

    /// See [`Connection::end_console`].
    ///
    /// # Errors
    /// The connection is over.
    pub async fn end(&mut self) -> Result<(), ConnectionError<S::Error>> {
        let frame = self.writer.seal(Kind::End, &0u64.to_le_bytes())?;
        self.stream
            .write_all(frame)
            .await
            .map_err(ConnectionError::Stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{Canned, run};
    use crate::noise::ciphers_for_tests;

    /// What comes of a message whose frames have these payloads.
    fn received(parts: &[&[u8]]) -> Result<u16, ConnectionError<core::convert::Infallible>> {
        let mut writer = FrameWriter::new(ciphers_for_tests([7; 32]).unwrap().sealer);
        let mut bytes = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            let kind = if n + 1 < parts.len() {
                Kind::MessagePart
            } else {
                Kind::Message
            };
            bytes.extend_from_slice(writer.seal(kind, part).unwrap());
        }
        let ciphers = ciphers_for_tests([7; 32]).unwrap();
        let mut connection = Connection::new(Canned::new(&bytes), ciphers, PublicKey([9; 32]));
        run(async {
            let first = connection.next_frame().await?.unwrap();
            let message = connection.rest_of_message(first, 100).await?;
            Ok(message.expect("readable"))
        })
    }

    #[test]
    fn a_part_of_a_message_must_not_be_empty() {
        assert!(matches!(received(&[&[0xac, 2]]), Ok(300)));
        assert!(matches!(received(&[&[0xac], &[2]]), Ok(300)));
        for parts in [&[&[][..], &[0xac, 2]][..], &[&[0xac], &[], &[2]]] {
            assert!(matches!(received(parts), Err(ConnectionError::Malformed)));
        }
    }
}
