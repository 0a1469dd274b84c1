//! The admin queue: one command at a time.

use crate::identify;
use crate::ring::Ring;
use crate::wire::{Completion, Submission, opcode};
use crate::{ADMIN_TIMEOUT_NS, regs};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::fmt;
use core::future::poll_fn;
use core::mem::ManuallyDrop;
use core::task::Poll;
use hal::{DmaBuffer, Interrupt, Mmio, Timer, timer};
use zerocopy::FromZeros;

/// Entries of the admin queues.
pub const ENTRIES: u16 = 16;

/// Why an admin command, or the controller as a whole, failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// CSTS.RDY did not follow CC.EN in the time that CAP gives.
    NotReady,
    /// CSTS.CFS, or all registers read as ones: the controller has failed or is gone.
    Fatal(u32),
    /// No completion for the command with this opcode.
    Timeout(u8),
    /// The command with this opcode failed with this status.
    Status(u8, u16),
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => f.write_str("controller does not become ready"),
            Self::Fatal(csts) => write!(f, "controller has failed, CSTS {csts:#x}"),
            Self::Timeout(op) => write!(f, "no answer to admin command {op:#x}"),
            Self::Status(op, status) => {
                write!(f, "admin command {op:#x} failed with status {status:#x}")
            }
        }
    }
}

pub struct Admin {
    regs: Mmio,
    ready_timeout_ns: u64,
    ring: Ring,
    /// A page for data that admin commands give. Never given back, as the rings: a command
    /// that was given up may still be answered.
    page: ManuallyDrop<DmaBuffer>,
    interrupt: Box<dyn Interrupt>,
    timer: Rc<dyn Timer>,
    next_id: u16,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

impl Admin {
    pub fn new(
        regs: Mmio,
        ready_timeout_ns: u64,
        ring: Ring,
        page: DmaBuffer,
        interrupt: Box<dyn Interrupt>,
        timer: Rc<dyn Timer>,
    ) -> Self {
        Self {
            regs,
            ready_timeout_ns,
            ring,
            page: ManuallyDrop::new(page),
            interrupt,
            timer,
            next_id: 0,
        }
    }

    /// The clock that deadlines go by.
    pub fn timer(&self) -> &Rc<dyn Timer> {
        &self.timer
    }

    /// Stops the controller. After `Ok` it touches no memory any more.
    pub async fn disable(&mut self) -> Result<(), AdminError> {
        self.regs.write32(regs::CC, 0);
        self.wait(regs::CSTS_READY, 0).await
    }

    /// Starts the controller with an empty admin queue. It must be stopped, and MSI-X on.
    pub async fn enable(&mut self) -> Result<(), AdminError> {
        self.ring.reset();
        let (sq, cq) = self.ring.addresses();
        let last = u32::from(self.ring.entries() - 1);
        self.regs.write32(regs::AQA, last << 16 | last);
        regs::write_pair(&self.regs, regs::ASQ, sq);
        regs::write_pair(&self.regs, regs::ACQ, cq);
        self.regs.write32(regs::CC, regs::CC_ENABLE);
        self.wait(regs::CSTS_READY, regs::CSTS_READY).await
    }

    async fn wait(&self, mask: u32, value: u32) -> Result<(), AdminError> {
        wait_status(
            &self.regs,
            self.timer.as_ref(),
            mask,
            value,
            self.ready_timeout_ns,
        )
        .await
    }

    /// Runs one command to its end.
    pub async fn run(&mut self, mut command: Submission) -> Result<Completion, AdminError> {
        // Ids change, so that a late or second completion is not taken for the next command's.
        self.next_id = self.next_id.wrapping_add(1);
        command.command_id = self.next_id;
        self.ring.push(&command);
        self.ring.tell();
        let deadline = self.timer.now_ns().saturating_add(ADMIN_TIMEOUT_NS);
        let completion = poll_fn(|cx| {
            loop {
                while let Some(entry) = self.ring.pop() {
                    self.ring.give_back();
                    if entry.command_id == command.command_id {
                        return Poll::Ready(Some(entry));
                    }
                    log::warn!("nvme: stray admin completion {:#x}", entry.command_id);
                }
                if self.interrupt.poll_interrupt(cx).is_pending() {
                    break;
                }
            }
            self.timer.poll_deadline(deadline, cx).map(|()| None)
        })
        .await
        .ok_or(AdminError::Timeout(command.opcode))?;
        match completion.status().0 {
            0 => Ok(completion),
            status => Err(AdminError::Status(command.opcode, status)),
        }
    }

