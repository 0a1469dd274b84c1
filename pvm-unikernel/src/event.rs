//! Event channels: a port is an object that a task waits on.
//!
//! A port notifies one vCPU; that vCPU's executor takes its pending bit and fires the slot,
//! which wakes the task wherever it runs. Ports start masked and are unmasked by
//! `EVTCHNOP_unmask`, the only way that loses nothing which is already pending.

use crate::arch::SpinLock;
use crate::arch::cpu;
use crate::arch::hypercall::{Errno, event};
use crate::arch::shared_info::{self, PORTS};
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use hal::VcpuId;
use xen_abi::{DomId, EvtchnPort};

/// What became of a port's events, and who waits for the next.
struct Slot {
    fired: AtomicBool,
    waiter: SpinLock<Option<Waker>>,
}

static SLOTS: [Slot; PORTS] = [const {
    Slot {
        fired: AtomicBool::new(false),
        waiter: SpinLock::new(None),
    }
}; PORTS];

/// Takes the running vCPU's pending events and wakes who waits for them.
pub(crate) fn dispatch() {
    shared_info::take_events(|port| {
        let slot = &SLOTS[port.0 as usize];
        slot.fired.store(true, Ordering::Release);
        let waiter = slot.waiter.lock().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    });
}

/// An event-channel port of ours, closed when dropped.
#[derive(Debug)]
pub struct Port {
    port: EvtchnPort,
}

fn here() -> VcpuId {
    VcpuId(u32::try_from(cpu::id()).expect("vCPU numbers are small"))
}

impl Port {
    /// Takes a port that was just bound, points it at `vcpu` if it can be moved, and opens
    /// it.
    fn open(port: EvtchnPort, vcpu: Option<VcpuId>) -> Result<Self, Errno> {
        let opened = Self { port };
        let slot = &SLOTS[port.0 as usize];
        *slot.waiter.lock() = None;
        slot.fired.store(false, Ordering::Release);
        if let Some(vcpu) = vcpu {
            event::bind_vcpu(port, vcpu.0)?;
        }
        event::unmask(port)?;
        Ok(opened)
    }

    /// A port that `remote` may bind to, notifying the running vCPU.
    ///
    /// # Errors
    /// `ENOSPC`: no port left; `ESRCH`: no such domain.
    pub fn alloc_unbound(remote: DomId) -> Result<Self, Errno> {
        Self::open(event::alloc_unbound(DomId::SELF, remote)?, Some(here()))
    }

    /// The other end of a port that `remote` allocated for us, notifying the running vCPU.
    ///
    /// # Errors
    /// `EINVAL`: the port is not ours to bind; `ESRCH`: no such domain.
    pub fn bind_interdomain(remote: DomId, port: EvtchnPort) -> Result<Self, Errno> {
        Self::open(event::bind_interdomain(remote, port)?, Some(here()))
    }

    /// A global virtual interrupt, notifying the running vCPU.
    ///
    /// # Errors
    /// `EEXIST`: bound already.
    pub fn bind_virq(virq: u32) -> Result<Self, Errno> {
        Self::open(event::bind_virq(virq, 0)?, Some(here()))
    }

    /// A virtual interrupt of one vCPU, notifying that vCPU for ever.
    ///
    /// # Errors
    /// `EEXIST`: bound already.
    pub fn bind_vcpu_virq(virq: u32, vcpu: VcpuId) -> Result<Self, Errno> {
        Self::open(event::bind_virq(virq, vcpu.0)?, None)
    }

    /// A device interrupt, notifying `vcpu`; its hardware target follows.
    ///
    /// # Errors
    /// `EINVAL`: not mapped; `EEXIST`: bound already.
    pub fn bind_pirq(pirq: u32, vcpu: VcpuId) -> Result<Self, Errno> {
        Self::open(event::bind_pirq(pirq)?, Some(vcpu))
    }

    /// A port by which any vCPU kicks `vcpu`.
    ///
    /// # Errors
    /// `ENOENT`: no such vCPU.
    pub fn bind_ipi(vcpu: VcpuId) -> Result<Self, Errno> {
        Self::open(event::bind_ipi(vcpu.0)?, None)
    }

    /// The port's number.
    pub fn number(&self) -> EvtchnPort {
        self.port
    }

    /// Moves the notifications of a movable port. A slow path: Xen takes a domain-wide lock.
    ///
    /// # Errors
    /// `EINVAL`: an IPI or a per-vCPU interrupt.
    pub fn move_to(&self, vcpu: VcpuId) -> Result<(), Errno> {
        event::bind_vcpu(self.port, vcpu.0)
    }

    /// Kicks the peer. A peer that closed its end is no error: it is told otherwise.
    pub fn notify(&self) {
        if let Err(errno) = event::send(self.port) {
            log::debug!("port {}: not sent: {errno}", self.port);
        }
    }

    /// Ready once for each (merged) event since the last `Ready`. One task may wait.
    pub fn poll_event(&self, context: &mut Context<'_>) -> Poll<()> {
        let slot = &SLOTS[self.port.0 as usize];
        if slot.fired.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        let mut waiter = slot.waiter.lock();
        if !waiter
            .as_ref()
            .is_some_and(|old| old.will_wake(context.waker()))
        {
            *waiter = Some(context.waker().clone());
        }
        drop(waiter);
        // `dispatch` may have fired before it could see the waker.
        if slot.fired.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Waits for the next event.
    pub async fn wait(&self) {
        poll_fn(|context| self.poll_event(context)).await;
    }
}

impl xen_ring::peer::Events for Port {
    fn notify(&self) {
        Self::notify(self);
    }

    fn poll_event(&self, context: &mut Context<'_>) -> Poll<()> {
        Self::poll_event(self, context)
    }
}

impl hal::Interrupt for Port {
    fn poll_interrupt(&self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_event(context)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        shared_info::mask(self.port);
        // Before the close: after it the number, and the slot with it, may at once be another
        // port's, whose task waits on another vCPU and would have its waker taken. Nobody
        // registers in between: that takes a `&self`.
        let waiter = SLOTS[self.port.0 as usize].waiter.lock().take();
        drop(waiter);
        if let Err(errno) = event::close(self.port) {
            log::error!("port {}: not closed: {errno}", self.port);
        }
    }
}
