//! Kernels on the administrator's machine: found inside what distributions ship, unpacked
//! and checked, so that the host gets a plain ELF file and needs no decompressor.
//!
//! Accepted are Linux bzImages (payload gzip, xz, zstd, lz4 or not compressed) and ELF
//! files (vmlinux, GRUB's PV and PVH images; these too may be compressed). The ELF must
//! be little-endian x86 with segments that lie inside the file and do not overlap.
//!
//! - `bzimage`: the Linux/x86 boot protocol
//! - `unpack`: the compressions
//! - `elf`: segments and Xen's notes

mod bzimage;
mod elf;
mod unpack;

#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toolstack_domain::config::{GuestType, ImageId, Kernel, Segment};

/// Largest file read and largest kernel unpacked, in bytes.
pub const MAX_IMAGE: u64 = 512 << 20;

/// Notes of Xen that decide what a kernel can boot as; xen/include/public/elfnote.h.
const XEN_ELFNOTE_ENTRY: u32 = 1;
const XEN_ELFNOTE_XEN_VERSION: u32 = 5;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// A kernel, unpacked and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelImage {
    bytes: Vec<u8>,
    segments: Vec<Segment>,
    notes: Vec<(u32, Vec<u8>)>,
    entry: u64,
    bits: Bits,
}

/// ELF class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bits {
    B32,
    B64,
}

impl KernelImage {
    /// The ELF file up to the last byte that is loaded, which the host is to keep.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its loadable segments, in the order of their physical addresses, without overlap.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The value of one of Xen's notes.
    #[must_use]
    pub fn note(&self, kind: u32) -> Option<&[u8]> {
        self.notes
            .iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, value)| value.as_slice())
    }

    /// Checks that this kernel can boot as a guest of this type.
    ///
    /// # Errors
    /// [`Problem::NoNotes`] or [`Problem::Type`].
    pub fn check(&self, kind: GuestType) -> Result<(), Problem> {
        if self.notes.is_empty() {
            return Err(Problem::NoNotes);
        }
        let why = match kind {
            GuestType::Pvh if self.note(XEN_ELFNOTE_PHYS32_ENTRY).is_none() => {
                "its notes name no PVH entry (PHYS32_ENTRY)"
            }
            GuestType::Pvh => return Ok(()),
            GuestType::Pv if self.bits == Bits::B32 => {
                "it has 32 bits; PV guests must have 64 (PVH may have 32)"
            }
            GuestType::Pv if self.note(XEN_ELFNOTE_ENTRY).is_none() => {
                "its notes name no PV entry (ENTRY)"
            }
            GuestType::Pv => match self.note(XEN_ELFNOTE_XEN_VERSION) {
                Some(version) if version.starts_with(b"xen-3.0") => return Ok(()),
                _ => "its notes do not say xen-3.0 (XEN_VERSION)",
            },
        };
        Err(Problem::Type { kind, why })
    }

    /// What the host is told about this kernel once it keeps the [bytes](Self::bytes).
    #[must_use]
    pub fn kernel(&self, image: ImageId) -> Kernel {
        Kernel {
            image,
            segments: self.segments.clone(),
            notes: self.notes.clone(),
            entry: self.entry,
        }
    }
}

/// A kernel that cannot be used, and its file. `Display` gives one line.
#[derive(Debug)]
pub struct ImageError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.problem)
    }
}

