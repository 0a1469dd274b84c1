//! Submission and completion entries (sections 4.2 and 4.6).

use hal::block::BlockError;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Opcodes.
pub mod opcode {
    /// Admin: Delete nothing, create I/O submission queue.
    pub const CREATE_SQ: u8 = 0x01;
    /// Admin: create I/O completion queue.
    pub const CREATE_CQ: u8 = 0x05;
    /// Admin: Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Admin: Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// NVM: Flush.
    pub const FLUSH: u8 = 0x00;
    /// NVM: Write.
    pub const WRITE: u8 = 0x01;
    /// NVM: Read.
    pub const READ: u8 = 0x02;
    /// NVM: Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Common command format, figure "Command Format".
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Submission {
    pub opcode: u8,
    /// Fused operation and PRP/SGL choice: 0 is "not fused, PRPs".
    pub flags: u8,
    pub command_id: u16,
    pub namespace: u32,
    pub reserved: [u32; 2],
    pub metadata: u64,
    pub prp1: u64,
    pub prp2: u64,
    /// Command dwords 10 to 15.
    pub cdw: [u32; 6],
}
const _: () = assert!(size_of::<Submission>() == 64);

/// Completion queue entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Completion {
    /// Dword 0: the command's result.
    pub result: u32,
    pub reserved: u32,
    pub sq_head: u16,
    pub sq_id: u16,
    pub command_id: u16,
    /// Phase tag in bit 0, status above.
    pub status_phase: u16,
}
const _: () = assert!(size_of::<Completion>() == 16);

impl Completion {
    /// Status field: SC in bits 7:0, SCT in 10:8.
    pub fn status(&self) -> Status {
        Status(self.status_phase >> 1 & 0x7ff)
    }
}

/// Status code type and status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// What it means for who asked.
    pub fn to_result(self) -> Result<(), BlockError> {
        match self.0 {
            0 => Ok(()),
            // Invalid opcode, invalid field.
            0x001 => Err(BlockError::Unsupported),
            // LBA out of range.
            0x080 => Err(BlockError::OutOfRange),
            // Attempted write to read-only range; namespace is write protected.
            0x182 | 0x020 => Err(BlockError::ReadOnly),
            // Media and data integrity errors.
            0x200..=0x2ff => Err(BlockError::Media(self.0)),
            _ => Err(BlockError::Device(self.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_but_zero_is_an_error_and_keeps_its_number() {
        for status in 0..0x800 {
            let entry = Completion {
                status_phase: status << 1 | 1,
                ..Completion::default()
            };
            match entry.status().to_result() {
                Ok(()) => assert_eq!(status, 0),
                Err(BlockError::Media(s)) => assert_eq!((s, s >> 8), (status, 2)),
                Err(BlockError::Device(s)) => assert_eq!(s, status),
                Err(_) => assert!([0x001, 0x080, 0x182, 0x020].contains(&status)),
            }
        }
    }
}
