//! Transactions: what they see, when they conflict, what they cost.
mod common;

use common::{Bed, Op, refused, strings};
use toolstack_xenstore::{Quotas, XsError};
use xen_abi::DomId;

#[test]
fn a_transaction_sees_its_own_changes_and_nobody_elses() {
    let mut bed = Bed::new();
    let (a, b) = (bed.tools(), bed.tools());
    bed.write(a, 0, "/x", "old").unwrap();
    bed.write(a, 0, "/y", "old").unwrap();
    let tx = bed.start(a).unwrap();
    bed.write(a, tx, "/x", "mine").unwrap();
    bed.write(b, 0, "/y", "theirs").unwrap();
    assert_eq!(bed.read(a, tx, "/x").unwrap(), "mine");
    assert_eq!(bed.read(b, 0, "/x").unwrap(), "old");
    assert_eq!(
        bed.read(a, tx, "/y").unwrap(),
        "old",
        "as it was at the start"
    );
    // /y was read in it and has changed since.
    assert_eq!(refused(bed.end(a, tx, true)), "EAGAIN");
    assert_eq!(bed.read(a, 0, "/x").unwrap(), "old");
    assert_eq!(bed.server.stats(DomId(0)).unwrap().conflicts, 1);
    bed.check();
}

#[test]
fn an_ended_transaction_is_gone_either_way() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    for commit in [true, false] {
        let tx = bed.start(tools).unwrap();
        bed.write(tools, tx, "/x", "1").unwrap();
        bed.end(tools, tx, commit).unwrap();
        assert_eq!(bed.server.exists("/x"), commit);
        assert_eq!(refused(bed.end(tools, tx, commit)), "ENOENT");
        assert_eq!(refused(bed.read(tools, tx, "/x")), "ENOENT");
        bed.rm(tools, 0, "/x").unwrap();
    }
    assert_eq!(refused(bed.end(tools, 0, true)), "ENOENT");
    let tx = bed.start(tools).unwrap();
    let nested = bed.call(tools, Op::TRANSACTION_START, tx, b"\0");
    assert_eq!(refused(nested), "EBUSY");
}

#[test]
fn a_transaction_belongs_to_its_connection() {
    let mut bed = Bed::new();
    let (a, b) = (bed.tools(), bed.tools());
    let tx = bed.start(a).unwrap();
    assert_eq!(refused(bed.read(b, tx, "/tool")), "ENOENT");
    assert_eq!(refused(bed.end(b, tx, true)), "ENOENT");
    bed.end(a, tx, true).unwrap();
}

#[test]
fn what_was_only_written_is_no_conflict() {
    let mut bed = Bed::new();
    let (a, b) = (bed.tools(), bed.tools());
    bed.write(a, 0, "/x", "old").unwrap();
    let tx = bed.start(a).unwrap();
    bed.write(a, tx, "/x", "mine").unwrap();
    // Its own value, so not a read of theirs.
    assert_eq!(bed.read(a, tx, "/x").unwrap(), "mine");
    bed.write(b, 0, "/x", "theirs").unwrap();
    bed.end(a, tx, true).unwrap();
    assert_eq!(bed.read(b, 0, "/x").unwrap(), "mine");
}

#[test]
fn children_made_side_by_side_are_no_conflict() {
    let mut bed = Bed::new();
    let (a, b) = (bed.tools(), bed.tools());
    let (ta, tb) = (bed.start(a).unwrap(), bed.start(b).unwrap());
    bed.write(a, ta, "/vm/1/name", "one").unwrap();
    bed.write(b, tb, "/vm/2/name", "two").unwrap();
    bed.end(a, ta, true).unwrap();
    bed.end(b, tb, true).unwrap();
    assert_eq!(bed.list(a, 0, "/vm").unwrap(), ["1", "2"]);
    bed.check();
}

