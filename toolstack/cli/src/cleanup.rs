//! What must be put right when somebody ends the program by a signal.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::termios::{OptionalActions, Termios, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::{io_reason, warn};
use crate::output::Format;

/// What is to be put right now.
#[derive(Debug)]
enum Duty {
    /// The terminal was like this.
    Terminal(Termios),
    /// This file is only a part.
    PartialFile(PathBuf),
}

static DUTIES: Mutex<Vec<(Duty, Format)>> = Mutex::new(Vec::new());

fn duties() -> MutexGuard<'static, Vec<(Duty, Format)>> {
    DUTIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what is to be done, at its end or at a signal, whichever comes first.
#[derive(Debug)]
pub struct Guard(());

impl Guard {
    /// Standard input gets these settings back.
    pub fn terminal(settings: Termios, format: Format) -> io::Result<Guard> {
        Self::new(Duty::Terminal(settings), format)
    }

    /// The file is removed.
    pub fn partial_file(path: PathBuf, format: Format) -> io::Result<Guard> {
        Self::new(Duty::PartialFile(path), format)
    }

    fn new(duty: Duty, format: Format) -> io::Result<Guard> {
        let mut list = duties();
        if list.is_empty() {
            let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
            thread::spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    // Held to the end: nobody may begin something now.
                    let mut list = duties();
                    fulfil(&mut list);
                    process::exit(128 + signal);
                }
            });
        }
        list.push((duty, format));
        Ok(Guard(()))
    }

    /// It has turned out well: nothing to be done any more.
    pub fn disarm(self) {
        duties().pop();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        fulfil(&mut duties());
    }
}

/// There is no use for errors: the program ends.
fn fulfil(list: &mut Vec<(Duty, Format)>) {
    for (duty, format) in list.drain(..).rev() {
        let done = match duty {
            Duty::Terminal(settings) => {
                tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &settings)
                    .map_err(io::Error::from)
            }
            Duty::PartialFile(path) => fs::remove_file(path),
        };
        if let Err(e) = done {
            warn(format_args!("not put right: {}", io_reason(&e)), format);
        }
    }
}
