//! The task of one NIC queue, on the vCPU that the queue belongs to.

use crate::offload::{Next, Segments, fill_checksum, prepare_for_nic};
use crate::stop::Stop;
use crate::switch::{Source, UplinkPort, Verdict, View};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::poll_fn;
use core::sync::atomic::Ordering;
use core::task::{Context, Poll};
use hal::net::{Checksum, Frame, NetQueue, Offloads, PacketPool};
use hal::{Timer, yield_now};

/// Frames handled in each direction before other tasks have their turn.
const BUDGET: usize = 64;
/// How long a NIC queue that lacks receive buffers waits for memory, unless one comes back.
const MEMORY_NS: u64 = 100_000_000;
/// How long a NIC queue may send nothing of what it has, with a link, until it is started
/// anew: as long as Linux waits (`watchdog_timeo`), or up to twice that.
const STUCK_NS: u64 = 5_000_000_000;
/// The shortest frame of a wire, without FCS.
const MIN_WIRE: usize = 60;

hal::counters! {
    /// Frames sent.
    tx_frames,
    /// Bytes of them.
    tx_bytes,
    /// Frames too long for the wire, or without memory to cut them.
    tx_dropped,
    /// Frames dropped because there is no link.
    tx_no_link,
    /// Times that there was no room for one more frame to send: its sender waits a while
    /// then, or drops it.
    tx_refused,
    /// Frames received.
    rx_frames,
    /// Bytes of them.
    rx_bytes,
    /// Received frames that nobody took.
    rx_dropped,
}

/// A NIC queue and all that its task needs.
pub struct Uplink<T> {
    /// The queue, started on this vCPU.
    pub queue: Box<dyn NetQueue>,
    /// What the NIC can do.
    pub offloads: Offloads,
    /// The longest frame for its wire, without FCS.
    pub max_frame: usize,
    /// Its place at the switch.
    pub port: UplinkPort,
    /// Packet memory of this vCPU.
    pub pool: PacketPool,
    /// The clock of this vCPU.
    pub timer: T,
    /// What it moved.
    pub counters: Arc<Counters>,
}

impl<T> core::fmt::Debug for Uplink<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Uplink")
            .field("port", &self.port)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// Moves frames between a NIC queue and the switch until stopped.
pub async fn serve<T: Timer>(mut uplink: Uplink<T>, stop: Stop) {
    let mut view = uplink.port.view();
    let mut out = Outgoing::default();
    let mut watchdog = Watchdog::default();
    let mut slept = true;
    loop {
        view.refresh();
        let received = uplink.receive(&view);
        let sent = uplink.send(&mut out);
        uplink.watch(&mut watchdog);
        if received || sent || !slept {
            // Others on this vCPU have their turn, whatever made us ready.
            yield_now().await;
        }
        slept = false;
        let stopped = poll_fn(|cx| {
            if stop.poll(cx) {
                return Poll::Ready(true);
            }
            let mut ready = uplink.queue.poll_work(cx).is_ready();
            ready |= uplink.poll_send(&out, cx);
            ready |= uplink.poll_times(&watchdog, cx);
            if ready {
                Poll::Ready(false)
            } else {
                slept = true;
                Poll::Pending
            }
        })
        .await;
        if stopped {
            return;
        }
    }
}

/// What is on its way to the ring.
#[derive(Default)]
struct Outgoing {
    next: Option<Frame>,
    cutting: Option<Segments>,
}

/// Sees that a NIC queue sends. Looks only when its time has come, so that traffic costs it
/// nothing.
#[derive(Default)]
struct Watchdog {
    /// When to look, and frames that had gone when that was decided.
    look: Option<(u64, u64)>,
}

impl<T: Timer> Uplink<T> {
    /// Takes back what has gone, and starts a transmit ring anew of which nothing does.
    fn watch(&mut self, watchdog: &mut Watchdog) {
        let left = self.queue.reclaim() as u64;
        if left == 0 && watchdog.look.is_none() {
            return;
        }
        let now = self.timer.now_ns();
        // A restart counts as gone, too: what it took back.
        let gone = self.counters.tx_frames.load(Ordering::Relaxed) - left;
        match watchdog.look {
            Some((at, _)) if now < at => return,
            Some((_, before)) if gone == before && self.queue.has_carrier() => {
                self.queue.restart_tx();
            }
            _ => {}
        }
        watchdog.look = (left > 0).then_some((now.saturating_add(STUCK_NS), gone));
    }

