//! A shell in a guest, driven through `closer console`.
//!
//! Each command goes over as one base64 word and its output comes back as another, so
//! that the guest's line discipline, prompts and kernel messages cannot be taken for
//! output. An answer that a kernel message cut in two is asked for again.

use crate::process::{self, POLL};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The longest line that a terminal takes is 4096 bytes; the rest is what surrounds it.
const MAX_COMMAND: usize = 2600;
/// How soon a silent shell is asked again for its first answer; then twice as long.
const KNOCK: Duration = Duration::from_secs(4);
/// Longest time between two such questions, and until the first one if nothing on the
/// console looks like a shell.
const BLIND: Duration = Duration::from_secs(60);
/// What the test ramdisk and the Debian root say when their shell starts.
const SHELL_SIGNS: &[&str] = &["guest: up after", "root@debian", "(automatic login)"];
/// Turns whatever shell listens into one without prompt, echo and line editing. May be
/// sent again: it then replaces itself.
const READER: &str = "\nexec sh -c 'stty -echo; while read -r line; do eval \"$line\"; done'\n";
/// How often a spoilt answer is asked for again.
const MAX_REPEATS: u32 = 5;

/// Number of the next answer. Of the whole process: what a console keeps of the past is
/// shown again to whoever attaches, old answers included.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// What a command in the guest gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its exit status.
    pub status: i32,
    /// What it printed on both streams.
    pub output: String,
}

/// A shell on a guest's console.
#[derive(Debug)]
pub struct Console {
    child: Child,
    input: ChildStdin,
    seen: Arc<Mutex<Vec<u8>>>,
    number: u32,
}

impl Console {
    /// Attaches with `command` (`closer console NAME`); all that the guest says goes to
    /// `log` too.
    pub fn attach(mut command: Command, log: &Path) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", process::show(&command)))?;
        process::end_on_interrupt(child.id());
        let input = child.stdin.take().context("the console has no input")?;
        let output = child.stdout.take().context("the console has no output")?;
        let errors = child.stderr.take().context("the console has no errors")?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        let copy = file.try_clone().context("cannot share the guest's log")?;
        let kept = Arc::clone(&seen);
        thread::spawn(move || keep(output, file, Some(&kept)));
        thread::spawn(move || keep(errors, copy, None));
        Ok(Self {
            child,
            input,
            seen,
            number: 0,
        })
    }

    /// Everything that was seen since the console was attached.
    pub fn text(&self) -> String {
        self.seen
            .lock()
            .map(|seen| String::from_utf8_lossy(&seen).into_owned())
            .unwrap_or_default()
    }

    /// Whether we are still attached.
    pub fn is_attached(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for a text on the console.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.text().contains(text) {
            ensure!(
                self.is_attached(),
                "the console ended before {text:?}; last: {}",
                self.last()
            );
            ensure!(
                Instant::now() < deadline,
                "no {text:?} on the console within {} s; last: {}",
                limit.as_secs(),
                self.last()
            );
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Waits until a shell answers. What is typed before it is there is kept by the guest's
    /// terminal, so we begin when the console looks like it, and knock ever more rarely.
    pub fn wait_for_shell(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let begin = Instant::now() + BLIND.min(limit / 2);
        while !SHELL_SIGNS.iter().any(|sign| self.text().contains(sign)) && Instant::now() < begin {
            ensure!(
                self.is_attached(),
                "the console ended; last: {}",
                self.last()
            );
            thread::sleep(POLL);
        }
        let mark = format!("knock-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut pause = KNOCK;
        loop {
            self.send(&format!("{READER}echo '<<'{mark}\n"))?;
            let next = (Instant::now() + pause).min(deadline);
            while Instant::now() < next {
                if self.text().contains(&format!("\n<<{mark}")) {
                    // Behind what was typed in vain.
                    self.run("true", deadline.saturating_duration_since(Instant::now()))?;
                    return Ok(());
                }
                ensure!(
                    self.is_attached(),
                    "the console ended; last: {}",
                    self.last()
                );
                thread::sleep(POLL);
            }
            ensure!(
                next < deadline,
                "no shell on the console; last: {}",
                self.last()
            );
            pause = (pause * 2).min(BLIND);
        }
    }

    /// Runs a shell command in the guest.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Answer> {
        ensure!(
            command.len() <= MAX_COMMAND * 3 / 4,
            "the command is too long for a terminal"
        );
        let deadline = Instant::now() + limit;
        let word = encode(command.as_bytes());
        let start =
            format!("echo {word}|base64 -d>/tmp/.c;sh /tmp/.c>/tmp/.o 2>&1 </dev/null;r=$?;");
        let mut line = format!("{start}{}", self.print_answer());
        for _ in 0..MAX_REPEATS {
            self.send(&line)?;
            match self.wait_for_answer(deadline) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => line = self.print_answer(),
                Err(error) => return Err(error.context(format!("guest: {command}"))),
            }
        }
        bail!("the answer to {command} came back spoilt {MAX_REPEATS} times")
    }

    /// The shell words that print the last answer between marks. The marks are split, so
    /// that the echo of the line is not taken for them.
    fn print_answer(&mut self) -> String {
        self.number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!(
            "printf '\\n%s%s %s %s %s %s\\n' '<<' {} $r $(wc -c </tmp/.o) \
             \"$(base64 /tmp/.o|tr -d '\\n')\" '>'\">\"\n",
            self.number
        )
    }

    pub fn send(&mut self, text: &str) -> Result<()> {
        let sent = self
            .input
            .write_all(text.as_bytes())
            .and_then(|()| self.input.flush());
        sent.with_context(|| format!("the console ended; last: {}", self.last()))
    }

    /// The answer with the current number; `None`: it is there, but spoilt.
    fn wait_for_answer(&mut self, deadline: Instant) -> Result<Option<Answer>> {
        let start = format!("\n<<{} ", self.number);
        loop {
            let attached = self.is_attached();
            let text = self.text();
            if let Some((_, rest)) = text.rsplit_once(&start)
                && let Some((words, _)) = rest.split_once(" >>")
            {
                return Ok(decode_answer(words));
            }
            ensure!(attached, "the console ended; last: {}", self.last());
            ensure!(
                Instant::now() < deadline,
                "no answer in time; last: {}",
                self.last()
            );
            thread::sleep(POLL);
        }
    }

    /// The last lines, for messages.
    fn last(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().rev().take(6).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        process::outlives_interrupt(self.child.id());
        if self.child.kill().is_ok()
            && let Err(error) = self.child.wait()
        {
            eprintln!("closer console is left behind: {error}");
        }
    }
}

