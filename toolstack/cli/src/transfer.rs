//! Files on their way to the host, with a progress bar.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use toolstack_rpc::RpcError;
use toolstack_rpc::tcp::block_on;

use crate::failure::{Failure, io_reason};
use crate::session::Session;

/// Bytes read at once.
const BLOCK: usize = 64 * 1024;
/// Zeros said at once: the host writes them before it takes more.
const MAX_ZEROS: u64 = 256 << 20;
/// How long zeros wait for more of them: a source may be too slow to fill [`MAX_ZEROS`] in the
/// minute after which the host gives up an upload that brings nothing.
const MAX_SILENCE: Duration = Duration::from_secs(10);
/// Zeros are looked for in pieces of this size: a sector of most disks.
const PIECE: usize = 4096;

/// A bar for `len` bytes; hides itself where standard error is no terminal.
pub fn progress(what: String, len: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg}  {wide_bar}  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}",
    );
    let bar = ProgressBar::new(len).with_message(what);
    match style {
        Ok(style) => bar.with_style(style),
        // The template is a constant; a plain bar would do as well.
        Err(_) => bar,
    }
}

/// Shows that the host works, and for how long; hides itself likewise.
pub fn busy(what: String) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(what);
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    match ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Streams `len` bytes of `source` to a host that has said it is ready, and waits until
/// it has them. `name` is the source's.
pub fn upload(
    session: &mut Session,
    what: &str,
    source: &mut impl Read,
    name: &str,
    len: u64,
) -> Result<(), Failure> {
    let bar = progress(what.to_owned(), len);
    let mut outgoing = session.client.outgoing();
    let mut block = vec![0; BLOCK];
    let mut zeros = Zeros::default();
    let mut left = len;
    let stopped = 'sending: {
        while left > 0 {
            let count = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
            let block = &mut block[..count];
            if let Err(e) = source.read_exact(block) {
                let why = match e.kind() {
                    io::ErrorKind::UnexpectedEof => "it became shorter".into(),
                    _ => io_reason(&e),
                };
                let error = RpcError::Aborted { why: why.clone() };
                // The host learns why; our line names the file anyway.
                return match block_on(outgoing.abort(&error)) {
                    Ok(()) => Err(Failure::new(format_args!("{what}: {name}"), why)),
                    Err(e) => Err(session.failed(what, e)),
                };
            }
            for (data, piece) in runs(block) {
                let sent = if data {
                    let flushed = block_on(outgoing.send_zeros(zeros.take()));
                    flushed.and_then(|()| block_on(outgoing.send(piece)))
                } else {
                    block_on(outgoing.send_zeros(zeros.add(piece.len() as u64, Instant::now())))
                };
                if let Err(e) = sent {
                    break 'sending Some(e);
                }
            }
            left -= count as u64;
            bar.inc(count as u64);
        }
        block_on(outgoing.send_zeros(zeros.take()))
            .and_then(|()| block_on(outgoing.finish()))
            .err()
    };
    bar.finish_and_clear();
    match stopped {
        None => Ok(()),
        Some(e) => Err(session.failed(what, e)),
    }
}

/// Zeros that the host has not been told of.
#[derive(Default)]
struct Zeros {
    count: u64,
    /// When the first of them were read.
    since: Option<Instant>,
}

impl Zeros {
    /// Adds zeros that were read `now`; how many are to be said.
    fn add(&mut self, count: u64, now: Instant) -> u64 {
        self.count += count;
        let since = *self.since.get_or_insert(now);
        if self.count >= MAX_ZEROS || now.duration_since(since) >= MAX_SILENCE {
            self.take()
        } else {
            0
        }
    }

    /// All of them.
    fn take(&mut self) -> u64 {
        std::mem::take(self).count
    }
}

/// Cuts a block into runs of data (`true`) and of zeros.
fn runs(block: &[u8]) -> Vec<(bool, &[u8])> {
    let mut runs: Vec<(bool, usize)> = Vec::new();
    for piece in block.chunks(PIECE) {
        let data = piece.iter().any(|byte| *byte != 0);
        match runs.last_mut() {
            Some((kind, len)) if *kind == data => *len += piece.len(),
            _ => runs.push((data, piece.len())),
        }
    }
    let mut rest = block;
    runs.into_iter()
        .map(|(data, len)| {
            let (run, tail) = rest.split_at(len);
            rest = tail;
            (data, run)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_the_block() {
        let mut block = vec![0; 5 * PIECE + 7];
        block[PIECE] = 1;
        block[2 * PIECE + 5] = 1;
        block[5 * PIECE + 6] = 1;
        let found: Vec<_> = runs(&block).iter().map(|(d, r)| (*d, r.len())).collect();
        assert_eq!(
            found,
            [
                (false, PIECE),
                (true, 2 * PIECE),
                (false, 2 * PIECE),
                (true, 7)
            ]
        );
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn zeros_of_a_slow_source_are_said_before_the_host_takes_it_for_dead() {
        let start = Instant::now();
        let mut zeros = Zeros::default();
        let mut said = 0;
        let mut last = 0;
        // 4 MiB in a second: a minute brings less than is said at once.
        for second in 1..=120 {
            let now = start + Duration::from_secs(second);
            let count = zeros.add(4 << 20, now);
            if count > 0 {
                (said, last) = (said + count, second);
            }
            assert!(second - last < 15, "silent since second {last}");
        }
        assert_eq!(said + zeros.take(), 120 * (4 << 20));
    }

    #[test]
    fn zeros_of_a_fast_source_are_said_together() {
        let now = Instant::now();
        let mut zeros = Zeros::default();
        let blocks = MAX_ZEROS / BLOCK as u64;
        let mut add = || zeros.add(BLOCK as u64, now);
        assert!((1..blocks).all(|_| add() == 0));
        assert_eq!((add(), add()), (MAX_ZEROS, 0));
        assert_eq!((zeros.take(), zeros.take()), (BLOCK as u64, 0));
    }
}
