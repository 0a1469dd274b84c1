//! The controller: bring-up, what its queues share, and reset.

use crate::admin::{self, Admin, AdminError, RingPlace, wait_status};
use crate::identify::{self, BadNamespace};
use crate::io::{NvmeQueue, Seed};
use crate::regs::{self, Capabilities};
use crate::ring::Ring;
use crate::{MAX_RESETS, MAX_TRANSFER, QUEUE_DEPTH};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::task::{Poll, Waker};
use hal::block::{BlockDevice, BlockInfo, BlockQueue};
use hal::pci::PciError;
use hal::{DmaAllocator, Interrupt, Mmio, Node, PciFunction, Timer, VcpuId, timer};
use spin::Mutex;

/// Longest wait for a normal shutdown; a disk may have a large cache to empty.
const SHUTDOWN_TIMEOUT_NS: u64 = 10_000_000_000;
/// Longest wait for the queues' tasks to let go of a stopped controller.
const QUIESCE_TIMEOUT_NS: u64 = 10_000_000_000;

/// Why a controller could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The PCI function.
    Pci(PciError),
    /// Fewer MSI-X vectors than one for the admin queue and one for I/O.
    Vectors(u16),
    /// The register BAR is too small for its doorbells: its length.
    Bar(usize),
    /// The controller wants pages larger than 4 KiB: log2 of the smallest.
    PageShift(u32),
    /// The controller does not answer as it should.
    Admin(AdminError),
    /// It has no active namespace.
    NoNamespace,
    /// Its first namespace cannot be used.
    Namespace(BadNamespace),
    /// No memory for queues.
    NoMemory,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(error) => error.fmt(f),
            Self::Vectors(n) => write!(f, "only {n} MSI-X vectors"),
            Self::Bar(len) => write!(f, "register BAR of {len:#x} bytes"),
            Self::PageShift(shift) => write!(f, "pages of 2^{shift} bytes"),
            Self::Admin(error) => error.fmt(f),
            Self::NoNamespace => f.write_str("no active namespace"),
            Self::Namespace(bad) => write!(f, "namespace cannot be used: {bad:?}"),
            Self::NoMemory => f.write_str("no memory for queues"),
        }
    }
}

impl core::error::Error for StartError {}

impl From<AdminError> for StartError {
    fn from(error: AdminError) -> Self {
        Self::Admin(error)
    }
}

impl From<PciError> for StartError {
    fn from(error: PciError) -> Self {
        Self::Pci(error)
    }
}

/// Where the controller is between two resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    /// A reset was asked for; the device may still be working.
    Stopping,
    /// The device touches nothing; queues drop what was in flight.
    Stopped,
    /// Given up.
    Dead,
}

impl State {
    pub fn is_running(self) -> bool {
        self == Self::Running
    }
    pub fn is_stopped(self) -> bool {
        self == Self::Stopped
    }
    pub fn is_dead(self) -> bool {
        self == Self::Dead
    }
}

/// State, and the number of the life it belongs to: Running(n) → Stopping(n) →
/// Stopped(n + 1) → Running(n + 1). A queue whose own number differs has not let go of
/// the old life yet, and must not touch its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub state: State,
    pub epoch: u32,
}

impl Life {
    fn pack(self) -> u64 {
        u64::from(self.epoch) << 2 | self.state as u64
    }

    fn unpack(word: u64) -> Self {
        let state = match word & 3 {
            0 => State::Running,
            1 => State::Stopping,
            2 => State::Stopped,
            _ => State::Dead,
        };
        Self {
            state,
            // `pack` put a u32 there.
            epoch: u32::try_from(word >> 2 & 0xffff_ffff).expect("masked"),
        }
    }
}

/// What the controller's queues share, over all vCPUs.
#[derive(Debug)]
pub struct Shared {
    regs: Mmio,
    info: BlockInfo,
    namespace: u32,
    life: AtomicU64,
    /// Queues that have let go since the last stop.
    acknowledged: AtomicU32,
    /// Resets since the last completed command.
    resets: AtomicU32,
    /// Service tasks, by queue; and the supervisor, last.
    wakers: Mutex<Vec<Option<Waker>>>,
    seeds: Mutex<Vec<Option<Seed>>>,
}

impl Shared {
    pub fn info(&self) -> &BlockInfo {
        &self.info
    }

    pub fn namespace(&self) -> u32 {
        self.namespace
    }

    pub fn life(&self) -> Life {
        Life::unpack(self.life.load(Ordering::Acquire))
    }

    /// Asks the supervisor for a reset.
    pub fn want_reset(&self) {
        let life = self.life();
        if !life.state.is_running() {
            return;
        }
        let stopping = Life {
            state: State::Stopping,
            ..life
        };
        let swapped = self.life.compare_exchange(
            life.pack(),
            stopping.pack(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        // Lost only to another queue that asked for the same.
        if swapped.is_ok() {
            self.wake_all();
        }
    }

    /// A command was completed: the device works.
    pub fn progress(&self) {
        if self.resets.load(Ordering::Relaxed) != 0 {
            self.resets.store(0, Ordering::Relaxed);
        }
    }

    /// A queue has let go of the old life.
    pub fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::AcqRel);
    }