/// Copies a stream to a file and to memory until it ends.
fn keep(mut from: impl Read, mut file: File, seen: Option<&Mutex<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    while let Ok(count) = from.read(&mut buffer) {
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return;
        };
        if let Some(Ok(mut seen)) = seen.map(Mutex::lock) {
            seen.extend_from_slice(bytes);
        }
        if let Err(error) = file.write_all(bytes) {
            eprintln!("cannot keep a guest's log: {error}");
            return;
        }
    }
}

/// `STATUS LENGTH BASE64`; `None`: a kernel message is in between.
fn decode_answer(words: &str) -> Option<Answer> {
    let mut words = words.split(' ');
    let status = words.next()?.parse().ok()?;
    let length: usize = words.next()?.parse().ok()?;
    let output = decode(words.next()?)?;
    (output.len() == length && words.next().is_none()).then(|| Answer {
        status,
        output: String::from_utf8_lossy(&output).into_owned(),
    })
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 (RFC 4648, padded).
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4_usize {
            let index = (word >> (18 - 6 * place)) & 63;
            let letter = usize::try_from(index)
                .ok()
                .and_then(|index| ALPHABET.get(index));
            text.push(match letter {
                Some(letter) if place <= chunk.len() => char::from(*letter),
                _ => '=',
            });
        }
    }
    text
}

/// The bytes of a padded base64 word.
fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let text = text.trim_end_matches('=');
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0_u32, 0);
    for letter in text.bytes() {
        let value = ALPHABET.iter().position(|known| *known == letter)?;
        held = held << 6 | u32::try_from(value).ok()?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xff).ok()?);
        }
        held &= (1 << bits) - 1;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length_comes_back() {
        for length in 0..64_u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
        assert_eq!(encode(b"hello\n"), "aGVsbG8K");
        assert_eq!(decode("aGVs[  1.0]bG8K"), None);
    }

    #[test]
    fn a_kernel_message_inside_an_answer_spoils_it() {
        let good = decode_answer("0 6 aGVsbG8K").unwrap();
        assert_eq!(
            good,
            Answer {
                status: 0,
                output: "hello\n".to_owned()
            }
        );
        assert_eq!(decode_answer("0 6 aGVs[   12.3] eth0: up\nbG8K"), None);
        assert_eq!(decode_answer("0 5 aGVsbG8K"), None);
    }

    #[test]
    fn a_shell_behind_a_pipe_answers_with_status_and_output() {
        let log = std::env::temp_dir().join(format!("xtask-console-{}", std::process::id()));
        let mut console = Console::attach(Command::new("sh"), &log).unwrap();
        let limit = Duration::from_secs(20);
        let answer = console
            .run("echo out; echo err >&2; exit 3", limit)
            .unwrap();
        assert_eq!(
            answer,
            Answer {
                status: 3,
                output: "out\nerr\n".to_owned()
            }
        );
        let long = console.run("seq 1 30000 | tail -n 20000", limit).unwrap();
        assert_eq!(long.output.lines().count(), 20000);
        assert!(
            console
                .run("exec sleep 5", Duration::from_millis(300))
                .is_err()
        );
        drop(console);
        std::fs::remove_file(&log).unwrap();
    }
}
