//! What was wrong, where, and what was done about it: one line each.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::MAX_DIAGNOSTICS;

/// Where a value stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The boot archive as a whole.
    Archive,
    /// The command line.
    CommandLine,
    /// A file of the archive.
    File(&'static str),
    /// A line of a file of the archive; the first is 1.
    Line(&'static str, usize),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Archive => f.write_str("boot archive"),
            Source::CommandLine => f.write_str("command line"),
            Source::File(name) => f.write_str(name),
            Source::Line(name, line) => write!(f, "{name}:{line}"),
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Xen handed over no boot module.
    NoArchive,
    /// The archive is compressed; the compression's name.
    Compressed(&'static str),
    /// The bytes are no `newc` cpio; what is wrong with them.
    NotCpio(&'static str),
    /// More than the stated bound of something.
    TooMuch(&'static str),
    /// A file of the archive that has no meaning here.
    UnknownFile,
    /// A file that is there twice.
    DuplicateFile,
    /// A file that should be there.
    MissingFile,
    /// A file with nothing in it that counts.
    NothingUsable,
    /// Bytes that are not UTF-8 text.
    NotText,
    /// A line without `=`.
    NoValue,
    /// A key that has no meaning here.
    UnknownKey,
    /// A key that is given twice in the same place.
    DuplicateKey,
    /// A key that should be there.
    MissingKey,
    /// A secret where others can read it.
    SecretInTheOpen,
    /// A value of the wrong form; the right one.
    Expected(&'static str),
    /// A value that only means something together with another; which.
    Needs(&'static str),
    /// More main-container vCPUs than the host can spare.
    TooManyCores {
        /// The most.
        most: u32,
        /// vCPUs there are.
        vcpus: u32,
    },
    /// The same thing twice in a list.
    Repeated,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NoArchive => f.write_str("Xen passed none (add the module to the boot entry)"),
            Problem::Compressed(with) => {
                write!(f, "compressed with {with}, must be a plain cpio -H newc")
            }
            Problem::NotCpio(why) => write!(f, "not a newc cpio: {why}"),
            Problem::TooMuch(what) => write!(f, "more than {what}"),
            Problem::UnknownFile => f.write_str("unknown file"),
            Problem::DuplicateFile => f.write_str("there twice"),
            Problem::MissingFile => f.write_str("missing"),
            Problem::NothingUsable => f.write_str("nothing usable in it"),
            Problem::NotText => f.write_str("not UTF-8 text"),
            Problem::NoValue => f.write_str("not of the form key=value"),
            Problem::UnknownKey => f.write_str("unknown key"),
            Problem::DuplicateKey => f.write_str("given twice"),
            Problem::MissingKey => f.write_str("not set"),
            Problem::SecretInTheOpen => f.write_str("a secret does not belong here"),
            Problem::Expected(what) => write!(f, "expected {what}"),
            Problem::Needs(what) => write!(f, "needs {what}"),
            Problem::TooManyCores { most, vcpus } => {
                write!(f, "at most {most} of {vcpus}, so that guests have a core")
            }
            Problem::Repeated => f.write_str("repeated"),
        }
    }
}

/// What was done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It counts as not being there.
    Ignored,
    /// This default is used instead.
    Default(&'static str),
    /// Each key has its default.
    DefaultsUsed,
    /// The later one counts.
    LaterUsed,
    /// The earlier one counts.
    EarlierUsed,
    /// The host must not start.
    Halt,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::Ignored => f.write_str("ignored"),
            Decision::Default(value) => write!(f, "using {value}"),
            Decision::DefaultsUsed => f.write_str("using defaults"),
            Decision::LaterUsed => f.write_str("using the later one"),
            Decision::EarlierUsed => f.write_str("using the earlier one"),
            Decision::Halt => f.write_str("halting"),
        }
    }
}

/// One thing that is wrong. `Display` gives one line of printable ASCII.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where.
    pub source: Source,
    /// Key, option or file name, cut and escaped; may be empty.
    pub key: String,
    /// The value, cut and escaped; empty if there is none or it is a secret.
    pub value: String,
    /// What.
    pub problem: Problem,
    /// And then.
    pub decision: Decision,
}

impl Diagnostic {
    /// Whether the host must not start.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        self.decision == Decision::Halt
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        if !self.key.is_empty() {
            f.write_str(&self.key)?;
            if !self.value.is_empty() {
                write!(f, "={}", self.value)?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}; {}", self.problem, self.decision)
    }
}

/// Most characters of a foreign text in a diagnostic.
const SHOWN: usize = 48;

/// A foreign text, safe to print: cut, and everything but printable ASCII escaped.
fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_default)
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push_str("...");
    }
    out
}

/// Diagnostics being collected, at most [`MAX_DIAGNOSTICS`] that are not fatal.
#[derive(Default)]
pub(crate) struct Log {
    diagnostics: Vec<Diagnostic>,
}

impl Log {
    pub(crate) fn push(
        &mut self,
        source: Source,
        key: &str,
        value: &str,
        problem: Problem,
        decision: Decision,
    ) {
        if self.diagnostics.len() >= MAX_DIAGNOSTICS && decision != Decision::Halt {
            return;
        }
        self.diagnostics.push(Diagnostic {
            source,
            key: shown(key),
            value: shown(value),
            problem,
            decision,
        });
    }

    pub(crate) fn into_diagnostics(self) -> Vec<Diagnostic> {
        self.diagnostics
    }
}
