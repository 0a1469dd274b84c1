//! The sleep type that turns the machine off.

use crate::Table;

/// AML `NameOp`, `PackageOp`, and the integer prefixes (ACPI 6.5, 20.2).
const NAME_OP: u8 = 0x08;
const PACKAGE_OP: u8 = 0x12;
const BYTE_PREFIX: u8 = 0x0a;

/// `SLP_TYPa` and `SLP_TYPb` of `Name (_S5_, Package { a, b, ... })` in a DSDT or SSDT.
///
/// The object is static on every machine we know of, so its encoding is looked
/// for instead of interpreting AML: `08 [5c] 5f 53 35 5f 12 PkgLength NumElements a b`.
pub fn sleep_type_s5(table: &Table) -> Option<(u8, u8)> {
    let bytes = &table.bytes;
    let at = bytes.windows(4).enumerate().find_map(|(i, w)| {
        let named = i >= 1
            && (bytes[i - 1] == NAME_OP
                || (bytes[i - 1] == b'\\' && i >= 2 && bytes[i - 2] == NAME_OP));
        (w == b"_S5_" && named).then_some(i + 4)
    })?;
    let rest = bytes.get(at..)?;
    if *rest.first()? != PACKAGE_OP {
        return None;
    }
    // PkgLength: the top two bits of its first byte count the bytes that follow.
    let length_bytes = 1 + usize::from(*rest.get(1)? >> 6);
    let mut elements = rest.get(1 + length_bytes + 1..)?;
    let a = integer(&mut elements)?;
    let b = integer(&mut elements)?;
    Some((a & 7, b & 7))
}

fn integer(from: &mut &[u8]) -> Option<u8> {
    let (&op, rest) = from.split_first()?;
    let (value, rest) = match op {
        // ZeroOp, OneOp, and the byte form; sleep types have three bits.
        0 | 1 => (op, rest),
        BYTE_PREFIX => {
            let (&value, rest) = rest.split_first()?;
            (value, rest)
        }
        _ => return None,
    };
    *from = rest;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dsdt(body: &[u8]) -> Table {
        Table {
            signature: *b"DSDT",
            bytes: crate::tables::tests::table(b"DSDT", body),
        }
    }

    #[test]
    fn both_encodings_of_the_sleep_type_are_read() {
        // q35's: Name (_S5, Package (4) { Zero, Zero, Zero, Zero })
        assert_eq!(
            sleep_type_s5(&dsdt(b"\x08_S5_\x12\x06\x04\0\0\0\0")),
            Some((0, 0))
        );
        // A laptop's: Package { 0x07, 0x07, 0, 0 }, with a root prefix.
        assert_eq!(
            sleep_type_s5(&dsdt(b"\x08\\_S5_\x12\x08\x04\x0a\x07\x0a\x05\0\0")),
            Some((7, 5))
        );
    }

    #[test]
    fn a_mention_that_is_no_definition_is_passed_over() {
        assert_eq!(sleep_type_s5(&dsdt(b"\x70_S5_\x12\x06\x04\0\0\0\0")), None);
        assert_eq!(sleep_type_s5(&dsdt(b"\x08_S5_")), None);
    }
}
