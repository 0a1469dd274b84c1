//! A guest's console as the host keeps it: the last bytes it printed, any number
//! of watchers, and what administrators typed.
//!
//! Nothing here waits: the guest's output always goes in at once, whether anybody
//! reads or not. A watcher holds a [`Cursor`] into the stream; one that falls behind
//! by more than is kept loses the oldest bytes, and is told how many.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::collections::VecDeque;

/// Bytes of output kept for a guest.
pub const KEPT: usize = 64 * 1024;
/// Bytes typed and not yet taken by the guest.
const MAX_INPUT: usize = 4096;

/// A watcher's place in the stream: bytes printed before it since the guest began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(u64);

/// One guest's console.
#[derive(Debug)]
pub struct Console {
    kept: VecDeque<u8>,
    /// Bytes ever printed.
    printed: u64,
    input: VecDeque<u8>,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// An empty console. Memory grows with what is printed, up to [`KEPT`].
    pub fn new() -> Self {
        Self {
            kept: VecDeque::new(),
            printed: 0,
            input: VecDeque::new(),
        }
    }

    /// Takes what the guest printed.
    pub fn print(&mut self, bytes: &[u8]) {
        self.printed += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        let excess = (self.kept.len() + bytes.len()).saturating_sub(KEPT);
        self.kept.drain(..excess);
        self.kept.extend(bytes);
    }

    /// The oldest byte still kept: where `console --log` starts.
    pub fn start(&self) -> Cursor {
        Cursor(self.printed - self.kept.len() as u64)
    }

    /// The next byte to be printed: where a watcher that wants no history starts.
    pub fn end(&self) -> Cursor {
        Cursor(self.printed)
    }

    /// Copies what follows `cursor` into `to` and moves it on. Returns (bytes copied,
    /// bytes that were lost because the watcher was too slow).
    pub fn read(&self, cursor: &mut Cursor, to: &mut [u8]) -> (usize, u64) {
        let start = self.start();
        let lost = start.0.saturating_sub(cursor.0);
        // A cursor is never ahead: it only moves here, over bytes that were printed.
        let from = usize::try_from(cursor.0.max(start.0) - start.0).unwrap_or(self.kept.len());
        let mut count = 0;
        for (slot, byte) in to
            .iter_mut()
            .zip(self.kept.range(from.min(self.kept.len())..))
        {
            *slot = *byte;
            count += 1;
        }
        cursor.0 = cursor.0.max(start.0) + count as u64;
        (count, lost)
    }

    /// How much may be typed now.
    pub fn room(&self) -> usize {
        MAX_INPUT - self.input.len()
    }

    /// Takes what somebody typed; returns how much found room. The rest must wait until the
    /// guest has read.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        let count = self.room().min(bytes.len());
        self.input.extend(&bytes[..count]);
        count
    }

    /// What waits for the guest, as one slice; [`Self::typed_taken`] says what it took.
    pub fn typed(&mut self) -> &[u8] {
        self.input.make_contiguous()
    }

    /// Forgets `count` typed bytes that reached the guest.
    pub fn typed_taken(&mut self, count: usize) {
        self.input.drain(..count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn read_all(console: &Console, cursor: &mut Cursor) -> (Vec<u8>, u64) {
        let mut out = Vec::new();
        let mut lost = 0;
        let mut buf = [0; 1000];
        loop {
            let (n, l) = console.read(cursor, &mut buf);
            lost += l;
            if n == 0 {
                return (out, lost);
            }
            out.extend_from_slice(&buf[..n]);
        }
    }

    #[test]
    fn each_watcher_reads_the_whole_stream_at_its_own_pace() {
        let mut console = Console::new();
        let (mut a, mut b) = (console.start(), console.start());
        console.print(b"one ");
        assert_eq!(read_all(&console, &mut a).0, b"one ");
        console.print(b"two");
        assert_eq!(read_all(&console, &mut a).0, b"two");
        assert_eq!(read_all(&console, &mut b), (b"one two".to_vec(), 0));
        assert_eq!(read_all(&console, &mut b), (Vec::new(), 0));
    }

    #[test]
    fn the_last_64_kib_are_kept_and_a_slow_watcher_learns_what_it_lost() {
        let mut console = Console::new();
        let mut slow = console.start();
        for i in 0..3000u32 {
            console.print(&[u8::try_from(i % 251).unwrap(); 50]);
        }
        let (bytes, lost) = read_all(&console, &mut slow);
        assert_eq!(bytes.len(), KEPT);
        assert_eq!(lost, 3000 * 50 - KEPT as u64);
        assert_eq!(*bytes.last().unwrap(), u8::try_from(2999 % 251).unwrap());
        assert_eq!(slow, console.end());
    }

    #[test]
    fn one_print_larger_than_the_buffer_keeps_its_end() {
        let mut console = Console::new();
        let mut big = alloc::vec![b'a'; KEPT + 10];
        big[KEPT + 9] = b'z';
        console.print(&big);
        let mut from = console.start();
        let (bytes, lost) = read_all(&console, &mut from);
        assert_eq!((bytes.len(), bytes[KEPT - 1], lost), (KEPT, b'z', 0));
    }

    #[test]
    fn typing_is_bounded_and_taken_in_order() {
        let mut console = Console::new();
        assert_eq!(console.type_in(&[b'x'; 5000]), MAX_INPUT);
        assert_eq!(console.type_in(b"y"), 0);
        console.typed_taken(MAX_INPUT - 1);
        assert_eq!(console.type_in(b"yz"), 2);
        assert_eq!(console.typed(), b"xyz");
    }
}
