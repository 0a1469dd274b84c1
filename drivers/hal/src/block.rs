//! Block devices: what a disk driver offers.
//!
//! A [`BlockDevice`] is the disk as a whole, callable from any vCPU. Each vCPU takes
//! a [`BlockQueue`] of it, which its tasks share; [`Transfer`] is the future of one
//! operation on a queue.
//!
//! **Who keeps the memory alive.** A scatter list names bus addresses, so nothing in
//! it stops its memory from being freed or unmapped while the device still writes
//! there. Therefore every command carries a [`Hold`]: the driver's command slot keeps
//! a clone of it until the device has completed the command (or has been reset, which
//! ends all its DMA). Dropping a [`Transfer`] only gives up the result; the slot, and
//! with it the hold, lives on until completion. The owner of the memory puts whatever
//! frees it (a [`DmaBuffer`](crate::DmaBuffer), the guard of a grant mapping) into the
//! `Rc`, and needs no other care.

use crate::{DmaSegment, Interrupt, Timer, VcpuId};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use core::any::Any;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

/// What must live until the device is done with a command.
pub type Hold = Rc<dyn Any>;

/// What a disk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Logical blocks.
    pub blocks: u64,
    /// Bytes in a logical block: 512 or 4096.
    pub block_size: u32,
    /// Longest transfer in one command, in bytes. [`Transfer`] splits longer ones.
    pub max_transfer: u32,
    /// Writes may sit in a cache that power loss empties: flush is needed.
    pub volatile_write_cache: bool,
    /// Blocks can be discarded.
    pub discard: bool,
    /// Maker's model name, printable ASCII.
    pub model: String,
    /// Serial number, printable ASCII.
    pub serial: String,
}

impl BlockInfo {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size.into())
    }
}

/// Why an operation on a disk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The blocks asked for are not all on the disk (or volume).
    OutOfRange,
    /// The list's lengths or addresses do not fit the disk's blocks; copying the data
    /// through pages of our own would.
    Unaligned,
    /// The disk cannot do this.
    Unsupported,
    /// The volume may not be written.
    ReadOnly,
    /// The medium: these blocks could not be read or written. The device's status.
    Media(u16),
    /// The device refused or failed the command. The device's status.
    Device(u16),
    /// No answer in time; the driver resets the device.
    Timeout,
    /// The device was reset (or has failed for good) before it answered: whether the
    /// command took effect is unknown.
    Reset,
    /// No memory for buffers.
    NoMemory,
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange => f.write_str("blocks beyond the end"),
            Self::Unaligned => f.write_str("not aligned to the disk's blocks"),
            Self::Unsupported => f.write_str("not supported by the disk"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::Media(status) => write!(f, "media error, status {status:#x}"),
            Self::Device(status) => write!(f, "device error, status {status:#x}"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Reset => f.write_str("device was reset"),
            Self::NoMemory => f.write_str("no memory"),
        }
    }
}

impl core::error::Error for BlockError {}

/// A stretch of a scatter list.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    list: &'a [DmaSegment],
    skip: u64,
    len: u64,
}

impl<'a> Segments<'a> {
    /// The whole list.
    pub fn new(list: &'a [DmaSegment]) -> Self {
        Self {
            list,
            skip: 0,
            len: list.iter().map(|s| u64::from(s.len)).sum(),
        }
    }

    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segments, the first and last cut to the stretch; none is empty.
    pub fn iter(&self) -> impl Iterator<Item = DmaSegment> + use<'a> {
        let (mut skip, mut left) = (self.skip, self.len);
        self.list.iter().filter_map(move |segment| {
            let cut = skip.min(segment.len.into());
            skip -= cut;
            let len = (u64::from(segment.len) - cut).min(left);
            left -= len;
            // `len` is at most the segment's own length.
            let len = u32::try_from(len).ok().filter(|len| *len > 0)?;
            Some(DmaSegment {
                bus_addr: segment.bus_addr + cut,
                len,
            })
        })
    }

    /// Cuts after `bytes` (at most [`Self::len`]).
    pub fn split_at(self, bytes: u64) -> (Self, Self) {
        let bytes = bytes.min(self.len);
        let first = Self { len: bytes, ..self };
        let rest = Self {
            skip: self.skip + bytes,
            len: self.len - bytes,
            ..self
        };
        (first, rest)
    }
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOp {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Everything completed before this is on the medium when it completes.
    Flush,
    /// These blocks' contents are no longer needed; a hint.
    Discard,
}

