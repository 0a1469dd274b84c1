//! The host's side of a connection.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

use toolstack_domain::config::{Disk, GuestConfig, Vif};
use toolstack_domain::vdev::device_number;

use crate::connection::{Connection, ConnectionError, HandshakeError, read_exact};
use crate::error::RpcError;
use crate::frame::Kind;
use crate::hello::{self, HostHello, OURS, Versions};
use crate::key::{PrivateKey, PublicKey};
use crate::message::{MAX_REQUEST, MAX_RESPONSE, Request, Response};
use crate::noise::{FIRST_LEN, Responder, Verdict};
use crate::stream::{ByteStream, Entropy};

/// Whom the host is, and whom it serves.
#[derive(Clone, Debug)]
pub struct ServerKeys {
    /// The host's key.
    pub private: PrivateKey,
    /// Administrators: their keys. None: nobody is served.
    pub administrators: Vec<PublicKey>,
}

/// A connection whose client is an administrator, and there: a frame of it was opened.
#[derive(Debug)]
pub struct ServerConnection<S> {
    connection: Connection<S>,
    /// The frame that was opened by [`accept`], until it is asked for.
    first: Option<Kind>,
}

/// Receives hello, handshake and the first frame of a client that has just connected.
///
/// The frame belongs to it: hello and handshake can be a recording of an administrator's
/// ([`crate::noise`]), and only who has the key can make a frame for a new handshake. So a
/// client must send its first request as soon as it is welcome.
///
/// Until it returns, the connection holds no more than the largest frame (twice), and the
/// peer is a stranger: put a deadline of some seconds around it, and bound how many of
/// these run at once ([`crate::strangers`]). Only then is it worth asking whether there is
/// room for one more client ([`crate::clients`]).
///
/// # Errors
/// The peer is not served; it has been told why, if it said hello. Close the stream. The errors are
/// worth a line in the log, but not one each: a stranger makes them at will.
pub async fn accept<S: ByteStream>(
    stream: S,
    keys: &ServerKeys,
    entropy: &mut dyn Entropy,
) -> Result<ServerConnection<S>, ConnectionError<S::Error>> {
    accept_versions(stream, keys, OURS, entropy).await
}

/// [`accept`] of a host that speaks other versions, for tests.
///
/// # Errors
/// As [`accept`].
pub async fn accept_versions<S: ByteStream>(
    mut stream: S,
    keys: &ServerKeys,
    ours: Versions,
    entropy: &mut dyn Entropy,
) -> Result<ServerConnection<S>, ConnectionError<S::Error>> {
    let mut prologue = [0; hello::CLIENT_LEN + hello::HOST_LEN];

    let (asked, theirs) = read_hello(&mut stream).await?;
    let chosen = ours.common(theirs);
    let answer = hello::encode_host(HostHello {
        versions: ours,
        chosen,
    });
    write(&mut stream, &answer).await?;
    if chosen.is_none() {
        return Err(HandshakeError::Version { ours, theirs }.into());
    }
    prologue[..hello::CLIENT_LEN].copy_from_slice(&asked);
    prologue[hello::CLIENT_LEN..].copy_from_slice(&answer);

    let mut first = [0; 2 + FIRST_LEN];
    read_exact(&mut stream, &mut first[..2]).await?;
    if usize::from(u16::from_le_bytes([first[0], first[1]])) != FIRST_LEN {
        return Err(HandshakeError::Malformed.into());
    }
    let mut first = [0; FIRST_LEN];
    read_exact(&mut stream, &mut first).await?;
    let responder = match Responder::read(&keys.private, &prologue, &first, entropy) {
        Ok(responder) => responder,
        Err(e) => {
            // An empty second message: "not for my key".
            write(&mut stream, &[0, 0]).await?;
            return Err(HandshakeError::from(e).into());
        }
    };
    let client = responder.client();
    let verdict = if keys.administrators.contains(&client) {
        Verdict::Welcome
    } else {
        Verdict::UnknownKey
    };
    let (second, ciphers) = responder.finish(verdict).map_err(HandshakeError::from)?;
    let mut framed = [0; 2 + crate::noise::SECOND_LEN];
    framed[0] = 49;
    framed[2..].copy_from_slice(&second);
    write(&mut stream, &framed).await?;
    if verdict == Verdict::UnknownKey {
        return Err(HandshakeError::UnknownClientKey(client).into());
    }
    let mut connection = Connection::new(stream, ciphers, client);
    let first = connection.next_frame().await?;
    Ok(ServerConnection {
        connection,
        first: Some(first.ok_or(ConnectionError::Cut)?),
    })
}

