//! Watches: who hears what, of which node, and how often.
mod common;

use common::{Bed, Op, refused, strings};
use toolstack_xenstore::EventQueue;
use xen_abi::DomId;

#[test]
fn a_watch_fires_once_at_the_start_and_for_all_below() {
    let mut bed = Bed::new();
    let (a, b) = (bed.tools(), bed.tools());
    bed.watch(a, "/x", "t").unwrap();
    assert_eq!(bed.events(a), ["/x"]);
    bed.write(b, 0, "/x/y/z", "1").unwrap();
    bed.write(b, 0, "/xx", "1").unwrap();
    bed.mkdir(b, 0, "/x/y").unwrap();
    bed.chmod(b, 0, "/x/y", &["r0"]).unwrap();
    // mkdir of what is there changes nothing.
    assert_eq!(bed.events(a), ["/x/y/z", "/x/y"]);
}

#[test]
fn the_answer_to_a_watch_comes_before_its_first_event() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    bed.send(tools, Op::WATCH, 0, &strings(&["/x", "t"]));
    let mut stream = bed.server.output(tools).to_vec();
    let first = common::parse(&mut stream);
    assert_eq!(
        (first[0].op, &first[0].payload[..]),
        (Op::WATCH, &b"OK\0"[..])
    );
}

#[test]
fn a_relative_watch_gives_relative_paths() {
    let mut bed = Bed::new();
    let guest = bed.guest(4);
    bed.watch(guest, "device", "t").unwrap();
    bed.server
        .write("/local/domain/4/device/vif/0", b"")
        .unwrap();
    bed.watch(guest, "/local/domain/4/device", "t2").unwrap();
    assert_eq!(
        bed.events(guest),
        ["device", "device/vif/0", "/local/domain/4/device"],
    );
}

#[test]
fn a_removed_tree_is_told_of_at_its_top_and_where_somebody_watches() {
    let mut bed = Bed::new();
    let (a, b) = (bed.tools(), bed.tools());
    bed.write(b, 0, "/d/e/f/g", "").unwrap();
    for path in ["/", "/d/e", "/d/e/f", "/d/e/none"] {
        bed.watch(a, path, path).unwrap();
    }
    bed.events(a);
    bed.rm(b, 0, "/d").unwrap();
    let mut events = bed.events(a);
    events.sort();
    // "/" hears of /d alone; the two watched nodes below each of themselves.
    assert_eq!(events, ["/d", "/d/e", "/d/e/f"]);
}

#[test]
fn the_same_watch_twice_is_eexist_and_unwatching_ends_it() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    bed.watch(tools, "/x", "t").unwrap();
    assert_eq!(refused(bed.watch(tools, "/x", "t")), "EEXIST");
    bed.watch(tools, "/x", "u").unwrap();
    bed.ok(tools, Op::UNWATCH, 0, &strings(&["/x", "t"]))
        .unwrap();
    let again = bed.call(tools, Op::UNWATCH, 0, &strings(&["/x", "t"]));
    assert_eq!(refused(again), "ENOENT");
    bed.events(tools);
    bed.write(tools, 0, "/x", "").unwrap();
    assert_eq!(bed.events(tools).len(), 1);
}

#[test]
fn an_event_that_waits_already_is_not_queued_again() {
    let mut bed = Bed::new();
    let (a, b) = (bed.tools(), bed.tools());
    bed.watch(a, "/x", "t").unwrap();
    bed.events(a);
    for i in 0..100 {
        bed.write(b, 0, "/x", &i.to_string()).unwrap();
        bed.write(b, 0, "/x/y", &i.to_string()).unwrap();
    }
    assert_eq!(bed.events(a), ["/x", "/x/y"]);
    bed.write(b, 0, "/x", "").unwrap();
    assert_eq!(bed.events(a), ["/x"], "read ones do not count");
}

