//! Serves a store on a Unix socket, as xenstored does in a Linux dom0, so that Xen's
//! own tests and tools can be run against it:
//!
//! ```sh
//! cargo run --release -p toolstack-xenstore --example xenstored-host -- /tmp/xs.sock &
//! XENSTORED_PATH=/tmp/xs.sock test-xenstore
//! ```
//!
//! With `--domid N` each client acts as the unprivileged domain N. One thread, one
//! poll loop; requests that wait for the kernel (INTRODUCE) are answered and printed.
//! Prints `listening` once clients can connect. A tool for tests, not part of Closer.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use toolstack_xenstore::{ConnId, Server};
use xen_abi::DomId;

struct Client {
    stream: UnixStream,
    /// Read from the socket, not yet taken by the server.
    pending: Vec<u8>,
    gone: bool,
}

/// How long the loop sleeps while nothing moves. Short: `std` has no poll(2).
const NAP: Duration = Duration::from_micros(50);

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or_else(|| usage("no socket path"))?;
    let mut domid = DomId(0);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse().ok());
        match (argument.as_str(), value) {
            ("--domid", Some(number)) => domid = DomId(number),
            _ => return Err(usage(&argument)),
        }
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    println!("listening on {path}");
    serve(&listener, domid)
}

fn usage(what: &str) -> io::Error {
    io::Error::other(format!("{what}; usage: xenstored-host SOCKET [--domid N]"))
}

pub fn serve(listener: &UnixListener, domid: DomId) -> io::Result<()> {
    let mut server = Server::new(Default::default());
    let start = Instant::now();
    let mut clients: BTreeMap<ConnId, Client> = BTreeMap::new();
    loop {
        let now_ms = start.elapsed().as_millis();
        server.advance(u64::try_from(now_ms).unwrap_or(u64::MAX));
        let mut moved = false;
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                let id = server.connect(domid, domid == DomId(0));
                let client = Client {
                    stream,
                    pending: Vec::new(),
                    gone: false,
                };
                clients.insert(id, client);
                moved = true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        while server.next_ready().is_some() {}
        for (id, client) in &mut clients {
            moved |= serve_client(&mut server, *id, client);
        }
        clients.retain(|id, client| {
            if client.gone {
                server.disconnect(*id);
            }
            !client.gone
        });
        while let Some(action) = server.next_action() {
            println!("{action:?}");
        }
        if !moved {
            std::thread::sleep(NAP);
        }
    }
}

/// Moves bytes both ways; whether any moved.
fn serve_client(server: &mut Server, id: ConnId, client: &mut Client) -> bool {
    let mut moved = false;
    if client.pending.is_empty() {
        let mut buffer = [0; 4096];
        match client.stream.read(&mut buffer) {
            Ok(0) => client.gone = true,
            Ok(count) => client.pending.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => client.gone = true,
        }
    }
    if !client.pending.is_empty() {
        match server.input(id, &client.pending) {
            Ok(input) => {
                client.pending.drain(..input.consumed);
                moved |= input.consumed > 0;
            }
            Err(error) => {
                println!("{error}");
                client.gone = true;
            }
        }
    }
    while !server.output(id).is_empty() {
        match client.stream.write(server.output(id)) {
            Ok(count) => {
                server.sent(id, count);
                moved = true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => {
                client.gone = true;
                break;
            }
        }
    }
    moved
}
