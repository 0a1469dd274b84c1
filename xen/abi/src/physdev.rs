//! `physdev.h`: physical devices.

use crate::abi_check;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `PHYSDEVOP_irq_status_query`.
pub const PHYSDEVOP_IRQ_STATUS_QUERY: u32 = 5;
/// `PHYSDEVOP_set_iopl`.
pub const PHYSDEVOP_SET_IOPL: u32 = 6;
/// `PHYSDEVOP_eoi`.
pub const PHYSDEVOP_EOI: u32 = 12;
/// `PHYSDEVOP_map_pirq`.
pub const PHYSDEVOP_MAP_PIRQ: u32 = 13;
/// `PHYSDEVOP_unmap_pirq`.
pub const PHYSDEVOP_UNMAP_PIRQ: u32 = 14;
/// `PHYSDEVOP_pci_mmcfg_reserved`.
pub const PHYSDEVOP_PCI_MMCFG_RESERVED: u32 = 24;
/// `PHYSDEVOP_pci_device_add`.
pub const PHYSDEVOP_PCI_DEVICE_ADD: u32 = 25;
/// `PHYSDEVOP_pci_device_remove`.
pub const PHYSDEVOP_PCI_DEVICE_REMOVE: u32 = 26;
/// `PHYSDEVOP_restore_msi_ext`.
pub const PHYSDEVOP_RESTORE_MSI_EXT: u32 = 27;
/// `PHYSDEVOP_pirq_eoi_gmfn_v2`.
pub const PHYSDEVOP_PIRQ_EOI_GMFN_V2: u32 = 28;
/// `PHYSDEVOP_prepare_msix`.
pub const PHYSDEVOP_PREPARE_MSIX: u32 = 30;
/// `PHYSDEVOP_release_msix`.
pub const PHYSDEVOP_RELEASE_MSIX: u32 = 31;
/// `MAP_PIRQ_TYPE_MSI_SEG`.
pub const MAP_PIRQ_TYPE_MSI_SEG: i32 = 3;

/// `struct physdev_set_iopl`: the I/O privilege level of the calling vCPU.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SetIopl {
    /// 0 to 3.
    pub iopl: u32,
}

/// `struct physdev_pci_device_add`: a PCI function that Xen shall know.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PciDeviceAdd {
    /// Segment.
    pub seg: u16,
    /// Bus.
    pub bus: u8,
    /// Device and function.
    pub devfn: u8,
    /// `XEN_PCI_DEV_*`.
    pub flags: u32,
    /// For a virtual function.
    pub physfn_bus: u8,
    /// For a virtual function.
    pub physfn_devfn: u8,
    /// Unused.
    pub pad: u16,
}

/// `struct physdev_pci_device`: a PCI function.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PciDevice {
    /// Segment.
    pub seg: u16,
    /// Bus.
    pub bus: u8,
    /// Device and function.
    pub devfn: u8,
}

/// `struct physdev_map_pirq`: an interrupt of a device.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MapPirq {
    /// Who gets it.
    pub domid: u16,
    /// Unused.
    pub pad0: u16,
    /// `MAP_PIRQ_TYPE_*`.
    pub ty: i32,
    /// -1 for MSI.
    pub index: i32,
    /// -1: choose; out.
    pub pirq: i32,
    /// Segment << 16 | bus.
    pub bus: i32,
    /// Device and function.
    pub devfn: i32,
    /// MSI-X entry.
    pub entry_nr: i32,
    /// Unused.
    pub pad1: u32,
    /// Address of the BAR with the MSI-X table.
    pub table_base: u64,
}

/// `struct physdev_unmap_pirq`: the end of a mapped interrupt.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct UnmapPirq {
    /// Whose.
    pub domid: u16,
    /// Unused.
    pub pad: u16,
    /// Which.
    pub pirq: i32,
}

/// `struct physdev_pirq_eoi_gmfn`: the page that says which interrupts need an EOI.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PirqEoiGmfn {
    /// Its frame.
    pub gmfn: u64,
}

const _: () = assert!(size_of::<SetIopl>() == 4);
const _: () = assert!(size_of::<PciDeviceAdd>() == 12);
const _: () = assert!(size_of::<PciDevice>() == 4);
const _: () = assert!(size_of::<MapPirq>() == 40);
const _: () = assert!(size_of::<UnmapPirq>() == 8);
const _: () = assert!(size_of::<PirqEoiGmfn>() == 8);

abi_check! {
    header "physdev.h";
    struct "struct physdev_set_iopl" = SetIopl { "iopl" => iopl };
    struct "struct physdev_pci_device_add" = PciDeviceAdd { "seg" => seg, "bus" => bus, "devfn" => devfn, "flags" => flags, "physfn.bus" => physfn_bus, "physfn.devfn" => physfn_devfn };
    struct "struct physdev_pci_device" = PciDevice { "seg" => seg, "bus" => bus, "devfn" => devfn };
    struct "struct physdev_map_pirq" = MapPirq { "domid" => domid, "type" => ty, "index" => index, "pirq" => pirq, "bus" => bus, "devfn" => devfn, "entry_nr" => entry_nr, "table_base" => table_base };
    struct "struct physdev_unmap_pirq" = UnmapPirq { "domid" => domid, "pirq" => pirq };
    struct "struct physdev_pirq_eoi_gmfn" = PirqEoiGmfn { "gmfn" => gmfn };
    const "PHYSDEVOP_irq_status_query" = PHYSDEVOP_IRQ_STATUS_QUERY;
    const "PHYSDEVOP_set_iopl" = PHYSDEVOP_SET_IOPL;
    const "PHYSDEVOP_eoi" = PHYSDEVOP_EOI;
    const "PHYSDEVOP_map_pirq" = PHYSDEVOP_MAP_PIRQ;
    const "PHYSDEVOP_unmap_pirq" = PHYSDEVOP_UNMAP_PIRQ;
    const "PHYSDEVOP_pci_mmcfg_reserved" = PHYSDEVOP_PCI_MMCFG_RESERVED;
    const "PHYSDEVOP_pci_device_add" = PHYSDEVOP_PCI_DEVICE_ADD;
    const "PHYSDEVOP_pci_device_remove" = PHYSDEVOP_PCI_DEVICE_REMOVE;
    const "PHYSDEVOP_restore_msi_ext" = PHYSDEVOP_RESTORE_MSI_EXT;
    const "PHYSDEVOP_pirq_eoi_gmfn_v2" = PHYSDEVOP_PIRQ_EOI_GMFN_V2;
    const "PHYSDEVOP_prepare_msix" = PHYSDEVOP_PREPARE_MSIX;
    const "PHYSDEVOP_release_msix" = PHYSDEVOP_RELEASE_MSIX;
    const "MAP_PIRQ_TYPE_MSI_SEG" = MAP_PIRQ_TYPE_MSI_SEG;
}
