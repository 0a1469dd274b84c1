//! Whole builds against the strict Xen of [`crate::fake`].

use super::tests_support::{KERNEL, config, segment};
use super::*;
use crate::config::{ImageId, Ramdisk};
use crate::destroy;
use crate::fake::{FakeXen, run};
use alloc::vec;
use core::cell::RefCell;
use xen_abi::elfnote;
use xen_abi::hvm::params;
use xen_abi::hvm::start_info::{HvmStartInfo, MAGIC, MEMMAP_RAM, MemmapEntry, ModlistEntry};
use xen_abi::xen::StartInfo;
use zerocopy::FromBytes;

const RAMDISK: ImageId = ImageId([2; 32]);
const MIB: u64 = 1 << 20;
const MIB_PAGES: u64 = MIB / 4096;

/// The byte that an image holds at an offset.
fn byte(image: ImageId, offset: u64) -> u8 {
    let mixed = offset.wrapping_mul(0x9e37_79b9).wrapping_add(offset >> 12);
    mixed.to_le_bytes()[2] ^ image.0[0]
}

/// Images whose bytes follow from their offset, up to a length.
struct Images {
    len: u64,
    largest: usize,
}

impl ImageSource for Images {
    async fn read(
        &mut self,
        image: ImageId,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ImageError> {
        self.largest = self.largest.max(buf.len());
        if offset + buf.len() as u64 > self.len {
            return Err(ImageError::TooShort { image, offset });
        }
        for (to, at) in buf.iter_mut().zip(offset..) {
            *to = byte(image, at);
        }
        Ok(())
    }
}

fn images() -> Images {
    Images {
        len: 64 * MIB,
        largest: 0,
    }
}

fn pvh(memory_mib: u32) -> GuestConfig {
    let mut config = config(GuestType::Pvh, memory_mib);
    // Segments that begin and end in the middle of pages, with a gap.
    config.kernel.segments = vec![
        segment(0x10_0040, 0x2_1000, 0x2_1000),
        segment(0x13_0000, 0x1234, 0x2_5678),
    ];
    config.kernel.entry = 0x10_0040;
    config.kernel.notes = vec![(elfnote::PHYS32_ENTRY, 0x10_0040u32.to_le_bytes().to_vec())];
    config.ramdisk = Some(Ramdisk {
        image: RAMDISK,
        len: 3 * MIB + 5,
    });
    config.vcpus = 2;
    config.max_vcpus = 3;
    config
}

fn pv(memory_mib: u32) -> GuestConfig {
    const BASE: u64 = 0xffff_ffff_8000_0000;
    let mut config = pvh(memory_mib);
    config.kind = GuestType::Pv;
    config.kernel.entry = BASE + 0x10_0040;
    config.kernel.notes = vec![
        (elfnote::VIRT_BASE, BASE.to_le_bytes().to_vec()),
        (elfnote::INIT_P2M, 0x80_0000_0000u64.to_le_bytes().to_vec()),
        (elfnote::MOD_START_PFN, vec![1]),
        (
            elfnote::HYPERCALL_PAGE,
            (BASE + 0x10_1000).to_le_bytes().to_vec(),
        ),
    ];
    config
}

/// All on node 1, or half on each.
fn placement(config: &GuestConfig, spread: bool) -> Placement {
    let pages = memory_pages(config);
    Placement {
        pins: (0..config.max_vcpus)
            .map(|vcpu| vec![vcpu + 2, 70])
            .collect(),
        memory: if spread {
            vec![(NodeId(1), pages / 2), (NodeId(0), pages - pages / 2)]
        } else {
            vec![(NodeId(1), pages)]
        },
    }
}

fn fake() -> FakeXen {
    FakeXen::new((4, 20), &[40_000_000, 40_000_000])
}

fn build_on(fake: &FakeXen, config: &GuestConfig, spread: bool) -> Result<Built, BuildError> {
    let xen = Xen::new(fake).unwrap();
    run(build(
        xen,
        config,
        &placement(config, spread),
        &mut images(),
        (),
    ))
}

/// Reads a guest's memory by its own physical address; `frame` as in `map_foreign`.
fn read(fake: &FakeXen, id: DomId, frame: impl Fn(u64) -> u64, paddr: u64, to: &mut [u8]) {
    for (to, at) in to.iter_mut().zip(paddr..) {
        let offset = usize::try_from(at % 4096).unwrap();
        fake.peek(id, frame(at / 4096), offset, core::slice::from_mut(to));
    }
}

fn bytes<const N: usize>(fake: &FakeXen, id: DomId, paddr: u64) -> [u8; N] {
    let mut out = [0; N];
    read(fake, id, |gfn| gfn, paddr, &mut out);
    out
}

/// Checks that the kernel's and the ramdisk's bytes are where they belong, and zeroes
/// around them.
fn check_images(
    fake: &FakeXen,
    id: DomId,
    config: &GuestConfig,
    frame: impl Fn(u64) -> u64 + Copy,
    ramdisk: u64,
) {
    let at = |paddr| {
        let mut out = [0];
        read(fake, id, frame, paddr, &mut out);
        out[0]
    };
    for segment in &config.kernel.segments {
        let end = segment.paddr + segment.file_size;
        for paddr in (segment.paddr..end).step_by(61).chain([end - 1]) {
            assert_eq!(at(paddr), byte(KERNEL, paddr), "kernel at {paddr:#x}");
        }
    }
    // Before the first segment, the gap, and the end of the second with its page.
    for paddr in (0x10_0000..0x10_0040)
        .chain([0x12_1040, 0x12_ffff])
        .chain((0x13_1234..0x15_6000).step_by(119))
    {
        assert_eq!(at(paddr), 0, "zero at {paddr:#x}");
    }
    let len = config.ramdisk.unwrap().len;
    for offset in (0..len).step_by(4093).chain([len - 1]) {
        assert_eq!(at(ramdisk + offset), byte(RAMDISK, offset));
    }
    for paddr in ramdisk + len..(ramdisk + len).next_multiple_of(4096) {
        assert_eq!(at(paddr), 0, "zero behind the ramdisk");
    }
}

#[test]
fn a_pvh_guest_finds_everything_from_its_start_info() {
    for spread in [false, true] {
        let (fake, config) = (fake(), pvh(64));
        let built = build_on(&fake, &config, spread).unwrap();
        let id = built.domain;
        let layout = PvhLayout::new(&config).unwrap();

        let start = layout.start_info.start;
        let info = HvmStartInfo::read_from_bytes(&bytes::<56>(&fake, id, start)).unwrap();
        assert_eq!((info.magic, info.version, info.nr_modules), (MAGIC, 1, 1));
        let cmdline = bytes::<28>(&fake, id, info.cmdline_paddr);
        assert_eq!(&cmdline, b"console=hvc0 root=/dev/xvda\0");
        let module = bytes::<32>(&fake, id, info.modlist_paddr);
        let module = ModlistEntry::read_from_bytes(&module).unwrap();
        assert_eq!(module.size, config.ramdisk.unwrap().len);
        check_images(&fake, id, &config, |gfn| gfn, module.paddr);
        assert_eq!(&bytes::<8>(&fake, id, info.rsdp_paddr), b"RSD PTR ");
        let map: Vec<MemmapEntry> = (0..u64::from(info.memmap_entries))
            .map(|i| {
                let raw = bytes::<24>(&fake, id, info.memmap_paddr + 24 * i);
                MemmapEntry::read_from_bytes(&raw).unwrap()
            })
            .collect();

        fake.with(id, |domain| {
            assert_eq!(map, domain.memmap);
            assert_eq!(domain.pool, (256 * 3 + 64) * 4096);
            assert_eq!(domain.tsc_mode, 2);
            assert_eq!(domain.max_memkb, 64 * 1024 + 1024);
            assert_eq!(domain.cpuid[0].b, 2 << 16);
            assert_eq!(domain.affinity.len(), 3);
            // CPUs 3 and 70 for vCPU 1.
            assert_eq!(domain.affinity[&1][0], 1 << 3);
            assert_eq!(domain.affinity[&1][8], 1 << 6);
            assert_eq!(domain.params[&params::STORE_PFN], built.store_frame);
            assert_eq!(domain.params[&params::CONSOLE_PFN], built.console_frame);
            assert_eq!(domain.params[&params::STORE_EVTCHN], 1);
            assert_eq!(domain.params[&params::CONSOLE_EVTCHN], 2);
            // Memory types of three vCPUs, then the registers of one.
            assert_eq!(domain.contexts.len(), 4);
            assert!(domain.contexts[3].len() > 1032);
        });
        // Every page of RAM in the map is there, on the node it was placed on.
        for entry in map.iter().filter(|entry| entry.kind == MEMMAP_RAM) {
            for frame in entry.addr / 4096..(entry.addr + entry.size) / 4096 {
                assert_eq!(fake.node_of(id, frame), built.nodes.node_of(frame));
            }
        }
        check_grants(&fake, &built);
        assert_eq!(fake.mapped(), 0);
        let identity = params::IDENT_PT;
        let page = fake.with(id, |domain| domain.params[&identity]);
        assert_eq!(
            bytes::<8>(&fake, id, page),
            [0xe7, 0, 0, 0, 0xe7, 0, 0x40, 0]
        );
    }
}

/// References 0 and 1: the console's and xenstore's rings, to domain 0.
fn check_grants(fake: &FakeXen, built: &Built) {
    let grants = fake.grants(built.domain);
    for (gref, frame) in [(0, built.console_frame), (1, built.store_frame)] {
        let entry = EntryV1::read_from_bytes(&grants[gref * 8..][..8]).unwrap();
        assert_eq!(
            (entry.flags, entry.domid, u64::from(entry.frame)),
            (GTF_PERMIT_ACCESS, 0, frame)
        );
        assert!(fake.node_of(built.domain, frame).is_some());
    }
}

#[test]
fn a_pv_guest_finds_everything_from_its_registers() {
    for (spread, order) in [(false, 18), (true, 18), (false, 0)] {
        let (fake, config) = (fake(), pv(64));
        fake.largest_order.set(order);
        let built = build_on(&fake, &config, spread).unwrap();
        let id = built.domain;
        let context = fake
            .with(id, |domain| domain.vcpu_context.take())
            .expect("set");
        assert_eq!(context.flags, 4 | 32);

        // From here on as the processor: through the page tables, by machine frame.
        let walk = |virt: u64| {
            let mut mfn = context.ctrlreg[3] >> 12;
            for level in (0..4).rev() {
                let slot = usize::try_from(virt >> (12 + 9 * level) & 511).unwrap();
                let mut raw = [0; 8];
                fake.peek(id, mfn, slot * 8, &mut raw);
                let entry = u64::from_le_bytes(raw);
                assert_eq!(entry & 1, 1, "{virt:#x} at level {level}");
                mfn = entry >> 12 & 0xff_ffff_ffff;
            }
            mfn
        };
        let mut raw = [0; size_of::<StartInfo>()];
        let at = context.user_regs.rsi;
        fake.peek(id, walk(at), 0, &mut raw);
        let info = StartInfo::read_from_bytes(&raw).unwrap();
        assert_eq!(&info.magic[..15], b"xen-3.0-x86_64\0");
        assert_eq!(info.nr_pages, 64 * MIB_PAGES);
        assert_eq!(&info.cmd_line[..28], b"console=hvc0 root=/dev/xvda\0");
        assert_eq!(walk(info.pt_base), context.ctrlreg[3] >> 12);
        assert_eq!(info.flags & 8, 8, "the ramdisk by frame number");

        // The frame list names every page once.
        let mut list = Vec::new();
        for page in 0..info.nr_pages * 8 / 4096 {
            let mut raw = [0; 4096];
            fake.peek(id, walk(info.mfn_list + page * 4096), 0, &mut raw);
            list.extend(
                raw.chunks(8)
                    .map(|mfn| u64::from_le_bytes(mfn.try_into().unwrap())),
            );
        }
        let mut sorted = list.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, fake.frames(id));

        let frame = |pfn: u64| list[usize::try_from(pfn).unwrap()];
        check_images(&fake, id, &config, frame, info.mod_start * 4096);
        assert_eq!(info.store_mfn, built.store_frame);
        assert_eq!(info.console_mfn, built.console_frame);
        check_grants(&fake, &built);
        fake.with(id, |domain| {
            assert_eq!(domain.hypercall_page, Some(frame(0x101)));
            assert_eq!(domain.affinity.len(), 3);
        });
        let shared = fake.shared_info(id);
        for (at, &value) in shared.iter().enumerate() {
            let masked = at < 32 * 64 && at % 64 == 1;
            assert_eq!(value, u8::from(masked), "shared info at {at}");
        }
        for (pfn, &mfn) in (0..).zip(&list) {
            assert_eq!(fake.node_of(id, mfn), built.nodes.node_of(pfn));
        }
        assert_eq!(fake.mapped(), 0);
    }
}