async fn read_hello<S: ByteStream>(
    stream: &mut S,
) -> Result<([u8; hello::CLIENT_LEN], Versions), ConnectionError<S::Error>> {
    let mut bytes = [0; hello::CLIENT_LEN];
    read_exact(stream, &mut bytes).await?;
    match hello::decode_client(&bytes) {
        Ok(versions) => Ok((bytes, versions)),
        Err(hello::NotCloser) => Err(HandshakeError::NotCloser.into()),
    }
}

async fn write<S: ByteStream>(
    stream: &mut S,
    bytes: &[u8],
) -> Result<(), ConnectionError<S::Error>> {
    stream
        .write_all(bytes)
        .await
        .map_err(ConnectionError::Stream)
}

impl<S: ByteStream> ServerConnection<S> {
    /// The stream below, to be looked at, not read.
    pub fn stream(&self) -> &S {
        &self.connection.stream
    }

    /// A connection without a handshake.
    pub(crate) fn for_fuzz(connection: Connection<S>) -> Self {
        ServerConnection {
            connection,
            first: None,
        }
    }

    /// The next request; `None`: the client has closed the connection. Requests that
    /// cannot be read are answered here ([`RpcError::UnknownRequest`]).
    ///
    /// # Errors
    /// The connection is over.
    pub async fn next_request(&mut self) -> Result<Option<Request>, ConnectionError<S::Error>> {
        loop {
            let first = match self.first.take() {
                Some(first) => first,
                None => match self.connection.next_frame().await? {
                    Some(first) => first,
                    None => return Ok(None),
                },
            };
            match self.connection.rest_of_message(first, MAX_REQUEST).await? {
                Ok(request) => return Ok(Some(request)),
                Err(_) => self.respond_error(RpcError::UnknownRequest).await?,
            }
        }
    }

    /// Answers the request.
    ///
    /// # Errors
    /// The connection is over, or the response longer than [`MAX_RESPONSE`] (nothing has been
    /// sent then).
    pub async fn respond(&mut self, response: &Response) -> Result<(), ConnectionError<S::Error>> {
        self.connection.send_message(response, MAX_RESPONSE).await
    }

    /// Answers the request with an error.
    ///
    /// # Errors
    /// As [`ServerConnection::respond`].
    pub async fn respond_error(
        &mut self,
        error: RpcError,
    ) -> Result<(), ConnectionError<S::Error>> {
        self.respond(&Response::Error(error)).await
    }

    /// `Done`, or the error.
    ///
    /// # Errors
    /// As [`ServerConnection::respond`].
    pub async fn respond_result(
        &mut self,
        result: Result<(), RpcError>,
    ) -> Result<(), ConnectionError<S::Error>> {
        match result {
            Ok(()) => self.respond(&Response::Done).await,
            Err(error) => self.respond_error(error).await,
        }
    }

    /// `Ready`, and then the whole of `bytes` as the host's stream: logs.
    ///
    /// # Errors
    /// The connection is over. That the client did not want all of it is none.
    pub async fn respond_stream(&mut self, bytes: &[u8]) -> Result<(), ConnectionError<S::Error>> {
        use crate::transfer::TransferError;

        let len = bytes.len() as u64;
        self.respond(&Response::Ready { len }).await?;
        let mut outgoing = self.connection.outgoing();
        let sent = match outgoing.send(bytes).await {
            Ok(()) => outgoing.finish().await,
            Err(e) => Err(e),
        };
        match sent {
            Ok(()) | Err(TransferError::Rejected(_) | TransferError::Aborted(_)) => Ok(()),
            Err(TransferError::Connection(e)) => Err(e),
        }
    }
}