/// One command, as [`BlockQueue::poll_submit`] takes it.
#[derive(Clone, Copy, Debug)]
pub struct BlockCommand<'a> {
    /// What to do.
    pub op: BlockOp,
    /// First block.
    pub block: u64,
    /// How many.
    pub blocks: u32,
    /// The data, exactly as many bytes as `blocks` hold; empty for flush and discard.
    pub segments: Segments<'a>,
    /// What must outlive the command.
    pub hold: Option<&'a Hold>,
}

/// Names a command in flight; good for one queue, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u32);

/// A disk. Callable from any vCPU.
pub trait BlockDevice: Send + Sync {
    /// What it says of itself.
    fn info(&self) -> &BlockInfo;
    /// Queues it was set up with. They can be fewer than vCPUs: tasks that use the disk
    /// then run on the vCPUs that have one.
    fn queues(&self) -> usize;
    /// MSI-X vector that belongs to a queue.
    fn queue_vector(&self, queue: usize) -> u16;
    /// The vCPU that a queue is meant for.
    fn queue_vcpu(&self, queue: usize) -> VcpuId;
    /// Takes a queue for good. To be called on the vCPU that will use it, with the
    /// vector [`Self::queue_vector`] bound to that vCPU, and its clock. `None`: no such
    /// queue, or it is taken.
    ///
    /// Nothing moves on the queue unless a task of that vCPU runs [`service`].
    fn take_queue(
        &self,
        queue: usize,
        interrupt: Box<dyn Interrupt>,
        timer: Rc<dyn Timer>,
    ) -> Option<Rc<dyn BlockQueue>>;
}

/// A queue of a disk, shared by the tasks of one vCPU.
///
/// Drivers implement this; users call [`read`], [`write`], [`flush`] and [`discard`].
pub trait BlockQueue {
    /// What the disk says of itself.
    fn info(&self) -> &BlockInfo;

    /// How many bytes from the start of the list one command can carry: a multiple of
    /// the block size, at most `max_transfer`. 0: not even one block.
    fn fits(&self, segments: Segments<'_>) -> u32;

    /// Puts a command that [`Self::fits`] into the queue; `Pending` while it is full.
    fn poll_submit(
        &self,
        command: &BlockCommand<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Ticket, BlockError>>;

    /// Ready once the command is done; the ticket is used up then.
    fn poll_complete(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), BlockError>>;

    /// Nobody will ask for this command's result. Its hold stays until it is done.
    fn abandon(&self, ticket: Ticket);

    /// Tells the device about new commands, takes completions, watches the time.
    /// `Ready` when the device has failed for good. One task polls this.
    fn poll_service(&self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Runs a queue; returns when its device has failed for good.
pub async fn service(queue: &dyn BlockQueue) {
    core::future::poll_fn(|cx| queue.poll_service(cx)).await;
}

/// Reads `segments.len()` bytes from `block` on.
pub fn read<'a>(
    queue: &'a dyn BlockQueue,
    block: u64,
    segments: &'a [DmaSegment],
    hold: Option<&'a Hold>,
) -> Transfer<'a> {
    Transfer::new(queue, BlockOp::Read, block, Segments::new(segments), hold)
}

/// Writes `segments.len()` bytes from `block` on.
pub fn write<'a>(
    queue: &'a dyn BlockQueue,
    block: u64,
    segments: &'a [DmaSegment],
    hold: Option<&'a Hold>,
) -> Transfer<'a> {
    Transfer::new(queue, BlockOp::Write, block, Segments::new(segments), hold)
}

/// Makes completed writes durable; done at once on a disk without a volatile cache.
pub fn flush(queue: &dyn BlockQueue) -> Transfer<'_> {
    let mut transfer = Transfer::new(queue, BlockOp::Flush, 0, Segments::new(&[]), None);
    transfer.left = u64::from(queue.info().volatile_write_cache);
    transfer
}

/// Discards `blocks` blocks from `block` on.
pub fn discard(queue: &dyn BlockQueue, block: u64, blocks: u64) -> Transfer<'_> {
    let mut transfer = Transfer::new(queue, BlockOp::Discard, block, Segments::new(&[]), None);
    transfer.left = blocks;
    transfer
}

