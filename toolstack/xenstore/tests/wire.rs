//! Each operation of the wire, one behaviour a test.
mod common;

use common::{Bed, Op, packet, parse, refused, strings};
use toolstack_xenstore::{Action, ConnectionError};
use xen_abi::{DomId, EvtchnPort};

#[test]
fn what_is_written_is_read_and_missing_nodes_above_are_made() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    bed.write(tools, 0, "/a/b/c", "value").unwrap();
    assert_eq!(bed.read(tools, 0, "/a/b/c").unwrap(), "value");
    assert_eq!(bed.read(tools, 0, "/a/b").unwrap(), "");
    assert_eq!(bed.list(tools, 0, "/a").unwrap(), ["b"]);
    assert_eq!(refused(bed.read(tools, 0, "/a/x")), "ENOENT");
    bed.check();
}

#[test]
fn values_hold_any_byte() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    let value: Vec<u8> = (0..=255).collect();
    bed.ok(tools, Op::WRITE, 0, &[b"/bin\0", &value[..]].concat())
        .unwrap();
    assert_eq!(bed.call(tools, Op::READ, 0, b"/bin\0").unwrap(), value);
}

#[test]
fn a_fresh_store_has_xenstoreds_nodes() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    assert_eq!(bed.list(tools, 0, "/").unwrap(), ["tool"]);
    assert_eq!(bed.list(tools, 0, "/tool").unwrap(), ["xenstored"]);
    for special in ["@introduceDomain\0", "@releaseDomain\0"] {
        let perms = bed
            .call(tools, Op::GET_PERMS, 0, special.as_bytes())
            .unwrap();
        assert_eq!(perms, b"n0\0");
    }
}

#[test]
fn malformed_requests_are_einval() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    let bad: [(Op, &[u8]); 20] = [
        (Op::READ, b""),
        (Op::READ, b"/tool"),
        (Op::READ, b"/tool\0\0"),
        (Op::READ, b"/tool\0x"),
        (Op::READ, b"@releaseDomain\0"),
        (Op::DIRECTORY, b"//\0"),
        (Op::WRITE, b"/no-nul"),
        (Op::MKDIR, b"/a\0/b\0"),
        (Op::RM, b"/\0"),
        (Op::RM, b"/tool/\0"),
        (Op::SET_PERMS, b"/tool\0"),
        (Op::SET_PERMS, b"/tool\0q1\0"),
        (Op::WATCH, b"/tool\0"),
        (Op::WATCH, b"/tool\0a\0b\0"),
        (Op::UNWATCH, b"/tool\0"),
        (Op::DIRECTORY_PART, b"/tool\0"),
        (Op::DIRECTORY_PART, b"/tool\0x\0"),
        (Op::TRANSACTION_END, b"X\0"),
        (Op::GET_DOMAIN_PATH, b"x\0"),
        (Op::INTRODUCE, b"1\0"),
    ];
    for (op, payload) in bad {
        let answer = bed.call(tools, op, 0, payload);
        assert_eq!(refused(answer), "EINVAL", "{op:?} {payload:?}");
    }
    bed.check();
}

#[test]
fn operations_that_do_not_exist_are_enosys() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    // WATCH_EVENT and ERROR are the server's; 20 was removed; 23 and up came later.
    for op in [15, 16, 20, 23, 26, 0xffff, u32::MAX] {
        assert_eq!(
            refused(bed.call(tools, xen_abi::io::xs_wire::MessageType(op), 0, b"\0")),
            "ENOSYS"
        );
    }
}

#[test]
fn privileged_operations_are_eacces_for_a_guest() {
    let mut bed = Bed::new();
    let guest = bed.guest(1);
    for op in [
        Op::CONTROL,
        Op::INTRODUCE,
        Op::RELEASE,
        Op::IS_DOMAIN_INTRODUCED,
        Op::RESUME,
        Op::SET_TARGET,
    ] {
        assert_eq!(
            refused(bed.call(guest, op, 0, &strings(&["1", "1", "1"]))),
            "EACCES"
        );
    }
}

#[test]
fn relative_paths_start_at_the_clients_home() {
    let mut bed = Bed::new();
    let guest = bed.guest(5);
    bed.write(guest, 0, "data/x", "1").unwrap();
    assert_eq!(bed.server.read("/local/domain/5/data/x").unwrap(), b"1");
    assert_eq!(
        bed.call(guest, Op::GET_DOMAIN_PATH, 0, b"7\0").unwrap(),
        b"/local/domain/7\0"
    );
}

