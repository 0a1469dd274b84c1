//! The ACPI tables of a PVH guest, as stock Xen gives them: processors, and fixed
//! hardware that says what there is not.
//!
//! ACPI specification 5.0; contents after tools/libacpi of Xen for a guest without a
//! device model. A kernel learns the number of its processors from the MADT alone.

use alloc::vec;
use alloc::vec::Vec;

/// Bytes of the RSDP structure, revision 2.
pub(super) const RSDP_LEN: usize = 36;

/// Tables that are to lie at the address they were made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tables {
    /// Everything but the RSDP.
    pub(super) bytes: Vec<u8>,
    /// The root, which may lie elsewhere.
    pub(super) rsdp: [u8; RSDP_LEN],
}

/// APIC id of a vCPU, as Xen's virtual APIC has it.
pub(super) fn apic_id(vcpu: u8) -> u8 {
    vcpu * 2
}

/// Makes the tables for `max_vcpus` processors (at most 127), the first `online` of
/// them present, to lie at `base` (page-aligned, below 4 GiB).
pub(super) fn tables(base: u32, max_vcpus: u8, online: u8) -> Tables {
    let mut image = Image {
        base,
        bytes: Vec::new(),
    };
    let facs = image.add(&facs(), 64);
    let dsdt = image.add(&dsdt(max_vcpus), 16);
    let fadt = image.add(&fadt(facs, dsdt), 16);
    let madt = image.add(&madt(max_vcpus, online), 16);
    let mut entries = Vec::new();
    for table in [fadt, madt] {
        entries.extend(u64::from(table).to_le_bytes());
    }
    let xsdt = image.add(&table(b"XSDT", 1, &entries), 16);
    let mut entries = Vec::new();
    for table in [fadt, madt] {
        entries.extend(table.to_le_bytes());
    }
    let rsdt = image.add(&table(b"RSDT", 1, &entries), 16);
    Tables {
        bytes: image.bytes,
        rsdp: rsdp(rsdt, xsdt),
    }
}

struct Image {
    base: u32,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table at the next multiple of `align`; returns its address.
    fn add(&mut self, table: &[u8], align: usize) -> u32 {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(align), 0);
        let offset = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(table);
        self.base + offset
    }
}

/// Makes the bytes sum up to zero by setting the one at `at`.
fn checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[at] = sum.wrapping_neg();
}

/// A table with its header of 36 bytes.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(36 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(36 + body.len());
    bytes.extend_from_slice(signature);
    bytes.extend(len.to_le_bytes());
    bytes.push(revision);
    bytes.push(0); // checksum
    bytes.extend_from_slice(b"Xen\0\0\0"); // OEM id
    bytes.extend_from_slice(b"HVM\0\0\0\0\0"); // OEM table id
    bytes.extend(0u32.to_le_bytes()); // OEM revision
    bytes.extend_from_slice(b"HVML"); // creator
    bytes.extend(0u32.to_le_bytes()); // creator revision
    bytes.extend_from_slice(body);
    checksum(&mut bytes, 9);
    bytes
}

fn facs() -> [u8; 64] {
    let mut facs = [0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = 64;
    facs[32] = 1; // version
    facs
}

/// `FADT`, revision 5: 268 bytes.
fn fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    const LEN: usize = 268;
    // PROC_C1, WBINVD, no power button, no sleep button, FIX_RTC, TMR_VAL_EXT and
    // USE_PLATFORM_CLOCK, as libacpi sets them.
    const FLAGS: u32 = 1 << 2 | 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 15;
    // No VGA, no CMOS clock.
    const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
    const PM1A_EVT: u32 = 0xb000;
    const PM1A_CNT: u32 = 0xb004;
    const GPE0: u32 = 0xafe0;
    // Latencies that say: no C2, no C3.
    const NO_C_STATE: u16 = 0x0fff;

    /// A generic address in I/O space.
    fn io(bits: u8, address: u32) -> [u8; 12] {
        let mut raw = [0; 12];
        raw[0] = 1;
        raw[1] = bits;
        raw[4..8].copy_from_slice(&address.to_le_bytes());
        raw
    }

    let mut t = vec![0; LEN];
    let mut put = |at: usize, bytes: &[u8]| t[at..at + bytes.len()].copy_from_slice(bytes);
    put(36, &facs.to_le_bytes());
    put(40, &dsdt.to_le_bytes());
    put(46, &9u16.to_le_bytes()); // sci_int
    put(56, &PM1A_EVT.to_le_bytes());
    put(64, &PM1A_CNT.to_le_bytes());
    put(80, &GPE0.to_le_bytes());
    put(88, &[4, 2]); // pm1_evt_len, pm1_cnt_len
    put(92, &[4]); // gpe0_blk_len
    put(96, &NO_C_STATE.to_le_bytes());
    put(98, &NO_C_STATE.to_le_bytes());
    put(109, &BOOT_ARCH.to_le_bytes());
    put(112, &FLAGS.to_le_bytes());
    put(116, &io(8, 0xcf9)); // reset_reg
    put(128, &[6]); // reset_value
    put(132, &u64::from(facs).to_le_bytes());
    put(140, &u64::from(dsdt).to_le_bytes());
    put(148, &io(32, PM1A_EVT));
    put(172, &io(16, PM1A_CNT));
    table(b"FACP", 5, &t[36..])
}

