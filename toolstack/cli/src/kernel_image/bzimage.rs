//! Linux's boot protocol for x86 (Documentation/arch/x86/boot.rst): where in a bzImage
//! the compressed kernel is.

use super::Problem;

const BOOT_FLAG_AT: usize = 0x1fe;
const SETUP_SECTS_AT: usize = 0x1f1;
const HEADER_AT: usize = 0x202;
const VERSION_AT: usize = 0x206;
const PAYLOAD_OFFSET_AT: usize = 0x248;
const PAYLOAD_LENGTH_AT: usize = 0x24c;
/// The first protocol with `payload_offset` and `payload_length`.
const FIRST_WITH_PAYLOAD: u16 = 0x0208;
const SECTOR: usize = 512;

/// The payload of a bzImage; `None` if the file is none.
pub fn payload(file: &[u8]) -> Result<Option<&[u8]>, Problem> {
    if bytes(file, BOOT_FLAG_AT) != Some([0x55, 0xaa]) || bytes(file, HEADER_AT) != Some(*b"HdrS") {
        return Ok(None);
    }
    let header = Problem::Truncated {
        what: "the setup header",
    };
    let Some(protocol) = bytes(file, VERSION_AT).map(u16::from_le_bytes) else {
        return Err(header);
    };
    if protocol < FIRST_WITH_PAYLOAD {
        return Err(Problem::TooOld { protocol });
    }
    let (Some(offset), Some(length)) = (
        bytes(file, PAYLOAD_OFFSET_AT).map(u32::from_le_bytes),
        bytes(file, PAYLOAD_LENGTH_AT).map(u32::from_le_bytes),
    ) else {
        return Err(header);
    };
    // "For backwards compatibility, if the setup_sects field contains 0, the real value
    // is 4." The boot sector comes before them.
    let sectors = match file[SETUP_SECTS_AT] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let range = || {
        let from = ((sectors + 1) * SECTOR).checked_add(usize::try_from(offset).ok()?)?;
        file.get(from..from.checked_add(usize::try_from(length).ok()?)?)
    };
    range().map(Some).ok_or(Problem::Truncated {
        what: "the compressed kernel",
    })
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at + N)?.try_into().ok()
}