#[test]
fn nobody_hears_of_nodes_he_may_not_read() {
    let mut bed = Bed::new();
    let (tools, guest) = (bed.tools(), bed.guest(3));
    bed.mkdir(tools, 0, "/s").unwrap();
    bed.watch(guest, "/s", "t").unwrap();
    assert_eq!(bed.events(guest), ["/s"], "the first tells nothing");
    bed.write(tools, 0, "/s/a", "1").unwrap();
    assert_eq!(bed.events(guest), [""; 0]);
    // Gaining and losing the right are both told.
    bed.chmod(tools, 0, "/s/a", &["n0", "r3"]).unwrap();
    assert_eq!(bed.events(guest), ["/s/a"]);
    bed.chmod(tools, 0, "/s/a", &["n0"]).unwrap();
    assert_eq!(bed.events(guest), ["/s/a"]);
    bed.write(tools, 0, "/s/a", "2").unwrap();
    assert_eq!(bed.events(guest), [""; 0]);
    // Reading the node above is enough: its list of children says as much.
    bed.chmod(tools, 0, "/s", &["r0"]).unwrap();
    bed.events(guest);
    bed.rm(tools, 0, "/s/a").unwrap();
    assert_eq!(bed.events(guest), ["/s/a"]);
}

#[test]
fn the_end_of_a_readable_node_is_told_also_in_a_transaction() {
    let mut bed = Bed::new();
    let (tools, guest) = (bed.tools(), bed.guest(3));
    bed.write(tools, 0, "/s/a", "1").unwrap();
    bed.chmod(tools, 0, "/s/a", &["r0"]).unwrap();
    bed.watch(guest, "/s/a", "t").unwrap();
    bed.events(guest);
    let tx = bed.start(tools).unwrap();
    bed.rm(tools, tx, "/s/a").unwrap();
    bed.end(tools, tx, true).unwrap();
    assert_eq!(bed.events(guest), ["/s/a"]);
}

#[test]
fn domains_that_come_and_go_are_told_to_those_who_may_know() {
    let mut bed = Bed::new();
    let (tools, driver, guest) = (bed.tools(), bed.guest(1), bed.guest(2));
    bed.chmod(tools, 0, "@releaseDomain", &["n0", "r1"])
        .unwrap();
    for conn in [tools, driver, guest] {
        bed.watch(conn, "@introduceDomain", "i").unwrap();
        bed.watch(conn, "@releaseDomain", "r").unwrap();
        bed.events(conn);
    }
    bed.guest(7);
    bed.server.domain_introduced(DomId(7));
    bed.server.domain_shutdown(DomId(7));
    bed.server.domain_shutdown(DomId(7));
    bed.ok(tools, Op::RESUME, 0, b"7\0").unwrap();
    bed.server.domain_shutdown(DomId(7));
    bed.server.domain_released(DomId(7));
    bed.server.domain_released(DomId(7));
    let released = "@releaseDomain";
    assert_eq!(
        bed.events(tools),
        ["@introduceDomain", released, released, released]
    );
    assert_eq!(bed.events(driver), [released; 3]);
    assert_eq!(bed.events(guest), [""; 0]);
}

#[test]
fn watches_number_as_many_as_the_quota_says() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    for i in 0..128 {
        bed.watch(guest, "x", &i.to_string()).unwrap();
        bed.events(guest);
    }
    assert_eq!(refused(bed.watch(guest, "x", "one more")), "E2BIG");
    bed.ok(guest, Op::RESET_WATCHES, 0, b"\0").unwrap();
    bed.watch(guest, "x", "one more").unwrap();
    assert_eq!(bed.server.stats(DomId(3)).unwrap().watches.now, 1);
}

#[test]
fn a_token_holds_any_byte_and_a_too_long_event_is_not_sent() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    bed.ok(tools, Op::WATCH, 0, b"/x\0\xff\x01\0").unwrap();
    assert_eq!(bed.events(tools), ["/x"]);
    let token = "t".repeat(4000);
    bed.watch(tools, "/x", &token).unwrap();
    bed.events(tools);
    bed.write(tools, 0, &format!("/x/{}", "n".repeat(200)), "")
        .unwrap();
    assert_eq!(bed.events(tools).len(), 1, "the one with the short token");
}