#[test]
fn whatever_call_fails_nothing_is_left() {
    for mut config in [pvh(16), pv(16)] {
        // Two reads, so that the many builds stay short.
        config.ramdisk.as_mut().unwrap().len = 70_000;
        let mut failures = 0;
        for n in 0.. {
            let fake = fake();
            let before = fake.free_pages();
            fake.fail_call(n);
            let result = build_on(&fake, &config, true);
            if !fake.failed() {
                result.unwrap();
                break;
            }
            // Out of large pages is no error; everything else is.
            if let Err(error) = result {
                failures += 1;
                assert!(fake.domains.borrow().is_empty(), "call {n}: {error}");
                assert_eq!(fake.free_pages(), before, "call {n}: {error}");
            }
            assert_eq!(fake.mapped(), 0, "call {n}");
        }
        assert!(failures > 25, "only {failures} calls failed");
    }
}

#[test]
fn a_short_image_is_an_error_and_nothing_is_left() {
    let (fake, config) = (fake(), pvh(32));
    let before = fake.free_pages();
    let xen = Xen::new(&fake).unwrap();
    let mut images = Images {
        len: MIB + 0x100,
        largest: 0,
    };
    let error = run(build(
        xen,
        &config,
        &placement(&config, false),
        &mut images,
        (),
    ));
    assert!(matches!(
        error,
        Err(BuildError::Image(ImageError::TooShort {
            image: KERNEL,
            ..
        }))
    ));
    assert_eq!(fake.free_pages(), before);
    assert!(images.largest <= 64 * 1024);
}

