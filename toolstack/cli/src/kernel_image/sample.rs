//! Small kernels for tests: ELF files and bzImages made to order.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

/// One program header.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub paddr: u64,
    pub vaddr: u64,
    pub file_size: u64,
    pub mem_size: u64,
}

/// What an ELF file is made of.
#[derive(Clone, Debug)]
pub struct Sample {
    pub bits: u8,
    pub machine: u16,
    pub loads: Vec<Load>,
    pub notes: Vec<(u32, Vec<u8>)>,
    /// Whether the notes have a segment, or only a section.
    pub note_segment: bool,
}

impl Default for Sample {
    /// Boots as PV and as PVH, by its headers.
    fn default() -> Self {
        Sample {
            bits: 64,
            machine: 62,
            loads: vec![
                Load {
                    paddr: 0x20_0000,
                    vaddr: 0xffff_ffff_8020_0000,
                    file_size: 5000,
                    mem_size: 8192,
                },
                Load {
                    paddr: 0x10_0000,
                    vaddr: 0,
                    file_size: 100,
                    mem_size: 100,
                },
            ],
            notes: vec![
                (1, 0xffff_ffff_8010_0000u64.to_le_bytes().to_vec()),
                (5, b"xen-3.0\0".to_vec()),
                (18, 0x10_0040u32.to_le_bytes().to_vec()),
            ],
            note_segment: true,
        }
    }
}

/// Where the entry of every sample is.
pub const ENTRY: u64 = 0x10_0000;

impl Sample {
    pub fn elf(&self) -> Vec<u8> {
        let wide = self.bits == 64;
        let word = |value: u64| -> Vec<u8> {
            if wide {
                value.to_le_bytes().to_vec()
            } else {
                u32::try_from(value).unwrap().to_le_bytes().to_vec()
            }
        };
        let (header_size, segment_size, section_size) = if wide {
            (64u64, 56u64, 64u64)
        } else {
            (52, 32, 40)
        };
        let mut notes = Vec::new();
        for (kind, value) in &self.notes {
            notes.extend(4u32.to_le_bytes());
            notes.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(b"Xen\0");
            notes.extend(value);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        let segments = self.loads.len() as u64 + u64::from(self.note_segment);
        let mut at = header_size + segments * segment_size;
        let mut headers = Vec::new();
        let mut data = Vec::new();
        let mut segment = |kind: u32, load: Load, offset: u64| {
            let (p, v, f, m) = (load.paddr, load.vaddr, load.file_size, load.mem_size);
            headers.extend(kind.to_le_bytes());
            if wide {
                headers.extend(7u32.to_le_bytes());
            }
            for value in [offset, v, p, f, m] {
                headers.extend(word(value));
            }
            if !wide {
                headers.extend(7u32.to_le_bytes());
            }
            headers.extend(word(4));
        };
        for (number, load) in self.loads.iter().enumerate() {
            segment(1, *load, at);
            let bytes = (0..load.file_size).map(|i| (i % 251) as u8 ^ number as u8);
            data.extend(bytes);
            at += load.file_size;
        }
        let notes_at = at;
        if self.note_segment {
            let size = notes.len() as u64;
            let load = Load {
                paddr: 0,
                vaddr: 0,
                file_size: size,
                mem_size: size,
            };
            segment(4, load, at);
        }
        let notes_size = notes.len() as u64;
        data.extend(notes);
        at += notes_size;

        let mut elf = b"\x7fELF".to_vec();
        elf.extend([if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        elf.extend(2u16.to_le_bytes());
        elf.extend(self.machine.to_le_bytes());
        elf.extend(1u32.to_le_bytes());
        elf.extend(word(ENTRY));
        elf.extend(word(header_size));
        elf.extend(word(at));
        elf.extend(0u32.to_le_bytes());
        for value in [header_size, segment_size, segments, section_size, 2, 0] {
            elf.extend(u16::try_from(value).unwrap().to_le_bytes());
        }
        elf.extend(headers);
        elf.extend(data);
        // An empty section, then the notes as a section.
        elf.resize(elf.len() + section_size as usize, 0);
        elf.extend(0u32.to_le_bytes());
        elf.extend(7u32.to_le_bytes());
        for value in [0, 0, notes_at, notes_size] {
            elf.extend(word(value));
        }
        elf.extend([0; 8]);
        elf.extend(word(4));
        elf.extend(word(0));
        elf
    }
}

/// A bzImage with this payload.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 512 * 5];
    file[0x1f1] = 4;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
    let length = u32::try_from(payload.len()).unwrap();
    file[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
    // Code that runs in front of the payload, and after it.
    file.extend([0x90; 100]);
    file.extend(payload);
    file.extend([0x90; 1000]);
    file
}

/// A compressed kernel with its unpacked length behind it.
pub fn with_length(mut packed: Vec<u8>, unpacked: &[u8]) -> Vec<u8> {
    packed.extend(u32::try_from(unpacked.len()).unwrap().to_le_bytes());
    packed
}