    /// Whom to wake when the life changes.
    pub fn register(&self, index: usize, waker: &Waker) {
        let slot = &mut self.wakers.lock()[index];
        if !slot.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    fn wake_all(&self) {
        let wakers: Vec<_> = self.wakers.lock().iter().flatten().cloned().collect();
        for waker in wakers {
            waker.wake();
        }
    }

    fn set(&self, life: Life) {
        self.life.store(life.pack(), Ordering::Release);
        self.wake_all();
    }
}

/// A started NVMe controller, and its first namespace.
#[derive(Debug)]
pub struct Nvme {
    shared: Arc<Shared>,
    places: Vec<RingPlace>,
    vcpus: Vec<VcpuId>,
}

/// The task that resets the controller; see [`Supervisor::run`].
#[derive(Debug)]
pub struct Supervisor {
    shared: Arc<Shared>,
    places: Vec<RingPlace>,
    admin: Admin,
}

/// Starts a controller, on the vCPU that its admin vector shall be bound to, with I/O
/// queues for `places` (the vCPU, and the node its memory shall be on), fewer if the
/// controller has fewer. [`Supervisor::run`] must then be spawned on the same vCPU.
pub async fn start(
    function: &dyn PciFunction,
    admin_vcpu: VcpuId,
    places: &[(VcpuId, Node)],
    dma: &dyn DmaAllocator,
    timer: Rc<dyn Timer>,
) -> Result<(Arc<Nvme>, Supervisor), StartError> {
    let regs = function.bar(0)?;
    if regs.len() < 2 * regs::DOORBELLS {
        return Err(StartError::Bar(regs.len()));
    }
    let capabilities = Capabilities::read(&regs);
    if capabilities.min_page_shift > 12 {
        return Err(StartError::PageShift(capabilities.min_page_shift));
    }
    let vectors = function.vectors();
    if vectors < 2 {
        return Err(StartError::Vectors(vectors));
    }
    // MSI-X goes on here, before CC.EN.
    let interrupt = function.vector(0, admin_vcpu)?;

    let stride = capabilities.stride;
    let ring = |qid, entries, node| Ring::new(regs, stride, qid, entries, dma, node);
    let home = function.node();
    let ring0 = ring(0, admin::ENTRIES, home).ok_or(StartError::NoMemory)?;
    let page = dma.alloc(1, home).ok_or(StartError::NoMemory)?;
    let mut admin = Admin::new(
        regs,
        capabilities.ready_timeout_ns,
        ring0,
        page,
        interrupt,
        timer,
    );
    // Firmware may have left it running.
    admin.disable().await?;
    admin.enable().await?;

    let controller = identify::Controller::parse(&*admin.identify(1, 0).await?);
    let namespace =
        identify::first_namespace(&*admin.identify(2, 0).await?).ok_or(StartError::NoNamespace)?;
    let data = admin.identify(0, namespace).await?;
    let format = identify::Namespace::parse(&data).map_err(StartError::Namespace)?;
    let info = BlockInfo {
        blocks: format.blocks,
        block_size: format.block_size,
        max_transfer: controller.max_transfer.map_or(MAX_TRANSFER, |limit| {
            u32::try_from(limit).map_or(MAX_TRANSFER, |limit| limit.min(MAX_TRANSFER))
        }),
        volatile_write_cache: controller.volatile_write_cache,
        discard: controller.discard,
        model: controller.model,
        serial: controller.serial,
    };

    let room = (regs.len() - regs::DOORBELLS) / (2 * stride) - 1;
    let wanted = places.len().min(usize::from(vectors) - 1).min(room).max(1);
    let count = admin
        .queues(u16::try_from(wanted).unwrap_or(u16::MAX))
        .await?;
    let entries =
        u16::try_from(capabilities.max_entries).map_or(QUEUE_DEPTH, |max| max.min(QUEUE_DEPTH));
    let mut seeds = Vec::new();
    let mut rings = Vec::new();
    let mut vcpus = Vec::new();
    for (qid, (vcpu, node)) in (1..=count).zip(places) {
        let ring = ring(qid, entries, *node).ok_or(StartError::NoMemory)?;
        let (submissions, completions) = ring.addresses();
        let place = RingPlace {
            qid,
            entries,
            vector: qid,
            submissions,
            completions,
        };
        admin.create(&place).await?;
        // One entry of the queue stays empty, so that full and empty differ.
        let lists: Option<Vec<_>> = (1..entries).map(|_| dma.alloc(1, *node)).collect();
        seeds.push(Some(Seed {
            ring,
            lists: lists.ok_or(StartError::NoMemory)?,
        }));
        rings.push(place);
        vcpus.push(*vcpu);
    }
    log::info!(
        "nvme: {} ({}), {} MiB in blocks of {}, {} queues of {entries}, transfers up to {} KiB",
        info.model,
        info.serial,
        info.bytes() >> 20,
        info.block_size,
        rings.len(),
        info.max_transfer >> 10
    );
    let shared = Arc::new(Shared {
        regs,
        info,
        namespace,
        life: AtomicU64::new(0),
        acknowledged: AtomicU32::new(0),
        resets: AtomicU32::new(0),
        wakers: Mutex::new((0..=rings.len()).map(|_| None).collect()),
        seeds: Mutex::new(seeds),
    });
    let supervisor = Supervisor {
        shared: shared.clone(),
        places: rings.clone(),
        admin,
    };
    let nvme = Nvme {
        shared,
        places: rings,
        vcpus,
    };
    Ok((Arc::new(nvme), supervisor))
}

impl BlockDevice for Nvme {
    fn info(&self) -> &BlockInfo {
        &self.shared.info
    }