/// One operation on a queue, as one command or, one after the other, as many as the
/// device needs for it. Dropping it is safe at any time (see the module's words).
#[must_use = "futures do nothing unless polled"]
pub struct Transfer<'a> {
    queue: &'a dyn BlockQueue,
    op: BlockOp,
    block: u64,
    /// Blocks left; for flush, commands left.
    left: u64,
    segments: Segments<'a>,
    hold: Option<&'a Hold>,
    ticket: Option<Ticket>,
    bad: Option<BlockError>,
}

impl fmt::Debug for Transfer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer")
            .field("op", &self.op)
            .field("block", &self.block)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl<'a> Transfer<'a> {
    fn new(
        queue: &'a dyn BlockQueue,
        op: BlockOp,
        block: u64,
        segments: Segments<'a>,
        hold: Option<&'a Hold>,
    ) -> Self {
        let block_size = u64::from(queue.info().block_size);
        let bad = (!segments.len().is_multiple_of(block_size)).then_some(BlockError::Unaligned);
        Self {
            queue,
            op,
            block,
            left: segments.len() / block_size,
            segments,
            hold,
            ticket: None,
            bad,
        }
    }

    /// The next command, and what is left after it.
    fn next(&self) -> Result<(BlockCommand<'a>, Segments<'a>), BlockError> {
        let info = self.queue.info();
        let (blocks, segments, rest) = match self.op {
            BlockOp::Flush => (0, self.segments, self.segments),
            BlockOp::Discard => {
                if !info.discard {
                    return Err(BlockError::Unsupported);
                }
                let blocks = self.left.min(1 << 20);
                (blocks, self.segments, self.segments)
            }
            BlockOp::Read | BlockOp::Write => {
                let bytes = self.queue.fits(self.segments);
                let (now, rest) = self.segments.split_at(bytes.into());
                (now.len() / u64::from(info.block_size), now, rest)
            }
        };
        if self.op != BlockOp::Flush {
            let end = self.block.checked_add(self.left);
            if end.is_none_or(|end| end > info.blocks) {
                return Err(BlockError::OutOfRange);
            }
            if blocks == 0 {
                return Err(BlockError::Unaligned);
            }
        }
        let command = BlockCommand {
            op: self.op,
            block: self.block,
            // At most `max_transfer` bytes, or the constant above.
            blocks: u32::try_from(blocks).map_err(|_| BlockError::OutOfRange)?,
            segments,
            hold: self.hold,
        };
        Ok((command, rest))
    }
}

impl Future for Transfer<'_> {
    type Output = Result<(), BlockError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(error) = self.bad {
            return Poll::Ready(Err(error));
        }
        loop {
            if let Some(ticket) = self.ticket {
                let Poll::Ready(result) = self.queue.poll_complete(ticket, cx) else {
                    return Poll::Pending;
                };
                self.ticket = None;
                if let Err(error) = result {
                    self.bad = Some(error);
                    return Poll::Ready(Err(error));
                }
            }
            if self.left == 0 {
                return Poll::Ready(Ok(()));
            }
            let (command, rest) = self.next()?;
            let Poll::Ready(ticket) = self.queue.poll_submit(&command, cx) else {
                return Poll::Pending;
            };
            self.ticket = Some(ticket?);
            self.segments = rest;
            self.block += u64::from(command.blocks);
            self.left -= u64::from(command.blocks.max(1));
        }
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.queue.abandon(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn segment(bus_addr: u64, len: u32) -> DmaSegment {
        DmaSegment { bus_addr, len }
    }

    #[test]
    fn every_cut_of_a_list_keeps_its_bytes_in_order() {
        let list = [
            segment(100, 3),
            segment(200, 0),
            segment(300, 5),
            segment(400, 2),
        ];
        let bytes = |s: Segments<'_>| -> Vec<u64> {
            s.iter()
                .flat_map(|s| s.bus_addr..s.bus_addr + u64::from(s.len))
                .collect()
        };
        let whole = Segments::new(&list);
        let all = bytes(whole);
        assert_eq!(all, [100, 101, 102, 300, 301, 302, 303, 304, 400, 401]);
        for first in 0..=10 {
            let (a, rest) = whole.split_at(first);
            for second in 0..=rest.len() {
                let (b, c) = rest.split_at(second);
                assert_eq!([bytes(a), bytes(b), bytes(c)].concat(), all);
                assert_eq!(a.len() + b.len() + c.len(), 10);
                assert!(b.iter().all(|s| s.len > 0));
            }
        }
    }
}
