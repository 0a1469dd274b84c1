//! `closer console`: a guest's console on this terminal, or in pipes.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use toolstack_rpc::connection::ConsoleWriter;
use toolstack_rpc::message::GuestRef;
use toolstack_rpc::tcp::{Tcp, block_on};
use toolstack_rpc::{Request, Response};

use crate::args::{Console, Global};
use crate::cleanup::Guard;
use crate::failure::Failure;
use crate::logs;
use crate::output::{self, Format};
use crate::session::Session;

/// ^], as xl, telnet and virsh have it.
const ESCAPE: u8 = 0x1d;

/// The command.
pub fn run(arguments: &Console, global: &Global) -> Result<(), Failure> {
    let guest = GuestRef::parse(&arguments.guest);
    let mut session = Session::open(global)?;
    if arguments.log {
        let what = format!("console {}", arguments.guest);
        return logs::show(&mut session, global, &what, &Request::ConsoleLog { guest });
    }
    let limit = arguments.seconds.map(Duration::from_secs);
    attach(session, guest, !arguments.no_replay, limit, global.format())
}

/// Why the socket was shut down by ourselves.
#[derive(Clone, Debug)]
struct Leave {
    wanted: Arc<AtomicBool>,
    socket: Arc<TcpStream>,
}

impl Leave {
    fn now(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        // Wakes the reader; if the socket is down already, so much the better.
        self.socket.shutdown(Shutdown::Both).unwrap_or(());
    }
}

/// Attaches to a console until one side has enough of it.
pub fn attach(
    mut session: Session,
    guest: GuestRef,
    replay: bool,
    limit: Option<Duration>,
    format: Format,
) -> Result<(), Failure> {
    let what = format!("console {guest}");
    match session.call(&what, &Request::ConsoleAttach { guest, replay })? {
        Response::Ready { .. } => {}
        _ => return Err(session.odd(&what)),
    }
    let address = session.address.clone();
    let broken = |e: &io::Error| Failure::io(&what, e);
    let socket = &session.client.stream_mut().0;
    let copies = socket
        .try_clone()
        .and_then(|a| Ok((a, socket.try_clone()?)));
    let (for_writing, for_leaving) = copies.map_err(|e| broken(&e))?;
    let leave = Leave {
        wanted: Arc::default(),
        socket: Arc::new(for_leaving),
    };
    let (mut reader, writer) = session
        .client
        .into_connection()
        .into_halves(Tcp(for_writing));

    let terminal = io::stdin().is_terminal();
    let guard = if terminal {
        if format == Format::Text {
            eprintln!("closer: {what}: ^] leaves");
        }
        Some(make_raw(format).map_err(|e| broken(&e))?)
    } else {
        None
    };
    let typist = leave.clone();
    thread::spawn(move || forward_input(writer, &typist, terminal));
    if let Some(limit) = limit {
        let leave = leave.clone();
        thread::spawn(move || {
            thread::sleep(limit);
            leave.now();
        });
    }

    let mut out = io::stdout().lock();
    let result = loop {
        match block_on(reader.read()) {
            Ok(Some(bytes)) => {
                if let Err(e) = out.write_all(bytes).and_then(|()| out.flush()) {
                    // Whoever read it has gone, as with `| head`: not an error of ours.
                    break match output::failed(&e) {
                        Failure::OutputClosed => Ok(()),
                        other => Err(other),
                    };
                }
            }
            Ok(None) => break Ok(()),
            Err(_) if leave.wanted.load(Ordering::SeqCst) => break Ok(()),
            Err(e) => {
                break Err(Failure::new(
                    &what,
                    format_args!("connection to {address} lost: {e}"),
                ));
            }
        }
    };
    // Before anybody prints: the terminal as it was.
    drop(guard);
    if terminal && format == Format::Text {
        eprintln!();
    }
    result
}

/// Makes the terminal pass everything on, until the guard goes.
fn make_raw(format: Format) -> io::Result<Guard> {
    let stdin = rustix::stdio::stdin();
    let before = tcgetattr(stdin)?;
    let mut raw = before.clone();
    raw.make_raw();
    let guard = Guard::terminal(before, format)?;
    tcsetattr(stdin, OptionalActions::Flush, &raw)?;
    Ok(guard)
}

/// Sends standard input to the guest. Errors end it: the reader sees them too, and says so.
fn forward_input(mut writer: ConsoleWriter<Tcp>, leave: &Leave, terminal: bool) {
    let mut stdin = io::stdin().lock();
    let mut buf = [0; 4096];
    loop {
        let count = match stdin.read(&mut buf) {
            Ok(0) => {
                // A terminal that hung up; the end of a pipe or file ends nothing.
                if terminal {
                    leave.now();
                }
                return;
            }
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return leave.now(),
        };
        let typed = &buf[..count];
        let escape = typed.iter().position(|c| terminal && *c == ESCAPE);
        let typed = &typed[..escape.unwrap_or(count)];
        if !typed.is_empty() && block_on(writer.write(typed)).is_err() {
            return;
        }
        if escape.is_some() {
            return leave.now();
        }
    }
}
