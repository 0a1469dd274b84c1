//! X25519 keys as text: 64 hex digits, or 44 (43 unpadded) characters of base64.

use alloc::string::String;
use core::fmt;

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// Neither 64 hex digits nor the base64 of 32 bytes.
    Form,
    /// All bytes are zero, which is what a forgotten key looks like.
    Zero,
}

/// A host's private key. Its bytes are not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey(
    /// X25519 scalar, before clamping.
    pub [u8; 32],
);

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostKey(secret)")
    }
}

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(
    /// X25519 u-coordinate.
    pub [u8; 32],
);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_base64(&self.0))
    }
}

/// Reads a key.
pub fn parse(text: &str) -> Result<[u8; 32], KeyError> {
    let bytes = text.trim().as_bytes();
    let key = if bytes.len() == 64 {
        hex(bytes)
    } else {
        base64(bytes)
    }
    .ok_or(KeyError::Form)?;
    if key == [0; 32] {
        return Err(KeyError::Zero);
    }
    Ok(key)
}

fn hex(text: &[u8]) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(key)
}

const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The value of one base64 character (RFC 4648, or its URL-safe form).
const fn sextet(c: u8) -> Option<u8> {
    match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    }
}

fn base64(text: &[u8]) -> Option<[u8; 32]> {
    let text = match text {
        [rest @ .., b'='] => rest,
        text => text,
    };
    // 32 bytes are 42 whole sextets and 4 bits.
    if text.len() != 43 {
        return None;
    }
    let mut key = [0; 32];
    let (mut bits, mut held, mut at) = (0u32, 0u32, 0);
    for &c in text {
        bits = (bits & 0xff) << 6 | u32::from(sextet(c)?);
        held += 6;
        if held >= 8 {
            held -= 8;
            key[at] = (bits >> held & 0xff).to_le_bytes()[0];
            at += 1;
        }
    }
    // The two bits left over must be zero, so that one key has one text.
    (bits & 0b11 == 0).then_some(key)
}

/// A key in base64 (RFC 4648, padded): 44 characters.
#[must_use]
pub fn to_base64(key: &[u8; 32]) -> String {
    let mut text = String::with_capacity(44);
    for chunk in key.chunks(3) {
        let mut word = 0u32;
        for i in 0..3 {
            word = word << 8 | u32::from(chunk.get(i).copied().unwrap_or(0));
        }
        for i in 0..=chunk.len() {
            let index = (word >> (18 - 6 * i) & 63) as usize;
            text.push(char::from(ALPHABET[index]));
        }
    }
    text.push('=');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn hex_and_base64_of_the_same_key_are_equal() {
        // Bytes 0, 8, 16, ..., 248; base64 made with `base64(1)`.
        let mut key = [0u8; 32];
        for (i, byte) in (0u8..).zip(key.iter_mut()) {
            *byte = i * 8;
        }
        let hex: String = key.iter().map(|b| format!("{b:02X}")).collect();
        let base64 = "AAgQGCAoMDhASFBYYGhweICIkJigqLC4wMjQ2ODo8Pg=";
        assert_eq!(parse(&hex), Ok(key));
        assert_eq!(parse(base64), Ok(key));
        assert_eq!(parse(&base64[..43]), Ok(key));
        assert_eq!(to_base64(&key), base64);
    }

    #[test]
    fn every_bit_survives_the_round_trip() {
        for bit in 0..256 {
            let mut key = [0u8; 32];
            key[bit / 8] = 1 << (bit % 8);
            assert_eq!(parse(&to_base64(&key)), Ok(key));
        }
    }

    #[test]
    fn wrong_lengths_and_characters_are_refused() {
        for bad in ["", "a", "AAgQGCAoMDhASFBYYGhweICIkJigqLC4wMjQ2ODo8P", "é"] {
            assert_eq!(parse(bad), Err(KeyError::Form));
        }
        // Not canonical: the unused bits are set.
        assert_eq!(
            parse("AAgQGCAoMDhASFBYYGhweICIkJigqLC4wMjQ2ODo8Ph="),
            Err(KeyError::Form)
        );
        assert_eq!(parse(&"0".repeat(64)), Err(KeyError::Zero));
        assert_eq!(parse(&"g".repeat(64)), Err(KeyError::Form));
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        assert_eq!(format!("{:?}", HostKey([0xab; 32])), "HostKey(secret)");
    }
}