#[test]
fn rm_takes_all_below_and_forgives_what_is_gone() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    bed.write(tools, 0, "/a/b/c", "1").unwrap();
    bed.rm(tools, 0, "/a/b").unwrap();
    assert_eq!(refused(bed.read(tools, 0, "/a/b/c")), "ENOENT");
    bed.rm(tools, 0, "/a/b").unwrap();
    assert_eq!(refused(bed.rm(tools, 0, "/x/y")), "ENOENT");
    assert_eq!(bed.list(tools, 0, "/a").unwrap(), [""; 0]);
    bed.check();
}

#[test]
fn mkdir_keeps_what_is_there() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    bed.write(tools, 0, "/a", "kept").unwrap();
    bed.mkdir(tools, 0, "/a").unwrap();
    assert_eq!(bed.read(tools, 0, "/a").unwrap(), "kept");
    bed.mkdir(tools, 0, "/b/c").unwrap();
    assert_eq!(bed.read(tools, 0, "/b/c").unwrap(), "");
}

#[test]
fn a_long_directory_comes_in_parts() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    let names: Vec<String> = (0..700).map(|i| format!("node-number-{i:04}")).collect();
    for name in &names {
        bed.write(tools, 0, &format!("/dir/{name}"), "").unwrap();
    }
    assert_eq!(refused(bed.list(tools, 0, "/dir")), "E2BIG");
    let (mut listing, mut generations, mut rounds) = (Vec::new(), Vec::new(), 0);
    loop {
        let payload = strings(&["/dir", &listing.len().to_string()]);
        let part = bed.call(tools, Op::DIRECTORY_PART, 0, &payload).unwrap();
        assert!(part.len() <= 4096);
        let end = part.iter().position(|byte| *byte == 0).unwrap();
        generations.push(part[..end].to_vec());
        listing.extend_from_slice(&part[end + 1..]);
        rounds += 1;
        if listing.ends_with(b"\0\0") {
            listing.pop();
            break;
        }
    }
    assert_eq!(rounds, 3);
    assert!(generations.windows(2).all(|pair| pair[0] == pair[1]));
    let text = String::from_utf8(listing).unwrap();
    assert!(
        text.split_terminator('\0')
            .eq(names.iter().map(String::as_str))
    );
    // A change of the list is seen by its generation.
    bed.write(tools, 0, "/dir/another", "").unwrap();
    let part = bed
        .call(tools, Op::DIRECTORY_PART, 0, b"/dir\x000\0")
        .unwrap();
    assert!(!part.starts_with(&generations[0]));
    // Past the end: an empty name.
    let part = bed
        .call(tools, Op::DIRECTORY_PART, 0, b"/dir\x0099999\0")
        .unwrap();
    assert!(part.ends_with(b"\0\0"));
}

#[test]
fn a_new_node_has_its_parents_permissions_and_a_guest_owns_what_it_makes() {
    let mut bed = Bed::new();
    let (tools, guest) = (bed.tools(), bed.guest(3));
    bed.mkdir(tools, 0, "/shared").unwrap();
    bed.chmod(tools, 0, "/shared", &["n0", "b3", "r4"]).unwrap();
    bed.write(guest, 0, "/shared/mine", "1").unwrap();
    bed.write(tools, 0, "/shared/ours", "1").unwrap();
    let perms = |bed: &mut Bed, path: &[u8]| bed.call(tools, Op::GET_PERMS, 0, path).unwrap();
    assert_eq!(perms(&mut bed, b"/shared/mine\0"), b"n3\0b3\0r4\0");
    assert_eq!(perms(&mut bed, b"/shared/ours\0"), b"n0\0b3\0r4\0");
    bed.check();
}

