//! Frames, the heap, growing and shrinking, protection.

use super::{Failure, Outcome, expect};
use crate::arch::entry;
use crate::firmware;
use crate::log::announce;
use crate::mem::{self, Frames, NodeCount};
use crate::services::host::CALLS;
use alloc::vec;
use alloc::vec::Vec;
use hal::Node;
use toolstack_domain::xen::Xen;

fn free_pages() -> u64 {
    mem::counts().iter().map(|count| count.free).sum()
}

fn count_of(node: Node) -> NodeCount {
    let counts = mem::counts();
    counts.get(node.0 as usize).copied().unwrap_or_default()
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
            let mut run = Frames::alloc(pages, Node(0)).ok_or(Failure("no frames".into()))?;
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

/// Takes as much of `node` from Xen again as `given` runs of 64 pages, looks for them in all
/// that is free now, as it is, and gives as much back.
fn come_back_clear(node: Node, given: &[u64]) -> Outcome {
    let (before, _) = mem::of_domain();
    for _ in given {
        // Not in large pieces, which Xen would take from elsewhere.
        mem::grow(node, 64)?;
    }
    let all = count_of(node).free / 64;
    let mut runs: Vec<Frames> = (0..all)
        .map_while(|_| Frames::alloc_dirty(64, node))
        .collect();
    let mut seen = 0;
    for run in runs.iter_mut().filter(|run| given.contains(&run.mfn())) {
        seen += 1;
        let clear = run.bytes().iter().all(|byte| *byte != SECRET);
        expect(clear, format_args!("{:#x} came back as it was", run.mfn()))?;
    }
    runs.retain(|run| run.node() == node);
    // With what the search made it grow, if the last run was in pieces.
    while let Some(run) = (mem::of_domain().0 > before).then(|| runs.pop()).flatten() {
        mem::give_back(run)?;
    }
    announce(format_args!(
        "selftest: {seen} of {} runs came back",
        given.len()
    ));
    expect(seen > 0, format_args!("none of {given:x?} came back"))
}

/// Pages that Xen has free on each node. Where a single frame lies it tells nobody.
fn free_of_xen() -> Result<Vec<(Node, u64)>, Failure> {
    let nodes = Xen::new(&CALLS)?.host_facts()?.nodes;
    Ok(nodes
        .iter()
        .map(|node| (Node(node.id.0), node.free / 4096))
        .collect())
}

/// Xen has `pages` fewer free on `node` than `before`, and as many as before on the others.
fn expect_taken(before: &[(Node, u64)], node: Node, pages: i64) -> Outcome {
    // Xen's own tables come and go by some pages.
    const XENS: u64 = 32;
    let after = free_of_xen()?;
    let right = before.iter().zip(&after).all(|((on, before), (_, after))| {
        let taken = if *on == node { pages } else { 0 };
        before.saturating_add_signed(-taken).abs_diff(*after) <= XENS
    });
    expect(
        right,
        format_args!("{pages} pages of {node:?}: Xen's free {before:?} became {after:?}"),
    )
}

/// Memory comes from Xen on the node asked for and goes back to it, with Xen's own counts
/// as witness.
pub fn grow_and_give_back() -> Outcome {
    // Large pieces, small ones and single pages.
    const RUNS: usize = 16;
    const REST: usize = 33;
    const PAGES: u64 = 64 * RUNS as u64 + REST as u64;
    mem::set_node_ranges(&firmware::node_map(&firmware::load()).ranges);
    let xens = free_of_xen()?;
    for (node, _) in xens.iter().copied() {
        let before = count_of(node).total;
        let got = mem::grow(node, PAGES)?;
        expect(
            got == PAGES,
            format_args!("{node:?} gave {got} pages of {PAGES}"),
        )?;
        expect_taken(&xens, node, PAGES.cast_signed())?;
        expect(
            count_of(node).total == before + PAGES,
            format_args!(
                "{PAGES} of {node:?}: {before} became {}",
                count_of(node).total
            ),
        )?;
        let mut given = Vec::new();
        for pages in [64; RUNS].into_iter().chain([REST]) {
            let mut run = Frames::alloc(pages, node).ok_or(Failure("no frames".into()))?;
            expect(
                run.node() == node,
                format_args!("asked {node:?}, got {:?}", run.node()),
            )?;
            run.bytes().fill(SECRET);
            given.push(run.mfn());
            mem::give_back(run)?;
        }
        expect_taken(&xens, node, 0)?;
        given.pop();
        come_back_clear(node, &given)?;
        expect_taken(&xens, node, 0)?;
        let (owned, _) = mem::of_domain();
        let counted = total_pages();
        expect(
            owned == counted,
            format_args!("{owned} owned, {counted} counted"),
        )?;
        announce(format_args!(
            "selftest: {node:?} gave {PAGES} pages and took them"
        ));
    }
    Ok(())
}

/// With ranges known, each frame counts for its node; the border moves nothing else.
pub fn node_ranges() -> Outcome {
    let before = (free_pages(), total_pages());
    let run = Frames::alloc(1, Node(0)).ok_or(Failure("no frames".into()))?;
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
            let run = Frames::alloc(1, node).ok_or(Failure("no frames".into()))?;
            expect(
                run.node() == node,
                format_args!("asked {node:?}, got {:?}", run.node()),
            )?;
        }
    }
    // As they really lie, for whoever comes next.
    mem::set_node_ranges(&firmware::node_map(&firmware::load()).ranges);
    let xens = free_of_xen()?;
    let most = mem::counts().iter().map(|count| count.free).max();
    let node = mem::counts()
        .iter()
        .position(|count| Some(count.free) == most);
    let node = Node(u32::try_from(node.unwrap_or(0))?);
    let gone = mem::shrink(node, most.unwrap_or(0) / 2)?;
    expect(gone > 0, format_args!("{node:?} gave nothing of {most:?}"))?;
    expect_taken(&xens, node, -gone.cast_signed())?;
    let (owned, _) = mem::of_domain();
    let counted = total_pages();
    announce(format_args!("selftest: {gone} spare pages given back"));
    expect(
        owned == counted,
        format_args!("{owned} owned, {counted} counted"),
    )
}

/// Says how many of our pages lie on which node: the bed compares that with what Xen says.
pub fn say_nodes() {
    for (node, count) in mem::counts().iter().enumerate() {
        announce(format_args!(
            "selftest: our pages on node {node}: {}",
            count.total
        ));
    }
}
