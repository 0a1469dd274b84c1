//! What a hostile guest can't do: quotas, and the denial-of-service holes that
//! xenstored had (each test names the one it keeps shut).
mod common;

use common::{Bed, Op, packet, refused, strings};
use toolstack_xenstore::{ConnId, Quotas};
use xen_abi::DomId;

/// Offers a request; whether it was taken.
fn offer(bed: &mut Bed, conn: ConnId, op: Op, tx: u32, payload: &[u8]) -> bool {
    let bytes = packet(op, 7, tx, payload);
    let taken = bed.server.input(conn, &bytes).unwrap().consumed;
    assert!(taken == 0 || taken == bytes.len());
    taken > 0
}

fn memory(bed: &Bed, domid: u16) -> usize {
    bed.server.stats(DomId(domid)).unwrap().memory.now
}

#[test]
fn a_guest_makes_as_many_nodes_as_its_quota_says() {
    let mut bed = Bed::new();
    let (tools, guest) = (bed.tools(), bed.guest(3));
    let made = (0..2000).filter(|i| bed.write(guest, 0, &format!("{}/{i}", i / 100), "").is_ok());
    // Its home and one directory for each hundred count as well.
    assert_eq!(made.count(), 1000 - 1 - 10);
    assert_eq!(bed.server.stats(DomId(3)).unwrap().nodes.now, 1000);
    assert_eq!(refused(bed.mkdir(guest, 0, "more")), "ENOSPC");
    // What is there can still be written and removed; dom0 has no such limit.
    bed.write(guest, 0, "0/0", "x").unwrap();
    bed.write(tools, 0, "/local/domain/3/by-dom0", "").unwrap();
    bed.rm(guest, 0, "1").unwrap();
    bed.mkdir(guest, 0, "more").unwrap();
    bed.check();
}

#[test]
fn a_refused_deep_path_leaves_nothing_half_made() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    bed.server.set_quotas(
        DomId(3),
        Some(Quotas {
            nodes: 5,
            ..Quotas::GUEST
        }),
    );
    assert_eq!(refused(bed.write(guest, 0, "a/b/c/d/e", "")), "ENOSPC");
    assert_eq!(refused(bed.read(guest, 0, "a")), "ENOENT");
    bed.write(guest, 0, "a/b/c/d", "").unwrap();
    bed.check();
}

/// A change deep down copies all above it: so deep is no guest's node.
#[test]
fn how_deep_a_guest_makes_nodes_is_bounded() {
    let mut bed = Bed::new();
    let (guest, tools) = (bed.guest(3), bed.tools());
    // "local", "domain" and "3" are above.
    let deepest = format!("d{}", "/a".repeat(60));
    bed.write(guest, 0, &deepest, "x").unwrap();
    assert_eq!(
        refused(bed.write(guest, 0, &format!("{deepest}/a"), "")),
        "ENOSPC"
    );
    let tx = bed.start(guest).unwrap();
    assert_eq!(
        refused(bed.mkdir(guest, tx, &format!("e{}", "/a".repeat(61)))),
        "ENOSPC"
    );
    bed.write(tools, 0, &"/a".repeat(100), "").unwrap();
    bed.check();
}

#[test]
fn nodes_permissions_and_paths_have_their_sizes() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    // 16 bytes of header and 8 for the one permission.
    bed.write(guest, 0, "v", &"x".repeat(2048 - 24)).unwrap();
    assert_eq!(
        refused(bed.write(guest, 0, "v", &"x".repeat(2048 - 23))),
        "ENOSPC"
    );
    bed.chmod(guest, 0, "v", &["n3"]).unwrap();
    assert_eq!(
        refused(bed.chmod(guest, 0, "v", &["n3", "r0"])),
        "ENOSPC",
        "no room"
    );
    bed.write(guest, 0, "p", "").unwrap();
    bed.chmod(guest, 0, "p", &["n3", "r0", "r0", "r0", "r0"])
        .unwrap();
    let six = ["n3", "r0", "r0", "r0", "r0", "r0"];
    assert_eq!(refused(bed.chmod(guest, 0, "p", &six)), "ENOSPC");
    // A node's list of children counts as well.
    let long = "n".repeat(200);
    let fits = (0..20).take_while(|i| bed.mkdir(guest, 0, &format!("dir/{long}{i}")).is_ok());
    assert_eq!(fits.count(), 10);
    let long = format!("/tool/{}", "n".repeat(2048));
    assert_eq!(refused(bed.read(guest, 0, &long)), "EINVAL");
    bed.check();
}

