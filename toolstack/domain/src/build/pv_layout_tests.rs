//! PV layouts, read back as the processor and the kernel would.

use super::*;
use crate::build::tests_support::{config, segment};
use crate::build::that_fits;
use crate::config::{GuestType, ImageId, Ramdisk};

const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

fn linux(memory_mib: u32, ramdisk: u64, notes: &[(u32, u64)]) -> GuestConfig {
    let mut config = config(GuestType::Pv, memory_mib);
    config.kernel.segments = alloc::vec![
        segment(0x100_0000, 0x80_0000, 0x80_0000),
        segment(0x1a0_0000, 0x10_0000, 0x60_0123),
    ];
    config.kernel.entry = VIRT_BASE + 0x100_0000;
    config.kernel.notes = alloc::vec![
        (elfnote::VIRT_BASE, VIRT_BASE.to_le_bytes().to_vec()),
        (
            elfnote::HYPERCALL_PAGE,
            (VIRT_BASE + 0x100_1000).to_le_bytes().to_vec()
        ),
    ];
    for (note, value) in notes {
        config
            .kernel
            .notes
            .push((*note, value.to_le_bytes().to_vec()));
    }
    config.ramdisk = (ramdisk > 0).then_some(Ramdisk {
        image: ImageId([2; 32]),
        len: ramdisk,
    });
    config
}

/// What the kernels of Debian say.
const LINUX: [(u32, u64); 2] = [
    (elfnote::INIT_P2M, 0x80_0000_0000),
    (elfnote::MOD_START_PFN, 1),
];

/// Frame number that this test takes for the machine's.
fn mfn(pfn: u64) -> u64 {
    pfn ^ 0x10_0000
}

/// Walks the tables from the root; the leaf's frame and whether it is writable.
fn walk(layout: &PvLayout, virt: u64) -> Option<(u64, bool)> {
    let mut pfn = layout.root();
    for level in (0..4).rev() {
        let table = layout.tables.iter().find(|table| table.pfn == pfn)?;
        assert_eq!(table.level, level);
        let entry = layout.entries(table, mfn)[(virt / span(level) % 512) as usize];
        if entry & 1 == 0 {
            return None;
        }
        pfn = mfn(entry >> 12 & 0xff_ffff_ffff);
        if level == 0 {
            return Some((pfn, entry & WRITABLE != 0));
        }
        assert_eq!(entry & 0xfff, INNER);
    }
    None
}

fn check(config: &GuestConfig) -> PvLayout {
    let layout = PvLayout::new(config).unwrap();
    // Nothing overlaps, and everything is memory.
    let mut ranges = alloc::vec![
        layout.kernel.clone(),
        layout.p2m.clone(),
        layout.page_tables.clone(),
    ];
    for pfn in [
        layout.start_info,
        layout.xenstore,
        layout.console,
        layout.boot_stack,
    ] {
        ranges.push(pfn..pfn + 1);
    }
    ranges.extend(layout.ramdisk.iter().map(|ramdisk| ramdisk.pfns.clone()));
    ranges.sort_by_key(|range| range.start);
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:x?}");
    }
    assert!(ranges.last().unwrap().end <= layout.pages);

    // The first mapping: from the base, 4 MiB aligned, all there, 512 KiB spare.
    let first = &layout.mappings[0];
    assert_eq!((first.pfn, first.virt), (0, VIRT_BASE & VIRT_MASK));
    assert!(first.pages.is_multiple_of(1024) && first.pages <= layout.pages);
    assert!(first.pages - layout.boot_stack > 128);
    for pfn in (0..first.pages).step_by(97).chain([
        first.pages - 1,
        layout.start_info,
        layout.boot_stack,
        layout.page_tables.start,
        layout.page_tables.end - 1,
    ]) {
        let writable = !layout.page_tables.contains(&pfn);
        assert_eq!(
            walk(&layout, layout.virt(pfn) & VIRT_MASK),
            Some((pfn, writable))
        );
    }
    assert_eq!(walk(&layout, layout.virt(first.pages) & VIRT_MASK), None);

    // The frame list where start_info will say it is.
    let list_pages = (layout.pages * 8).div_ceil(PAGE);
    for page in [0, list_pages / 2, list_pages - 1] {
        assert_eq!(
            walk(&layout, (layout.p2m_virt + page * PAGE) & VIRT_MASK),
            Some((layout.p2m.start + page, true))
        );
    }
    // Every table is in use exactly once.
    let mut pfns: Vec<u64> = layout.tables.iter().map(|table| table.pfn).collect();
    pfns.sort_unstable();
    pfns.dedup();
    assert_eq!(pfns.len(), layout.tables.len());
    layout
}