#[test]
fn permissions_decide_and_do_not_tell_what_exists() {
    let mut bed = Bed::new();
    let (tools, guest) = (bed.tools(), bed.guest(3));
    bed.write(tools, 0, "/secret/key", "1").unwrap();
    // The same answer, whether or not there is such a node.
    assert_eq!(refused(bed.read(guest, 0, "/secret/key")), "EACCES");
    assert_eq!(refused(bed.read(guest, 0, "/secret/other")), "EACCES");
    assert_eq!(refused(bed.write(guest, 0, "/secret/other", "")), "EACCES");
    assert_eq!(refused(bed.rm(guest, 0, "/secret/key")), "EACCES");
    bed.chmod(tools, 0, "/secret/key", &["n0", "r3"]).unwrap();
    assert_eq!(bed.read(guest, 0, "/secret/key").unwrap(), "1");
    assert_eq!(refused(bed.write(guest, 0, "/secret/key", "2")), "EACCES");
    // Its own place shows it what is not there.
    assert_eq!(refused(bed.read(guest, 0, "nothing")), "ENOENT");
}

#[test]
fn only_the_owner_changes_permissions_and_never_the_owner() {
    let mut bed = Bed::new();
    let (tools, guest, other) = (bed.tools(), bed.guest(3), bed.guest(4));
    bed.write(guest, 0, "mine", "1").unwrap();
    bed.chmod(guest, 0, "mine", &["n3", "b4"]).unwrap();
    assert_eq!(bed.read(other, 0, "/local/domain/3/mine").unwrap(), "1");
    // Writing is not owning.
    assert_eq!(
        refused(bed.chmod(other, 0, "/local/domain/3/mine", &["n4"])),
        "EACCES"
    );
    assert_eq!(refused(bed.chmod(guest, 0, "mine", &["n4"])), "EPERM");
    bed.chmod(tools, 0, "/local/domain/3/mine", &["n4"])
        .unwrap();
    assert_eq!(refused(bed.read(guest, 0, "mine")), "EACCES");
    bed.check();
}

#[test]
fn permissions_that_name_nobody_never_come_to_name_somebody() {
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    bed.write(guest, 0, "mine", "1").unwrap();
    bed.chmod(guest, 0, "mine", &["n3", "r9"]).unwrap();
    let late = bed.guest(9);
    assert_eq!(refused(bed.read(late, 0, "/local/domain/3/mine")), "EACCES");
}

#[test]
fn a_target_lends_its_rights_until_it_is_gone() {
    let mut bed = Bed::new();
    let (tools, guest, stub) = (bed.tools(), bed.guest(3), bed.guest(4));
    bed.write(guest, 0, "mine", "1").unwrap();
    assert_eq!(refused(bed.read(stub, 0, "/local/domain/3/mine")), "EACCES");
    bed.ok(tools, Op::SET_TARGET, 0, b"4\x003\0").unwrap();
    assert_eq!(bed.read(stub, 0, "/local/domain/3/mine").unwrap(), "1");
    bed.ok(tools, Op::RELEASE, 0, b"3\0").unwrap();
    let again = bed.guest(3);
    bed.write(again, 0, "mine", "2").unwrap();
    assert_eq!(refused(bed.read(stub, 0, "/local/domain/3/mine")), "EACCES");
    assert_eq!(
        refused(bed.call(tools, Op::SET_TARGET, 0, b"4\x008\0")),
        "ENOENT"
    );
}

#[test]
fn introduce_and_release_ask_the_caller_to_serve_a_ring() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    let is =
        |bed: &mut Bed, domid: &[u8]| bed.call(tools, Op::IS_DOMAIN_INTRODUCED, 0, domid).unwrap();
    assert_eq!(is(&mut bed, b"6\0"), b"F\0");
    bed.ok(tools, Op::INTRODUCE, 0, b"6\x001234\x0017\0")
        .unwrap();
    assert_eq!(is(&mut bed, b"6\0"), b"T\0");
    assert_eq!(
        bed.server.next_action(),
        Some(Action::Introduce {
            domid: DomId(6),
            port: EvtchnPort(17)
        })
    );
    bed.ok(tools, Op::RESUME, 0, b"6\0").unwrap();
    bed.ok(tools, Op::RELEASE, 0, b"6\0").unwrap();
    assert_eq!(is(&mut bed, b"6\0"), b"F\0");
    assert_eq!(
        bed.server.next_action(),
        Some(Action::Release { domid: DomId(6) })
    );
    assert_eq!(bed.server.next_action(), None);
    assert_eq!(refused(bed.call(tools, Op::RELEASE, 0, b"6\0")), "ENOENT");
    for op in [Op::RELEASE, Op::RESUME] {
        assert_eq!(refused(bed.call(tools, op, 0, b"0\0")), "EINVAL");
    }
    for bad in [
        &b"0\x001\x001\0"[..],
        b"6\x001\x000\0",
        b"32752\x001\x001\0",
    ] {
        assert_eq!(refused(bed.call(tools, Op::INTRODUCE, 0, bad)), "EINVAL");
    }
    assert_eq!(is(&mut bed, b"32752\0"), b"T\0", "DOMID_SELF");
}

