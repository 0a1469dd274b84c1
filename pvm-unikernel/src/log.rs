//! The log: lines on Xen's console, and the last 64 KiB of them in memory.
//!
//! The option `loglevel` of the host (`toolstack/boot`) sets what is kept.
//! A line that would flood the serial console is kept in memory only; how many were held
//! back is said when the flood ends. Bytes that a terminal could obey are replaced.

use crate::arch::SpinLock;
use crate::arch::hypercall::system::console_write;
use crate::time;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use log::{LevelFilter, Log, Metadata, Record};
use toolstack_boot::LogLevel;

/// Bytes kept.
const RING: usize = 64 << 10;
/// Bytes of one line; longer ones are cut.
const LINE: usize = 512;
/// Console lines that may come at once, and how many more each second.
const BURST: u64 = 200;
const PER_SECOND: u64 = 100;

struct Ring {
    bytes: [u8; RING],
    /// Bytes ever written.
    written: u64,
}

impl Ring {
    fn push(&mut self, text: &[u8]) {
        for &byte in text {
            let at = usize::try_from(self.written % RING as u64).unwrap_or(0);
            self.bytes[at] = byte;
            self.written += 1;
        }
    }
}

/// A token bucket for console lines.
struct Rate {
    tokens: u64,
    last_ns: u64,
    held_back: u64,
}

impl Rate {
    /// Whether a line may go out, and how many were held back before it.
    fn admit(&mut self, now_ns: u64) -> Option<u64> {
        let earned = now_ns.saturating_sub(self.last_ns) * PER_SECOND / 1_000_000_000;
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(BURST);
            self.last_ns = now_ns;
        }
        if self.tokens == 0 {
            self.held_back += 1;
            return None;
        }
        self.tokens -= 1;
        Some(core::mem::take(&mut self.held_back))
    }
}

static RINGS: SpinLock<Ring> = SpinLock::new(Ring {
    bytes: [0; RING],
    written: 0,
});
static RATE: SpinLock<Rate> = SpinLock::new(Rate {
    tokens: BURST,
    last_ns: 0,
    held_back: 0,
});

/// One line under construction, cut at its end and made harmless.
struct Line {
    bytes: [u8; LINE],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len == LINE - 1 {
                break;
            }
            // A message of several lines stays several; everything else a terminal might
            // obey does not.
            let harmless = byte == b'\n' || (byte >= b' ' && byte != 0x7f);
            self.bytes[self.len] = if harmless { byte } else { b'?' };
            self.len += 1;
        }
        Ok(())
    }
}

impl Line {
    fn format(message: fmt::Arguments<'_>) -> Self {
        let mut line = Self {
            bytes: [0; LINE],
            len: 0,
        };
        // `write_str` cannot fail; a `Display` that does leaves what it wrote.
        line.write_fmt(message).ok();
        line.bytes[line.len] = b'\n';
        line.len += 1;
        line
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

struct Console;

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = time::now_ns();
        let line = Line::format(format_args!(
            "closer: [{:5}.{:06}] {:<5} {}",
            now / 1_000_000_000,
            now / 1000 % 1_000_000,
            record.level(),
            record.args()
        ));
        RINGS.lock().push(line.bytes());
        let admitted = RATE.lock().admit(now);
        if let Some(held_back) = admitted {
            if held_back > 0 {
                let note = Line::format(format_args!("closer: {held_back} log lines held back"));
                console_write(note.bytes());
            }
            console_write(line.bytes());
        }
    }

    fn flush(&self) {}
}

/// Starts the log. Needs the clock.
pub fn init() {
    log::set_max_level(LevelFilter::Info);
    if log::set_logger(&Console).is_err() {
        console_write(b"closer: the log was started twice\n");
    }
}

/// Takes over what the host's configuration says.
pub fn set_level(level: LogLevel) {
    log::set_max_level(match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
}

/// A line on the console and in the ring whatever the level: what scripts wait for.
pub fn announce(message: fmt::Arguments<'_>) {
    let line = Line::format(format_args!("closer: {message}"));
    RINGS.lock().push(line.bytes());
    console_write(line.bytes());
}

/// The last `limit` bytes of the log, oldest first; a line may be cut at the start.
pub fn tail(limit: usize) -> Vec<u8> {
    // Before the lock: a heap that must grow for it may log.
    let mut bytes = Vec::with_capacity(limit.min(RING));
    let ring = RINGS.lock();
    let kept = usize::try_from(ring.written)
        .unwrap_or(RING)
        .min(RING)
        .min(limit);
    for back in (1..=kept as u64).rev() {
        let at = usize::try_from((ring.written - back) % RING as u64).unwrap_or(0);
        bytes.push(ring.bytes[at]);
    }
    bytes
}

/// For the panic handler: into the ring if nobody holds it.
pub fn record_without_waiting(text: &[u8]) {
    if let Some(mut ring) = RINGS.try_lock() {
        ring.push(text);
    }
}
