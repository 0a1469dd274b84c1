//! Identify data structures (section 5.15), parsed into what the driver uses.

use alloc::string::String;

/// Bytes of every identify structure.
pub const LEN: usize = 4096;

/// Identify Controller (CNS 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    pub serial: String,
    pub model: String,
    /// Longest transfer in bytes, if there is a limit.
    pub max_transfer: Option<u64>,
    pub volatile_write_cache: bool,
    pub discard: bool,
}

impl Controller {
    pub fn parse(data: &[u8; LEN]) -> Self {
        let mdts = data[77];
        Self {
            serial: text(&data[4..24]),
            model: text(&data[24..64]),
            // A power of two in units of the smallest page, which is 4 KiB here; 0: no
            // limit. More than 2^31 pages is as good as none.
            max_transfer: (mdts != 0 && mdts < 32).then(|| 4096 << mdts),
            volatile_write_cache: data[525] & 1 != 0,
            discard: data[520] & 1 << 2 != 0,
        }
    }
}

/// Identify Namespace (CNS 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub blocks: u64,
    pub block_size: u32,
}

/// Why a namespace cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadNamespace {
    /// Blocks of 2^n bytes, n not 9 or 12.
    BlockShift(u8),
    /// Blocks carry so many bytes of metadata.
    Metadata(u16),
    /// No blocks.
    Empty,
}

impl Namespace {
    pub fn parse(data: &[u8; LEN]) -> Result<Self, BadNamespace> {
        let mut size = [0; 8];
        size.copy_from_slice(&data[..8]);
        let blocks = u64::from_le_bytes(size);
        let format = 128 + 4 * usize::from(data[26] & 0xf);
        let metadata = u16::from_le_bytes([data[format], data[format + 1]]);
        let shift = data[format + 2];
        if shift != 9 && shift != 12 {
            return Err(BadNamespace::BlockShift(shift));
        }
        if metadata != 0 {
            return Err(BadNamespace::Metadata(metadata));
        }
        // So that no byte offset on the disk overflows.
        if blocks == 0 || blocks > u64::MAX >> 13 {
            return Err(BadNamespace::Empty);
        }
        Ok(Self {
            blocks,
            block_size: 1 << shift,
        })
    }
}

/// The first id of an active namespace list (CNS 2).
pub fn first_namespace(data: &[u8; LEN]) -> Option<u32> {
    let id = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
    (id != 0).then_some(id)
}

/// Space-padded ASCII; what a device put there that is not printable becomes '?'.
fn text(bytes: &[u8]) -> String {
    let text: String = bytes
        .iter()
        .map(|b| match b {
            0x20..=0x7e => char::from(*b),
            0 => ' ',
            _ => '?',
        })
        .collect();
    String::from(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_fields_are_where_the_specification_has_them() {
        let mut data = [0; LEN];
        data[4..24].copy_from_slice(b"S123\x01               ");
        data[24..64].copy_from_slice(b"QEMU NVMe Ctrl                          ");
        data[77] = 7;
        data[520] = 4;
        data[525] = 7;
        let controller = Controller::parse(&data);
        assert_eq!(controller.serial, "S123?");
        assert_eq!(controller.model, "QEMU NVMe Ctrl");
        assert_eq!(controller.max_transfer, Some(512 << 10));
        assert!(controller.volatile_write_cache && controller.discard);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_usable_namespace_or_a_reason(
            head in proptest::collection::vec(any::<u8>(), 256)
        ) {
            let mut data = [0; LEN];
            data[..256].copy_from_slice(&head);
            if let Ok(namespace) = Namespace::parse(&data) {
                prop_assert!([512, 4096].contains(&namespace.block_size));
                prop_assert!(namespace.blocks.checked_mul(namespace.block_size.into()).is_some());
            }
        }
    }
}