/// The lock of who places a guest: notes what is free when it goes.
struct Placing<'a> {
    fake: &'a FakeXen,
    free: &'a RefCell<Option<Vec<u64>>>,
}

impl Drop for Placing<'_> {
    fn drop(&mut self) {
        *self.free.borrow_mut() = Some(self.fake.free_pages());
    }
}

#[test]
fn the_next_is_placed_when_all_memory_is_taken_and_does_not_wait_for_images() {
    struct Late<'a>(Images, &'a RefCell<Option<Vec<u64>>>);
    impl ImageSource for Late<'_> {
        async fn read(&mut self, id: ImageId, at: u64, buf: &mut [u8]) -> Result<(), ImageError> {
            assert!(self.1.borrow().is_some(), "others wait for an image");
            self.0.read(id, at, buf).await
        }
    }
    for config in [pvh(32), pv(32)] {
        let (fake, free) = (fake(), RefCell::new(None));
        let before = fake.free_pages();
        let placing = Placing {
            fake: &fake,
            free: &free,
        };
        let mut images = Late(images(), &free);
        let xen = Xen::new(&fake).unwrap();
        let placement = placement(&config, true);
        run(build(xen, &config, &placement, &mut images, placing)).unwrap();
        assert_ne!(fake.free_pages(), before);
        assert_eq!(free.take(), Some(fake.free_pages()), "taken afterwards");
    }
}

