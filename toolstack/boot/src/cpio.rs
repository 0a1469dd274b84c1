//! The `newc` cpio format (cpio(5)): a header of ASCII hex fields, name, data, each padded
//! to four bytes; the entry `TRAILER!!!` ends it.

use alloc::format;
use alloc::vec::Vec;

/// Largest archive looked at, in bytes.
pub const MAX_ARCHIVE: usize = 1 << 20;
/// Most entries of an archive.
pub const MAX_ENTRIES: usize = 64;
/// Longest file name, with its NUL.
pub const MAX_FILE_NAME: usize = 256;

const HEADER: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
/// File type bits of `c_mode`, and the one of a regular file.
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;

/// Why bytes are no archive; each with what to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpioError {
    /// Compressed, with this.
    Compressed(&'static str),
    /// This is wrong with it.
    Malformed(&'static str),
    /// More than this.
    TooMuch(&'static str),
}

/// A regular file of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name without a leading `./` or `/`.
    pub name: &'a [u8],
    /// What is in it.
    pub data: &'a [u8],
}

/// Magic numbers of what an initrd may be compressed with.
const COMPRESSIONS: [(&[u8], &str); 7] = [
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"BZh", "bzip2"),
    (b"\x5d\0\0", "lzma"),
    (b"\x89LZO", "lzo"),
];

/// The regular files of an archive, in its order.
///
/// Stops at the trailer; what follows it (padding, or an archive joined to it) does not
/// count.
pub fn read(bytes: &[u8]) -> Result<Vec<Entry<'_>>, CpioError> {
    if bytes.len() > MAX_ARCHIVE {
        return Err(CpioError::TooMuch("1 MiB"));
    }
    if let Some((_, with)) = COMPRESSIONS.iter().find(|(m, _)| bytes.starts_with(m)) {
        return Err(CpioError::Compressed(with));
    }
    let mut entries = Vec::new();
    let mut at = 0;
    for _ in 0..MAX_ENTRIES {
        let header = bytes
            .get(at..at + HEADER)
            .ok_or(CpioError::Malformed("it ends early"))?;
        if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            return Err(CpioError::Malformed("no magic number where a file starts"));
        }
        let mode = field(header, 1)?;
        let file_size = size(header, 6)?;
        let name_size = size(header, 11)?;
        if name_size == 0 || name_size > MAX_FILE_NAME {
            return Err(CpioError::Malformed("a file name of impossible length"));
        }
        // None of these sums overflows: sizes fit 32 bits, `at` is below MAX_ARCHIVE.
        let name = slice(bytes, at + HEADER, name_size)?;
        let Some((0, name)) = name.split_last() else {
            return Err(CpioError::Malformed("a file name without its NUL"));
        };
        if name == TRAILER {
            return Ok(entries);
        }
        let data_at = (at + HEADER + name_size).next_multiple_of(4);
        let data = slice(bytes, data_at, file_size)?;
        if mode & S_IFMT == S_IFREG {
            let name = name.strip_prefix(b"./").unwrap_or(name);
            let name = name.strip_prefix(b"/").unwrap_or(name);
            entries.push(Entry { name, data });
        }
        at = (data_at + file_size).next_multiple_of(4);
    }
    Err(CpioError::TooMuch("64 files"))
}

fn slice(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], CpioError> {
    at.checked_add(len)
        .and_then(|end| bytes.get(at..end))
        .ok_or(CpioError::Malformed("it ends early"))
}

/// The `index`-th 8-digit field after the magic number.
fn field(header: &[u8], index: usize) -> Result<u32, CpioError> {
    let digits = &header[6 + 8 * index..][..8];
    let mut value = 0;
    for &digit in digits {
        let digit = char::from(digit)
            .to_digit(16)
            .ok_or(CpioError::Malformed("a field that is not hexadecimal"))?;
        value = value << 4 | digit;
    }
    Ok(value)
}

fn size(header: &[u8], index: usize) -> Result<usize, CpioError> {
    usize::try_from(field(header, index)?).map_err(|_| CpioError::TooMuch("1 MiB"))
}

/// Adds a file to an archive being written. `mode` holds the permission bits.
///
/// # Panics
/// If the name or the data do not fit the format (4 GiB).
pub fn push(archive: &mut Vec<u8>, inode: u32, name: &str, mode: u32, data: &[u8]) {
    push_entry(archive, inode, name.as_bytes(), S_IFREG | mode, data);
}

/// Ends an archive, padded to 512 bytes as cpio(1) does.
pub fn finish(archive: &mut Vec<u8>) {
    push_entry(archive, 0, TRAILER, 0, &[]);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn push_entry(archive: &mut Vec<u8>, inode: u32, name: &[u8], mode: u32, data: &[u8]) {
    let file_size = u32::try_from(data.len()).expect("a boot file below 4 GiB");
    let name_size = u32::try_from(name.len() + 1).expect("a file name below 4 GiB");
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor
    // namesize check; owner and time are 0, so that equal contents give equal bytes.
    let fields = [inode, mode, 0, 0, 1, 0, file_size, 0, 0, 0, 0, name_size, 0];
    archive.extend_from_slice(b"070701");
    for value in fields {
        archive.extend_from_slice(format!("{value:08X}").as_bytes());
    }
    archive.extend_from_slice(name);
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