#[test]
fn a_dead_domains_nodes_and_permissions_go_with_it() {
    let mut bed = Bed::new();
    let (tools, guest) = (bed.tools(), bed.guest(3));
    bed.write(guest, 0, "data", "1").unwrap();
    bed.write(tools, 0, "/shared", "2").unwrap();
    bed.chmod(tools, 0, "/shared", &["n0", "r3", "r5"]).unwrap();
    bed.chmod(tools, 0, "@releaseDomain", &["n0", "r3"])
        .unwrap();
    bed.write(tools, 0, "/kept/below", "3").unwrap();
    bed.chmod(tools, 0, "/kept/below", &["n3"]).unwrap();
    bed.server.domain_released(DomId(3));
    assert!(!bed.server.exists("/local/domain/3"));
    assert!(!bed.server.exists("/kept/below"));
    assert_eq!(
        bed.call(tools, Op::GET_PERMS, 0, b"/shared\0").unwrap(),
        b"n0\0r5\0"
    );
    assert_eq!(
        bed.call(tools, Op::GET_PERMS, 0, b"@releaseDomain\0")
            .unwrap(),
        b"n0\0"
    );
    assert_eq!(bed.server.stats(DomId(3)), None);
    // A new domain of that number gets nothing of it.
    let again = bed.guest(3);
    assert_eq!(refused(bed.read(again, 0, "/shared")), "EACCES");
    bed.check();
}

#[test]
fn the_root_and_special_nodes_outlive_their_owner() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    bed.guest(3);
    for path in ["/", "@introduceDomain"] {
        bed.chmod(tools, 0, path, &["n3", "r3"]).unwrap();
    }
    bed.server.domain_released(DomId(3));
    assert_eq!(bed.call(tools, Op::GET_PERMS, 0, b"/\0").unwrap(), b"n0\0");
    assert_eq!(
        bed.call(tools, Op::GET_PERMS, 0, b"@introduceDomain\0")
            .unwrap(),
        b"n0\0"
    );
    bed.check();
}

#[test]
fn packets_may_come_in_any_pieces_and_many_at_once() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    let mut stream = Vec::new();
    for i in 0..20u32 {
        stream.extend(packet(Op::WRITE, i, 0, format!("/n{i}\0v{i}").as_bytes()));
    }
    for byte in &stream {
        bed.server.input(tools, &[*byte]).unwrap();
    }
    assert_eq!(bed.receive(tools).len(), 20);
    assert_eq!(
        bed.server.input(tools, &stream).unwrap().consumed,
        stream.len()
    );
    let ids: Vec<u32> = bed
        .receive(tools)
        .iter()
        .map(|answer| answer.req_id)
        .collect();
    assert!(ids.into_iter().eq(0..20));
}

#[test]
fn one_call_does_a_bounded_amount_of_work() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    let one = packet(Op::READ, 1, 0, b"/tool\0");
    let stream = one.repeat(1000);
    let first = bed.server.input(tools, &stream).unwrap();
    assert!(first.more && first.consumed < stream.len() / 2);
    let mut done = first.consumed;
    let mut calls = 1;
    while done < stream.len() {
        bed.receive(tools);
        done += bed.server.input(tools, &stream[done..]).unwrap().consumed;
        calls += 1;
    }
    assert!(calls < 20, "{calls}");
}

#[test]
fn a_payload_that_is_too_long_ends_the_connection_until_it_is_reset() {
    let mut bed = Bed::new();
    let guest = bed.guest(2);
    bed.watch(guest, "x", "t").unwrap();
    let mut long = packet(Op::READ, 1, 0, &[0; 4096]);
    bed.server.input(guest, &long).unwrap();
    assert_eq!(bed.receive(guest).len(), 1, "4096 is allowed");
    bed.events(guest);
    long[12..16].copy_from_slice(&4097u32.to_le_bytes());
    let ended = Err(ConnectionError::PayloadTooLong);
    assert_eq!(bed.server.input(guest, &long), ended);
    assert_eq!(
        bed.server.input(guest, &packet(Op::READ, 1, 0, b"x\0")),
        ended
    );
    assert_eq!(bed.server.stats(DomId(2)).unwrap().watches.now, 0);
    bed.server.write("/local/domain/2/x", b"").unwrap();
    assert!(bed.server.output(guest).is_empty());
    bed.server.reset_connection(guest);
    assert_eq!(bed.read(guest, 0, "x").unwrap(), "");
}

