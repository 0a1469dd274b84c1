//! A stream of bytes of any length over a connection, with back pressure and an end
//! that cannot be mistaken.
//!
//! The sender sends `Data` and `Zeros` frames, and then either `End` with the count of all
//! bytes, or `Abort`. The receiver acknowledges what it has dealt with every [`ACK_EVERY`]
//! bytes; the sender is never more than [`WINDOW`] ahead, so a receiver that is
//! slow, or gives up (`Reject`), is noticed soon. The receiver answers once: `Received` after `End` or `Abort`,
//! or `Reject` at any time before. A transfer cut before its `End` is no transfer: who receives it throws it away.
//!
//! There is no checksum over the whole: each frame is authenticated, numbered, and the
//! count is part of one, so that nothing can be lost or changed on the way. Images are hashed
//! because of their names, see [`ImageHasher`].

use sha2::{Digest, Sha256};
use toolstack_domain::config::ImageId;

use crate::connection::{Connection, ConnectionError};
use crate::error::RpcError;
use crate::frame::{Kind, MAX_PAYLOAD};
use crate::stream::ByteStream;

/// How far, in bytes of payload, a sender may be ahead of the acknowledgements.
pub const WINDOW: u64 = 1024 * 1024;
/// How often a receiver acknowledges.
pub const ACK_EVERY: u64 = 128 * 1024;
/// Payload of a `Zeros` frame.
const ZEROS_PAYLOAD: u64 = 8;

/// A piece of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// These bytes; never none.
    Bytes(&'a [u8]),
    /// So many zeros; never none.
    Zeros(u64),
}

/// Why a transfer ended early.
#[derive(Debug)]
pub enum TransferError<E> {
    /// The connection is over.
    Connection(ConnectionError<E>),
    /// The sender gave up; the connection lives.
    Aborted(RpcError),
    /// The receiver gave up; the connection lives.
    Rejected(RpcError),
}

impl<E> From<ConnectionError<E>> for TransferError<E> {
    fn from(error: ConnectionError<E>) -> Self {
        TransferError::Connection(error)
    }
}

impl<S: ByteStream> Connection<S> {
    /// Receives the stream that the other side now sends. With `announced`, more or fewer
    /// bytes than that are rejected ([`RpcError::WrongLength`]).
    pub fn incoming(&mut self, announced: Option<u64>) -> Incoming<'_, S> {
        Incoming {
            connection: self,
            announced,
            received: 0,
            payload: 0,
            acknowledged: 0,
            over: false,
        }
    }

    /// Sends a stream.
    pub fn outgoing(&mut self) -> Outgoing<'_, S> {
        Outgoing {
            connection: self,
            sent: 0,
            payload: 0,
            acknowledged: 0,
        }
    }

    /// The error in the last frame.
    fn error_payload(&self) -> Result<RpcError, ConnectionError<S::Error>> {
        postcard::from_bytes(self.payload()).map_err(|_| ConnectionError::Malformed)
    }

    async fn send_error(
        &mut self,
        kind: Kind,
        error: &RpcError,
    ) -> Result<(), ConnectionError<S::Error>> {
        let bytes = postcard::to_allocvec(error).map_err(|_| ConnectionError::Malformed)?;
        self.send_frame(kind, &bytes).await
    }

    /// A frame that must come.
    async fn expect_frame(&mut self) -> Result<Kind, ConnectionError<S::Error>> {
        self.next_frame().await?.ok_or(ConnectionError::Cut)
    }
}

/// The receiving end of a transfer.
///
/// Use it until it says `None` or an error, or [`Incoming::reject`] it; if it is
/// dropped before, the connection's next message fails.
#[derive(Debug)]
pub struct Incoming<'a, S> {
    connection: &'a mut Connection<S>,
    announced: Option<u64>,
    /// Bytes, zeros included.
    received: u64,
    /// Bytes of payload: what the window counts.
    payload: u64,
    acknowledged: u64,
    over: bool,
}

