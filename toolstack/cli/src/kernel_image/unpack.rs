//! The compressions that kernels come in.

use std::io::{self, Read};

use super::Problem;

/// Largest window or dictionary accepted, in bytes: what `zstd --ultra -22` and
/// `xz --lzma2=dict=128MiB` of Linux's build use.
const MAX_WINDOW: u64 = 128 << 20;
/// Largest block of lz4's legacy format.
const LZ4_BLOCK: usize = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Gzip,
    Xz,
    Zstd,
    Lz4,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
            Compression::Zstd => "zstd",
            Compression::Lz4 => "lz4",
        }
    }
}

enum Found {
    Supported(Compression),
    Unsupported(&'static str),
}

/// What a file is compressed with, by its first bytes; `None` if it does not seem to be.
fn find(bytes: &[u8]) -> Option<Found> {
    use Compression::{Gzip, Lz4, Xz, Zstd};
    let magics: [(&[u8], Found); 8] = [
        (b"\x1f\x8b\x08", Found::Supported(Gzip)),
        (b"\xfd7zXZ\0", Found::Supported(Xz)),
        (b"\x28\xb5\x2f\xfd", Found::Supported(Zstd)),
        (b"\x02\x21\x4c\x18", Found::Supported(Lz4)),
        (
            b"\x04\x22\x4d\x18",
            Found::Unsupported("lz4's frame format"),
        ),
        (b"BZh", Found::Unsupported("bzip2")),
        (b"\x5d\0\0", Found::Unsupported("lzma")),
        (b"\x89LZO", Found::Unsupported("lzo")),
    ];
    magics
        .into_iter()
        .find(|(magic, _)| bytes.starts_with(magic))
        .map(|(_, found)| found)
}

/// Unpacks a bzImage's payload: the kernel, compressed or not. In all formats the last
/// four bytes are the unpacked length: gzip has them itself, for the others Linux's build
/// appends them (`size_append` in scripts/Makefile.lib).
pub fn linux_payload(payload: &[u8], most: u64) -> Result<Vec<u8>, Problem> {
    let compression = match find(payload) {
        None if super::elf::is_elf(payload) => return Ok(payload.to_vec()),
        None => return Err(Problem::Compression("something unknown")),
        Some(Found::Unsupported(name)) => return Err(Problem::Compression(name)),
        Some(Found::Supported(compression)) => compression,
    };
    let truncated = Problem::Truncated {
        what: "the compressed kernel",
    };
    let Some((stream, length)) = payload.split_last_chunk::<4>() else {
        return Err(truncated);
    };
    let expected = u64::from(u32::from_le_bytes(*length));
    if expected > most {
        return Err(Problem::TooLarge);
    }
    let stream = match compression {
        Compression::Gzip => payload,
        _ => stream,
    };
    let unpacked = unpack(compression, stream, most)?;
    if u64::try_from(unpacked.len()).ok() != Some(expected) {
        return Err(truncated);
    }
    Ok(unpacked)
}

/// Unpacks a compressed file; `None` if it is not compressed.
pub fn whole(file: &[u8], most: u64) -> Result<Option<Vec<u8>>, Problem> {
    match find(file) {
        None => Ok(None),
        Some(Found::Unsupported(name)) => Err(Problem::Compression(name)),
        Some(Found::Supported(compression)) => unpack(compression, file, most).map(Some),
    }
}

fn unpack(compression: Compression, stream: &[u8], most: u64) -> Result<Vec<u8>, Problem> {
    let name = compression.name();
    match compression {
        Compression::Gzip => bounded(name, flate2::read::GzDecoder::new(stream), most),
        Compression::Xz => {
            let limit_kib = u32::try_from(MAX_WINDOW >> 10).unwrap_or(u32::MAX) * 2;
            let reader = lzma_rust2::XzReader::new_mem_limit(stream, false, limit_kib);
            bounded(name, reader, most)
        }
        Compression::Zstd => {
            let reader =
                ruzstd::decoding::StreamingDecoder::new_with_max_window_size(stream, MAX_WINDOW)
                    .map_err(|error| damaged(name, io::Error::other(error.to_string())))?;
            bounded(name, reader, most)
        }
        Compression::Lz4 => lz4(stream, most),
    }
}

fn damaged(compression: &'static str, error: io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Problem::Truncated {
            what: "the compressed kernel",
        },
        _ => Problem::Damaged { compression, error },
    }
}

fn bounded(name: &'static str, reader: impl Read, most: u64) -> Result<Vec<u8>, Problem> {
    let mut unpacked = Vec::new();
    reader
        .take(most + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| damaged(name, error))?;
    if u64::try_from(unpacked.len()).is_ok_and(|len| len > most) {
        return Err(Problem::TooLarge);
    }
    Ok(unpacked)
}

/// lz4's legacy format: the magic number, then blocks of at most 8 MiB, each after its
/// compressed length. It may start anew in the middle (files that were joined).
fn lz4(stream: &[u8], most: u64) -> Result<Vec<u8>, Problem> {
    const MAGIC: u32 = 0x184c_2102;
    let truncated = || Problem::Truncated {
        what: "the compressed kernel",
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    let mut rest = stream;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(truncated)?;
        let length = u32::from_le_bytes(*length);
        if length == MAGIC {
            rest = after;
            continue;
        }
        let length = usize::try_from(length).map_err(|_| truncated())?;
        let (packed, after) = after.split_at_checked(length).ok_or_else(truncated)?;
        let size = lz4_flex::block::decompress_into(packed, &mut block)
            .map_err(|error| damaged("lz4", io::Error::other(error.to_string())))?;
        if unpacked.len() + size > most {
            return Err(Problem::TooLarge);
        }
        unpacked.extend_from_slice(&block[..size]);
        rest = after;
    }
    Ok(unpacked)
}
