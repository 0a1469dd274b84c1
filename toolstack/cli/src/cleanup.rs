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

/// What is to be put right now.
#[derive(Debug)]
enum Duty {
    /// The terminal was like this.
    Terminal(Termios),
    /// This file is only a part.
    PartialFile(PathBuf),
}

static DUTIES: Mutex<Vec<Duty>> = Mutex::new(Vec::new());

fn duties() -> MutexGuard<'static, Vec<Duty>> {
    DUTIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what is to be done, at its end or at a signal, whichever comes first.
#[derive(Debug)]
pub struct Guard(());

impl Guard {
    /// Standard input gets these settings back.
    pub fn terminal(settings: Termios) -> io::Result<Guard> {
        Self::new(Duty::Terminal(settings))
    }

    /// The file is removed.
    pub fn partial_file(path: PathBuf) -> io::Result<Guard> {
        Self::new(Duty::PartialFile(path))
    }

    fn new(duty: Duty) -> io::Result<Guard> {
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
        list.push(duty);
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
fn fulfil(list: &mut Vec<Duty>) {
    for duty in list.drain(..).rev() {
        let done = match duty {
            Duty::Terminal(settings) => {
                tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &settings)
                    .map_err(io::Error::from)
            }
            Duty::PartialFile(path) => fs::remove_file(path),
        };
        if let Err(e) = done {
            eprintln!("closer: warning: not put right: {e}");
        }
    }
}
