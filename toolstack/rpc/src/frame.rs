//! Encrypted frames: the unit on the wire once the handshake is done.
//!
//! ```text
//! u16 length of what follows the header (little endian), u8 kind, u8 zero
//! ciphertext, 16 bytes of tag
//! ```
//! The header is authenticated with the frame (it is the AEAD's associated data). Frames
//! are numbered implicitly, by the cipher's nonce: one that is lost, repeated, moved or
//! changed does not open, and the connection is over. Both sides change a direction's
//! key after every [`REKEY_EVERY`] frames of it (Noise, section 4.2).
//!
//! [`FrameReader`] and [`FrameWriter`] do no I/O.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use snow::types::Cipher;

/// Bytes before a frame's ciphertext.
pub const HEADER_LEN: usize = 4;
/// Bytes of authentication after it.
pub const TAG_LEN: usize = 16;
/// Most plaintext in a frame. A connection that moves data holds three buffers of about
/// this size; larger frames would be hardly faster, and smaller ones are slower.
pub const MAX_PAYLOAD: usize = 16 * 1024;
/// Frames of one direction under the same key.
pub const REKEY_EVERY: u64 = 1 << 12;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The last part, or all, of a message.
    Message = 0x01,
    /// A part of a message; more follow.
    MessagePart = 0x02,
    /// Bytes of a transfer or a console.
    Data = 0x10,
    /// Zeros of a transfer; payload: their number (u64, little endian).
    Zeros = 0x11,
    /// A transfer is complete; payload: bytes of it, zeros included (u64). Ends a console, too
    /// (then 0).
    End = 0x12,
    /// The sender gives a transfer up; payload: an `RpcError`.
    Abort = 0x13,
    /// The receiver has dealt with so many bytes of payload (u64).
    Ack = 0x14,
    /// The receiver gives a transfer up; payload: an `RpcError`.
    Reject = 0x15,
    /// The receiver has seen `End`, and the count was right. No payload.
    Received = 0x16,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            0x01 => Kind::Message,
            0x02 => Kind::MessagePart,
            0x10 => Kind::Data,
            0x11 => Kind::Zeros,
            0x12 => Kind::End,
            0x13 => Kind::Abort,
            0x14 => Kind::Ack,
            0x15 => Kind::Reject,
            0x16 => Kind::Received,
            _ => return None,
        })
    }
}

/// Why a frame is no good. The connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The header's length is impossible.
    Length {
        /// What it says.
        found: u16,
    },
    /// The header's kind does not exist, or its last byte is not zero.
    Header {
        /// Kind.
        kind: u8,
        /// Last byte.
        reserved: u8,
    },
    /// It was changed on its way, or is not the next one.
    Forged,
    /// More than [`MAX_PAYLOAD`] was to be sent.
    TooLong {
        /// Bytes asked for.
        asked: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::Length { found } => write!(f, "a frame with the length {found}"),
            FrameError::Header { kind, reserved } => {
                write!(f, "a frame with the header {kind:#04x} {reserved:#04x}")
            }
            FrameError::Forged => f.write_str("a frame that does not decrypt"),
            FrameError::TooLong { asked } => write!(f, "{asked} bytes do not fit a frame"),
        }
    }
}

impl core::error::Error for FrameError {}

/// One direction's cipher, on the sending side.
pub struct Sealer(CipherState);

/// One direction's cipher, on the receiving side.
pub struct Opener(CipherState);

/// `CipherState` of the Noise specification: k and n.
struct CipherState {
    cipher: Box<dyn Cipher>,
    nonce: u64,
}

impl CipherState {
    /// Called once a frame: 2^64 of them are out of reach.
    fn next(&mut self) {
        self.nonce += 1;
        if self.nonce.is_multiple_of(REKEY_EVERY) {
            self.cipher.rekey();
        }
    }
}

impl Sealer {
    pub(crate) fn new(cipher: Box<dyn Cipher>) -> Self {
        Sealer(CipherState { cipher, nonce: 0 })
    }
}

impl Opener {
    pub(crate) fn new(cipher: Box<dyn Cipher>) -> Self {
        Opener(CipherState { cipher, nonce: 0 })
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({} frames)", self.0.nonce)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener({} frames)", self.0.nonce)
    }
}

/// Makes frames.
#[derive(Debug)]
pub struct FrameWriter {
    sealer: Sealer,
    out: Vec<u8>,
}