/// `MADT`: where the local APICs are, and a processor for each vCPU.
fn madt(max_vcpus: u8, online: u8) -> Vec<u8> {
    const LAPIC: u32 = 0xfee0_0000;
    const PCAT_COMPAT: u32 = 1;
    let mut body = Vec::new();
    body.extend(LAPIC.to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    for vcpu in 0..max_vcpus {
        body.extend([0, 8, vcpu, apic_id(vcpu)]);
        body.extend(u32::from(vcpu < online).to_le_bytes());
    }
    table(b"APIC", 2, &body)
}

/// `DSDT`: `Scope (\_SB) { Device (Pnnn) { _HID "ACPI0007", _UID nnn } ... }`.
fn dsdt(max_vcpus: u8) -> Vec<u8> {
    let mut scope = Vec::from(*b"\\_SB_");
    for vcpu in 0..max_vcpus {
        let hex = |digit: u8| b"0123456789ABCDEF"[usize::from(digit & 15)];
        let mut device = Vec::from([b'P', b'0', hex(vcpu >> 4), hex(vcpu)]);
        device.extend_from_slice(b"\x08_HID\x0dACPI0007\0");
        device.extend_from_slice(b"\x08_UID\x0a");
        device.push(vcpu);
        scope.extend([0x5b, 0x82]);
        scope.extend(package(&device));
    }
    let mut body = Vec::from([0x10]);
    body.extend(package(&scope));
    table(b"DSDT", 2, &body)
}

/// AML's PkgLength (it counts itself), then the contents.
fn package(contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let byte = |value: usize| u8::try_from(value & 0xff).unwrap_or(0);
    match contents.len() {
        len @ 0..=62 => bytes.push(byte(len + 1)),
        len @ 63..=4093 => {
            let len = len + 2;
            bytes.extend([0x40 | byte(len & 15), byte(len >> 4)]);
        }
        len => {
            let len = len + 3;
            bytes.extend([0x80 | byte(len & 15), byte(len >> 4), byte(len >> 12)]);
        }
    }
    bytes.extend_from_slice(contents);
    bytes
}

fn rsdp(rsdt: u32, xsdt: u32) -> [u8; RSDP_LEN] {
    let mut rsdp = [0; RSDP_LEN];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..12].copy_from_slice(b"Xen");
    rsdp[15] = 2; // revision
    rsdp[16..20].copy_from_slice(&rsdt.to_le_bytes());
    rsdp[20] = 36;
    rsdp[24..32].copy_from_slice(&u64::from(xsdt).to_le_bytes());
    checksum(&mut rsdp[..20], 8);
    checksum(&mut rsdp, 32);
    rsdp
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u32 = 0xfc00_1000;

    fn sum(bytes: &[u8]) -> u8 {
        bytes
            .iter()
            .fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// The table at an address, checked as a kernel does.
    fn table_at(tables: &Tables, address: u32) -> &[u8] {
        let bytes = &tables.bytes[(address - BASE) as usize..];
        let bytes = &bytes[..u32_at(bytes, 4) as usize];
        assert_eq!(sum(bytes), 0, "{:?}", &bytes[..4]);
        bytes
    }

    #[test]
    fn a_kernel_that_walks_from_the_rsdp_finds_every_processor_once() {
        for (max, online) in [(1, 1), (2, 1), (16, 16), (127, 100)] {
            let tables = tables(BASE, max, online);
            assert_eq!(sum(&tables.rsdp[..20]), 0);
            assert_eq!(sum(&tables.rsdp), 0);
            let xsdt = table_at(&tables, u32_at(&tables.rsdp, 24));
            assert_eq!(&xsdt[..4], b"XSDT");
            let fadt = table_at(&tables, u32_at(xsdt, 36));
            assert_eq!((&fadt[..4], fadt.len()), (&b"FACP"[..], 268));
            assert_eq!(u32_at(fadt, 40), u32_at(fadt, 140), "DSDT, both fields");
            assert_eq!(&table_at(&tables, u32_at(fadt, 40))[..4], b"DSDT");
            let madt = table_at(&tables, u32_at(xsdt, 44));
            assert_eq!(&madt[..4], b"APIC");
            let found: Vec<_> = madt[44..]
                .chunks(8)
                .map(|entry| {
                    assert_eq!(entry[..2], [0, 8]);
                    (entry[2], entry[3], entry[4])
                })
                .collect();
            let expected: Vec<_> = (0..max)
                .map(|vcpu| (vcpu, vcpu * 2, u8::from(vcpu < online)))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn package_lengths_count_themselves() {
        assert_eq!(package(&[7; 62])[0], 63);
        // 63 bytes of contents need a second length byte: 65 = 0x41.
        assert_eq!(package(&[7; 63])[..2], [0x41, 0x04]);
        assert_eq!(package(&[7; 4093])[..2], [0x4f, 0xff]);
        // 4094 + 3 = 4097 = 0x1001.
        assert_eq!(package(&[7; 4094])[..3], [0x81, 0x00, 0x01]);
    }
}
