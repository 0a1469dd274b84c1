//! PCI through Xen: configuration space by ECAM, BARs, MSI-X vectors as event channels.
//!
//! The order is the one proven to work: command register, `pci_device_add`,
//! `prepare_msix` (before any BAR is mapped: it makes the table's pages read-only
//! for mappings made from then on), BARs, `map_pirq` and `bind_pirq`, MSI-X Enable, and
//! only then the device itself.
#![expect(unsafe_code, reason = "maps and touches configuration space and BARs")]

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::arch::asm;
use core::cell::{Cell, RefCell};
use core::ptr::NonNull;

use driver_acpi::EcamRange;
use driver_pci::{Address, ConfigSpace, Function, Msix};
use hal::pci::PciError;
use hal::{Interrupt, Mmio, Node, PciFunction, VcpuId};
use xen_abi::physdev;

use crate::arch::hypercall::system as hypercall;
use crate::event::Port;
use crate::mem;

/// Bytes of configuration space of one bus: 32 devices x 8 functions x 4 KiB.
const BUS_BYTES: usize = 1 << 20;
/// The most of a BAR that is mapped: more than the register files we drive have.
const MAX_BAR: u64 = 1 << 20;

/// Configuration space, one bus mapped at a time as it is first looked at.
///
/// Xen maps ECAM read-only whatever is asked; a write faults into Xen, which emulates
/// plain aligned stores of at most 4 bytes and nothing else.
pub struct Ecam {
    ranges: Vec<EcamRange>,
    buses: RefCell<BTreeMap<(u16, u8), NonNull<u8>>>,
}

impl Ecam {
    /// The windows that the MCFG table names.
    pub fn new(ranges: Vec<EcamRange>) -> Self {
        Self {
            ranges,
            buses: RefCell::new(BTreeMap::new()),
        }
    }

    /// Every function on every bus.
    pub fn functions(&self) -> Vec<Function> {
        self.ranges
            .iter()
            .flat_map(|r| driver_pci::enumerate(self, r.segment, r.first_bus, r.last_bus))
            .collect()
    }

    fn register(&self, at: Address, offset: u16) -> Option<NonNull<u8>> {
        let mut buses = self.buses.borrow_mut();
        let bus = match buses.get(&(at.segment, at.bus)) {
            Some(bus) => *bus,
            None => {
                let range = self.ranges.iter().find(|r| {
                    r.segment == at.segment && (r.first_bus..=r.last_bus).contains(&at.bus)
                })?;
                let phys = range.base + u64::from(at.bus) * BUS_BYTES as u64;
                let mapped = mem::map_mmio(phys, BUS_BYTES).ok()?;
                buses.insert((at.segment, at.bus), mapped);
                mapped
            }
        };
        let within = usize::from(at.devfn) << 12 | usize::from(offset & 0xfff);
        // SAFETY: `within` is below `BUS_BYTES`, all of which `map_mmio` mapped for good.
        Some(unsafe { bus.add(within) })
    }
}

impl ConfigSpace for Ecam {
    fn read32(&self, at: Address, offset: u16) -> u32 {
        let Some(register) = self.register(at, offset & !3) else {
            return u32::MAX;
        };
        // SAFETY: a mapped, 4-aligned configuration register; reading one has no effect on
        // memory.
        unsafe { register.cast::<u32>().read_volatile() }
    }

    fn write16(&self, at: Address, offset: u16, value: u16) {
        let Some(register) = self.register(at, offset & !1) else {
            return;
        };
        // SAFETY: a mapped, 2-aligned configuration register. One plain `mov`, which is all
        // that Xen emulates: a compiler could merge a volatile store with the load before.
        unsafe {
            asm!("mov word ptr [{at}], {value:x}", at = in(reg) register.as_ptr(),
                 value = in(reg) value, options(nostack, preserves_flags));
        }
    }

    fn write32(&self, at: Address, offset: u16, value: u32) {
        let Some(register) = self.register(at, offset & !3) else {
            return;
        };
        // SAFETY: as for `write16`, 4-aligned.
        unsafe {
            asm!("mov dword ptr [{at}], {value:e}", at = in(reg) register.as_ptr(),
                 value = in(reg) value, options(nostack, preserves_flags));
        }
    }
}

/// One function, made ready for its driver. Dropping it ends its DMA: a driver that failed
/// may have left commands with it, or never have come to stop what the firmware started.
pub struct XenPciFunction {
    ecam: Rc<Ecam>,
    /// Bytes of each memory BAR. What lies beyond may be another device's, and mapping that
    /// writable would keep Xen from protecting its MSI-X table.
    bar_sizes: [Option<u64>; 6],
    function: Function,
    node: Node,
    msix: Option<Msix>,
    msix_on: Cell<bool>,
}

