//! RSDP, RSDT/XSDT, and the tables behind them (ACPI 6.5, chapter 5.2).

use alloc::vec::Vec;
use core::fmt;

/// A table larger than this is taken for garbage (real DSDTs stay below 1 MiB).
const MAX_TABLE: usize = 4 << 20;
/// More tables than this are taken for garbage.
const MAX_TABLES: usize = 256;
/// `DESCRIPTION_HEADER`: signature, length, revision, checksum, OEM and creator ids.
const HEADER: usize = 36;

/// Physical memory as the firmware left it.
pub trait PhysicalMemory {
    /// Copies `to.len()` bytes from physical address `at`; `false` if they cannot be read.
    fn read(&self, at: u64, to: &mut [u8]) -> bool;
}

/// One checked table, header included.
#[derive(Clone)]
pub struct Table {
    /// `SRAT`, `MCFG`, ...
    pub signature: [u8; 4],
    /// The whole table.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} bytes)",
            self.signature.escape_ascii(),
            self.bytes.len()
        )
    }
}

/// A run of memory and its proximity domain (SRAT type 1, enabled entries).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// `PXM`.
    pub proximity: u32,
}

/// A processor and its proximity domain (SRAT types 0 and 2, enabled entries).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessorNode {
    /// APIC or x2APIC id.
    pub apic_id: u32,
    /// `PXM`.
    pub proximity: u32,
}

/// A segment group's configuration space (MCFG).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcamRange {
    /// Physical address of bus 0 of the segment.
    pub base: u64,
    /// PCI segment group.
    pub segment: u16,
    /// First bus decoded.
    pub first_bus: u8,
    /// Last bus decoded.
    pub last_bus: u8,
}

/// All tables that the root table names.
#[derive(Clone, Debug, Default)]
pub struct Acpi {
    tables: Vec<Table>,
}

impl Acpi {
    /// Finds the RSDP in the BIOS area (0xe0000 to 0xfffff, step 16) and reads every table
    /// it leads to. `None`: there is no valid RSDP.
    pub fn scan_bios(memory: &impl PhysicalMemory) -> Option<Self> {
        let mut area = alloc::vec![0; 0x2_0000];
        if !memory.read(0xe_0000, &mut area) {
            return None;
        }
        let rsdp = area
            .chunks(16)
            .enumerate()
            .filter(|(_, chunk)| chunk.starts_with(b"RSD PTR "))
            .find_map(|(i, _)| Rsdp::parse(&area[i * 16..]))?;
        Some(Self::load(memory, &rsdp))
    }

    fn load(memory: &impl PhysicalMemory, rsdp: &Rsdp) -> Self {
        // The XSDT wins where both exist (5.2.5.3).
        let (root, width) = match rsdp.xsdt {
            Some(xsdt) => (read_table(memory, xsdt), 8),
            None => (read_table(memory, rsdp.rsdt.into()), 4),
        };
        let Some(root) = root else {
            return Self::default();
        };
        let mut tables: Vec<Table> = root.bytes[HEADER..]
            .chunks_exact(width)
            .take(MAX_TABLES)
            .filter_map(|entry| {
                let mut at = [0; 8];
                at[..width].copy_from_slice(entry);
                read_table(memory, u64::from_le_bytes(at))
            })
            .collect();
        // The DSDT is named by the FADT alone: 32-bit address at 40, 64-bit at 140.
        if let Some(fadt) = tables.iter().find(|t| &t.signature == b"FACP") {
            let long = u64_at(&fadt.bytes, 140).filter(|at| *at != 0);
            let short = u32_at(&fadt.bytes, 40).map(u64::from);
            if let Some(dsdt) = long.or(short).and_then(|at| read_table(memory, at)) {
                tables.push(dsdt);
            }
        }
        Self { tables }
    }

    /// All tables found.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The first table with this signature.
    pub fn table(&self, signature: &[u8; 4]) -> Option<&Table> {
        self.tables.iter().find(|t| &t.signature == signature)
    }

