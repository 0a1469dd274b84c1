//! The cleartext hello: which protocol, which version.
//!
//! ```text
//! client: "CLOSERPC"  u16 lowest version spoken  u16 highest          (little endian)
//! host:   "CLOSERPC"  u16 lowest  u16 highest  u16 chosen  u16 reserved
//! ```
//! The host answers nothing at all to what does not begin with the magic. Both hellos
//! are the prologue of the handshake that follows, so nobody on the way can talk two
//! new programs into an old version.

/// First bytes of both sides.
pub const MAGIC: [u8; 8] = *b"CLOSERPC";

/// The protocol this crate speaks.
pub const VERSION: u16 = 2;

/// Versions from `lowest` to `highest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest spoken.
    pub lowest: u16,
    /// The newest spoken.
    pub highest: u16,
}

/// What this crate speaks.
pub const OURS: Versions = Versions {
    lowest: VERSION,
    highest: VERSION,
};

impl Versions {
    /// The newest version that both speak.
    #[must_use]
    pub fn common(self, other: Versions) -> Option<u16> {
        let newest = self.highest.min(other.highest);
        (newest >= self.lowest.max(other.lowest)).then_some(newest)
    }
}

/// Length of the client's hello.
pub const CLIENT_LEN: usize = 12;
/// Length of the host's hello.
pub const HOST_LEN: usize = 16;

/// Not the magic: the peer speaks something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotCloser;

/// Writes a client's hello.
#[must_use]
pub fn encode_client(versions: Versions) -> [u8; CLIENT_LEN] {
    let mut out = [0; CLIENT_LEN];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&versions.lowest.to_le_bytes());
    out[10..].copy_from_slice(&versions.highest.to_le_bytes());
    out
}

/// Reads a client's hello.
///
/// # Errors
/// It is none.
pub fn decode_client(bytes: &[u8; CLIENT_LEN]) -> Result<Versions, NotCloser> {
    if bytes[..8] != MAGIC {
        return Err(NotCloser);
    }
    Ok(Versions {
        lowest: u16::from_le_bytes([bytes[8], bytes[9]]),
        highest: u16::from_le_bytes([bytes[10], bytes[11]]),
    })
}

/// A host's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostHello {
    /// What it speaks.
    pub versions: Versions,
    /// The version that both will speak; 0 on the wire if there is none, and then there is
    /// no conversation.
    pub chosen: Option<u16>,
}

/// Writes a host's hello.
#[must_use]
pub fn encode_host(hello: HostHello) -> [u8; HOST_LEN] {
    let mut out = [0; HOST_LEN];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&hello.versions.lowest.to_le_bytes());
    out[10..12].copy_from_slice(&hello.versions.highest.to_le_bytes());
    out[12..14].copy_from_slice(&hello.chosen.unwrap_or(0).to_le_bytes());
    out
}

/// Reads a host's hello.
///
/// # Errors
/// It is none.
pub fn decode_host(bytes: &[u8; HOST_LEN]) -> Result<HostHello, NotCloser> {
    if bytes[..8] != MAGIC {
        return Err(NotCloser);
    }
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    Ok(HostHello {
        versions: Versions {
            lowest: word(8),
            highest: word(10),
        },
        chosen: Some(word(12)).filter(|version| *version != 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(lowest: u16, highest: u16) -> Versions {
        Versions { lowest, highest }
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(range(1, 3).common(range(2, 9)), Some(3));
        assert_eq!(range(2, 9).common(range(1, 3)), Some(3));
        assert_eq!(range(1, 1).common(range(1, 1)), Some(1));
        assert_eq!(range(1, 2).common(range(3, 4)), None);
        assert_eq!(range(3, 4).common(range(1, 2)), None);
        // A range the wrong way round holds nothing.
        assert_eq!(range(1, 9).common(range(5, 2)), None);
    }

    #[test]
    fn hellos_survive_the_way() {
        assert_eq!(
            decode_client(&encode_client(range(7, 300))),
            Ok(range(7, 300))
        );
        for chosen in [Some(5), None] {
            let hello = HostHello {
                versions: range(2, 9),
                chosen,
            };
            assert_eq!(decode_host(&encode_host(hello)), Ok(hello));
        }
    }

    #[test]
    fn another_protocol_is_told_apart() {
        assert_eq!(decode_client(b"GET / HTTP/1"), Err(NotCloser));
        assert_eq!(decode_host(b"SSH-2.0-OpenSSH_"), Err(NotCloser));
    }
}
