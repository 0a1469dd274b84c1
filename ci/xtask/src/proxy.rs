//! A TCP connection to the bed that breaks where a test wants it to.

use anyhow::{Context, Result, anyhow};
use std::io::{self, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

/// Passes one connection on.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    thread: JoinHandle<io::Result<u64>>,
}

impl Proxy {
    /// Passes one connection on to `port` of this machine, and ends it on both sides once
    /// `limit` bytes went there.
    pub fn start(port: u16, limit: u64) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free TCP port")?;
        let own_port = listener.local_addr().context("no free TCP port")?.port();
        Ok(Self {
            port: own_port,
            thread: thread::spawn(move || pass(listener, port, limit)),
        })
    }

    /// After the client's end: how many bytes went to the other side.
    pub fn passed(self) -> Result<u64> {
        // If nobody came, the thread waits still; this connection ends it.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        let passed = self.thread.join();
        passed
            .map_err(|_| anyhow!("the proxy panicked"))?
            .context("the proxy failed")
    }
}

fn pass(listener: TcpListener, port: u16, limit: u64) -> io::Result<u64> {
    let (client, _) = listener.accept()?;
    // A second one would wait for nothing.
    drop(listener);
    let host = TcpStream::connect(("127.0.0.1", port))?;
    client.set_nodelay(true)?;
    host.set_nodelay(true)?;
    let (mut from, mut to) = (host.try_clone()?, client.try_clone()?);
    let back = thread::spawn(move || io::copy(&mut from, &mut to));
    let passed = io::copy(&mut (&client).take(limit), &mut &host);
    // One of them may be closed already, which is what we want.
    let closed = (
        client.shutdown(Shutdown::Both),
        host.shutdown(Shutdown::Both),
    );
    // What came back ends with an error or without one, as the cut has it.
    drop((closed, back.join()));
    passed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Sends 1000 bytes to one who answers "go" and wants all of them: what he got, what
    /// came back, and what the proxy counted.
    fn send_through(limit: u64) -> Result<(Vec<u8>, Vec<u8>, u64)> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let proxy = Proxy::start(listener.local_addr()?.port(), limit)?;
        let host = thread::spawn(move || -> io::Result<Vec<u8>> {
            let (mut stream, _) = listener.accept()?;
            stream.write_all(b"go")?;
            let mut got = Vec::new();
            stream.read_to_end(&mut got)?;
            Ok(got)
        });
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port))?;
        let mut answer = vec![0; 2];
        client.read_exact(&mut answer)?;
        client.write_all(&[7; 1000])?;
        // After a cut there may be nothing left to end.
        drop(client.shutdown(Shutdown::Write));
        let got = host.join().map_err(|_| anyhow!("the host panicked"))??;
        Ok((got, answer, proxy.passed()?))
    }

    #[test]
    fn all_goes_through_below_the_limit() -> Result<()> {
        let (got, answer, passed) = send_through(u64::MAX)?;
        assert_eq!(
            (got.len(), answer.as_slice(), passed),
            (1000, &b"go"[..], 1000)
        );
        Ok(())
    }

    #[test]
    fn the_cut_is_at_the_byte() -> Result<()> {
        let (got, _, passed) = send_through(300)?;
        assert_eq!((got.len(), passed), (300, 300));
        Ok(())
    }

    #[test]
    fn nobody_comes() -> Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let proxy = Proxy::start(listener.local_addr()?.port(), u64::MAX)?;
        assert_eq!(proxy.passed()?, 0);
        Ok(())
    }
}