    /// Memory and the proximity domain it belongs to; empty on a machine without SRAT.
    pub fn memory_ranges(&self) -> Vec<MemoryRange> {
        let mask = if self.wide_domains() { u32::MAX } else { 0xff };
        self.srat()
            .filter_map(|(kind, e)| {
                // Type 1: domain @2, base @8, length @16, flags @28 (bit 0: enabled).
                let enabled = kind == 1 && u32_at(e, 28)? & 1 == 1;
                let (start, len) = (u64_at(e, 8)?, u64_at(e, 16)?);
                (enabled && len > 0).then_some(MemoryRange {
                    start,
                    end: start.checked_add(len)?,
                    proximity: u32_at(e, 2)? & mask,
                })
            })
            .collect()
    }

    /// Processors and the proximity domain they belong to, in the order in which Xen reads
    /// them: all x2APIC entries, then all local APIC entries.
    pub fn processors(&self) -> Vec<ProcessorNode> {
        let wide = self.wide_domains();
        let x2apic = self.srat().filter_map(|(kind, e)| {
            // Type 2: domain @4, x2APIC id @8, flags @12.
            (kind == 2 && u32_at(e, 12)? & 1 == 1).then_some(ProcessorNode {
                apic_id: u32_at(e, 8)?,
                proximity: u32_at(e, 4)?,
            })
        });
        let local = self.srat().filter_map(|(kind, e)| {
            // Type 0: domain bits 7:0 @2, APIC id @3, flags @4, domain bits 31:8 @9.
            let high = match wide {
                true => [*e.get(9)?, *e.get(10)?, *e.get(11)?],
                false => [0; 3],
            };
            (kind == 0 && u32_at(e, 4)? & 1 == 1).then_some(ProcessorNode {
                apic_id: u32::from(*e.get(3)?),
                proximity: u32::from_le_bytes([*e.get(2)?, high[0], high[1], high[2]]),
            })
        });
        x2apic.chain(local).collect()
    }

    /// The proximity domains in the order in which Xen numbers them as nodes: that in which
    /// it meets them first (`acpi_numa_init`), in processors, then in memory.
    pub fn proximity_domains(&self) -> Vec<u32> {
        let processors = self.processors().into_iter().map(|cpu| cpu.proximity);
        let memory = self
            .memory_ranges()
            .into_iter()
            .map(|range| range.proximity);
        let mut domains = Vec::new();
        for domain in processors.chain(memory) {
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
        domains
    }

    /// Whether a proximity domain has 32 bits, as from ACPI 3.0 on; before, the bytes above
    /// its first were reserved, and Xen ignores what is in them.
    fn wide_domains(&self) -> bool {
        self.table(b"SRAT").is_some_and(|t| t.bytes[8] >= 2)
    }

    /// PCI configuration space windows.
    pub fn ecam_ranges(&self) -> Vec<EcamRange> {
        let Some(mcfg) = self.table(b"MCFG") else {
            return Vec::new();
        };
        mcfg.bytes
            .get(44..)
            .unwrap_or_default()
            .chunks_exact(16)
            .filter_map(|e| {
                let segment = u16::from_le_bytes([e[8], e[9]]);
                let range = EcamRange {
                    base: u64_at(e, 0)?,
                    segment,
                    first_bus: e[10],
                    last_bus: e[11],
                };
                (range.base != 0 && range.first_bus <= range.last_bus).then_some(range)
            })
            .collect()
    }

    /// SRAT entries as (type, bytes), until the first with an impossible length.
    fn srat(&self) -> impl Iterator<Item = (u8, &[u8])> {
        let mut rest = self
            .table(b"SRAT")
            .and_then(|t| t.bytes.get(48..))
            .unwrap_or_default();
        core::iter::from_fn(move || {
            let len = usize::from(*rest.get(1)?);
            if len < 2 || len > rest.len() {
                return None;
            }
            let (entry, tail) = rest.split_at(len);
            rest = tail;
            Some((entry[0], entry))
        })
    }
}

/// Root System Description Pointer (5.2.5.3).
#[derive(Debug)]
struct Rsdp {
    rsdt: u32,
    xsdt: Option<u64>,
}

impl Rsdp {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let first = bytes.get(..20)?;
        if !sums_to_zero(first) {
            return None;
        }
        let revision = first[15];
        let xsdt = (revision >= 2)
            .then(|| bytes.get(..36))
            .flatten()
            .filter(|all| sums_to_zero(all))
            .and_then(|all| u64_at(all, 24))
            .filter(|at| *at != 0);
        Some(Self {
            rsdt: u32_at(first, 16)?,
            xsdt,
        })
    }
}

