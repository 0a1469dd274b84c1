//! The task of one guest network device, on a core of its guest.

mod request;
mod rx;
mod tx;

pub use request::{Content, Fatal, Gso, Piece, Reject, Request};

use crate::counters::{Counters, add};
use crate::nodes::{FrontendFeatures, QueueNodes};
use crate::port::Inbox;
use crate::stop::Stop;
use crate::switch::{Port, View};
use alloc::sync::Arc;
use core::fmt;
use core::future::poll_fn;
use core::task::Poll;
use hal::net::PacketPool;
use hal::{Timer, VcpuId, yield_now};
use rx::Rx;
use tx::Tx;
use xen_ring::peer::{Events, GrantStatus, Grants};

/// Why a device's task ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VifError {
    /// A ring page could not be mapped.
    Map(GrantStatus),
    /// The frontend broke the protocol.
    Protocol(Fatal),
}

impl fmt::Display for VifError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(status) => write!(f, "ring pages cannot be mapped: {status}"),
            Self::Protocol(fatal) => write!(f, "frontend broke the protocol: {fatal}"),
        }
    }
}

impl core::error::Error for VifError {}

impl From<Fatal> for VifError {
    fn from(fatal: Fatal) -> Self {
        Self::Protocol(fatal)
    }
}

/// The event channels of a device: one for both directions, or two.
#[derive(Debug)]
pub struct VifEvents<E> {
    /// For transmit, and for receive if `rx` is not there.
    pub tx: E,
    /// For receive.
    pub rx: Option<E>,
}

impl<E: Events> VifEvents<E> {
    fn notify_tx(&self) {
        self.tx.notify();
    }

    fn notify_rx(&self) {
        self.rx.as_ref().unwrap_or(&self.tx).notify();
    }

    fn poll(&self, cx: &mut core::task::Context<'_>) -> bool {
        let tx = self.tx.poll_event(cx).is_ready();
        let rx = self
            .rx
            .as_ref()
            .is_some_and(|rx| rx.poll_event(cx).is_ready());
        tx || rx
    }
}

/// All that the task of one device needs; it is the owner.
#[derive(Debug)]
pub struct Vif<G, E, T> {
    /// The guest's grants.
    pub grants: G,
    /// Its event channels, bound on this vCPU.
    pub events: VifEvents<E>,
    /// Its rings.
    pub queue: QueueNodes,
    /// What its frontend can take.
    pub features: FrontendFeatures,
    /// Its place at the switch.
    pub port: Port,
    /// The vCPU this runs on.
    pub vcpu: VcpuId,
    /// Packet memory of this vCPU.
    pub pool: PacketPool,
    /// The clock of this vCPU.
    pub timer: T,
    /// What it did.
    pub counters: Arc<Counters>,
}

/// Serves a guest device until it is stopped or its frontend breaks the protocol. When
/// this returns, or is dropped, the rings are unmapped, the port is off the switch, and
/// every slot that was taken is answered.
pub async fn serve<G: Grants, E: Events, T: Timer>(
    vif: Vif<G, E, T>,
    stop: Stop,
) -> Result<(), VifError> {
    let Vif {
        grants,
        events,
        queue,
        features,
        port,
        vcpu,
        pool,
        timer,
        counters,
    } = vif;
    let map = |gref| grants.map_ring(&[gref]).map_err(VifError::Map);
    let mut tx = Tx::attach(map(queue.tx_ring)?, port.mac(), port.guest())?;
    let rx = Rx::attach(map(queue.rx_ring)?, features)?;
    let task = Task {
        grants,
        events,
        view: port.view(vcpu),
        pool,
        timer,
        counters,
    };
    let inbox = port.inbox();
    inbox.set_takes_direct(rx.can_take_direct());
    let ended = task.run(&mut tx, rx, inbox, &stop).await;
    // From here on nothing reaches this guest, and nobody waits for it.
    inbox.set_open(false);
    drain(&mut tx, inbox, &task.counters, || task.events.notify_tx()).await;
    hal::counters::add(&task.counters.rx_refused, inbox.refused());
    Ok(ended?)
}

/// What both directions use.
struct Task<G, E, T> {
    grants: G,
    events: VifEvents<E>,
    view: View,
    pool: PacketPool,
    timer: T,
    counters: Arc<Counters>,
}

impl<G: Grants, E: Events, T: Timer> Task<G, E, T> {
    /// Moves frames until stopped, or until the frontend breaks the protocol.
    async fn run(&self, tx: &mut Tx, mut rx: Rx, inbox: &Inbox, stop: &Stop) -> Result<(), Fatal> {
        let Self {
            grants,
            events,
            pool,
            timer,
            counters,
            ..
        } = self;
        let mut view = self.view.clone();
        let mut slept = true;
        loop {
            add(&counters.polls, 1);
            view.refresh();
            let now_ns = timer.now_ns();
            let mut busy = tx.step(grants, &view, pool, now_ns, counters, || {
                events.notify_tx();
            })?;
            busy |= rx.step(grants, inbox, pool, counters, || events.notify_rx())?;
            if busy || !slept {
                // Others on this vCPU have their turn, whatever made us ready.
                yield_now().await;
            }
            slept = false;
            let stopped = poll_fn(|cx| {
                if stop.poll(cx) {
                    return Poll::Ready(Ok(true));
                }
                // The event is taken before the rings are looked at, so that what comes
                // afterwards is a new one.
                events.poll(cx);
                let ready = tx
                    .poll(pool, cx)
                    .and_then(|tx| Ok(tx | rx.poll(inbox, timer.now_ns(), counters, cx)?));
                match ready {
                    Ok(true) => return Poll::Ready(Ok(false)),
                    Ok(false) => {}
                    Err(fatal) => return Poll::Ready(Err(fatal)),
                }
                // A task has one alarm.
                let deadline = tx.deadline().into_iter().chain(rx.deadline()).min();
                if deadline.is_some_and(|at| timer.poll_deadline(at, cx).is_ready()) {
                    return Poll::Ready(Ok(false));
                }
                // The first look took an event without leaving a waker behind; this one
                // leaves it, or finds the next event.
                if events.poll(cx) {
                    cx.waker().wake_by_ref();
                }
                slept = true;
                Poll::Pending
            })
            .await?;
            if stopped {
                return Ok(());
            }
        }
    }
}

/// Waits until no other guest's task reads this guest's pages any more: at most until
/// that one gives up on its guest.
async fn drain(tx: &mut Tx, inbox: &Inbox, counters: &Counters, notify: impl Fn()) {
    tx.stop();
    poll_fn(|cx| {
        // Two guests that end at the same time hold pages of each other: a frame that
        // slipped into the closed inbox must not wait for its sender.
        while inbox.poll_readable(cx).is_ready() {
            inbox.purge();
        }
        if tx.poll_drained(counters, &notify, cx) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}
