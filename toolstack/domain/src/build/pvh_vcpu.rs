//! How the first vCPU of a PVH guest starts: records for `sethvmcontext`.

use super::BuildError;
use alloc::vec::Vec;
use xen_abi::hvm::save::{
    CODE_CPU, CODE_END, CODE_HEADER, CODE_MTRR, Descriptor, HwCpu, HwMtrr, SaveHeader,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// The record of a type and instance in a context that Xen gave.
fn record(mut context: &[u8], typecode: u16, instance: u16) -> Option<&[u8]> {
    loop {
        let (descriptor, rest) = Descriptor::read_from_prefix(context).ok()?;
        if descriptor.typecode == CODE_END {
            return None;
        }
        let (body, rest) = rest.split_at_checked(usize::try_from(descriptor.length).ok()?)?;
        if descriptor.typecode == typecode && descriptor.instance == instance {
            return Some(body);
        }
        context = rest;
    }
}

/// What every context that we send begins with: Xen's own header, which nobody else
/// can make (it holds the host's CPUID).
fn with_header(context: &[u8]) -> Result<Vec<u8>, BuildError> {
    let body = record(context, CODE_HEADER, 0)
        .filter(|body| body.len() == size_of::<SaveHeader>())
        .ok_or(BuildError::HvmContext)?;
    let mut out = Vec::new();
    push(&mut out, CODE_HEADER, 0, body);
    Ok(out)
}

fn push(out: &mut Vec<u8>, typecode: u16, instance: u16, body: &[u8]) {
    let descriptor = Descriptor {
        typecode,
        instance,
        length: u32::try_from(body.len()).unwrap_or(u32::MAX),
    };
    out.extend_from_slice(descriptor.as_bytes());
    out.extend_from_slice(body);
}

/// Memory types of a vCPU: write-back everywhere. Without it the guest takes its
/// memory for uncached.
pub(super) fn mtrr(context: &[u8], vcpu: u16) -> Result<Vec<u8>, BuildError> {
    const WRITE_BACK: u64 = 6;
    const ENABLE: u64 = 1 << 11;
    let body = record(context, CODE_MTRR, 0).ok_or(BuildError::HvmContext)?;
    let mut mtrr = HwMtrr::read_from_bytes(body).map_err(|_| BuildError::HvmContext)?;
    mtrr.msr_mtrr_def_type = WRITE_BACK | ENABLE;
    let mut out = with_header(context)?;
    push(&mut out, CODE_MTRR, vcpu, mtrr.as_bytes());
    push(&mut out, CODE_END, 0, &[]);
    Ok(out)
}

/// Registers of the first vCPU as the PVH boot protocol wants them (docs/misc/pvh.pandoc
/// of Xen): 32-bit protected mode, flat segments, no paging, `ebx` at the start info.
pub(super) fn boot_cpu(context: &[u8], entry: u64, start_info: u64) -> Result<Vec<u8>, BuildError> {
    const CR0_PE: u64 = 1;
    const CR0_ET: u64 = 1 << 4;
    const CODE: u32 = 0xc9b;
    const DATA: u32 = 0xc93;
    const TSS: u32 = 0x8b;
    let cpu = HwCpu {
        cs_limit: !0,
        ds_limit: !0,
        es_limit: !0,
        ss_limit: !0,
        tr_limit: 0x67,
        cs_arbytes: CODE,
        ds_arbytes: DATA,
        es_arbytes: DATA,
        ss_arbytes: DATA,
        tr_arbytes: TSS,
        cr0: CR0_PE | CR0_ET,
        rip: entry,
        rbx: start_info,
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        ..HwCpu::new_zeroed()
    };
    let mut out = with_header(context)?;
    push(&mut out, CODE_CPU, 0, cpu.as_bytes());
    push(&mut out, CODE_END, 0, &[]);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Vec<u8> {
        let mut context = Vec::new();
        push(&mut context, CODE_HEADER, 0, &[9; 24]);
        push(&mut context, CODE_CPU, 0, &[0; 1032]);
        push(&mut context, CODE_MTRR, 0, &[1; 240]);
        push(&mut context, CODE_END, 0, &[]);
        context
    }

    #[test]
    fn records_carry_xens_header_and_name_their_vcpu() {
        let mtrr = mtrr(&context(), 3).unwrap();
        assert_eq!(record(&mtrr, CODE_HEADER, 0), Some(&[9; 24][..]));
        let body = record(&mtrr, CODE_MTRR, 3).unwrap();
        assert_eq!(body[..8], [1; 8]);
        assert_eq!(body[232..], 0x806u64.to_le_bytes());

        let cpu = boot_cpu(&context(), 0x100_0000, 0x200_0000).unwrap();
        let body = record(&cpu, CODE_CPU, 0).unwrap();
        let cpu = HwCpu::read_from_bytes(body).unwrap();
        assert_eq!((cpu.rip, cpu.rbx, cpu.cr0), (0x100_0000, 0x200_0000, 0x11));
    }

    #[test]
    fn a_truncated_context_is_refused() {
        let context = context();
        for len in [0, 4, 8, 31, 40] {
            assert_eq!(
                mtrr(&context[..len], 0),
                Err(BuildError::HvmContext),
                "{len} bytes"
            );
        }
        assert_eq!(mtrr(&[0; 8], 0), Err(BuildError::HvmContext));
    }
}