/// Each thing a transaction may have looked at, and each thing another may do to it:
/// a conflict exactly if the one depends on the other.
#[test]
fn a_read_conflicts_exactly_with_changes_of_what_was_read() {
    let looks: [(Op, &str); 5] = [
        (Op::READ, "/d"),
        (Op::DIRECTORY, "/d"),
        (Op::GET_PERMS, "/d"),
        (Op::READ, "/d/none"),
        (Op::READ, "/d/c"),
    ];
    type Change = fn(&mut Bed, toolstack_xenstore::ConnId);
    let changes: [(&str, Change, [bool; 5]); 7] = [
        ("nothing", |_, _| (), [false; 5]),
        (
            "elsewhere",
            |b, c| b.write(c, 0, "/e", "1").unwrap(),
            [false; 5],
        ),
        (
            "value",
            |b, c| b.write(c, 0, "/d", "1").unwrap(),
            [true, true, true, false, false],
        ),
        (
            "child's value",
            |b, c| b.write(c, 0, "/d/c", "1").unwrap(),
            [false, false, false, false, true],
        ),
        (
            "new child",
            |b, c| b.write(c, 0, "/d/none", "").unwrap(),
            [true, true, true, true, false],
        ),
        (
            "permissions",
            |b, c| b.chmod(c, 0, "/d", &["n0"]).unwrap(),
            [true, true, true, false, false],
        ),
        (
            "made again as it was",
            |b, c| {
                b.rm(c, 0, "/d").unwrap();
                b.write(c, 0, "/d/c", "").unwrap();
            },
            [true, true, true, false, true],
        ),
    ];
    for (name, change, conflicts) in changes {
        for ((op, path), conflict) in looks.iter().zip(conflicts) {
            let mut bed = Bed::new();
            let (a, b) = (bed.tools(), bed.tools());
            bed.write(a, 0, "/d/c", "").unwrap();
            let tx = bed.start(a).unwrap();
            let looked = bed.call(a, *op, tx, &strings(&[path]));
            assert_eq!(looked.is_ok(), *path != "/d/none");
            bed.write(a, tx, "/result", "").unwrap();
            change(&mut bed, b);
            let end = bed.end(a, tx, true);
            assert_eq!(end.is_err(), conflict, "{op:?} {path}, then {name}");
            assert_eq!(bed.server.exists("/result"), !conflict);
            bed.check();
        }
    }
}

#[test]
fn a_refused_change_is_something_read() {
    let mut bed = Bed::new();
    let (tools, guest) = (bed.tools(), bed.guest(1));
    bed.write(tools, 0, "/x", "").unwrap();
    let tx = bed.start(guest).unwrap();
    assert_eq!(refused(bed.write(guest, tx, "/x", "1")), "EACCES");
    bed.chmod(tools, 0, "/x", &["b0"]).unwrap();
    assert_eq!(refused(bed.end(guest, tx, true)), "EAGAIN");
}

#[test]
fn a_commit_that_can_no_longer_be_done_changes_nothing() {
    let mut bed = Bed::new();
    let (tools, guest) = (bed.tools(), bed.guest(1));
    bed.mkdir(tools, 0, "/open").unwrap();
    bed.chmod(tools, 0, "/open", &["b0"]).unwrap();
    let tx = bed.start(guest).unwrap();
    bed.write(guest, tx, "mine", "1").unwrap();
    bed.write(guest, tx, "/open/x", "1").unwrap();
    bed.chmod(tools, 0, "/open", &["n0"]).unwrap();
    assert_eq!(refused(bed.end(guest, tx, true)), "EAGAIN");
    assert_eq!(refused(bed.read(guest, 0, "mine")), "ENOENT");
    bed.check();
}

#[test]
fn remove_and_make_again_happen_in_order() {
    let mut bed = Bed::new();
    let (a, b) = (bed.tools(), bed.tools());
    bed.write(a, 0, "/d/old", "").unwrap();
    let tx = bed.start(a).unwrap();
    bed.write(a, tx, "/d/before", "").unwrap();
    bed.rm(a, tx, "/d").unwrap();
    bed.write(a, tx, "/d/new", "1").unwrap();
    bed.write(a, tx, "/d/new", "2").unwrap();
    assert_eq!(bed.list(a, tx, "/d").unwrap(), ["new"]);
    bed.write(b, 0, "/d/late", "").unwrap();
    // It never looked at /d, so the other's child goes with the old node.
    let listed = bed.end(a, tx, true);
    assert_eq!(refused(listed), "EAGAIN", "it listed /d");
    let tx = bed.start(a).unwrap();
    bed.rm(a, tx, "/d").unwrap();
    bed.write(a, tx, "/d/new", "2").unwrap();
    bed.write(b, 0, "/d/later", "").unwrap();
    bed.end(a, tx, true).unwrap();
    assert_eq!(bed.list(a, 0, "/d").unwrap(), ["new"]);
    assert_eq!(bed.read(a, 0, "/d/new").unwrap(), "2");
    bed.check();
}