impl<S: ByteStream> Incoming<'_, S> {
    /// Bytes received so far, zeros included.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The next piece; `None`: all is there. Asking for the next one acknowledges the
    /// one before, so store it first.
    ///
    /// # Errors
    /// The stream is not complete; what came of it is to be thrown away.
    pub async fn next(&mut self) -> Result<Option<Chunk<'_>>, TransferError<S::Error>> {
        if self.over {
            return Ok(None);
        }
        if self.payload - self.acknowledged >= ACK_EVERY {
            self.acknowledged = self.payload;
            let count = self.payload.to_le_bytes();
            self.connection.send_frame(Kind::Ack, &count).await?;
        }
        match self.connection.expect_frame().await? {
            Kind::Data => {
                let len = self.connection.payload().len() as u64;
                self.count(len, len).await?;
                Ok(Some(Chunk::Bytes(self.connection.payload())))
            }
            Kind::Zeros => {
                let zeros = self.connection.number()?;
                self.count(zeros, ZEROS_PAYLOAD).await?;
                Ok(Some(Chunk::Zeros(zeros)))
            }
            Kind::End => {
                self.over = true;
                if self.connection.number()? != self.received {
                    return Err(ConnectionError::Malformed.into());
                }
                if self.announced.is_some_and(|a| a != self.received) {
                    let error = self.wrong_length(self.received);
                    self.connection.send_error(Kind::Reject, &error).await?;
                    return Err(TransferError::Rejected(error));
                }
                self.connection.send_frame(Kind::Received, &[]).await?;
                Ok(None)
            }
            Kind::Abort => {
                self.over = true;
                let error = self.connection.error_payload()?;
                self.connection.send_frame(Kind::Received, &[]).await?;
                Err(TransferError::Aborted(error))
            }
            other => Err(ConnectionError::Unexpected(other).into()),
        }
    }

    async fn count(&mut self, bytes: u64, payload: u64) -> Result<(), TransferError<S::Error>> {
        let received = self.received.checked_add(bytes);
        let Some(received) = received.filter(|_| bytes > 0) else {
            return Err(ConnectionError::Malformed.into());
        };
        self.payload += payload;
        if self.announced.is_some_and(|a| received > a) {
            let error = self.wrong_length(received);
            self.drain_after_reject(&error).await?;
            return Err(TransferError::Rejected(error));
        }
        self.received = received;
        Ok(())
    }

    fn wrong_length(&self, sent: u64) -> RpcError {
        RpcError::WrongLength {
            announced: self.announced.unwrap_or(0),
            sent,
        }
    }

    /// Gives the transfer up: the sender is told why, and no [`crate::Response`] is to follow.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn reject(mut self, why: &RpcError) -> Result<(), ConnectionError<S::Error>> {
        if self.over {
            return Ok(());
        }
        self.drain_after_reject(why).await
    }

    /// What was on its way still arrives, at most a window of it.
    async fn drain_after_reject(
        &mut self,
        why: &RpcError,
    ) -> Result<(), ConnectionError<S::Error>> {
        self.over = true;
        self.connection.send_error(Kind::Reject, why).await?;
        let mut left = WINDOW + ACK_EVERY;
        loop {
            match self.connection.expect_frame().await? {
                Kind::End | Kind::Abort => return Ok(()),
                Kind::Data | Kind::Zeros => {
                    let len = self.connection.payload().len().max(1) as u64;
                    left = left.checked_sub(len).ok_or(ConnectionError::Malformed)?;
                }
                other => return Err(ConnectionError::Unexpected(other)),
            }
        }
    }
}

/// The sending end of a transfer: end it with [`Outgoing::finish`] or [`Outgoing::abort`].
#[derive(Debug)]
pub struct Outgoing<'a, S> {
    connection: &'a mut Connection<S>,
    /// Bytes, zeros included.
    sent: u64,
    payload: u64,
    acknowledged: u64,
}

impl<S: ByteStream> Outgoing<'_, S> {
    /// Bytes sent so far, zeros included.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends bytes; waits while the receiver is a window behind.
    ///
    /// # Errors
    /// The receiver gave up, or the connection is over: the transfer has ended.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), TransferError<S::Error>> {
        for chunk in bytes.chunks(MAX_PAYLOAD) {
            let len = chunk.len() as u64;
            self.make_room(len).await?;
            self.connection.send_frame(Kind::Data, chunk).await?;
            self.payload += len;
            self.sent += len;
        }
        Ok(())
    }

    /// Sends zeros without sending them.
    ///
    /// # Errors
    /// As [`Outgoing::send`].
    pub async fn send_zeros(&mut self, count: u64) -> Result<(), TransferError<S::Error>> {
        if count == 0 {
            return Ok(());
        }
        self.make_room(ZEROS_PAYLOAD).await?;
        let payload = count.to_le_bytes();
        self.connection.send_frame(Kind::Zeros, &payload).await?;
        self.payload += ZEROS_PAYLOAD;
        self.sent += count;
        Ok(())
    }

    async fn make_room(&mut self, len: u64) -> Result<(), TransferError<S::Error>> {
        while self.payload + len - self.acknowledged > WINDOW {
            match self.connection.expect_frame().await? {
                Kind::Ack => self.acknowledge()?,
                Kind::Reject => {
                    let error = self.connection.error_payload()?;
                    // The mark the receiver waits for. It knows why.
                    self.connection.send_error(Kind::Abort, &error).await?;
                    return Err(TransferError::Rejected(error));
                }
                other => return Err(ConnectionError::Unexpected(other).into()),
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self) -> Result<(), ConnectionError<S::Error>> {
        let count = self.connection.number()?;
        if count <= self.acknowledged || count > self.payload {
            return Err(ConnectionError::Malformed);
        }
        self.acknowledged = count;
        Ok(())
    }

    /// Says that this was all, and waits until the receiver has it.
    ///
    /// # Errors
    /// As [`Outgoing::send`].
    pub async fn finish(mut self) -> Result<(), TransferError<S::Error>> {
        let count = self.sent.to_le_bytes();
        self.connection.send_frame(Kind::End, &count).await?;
        match self.answer().await? {
            None => Ok(()),
            Some(error) => Err(TransferError::Rejected(error)),
        }
    }

    /// Gives the transfer up, and tells the receiver why. No [`crate::Response`] is to follow.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn abort(mut self, why: &RpcError) -> Result<(), ConnectionError<S::Error>> {
        self.connection.send_error(Kind::Abort, why).await?;
        // That the receiver has given up, too, changes nothing.
        self.answer().await.map(drop)
    }

    /// The receiver's one answer: `Received`, or the error of its `Reject`.
    async fn answer(&mut self) -> Result<Option<RpcError>, ConnectionError<S::Error>> {
        loop {
            match self.connection.expect_frame().await? {
                Kind::Ack => self.acknowledge()?,
                Kind::Received => return Ok(None),
                Kind::Reject => return self.connection.error_payload().map(Some),
                other => return Err(ConnectionError::Unexpected(other)),
            }
        }
    }
}