#[test]
fn an_answer_that_would_be_too_long_is_e2big() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    let value = vec![b'v'; 4096 - 3];
    bed.ok(tools, Op::WRITE, 0, &[b"/v\0", &value[..]].concat())
        .unwrap();
    assert_eq!(bed.call(tools, Op::READ, 0, b"/v\0").unwrap(), value);
    // Only the pVM's own tasks can make longer values.
    bed.server.write("/long", &[b'v'; 4097]).unwrap();
    assert_eq!(refused(bed.read(tools, 0, "/long")), "E2BIG");
}

#[test]
fn control_answers_as_xenstore_control_expects() {
    let mut bed = Bed::new();
    let tools = bed.tools();
    let ask = |bed: &mut Bed, words: &[&str]| {
        let answer = bed.call(tools, Op::CONTROL, 0, &strings(words))?;
        Ok::<_, String>(String::from_utf8(answer).unwrap())
    };
    bed.guest(7);
    assert_eq!(ask(&mut bed, &["check"]).unwrap(), "OK\0");
    assert_eq!(ask(&mut bed, &["print", "hello\x1b"]).unwrap(), "OK\0");
    assert!(ask(&mut bed, &["help"]).unwrap().contains("quota-soft"));
    assert!(ask(&mut bed, &["memreport"]).unwrap().contains("d7: "));
    assert!(ask(&mut bed, &["log"]).unwrap().contains("io      : on"));
    assert_eq!(ask(&mut bed, &["log", "-io"]).unwrap(), "OK\0");
    assert!(ask(&mut bed, &["log"]).unwrap().contains("io      : off"));
    assert!(
        ask(&mut bed, &["quota"])
            .unwrap()
            .contains("nodes            :     1000 ")
    );
    assert_eq!(
        ask(&mut bed, &["quota", "set", "nodes", "5"]).unwrap(),
        "OK\0"
    );
    assert!(
        ask(&mut bed, &["quota"])
            .unwrap()
            .contains("nodes            :        5 ")
    );
    assert!(
        ask(&mut bed, &["quota", "7"])
            .unwrap()
            .starts_with("Domain 7:\nnodes")
    );
    assert!(
        ask(&mut bed, &["quota", "max", "-r"])
            .unwrap()
            .contains("watches")
    );
    assert_eq!(
        ask(&mut bed, &["quota-soft", "set", "memory", "9"]).unwrap(),
        "OK\0"
    );
    assert!(
        ask(&mut bed, &["quota-soft"])
            .unwrap()
            .contains("       9 Total")
    );
    for words in [
        &["nonsense"][..],
        &["check", "x"],
        &["quota", "set", "nodes", "0"],
        &["quota", "set", "unheard-of", "1"],
        &["log", "+nothing"],
        &["live-update", "-a"],
    ] {
        assert_eq!(refused(ask(&mut bed, words)), "EINVAL", "{words:?}");
    }
    assert_eq!(refused(ask(&mut bed, &["quota", "8"])), "ENOENT");
}

#[test]
fn a_reset_drops_what_is_half_done() {
    let mut bed = Bed::new();
    let guest = bed.guest(2);
    bed.watch(guest, "x", "t").unwrap();
    let tx = bed.start(guest).unwrap();
    let half = packet(Op::READ, 1, 0, b"x\0");
    bed.server.input(guest, &half[..10]).unwrap();
    bed.server.reset_connection(guest);
    assert!(bed.server.output(guest).is_empty());
    assert_eq!(refused(bed.end(guest, tx, true)), "ENOENT");
    let stats = bed.server.stats(DomId(2)).unwrap();
    assert_eq!((stats.watches.now, stats.transactions.now), (0, 0));
    let mut rest = Vec::new();
    assert_eq!(parse(&mut rest), []);
}