#[test]
fn the_next_is_placed_when_a_failed_build_has_given_its_memory_back() {
    // Less than was placed.
    let fake = FakeXen::new((4, 20), &[1 << 20, 10_000]);
    let (config, free) = (pvh(64), RefCell::new(None));
    let before = fake.free_pages();
    let placing = Placing {
        fake: &fake,
        free: &free,
    };
    let xen = Xen::new(&fake).unwrap();
    let placement = placement(&config, false);
    let mut images = images();
    run(build(xen, &config, &placement, &mut images, placing)).unwrap_err();
    assert_eq!(free.take(), Some(before));
}

#[test]
fn a_build_that_is_given_up_leaves_nothing() {
    struct Stuck;
    impl ImageSource for Stuck {
        async fn read(&mut self, _: ImageId, _: u64, _: &mut [u8]) -> Result<(), ImageError> {
            core::future::pending().await
        }
    }
    let (fake, config) = (fake(), pvh(32));
    let before = fake.free_pages();
    let xen = Xen::new(&fake).unwrap();
    let placement = placement(&config, false);
    let mut images = Stuck;
    {
        let mut future = core::pin::pin!(build(xen, &config, &placement, &mut images, ()));
        let mut context = core::task::Context::from_waker(core::task::Waker::noop());
        assert!(future.as_mut().poll(&mut context).is_pending());
        assert_eq!(fake.domains.borrow().len(), 1);
    }
    assert!(fake.domains.borrow().is_empty());
    assert_eq!(fake.free_pages(), before);
}