    /// Each received frame goes to its own receiver at once.
    fn receive(&mut self, view: &View) -> bool {
        let mut count = 0;
        while count < BUDGET {
            let Some(frame) = self.queue.recv() else {
                break;
            };
            count += 1;
            let len = frame.len() as u64;
            self.counters.rx_frames.fetch_add(1, Ordering::Relaxed);
            self.counters.rx_bytes.fetch_add(len, Ordering::Relaxed);
            match view.forward(Source::Uplink, frame, &self.pool) {
                Verdict::Forwarded(_) => {}
                _ => {
                    self.counters.rx_dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.queue.refill();
        count > 0
    }

    fn send(&mut self, out: &mut Outgoing) -> bool {
        self.queue.reclaim();
        let refused = self.port.inbox().refused();
        self.counters.tx_refused.store(refused, Ordering::Relaxed);
        if !self.queue.has_carrier() {
            return self.drop_outgoing(out);
        }
        let mut count = 0;
        while count < BUDGET && self.queue.has_room() {
            let Some(frame) = self.next_frame(out) else {
                break;
            };
            let len = frame.len() as u64;
            if let Err(frame) = self.queue.send(frame) {
                out.next = Some(frame);
                break;
            }
            count += 1;
            self.counters.tx_frames.fetch_add(1, Ordering::Relaxed);
            self.counters.tx_bytes.fetch_add(len, Ordering::Relaxed);
        }
        if count > 0 {
            self.queue.kick();
        }
        count > 0
    }

    /// Drops what is to be sent while there is no link, as any system does: who waited for
    /// one would hold up what is for others.
    fn drop_outgoing(&self, out: &mut Outgoing) -> bool {
        let mut count = usize::from(out.next.take().is_some());
        count += usize::from(out.cutting.take().is_some());
        while count < BUDGET && self.port.inbox().pop().is_some() {
            count += 1;
        }
        hal::counters::add(&self.counters.tx_no_link, count as u64);
        count > 0
    }

    /// The next frame in a form that the NIC takes.
    fn next_frame(&self, out: &mut Outgoing) -> Option<Frame> {
        for _ in 0..BUDGET {
            let mut frame = match (out.next.take(), &mut out.cutting) {
                (Some(frame), _) => return Some(frame),
                (None, Some(segments)) => match segments.next(&self.pool) {
                    Next::Segment(frame) => frame,
                    Next::NoMemory => {
                        // The frame's own pages may be what is lacking: TCP sends it again.
                        self.counters.tx_dropped.fetch_add(1, Ordering::Relaxed);
                        out.cutting = None;
                        continue;
                    }
                    Next::Done => {
                        out.cutting = None;
                        continue;
                    }
                },
                (None, None) => self.port.inbox().pop()?,
            };
            if wire_len(&frame) > self.max_frame {
                self.counters.tx_dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if !self.offloads.can_send(&frame) {
                match Segments::of(frame) {
                    Ok(segments) => {
                        out.cutting = Some(segments);
                        continue;
                    }
                    Err(back) => frame = back,
                }
                if !self.offloads.can_send(&frame) {
                    fill_checksum(&mut frame);
                }
            }
            if !self.offloads.can_send(&frame) {
                // Too many parts: not with frames of whole pages.
                self.counters.tx_dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            // A NIC refuses the shortest ones, or pads with what it finds. Nor is it to be
            // trusted with the checksum of a padded one: QEMU's takes the padding for data.
            if frame.len() < MIN_WIRE {
                fill_checksum(&mut frame);
            }
            if !frame.pad_to(MIN_WIRE) {
                self.counters.tx_dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            prepare_for_nic(&frame);
            return Some(frame);
        }
        None
    }

    /// Whether there is something to send, and room for it or no link.
    fn poll_send(&self, out: &Outgoing, cx: &mut Context<'_>) -> bool {
        if self.queue.has_carrier() && !self.queue.has_room() {
            // `poll_work` is ready once a frame has gone.
            return false;
        }
        out.next.is_some()
            || out.cutting.is_some()
            || self.port.inbox().poll_readable(cx).is_ready()
    }

    /// Posts the receive buffers that were missing, or waits for memory, and for the watchdog.
    fn poll_times(&mut self, watchdog: &Watchdog, cx: &mut Context<'_>) -> bool {
        let mut at = watchdog.look.map(|(at, _)| at);
        let mut ready = false;
        if self.queue.refill() > 0 {
            // What there was is posted: now a buffer must come back, or memory.
            ready = self.pool.poll_returned(cx).is_ready();
            let retry = self.timer.now_ns().saturating_add(MEMORY_NS);
            at = Some(at.map_or(retry, |at| at.min(retry)));
        }
        ready | at.is_some_and(|at| self.timer.poll_deadline(at, cx).is_ready())
    }
}

/// Bytes of the longest frame that this one becomes on the wire.
fn wire_len(frame: &Frame) -> usize {
    match (frame.mss, frame.checksum) {
        (Some(mss), Checksum::Partial(layout)) => layout.headers() + usize::from(mss.get()),
        _ => frame.len(),
    }
}