#[test]
fn an_event_nobody_reads_runs_out() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    bed.watch(guest, "x", "t").unwrap();
    bed.events(guest);
    bed.server.advance(5_000);
    bed.server.write("/local/domain/3/x", b"").unwrap();
    assert_eq!(bed.server.next_deadline_ms(), Some(25_000));
    bed.server.advance(24_999);
    assert!(!bed.server.output(guest).is_empty());
    bed.server.advance(25_000);
    assert!(bed.server.output(guest).is_empty());
    assert_eq!(bed.server.stats(DomId(3)).unwrap().events_dropped, 1);
    // The same event can be sent again, and one half sent stays.
    bed.server.write("/local/domain/3/x", b"").unwrap();
    bed.server.sent(guest, 3);
    bed.server.advance(100_000);
    assert!(!bed.server.output(guest).is_empty());
}

#[test]
fn the_pvms_tasks_hear_of_every_node() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let events = EventQueue::new();
    bed.server.watch(&events, "/local/domain", 1).unwrap();
    bed.server.watch(&events, "@releaseDomain", 2).unwrap();
    let next = |events: &EventQueue| {
        let event = events.try_next()?;
        Some((event.token, event.path.as_str().to_owned(), event.rescan))
    };
    assert_eq!(next(&events), Some((1, "/local/domain".into(), false)));
    assert_eq!(next(&events), Some((2, "@releaseDomain".into(), false)));
    bed.write(guest, 0, "a", "1").unwrap();
    bed.write(guest, 0, "a", "2").unwrap();
    assert_eq!(next(&events), Some((1, "/local/domain/3/a".into(), false)));
    assert_eq!(next(&events), None);
    bed.server.domain_released(DomId(3));
    let mut last: Vec<u64> = std::iter::from_fn(|| events.try_next())
        .map(|e| e.token)
        .collect();
    last.sort();
    assert_eq!(last, [1, 2]);
    bed.server.unwatch(&events, "/local/domain", 1).unwrap();
    assert!(bed.server.unwatch(&events, "/local/domain", 1).is_err());
    bed.server.write("/local/domain/9", b"").unwrap();
    assert_eq!(next(&events), None);
}

#[test]
fn a_task_that_falls_behind_is_told_to_look_at_everything() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let events = EventQueue::new();
    bed.server.watch(&events, "/local/domain/3", 1).unwrap();
    events.try_next().unwrap();
    for i in 0..500 {
        bed.write(guest, 0, &format!("d{}/n{i}", i / 50), "")
            .unwrap();
    }
    let all: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    assert_eq!(all.len(), 1);
    assert!(all[0].rescan && all[0].path.as_str() == "/local/domain/3");
    bed.write(guest, 0, "again", "").unwrap();
    let event = events.try_next().unwrap();
    assert!(!event.rescan && event.path.as_str() == "/local/domain/3/again");
}

#[test]
fn a_dropped_queue_takes_its_watches_along() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    for _ in 0..10 {
        let events = EventQueue::new();
        bed.server.watch(&events, "/a/b/c", 1).unwrap();
    }
    let kept = EventQueue::new();
    bed.server.watch(&kept, "/z", 1).unwrap();
    let report = bed.call(tools, Op::CONTROL, 0, b"memreport\0").unwrap();
    assert!(String::from_utf8(report).unwrap().contains("watches 1 "));
}

#[test]
fn a_waiting_task_is_woken() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake};
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = count.clone().into();
    let mut cx = Context::from_waker(&waker);
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let events = EventQueue::new();
    assert_eq!(events.poll_next(&mut cx), Poll::Pending);
    bed.server.watch(&events, "/x", 1).unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(events.poll_next(&mut cx).is_ready());
    while bed.server.next_ready().is_some() {}
    assert!(bed.server.poll_ready(&mut cx).is_pending());
    bed.watch(guest, "x", "t").unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
    assert_eq!(bed.server.poll_ready(&mut cx), Poll::Ready(guest));
}