    /// Identify with this CNS; the 4096 bytes that the controller gave.
    pub async fn identify(
        &mut self,
        cns: u32,
        namespace: u32,
    ) -> Result<Box<[u8; identify::LEN]>, AdminError> {
        self.page.write_bytes(0, &[0; identify::LEN]);
        let command = Submission {
            opcode: opcode::IDENTIFY,
            namespace,
            prp1: self.page.bus_addr(),
            cdw: [cns, 0, 0, 0, 0, 0],
            ..Submission::new_zeroed()
        };
        self.run(command).await?;
        let mut data = Box::new([0; identify::LEN]);
        self.page.read_bytes(0, &mut data[..]);
        Ok(data)
    }

    /// Asks for `count` I/O queue pairs (at least 1); how many there are to be had.
    pub async fn queues(&mut self, count: u16) -> Result<u16, AdminError> {
        let wanted = u32::from(count - 1);
        let command = Submission {
            opcode: opcode::SET_FEATURES,
            // Feature 7, "number of queues", zero-based.
            cdw: [7, wanted << 16 | wanted, 0, 0, 0, 0],
            ..Submission::new_zeroed()
        };
        let given = self.run(command).await?.result;
        let pairs = (given & 0xffff).min(given >> 16) + 1;
        Ok(u16::try_from(pairs).map_or(count, |pairs| pairs.min(count)))
    }

    /// Creates both queues of a pair, whose completions raise `vector`.
    pub async fn create(&mut self, ring: &RingPlace) -> Result<(), AdminError> {
        let size = u32::from(ring.entries - 1) << 16 | u32::from(ring.qid);
        let command = Submission {
            opcode: opcode::CREATE_CQ,
            prp1: ring.completions,
            // Interrupts enabled, physically contiguous.
            cdw: [size, u32::from(ring.vector) << 16 | 3, 0, 0, 0, 0],
            ..Submission::new_zeroed()
        };
        self.run(command).await?;
        let command = Submission {
            opcode: opcode::CREATE_SQ,
            prp1: ring.submissions,
            // Completions go to the queue of the same number; physically contiguous.
            cdw: [size, u32::from(ring.qid) << 16 | 1, 0, 0, 0, 0],
            ..Submission::new_zeroed()
        };
        self.run(command).await?;
        Ok(())
    }
}

/// What the controller is told of a queue pair.
#[derive(Clone, Copy, Debug)]
pub struct RingPlace {
    pub qid: u16,
    pub entries: u16,
    pub vector: u16,
    pub submissions: u64,
    pub completions: u64,
}

/// Waits until CSTS has `value` under `mask`, looking once a millisecond.
pub async fn wait_status(
    regs: &Mmio,
    timer: &dyn Timer,
    mask: u32,
    value: u32,
    limit_ns: u64,
) -> Result<(), AdminError> {
    let deadline = timer.now_ns().saturating_add(limit_ns);
    loop {
        let status = regs.read32(regs::CSTS);
        // All ones: nobody answers on the bus. Stopping a failed controller is how it is
        // cured, so CFS counts only when it shall come up.
        if status == u32::MAX || (status & regs::CSTS_FATAL != 0 && value != 0) {
            return Err(AdminError::Fatal(status));
        }
        if status & mask == value {
            return Ok(());
        }
        if timer.now_ns() >= deadline {
            return Err(AdminError::NotReady);
        }
        timer::sleep(timer, 1_000_000).await;
    }
}
