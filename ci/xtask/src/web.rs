//! The outside world: a web client and a web server on this machine.

use crate::process::output;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Fetches a page from a port of this machine; tries again until it answers.
pub fn get(port: u16, path: &str, limit: Duration) -> Result<Vec<u8>> {
    let deadline = Instant::now() + limit;
    loop {
        match get_once(
            port,
            path,
            deadline.saturating_duration_since(Instant::now()),
        ) {
            Ok(body) => return Ok(body),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("no page {path} through port {port}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(500)),
        }
    }
}

fn get_once(port: u16, path: &str, limit: Duration) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("cannot connect")?;
    stream.set_read_timeout(Some(limit.max(Duration::from_millis(100))))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: bed\r\n\r\n")?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context("the answer is cut")?;
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .context("no answer")?;
    let (head, body) = answer.split_at(end + 4);
    let head = String::from_utf8_lossy(head).into_owned();
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!(
            "the server says {}",
            head.lines().next().unwrap_or_default()
        );
    }
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    ensure!(
        length.is_none_or(|length| length == body.len()),
        "{} bytes arrived",
        body.len()
    );
    Ok(body.to_vec())
}

/// A server that gives everyone the same bytes. It lives as long as the process.
#[derive(Debug)]
pub struct Server {
    port: u16,
}

impl Server {
    /// Starts it on a free port.
    pub fn start(body: Vec<u8>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free TCP port")?;
        let port = listener.local_addr().context("no free TCP port")?.port();
        let body = Arc::new(body);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let body = Arc::clone(&body);
                thread::spawn(move || serve(stream, &body));
            }
        });
        Ok(Self { port })
    }

    /// Its port on 127.0.0.1, which guests see on the bed's gateway.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn serve(mut stream: TcpStream, body: &[u8]) {
    let mut request = [0; 2048];
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let served = stream
        .read(&mut request)
        .and_then(|_| stream.write_all(head.as_bytes()))
        .and_then(|()| stream.write_all(body))
        .and_then(|()| stream.flush());
    if let Err(error) = served {
        // The guest sees a cut answer and fails; this says why.
        eprintln!("a guest's request was cut: {error}");
    }
}

/// SHA-256 in hex, by coreutils.
pub fn sha256(bytes: &[u8], dir: &Path) -> Result<String> {
    let file = dir.join("sha256.bin");
    fs::write(&file, bytes).context("cannot write what is to be hashed")?;
    let text = output(Command::new("sha256sum").arg(&file))?;
    fs::remove_file(&file).context("cannot remove what was hashed")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_fetched() {
        let body: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let server = Server::start(body.clone()).unwrap();
        assert_eq!(
            get(server.port(), "/", Duration::from_secs(20)).unwrap(),
            body
        );
    }

    #[test]
    fn the_known_digest_of_abc() {
        let hex = sha256(b"abc", &std::env::temp_dir()).unwrap();
        assert_eq!(
            hex,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
