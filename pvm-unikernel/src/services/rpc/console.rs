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
    // Typed and not yet taken by the guest. While there is any, nothing more is read from
    // the administrator: that is the back pressure. Output goes on all the time.
    let mut typed: Vec<u8> = Vec::new();
    let mut told = false;
    loop {
        let taken = console.type_in(&typed);
        typed.drain(..taken);
        if !typed.is_empty() && !told {
            told = true;
            log::debug!("console of {guest}: what is typed waits for the guest to read");
        }
        match next(
            client,
            &console,
            &mut watcher,
            &mut chunk,
            !typed.is_empty(),
        )
        .await?
        {
            Step::Output(0) => return client.end_console().await,
            Step::Output(count) => client.write_console(&chunk[..count]).await?,
            Step::Input(bytes) => typed = bytes,
            Step::Room => {}
            Step::Gone => typed.clear(),
            Step::Detached => return Ok(()),
        }
    }
}

enum Step {
    /// This many bytes of output are in the chunk; 0: the console is gone.
    Output(usize),
    Input(Vec<u8>),
    /// What was typed may find room now.
    Room,
    /// Nobody will read what was typed.
    Gone,
    Detached,
}

/// What happens first. The futures may be dropped: none loses anything.
async fn next(
    client: &mut Client,
    console: &Rc<GuestConsole>,
    watcher: &mut Watcher,
    chunk: &mut [u8],
    waits_for_room: bool,
) -> Result<Step, Ended> {
    let output = pin!(watcher.read(chunk));
    let input = pin!(async {
        if waits_for_room {
            // A guest that reads nothing must not keep one who left.
            let room = pin!(console.wait_for_room());
            let left = pin!(client.stream().ended());
            return Ok(match select(room, left).await {
                Either::Left((true, _)) => Step::Room,
                // The guest is gone: what it said last comes first, then the end.
                Either::Left((false, _)) => Step::Gone,
                // What it typed last is still unread, and no request.
                Either::Right(_) => return Err(Ended::Cut),
            });
        }
        let input = client.read_console().await?;
        Ok(input.map_or(Step::Detached, |bytes| Step::Input(Vec::from(bytes))))
    });
    match select(input, output).await {
        Either::Left((step, _)) => step,
        Either::Right((count, _)) => Ok(Step::Output(count)),
    }
}