fn read_table(memory: &impl PhysicalMemory, at: u64) -> Option<Table> {
    let mut header = [0; HEADER];
    if at == 0 || !memory.read(at, &mut header) {
        return None;
    }
    let len = usize::try_from(u32_at(&header, 4)?).ok()?;
    if !(HEADER..=MAX_TABLE).contains(&len) {
        return None;
    }
    let mut bytes = alloc::vec![0; len];
    if !memory.read(at, &mut bytes) || !sums_to_zero(&bytes) {
        return None;
    }
    Some(Table {
        signature: [header[0], header[1], header[2], header[3]],
        bytes,
    })
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    struct Image(Vec<u8>);

    impl PhysicalMemory for Image {
        fn read(&self, at: u64, to: &mut [u8]) -> bool {
            let at = usize::try_from(at).unwrap();
            match self.0.get(at..at + to.len()) {
                Some(from) => {
                    to.copy_from_slice(from);
                    true
                }
                None => false,
            }
        }
    }

    pub(crate) fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut t = alloc::vec![0; HEADER];
        t[..4].copy_from_slice(signature);
        t.extend_from_slice(body);
        let len = u32::try_from(t.len()).unwrap();
        t[4..8].copy_from_slice(&len.to_le_bytes());
        seal(&mut t, 9);
        t
    }

    fn seal(bytes: &mut [u8], at: usize) {
        let sum = bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b));
        bytes[at] = bytes[at].wrapping_sub(sum);
    }

    /// A BIOS area with an RSDP and these tables behind an RSDT, at odd addresses as
    /// SeaBIOS places them.
    fn machine(tables: &[Vec<u8>]) -> Image {
        let mut image = alloc::vec![0u8; 0x11_0000];
        let mut at = 0x10_0001;
        let mut root = Vec::new();
        for t in tables {
            image[at..at + t.len()].copy_from_slice(t);
            root.extend_from_slice(&u32::try_from(at).unwrap().to_le_bytes());
            at += t.len() + 3;
        }
        let rsdt = table(b"RSDT", &root);
        image[at..at + rsdt.len()].copy_from_slice(&rsdt);
        let mut rsdp = [0u8; 20];
        rsdp[..8].copy_from_slice(b"RSD PTR ");
        rsdp[16..].copy_from_slice(&u32::try_from(at).unwrap().to_le_bytes());
        seal(&mut rsdp, 8);
        image[0xf_51d0..0xf_51d0 + 20].copy_from_slice(&rsdp);
        Image(image)
    }

    fn srat() -> Vec<u8> {
        let mut body = alloc::vec![0; 12];
        let mut cpu = [0u8; 16];
        cpu[..5].copy_from_slice(&[0, 16, 1, 3, 1]);
        body.extend_from_slice(&cpu);
        for (start, len, proximity, enabled) in [
            (0u64, 0xa_0000u64, 0u32, 1u32),
            (0x1_0000_0000, 0x4000_0000, 1, 1),
            (0, 0x1000, 9, 0),
        ] {
            let mut e = [0u8; 40];
            e[..2].copy_from_slice(&[1, 40]);
            e[2..6].copy_from_slice(&proximity.to_le_bytes());
            e[8..16].copy_from_slice(&start.to_le_bytes());
            e[16..24].copy_from_slice(&len.to_le_bytes());
            e[28..32].copy_from_slice(&enabled.to_le_bytes());
            body.extend_from_slice(&e);
        }
        table(b"SRAT", &body)
    }

    #[test]
    fn memory_and_processors_come_with_their_proximity_domain() {
        let acpi = Acpi::scan_bios(&machine(&[srat()])).unwrap();
        assert_eq!(
            acpi.memory_ranges(),
            [
                MemoryRange {
                    start: 0,
                    end: 0xa_0000,
                    proximity: 0
                },
                MemoryRange {
                    start: 0x1_0000_0000,
                    end: 0x1_4000_0000,
                    proximity: 1
                }
            ]
        );
        assert_eq!(
            acpi.processors(),
            [ProcessorNode {
                apic_id: 3,
                proximity: 1
            }]
        );
    }

    /// An enabled entry of a processor: by local APIC, with these high bits of its domain.
    fn by_apic(id: u8, domain: u8, high: u8) -> Vec<u8> {
        let mut e = alloc::vec![0, 16, domain, id, 1, 0, 0, 0, 0, high];
        e.resize(16, 0);
        e
    }

    /// The same by x2APIC.
    fn by_x2apic(id: u8, domain: u8) -> Vec<u8> {
        let mut e = alloc::vec![2, 24, 0, 0, domain, 0, 0, 0, id, 0, 0, 0, 1];
        e.resize(24, 0);
        e
    }

    fn memory_in(domain: u8, high: u8) -> Vec<u8> {
        let mut e = alloc::vec![1, 40, domain, high];
        e.resize(40, 0);
        (e[17], e[28]) = (0x10, 1);
        e
    }

    fn srat_of(revision: u8, entries: &[Vec<u8>]) -> Acpi {
        let mut srat = table(b"SRAT", &[alloc::vec![0; 12], entries.concat()].concat());
        srat[8] = revision;
        srat[9] = 0;
        seal(&mut srat, 9);
        Acpi::scan_bios(&machine(&[srat])).unwrap()
    }

    #[test]
    fn nodes_are_numbered_as_xen_meets_their_domains() {
        // Firmware lists the low APIC ids first, as type 0, and those from 255 on as type 2.
        let acpi = srat_of(
            3,
            &[
                memory_in(7, 0),
                by_apic(0, 1, 0),
                memory_in(1, 0),
                by_apic(1, 0, 0),
                by_x2apic(255, 4),
                by_apic(2, 4, 0),
                by_x2apic(254, 0),
            ],
        );
        assert_eq!(acpi.proximity_domains(), [4, 0, 1, 7]);
        let ids: Vec<_> = acpi.processors().iter().map(|cpu| cpu.apic_id).collect();
        assert_eq!(ids, [255, 254, 0, 1, 2]);
    }

    #[test]
    fn the_high_bytes_of_a_domain_are_ignored_where_they_are_reserved() {
        let entries = [by_apic(0, 1, 0xee), memory_in(1, 0xee)];
        assert_eq!(srat_of(1, &entries).proximity_domains(), [1]);
        assert_eq!(srat_of(2, &entries).proximity_domains(), [0xee01]);
    }

    #[test]
    fn ecam_windows_are_read_and_empty_ones_left_out() {
        let mut body = alloc::vec![0; 8];
        body.extend_from_slice(&0xb000_0000u64.to_le_bytes());
        body.extend_from_slice(&[0, 0, 0, 0xff, 0, 0, 0, 0]);
        body.extend_from_slice(&[0; 16]);
        let acpi = Acpi::scan_bios(&machine(&[table(b"MCFG", &body)])).unwrap();
        assert_eq!(
            acpi.ecam_ranges(),
            [EcamRange {
                base: 0xb000_0000,
                segment: 0,
                first_bus: 0,
                last_bus: 255
            }]
        );
    }

    #[test]
    fn a_table_with_a_bad_checksum_is_left_out() {
        let mut bad = srat();
        bad[50] ^= 1;
        let acpi = Acpi::scan_bios(&machine(&[bad])).unwrap();
        assert!(acpi.tables().is_empty());
    }

    #[test]
    fn every_truncation_of_an_entry_list_ends_quietly() {
        let whole = srat();
        for len in HEADER..whole.len() {
            let cut = table(b"SRAT", &whole[HEADER..len]);
            let acpi = Acpi::scan_bios(&machine(&[cut])).unwrap();
            assert!(acpi.memory_ranges().len() <= 2);
        }
    }

    #[test]
    fn no_rsdp_is_no_acpi() {
        assert!(Acpi::scan_bios(&Image(alloc::vec![0; 0x10_0000])).is_none());
    }
}