impl<S> Deref for ServerConnection<S> {
    type Target = Connection<S>;

    fn deref(&self) -> &Connection<S> {
        &self.connection
    }
}

impl<S> DerefMut for ServerConnection<S> {
    fn deref_mut(&mut self) -> &mut Connection<S> {
        &mut self.connection
    }
}

/// Bytes of the longest name.
const MAX_NAME: usize = 64;

/// Checks a name of a guest or a volume: 1 to 64 letters, digits, and any of `+-._`, not
/// digits alone (a domid) and not beginning with `-` or `.`.
///
/// The host checks what it gets, the command line what it sends.
///
/// # Errors
/// [`RpcError::BadName`].
pub fn check_name(name: &str) -> Result<(), RpcError> {
    let bad = |why: &str| {
        // A name is echoed, and a long one would make a long line.
        let name: String = name.chars().take(80).collect();
        let why = why.into();
        Err(RpcError::BadName { name, why })
    };
    if name.is_empty() || name.len() > MAX_NAME {
        return bad("1 to 64 characters");
    }
    if !name
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || b"+-._".contains(&c))
    {
        return bad("letters, digits and +-._ only");
    }
    if name.starts_with(['-', '.']) {
        return bad("begins with - or .");
    }
    if name.bytes().all(|c| c.is_ascii_digit()) {
        return bad("a number would be taken for a domid");
    }
    Ok(())
}

/// The name under which an ended domain of a guest is kept: the guest's and the domid, cut in
/// the guest's name, and with a further number if that is taken. There always is one.
pub fn kept_name(name: &str, domid: u16, taken: impl Fn(&str) -> bool) -> String {
    let with = |suffix: String| {
        let cut = name.floor_char_boundary(MAX_NAME - suffix.len());
        format!("{}{suffix}", &name[..cut])
    };
    let mut kept = with(format!("-{domid}"));
    let mut further = 2u32;
    while taken(&kept) {
        kept = with(format!("-{domid}-{further}"));
        further += 1;
    }
    kept
}

/// Checks what a guest's devices cannot share: disks a device number, and network devices an
/// address, which no other guest of the host has either.
///
/// # Errors
/// [`RpcError::BadConfig`]
pub fn check_devices<'a>(
    config: &GuestConfig,
    others: impl IntoIterator<Item = &'a GuestConfig>,
) -> Result<(), RpcError> {
    let bad = |key: &str, why| {
        let key = key.into();
        Err(RpcError::BadConfig { key, why })
    };
    for (at, disk) in config.disks.iter().enumerate() {
        let number = device_number(&disk.vdev);
        let same = |other: &Disk| device_number(&other.vdev) == number;
        if number.is_some() && config.disks[..at].iter().any(same) {
            return bad("disk", format!("vdev {} is given twice", disk.vdev));
        }
    }
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    for (at, Vif { mac, .. }) in config.vifs.iter().enumerate() {
        if config.vifs[..at].iter().any(|vif| vif.mac == *mac) {
            return bad("vif", format!("mac {} is given twice", text(*mac)));
        }
    }
    for other in others {
        let has = |vif: &&Vif| other.vifs.iter().any(|theirs| theirs.mac == vif.mac);
        if let Some(vif) = config.vifs.iter().find(has) {
            let (name, mac) = (&other.name, text(vif.mac));
            return bad("vif", format!("guest {name} has mac {mac} already"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_of_any_allowed_name_can_be_kept_under_another() {
        assert_eq!(kept_name("web", 7, |_| false), "web-7");
        assert_eq!(kept_name("web", 7, |name| name == "web-7"), "web-7-2");
        for len in 1..=MAX_NAME {
            let name = "a".repeat(len);
            check_name(&name).unwrap();
            let mut table = Vec::from([name.clone()]);
            for _ in 0..20 {
                let kept = kept_name(&name, 65_535, |kept| table.iter().any(|t| t == kept));
                check_name(&kept).unwrap();
                table.push(kept);
            }
        }
        // Not through the middle of a character, should names ever have such.
        assert!(kept_name(&"\u{e4}".repeat(32), 1, |_| false).len() <= MAX_NAME);
    }
}
