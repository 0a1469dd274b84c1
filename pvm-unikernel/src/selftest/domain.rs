//! A fresh, empty PVH domain: its memory mapped, written, read again, unmapped; then its
//! end, which waits for the last mapping.

use super::{Failure, Outcome, expect};
use crate::arch::hypercall::{Errno, memory, system};
use crate::mem::{ForeignMap, LocalForeignMap};
use crate::{exec, time};
use core::time::Duration;
use hal::VcpuId;
use xen_abi::DomId;
use xen_abi::domctl::{Domctl, cmd};

const PAGES: u64 = 600;

/// `XEN_DOMCTL_INTERFACE_VERSION` of a Xen 4.x.
fn domctl_version(xen: (u32, u32)) -> Option<u32> {
    match xen {
        (4, 17) => Some(0x15),
        (4, 18) => Some(0x16),
        (4, 19..=21) => Some(0x17),
        (4, 22) => Some(0x18),
        _ => None,
    }
}

fn domctl(version: u32, command: u32, domain: DomId, argument: &[u8]) -> Result<Domctl, Errno> {
    let mut op = Domctl {
        cmd: command,
        interface_version: version,
        domain: domain.0,
        pad: [0; 3],
        u: [0; 128],
    };
    op.u[..argument.len()].copy_from_slice(argument);
    // SAFETY: a whole `xen_domctl`; none of the commands used here takes an address.
    unsafe { system::domctl(&mut op) }?;
    Ok(op)
}

/// The argument of createdomain: hvm, hap, one vCPU, local APIC.
fn create_argument(xen: (u32, u32)) -> [u8; 68] {
    let mut words = [0u32; 17];
    words[1] = 0x5e1f_7e57;
    words[5] = 3;
    words[7] = 1;
    words[8] = 1023;
    words[9] = u32::MAX;
    words[10] = u32::MAX;
    words[11] = 2;
    // 4.19 put `altp2m_opts` before the last four words.
    words[if xen.1 >= 19 { 15 } else { 14 }] = 1;
    let mut bytes = [0; 68];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

pub async fn foreign_map(xen: (u32, u32)) -> Outcome {
    let Some(version) = domctl_version(xen) else {
        return Err(Failure("unknown Xen".into()));
    };
    let asked = if xen.1 >= 22 { DomId(0x7ff5) } else { DomId(0) };
    let made = domctl(version, cmd::CREATEDOMAIN, asked, &create_argument(xen))?;
    let domain = DomId(made.domain);
    let outcome = use_domain(version, domain).await;
    domctl(version, cmd::DESTROYDOMAIN, domain, &[])?;
    outcome?;
    // Gone, not only dying: nothing of it is mapped any more.
    let limit = time::now_ns() + 5_000_000_000;
    loop {
        match domctl(version, cmd::GETDOMAININFO, domain, &[]) {
            Err(Errno::ESRCH) => return Ok(()),
            // Asked for an id that is gone, Xen tells of the next one there is.
            Ok(info) if info.domain != domain.0 => return Ok(()),
            Ok(_) | Err(_) if time::now_ns() < limit => {
                time::sleep(Duration::from_millis(20)).await;
            }
            Ok(_) | Err(_) => return Err(Failure("the domain stays as a zombie".into())),
        }
    }
}

async fn use_domain(version: u32, domain: DomId) -> Outcome {
    domctl(version, cmd::MAX_VCPUS, domain, &1u32.to_le_bytes())?;
    domctl(version, cmd::MAX_MEM, domain, &(64u64 << 10).to_le_bytes())?;
    domctl(
        version,
        cmd::SET_PAGING_MEMPOOL_SIZE,
        domain,
        &(4u64 << 20).to_le_bytes(),
    )?;
    let mut list: alloc::vec::Vec<u64> = (0..PAGES).map(|n| 0x100 + n).collect();
    let done = memory::populate(domain, &mut list, 0, 0)?;
    expect(
        done == list.len(),
        format_args!("{done} of {PAGES} pages populated"),
    )?;

    for round in 0..3u64 {
        let map = LocalForeignMap::new(domain, &list, true)?;
        for (page, gfn) in list.iter().enumerate() {
            let mut old = [0; 8];
            map.pages().read_bytes(page * 4096, &mut old);
            let expected = if round == 0 {
                0
            } else {
                gfn * 1000 + round - 1
            };
            let old = u64::from_le_bytes(old);
            expect(
                old == expected,
                format_args!("gfn {gfn:#x} reads {old:#x}, not {expected:#x}"),
            )?;
            map.pages()
                .write_bytes(page * 4096, &(gfn * 1000 + round).to_le_bytes());
        }
        expect(
            map.frame(0).is_some(),
            format_args!("a mapped page has no frame"),
        )?;
    }
    // In another order, the same addresses must show other pages: the flush worked.
    list.reverse();
    let map = LocalForeignMap::new(domain, &list, false)?;
    check(map.pages(), &list)?;
    drop(map);

    // A map made here and used on every vCPU, then remade in another order.
    for _ in 0..2 {
        let map = alloc::sync::Arc::new(SharedMap(ForeignMap::new(domain, &list, true)?));
        for vcpu in (0..exec::vcpu_count()).map(VcpuId) {
            let (map, list) = (map.clone(), list.clone());
            let task = exec::spawn_on(vcpu, move || async move { check(map.0.pages(), &list) });
            time::timeout(task, Duration::from_secs(10)).await???;
        }
        drop(map);
        list.rotate_left(7);
    }
    let map = ForeignMap::new(domain, &list, true)?;
    map.zero(4096, 8192);
    let mut bytes = [1; 8];
    map.pages().read_bytes(8192, &mut bytes);
    expect(bytes == [0; 8], format_args!("zero() left {bytes:?}"))?;
    drop(map);

    let hole = ForeignMap::new(domain, &[0x100, 0x101, 0x9999], true);
    let at = hole.err().map(|error| (error.index, error.errno));
    expect(
        at == Some((2, Errno::EINVAL)),
        format_args!("a hole was mapped: {at:?}"),
    )
}

fn check(pages: &xen_ring::SharedPages, list: &[u64]) -> Outcome {
    for (page, gfn) in list.iter().enumerate() {
        let mut bytes = [0; 8];
        pages.read_bytes(page * 4096, &mut bytes);
        let value = u64::from_le_bytes(bytes);
        expect(
            value == gfn * 1000 + 2,
            format_args!("gfn {gfn:#x} reads {value:#x}"),
        )?;
    }
    Ok(())
}

/// A map that several vCPUs read at once.
struct SharedMap(ForeignMap);

// SAFETY: the test only reads through it, by volatile loads; it is unmapped after the last
// reader is done.
unsafe impl Sync for SharedMap {}
