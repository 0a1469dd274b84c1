//! Frames, the heap, growing and shrinking, protection.

use super::{Outcome, expect};
use crate::arch::entry;
use crate::log::announce;
use crate::mem::{self, Frames};
use alloc::vec;
use alloc::vec::Vec;
use hal::Node;

fn free_pages() -> u64 {
    mem::counts().iter().map(|count| count.free).sum()
}

fn total_pages() -> u64 {
    mem::counts().iter().map(|count| count.total).sum()
}

/// Address 0 and the guard page are not mapped; the code is.
pub fn protection() -> Outcome {
    let guard = (&raw const entry::boot_stack_guard).addr() as u64;
    let code = (&raw const entry::__image_start).addr() as u64;
    expect(
        mem::frame_of(0).is_none(),
        format_args!("address 0 is mapped"),
    )?;
    expect(
        mem::frame_of(guard).is_none(),
        format_args!("the guard page is mapped"),
    )?;
    expect(
        mem::frame_of(code).is_some(),
        format_args!("the code is not mapped"),
    )?;
    let (owned, allowed) = mem::of_domain();
    let counted = total_pages();
    announce(format_args!(
        "selftest: {owned} pages owned, {allowed} allowed, {counted} counted, {} free",
        free_pages()
    ));
    expect(
        owned == counted,
        format_args!("{owned} pages owned, {counted} counted"),
    )
}

/// Runs of every length are zeroed, disjoint, and all come back.
pub fn frames() -> Outcome {
    let before = free_pages();
    let mut held = Vec::with_capacity(128);
    for round in 0..3u64 {
        for pages in [1, 2, 3, 5, 8, 17, 31, 64, 1, 100] {
            let mut run =
                Frames::alloc(pages, Node(0)).ok_or(super::Failure("no frames".into()))?;
            let zero = run.bytes().iter().all(|&byte| byte == 0);
            expect(zero, format_args!("a run of {pages} pages is not zeroed"))?;
            let mark = run.mfn().wrapping_mul(31).wrapping_add(round);
            for word in run.bytes().chunks_exact_mut(8) {
                word.copy_from_slice(&mark.to_ne_bytes());
            }
            held.push((mark, run));
        }
        // Every second one goes, so that the next round splits and merges.
        let mut odd = false;
        held.retain(|_| {
            odd = !odd;
            odd
        });
    }
    for (mark, run) in &mut held {
        let intact = run
            .bytes()
            .chunks_exact(8)
            .all(|word| word == mark.to_ne_bytes());
        expect(intact, format_args!("two runs overlap at {:#x}", run.mfn()))?;
    }
    drop(held);
    let after = free_pages();
    // The heap may have taken or given a block for the list itself.
    let moved = after.abs_diff(before);
    expect(
        moved <= 64,
        format_args!("{before} pages free before, {after} after"),
    )
}

/// Big and small blocks; what the heap takes it gives back.
pub fn heap() -> Outcome {
    let before = mem::heap_held_bytes();
    {
        let mut blocks: Vec<Vec<u8>> = (0..200).map(|n| vec![7; n * 97 + 1]).collect();
        blocks.push(vec![9; 6 << 20]);
        let sum: usize = blocks.iter().map(|block| usize::from(block[0])).sum();
        expect(sum == 200 * 7 + 9, format_args!("blocks overlap: {sum}"))?;
    }
    let after = mem::heap_held_bytes();
    announce(format_args!("selftest: heap holds {} KiB", after >> 10));
    let kept = after.saturating_sub(before);
    expect(
        kept <= 256 << 10,
        format_args!("the heap kept {kept} bytes"),
    )
}

/// What nobody who gets our memory may see.
const SECRET: u8 = 0x5e;