#[test]
fn one_guests_quotas_are_not_anothers() {
    let mut bed = Bed::new();
    let (driver, guest) = (bed.guest(1), bed.guest(2));
    bed.server.set_quotas(DomId(1), Some(Quotas::DRIVER_DOMAIN));
    for i in 0..1500 {
        bed.write(driver, 0, &format!("backend/{}/{i}", i / 100), "")
            .unwrap();
    }
    let made = (0..1500).filter(|i| bed.write(guest, 0, &format!("{}/{i}", i / 100), "").is_ok());
    assert!(made.count() < 1000);
}

/// CVE-2022-42315, first way: requests without end whose answers are never read.
#[test]
fn who_does_not_read_answers_is_not_read_either() {
    let mut bed = Bed::new();
    let (guest, other) = (bed.guest(3), bed.guest(4));
    bed.write(guest, 0, "v", &"x".repeat(2000)).unwrap();
    let request = strings(&["/local/domain/3/v"]);
    let taken = (0..1000).take_while(|_| offer(&mut bed, guest, Op::READ, 0, &request));
    assert_eq!(taken.count(), Quotas::GUEST.outstanding);
    let held = memory(&bed, 3);
    assert!(held < 64 * 1024, "{held}");
    // Nobody else notices.
    bed.write(other, 0, "x", "1").unwrap();
    // Reading one answer lets one request in.
    while bed.server.next_ready().is_some() {}
    let first = bed.server.output(guest).len();
    bed.server.sent(guest, first);
    assert_eq!(bed.server.next_ready(), Some(guest));
    assert!(offer(&mut bed, guest, Op::READ, 0, &request));
    assert!(!offer(&mut bed, guest, Op::READ, 0, &request));
    assert_eq!(bed.receive(guest).len(), 20);
    assert!(bed.server.stats(DomId(3)).unwrap().stalls > 0);
}

/// CVE-2022-42315, second way: events for somebody who doesn't read them.
#[test]
fn events_nobody_reads_do_not_pile_up() {
    let mut bed = Bed::new();
    let (deaf, writer) = (bed.guest(3), bed.guest(4));
    bed.chmod(writer, 0, "/local/domain/4", &["r4"]).unwrap();
    for i in 0..100 {
        bed.watch(deaf, "/local/domain/4", &i.to_string()).unwrap();
        bed.events(deaf);
    }
    let mut written = 0;
    for i in 0..5000u32 {
        let payload = [format!("n{}/{i}", i % 40).as_bytes(), b"\0"].concat();
        if !offer(&mut bed, writer, Op::WRITE, 0, &payload) {
            break;
        }
        bed.receive(writer);
        written += 1;
    }
    // Each request is outstanding until the events it caused were read.
    assert_eq!(written, Quotas::GUEST.outstanding);
    assert!(memory(&bed, 3) < Quotas::GUEST.memory);
    // They run out in the end, and the writer goes on.
    bed.server.advance(20_001);
    assert!(bed.server.output(deaf).is_empty());
    assert!(offer(&mut bed, writer, Op::WRITE, 0, b"x\0"));
}

/// The same, where the writer is one whom no quota holds.
#[test]
fn events_of_dom0_stop_at_the_watchers_memory() {
    let mut bed = Bed::new();
    let (deaf, tools) = (bed.guest(3), bed.tools());
    let token = "t".repeat(1000);
    for i in 0..20 {
        bed.watch(deaf, "data", &format!("{token}{i}")).unwrap();
        bed.events(deaf);
    }
    for i in 0..300 {
        let path = format!("/local/domain/3/data/{i}");
        bed.write(tools, 0, &path, "").unwrap();
    }
    let stats = bed.server.stats(DomId(3)).unwrap();
    // The 300 nodes are the guest's as well, and nobody refuses dom0 one.
    assert!(stats.memory.max <= Quotas::GUEST.memory + 300 * 250);
    assert!(stats.events_dropped > 0);
    bed.events(deaf);
    assert!(memory(&bed, 3) < stats.memory.now / 2);
    bed.check();
}

