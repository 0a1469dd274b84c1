//! Texts that a host streams: logs, consoles' pasts, xenstore.

use std::io;

use serde_json::json;
use toolstack_rpc::message::LogSource;
use toolstack_rpc::tcp::block_on;
use toolstack_rpc::{Chunk, Request, Response};

use crate::args::{Dmesg, Global, XenstoreLs};
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

/// `closer dmesg`
pub fn dmesg(arguments: &Dmesg, global: &Global) -> Result<(), Failure> {
    let source = if arguments.xen {
        LogSource::Xen
    } else {
        LogSource::Closer
    };
    let mut session = Session::open(global)?;
    show(&mut session, global, "dmesg", &Request::HostLog { source })
}

/// `closer xenstore-ls`
pub fn xenstore_ls(arguments: &XenstoreLs, global: &Global) -> Result<(), Failure> {
    let mut session = Session::open(global)?;
    let what = format!("xenstore-ls {}", arguments.path);
    let path = arguments.path.clone();
    show(&mut session, global, &what, &Request::XenstoreList { path })
}

/// Prints the text that the host answers with, or with `--json` an array of its lines.
pub fn show(
    session: &mut Session,
    global: &Global,
    what: &str,
    request: &Request,
) -> Result<(), Failure> {
    if global.json {
        let text = fetch(session, what, request)?;
        let text = String::from_utf8_lossy(&text);
        return output::json(&json!(text.lines().collect::<Vec<_>>()));
    }
    print(session, what, request)
}

/// Prints what the host streams as it is.
pub fn print(session: &mut Session, what: &str, request: &Request) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    receive(session, what, request, |chunk| match chunk {
        Chunk::Bytes(bytes) => output::bytes(bytes, &mut out),
        // No log holds zeros.
        Chunk::Zeros(_) => Ok(()),
    })
}

fn fetch(session: &mut Session, what: &str, request: &Request) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    receive(session, what, request, |chunk| {
        if let Chunk::Bytes(bytes) = chunk {
            text.extend_from_slice(bytes);
        }
        Ok(())
    })?;
    Ok(text)
}

/// Hands what the host streams to `sink`, piece by piece.
fn receive(
    session: &mut Session,
    what: &str,
    request: &Request,
    mut sink: impl FnMut(Chunk<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    match session.call(what, request)? {
        Response::Ready { .. } => {}
        _ => return Err(session.odd(what)),
    }
    let mut incoming = session.client.incoming(None);
    loop {
        match block_on(incoming.next()) {
            Ok(Some(chunk)) => sink(chunk)?,
            Ok(None) => return Ok(()),
            Err(e) => return Err(session.failed(what, e)),
        }
    }
}