/// Takes as much from Xen again as `given` runs of 64 pages, looks for them in all that is
/// free now, as it is, and gives as much back.
fn come_back_clear(given: &[u64]) -> Outcome {
    let mut got = 0;
    for (_, node) in given.iter().zip([Node(0), Node(1)].into_iter().cycle()) {
        // Not in large pieces, which Xen would take from elsewhere.
        got += mem::grow(node, 64)?;
    }
    let all = usize::try_from(free_pages() / 64).unwrap_or(0);
    let mut runs: Vec<Frames> = (0..all)
        .map_while(|_| Frames::alloc_dirty(64, Node(0)))
        .collect();
    let mut seen = 0;
    for run in runs.iter_mut().filter(|run| given.contains(&run.mfn())) {
        seen += 1;
        let clear = run.bytes().iter().all(|byte| *byte != SECRET);
        expect(clear, format_args!("{:#x} came back as it was", run.mfn()))?;
    }
    while let Some(run) = (got >= 64).then(|| runs.pop()).flatten() {
        mem::give_back(run)?;
        got -= 64;
    }
    announce(format_args!(
        "selftest: {seen} of {} runs came back",
        given.len()
    ));
    expect(
        seen > 0 || given.is_empty(),
        format_args!("none of {given:x?} came back"),
    )
}

/// Memory comes from Xen on each node and goes back, with Xen's own count as witness.
pub fn grow_and_give_back() -> Outcome {
    for node in [Node(0), Node(1)] {
        let (owned_before, _) = mem::of_domain();
        let got = mem::grow(node, 1024 + 33)?;
        let (owned, _) = mem::of_domain();
        expect(
            owned == owned_before + got,
            format_args!("got {got}, Xen counts {owned}"),
        )?;
        expect(got > 0 || node.0 > 0, format_args!("node 0 gave nothing"))?;
        let mut back = 0;
        let mut given = Vec::new();
        while back + 64 <= got {
            let mut run = Frames::alloc(64, Node(0)).ok_or(super::Failure("no frames".into()))?;
            run.bytes().fill(SECRET);
            given.push(run.mfn());
            mem::give_back(run)?;
            back += 64;
        }
        let (owned, _) = mem::of_domain();
        expect(
            owned == owned_before + got - back,
            format_args!("Xen counts {owned} after"),
        )?;
        come_back_clear(&given)?;
        let (owned, _) = mem::of_domain();
        let counted = total_pages();
        expect(
            owned == counted,
            format_args!("{owned} owned, {counted} counted"),
        )?;
        announce(format_args!(
            "selftest: node {} gave {got} pages, took {back}",
            node.0
        ));
    }
    Ok(())
}

/// With ranges known, each frame counts for its node; the border moves nothing else.
pub fn node_ranges() -> Outcome {
    let before = (free_pages(), total_pages());
    let run = Frames::alloc(1, Node(0)).ok_or(super::Failure("no frames".into()))?;
    let border = run.mfn() + 1;
    drop(run);
    mem::set_node_ranges(&[(0, border, 0), (border, 1 << 34, 1)]);
    let counts = mem::counts();
    announce(format_args!("selftest: by node: {counts:?}"));
    let after = (free_pages(), total_pages());
    let near = before.0.abs_diff(after.0) <= 64 && before.1 == after.1;
    expect(near, format_args!("{before:?} became {after:?}"))?;
    for node in [Node(0), Node(1)] {
        let wanted = counts
            .get(node.0 as usize)
            .is_some_and(|count| count.free > 0);
        if wanted {
            let run = Frames::alloc(1, node).ok_or(super::Failure("no frames".into()))?;
            expect(
                run.node() == node,
                format_args!("asked {node:?}, got {:?}", run.node()),
            )?;
        }
    }
    let gone = mem::shrink(Node(1), 4096)?;
    let (owned, _) = mem::of_domain();
    let counted = total_pages();
    announce(format_args!("selftest: {gone} spare pages given back"));
    // Back to one node, for whoever comes next.
    mem::set_node_ranges(&[]);
    expect(
        owned == counted,
        format_args!("{owned} owned, {counted} counted"),
    )
}