impl FrameWriter {
    /// Makes frames with `sealer`.
    #[must_use]
    pub fn new(sealer: Sealer) -> Self {
        FrameWriter {
            sealer,
            out: Vec::new(),
        }
    }

    /// The next frame, header and all. Once made it must be sent: the peer counts.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn seal(&mut self, kind: Kind, payload: &[u8]) -> Result<&[u8], FrameError> {
        let too_long = FrameError::TooLong {
            asked: payload.len(),
        };
        if payload.len() > MAX_PAYLOAD {
            return Err(too_long);
        }
        let sealed = payload.len() + TAG_LEN;
        let length = u16::try_from(sealed).map_err(|_| too_long)?;
        let [low, high] = length.to_le_bytes();
        let header = [low, high, kind as u8, 0];
        if self.out.len() < HEADER_LEN + sealed {
            self.out.resize(HEADER_LEN + sealed, 0);
        }
        let frame = &mut self.out[..HEADER_LEN + sealed];
        frame[..HEADER_LEN].copy_from_slice(&header);
        let state = &mut self.sealer.0;
        state
            .cipher
            .encrypt(state.nonce, &header, payload, &mut frame[HEADER_LEN..]);
        state.next();
        Ok(frame)
    }
}

/// Takes frames apart: read into [`FrameReader::wanted`], tell [`FrameReader::filled`].
#[derive(Debug)]
pub struct FrameReader {
    opener: Opener,
    header: [u8; HEADER_LEN],
    /// Bytes of header and body that are there.
    have: usize,
    /// Ciphertext; grows to the largest frame seen.
    body: Vec<u8>,
    /// Ciphertext bytes the header announces.
    body_len: usize,
    plain: Vec<u8>,
    plain_len: usize,
}

impl FrameReader {
    /// Opens frames with `opener`.
    #[must_use]
    pub fn new(opener: Opener) -> Self {
        FrameReader {
            opener,
            header: [0; HEADER_LEN],
            have: 0,
            body: Vec::new(),
            body_len: 0,
            plain: Vec::new(),
            plain_len: 0,
        }
    }

    /// Where the next bytes of the stream belong; never empty.
    pub fn wanted(&mut self) -> &mut [u8] {
        if self.have < HEADER_LEN {
            &mut self.header[self.have..]
        } else {
            &mut self.body[self.have - HEADER_LEN..self.body_len]
        }
    }

    /// Whether no frame is begun.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.have == 0
    }

    /// `count` bytes have been put into [`FrameReader::wanted`]. Returns the frame's kind
    /// when it is complete; its content is in [`FrameReader::payload`] until the next call.
    ///
    /// # Errors
    /// See [`FrameError`]; after one of them the reader is of no more use.
    ///
    /// # Panics
    /// If `count` is more than was wanted.
    pub fn filled(&mut self, count: usize) -> Result<Option<Kind>, FrameError> {
        assert!(count <= self.wanted().len(), "more bytes than wanted");
        let had_header = self.have >= HEADER_LEN;
        self.have += count;
        if self.have < HEADER_LEN {
            return Ok(None);
        }
        let [low, high, kind, reserved] = self.header;
        if !had_header {
            let found = u16::from_le_bytes([low, high]);
            let len = usize::from(found);
            if !(TAG_LEN..=MAX_PAYLOAD + TAG_LEN).contains(&len) {
                return Err(FrameError::Length { found });
            }
            if Kind::from_byte(kind).is_none() || reserved != 0 {
                return Err(FrameError::Header { kind, reserved });
            }
            self.body_len = len;
            if self.body.len() < len {
                self.body.resize(len, 0);
                self.plain.resize(len, 0);
            }
        }
        if self.have < HEADER_LEN + self.body_len {
            return Ok(None);
        }
        let state = &mut self.opener.0;
        let opened = state.cipher.decrypt(
            state.nonce,
            &self.header,
            &self.body[..self.body_len],
            &mut self.plain,
        );
        state.next();
        self.have = 0;
        self.plain_len = opened.map_err(|_| FrameError::Forged)?;
        Kind::from_byte(kind)
            .map(Some)
            .ok_or(FrameError::Header { kind, reserved })
    }

    /// What the last complete frame held.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.plain[..self.plain_len]
    }
}
