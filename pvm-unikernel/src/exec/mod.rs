//! One cooperative executor for each vCPU.
//!
//! A task is a future that is born and dies on one vCPU. Its waker may be used anywhere:
//! on its own vCPU it appends to the run queue, elsewhere to the vCPU's lock-free mailbox,
//! and kicks it by an event-channel IPI if it may sleep.
//!
//! **No wake-up is lost.** A sleeper stores `sleeping`, then looks at its mailboxes; a
//! waker pushes to a mailbox, then looks at `sleeping`. Both put a sequentially consistent
//! fence between the two, so at least one sees the other's store: the sleeper finds the
//! mail and does not block, or the waker sees `sleeping` and sends the IPI. The IPI sets
//! the vCPU's pending flag, which is cleared only in `event::dispatch`, before the
//! mailboxes are looked at again; `SCHEDOP_block` returns at once while it is set. Port
//! events and timers set the same flag. So mail that came before the block is seen, or the
//! block ends. Whoever takes `sleeping` down sends the only IPI, so kicks do not pile up.
#![allow(
    dead_code,
    unused_imports,
    reason = "a kernel interface: what no service needs yet waits for one"
)]

mod account;
mod task;

pub use account::Account;
pub use task::{Cancelled, Task, spawn_local, spawn_local_for, spawn_on, spawn_on_for};

use crate::arch::hypercall::{event as hypercall_event, sched};
use crate::arch::{MAX_VCPUS, PerCpu, cpu};
use crate::{event, panic, time};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use core::task::Poll;
use crossbeam_queue::SegQueue;
use hal::VcpuId;
use task::{Slots, TaskRef};
use xen_abi::EvtchnPort;

/// How long a poll may run before [`should_yield`] says so.
const POLL_BUDGET_NS: u64 = 200_000;

/// What other vCPUs send to one.
struct Mailbox {
    /// Tasks to run. A task is in at most one queue, so there are never more than tasks.
    wakes: SegQueue<Arc<TaskRef>>,
    spawns: SegQueue<Box<dyn FnOnce() + Send>>,
    sleeping: AtomicBool,
    /// IPI port; 0: none yet (Xen's port 0 is never valid).
    ipi: AtomicU32,
    /// Nanoseconds spent polling tasks.
    busy_ns: AtomicU64,
    running: AtomicBool,
}

static MAILBOXES: [Mailbox; MAX_VCPUS] = [const {
    Mailbox {
        wakes: SegQueue::new(),
        spawns: SegQueue::new(),
        sleeping: AtomicBool::new(false),
        ipi: AtomicU32::new(0),
        busy_ns: AtomicU64::new(0),
        running: AtomicBool::new(false),
    }
}; MAX_VCPUS];

/// What only the vCPU itself touches.
struct Local {
    ready: RefCell<VecDeque<Arc<TaskRef>>>,
    slots: RefCell<Slots>,
    current: RefCell<Option<Arc<TaskRef>>>,
    poll_began_ns: Cell<u64>,
}

static LOCAL: PerCpu<Local> = PerCpu::new(
    [const {
        Local {
            ready: RefCell::new(VecDeque::new()),
            slots: RefCell::new(Slots::new()),
            current: RefCell::new(None),
            poll_began_ns: Cell::new(0),
        }
    }; MAX_VCPUS],
);

static VCPUS: AtomicU32 = AtomicU32::new(1);

/// vCPUs that are up.
pub fn vcpu_count() -> u32 {
    VCPUS.load(Ordering::Relaxed)
}

/// Says how many vCPUs there are. At bring-up.
pub(crate) fn set_vcpu_count(count: u32) {
    VCPUS.store(count, Ordering::Relaxed);
}

/// The running vCPU.
pub fn current() -> VcpuId {
    VcpuId(u32::try_from(cpu::id()).expect("vCPU numbers are small"))
}

/// Nanoseconds that a vCPU spent polling tasks.
pub fn busy_ns(vcpu: VcpuId) -> u64 {
    MAILBOXES[vcpu.0 as usize].busy_ns.load(Ordering::Relaxed)
}

