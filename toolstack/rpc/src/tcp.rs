//! [`ByteStream`] and [`Entropy`] of an ordinary operating system: blocking TCP streams
//! of std, whose futures are always ready.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::stream::{ByteStream, Entropy, NoEntropy};

/// A TCP connection. Timeouts are those of the stream (`set_read_timeout`).
#[derive(Debug)]
pub struct Tcp(
    /// The connection.
    pub TcpStream,
);

impl ByteStream for Tcp {
    type Error = io::Error;

    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, io::Error> {
        loop {
            match self.0.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) -> Result<(), io::Error> {
        self.0.write_all(bytes)
    }
}

/// Runs a future that waits for nothing but blocking streams.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            // Nobody would wake us, so ask again; with `Tcp` this does not happen.
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

/// The operating system's random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), NoEntropy> {
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(out))
            .map_err(|_| NoEntropy)
    }
}
