//! Why a command failed: one line for a person, and an exit code, as xl has them.

use std::fmt;
use std::io;
use std::process::ExitCode;

use serde_json::json;

use crate::output::Format;

/// A command's failure.
#[derive(Clone, Debug)]
pub enum Failure {
    /// Something that a line on standard error explains; exit code 1.
    Line(String),
    /// The command was used wrongly; exit code 2.
    Usage(String),
    /// Several things that failed, each with its line; exit code 1.
    Several(Vec<Failure>),
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

    /// Prints the line, or all of them; in JSON one object, whatever failed.
    pub fn report(&self, format: Format) -> ExitCode {
        let (lines, exit) = (self.lines(), self.exit());
        match format {
            _ if lines.is_empty() => {}
            Format::Text => lines.iter().for_each(|line| eprintln!("closer: {line}")),
            Format::Json => eprintln!("{}", json!({"error": lines.join("; "), "exit": exit})),
        }
        ExitCode::from(exit)
    }

    /// What a person is told.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Failure::Line(line) | Failure::Usage(line) => vec![one_line(line)],
            Failure::Several(all) => {
                let mut lines: Vec<_> = all.iter().flat_map(Failure::lines).collect();
                // What is wrong with all of them is said once: a connection that is lost.
                lines.dedup();
                lines
            }
            Failure::OutputClosed => Vec::new(),
        }
    }

    fn exit(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Line(_) | Failure::Several(_) | Failure::OutputClosed => 1,
        }
    }
}

/// Says something that does not stop anything.
pub fn warn(what: impl fmt::Display, format: Format) {
    let what = one_line(&what.to_string());
    match format {
        Format::Text => eprintln!("closer: warning: {what}"),
        Format::Json => eprintln!("{}", json!({"warning": what})),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_have_in_common_is_said_once() {
        let lost = Failure::new("shutdown", "connection lost");
        let other = Failure::new("shutdown b", "no such guest");
        let all = Failure::Several(vec![lost.clone(), lost, other]);
        let lines = ["shutdown: connection lost", "shutdown b: no such guest"];
        assert_eq!(all.lines(), lines);
    }
}