    fn queues(&self) -> usize {
        self.places.len()
    }

    fn queue_vector(&self, queue: usize) -> u16 {
        self.places[queue].vector
    }

    fn queue_vcpu(&self, queue: usize) -> VcpuId {
        self.vcpus[queue]
    }

    fn take_queue(
        &self,
        queue: usize,
        interrupt: Box<dyn Interrupt>,
        timer: Rc<dyn Timer>,
    ) -> Option<Rc<dyn BlockQueue>> {
        // Under the lock, as the supervisor is when it changes the epoch.
        let mut seeds = self.shared.seeds.lock();
        let seed = seeds.get_mut(queue)?.take()?;
        Some(Rc::new(NvmeQueue::new(
            self.shared.clone(),
            queue,
            seed,
            interrupt,
            timer,
        )))
    }
}

impl Nvme {
    /// Tells the disk that power will go: it empties its caches. After the last use of
    /// all queues; `timer` is the calling vCPU's.
    pub async fn shutdown(&self, timer: &dyn Timer) -> Result<(), AdminError> {
        let regs = &self.shared.regs;
        regs.write32(regs::CC, regs.read32(regs::CC) | regs::CC_SHUTDOWN);
        wait_status(
            regs,
            timer,
            regs::CSTS_SHUTDOWN,
            regs::CSTS_SHUTDOWN_DONE,
            SHUTDOWN_TIMEOUT_NS,
        )
        .await
    }
}

impl Supervisor {
    /// Waits for a queue to report the controller as broken, and resets it. Returns when
    /// it is given up.
    pub async fn run(mut self) {
        loop {
            self.wait_for_trouble().await;
            let resets = self.shared.resets.fetch_add(1, Ordering::Relaxed) + 1;
            log::error!("nvme: resetting the controller, attempt {resets}");
            let result = if resets > MAX_RESETS {
                log::error!("nvme: nothing completed between {MAX_RESETS} resets");
                Err(AdminError::NotReady)
            } else {
                self.reset().await
            };
            if let Err(error) = result {
                log::error!("nvme: disk given up: {error}");
                let Life { epoch, .. } = self.shared.life();
                self.shared.set(Life {
                    state: State::Dead,
                    epoch,
                });
                return;
            }
            log::warn!("nvme: the controller is back");
        }
    }

    async fn wait_for_trouble(&self) {
        poll_fn(|cx| {
            self.shared.register(self.places.len(), cx.waker());
            match self.shared.life().state {
                State::Running => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    async fn reset(&mut self) -> Result<(), AdminError> {
        self.admin.disable().await?;
        let epoch = self.shared.life().epoch.wrapping_add(1);
        let expected = {
            let mut seeds = self.shared.seeds.lock();
            self.shared.acknowledged.store(0, Ordering::Release);
            self.shared.life.store(
                Life {
                    state: State::Stopped,
                    epoch,
                }
                .pack(),
                Ordering::Release,
            );
            // Queues that nobody took have nobody to reset them.
            for seed in seeds.iter_mut().flatten() {
                seed.ring.reset();
            }
            seeds.iter().filter(|seed| seed.is_none()).count()
        };
        self.shared.wake_all();
        let timer = self.admin.timer().clone();
        let deadline = timer.now_ns().saturating_add(QUIESCE_TIMEOUT_NS);
        while (self.shared.acknowledged.load(Ordering::Acquire) as usize) < expected {
            if timer.now_ns() >= deadline {
                log::error!("nvme: a queue's task does not run");
                return Err(AdminError::NotReady);
            }
            timer::sleep(timer.as_ref(), 1_000_000).await;
        }
        self.admin.enable().await?;
        let count = u16::try_from(self.places.len()).unwrap_or(u16::MAX);
        if self.admin.queues(count).await? < count {
            log::error!("nvme: fewer queues than before");
            return Err(AdminError::NotReady);
        }
        for place in &self.places {
            self.admin.create(place).await?;
        }
        self.shared.set(Life {
            state: State::Running,
            epoch,
        });
        Ok(())
    }
}