impl XenPciFunction {
    /// Tells Xen of the function, turns on decoding and bus mastering, and has Xen
    /// protect the MSI-X table.
    pub fn claim(ecam: Rc<Ecam>, function: Function, node: Node) -> Result<Self, PciError> {
        let at = function.address;
        let bar_sizes = core::array::from_fn(|i| {
            driver_pci::memory_bar_size(&*ecam, at, u8::try_from(i).unwrap_or(u8::MAX))
        });
        let claimed = Self {
            bar_sizes,
            function,
            node,
            msix: driver_pci::msix(&*ecam, at),
            msix_on: Cell::new(false),
            ecam,
        };
        // From here on it may do DMA; where Xen refuses it, dropping `claimed` ends that.
        driver_pci::enable(&*claimed.ecam, at);
        let mut add = physdev::PciDeviceAdd {
            seg: at.segment,
            bus: at.bus,
            devfn: at.devfn,
            ..Default::default()
        };
        // SAFETY: the command's own structure; it names no memory of ours.
        unsafe { hypercall::physdev_op(physdev::PHYSDEVOP_PCI_DEVICE_ADD, &mut add) }
            .map_err(xen)?;
        if claimed.msix.is_some() {
            let mut device = physdev::PciDevice {
                seg: at.segment,
                bus: at.bus,
                devfn: at.devfn,
            };
            // SAFETY: the command's own structure; it names no memory of ours.
            unsafe { hypercall::physdev_op(physdev::PHYSDEVOP_PREPARE_MSIX, &mut device) }
                .map_err(xen)?;
        }
        Ok(claimed)
    }

    /// What it is and where.
    pub fn function(&self) -> Function {
        self.function
    }

    /// As [`PciFunction::vector`], as a port, which can be sent to its vCPU. MSI-X needs no
    /// end of interrupt: the port is the whole of it.
    pub fn bind_vector(&self, index: u16, vcpu: VcpuId) -> Result<Port, PciError> {
        let msix = self
            .msix
            .filter(|m| index < m.vectors)
            .ok_or(PciError::Vector(index))?;
        let at = self.function.address;
        let table_base = driver_pci::memory_bar(&*self.ecam, at, msix.table_bar)
            .ok_or(PciError::Bar(msix.table_bar))?;
        let mut map = physdev::MapPirq {
            domid: xen_abi::DomId::SELF.0,
            ty: physdev::MAP_PIRQ_TYPE_MSI_SEG,
            index: -1,
            pirq: -1,
            bus: i32::from(at.segment) << 16 | i32::from(at.bus),
            devfn: i32::from(at.devfn),
            entry_nr: i32::from(index),
            table_base,
            ..Default::default()
        };
        // SAFETY: the command's own structure; it names no memory of ours.
        unsafe { hypercall::physdev_op(physdev::PHYSDEVOP_MAP_PIRQ, &mut map) }.map_err(xen)?;
        let port = Port::bind_pirq(map.pirq.cast_unsigned(), vcpu).map_err(xen)?;
        if !self.msix_on.replace(true) {
            driver_pci::enable_msix(&*self.ecam, at, msix);
        }
        Ok(port)
    }

    /// Ends its DMA, before the host is turned off.
    pub fn quiesce(&self) {
        driver_pci::quiesce(&*self.ecam, self.function.address);
    }
}

impl Drop for XenPciFunction {
    fn drop(&mut self) {
        self.quiesce();
    }
}

fn xen(errno: xen_abi::errno::Errno) -> PciError {
    PciError::Xen(errno.0)
}

impl PciFunction for XenPciFunction {
    fn id(&self) -> (u16, u16) {
        (self.function.vendor, self.function.device)
    }

    fn node(&self) -> Node {
        self.node
    }

    fn bar(&self, index: u8) -> Result<Mmio, PciError> {
        let phys = driver_pci::memory_bar(&*self.ecam, self.function.address, index)
            .ok_or(PciError::Bar(index))?;
        let size = self.bar_sizes.get(usize::from(index)).copied().flatten();
        let len = size
            .and_then(|s| usize::try_from(s.min(MAX_BAR)).ok())
            .ok_or(PciError::Bar(index))?;
        let base = mem::map_mmio(phys, len).map_err(|_| PciError::Bar(index))?;
        // SAFETY: `map_mmio` maps device memory uncached and never unmaps it.
        Ok(unsafe { Mmio::new(base, len) })
    }

    fn vectors(&self) -> u16 {
        self.msix.map_or(0, |m| m.vectors)
    }

    fn vector(&self, index: u16, vcpu: VcpuId) -> Result<Box<dyn Interrupt>, PciError> {
        Ok(Box::new(self.bind_vector(index, vcpu)?))
    }
}
