//! What the protocol needs from its surroundings: bytes in order, and random numbers.

use core::fmt;
use core::future::Future;

/// An ordered, reliable stream of bytes to one peer: a TCP connection.
///
/// Deadlines are the implementer's: a stream whose peer is silent for too long returns
/// an error of its own, and nothing here tries again after an error.
pub trait ByteStream {
    /// Why the stream is dead.
    type Error: fmt::Debug;

    /// Waits until there is something, and reads at most `buf.len()` bytes of it. 0: the
    /// peer has closed its side. `buf` is not empty.
    ///
    /// A dropped future must not have taken bytes from the stream: consoles wait for
    /// input and output at once, and drop the one that comes later.
    fn read(&mut self, buf: &mut [u8]) -> impl Future<Output = Result<usize, Self::Error>>;

    /// Writes all of `bytes`, waiting for room as often as it takes.
    ///
    /// A dropped future may have written a part: the connection is then of no more use.
    fn write_all(&mut self, bytes: &[u8]) -> impl Future<Output = Result<(), Self::Error>>;
}

impl<S: ByteStream> ByteStream for &mut S {
    type Error = S::Error;

    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Self::Error> {
        (**self).read(buf).await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        (**self).write_all(bytes).await
    }
}

/// A source of random numbers fit for keys.
pub trait Entropy {
    /// Fills `out`.
    ///
    /// # Errors
    /// There is no randomness: no key may be made, no connection opened.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), NoEntropy>;
}

/// The source of random numbers has failed, or has never been seeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoEntropy;

impl fmt::Display for NoEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no random numbers to be had")
    }
}

impl core::error::Error for NoEntropy {}
