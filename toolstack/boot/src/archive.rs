//! The files of the boot archive: found, read, and written.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::cpio::{self, CpioError, Entry};
use crate::diagnostic::Log;
use crate::keys::{self, HostKey, KeyError, PublicKey};
use crate::{
    Administrator, Decision, HostConfig, MAX_ADMINISTRATORS, MAX_GUESTS, MAX_NAME, Problem, Source,
    is_guest_name, settings,
};

/// Settings of the host.
pub const CONF: &str = "closer.conf";
/// The host's private key.
pub const HOST_KEY: &str = "host.key";
/// The administrators' public keys.
pub const ADMINS: &str = "admins";
/// Guests to start.
pub const GUESTS: &str = "guests";

const NAMES: [&str; 4] = [CONF, HOST_KEY, ADMINS, GUESTS];

/// What a boot archive holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveContents {
    /// Text of `closer.conf`.
    pub conf: String,
    /// `host.key`
    pub host_key: Option<HostKey>,
    /// `admins`
    pub administrators: Vec<Administrator>,
    /// `guests`
    pub guests: Vec<String>,
}

impl From<&HostConfig> for ArchiveContents {
    /// What [`crate::parse`] reads back as the same configuration, if it is a valid one.
    fn from(config: &HostConfig) -> Self {
        ArchiveContents {
            conf: settings::to_text(config),
            host_key: config.host_key.clone(),
            administrators: config.administrators.clone(),
            guests: config.guests.clone(),
        }
    }
}

/// Makes a boot archive: what `cpio -o -H newc` makes of the four files. Equal contents
/// give equal bytes.
#[must_use]
pub fn write(contents: &ArchiveContents) -> Vec<u8> {
    let mut archive = Vec::new();
    cpio::push(&mut archive, 1, CONF, 0o644, contents.conf.as_bytes());
    if let Some(key) = &contents.host_key {
        let text = format!("{}\n", keys::to_base64(&key.0));
        cpio::push(&mut archive, 2, HOST_KEY, 0o600, text.as_bytes());
    }
    let lines: String = contents
        .administrators
        .iter()
        .map(|admin| format!("{} {}\n", admin.key, admin.name))
        .collect();
    cpio::push(&mut archive, 3, ADMINS, 0o644, lines.as_bytes());
    let lines: String = contents.guests.iter().map(|g| format!("{g}\n")).collect();
    cpio::push(&mut archive, 4, GUESTS, 0o644, lines.as_bytes());
    cpio::finish(&mut archive);
    archive
}

/// The known files of an archive; each at most once.
pub(crate) struct Files<'a> {
    entries: Vec<Entry<'a>>,
    /// The archive could not be read, which has been said: no word about its files.
    unreadable: bool,
}

impl<'a> Files<'a> {
    pub(crate) fn read(archive: Option<&'a [u8]>, log: &mut Log) -> Self {
        let unreadable = |log: &mut Log, problem| {
            log.push(Source::Archive, "", "", problem, Decision::Halt);
            Files {
                entries: Vec::new(),
                unreadable: true,
            }
        };
        let Some(archive) = archive else {
            return unreadable(log, Problem::NoArchive);
        };
        let found = match cpio::read(archive) {
            Ok(found) => found,
            Err(CpioError::Compressed(with)) => return unreadable(log, Problem::Compressed(with)),
            Err(CpioError::Malformed(why)) => return unreadable(log, Problem::NotCpio(why)),
            Err(CpioError::TooMuch(what)) => return unreadable(log, Problem::TooMuch(what)),
        };
        let mut entries: Vec<Entry<'a>> = Vec::new();
        for entry in found {
            let name = core::str::from_utf8(entry.name).unwrap_or("(a name that is not text)");
            let problem = if !NAMES.contains(&name) {
                Problem::UnknownFile
            } else if entries.iter().any(|e| e.name == entry.name) {
                Problem::DuplicateFile
            } else {
                entries.push(entry);
                continue;
            };
            let decision = match problem {
                Problem::DuplicateFile => Decision::EarlierUsed,
                _ => Decision::Ignored,
            };
            log.push(Source::Archive, name, "", problem, decision);
        }
        Files {
            entries,
            unreadable: false,
        }
    }

    fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        self.entries
            .iter()
            .find(|e| e.name == name.as_bytes())
            .map(|e| e.data)
    }

    /// Whether the archive is readable and has no such file.
    pub(crate) fn lacks(&self, name: &str) -> bool {
        !self.unreadable && self.bytes(name).is_none()
    }

    /// A file's text; a file that is not text counts as not there.
    pub(crate) fn text(&self, name: &'static str, log: &mut Log) -> Option<&'a str> {
        let text = core::str::from_utf8(self.bytes(name)?);
        if text.is_err() {
            let decision = Decision::Ignored;
            log.push(Source::File(name), "", "", Problem::NotText, decision);
        }
        text.ok()
    }

    pub(crate) fn host_key(&self, log: &mut Log) -> Option<HostKey> {
        if self.unreadable {
            return None;
        }
        let result = match self.bytes(HOST_KEY) {
            None => Err(Problem::MissingFile),
            Some(bytes) => {
                let text = core::str::from_utf8(bytes).unwrap_or("");
                // The value is never shown: it may be the key with a typing error.
                let mut words = lines(text).map(|(_, line)| line);
                match (words.next().map(keys::parse), words.next()) {
                    (Some(Ok(key)), None) => Ok(HostKey(key)),
                    (Some(Err(KeyError::Zero)), None) => {
                        Err(Problem::Expected("a key that is not zero"))
                    }
                    _ => Err(Problem::Expected("one key, 64 hex digits or base64")),
                }
            }
        };
        result
            .map_err(|problem| log.push(Source::File(HOST_KEY), "", "", problem, Decision::Halt))
            .ok()
    }

    pub(crate) fn administrators(&self, log: &mut Log) -> Vec<Administrator> {
        let mut administrators: Vec<Administrator> = Vec::new();
        if self.unreadable {
            return administrators;
        }
        let text = self.text(ADMINS, log);
        for (number, line) in lines(text.unwrap_or("")) {
            let source = Source::Line(ADMINS, number);
            if administrators.len() == MAX_ADMINISTRATORS {
                let problem = Problem::TooMuch("64 administrators");
                log.push(source, "", "", problem, Decision::Ignored);
                break;
            }
            let (key, name) = line
                .split_once(char::is_whitespace)
                .map_or((line, ""), |(key, name)| (key, name.trim()));
            let problem = match keys::parse(key) {
                Err(KeyError::Form) => Problem::Expected("KEY name, KEY 64 hex digits or base64"),
                Err(KeyError::Zero) => Problem::Expected("a key that is not zero"),
                Ok(_) if !is_administrator_name(name) => {
                    Problem::Expected("a name of printable ASCII, at most 63 long, after the key")
                }
                Ok(key) if administrators.iter().any(|a| a.key.0 == key) => Problem::Repeated,
                Ok(key) => {
                    administrators.push(Administrator {
                        name: String::from(name),
                        key: PublicKey(key),
                    });
                    continue;
                }
            };
            log.push(source, name, "", problem, Decision::Ignored);
        }
        if administrators.is_empty() {
            let problem = match text {
                None => Problem::MissingFile,
                Some(_) => Problem::NothingUsable,
            };
            log.push(Source::File(ADMINS), "", "", problem, Decision::Halt);
        }
        administrators
    }
}

fn is_administrator_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && !name.contains('#')
        && name.bytes().all(|b| (b' '..=b'~').contains(&b))
}

/// The lines that say something, with their numbers from 1; `#` starts a comment.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line.split('#').next().unwrap_or("").trim()))
        .filter(|(_, line)| !line.is_empty())
}

/// The guests to start.
pub(crate) fn guests(text: &str, log: &mut Log) -> Vec<String> {
    guest_list(
        lines(text).map(|(n, name)| (Source::Line(GUESTS, n), name)),
        log,
    )
}

/// Names of guests, checked, without repetitions.
pub(crate) fn guest_list<'n>(
    names: impl Iterator<Item = (Source, &'n str)>,
    log: &mut Log,
) -> Vec<String> {
    let mut guests: Vec<String> = Vec::new();
    for (source, name) in names {
        let problem = if guests.len() == MAX_GUESTS {
            Problem::TooMuch("256 guests")
        } else if !is_guest_name(name) {
            Problem::Expected(
                "a guest's name (1 to 64 letters, digits and +-._, not digits alone, not Domain-0)",
            )
        } else if guests.iter().any(|g| g == name) {
            Problem::Repeated
        } else {
            guests.push(String::from(name));
            continue;
        };
        log.push(source, name, "", problem, Decision::Ignored);
        if guests.len() == MAX_GUESTS {
            break;
        }
    }
    guests
}