#[test]
fn a_node_written_before_and_after_its_removal_has_the_last_value() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    let tx = bed.start(tools).unwrap();
    bed.write(tools, tx, "/d/x", "1").unwrap();
    bed.rm(tools, tx, "/d").unwrap();
    bed.write(tools, tx, "/d/x", "2").unwrap();
    bed.end(tools, tx, true).unwrap();
    assert_eq!(bed.read(tools, 0, "/d/x").unwrap(), "2");
}

#[test]
fn watches_fire_at_the_commit_once_for_each_node() {
    let mut bed = Bed::new();
    let (a, b) = (bed.tools(), bed.tools());
    bed.watch(b, "/", "t").unwrap();
    assert_eq!(bed.events(b), ["/"]);
    let tx = bed.start(a).unwrap();
    for value in ["1", "2", "3"] {
        bed.write(a, tx, "/n/x", value).unwrap();
    }
    bed.rm(a, tx, "/tool/xenstored").unwrap();
    assert_eq!(bed.events(b), [""; 0]);
    bed.end(a, tx, true).unwrap();
    assert_eq!(bed.events(b), ["/n/x", "/tool/xenstored"]);
    let tx = bed.start(a).unwrap();
    bed.write(a, tx, "/n/x", "4").unwrap();
    bed.end(a, tx, false).unwrap();
    assert_eq!(bed.events(b), [""; 0]);
}

#[test]
fn node_quota_counts_what_a_transaction_makes() {
    let mut bed = Bed::new();
    let guest = bed.guest(1);
    // Its home is one.
    bed.server.set_quotas(
        DomId(1),
        Some(Quotas {
            nodes: 4,
            ..Quotas::GUEST
        }),
    );
    let tx = bed.start(guest).unwrap();
    for name in ["a", "b", "c"] {
        bed.write(guest, tx, name, "").unwrap();
    }
    assert_eq!(refused(bed.write(guest, tx, "d", "")), "ENOSPC");
    bed.rm(guest, tx, "a").unwrap();
    bed.write(guest, tx, "d", "").unwrap();
    // Meanwhile outside: then there are too many for both.
    bed.write(guest, 0, "e", "").unwrap();
    assert_eq!(refused(bed.end(guest, tx, true)), "ENOSPC");
    assert_eq!(bed.list(guest, 0, "/local/domain/1").unwrap(), ["e"]);
    let tx = bed.start(guest).unwrap();
    bed.write(guest, tx, "x", "").unwrap();
    bed.write(guest, tx, "y", "").unwrap();
    bed.end(guest, tx, true).unwrap();
    assert_eq!(bed.server.stats(DomId(1)).unwrap().nodes.now, 4);
    bed.check();
}

#[test]
fn the_number_of_transactions_is_bounded() {
    let mut bed = Bed::new();
    let (guest, tools) = (bed.guest(1), bed.tools());
    let open: Vec<u32> = (0..10).map(|_| bed.start(guest).unwrap()).collect();
    assert_eq!(refused(bed.start(guest)), "ENOSPC");
    assert_eq!(bed.server.stats(DomId(1)).unwrap().transactions.now, 10);
    bed.end(guest, open[3], false).unwrap();
    bed.start(guest).unwrap();
    bed.ok(guest, Op::RESET_WATCHES, 0, b"\0").unwrap();
    assert_eq!(bed.server.stats(DomId(1)).unwrap().transactions.now, 0);
    for _ in 0..30 {
        bed.start(tools).unwrap();
    }
}