/// What a transaction removes from its view is still there for everybody else.
#[test]
fn nodes_made_in_a_transaction_are_not_paid_by_others_it_removes() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let value = "x".repeat(1000);
    for i in 0..900 {
        bed.write(guest, 0, &format!("big/{}/{i}", i / 100), &value)
            .unwrap();
    }
    let tx = bed.start(guest).unwrap();
    bed.rm(guest, tx, "big").unwrap();
    let before = memory(&bed, 3);
    for i in 0..15 {
        bed.mkdir(guest, tx, &format!("new/{i}{}", "/a".repeat(58)))
            .unwrap();
    }
    let more = memory(&bed, 3) - before;
    assert!(more > 15 * 59 * 224, "{more} bytes charged");
    bed.end(guest, tx, false).unwrap();
    bed.check();
}

/// CVE-2022-42315, third way: large nodes times transactions.
#[test]
fn transactions_with_large_nodes_are_charged() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let value = "x".repeat(2000);
    let mut refused_with = None;
    let transactions: Vec<u32> = (0..10).map(|_| bed.start(guest).unwrap()).collect();
    'all: for tx in &transactions {
        for i in 0..400 {
            if let Err(error) = bed.write(guest, *tx, &format!("d{}/n{i}", i / 50), &value) {
                refused_with = Some(error);
                break 'all;
            }
        }
    }
    assert_eq!(refused_with.as_deref(), Some("ENOMEM"));
    let stats = bed.server.stats(DomId(3)).unwrap();
    assert!(
        stats.memory.max < Quotas::GUEST.memory + 64 * 1024,
        "{stats:?}"
    );
    // It is still served, and can give everything back.
    for tx in transactions {
        bed.end(guest, tx, false).unwrap();
    }
    assert!(memory(&bed, 3) < 1024);
    bed.check();
}

/// CVE-2022-42315, fourth way: nodes touched in a transaction.
#[test]
fn nodes_read_in_a_transaction_are_charged_and_bounded() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let tx = bed.start(guest).unwrap();
    let long = "n".repeat(1500);
    let answers: Vec<String> = (0..1100)
        .map(|i| refused(bed.read(guest, tx, &format!("{long}{i}"))))
        .collect();
    let noted = answers.iter().filter(|answer| *answer == "ENOENT").count();
    assert_eq!(noted, Quotas::GUEST.transaction_nodes);
    assert!(memory(&bed, 3) > 1500 * noted);
    assert!(memory(&bed, 3) < Quotas::GUEST.memory);
    bed.end(guest, tx, true).unwrap();
    assert!(memory(&bed, 3) < 1024);
}

/// What a transaction copies of nodes that are there counts as well.
#[test]
fn a_transactions_copies_end_before_the_quota() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let quotas = Quotas {
        nodes: usize::MAX,
        ..Quotas::GUEST
    };
    bed.server.set_quotas(DomId(3), Some(quotas));
    let deep = |i: usize| format!("{i}{}", "/a".repeat(60));
    for i in 0..66 {
        bed.write(guest, 0, &deep(i), "").unwrap();
    }
    let before = memory(&bed, 3);
    assert!(before < Quotas::GUEST.memory / 2);
    let transactions = [bed.start(guest).unwrap(), bed.start(guest).unwrap()];
    // Each of these few bytes copies 60 nodes.
    let answers =
        transactions.map(|tx| (0..66).find_map(|i| bed.write(guest, tx, &deep(i), "x").err()));
    assert_eq!(answers, [None, Some("ENOMEM".to_owned())]);
    // The second was given up: it can't commit, but it can be ended, and the first lives.
    assert_eq!(refused(bed.end(guest, transactions[1], true)), "ENOMEM");
    bed.end(guest, transactions[0], true).unwrap();
    assert_eq!(bed.read(guest, 0, &deep(65)).unwrap(), "x");
    assert_eq!(memory(&bed, 3), before + 66);
    bed.check();
}