#[test]
fn too_little_memory_on_the_node_says_where_and_how_much() {
    let config = pvh(64);
    let fake = FakeXen::new((4, 20), &[1 << 20, 10_000]);
    assert_eq!(
        build_on(&fake, &config, false),
        Err(BuildError::NoMemory {
            node: Some(NodeId(1)),
            asked: 64 * MIB_PAGES,
            got: 10_000
        })
    );
    assert_eq!(fake.free_pages(), [1 << 20, 10_000]);
}

#[test]
fn both_layouts_of_createdomain_reach_their_xen() {
    for minor in 17..=20 {
        let fake = FakeXen::new((4, minor), &[1 << 20, 1 << 20]);
        let built = build_on(&fake, &pvh(32), false).unwrap();
        fake.with(built.domain, |domain| {
            assert!(domain.hvm && domain.max_vcpus == 3);
        });
    }
}

#[test]
fn pvh_memory_is_whole_for_every_size_also_across_the_hole() {
    for memory_mib in [16, 17, 512, 4031, 4032, 4033, 4096, 5000, 65536] {
        let layout = PvhLayout::new(&pvh(memory_mib)).unwrap();
        let pages: u64 = layout.ram.iter().map(|range| range.end - range.start).sum();
        assert_eq!(pages, u64::from(memory_mib) * MIB_PAGES);
        // In order, apart, and page-aligned: what every kernel hopes for.
        for pair in layout.memmap.windows(2) {
            assert!(
                pair[0].addr + pair[0].size <= pair[1].addr,
                "{memory_mib} MiB"
            );
        }
        let low = layout.ram[0].end * 4096;
        assert!(low <= layout.acpi.start);
        assert!(layout.kernel.end <= layout.ramdisk.as_ref().unwrap().start);
        assert!(layout.ramdisk.as_ref().unwrap().end <= layout.start_info.start);
        assert!(layout.start_info.end <= low);
        assert!(layout.acpi.end <= 0xfee0_0000);
        let high = layout.ram.get(1);
        assert_eq!(high.is_some(), memory_mib > 4032);
        assert!(high.is_none_or(|range| range.start == 1 << 20));
    }
}

