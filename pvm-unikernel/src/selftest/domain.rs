//! A fresh, empty PVH domain: its memory mapped, written, read again, unmapped; then its
//! end, which waits for the last mapping.

use super::{Outcome, expect};
use crate::arch::hypercall::{Errno, memory};
use crate::mem::{ForeignMap, LocalForeignMap};
use crate::services::host::CALLS;
use crate::xen_calls::XenCalls;
use crate::{exec, time};
use core::time::Duration;
use hal::VcpuId;
use toolstack_domain::xen::{NewDomain, Xen};
use xen_abi::DomId;

const PAGES: u64 = 600;

pub async fn foreign_map() -> Outcome {
    let xen = Xen::new(&CALLS)?;
    let domain = xen.create_domain(&NewDomain {
        uuid: [0; 16],
        hvm: true,
        max_vcpus: 1,
    })?;
    let outcome = use_domain(&xen, domain).await;
    xen.destroy_domain(domain)?;
    outcome?;
    // Gone, not only dying: nothing of it is mapped any more.
    let limit = time::now_ns() + 5_000_000_000;
    while xen.domain_info(domain)?.is_some() {
        expect(
            time::now_ns() < limit,
            format_args!("the domain stays as a zombie"),
        )?;
        time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn use_domain(xen: &Xen<'_, XenCalls>, domain: DomId) -> Outcome {
    xen.set_max_vcpus(domain, 1)?;
    xen.set_max_memory(domain, 64 << 10)?;
    xen.set_paging_pool(domain, 4 << 20)?;
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
            let old = u64::from_le_bytes(old);
            // Xen gives memory as it is: in the first round it may hold anything.
            let expected = gfn * 1000 + round;
            expect(
                round == 0 || old + 1 == expected,
                format_args!("gfn {gfn:#x} reads {old:#x}, not {expected:#x} - 1"),
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