/// At its quota a guest isn't read: nothing that lasts may bring it there.
#[test]
fn a_guest_at_its_quota_can_still_give_things_back() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let value = "x".repeat(2000);
    let transactions: Vec<u32> = (0..5).map(|_| bed.start(guest).unwrap()).collect();
    for tx in &transactions {
        for i in 0..300 {
            let path = format!("d{}/n{i}", i / 50);
            if bed.write(guest, *tx, &path, &value).is_err() {
                break;
            }
        }
    }
    for (i, size) in [2000, 1000, 500, 100, 10, 0].into_iter().enumerate() {
        for j in 0..100 {
            let (name, token) = (format!("{i}/{j}"), "t".repeat(size));
            let stopped = [
                bed.write(guest, 0, &name, &token).is_err(),
                bed.watch(guest, &name, &token).is_err(),
                bed.read(guest, transactions[0], &format!("{name}/{token}"))
                    .is_err(),
                bed.start(guest).is_err(),
            ];
            bed.events(guest);
            if stopped == [true; 4] {
                break;
            }
        }
    }
    assert!(memory(&bed, 3) > Quotas::GUEST.memory - 4096);
    for tx in transactions {
        bed.end(guest, tx, false).unwrap();
    }
    assert!(memory(&bed, 3) < Quotas::GUEST.memory / 2);
}

/// A transaction that changes one node for ever remembers it once.
#[test]
fn writing_one_node_again_and_again_costs_once() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let tx = bed.start(guest).unwrap();
    bed.write(guest, tx, "x", &"v".repeat(1000)).unwrap();
    let once = memory(&bed, 3);
    for _ in 0..5000 {
        bed.write(guest, tx, "x", &"v".repeat(1000)).unwrap();
    }
    assert_eq!(memory(&bed, 3), once);
}

/// A path may have 1500 names: neither watches nor nodes on it cost more than charged,
/// and nothing recurses into it.
#[test]
fn deep_paths_are_charged_and_overflow_no_stack() {
    let run = || {
        let mut bed = Bed::new();
        let (tools, guest) = (bed.tools(), bed.guest(3));
        let deep = "/a".repeat(1000);
        bed.write(tools, 0, &deep, "").unwrap();
        let tx = bed.start(tools).unwrap();
        bed.write(tools, tx, &deep, "2").unwrap();
        bed.end(tools, tx, true).unwrap();
        bed.rm(tools, 0, "/a").unwrap();
        let watched = (0..128)
            .take_while(|i| {
                let watched = bed.watch(guest, &format!("{deep}/{i}"), "t").is_ok();
                bed.events(guest);
                watched
            })
            .count();
        assert!((5..20).contains(&watched), "{watched}");
        assert_eq!(refused(bed.write(guest, 0, &deep[1..], "")), "ENOSPC");
        bed.check();
    };
    // A kernel's stack, not a host's; debug builds use several times as much.
    let small = std::thread::Builder::new().stack_size(128 * 1024);
    small.spawn(run).unwrap().join().unwrap();
}

/// CVE-2022-42319 (XSA-416): memory for a request that stays until its answer is read.
#[test]
fn a_request_leaves_nothing_but_its_answer() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let before = memory(&bed, 3);
    let long = strings(&["/tool", &"x".repeat(4000)]);
    for _ in 0..Quotas::GUEST.outstanding {
        assert!(offer(&mut bed, guest, Op::READ, 0, &long));
    }
    let answers = memory(&bed, 3) - before;
    assert!(answers < Quotas::GUEST.outstanding * 300, "{answers}");
    bed.receive(guest);
    assert_eq!(memory(&bed, 3), before);
}

/// CVE-2022-42330 (XSA-425): a release in the middle of everything.
#[test]
fn a_release_with_everything_half_done_is_clean() {
    let mut bed = Bed::new();
    let (tools, guest, other) = (bed.tools(), bed.guest(3), bed.guest(4));
    bed.ok(tools, Op::SET_TARGET, 0, b"4\x003\0").unwrap();
    bed.ok(tools, Op::SET_TARGET, 0, b"3\x004\0").unwrap();
    bed.watch(guest, "@releaseDomain", "r").unwrap();
    bed.watch(guest, "/local/domain/4/x", "x").unwrap();
    bed.watch(other, "/local/domain/3/data", "d").unwrap();
    bed.events(other);
    let tx = bed.start(guest).unwrap();
    bed.write(guest, tx, "data/a", "1").unwrap();
    bed.write(guest, 0, "data/b", "1").unwrap();
    let waiting = strings(&["data/b"]);
    while offer(&mut bed, guest, Op::READ, 0, &waiting) {}
    bed.server
        .input(guest, &packet(Op::READ, 1, 0, b"x\0")[..5])
        .unwrap();
    bed.ok(tools, Op::RELEASE, 0, b"3\0").unwrap();
    // Soft reset: the same number comes back at once.
    bed.ok(tools, Op::INTRODUCE, 0, b"3\x000\x005\0").unwrap();
    bed.ok(tools, Op::RELEASE, 0, b"3\0").unwrap();
    assert!(bed.server.input(guest, b"x").is_err());
    assert!(bed.server.output(guest).is_empty());
    bed.write(other, 0, "x", "1").unwrap();
    bed.check();
}

