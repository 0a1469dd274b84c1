//! Why a build failed.

use super::image::ImageError;
use crate::hypercalls::NodeId;
use crate::xen::CallError;
use core::fmt;

/// Why a guest could not be built; nothing of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// Xen refused.
    Call(CallError),
    /// Xen gave fewer pages than placement had found free.
    NoMemory {
        /// Where; `None`: anywhere.
        node: Option<NodeId>,
        /// Pages asked of this node.
        asked: u64,
        /// Pages it gave.
        got: u64,
    },
    /// The stored image could not be read.
    Image(ImageError),
    /// The kernel lacks an ELF note: its number.
    NoteMissing(u32),
    /// An ELF note holds no number that makes sense: its number.
    BadNote(u32),
    /// A 64-bit PV kernel must not ask for auto-translated memory.
    AutoTranslated,
    /// A kernel segment lies outside of what can be addressed, or contradicts itself or
    /// the one before it.
    BadSegment {
        /// Where it wants to go.
        paddr: u64,
        /// Its size.
        mem_size: u64,
    },
    /// Kernel, ramdisk and what the kernel must find do not fit into memory.
    DoesNotFit {
        /// Bytes they need.
        needed: u64,
        /// Bytes there are.
        memory: u64,
    },
    /// The command line is too long.
    CommandLine {
        /// Bytes.
        len: usize,
        /// Most bytes.
        most: usize,
    },
    /// No vCPU, or too many.
    Vcpus {
        /// How many.
        asked: u32,
        /// Most of this kind of guest.
        most: u32,
    },
    /// The placement was not made for this configuration.
    PlacementDoesNotMatch {
        /// Pages of the guest.
        pages: u64,
        /// Pages placed.
        placed: u64,
        /// vCPUs of the guest.
        vcpus: u32,
    },
    /// A frame number that a version 1 grant cannot hold: memory above 16 TiB.
    FrameTooHigh {
        /// Which.
        frame: u64,
    },
    /// No memory of ours for the list of the guest's frames.
    NoHeap {
        /// Frames in it so far.
        known: u64,
    },
    /// Xen's record of hardware state is not what this version should give.
    HvmContext,
}

impl From<CallError> for BuildError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<ImageError> for BuildError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Call(error) => error.fmt(f),
            Self::NoMemory { node, asked, got } => {
                write!(f, "out of memory: {got} of {asked} pages")?;
                match node {
                    Some(node) => write!(f, " on node {node}"),
                    None => Ok(()),
                }
            }
            Self::Image(error) => error.fmt(f),
            Self::NoteMissing(note) => write!(f, "the kernel lacks ELF note {note} of Xen"),
            Self::BadNote(note) => write!(f, "the kernel's ELF note {note} of Xen makes no sense"),
            Self::AutoTranslated => {
                f.write_str("the kernel asks for auto-translated memory, which PV has not")
            }
            Self::BadSegment { paddr, mem_size } => write!(
                f,
                "the kernel's segment of {mem_size:#x} bytes at {paddr:#x} makes no sense"
            ),
            Self::DoesNotFit { needed, memory } => write!(
                f,
                "kernel and ramdisk need a guest of {} MiB; this one has {}",
                needed.div_ceil(1 << 20),
                memory >> 20
            ),
            Self::CommandLine { len, most } => {
                write!(f, "command line of {len} bytes; {most} are allowed")
            }
            Self::Vcpus { asked, most } => write!(f, "{asked} vCPUs asked; 1 to {most} can be"),
            Self::PlacementDoesNotMatch {
                pages,
                placed,
                vcpus,
            } => write!(
                f,
                "placement of {placed} pages is not for a guest of {pages} pages and {vcpus} vCPUs"
            ),
            Self::FrameTooHigh { frame } => {
                write!(f, "frame {frame:#x} does not fit into a version 1 grant")
            }
            Self::NoHeap { known } => write!(
                f,
                "the host is out of memory for the list of the guest's frames, at frame {known}"
            ),
            Self::HvmContext => f.write_str("Xen's hardware state record is not as expected"),
        }
    }
}

impl core::error::Error for BuildError {}