#[test]
fn the_nodes_of_a_transaction_are_bounded() {
    let mut bed = Bed::new();
    let guest = bed.guest(1);
    bed.server.set_quotas(
        DomId(1),
        Some(Quotas {
            transaction_nodes: 3,
            ..Quotas::GUEST
        }),
    );
    let tx = bed.start(guest).unwrap();
    bed.write(guest, tx, "a", "1").unwrap();
    assert_eq!(refused(bed.read(guest, tx, "b")), "ENOENT");
    bed.write(guest, tx, "c", "").unwrap();
    assert_eq!(refused(bed.write(guest, tx, "d", "")), "ENOSPC");
    assert_eq!(refused(bed.read(guest, tx, "e")), "ENOSPC");
    // Nothing new.
    bed.write(guest, tx, "a", "2").unwrap();
    bed.end(guest, tx, true).unwrap();
    assert_eq!(bed.read(guest, 0, "a").unwrap(), "2");
}

#[test]
fn permissions_for_a_domain_that_died_meanwhile_are_not_given_to_its_successor() {
    let mut bed = Bed::new();
    let guest = bed.guest(1);
    bed.guest(2);
    bed.write(guest, 0, "mine", "1").unwrap();
    let tx = bed.start(guest).unwrap();
    bed.chmod(guest, tx, "mine", &["n1", "r2"]).unwrap();
    bed.server.domain_released(DomId(2));
    let successor = bed.guest(2);
    assert_eq!(refused(bed.end(guest, tx, true)), "EAGAIN");
    assert_eq!(
        refused(bed.read(successor, 0, "/local/domain/1/mine")),
        "EACCES"
    );
}

#[test]
fn an_old_transaction_does_not_keep_all_history() {
    let mut bed = Bed::new();
    let (tools, holder) = (bed.tools(), bed.guest(1));
    bed.write(holder, 0, "x", "1").unwrap();
    let tx = bed.start(holder).unwrap();
    assert_eq!(bed.read(holder, tx, "x").unwrap(), "1");
    // Each snapshot makes the next write copy; 2 KiB values, 5000 times.
    let value = "v".repeat(2048);
    for i in 0..5000 {
        let other = bed.start(tools).unwrap();
        bed.write(tools, 0, &format!("/big/{}", i % 50), &value)
            .unwrap();
        bed.end(tools, other, false).unwrap();
    }
    // It still works, on what is there now, but must be tried again.
    assert_eq!(bed.read(holder, tx, "x").unwrap(), "1");
    bed.write(holder, tx, "x", "2").unwrap();
    assert_eq!(refused(bed.end(holder, tx, true)), "EAGAIN");
    assert_eq!(bed.read(holder, 0, "x").unwrap(), "1");
    bed.check();
}

/// What a guest removes is no longer charged to it, but an open transaction still has it.
#[test]
fn removed_trees_are_not_kept_for_long() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let served = |bed: &mut Bed| {
        while bed.server.wants(guest) == 0 {
            bed.wait(10);
        }
    };
    let value = "x".repeat(2000);
    let mut open = Vec::new();
    for round in 0..6 {
        for i in 0..980 {
            served(&mut bed);
            bed.write(guest, 0, &format!("data/{}/{i}", i / 100), &value)
                .unwrap();
        }
        served(&mut bed);
        open.push(bed.start(guest).unwrap());
        if round % 2 == 1 {
            // The top is copied first: only what is below it is shared with the old state.
            served(&mut bed);
            bed.write(guest, 0, "data", "").unwrap();
        }
        served(&mut bed);
        bed.rm(guest, 0, "data").unwrap();
    }
    let kept: Vec<bool> = open
        .into_iter()
        .map(|tx| {
            served(&mut bed);
            bed.read(guest, tx, "data/0/5").is_ok()
        })
        .collect();
    assert_eq!(kept, [false, false, false, false, false, true]);
    bed.check();
}

