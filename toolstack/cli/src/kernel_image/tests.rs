#![allow(clippy::panic, clippy::cast_possible_truncation, reason = "tests")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::sample::{ENTRY, Load, Sample, bzimage, with_length};
use super::*;

fn problem(file: Vec<u8>) -> String {
    match parse(file) {
        Ok(image) => panic!("taken: {image:?}"),
        Err(problem) => problem.to_string(),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(6);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut packed = 0x184c_2102u32.to_le_bytes().to_vec();
    for block in bytes.chunks(4000) {
        let block = lz4_flex::block::compress(block);
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(block);
    }
    packed
}

/// Runs a program as a filter; `None` if it is not installed.
fn filter(command: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; cargo xtask test installs it"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

/// The sample's kernel as all forms of file should give it.
fn assert_is_sample(image: &KernelImage) {
    let elf = Sample::default().elf();
    assert!(elf.starts_with(image.bytes()) && image.bytes().len() < elf.len());
    assert_eq!(image.entry, ENTRY);
    let places: Vec<_> = image
        .segments()
        .iter()
        .map(|s| (s.paddr, s.mem_size))
        .collect();
    assert_eq!(places, [(0x10_0000, 100), (0x20_0000, 8192)]);
    for segment in image.segments() {
        // The first byte of the n-th segment in the file is n.
        let number = if segment.paddr == 0x20_0000 { 0 } else { 1 };
        assert_eq!(elf[segment.offset as usize], number);
    }
    assert_eq!(image.note(5), Some(&b"xen-3.0"[..]));
    assert_eq!(image.note(18), Some(&[0x40, 0, 0x10, 0][..]));
    image.check(GuestType::Pv).unwrap();
    image.check(GuestType::Pvh).unwrap();
}

#[test]
fn each_compression_gives_the_same_kernel() {
    let elf = Sample::default().elf();
    assert_is_sample(&parse(elf.clone()).unwrap());
    assert_is_sample(&parse(bzimage(&elf)).unwrap());
    assert_is_sample(&parse(bzimage(&gzip(&elf))).unwrap());
    for pack in [xz, zstd, lz4] {
        assert_is_sample(&parse(bzimage(&with_length(pack(&elf), &elf))).unwrap());
    }
    for pack in [gzip, xz, zstd, lz4] {
        assert_is_sample(&parse(pack(&elf)).unwrap());
    }
}

#[test]
fn what_the_tools_make_of_it_with_linux_s_options_is_unpacked() {
    // scripts/Makefile.lib and scripts/xz_wrap.sh of Linux 6.12
    let commands: [&[&str]; 4] = [
        &["gzip", "-n", "-f", "-9"],
        &["xz", "--check=crc32", "--x86", "--lzma2=dict=128MiB"],
        &["zstd", "-22", "--ultra"],
        &["lz4", "-l", "-9", "-c"],
    ];
    let elf = Sample::default().elf();
    for command in commands {
        let packed = filter(command, &elf);
        assert_is_sample(&parse(packed.clone()).unwrap());
        let payload = match command[0] {
            "gzip" => packed,
            _ => with_length(packed, &elf),
        };
        assert_is_sample(&parse(bzimage(&payload)).unwrap());
    }
}

#[test]
fn what_is_not_unpacked_is_named() {
    for (magic, name) in [
        (&b"BZh91AY&SY"[..], "bzip2"),
        (b"\x5d\0\0\x80\0\xff\xff", "lzma"),
        (b"\x89LZO\0\r\n\x1a\n", "lzo"),
        (b"\x04\x22\x4d\x18", "lz4's frame format"),
        (b"\0\0\0\0\0\0\0\0", "something unknown"),
    ] {
        let expected =
            format!("compressed with {name}, which is not supported (gzip, xz, zstd and lz4 are)");
        assert_eq!(problem(bzimage(magic)), expected);
    }
}

#[test]
fn what_is_no_kernel_is_said_to_be_none() {
    let none = "not a kernel (neither a bzImage nor an ELF file)";
    for file in [&b""[..], b"#!/bin/sh\n", b"\x7fEL", &[0; 4096]] {
        assert_eq!(problem(file.to_vec()), none);
    }
    assert_eq!(problem(gzip(b"a page of text")), none);
    assert_eq!(problem(bzimage(&gzip(b"a page of text"))), none);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let elf = Sample::default().elf();
    let whole = elf.len();
    // Behind the notes come only section headers, which are not needed, but are part of
    // the file: without them it is cut too.
    for cut in 4..whole {
        let line = problem(elf[..cut].to_vec());
        assert!(line.starts_with("truncated kernel: "), "{cut}: {line}");
    }
    for payload in [
        gzip(&elf),
        with_length(zstd(&elf), &elf),
        with_length(xz(&elf), &elf),
    ] {
        let image = bzimage(&payload);
        for cut in (0x206..image.len() - 1001).step_by(7) {
            let line = problem(image[..cut].to_vec());
            assert!(line.starts_with("truncated kernel: "), "{cut}: {line}");
        }
    }
}

#[test]
fn a_payload_cut_with_its_header_put_right_is_refused() {
    let elf = Sample::default().elf();
    for pack in [gzip, xz, zstd, lz4] {
        let packed = pack(&elf);
        for cut in (20..packed.len() - 1).step_by(5) {
            let payload = with_length(packed[..cut].to_vec(), &elf);
            let line = problem(bzimage(&payload));
            assert!(
                line.starts_with("truncated kernel: ") || line.starts_with("damaged kernel: "),
                "{line}"
            );
        }
    }
}

#[test]
fn elf_files_that_could_not_be_loaded_are_refused() {
    let good = Sample::default();
    let load = |paddr, file_size, mem_size| Load {
        paddr,
        vaddr: 0,
        file_size,
        mem_size,
    };
    for (loads, expected) in [
        (vec![], "not a kernel for x86: it has no loadable segment"),
        (
            vec![load(0, 1, 0)],
            "not a kernel for x86: it has no loadable segment",
        ),
        (
            vec![load(0, 5, 4)],
            "not a kernel for x86: a segment is larger in the file than in memory",
        ),
        (
            vec![load(u64::MAX, 1, 2)],
            "not a kernel for x86: a segment lies beyond all memory",
        ),
        (
            vec![load(1 << 52, 1, 2)],
            "not a kernel for x86: a segment lies beyond all memory",
        ),
        (
            vec![load(0, 1, u64::MAX)],
            "not a kernel for x86: a segment lies beyond all memory",
        ),
        (
            vec![load(0, 1, 4097), load(4096, 1, 1)],
            "not a kernel for x86: its segments overlap",
        ),
        (
            vec![load(0, 1, 1), load(1 << 30, 1, 1)],
            "not a kernel for x86: its segments span more than 1 GiB",
        ),
        (
            vec![load(0, 1, 1); 65],
            "not a kernel for x86: it has too many segments",
        ),
    ] {
        let sample = Sample {
            loads,
            ..good.clone()
        };
        assert_eq!(problem(sample.elf()), expected);
    }
    let arm = Sample {
        machine: 183,
        ..good.clone()
    };
    assert_eq!(
        problem(arm.elf()),
        "not a kernel for x86: its machine is not x86"
    );
    let mut big_endian = good.elf();
    big_endian[5] = 2;
    assert_eq!(
        problem(big_endian),
        "not a kernel for x86: it is not little-endian"
    );
    let mut object = good.elf();
    object[16] = 1;
    assert_eq!(
        problem(object),
        "not a kernel for x86: it is not an executable"
    );
}

#[test]
fn old_kernels_are_refused() {
    let mut image = bzimage(b"");
    image[0x206] = 7;
    assert_eq!(
        problem(
            image
                .iter()
                .map(|b| if *b == 0x0f { 0x07 } else { *b })
                .collect()
        ),
        "boot protocol 2.07 is too old (2.08 is needed)"
    );
}

#[test]
fn notes_decide_what_a_kernel_boots_as() {
    let check = |notes: Vec<(u32, Vec<u8>)>, bits, kind| {
        let sample = Sample {
            bits,
            machine: if bits == 64 { 62 } else { 3 },
            loads: vec![Load {
                paddr: 0x10_0000,
                vaddr: 0x10_0000,
                file_size: 1,
                mem_size: 1,
            }],
            notes,
            note_segment: true,
        };
        let result = parse(sample.elf()).unwrap().check(kind);
        result.map_err(|problem| problem.to_string())
    };
    let entry = (1, vec![0; 8]);
    let version = (5, b"xen-3.0\0".to_vec());
    let pvh = (18, vec![0, 0, 0x10, 0]);
    let (pv, pvh_type) = (GuestType::Pv, GuestType::Pvh);
    assert_eq!(check(vec![entry.clone(), version.clone()], 64, pv), Ok(()));
    assert_eq!(check(vec![pvh.clone()], 64, pvh_type), Ok(()));
    assert_eq!(check(vec![pvh.clone()], 32, pvh_type), Ok(()));
    for (notes, bits, kind, expected) in [
        (
            vec![],
            64,
            pv,
            "not a kernel for Xen guests: it has no Xen notes",
        ),
        (
            vec![],
            64,
            pvh_type,
            "not a kernel for Xen guests: it has no Xen notes",
        ),
        (
            vec![entry.clone(), version.clone()],
            64,
            pvh_type,
            "cannot boot with type = \"pvh\": its notes name no PVH entry (PHYS32_ENTRY)",
        ),
        (
            vec![pvh.clone()],
            64,
            pv,
            "cannot boot with type = \"pv\": its notes name no PV entry (ENTRY)",
        ),
        (
            vec![entry.clone()],
            64,
            pv,
            "cannot boot with type = \"pv\": its notes do not say xen-3.0 (XEN_VERSION)",
        ),
        (
            vec![entry, version],
            32,
            pv,
            "cannot boot with type = \"pv\": it has 32 bits; PV guests must have 64 (PVH may have 32)",
        ),
    ] {
        assert_eq!(check(notes, bits, kind), Err(expected.to_owned()));
    }
}

#[test]
fn notes_in_a_section_are_found_and_the_last_of_a_type_counts() {
    let sample = Sample {
        note_segment: false,
        ..Sample::default()
    };
    let mut notes = sample.notes.clone();
    notes.push((5, b"xen-3.0-x86_64".to_vec()));
    let image = parse(Sample { notes, ..sample }.elf()).unwrap();
    assert_eq!(image.note(5), Some(&b"xen-3.0-x86_64"[..]));
    assert_eq!(image.notes.len(), 3);
    let kernel = image.kernel(ImageId([3; 32]));
    assert_eq!(kernel.image, ImageId([3; 32]));
    assert_eq!(
        (kernel.segments.len(), kernel.notes.len(), kernel.entry),
        (2, 3, ENTRY)
    );
}

#[test]
fn zeros_at_the_end_of_a_segment_do_not_travel() {
    let mut elf = Sample::default().elf();
    let image = parse(elf.clone()).unwrap();
    let segment = image.segments()[1].clone();
    let end = (segment.offset + segment.file_size) as usize;
    elf[end - 4000..end].fill(0);
    elf[end - 4001] = 1;
    let shorter = parse(elf).unwrap();
    assert_eq!(shorter.segments()[1].file_size, segment.file_size - 4000);
    assert_eq!(shorter.segments()[1].mem_size, segment.mem_size);
}

#[test]
fn what_unpacks_to_too_much_is_refused() {
    let zeros = vec![0; 100_000];
    for pack in [gzip, xz, zstd, lz4] {
        let result = parse_bounded(pack(&zeros), 99_999);
        assert!(matches!(result, Err(Problem::TooLarge)), "{result:?}");
        let payload = with_length(pack(&zeros), &zeros);
        let result = parse_bounded(bzimage(&payload), 99_999);
        assert!(matches!(result, Err(Problem::TooLarge)), "{result:?}");
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("vmlinuz");
    let line = open(&missing).unwrap_err().to_string();
    assert!(
        line.contains("vmlinuz: No such file or directory"),
        "{line}"
    );
    let line = open(dir.path()).unwrap_err().to_string();
    assert!(line.ends_with(": is a directory"), "{line}");
    std::fs::write(&missing, Sample::default().elf()).unwrap();
    assert_is_sample(&open(&missing).unwrap());
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            fuzz::parse(&bytes);
            fuzz::parse(&bzimage(&bytes));
            for magic in [&b"\x7fELF\x02\x01\x01"[..], b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"] {
                let mut file = magic.to_vec();
                file.extend(&bytes);
                fuzz::parse(&file);
                fuzz::parse(&bzimage(&file));
            }
        }

        #[test]
        fn any_changed_byte_is_survived(at: proptest::sample::Index, value: u8, pack in 0usize..5) {
            let elf = Sample::default().elf();
            let mut file = match pack {
                0 => elf,
                1 => bzimage(&gzip(&elf)),
                2 => bzimage(&with_length(xz(&elf), &elf)),
                3 => bzimage(&with_length(zstd(&elf), &elf)),
                _ => bzimage(&with_length(lz4(&elf), &elf)),
            };
            let at = at.index(file.len());
            file[at] = value;
            fuzz::parse(&file);
        }
    }
}