/// Says by which port a vCPU is kicked. The port is never closed.
pub(crate) fn set_ipi_port(vcpu: u32, port: EvtchnPort) {
    MAILBOXES[vcpu as usize]
        .ipi
        .store(port.0, Ordering::Release);
}

/// By which port a vCPU is kicked.
pub(crate) fn ipi_port(vcpu: u32) -> Option<EvtchnPort> {
    let port = MAILBOXES[vcpu as usize].ipi.load(Ordering::Acquire);
    (port != 0).then_some(EvtchnPort(port))
}

/// Whether a vCPU's executor has started.
pub(crate) fn is_running(vcpu: u32) -> bool {
    MAILBOXES[vcpu as usize].running.load(Ordering::Acquire)
}

/// Hands mail over: after the push, before nothing.
fn kick(vcpu: u32) {
    let mailbox = &MAILBOXES[vcpu as usize];
    fence(Ordering::SeqCst);
    if mailbox.sleeping.load(Ordering::Relaxed) && mailbox.sleeping.swap(false, Ordering::SeqCst) {
        let port = EvtchnPort(mailbox.ipi.load(Ordering::Acquire));
        let sent = hypercall_event::send(port);
        sent.expect("the IPI port of a vCPU is never closed");
    }
}

/// Puts a task that is not queued in a queue of its vCPU.
fn enqueue(task: Arc<TaskRef>) {
    let vcpu = task.vcpu();
    if vcpu as usize == cpu::id() {
        LOCAL.here().ready.borrow_mut().push_back(task);
    } else {
        MAILBOXES[vcpu as usize].wakes.push(task);
        kick(vcpu);
    }
}

/// Moves mail to the run queue.
fn take_mail(mailbox: &Mailbox, local: &Local) {
    // New tasks first: a wake that overtakes the birth of its task finds it placed.
    while let Some(spawn) = mailbox.spawns.pop() {
        spawn();
    }
    while let Some(task) = mailbox.wakes.pop() {
        local.ready.borrow_mut().push_back(task);
    }
}

/// Runs this vCPU's tasks for ever; sleeps when there is nothing to do.
pub(crate) fn run() -> ! {
    let mailbox = &MAILBOXES[cpu::id()];
    let local = LOCAL.here();
    mailbox.running.store(true, Ordering::Release);
    loop {
        panic::stop_if_panicking();
        event::dispatch();
        time::fire(time::now_ns());
        take_mail(mailbox, local);
        run_ready(mailbox, local);
        if !local.ready.borrow().is_empty() {
            continue;
        }
        mailbox.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if mailbox.wakes.is_empty() && mailbox.spawns.is_empty() && time::arm() {
            sched::block();
        }
        mailbox.sleeping.store(false, Ordering::SeqCst);
    }
}

/// One round: each task that was ready at its start, once.
fn run_ready(mailbox: &Mailbox, local: &Local) {
    let round = local.ready.borrow().len();
    let mut began = time::now_ns();
    for _ in 0..round {
        let Some(task) = local.ready.borrow_mut().pop_front() else {
            return;
        };
        local.poll_began_ns.set(began);
        *local.current.borrow_mut() = Some(task.clone());
        task::run(&task, &local.slots);
        *local.current.borrow_mut() = None;
        let ended = time::now_ns();
        let spent = ended.saturating_sub(began);
        task.charge(spent);
        // Only this vCPU writes it.
        let busy = mailbox.busy_ns.load(Ordering::Relaxed) + spent;
        mailbox.busy_ns.store(busy, Ordering::Relaxed);
        began = ended;
    }
}

/// Whether the running poll has used up its budget; long loops ask, and yield.
pub fn should_yield() -> bool {
    time::now_ns().saturating_sub(LOCAL.here().poll_began_ns.get()) > POLL_BUDGET_NS
}

/// Lets every other ready task of this vCPU run once.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Yields if the budget of this poll is used up. For loops whose length a guest chooses.
pub async fn checkpoint() {
    if should_yield() {
        yield_now().await;
    }
}
