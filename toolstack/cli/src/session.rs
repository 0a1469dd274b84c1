//! A connection to the host, with what makes its troubles clear to a person.

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::process;
use std::thread;
use std::time::Duration;

use toolstack_rpc::client::{CallError, connect};
use toolstack_rpc::tcp::{SystemEntropy, Tcp, block_on};
use toolstack_rpc::{ClientConnection, ConnectionError, HandshakeError, Request, Response};

use crate::args::Global;
use crate::failure::{Failure, io_reason};
use crate::host_file::{self, HostFile};

/// For a host to take the connection, each of its addresses.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Times that a handshake is begun. A host resets the oldest of those that are not done when
/// too many are begun at once, as by a loop over many guests (`toolstack_rpc::strangers`).
const ATTEMPTS: u32 = 6;
/// For each step of the handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Silence after which the host is asked for a sign of life, by TCP.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Between two of these questions; after four without an answer the host is gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_COUNT: u32 = 4;
/// Sent and not acknowledged for so long: the host is gone.
const SEND_LIMIT_MS: u32 = 30_000;

/// A connection.
#[derive(Debug)]
pub struct Session {
    /// The connection itself.
    pub client: ClientConnection<Tcp>,
    /// Whom we talk to.
    pub address: String,
}

impl Session {
    /// Connects to the host that the arguments mean.
    pub fn open(global: &Global) -> Result<Session, Failure> {
        let file = host_file::load(global)?;
        let address = file.address.clone();
        // Programs that begin together come back apart.
        let mut pause = Duration::from_millis(50 + u64::from(process::id() % 64));
        let mut left = ATTEMPTS;
        let mut client = loop {
            left -= 1;
            match shake_hands(dial(&address)?, &file) {
                Ok(client) => break client,
                Err(error) if cut_off(&error) && left > 0 => {
                    thread::sleep(pause);
                    pause *= 2;
                }
                Err(error) => return Err(refused(&file, &error)),
            }
        };
        settle(&client.stream_mut().0).map_err(|e| Failure::io(&address, &e))?;
        Ok(Session { client, address })
    }

    /// Sends a request; `what` begins the line if it fails, as in "destroy web".
    pub fn call(
        &mut self,
        what: impl fmt::Display,
        request: &Request,
    ) -> Result<Response, Failure> {
        block_on(self.client.call(request)).map_err(|e| self.failed(what, e))
    }

    /// Sends a request that is answered by "done".
    pub fn call_done(&mut self, what: impl fmt::Display, request: &Request) -> Result<(), Failure> {
        match self.call(&what, request)? {
            Response::Done => Ok(()),
            _ => Err(self.odd(what)),
        }
    }

    /// The line for a request that failed.
    pub fn failed(
        &self,
        what: impl fmt::Display,
        error: impl Into<CallError<io::Error>>,
    ) -> Failure {
        match error.into() {
            CallError::Host(error) => Failure::new(what, error),
            CallError::Connection(ConnectionError::Stream(e)) => Failure::new(
                what,
                format_args!("connection to {} lost: {}", self.address, io_reason(&e)),
            ),
            CallError::Connection(ConnectionError::Cut) => Failure::new(
                what,
                format_args!("connection to {} lost: cut by the host", self.address),
            ),
            other => Failure::new(what, format_args!("{}: {other}", self.address)),
        }
    }

    /// The line for an answer that is none.
    pub fn odd(&self, what: impl fmt::Display) -> Failure {
        self.failed(what, CallError::WrongResponse)
    }
}

/// Whether the host ended the handshake; what stands between may make an end of a reset.
fn cut_off(error: &CallError<io::Error>) -> bool {
    match error {
        CallError::Connection(ConnectionError::Stream(e)) => {
            e.kind() == io::ErrorKind::ConnectionReset
        }
        CallError::Connection(error) => matches!(error, ConnectionError::Cut),
        _ => false,
    }
}

/// Both sides make sure of each other's keys, and of a place for us at the host: until it
/// has had a frame of ours we are a stranger.
fn shake_hands(
    stream: TcpStream,
    file: &HostFile,
) -> Result<ClientConnection<Tcp>, CallError<io::Error>> {
    stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(HANDSHAKE_LIMIT)))
        .and_then(|()| stream.set_write_timeout(Some(HANDSHAKE_LIMIT)))
        .map_err(ConnectionError::Stream)?;
    let mut client = block_on(connect(
        Tcp(stream),
        &file.identity,
        &file.host_key,
        &mut SystemEntropy,
    ))?;
    block_on(client.call_done(&Request::Ping))?;
    Ok(client)
}

/// Connects to the first of the host's addresses that takes the connection.
fn dial(address: &str) -> Result<TcpStream, Failure> {
    let unreachable = |why: String| Failure::new(address, format_args!("host unreachable: {why}"));
    let targets = address.to_socket_addrs().map_err(|e| {
        // "failed to lookup address information: Name or service not known"
        let text = io_reason(&e);
        unreachable(match text.split_once(": ") {
            Some((_, why)) => why.to_owned(),
            None => text,
        })
    })?;
    let mut last = "no address".to_owned();
    for target in targets {
        match TcpStream::connect_timeout(&target, CONNECT_LIMIT) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = io_reason(&e),
        }
    }
    Err(unreachable(last))
}

/// After the handshake: answers may take their time, but a host that is gone is noticed.
fn settle(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;

    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_COUNT)?;
    sockopt::set_tcp_user_timeout(stream, SEND_LIMIT_MS)?;
    Ok(())
}

/// The line for a handshake that failed.
fn refused(file: &HostFile, error: &CallError<io::Error>) -> Failure {
    let address = &file.address;
    let error = match error {
        CallError::Connection(error) => error,
        error => return Failure::new(address, error),
    };
    match error {
        ConnectionError::Stream(e) => Failure::new(
            address,
            format_args!("host does not answer: {}", io_reason(e)),
        ),
        ConnectionError::Cut => {
            Failure::new(address, "host does not answer: connection closed by it")
        }
        ConnectionError::Handshake(HandshakeError::WrongHostKey) => Failure::new(
            address,
            format_args!(
                "wrong host key: it has not the one that {} says",
                file.path.display()
            ),
        ),
        ConnectionError::Handshake(HandshakeError::UnknownClientKey(key)) => Failure::new(
            address,
            format_args!(
                "host does not know this key: {key} (identity {})",
                file.identity_name
            ),
        ),
        other => Failure::new(address, other),
    }
}
