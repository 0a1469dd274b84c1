//! X25519 keys and their text form.
//!
//! Written as 44 characters of base64, as WireGuard's tools do; read as these or as 64
//! hexadecimal digits.

use alloc::boxed::Box;
use core::fmt::{self, Write as _};
use core::str::FromStr;
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::Dh;

use crate::stream::{Entropy, NoEntropy};

/// Bytes of either key.
pub const KEY_LEN: usize = 32;

/// A public key: names a host or an administrator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(
    /// The Montgomery u-coordinate, little endian (RFC 7748).
    pub [u8; KEY_LEN],
);

/// A private key. Its text goes nowhere but into a file that its owner alone can read.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; KEY_LEN]);

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// Neither 64 hexadecimal digits nor 44 characters of base64.
    Length {
        /// Characters found.
        found: usize,
    },
    /// A character that has no place there.
    Character {
        /// Where, counted from 0.
        at: usize,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Length { found } => {
                write!(
                    f,
                    "a key has 64 hexadecimal digits or 44 of base64, not {found}"
                )
            }
            KeyError::Character { at } => {
                write!(f, "character {} is neither hexadecimal nor base64", at + 1)
            }
        }
    }
}

impl core::error::Error for KeyError {}

impl PrivateKey {
    /// Makes a key up.
    ///
    /// # Errors
    /// `entropy` has nothing to give.
    pub fn generate(entropy: &mut dyn Entropy) -> Result<Self, NoEntropy> {
        let mut bytes = [0; KEY_LEN];
        entropy.fill(&mut bytes)?;
        Ok(PrivateKey(bytes))
    }

    /// The key with these bytes. Any 32 bytes are a key (RFC 7748 clamps them).
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        PrivateKey(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The public key that goes with it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut dh = x25519();
        dh.set(&self.0);
        let mut public = [0; KEY_LEN];
        public.copy_from_slice(dh.pubkey());
        PublicKey(public)
    }
}

/// X25519 itself.
fn x25519() -> Box<dyn Dh> {
    // Only a build without snow's `use-curve25519` could lack it, and none of ours is.
    DefaultResolver
        .resolve_dh(&DHChoice::Curve25519)
        .expect("snow is built with use-curve25519")
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Logs are no place for secrets.
        write!(f, "PrivateKey(of {})", self.public())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base64(f, &self.0)
    }
}

/// The text form of a private key, made on purpose only.
#[derive(Clone, Copy)]
pub struct Exposed<'a>(pub &'a PrivateKey);

impl fmt::Display for Exposed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base64(f, &self.0.0)
    }
}

impl fmt::Debug for Exposed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

/// Writes a key as [`parse_base64`] reads it.
fn write_base64(f: &mut fmt::Formatter<'_>, key: &[u8; KEY_LEN]) -> fmt::Result {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| char::from(DIGITS[(bits & 63) as usize]);
    for triple in key.chunks(3) {
        let byte = |at: usize| u32::from(triple.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        f.write_char(digit(bits >> 18))?;
        f.write_char(digit(bits >> 12))?;
        f.write_char(digit(bits >> 6))?;
        // 32 bytes are ten triples and two bytes.
        f.write_char(if triple.len() == 3 { digit(bits) } else { '=' })?;
    }
    Ok(())
}

/// Writes `bytes` as hexadecimal digits.
pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for byte in bytes {
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        parse(text.trim()).map(PublicKey)
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        parse(text.trim()).map(PrivateKey)
    }
}

/// Reads either text form.
fn parse(text: &str) -> Result<[u8; KEY_LEN], KeyError> {
    let text = text.as_bytes();
    match text.len() {
        64 => parse_hex(text),
        44 => parse_base64(text),
        found => Err(KeyError::Length { found }),
    }
}

fn parse_hex(text: &[u8]) -> Result<[u8; KEY_LEN], KeyError> {
    let digit = |at: usize| match text[at] {
        c @ b'0'..=b'9' => Ok(c - b'0'),
        c @ b'a'..=b'f' => Ok(c - b'a' + 10),
        c @ b'A'..=b'F' => Ok(c - b'A' + 10),
        _ => Err(KeyError::Character { at }),
    };
    let mut key = [0; KEY_LEN];
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = digit(2 * i)? << 4 | digit(2 * i + 1)?;
    }
    Ok(key)
}

/// RFC 4648, section 4: 43 digits that hold 32 bytes and two bits of zero, and one "=".
fn parse_base64(text: &[u8]) -> Result<[u8; KEY_LEN], KeyError> {
    let mut key = [0; KEY_LEN];
    let (mut bits, mut count, mut filled) = (0u32, 0u32, 0);
    for (at, c) in text[..43].iter().enumerate() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(KeyError::Character { at }),
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            let [.., byte] = (bits >> count).to_be_bytes();
            key[filled] = byte;
            filled += 1;
        }
    }
    if bits & 0b11 != 0 {
        return Err(KeyError::Character { at: 42 });
    }
    if text[43] != b'=' {
        return Err(KeyError::Character { at: 43 });
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;

    // One key pair made by OpenSSL (`openssl genpkey -algorithm X25519`).
    const PRIVATE: &str = "2015280fa5b7fed34bc478c097010ae6df58cc3068cd8f19958c88c05f194c53";
    const PRIVATE_BASE64: &str = "IBUoD6W3/tNLxHjAlwEK5t9YzDBozY8ZlYyIwF8ZTFM=";
    const PUBLIC: &str = "a8fe0f0c32cc77e2372b36611dfc4dd05402abbaf1a85bb681f39439c265fc10";

    #[test]
    fn public_key_is_the_one_that_openssl_derives() {
        let private: PrivateKey = PRIVATE.parse().unwrap();
        assert_eq!(private.public(), PUBLIC.parse().unwrap());
    }

    #[test]
    fn both_text_forms_are_read() {
        let hex: PrivateKey = PRIVATE.parse().unwrap();
        let upper: PrivateKey = PRIVATE.to_uppercase().parse().unwrap();
        let base64: PrivateKey = format!(" {PRIVATE_BASE64}\n").parse().unwrap();
        assert_eq!(hex, base64);
        assert_eq!(hex, upper);
        assert_eq!(Exposed(&hex).to_string(), PRIVATE_BASE64);
    }

    #[test]
    fn private_keys_are_not_in_debug_output() {
        let private: PrivateKey = PRIVATE.parse().unwrap();
        let debug = format!("{private:?} {:?}", Exposed(&private));
        assert!(!debug.contains(PRIVATE_BASE64), "{debug}");
        assert!(debug.contains(&private.public().to_string()), "{debug}");
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let bad = |text: &str| text.parse::<PublicKey>().unwrap_err();
        assert_eq!(bad(""), KeyError::Length { found: 0 });
        assert_eq!(bad(&PUBLIC[1..]), KeyError::Length { found: 63 });
        assert_eq!(
            bad(&PUBLIC.replacen('f', "g", 1)),
            KeyError::Character { at: 2 }
        );
        assert_eq!(
            bad(&PRIVATE_BASE64.replace('/', "-")),
            KeyError::Character { at: 8 }
        );
        assert_eq!(
            bad(&PRIVATE_BASE64.replace('=', "A")),
            KeyError::Character { at: 43 }
        );
        // The two bits that 43 digits hold too much.
        assert_eq!(
            bad(&PRIVATE_BASE64.replace("FM=", "FN=")),
            KeyError::Character { at: 42 }
        );
        assert_eq!(bad(&"\u{e9}".repeat(32)), KeyError::Character { at: 0 });
    }
}