#[test]
fn linux_of_any_size_is_mapped_as_the_start_of_day_wants() {
    for memory_mib in [48, 64, 127, 128, 512, 2048, 4096, 65536] {
        for ramdisk in [0, 1, 5 << 20] {
            let layout = check(&linux(memory_mib, ramdisk, &LINUX));
            assert!(layout.p2m_apart);
            if let Some(ramdisk) = &layout.ramdisk {
                assert!(ramdisk.by_frame);
                assert_eq!(ramdisk.mod_start, ramdisk.pfns.start);
                assert!(ramdisk.pfns.start >= layout.mappings[0].pages);
            }
            assert_eq!(layout.hypercall_page, Some(0x1001));
        }
    }
}

#[test]
fn a_kernel_without_these_notes_finds_ramdisk_and_list_in_the_first_mapping() {
    for memory_mib in [64, 512, 2048] {
        let layout = check(&linux(memory_mib, 3 << 20, &[]));
        assert!(!layout.p2m_apart);
        let ramdisk = layout.ramdisk.as_ref().unwrap();
        assert_eq!(ramdisk.mod_start, layout.virt(ramdisk.pfns.start));
        assert_eq!(ramdisk.mod_len, 3 << 20);
        assert_eq!(
            walk(&layout, ramdisk.mod_start & VIRT_MASK),
            Some((ramdisk.pfns.start, true))
        );
    }
}

#[test]
fn what_does_not_fit_is_told_how_much_it_takes() {
    for (mib, ramdisk) in [(1, 0), (40, 8 << 20), (40, 300 << 20)] {
        let mut config = linux(mib, ramdisk, &LINUX);
        let error = that_fits(&config, PvLayout::new).unwrap_err();
        let BuildError::DoesNotFit { needed, memory } = error else {
            panic!("{error}");
        };
        assert_eq!(memory, u64::from(mib) << 20);
        config.memory_mib = u32::try_from(needed >> 20).unwrap();
        assert!(PvLayout::new(&config).is_ok(), "{needed}");
        assert!(that_fits(&config, PvLayout::new).is_ok());
        config.memory_mib -= 1;
        assert!(PvLayout::new(&config).is_err(), "{needed}");
    }
    // Nothing is enough for that.
    let config = linux(40, u64::MAX - 100, &LINUX);
    let error = that_fits(&config, PvLayout::new).unwrap_err();
    assert!(matches!(error, BuildError::DoesNotFit { needed, .. } if needed > 1 << 50));
}

#[test]
fn what_does_not_fit_or_contradicts_itself_is_refused() {
    let error = |config: &GuestConfig| PvLayout::new(config).unwrap_err();
    assert!(matches!(
        error(&linux(40, 8 << 20, &LINUX)),
        BuildError::DoesNotFit { .. }
    ));
    assert!(matches!(
        error(&linux(16, 0, &LINUX)),
        BuildError::DoesNotFit { .. }
    ));
    let mut config = linux(64, 0, &LINUX);
    config.kernel.segments[1].paddr = 0x100_0000;
    assert!(matches!(error(&config), BuildError::BadSegment { .. }));
    config = linux(64, 0, &LINUX);
    config.kernel.segments[1].paddr = u64::MAX - 5;
    assert!(matches!(error(&config), BuildError::BadSegment { .. }));
    config = linux(64, u64::MAX - 100, &LINUX);
    assert!(matches!(error(&config), BuildError::DoesNotFit { .. }));
    config = linux(64, 0, &LINUX);
    config.kernel.entry = VIRT_BASE - 1;
    assert_eq!(error(&config), BuildError::BadNote(elfnote::ENTRY));
    config = linux(64, 0, &LINUX);
    config.cmdline = core::iter::repeat_n('x', 1024).collect();
    assert!(matches!(error(&config), BuildError::CommandLine { .. }));
    config = linux(64, 0, &LINUX);
    let features = b"!writable_page_tables|!auto_translated_physmap".to_vec();
    config.kernel.notes.push((elfnote::FEATURES, features));
    assert_eq!(error(&config), BuildError::AutoTranslated);
}
