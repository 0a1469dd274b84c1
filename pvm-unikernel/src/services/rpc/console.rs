//! Attaching an administrator to a guest's console.

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::pin::pin;

use futures_util::future::{Either, select};
use toolstack_rpc::Response;
use toolstack_rpc::message::GuestRef;

use super::{Client, Ended};
use crate::services::console::{GuestConsole, Watcher};
use crate::services::host::Host;

/// Bytes sent in one go.
const CHUNK: usize = 4096;

/// Sends what is kept.
pub async fn log(host: &Host, client: &mut Client, guest: &GuestRef) -> Result<(), Ended> {
    let console = match host.guests.console(guest) {
        Ok(console) => console,
        Err(error) => return client.respond_error(error).await,
    };
    client.respond_stream(&console.kept()).await
}

/// Joins client and console until one of them ends it.
pub async fn attach(
    host: &Host,
    client: &mut Client,
    guest: &GuestRef,
    replay: bool,
) -> Result<(), Ended> {
    let console = match host.guests.console(guest) {
        Ok(console) => console,
        Err(error) => return client.respond_error(error).await,
    };
    client.respond(&Response::Ready { len: 0 }).await?;
    let mut watcher = console.watch(replay);
    let mut chunk = vec![0; CHUNK];
    loop {
        let step = next(client, &mut watcher, &mut chunk).await?;
        match step {
            Step::Output(0) => return client.end_console().await,
            Step::Output(count) => client.write_console(&chunk[..count]).await?,
            Step::Input(bytes) => type_all(&console, &bytes).await,
            Step::Detached => return Ok(()),
        }
    }
}

enum Step {
    /// This many bytes of output are in the chunk; 0: the console is gone.
    Output(usize),
    Input(Vec<u8>),
    Detached,
}

/// What happens first. Both futures may be dropped: neither loses anything.
async fn next(client: &mut Client, watcher: &mut Watcher, chunk: &mut [u8]) -> Result<Step, Ended> {
    let input = pin!(client.read_console());
    let output = pin!(watcher.read(chunk));
    match select(input, output).await {
        Either::Left((input, _)) => {
            Ok(input?.map_or(Step::Detached, |bytes| Step::Input(Vec::from(bytes))))
        }
        Either::Right((count, _)) => Ok(Step::Output(count)),
    }
}

/// Types bytes as fast as the guest reads them. A guest that reads nothing holds up its
/// own administrator's input, and nothing else.
async fn type_all(console: &Rc<GuestConsole>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let taken = console.type_in(bytes);
        bytes = &bytes[taken..];
        if !bytes.is_empty() && !console.wait_for_room().await {
            return;
        }
    }
}