/// XSA-233: a stub domain that shuts down with (or after) its target.
#[test]
fn targets_end_in_either_order() {
    for order in [[3, 4], [4, 3]] {
        let mut bed = Bed::new();
        let tools = bed.tools();
        let (_, stub) = (bed.guest(3), bed.guest(4));
        bed.ok(tools, Op::SET_TARGET, 0, b"4\x003\0").unwrap();
        bed.write(stub, 0, "/local/domain/3/by-stub", "").unwrap();
        for domid in order {
            bed.server.domain_released(DomId(domid));
            bed.check();
        }
        assert_eq!(bed.server.known_domains(), [DomId(0)]);
    }
}

/// CVE-2020-29486 (XSA-352): a guest that gives its nodes to another, who then pays.
#[test]
fn a_guest_cannot_make_another_pay() {
    let mut bed = Bed::new();
    let (thief, victim) = (bed.guest(3), bed.guest(4));
    let before = bed.server.stats(DomId(4)).unwrap();
    bed.write(thief, 0, "x", "1").unwrap();
    assert_eq!(refused(bed.chmod(thief, 0, "x", &["n4"])), "EPERM");
    let tx = bed.start(thief).unwrap();
    assert_eq!(refused(bed.chmod(thief, tx, "x", &["n4"])), "EPERM");
    bed.end(thief, tx, true).unwrap();
    // Where the victim lets it write, it pays for what it makes itself.
    bed.write(victim, 0, "open", "").unwrap();
    bed.chmod(victim, 0, "open", &["b4"]).unwrap();
    let open = bed.server.stats(DomId(4)).unwrap().nodes.now;
    bed.write(thief, 0, "/local/domain/4/open/mine", "1")
        .unwrap();
    let after = bed.server.stats(DomId(4)).unwrap();
    assert_eq!((after.nodes.now, open), (open, before.nodes.now + 1));
    assert_eq!(bed.server.stats(DomId(3)).unwrap().nodes.now, 3);
    bed.check();
}

/// CVE-2018-15470 (XSA-272): writes without bound.
#[test]
fn a_guests_writes_end_at_its_memory_quota() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    bed.server.set_quotas(
        DomId(3),
        Some(Quotas {
            nodes: usize::MAX,
            ..Quotas::GUEST
        }),
    );
    let value = "x".repeat(2000);
    let answer = (0..5000).find_map(|i| {
        bed.write(guest, 0, &format!("d{}/n{i}", i / 100), &value)
            .err()
    });
    assert_eq!(answer.as_deref(), Some("ENOMEM"));
    let held = memory(&bed, 3);
    assert!(
        held < Quotas::GUEST.memory && held > Quotas::GUEST.memory - 4096,
        "{held}"
    );
    // It is not shut out: it can give back what it holds.
    bed.rm(guest, 0, "d1").unwrap();
    bed.write(guest, 0, "again", &value).unwrap();
    bed.check();
}

/// A commit that fires many watches is one request; the guest pays for each event.
#[test]
fn many_watches_on_many_changes_are_bounded() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    for i in 0..128 {
        bed.watch(guest, "/local/domain/3", &i.to_string()).unwrap();
        bed.events(guest);
    }
    let tx = bed.start(guest).unwrap();
    for i in 0..900 {
        bed.write(guest, tx, &format!("d{}/n{i}", i / 50), "")
            .unwrap();
    }
    bed.end(guest, tx, true).unwrap();
    let stats = bed.server.stats(DomId(3)).unwrap();
    assert!(stats.memory.max <= Quotas::GUEST.memory + 8192, "{stats:?}");
    bed.check();
}

#[test]
fn a_privileged_client_that_does_not_read_is_not_read() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    bed.server.write("/v", &[b'x'; 4000]).unwrap();
    let taken = (0..10_000).take_while(|_| offer(&mut bed, tools, Op::READ, 0, b"/v\0"));
    assert!((60..100).contains(&taken.count()), "256 KiB of answers");
}
