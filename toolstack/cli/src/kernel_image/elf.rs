//! The ELF file: its segments and Xen's notes, checked.

use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, ET_DYN, ET_EXEC, PT_LOAD, PT_NOTE, SHT_NOTE};
use elf::endian::LittleEndian;
use elf::file::Class;
use toolstack_domain::config::Segment;

use super::{Bits, KernelImage, Problem};

/// Most loadable segments; Linux has four, GRUB two.
const MAX_SEGMENTS: usize = 64;
/// Most notes of Xen's; there are twenty types.
const MAX_NOTES: usize = 64;
/// Longest value of a note, in bytes.
const MAX_NOTE: usize = 4096;
/// Most memory that a kernel's segments may take, in bytes.
const MAX_MEMORY: u64 = 1 << 30;
/// Lowest address that no segment may reach: what x86's page tables can map.
const END_OF_MEMORY: u64 = 1 << 52;

/// Types of notes whose value is text; xen/include/public/elfnote.h.
const TEXT_NOTES: [u32; 6] = [
    5,  // XEN_VERSION
    6,  // GUEST_OS
    7,  // GUEST_VERSION
    8,  // LOADER
    9,  // PAE_MODE
    10, // FEATURES
];

/// Whether a file starts as ELF files do.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Checks an ELF file, and keeps what is loaded of it.
pub fn parse(mut bytes: Vec<u8>) -> Result<KernelImage, Problem> {
    if !is_elf(&bytes) {
        return Err(Problem::NotAKernel);
    }
    let (mut segments, notes, entry, bits) = {
        let file = open(&bytes)?;
        let bits = match (file.ehdr.class, file.ehdr.e_machine) {
            (Class::ELF32, EM_386) => Bits::B32,
            (Class::ELF64, EM_X86_64) => Bits::B64,
            _ => return Err(Problem::Elf("its machine is not x86")),
        };
        if !matches!(file.ehdr.e_type, ET_EXEC | ET_DYN) {
            return Err(Problem::Elf("it is not an executable"));
        }
        (
            segments(&file, &bytes)?,
            notes(&file, &bytes)?,
            file.ehdr.e_entry,
            bits,
        )
    };
    // Memory behind a segment's bytes is zero anyway, and Linux's last segment is mostly
    // zeros: a fifth of the file need not travel.
    let mut end = 0;
    for segment in &mut segments {
        let loaded = slice(&bytes, segment.offset, segment.file_size).unwrap_or(&[]);
        let used = loaded.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
        let from = usize::try_from(segment.offset).unwrap_or(0);
        segment.file_size = u64::try_from(used).unwrap_or(segment.file_size);
        end = end.max(from + used);
    }
    bytes.truncate(end);
    bytes.shrink_to_fit();
    Ok(KernelImage {
        bytes,
        segments,
        notes,
        entry,
        bits,
    })
}

fn open(bytes: &[u8]) -> Result<ElfBytes<'_, LittleEndian>, Problem> {
    use elf::ParseError;
    ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(|error| match error {
        ParseError::SliceReadError(_) => Problem::Truncated {
            what: "the ELF headers",
        },
        ParseError::UnsupportedElfEndianness(_) => Problem::Elf("it is not little-endian"),
        _ => Problem::Elf("its ELF headers are malformed"),
    })
}

/// A run of the file.
fn slice(bytes: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let from = usize::try_from(offset).ok()?;
    bytes.get(from..from.checked_add(usize::try_from(size).ok()?)?)
}

