use super::*;
use core::cell::RefCell;
extern crate std;
use std::collections::BTreeMap;

/// A bus made of literal registers.
#[derive(Default)]
struct Bus(
    RefCell<BTreeMap<(Address, u16), u32>>,
    RefCell<BTreeMap<u16, u32>>,
);

impl Bus {
    fn set(&self, at: Address, offset: u16, value: u32) {
        self.0.borrow_mut().insert((at, offset), value);
    }
}

impl ConfigSpace for Bus {
    fn read32(&self, at: Address, offset: u16) -> u32 {
        assert_eq!(offset % 4, 0);
        let map = self.0.borrow();
        match map.get(&(at, offset)) {
            Some(value) => *value,
            None if map.contains_key(&(at, 0)) => 0,
            None => u32::MAX,
        }
    }

    fn write16(&self, at: Address, offset: u16, value: u16) {
        let shift = 8 * u32::from(offset & 2);
        let old = self.read32(at, offset & !3);
        self.set(
            at,
            offset & !3,
            old & !(0xffff << shift) | u32::from(value) << shift,
        );
    }

    /// Bits of a BAR that have a mask take part of what is written; others take it all.
    fn write32(&self, at: Address, offset: u16, value: u32) {
        assert_eq!(
            self.read32(at, 4) & 2,
            0,
            "BARs are probed with decoding off"
        );
        let mask = self.1.borrow().get(&offset).copied().unwrap_or(u32::MAX);
        let old = self.read32(at, offset);
        self.set(at, offset, old & !mask | value & mask);
    }
}

const fn at(bus: u8, slot: u8, function: u8) -> Address {
    Address {
        segment: 0,
        bus,
        devfn: slot << 3 | function,
    }
}

#[test]
fn functions_behind_a_bridge_and_of_multi_function_devices_are_found() {
    let bus = Bus::default();
    bus.set(at(0, 0, 0), 0, 0x29c0_8086);
    bus.set(at(0, 3, 0), 0, 0x000c_1b36); // a bridge to bus 2
    bus.set(at(0, 3, 0), 0x0c, 0x0001_0000);
    bus.set(at(0, 3, 0), 0x18, 0x0002_0200);
    bus.set(at(2, 0, 0), 0, 0x0010_1b36);
    bus.set(at(2, 0, 0), 8, 0x0108_0202);
    bus.set(at(0, 31, 0), 0, 0x2918_8086); // multi-function, with a hole at 1
    bus.set(at(0, 31, 0), 0x0c, 0x0080_0000);
    bus.set(at(0, 31, 2), 0, 0x2922_8086);
    let found = enumerate(&bus, 0, 0, 255);
    let ids: Vec<_> = found
        .iter()
        .map(|f| (f.address.bus, f.address.devfn, f.device))
        .collect();
    assert_eq!(
        ids,
        [
            (0, 0, 0x29c0),
            (0, 24, 0x000c),
            (0, 248, 0x2918),
            (0, 250, 0x2922),
            (2, 0, 0x0010)
        ]
    );
    assert_eq!(found[4].class, 0x01_0802);
}

#[test]
fn a_bridge_loop_ends() {
    let bus = Bus::default();
    for b in [0, 1] {
        bus.set(at(b, 0, 0), 0, 0x000c_1b36);
        bus.set(at(b, 0, 0), 0x0c, 0x0001_0000);
        bus.set(at(b, 0, 0), 0x18, 0x0001_0100); // both lead to bus 1
    }
    assert_eq!(enumerate(&bus, 0, 0, 255).len(), 2);
}

#[test]
fn sixty_four_bit_bars_take_both_halves_and_port_bars_are_refused() {
    let bus = Bus::default();
    let f = at(0, 5, 0);
    bus.set(f, 0, 0x0010_1b36);
    bus.set(f, 0x10, 0x0000_4004);
    bus.set(f, 0x14, 0xc0);
    bus.set(f, 0x18, 0xc001);
    bus.set(f, 0x1c, 0xfeb0_0000);
    assert_eq!(memory_bar(&bus, f, 0), Some(0xc0_0000_4000));
    assert_eq!(memory_bar(&bus, f, 2), None);
    assert_eq!(memory_bar(&bus, f, 3), Some(0xfeb0_0000));
    assert_eq!(memory_bar(&bus, f, 4), None);
    assert_eq!(memory_bar(&bus, f, 6), None);
}

#[test]
fn msix_is_found_behind_other_capabilities_and_enabled_by_its_control_word() {
    let bus = Bus::default();
    let f = at(0, 5, 0);
    bus.set(f, 0, 0x0010_1b36);
    bus.set(f, 0x34, 0x40);
    bus.set(f, 0x40, 0x0003_8001); // power management, next 0x80
    bus.set(f, 0x80, 0x4040_0011); // MSI-X, 65 vectors, function mask set
    bus.set(f, 0x84, 0x0000_2003);
    let cap = msix(&bus, f).unwrap();
    assert_eq!(
        cap,
        Msix {
            offset: 0x80,
            vectors: 65,
            table_bar: 3
        }
    );
    enable_msix(&bus, f, cap);
    assert_eq!(bus.read32(f, 0x80), 0x8040_0011);
    bus.set(f, 0x80, 0x4040_4005); // a list that points at itself
    bus.set(f, 0x40, 0x0003_4001);
    assert_eq!(msix(&bus, f), None);
}

#[test]
fn bar_sizes_are_probed_and_everything_is_put_right_again() {
    let bus = Bus::default();
    let f = at(0, 5, 0);
    bus.set(f, 0, 0x0010_1b36);
    bus.set(f, 4, 0x0010_0103 | 2);
    bus.set(f, 0x10, 0x0000_4004); // 64 bit, 16 KiB at 0xc0_0000_4000
    bus.set(f, 0x14, 0xc0);
    bus.set(f, 0x18, 0xfeb0_0000); // 32 bit, 1 MiB
    bus.1
        .borrow_mut()
        .extend([(0x10, 0xffff_c000), (0x18, 0xfff0_0000)]);
    let before = bus.0.borrow().clone();
    assert_eq!(memory_bar_size(&bus, f, 0), Some(0x4000));
    assert_eq!(memory_bar_size(&bus, f, 2), Some(0x10_0000));
    assert_eq!(memory_bar_size(&bus, f, 3), None);
    assert_eq!(*bus.0.borrow(), before);
}
