//! Why a command failed: one line for a person, and an exit code, as xl has them.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// A command's failure.
#[derive(Debug)]
pub enum Failure {
    /// Something that a line on standard error explains; exit code 1.
    Line(String),
    /// The command was used wrongly; exit code 2.
    Usage(String),
    /// Whoever read our output has gone: nobody is left to be told.
    OutputClosed,
}

impl Failure {
    /// `what: why`.
    pub fn new(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Failure::Line(format!("{what}: {why}"))
    }

    /// For an error of the system, without its number.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        Failure::new(what, io_reason(error))
    }

    /// Prints the line.
    pub fn report(self) -> ExitCode {
        match self {
            Failure::Line(line) => {
                eprintln!("closer: {}", one_line(&line));
                ExitCode::FAILURE
            }
            Failure::Usage(line) => {
                eprintln!("closer: {}", one_line(&line));
                ExitCode::from(2)
            }
            Failure::OutputClosed => ExitCode::FAILURE,
        }
    }
}

/// Says something that does not stop anything.
pub fn warn(what: impl fmt::Display) {
    eprintln!("closer: warning: {}", one_line(&what.to_string()));
}

/// An error of the system in words: no "(os error 2)".
pub fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        // What a socket's timeout says is "Resource temporarily unavailable".
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timed out".into(),
        _ => without_number(&error.to_string()),
    }
}

/// Takes the "(os error 2)" off the end of a line that ends in an error of the system.
pub fn without_number(line: &str) -> String {
    let words = line
        .split_once(" (os error")
        .map_or(line, |(words, _)| words);
    words.to_owned()
}

/// Text of a host or a file must not move the cursor, nor make a second line.
pub fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