fn segments(file: &ElfBytes<'_, LittleEndian>, bytes: &[u8]) -> Result<Vec<Segment>, Problem> {
    let mut segments = Vec::new();
    let headers = file.segments().ok_or(Problem::Elf("it has no segments"))?;
    for header in headers.iter() {
        if header.p_type != PT_LOAD || header.p_memsz == 0 {
            continue;
        }
        if segments.len() == MAX_SEGMENTS {
            return Err(Problem::Elf("it has too many segments"));
        }
        if slice(bytes, header.p_offset, header.p_filesz).is_none() {
            return Err(Problem::Truncated {
                what: "a segment of the ELF file",
            });
        }
        if header.p_filesz > header.p_memsz {
            return Err(Problem::Elf(
                "a segment is larger in the file than in memory",
            ));
        }
        let end = header.p_paddr.checked_add(header.p_memsz);
        if end.is_none_or(|end| end > END_OF_MEMORY) {
            return Err(Problem::Elf("a segment lies beyond all memory"));
        }
        segments.push(Segment {
            paddr: header.p_paddr,
            vaddr: header.p_vaddr,
            offset: header.p_offset,
            file_size: header.p_filesz,
            mem_size: header.p_memsz,
        });
    }
    // By physical address: Linux's per-CPU segment has virtual address 0, between others.
    segments.sort_by_key(|s| s.paddr);
    if segments
        .windows(2)
        .any(|pair| pair[0].paddr + pair[0].mem_size > pair[1].paddr)
    {
        return Err(Problem::Elf("its segments overlap"));
    }
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
        return Err(Problem::Elf("it has no loadable segment"));
    };
    if last.paddr + last.mem_size - first.paddr > MAX_MEMORY {
        return Err(Problem::Elf("its segments span more than 1 GiB"));
    }
    Ok(segments)
}

/// Xen's notes, from the note segments, or from note sections if those hold none.
fn notes(file: &ElfBytes<'_, LittleEndian>, bytes: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, Problem> {
    let mut notes = Vec::new();
    for header in file.segments().into_iter().flatten() {
        if header.p_type == PT_NOTE {
            let data =
                slice(bytes, header.p_offset, header.p_filesz).ok_or(Problem::Truncated {
                    what: "the notes of the ELF file",
                })?;
            collect(data, &mut notes)?;
        }
    }
    if notes.is_empty() {
        for header in file.section_headers().into_iter().flatten() {
            // Sections are not needed to boot; a note section outside the file is no note.
            if header.sh_type == SHT_NOTE
                && let Some(data) = slice(bytes, header.sh_offset, header.sh_size)
            {
                collect(data, &mut notes)?;
            }
        }
    }
    Ok(notes)
}

/// Adds Xen's notes in `data`. Name and value are padded to four bytes whatever the
/// segment's alignment says: so Xen's own loader (libelf) reads them.
fn collect(data: &[u8], notes: &mut Vec<(u32, Vec<u8>)>) -> Result<(), Problem> {
    let mut rest = data;
    while let Some((header, after)) = rest.split_first_chunk::<12>() {
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let split = |from: &'_ [u8], size: u32| -> Option<usize> {
            usize::try_from(size)
                .ok()
                .filter(|size| *size <= from.len())
        };
        let malformed = Problem::Elf("its notes are malformed");
        let Some(name_size) = split(after, word(0)) else {
            return Err(malformed);
        };
        let (name, _) = after.split_at(name_size);
        let after = after.get(name_size.next_multiple_of(4)..).unwrap_or(&[]);
        let Some(value_size) = split(after, word(4)) else {
            return Err(malformed);
        };
        let (value, _) = after.split_at(value_size);
        rest = after.get(value_size.next_multiple_of(4)..).unwrap_or(&[]);
        if name != b"Xen\0" {
            continue;
        }
        if value_size > MAX_NOTE || notes.len() == MAX_NOTES {
            return Err(Problem::Elf("its notes are too large"));
        }
        let kind = word(8);
        let value = if TEXT_NOTES.contains(&kind) {
            value.split(|b| *b == 0).next().unwrap_or(value)
        } else {
            value
        };
        // The last one of a type counts, as in libelf.
        notes.retain(|(k, _)| *k != kind);
        notes.push((kind, value.to_vec()));
    }
    Ok(())
}