#[test]
fn an_old_linux_gets_its_rsdp_where_a_bios_has_it() {
    let mut config = pvh(64);
    config
        .kernel
        .notes
        .push((elfnote::GUEST_OS, b"linux".to_vec()));
    let layout = PvhLayout::new(&config).unwrap();
    assert_eq!(layout.rsdp, 0xf_ffc0);
    let bits = 1u32 << elfnote::XENFEAT_LINUX_RSDP_UNRESTRICTED;
    config
        .kernel
        .notes
        .push((elfnote::SUPPORTED_FEATURES, bits.to_le_bytes().to_vec()));
    let layout = PvhLayout::new(&config).unwrap();
    assert!(layout.acpi.contains(&layout.rsdp));
}

#[test]
fn bad_pvh_kernels_are_refused() {
    let error = |config: &GuestConfig| PvhLayout::new(config).unwrap_err();
    let mut config = pvh(64);
    config.kernel.notes.clear();
    assert_eq!(
        error(&config),
        BuildError::NoteMissing(elfnote::PHYS32_ENTRY)
    );
    for value in [vec![], vec![1; 9], vec![1]] {
        let mut config = pvh(64);
        config.kernel.notes[0].1 = value;
        assert_eq!(error(&config), BuildError::BadNote(elfnote::PHYS32_ENTRY));
    }
    for (paddr, file_size, mem_size) in [(u64::MAX, 1, 1), (0x10_0040, 2, 1)] {
        let mut config = pvh(64);
        config.kernel.segments[0] = segment(paddr, file_size, mem_size);
        assert!(matches!(error(&config), BuildError::BadSegment { .. }));
    }
    for (paddr, mem_size) in [(65 * MIB, 1), (0x10_0040, 65 * MIB)] {
        let mut config = pvh(64);
        config.kernel.segments[0] = segment(paddr, 0, mem_size);
        assert!(matches!(
            error(&config),
            BuildError::DoesNotFit { needed, .. } if needed == paddr + mem_size
        ));
    }
    let mut config = pvh(64);
    config.ramdisk.as_mut().unwrap().len = u64::MAX;
    assert!(matches!(error(&config), BuildError::DoesNotFit { .. }));
    config.ramdisk.as_mut().unwrap().len = 63 * MIB;
    assert!(matches!(error(&config), BuildError::DoesNotFit { .. }));
}

#[test]
fn large_memory_is_populated_in_pieces_of_bounded_time() {
    let fake = fake();
    let mut config = pvh(2048);
    config.max_vcpus = 1;
    config.vcpus = 1;
    // No 1 GiB pages, and 51 us for 2 MiB.
    fake.largest_order.set(9);
    build_on(&fake, &config, false).unwrap();
    assert!(fake.breaths.get() > 200, "{} breaths", fake.breaths.get());
}

#[test]
fn destroying_a_pvh_guest_clears_and_frees_all_but_its_holes() {
    let (fake, config) = (fake(), pvh(64));
    let before = fake.free_pages();
    let built = build_on(&fake, &config, true).unwrap();
    let xen = Xen::new(&fake).unwrap();
    xen.unpause_domain(built.domain).unwrap();
    for frame in [0, 1, 700, 5000, 64 * MIB_PAGES - 1] {
        fake.balloon_out(built.domain, frame);
    }
    // The fake panics on a page that is given back with anything in it.
    let cleared = run(destroy::destroy(&xen, built.domain, &built.nodes, 1000)).unwrap();
    assert_eq!(cleared.pages, 64 * MIB_PAGES - 5);
    assert_eq!(cleared.skipped, 5);
    assert!(fake.domains.borrow().is_empty());
    assert_eq!(fake.free_pages(), before);
    // A second time there is nobody.
    let again = run(destroy::destroy(&xen, built.domain, &built.nodes, 1000)).unwrap();
    assert_eq!(again.pages, 0);
}

#[test]
fn destroying_a_pv_guest_leaves_its_pages_to_xen() {
    let (fake, config) = (fake(), pv(64));
    let before = fake.free_pages();
    let built = build_on(&fake, &config, false).unwrap();
    let xen = Xen::new(&fake).unwrap();
    let cleared = run(destroy::destroy(&xen, built.domain, &built.nodes, 1000)).unwrap();
    assert_eq!(cleared.pages, 0);
    assert_eq!(fake.free_pages(), before);
}