/// Computes the name of an image from its bytes.
#[derive(Clone, Debug, Default)]
pub struct ImageHasher(Sha256);

impl ImageHasher {
    /// Nothing hashed yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a piece.
    pub fn update(&mut self, chunk: Chunk<'_>) {
        match chunk {
            Chunk::Bytes(bytes) => self.0.update(bytes),
            Chunk::Zeros(mut count) => {
                const ZEROS: [u8; 512] = [0; 512];
                while count > 0 {
                    let part = usize::try_from(count).map_or(512, |c| c.min(512));
                    self.0.update(&ZEROS[..part]);
                    count -= part as u64;
                }
            }
        }
    }

    /// The image's name.
    #[must_use]
    pub fn finish(self) -> ImageId {
        ImageId(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameWriter;
    use crate::fuzz::{Canned, run};
    use crate::key::PublicKey;
    use crate::noise::ciphers_for_tests;
    use alloc::vec::Vec;

    /// Runs `ours` against a peer that sends these frames.
    fn against<T>(
        frames: &[(Kind, &[u8])],
        ours: impl AsyncFnOnce(&mut Connection<Canned<'_>>) -> T,
    ) -> T {
        let mut writer = FrameWriter::new(ciphers_for_tests([7; 32]).unwrap().sealer);
        let mut bytes = Vec::new();
        for (kind, payload) in frames {
            bytes.extend_from_slice(writer.seal(*kind, payload).unwrap());
        }
        let ciphers = ciphers_for_tests([7; 32]).unwrap();
        let mut connection = Connection::new(Canned::new(&bytes), ciphers, PublicKey([9; 32]));
        run(ours(&mut connection))
    }

    #[test]
    fn after_a_rejection_a_window_still_arrives_and_no_byte_more() {
        const PAYLOAD: &[u8] = &[1; 8192];
        let mut frames: Vec<(Kind, &[u8])> = Vec::new();
        for _ in 0..(WINDOW + ACK_EVERY) / 8192 {
            frames.push((Kind::Data, PAYLOAD));
        }
        let reject = async |connection: &mut Connection<Canned<'_>>| {
            let incoming = connection.incoming(None);
            incoming.reject(&RpcError::UnknownRequest).await
        };
        frames.push((Kind::Abort, &[]));
        assert!(against(&frames, reject).is_ok());
        let end = frames.len() - 1;
        frames.insert(end, (Kind::Data, &[1]));
        let result = against(&frames, reject);
        assert!(matches!(result, Err(ConnectionError::Malformed)));
    }

    #[test]
    fn an_acknowledgement_is_of_more_than_the_last_and_of_no_more_than_was_sent() {
        for (counts, good) in [
            (&[100u64][..], true),
            (&[60, 100], true),
            (&[0], false),
            (&[101], false),
            (&[60, 60], false),
            (&[60, 59], false),
            (&[60, 101], false),
        ] {
            let payloads: Vec<_> = counts.iter().map(|count| count.to_le_bytes()).collect();
            let mut frames: Vec<(Kind, &[u8])> = Vec::new();
            for payload in &payloads {
                frames.push((Kind::Ack, payload));
            }
            frames.push((Kind::Received, &[]));
            let result = against(&frames, async |connection| {
                let mut outgoing = connection.outgoing();
                outgoing.send(&[1; 100]).await?;
                outgoing.finish().await
            });
            match result {
                Ok(()) => assert!(good, "{counts:?}"),
                Err(TransferError::Connection(ConnectionError::Malformed)) => {
                    assert!(!good, "{counts:?}");
                }
                Err(other) => panic!("{counts:?}: {other:?}"),
            }
        }
    }
}
