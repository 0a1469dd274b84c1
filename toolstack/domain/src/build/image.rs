//! Where kernels and ramdisks come from.

use crate::config::ImageId;
use core::fmt;
use core::future::Future;

/// The host's stored images.
pub trait ImageSource {
    /// Fills `buf` with the bytes of `image` from `offset` on; all of them, or an error.
    fn read(
        &mut self,
        image: ImageId,
        offset: u64,
        buf: &mut [u8],
    ) -> impl Future<Output = Result<(), ImageError>>;
}

/// Why an image cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The host does not have it: send it again.
    Missing(ImageId),
    /// It is shorter than the configuration says.
    TooShort {
        /// Which.
        image: ImageId,
        /// First byte that is not there.
        offset: u64,
    },
    /// The disk failed.
    Io {
        /// Which.
        image: ImageId,
        /// Where.
        offset: u64,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (image, what, offset) = match self {
            Self::Missing(image) => (image, "is not on this host", None),
            Self::TooShort { image, offset } => (image, "is too short", Some(offset)),
            Self::Io { image, offset } => (image, "cannot be read", Some(offset)),
        };
        f.write_str("image ")?;
        for byte in &image.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        write!(f, " {what}")?;
        match offset {
            Some(offset) => write!(f, " at byte {offset}"),
            None => Ok(()),
        }
    }
}

impl core::error::Error for ImageError {}
