//! The task of one guest network device, on a core of its guest.

mod request;
mod rx;
mod tx;

pub use request::{Content, Fatal, Gso, Piece, Reject, Request};

use crate::counters::{Counters, add};
use crate::nodes::{FrontendFeatures, QueueNodes};
use crate::stop::Stop;
use crate::switch::Port;
use alloc::sync::Arc;
use core::fmt;
use core::future::poll_fn;
use core::task::Poll;
use hal::net::PacketPool;
use hal::{Timer, VcpuId};
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
    let mut tx = Tx::attach(map(queue.tx_ring)?, port.mac())?;
    let mut rx = Rx::attach(map(queue.rx_ring)?, features)?;
    let mut view = port.view(vcpu);
    let inbox = port.inbox();
    loop {
        add(&counters.polls, 1);
        view.refresh();
        let mut busy = tx.step(&grants, &view, &pool, &counters, || events.notify_tx())?;
        busy |= rx.step(&grants, inbox, &pool, &counters, || events.notify_rx())?;
        if busy {
            // Others on this vCPU have their turn.
            yield_now().await;
        }
        let stopped = poll_fn(|cx| {
            if stop.poll(cx) {
                return Poll::Ready(Ok(true));
            }
            // The event is taken before the rings are looked at, so that what comes
            // afterwards is a new one.
            events.poll(cx);
            let tx_ready = match tx.poll(&pool, cx) {
                Ok(ready) => ready,
                Err(fatal) => return Poll::Ready(Err(fatal)),
            };
            let rx_ready = match rx.poll(inbox, &pool, &timer, &counters, cx) {
                Ok(ready) => ready,
                Err(fatal) => return Poll::Ready(Err(fatal)),
            };
            if tx_ready || rx_ready {
                return Poll::Ready(Ok(false));
            }
            // A pending event that came between the two looks is seen here.
            if events.poll(cx) {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await?;
        if stopped {
            return Ok(());
        }
    }
}

/// Lets the other tasks of the vCPU run once.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