/// A guest that changes a lot of its own gets no others' transactions given up.
#[test]
fn others_transactions_outlive_what_a_guest_makes_them_keep() {
    const REQUESTS_A_MS: usize = 20;
    let value = "x".repeat(2000);
    // One that rewrites many long values at once, and one that writes below a long chain.
    for (rewritten, below) in [(300, ""), (1, "/a")] {
        let mut bed = Bed::new();
        let (noisy, victim) = (bed.guest(3), bed.guest(4));
        let path = |i: usize| format!("d/{i}{}", below.repeat(59));
        for i in 0..rewritten {
            bed.write(noisy, 0, &path(i), &value).unwrap();
        }
        let mut own = None;
        // Nobody writes, which fills what all may draw from.
        bed.wait(60_000);
        for _ in 0..30 {
            let theirs = bed.start(victim).unwrap();
            bed.write(victim, theirs, "device/vif/0/state", "3")
                .unwrap();
            for _ in 0..500 {
                for _ in 0..REQUESTS_A_MS {
                    if bed.server.wants(noisy) == 0 {
                        break;
                    }
                    own = match own {
                        None => Some((bed.start(noisy).unwrap(), 0)),
                        Some((tx, i)) if i < rewritten => {
                            bed.write(noisy, tx, &path(i), &value).unwrap();
                            Some((tx, i + 1))
                        }
                        Some((tx, _)) => {
                            bed.end(noisy, tx, true).unwrap();
                            None
                        }
                    };
                }
                bed.wait(1);
            }
            bed.end(victim, theirs, true).unwrap();
            while bed.server.wants(victim) == 0 {
                bed.wait(1);
            }
        }
    }
}

/// A commit that comes to nothing leaves nothing behind that others had to make room for.
#[test]
fn failed_commits_cost_nobody_a_transaction() {
    let mut bed = Bed::new();
    let (noisy, victim) = (bed.guest(3), bed.guest(4));
    let value = "x".repeat(2000);
    for i in 0..900 {
        bed.write(noisy, 0, &format!("big/{}/{i}", i / 100), &value)
            .unwrap();
    }
    bed.mkdir(noisy, 0, "p/y").unwrap();
    let theirs = bed.start(victim).unwrap();
    bed.write(victim, theirs, "device/vif/0/state", "3")
        .unwrap();
    let in_vain: Vec<u32> = (0..5)
        .map(|_| {
            let tx = bed.start(noisy).unwrap();
            bed.rm(noisy, tx, "big").unwrap();
            bed.rm(noisy, tx, "p/y").unwrap();
            tx
        })
        .collect();
    bed.rm(noisy, 0, "p").unwrap();
    for tx in in_vain {
        assert_eq!(refused(bed.end(noisy, tx, true)), "EAGAIN");
    }
    bed.end(victim, theirs, true).unwrap();
    bed.check();
}

#[test]
fn writers_are_slowed_while_somebody_has_a_transaction() {
    let mut bed = Bed::new();
    let (writer, victim) = (bed.guest(1), bed.guest(2));
    bed.start(victim).unwrap();
    let request = common::packet(Op::WRITE, 1, 0, b"x\0y");
    let mut written = 0;
    for _ in 0..2000 {
        if bed.server.input(writer, &request).unwrap().consumed == 0 {
            break;
        }
        bed.receive(writer);
        written += 1;
    }
    assert!((5..200).contains(&written), "{written}");
    let deadline = bed.server.next_deadline_ms().expect("it goes on by itself");
    assert!(deadline > 0);
    while bed.server.next_ready().is_some() {}
    bed.server.advance(deadline + 10);
    assert_eq!(bed.server.next_ready(), Some(writer));
    assert!(bed.server.input(writer, &request).unwrap().consumed > 0);
    // The one with the transaction was not held up.
    bed.write(victim, 0, "x", "1").unwrap();
}

#[test]
fn the_pvms_own_changes_happen_together_or_not_at_all() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    bed.watch(tools, "/vm", "t").unwrap();
    bed.events(tools);
    let failed: Result<(), XsError> = bed.server.transaction(|t| {
        t.write("/vm/1", b"x")?;
        t.remove("/tool")?;
        assert_eq!(t.read("/vm/1").unwrap(), b"x");
        Err(XsError::EIO)
    });
    assert_eq!(failed, Err(XsError::EIO));
    assert!(!bed.server.exists("/vm/1") && bed.server.exists("/tool"));
    assert_eq!(bed.events(tools), [""; 0]);
    bed.server
        .transaction(|t| {
            t.write("/vm/1", b"x")?;
            t.write("/vm/1", b"y")
        })
        .unwrap();
    assert_eq!(bed.events(tools), ["/vm/1"]);
    bed.check();
}