impl std::error::Error for ImageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.problem {
            Problem::File(error) | Problem::Damaged { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// What is wrong with a kernel.
#[derive(Debug)]
pub enum Problem {
    /// The file could not be read.
    File(std::io::Error),
    /// Larger than [`MAX_IMAGE`], before or after unpacking.
    TooLarge,
    /// Neither a bzImage nor an ELF file.
    NotAKernel,
    /// It ends before what its headers promise.
    Truncated {
        /// What is not all there.
        what: &'static str,
    },
    /// A bzImage older than boot protocol 2.08 (Linux 2.6.26), which names no payload.
    TooOld {
        /// Its boot protocol.
        protocol: u16,
    },
    /// Compressed in a way that is not unpacked here.
    Compression(&'static str),
    /// The compressed bytes are wrong.
    Damaged {
        /// The compression.
        compression: &'static str,
        /// What its decoder says.
        error: std::io::Error,
    },
    /// The ELF file is not what it must be.
    Elf(&'static str),
    /// It has no notes of Xen's, so it is not made to run as a guest without firmware.
    NoNotes,
    /// It cannot boot as this type of guest.
    Type {
        /// The type asked for.
        kind: GuestType,
        /// Why not.
        why: &'static str,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::File(error) => error.fmt(f),
            Problem::TooLarge => write!(f, "larger than {} MiB", MAX_IMAGE >> 20),
            Problem::NotAKernel => f.write_str("not a kernel (neither a bzImage nor an ELF file)"),
            Problem::Truncated { what } => write!(f, "truncated kernel: {what} is not all there"),
            Problem::TooOld { protocol } => write!(
                f,
                "boot protocol {}.{:02} is too old (2.08 is needed)",
                protocol >> 8,
                protocol & 0xff
            ),
            Problem::Compression(name) => write!(
                f,
                "compressed with {name}, which is not supported (gzip, xz, zstd and lz4 are)"
            ),
            Problem::Damaged { compression, error } => {
                write!(
                    f,
                    "damaged kernel: its {compression} data cannot be unpacked: {error}"
                )
            }
            Problem::Elf(why) => write!(f, "not a kernel for x86: {why}"),
            Problem::NoNotes => f.write_str("not a kernel for Xen guests: it has no Xen notes"),
            Problem::Type { kind, why } => {
                let kind = match kind {
                    GuestType::Pv => "pv",
                    GuestType::Pvh => "pvh",
                };
                write!(f, "cannot boot with type = \"{kind}\": {why}")
            }
        }
    }
}

/// Reads, unpacks and checks the kernel in the file `path`.
///
/// Whether it suits the guest's type is a question of its own: [`KernelImage::check`].
///
/// # Errors
/// One line that says what is wrong with which file.
pub fn open(path: &Path) -> Result<KernelImage, ImageError> {
    read(path).and_then(parse).map_err(|problem| ImageError {
        path: path.to_owned(),
        problem,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    let file = File::open(path).map_err(Problem::File)?;
    // Without this a directory opens, and reading it says less.
    if file.metadata().map_err(Problem::File)?.is_dir() {
        return Err(Problem::File(std::io::ErrorKind::IsADirectory.into()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_IMAGE + 1)
        .read_to_end(&mut bytes)
        .map_err(Problem::File)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_IMAGE) {
        return Err(Problem::TooLarge);
    }
    Ok(bytes)
}

/// [`open`] for a file that has been read.
///
/// # Errors
/// What is wrong with it.
pub fn parse(file: Vec<u8>) -> Result<KernelImage, Problem> {
    parse_bounded(file, MAX_IMAGE)
}

fn parse_bounded(file: Vec<u8>, most: u64) -> Result<KernelImage, Problem> {
    let elf = if let Some(payload) = bzimage::payload(&file)? {
        unpack::linux_payload(payload, most)?
    } else if elf::is_elf(&file) {
        file
    } else if let Some(unpacked) = unpack::whole(&file, most)? {
        unpacked
    } else {
        return Err(Problem::NotAKernel);
    };
    elf::parse(elf)
}

/// Entry point for fuzzers: any bytes as a file.
pub mod fuzz {
    /// Parses, and holds what is good to what it promises.
    pub fn parse(data: &[u8]) {
        // A small bound, so that a fuzzer does not spend its time on unpacking zeros.
        let Ok(image) = super::parse_bounded(data.to_vec(), 1 << 20) else {
            return;
        };
        let mut end = 0;
        for segment in image.segments() {
            assert!(segment.paddr >= end && segment.file_size <= segment.mem_size);
            end = segment.paddr + segment.mem_size;
            let from = usize::try_from(segment.offset).expect("checked");
            let len = usize::try_from(segment.file_size).expect("checked");
            assert!(image.bytes().get(from..from + len).is_some());
        }
    }
}
