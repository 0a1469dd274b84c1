#![allow(clippy::panic, reason = "tests")]

extern crate std;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use crate::archive::{ArchiveContents, write};
use crate::*;

const HOST: [u8; 32] = [7; 32];
const ALICE: [u8; 32] = [8; 32];

/// A valid archive with this `closer.conf`.
fn archive(conf: &str) -> Vec<u8> {
    write(&ArchiveContents {
        conf: String::from(conf),
        host_key: Some(HostKey(HOST)),
        administrators: vec![alice()],
        guests: vec![String::from("web"), String::from("db")],
    })
}

fn alice() -> Administrator {
    Administrator {
        name: String::from("alice@desk"),
        key: PublicKey(ALICE),
    }
}

/// An archive of any files.
fn files(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, data) in files {
        cpio::push(&mut bytes, 1, name, 0o644, data);
    }
    cpio::finish(&mut bytes);
    bytes
}

fn lines(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}

#[test]
fn a_full_configuration_is_read_without_complaint() {
    let conf = "# the rack's first\nhostname = \"a1.rack\"\nnic = 0000:03:00.1 # left\n\
                ip = 10.0.2.15/24\ngateway=10.0.2.2\ndns = 9.9.9.9\nport = 9000\nmc = 2\n\
                loglevel = debug\npanic = halt\n";
    let (config, complaints) = parse(b"", Some(&archive(conf)));
    assert_eq!(lines(&complaints), Vec::<String>::new());
    assert_eq!(
        config,
        HostConfig {
            hostname: String::from("a1.rack"),
            nic: Nic::Pci(PciAddress {
                segment: 0,
                bus: 3,
                device: 0,
                function: 1
            }),
            address: Address::Static {
                address: Ipv4Addr::new(10, 0, 2, 15),
                prefix: 24,
                gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
                dns: Some(Ipv4Addr::new(9, 9, 9, 9)),
            },
            rpc_port: 9000,
            mc_cores: 2,
            log_level: LogLevel::Debug,
            panic_action: PanicAction::Halt,
            host_key: Some(HostKey(HOST)),
            administrators: vec![alice()],
            guests: vec![String::from("web"), String::from("db")],
        }
    );
}

#[test]
fn the_command_line_wins_over_the_file() {
    let line = b"hostname=b2 ip=dhcp nic=52:54:00:12:34:56 mc=3 panic=5 loglevel=warn \
                 port=1 guests=a,b noapic acpi=off\0 never=read";
    let conf = "hostname = a1\nip = 10.0.2.15/24\nmc = 1\n";
    let (config, complaints) = parse(line, Some(&archive(conf)));
    assert_eq!(lines(&complaints), Vec::<String>::new());
    assert_eq!(config.hostname, "b2");
    assert_eq!(config.address, Address::Dhcp);
    assert_eq!(config.nic, Nic::Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
    assert_eq!(config.mc_cores, 3);
    assert_eq!(config.rpc_port, 1);
    assert_eq!(config.log_level, LogLevel::Warn);
    assert_eq!(config.panic_action, PanicAction::Reboot { after_s: 5 });
    assert_eq!(config.guests, ["a", "b"]);
    let (config, _) = parse(b"guests=none", Some(&archive("")));
    assert!(config.guests.is_empty());
}

#[test]
fn each_bad_value_gives_one_line_and_its_default() {
    let cases = [
        (
            "hostname=-x",
            "command line: hostname=-x: expected letters, digits, - and ., at most 63; using closer",
        ),
        (
            "hostname=a..b",
            "command line: hostname=a..b: expected letters, digits, - and ., at most 63; using closer",
        ),
        (
            "nic=one",
            "command line: nic=one: expected a number, a MAC address or a PCI address; using the first",
        ),
        (
            "nic=01:00:5e:00:00:01",
            "command line: nic=01:00:5e:00:00:01: expected a number, a MAC address or a PCI address; using the first",
        ),
        (
            "nic=00:20.0",
            "command line: nic=00:20.0: expected a number, a MAC address or a PCI address; using the first",
        ),
        (
            "ip=10.0.2.15",
            "command line: ip=10.0.2.15: expected dhcp or ADDRESS/PREFIX; using dhcp",
        ),
        (
            "ip=10.0.2.0/24",
            "command line: ip=10.0.2.0/24: expected dhcp or ADDRESS/PREFIX; using dhcp",
        ),
        (
            "ip=10.0.2.1/33",
            "command line: ip=10.0.2.1/33: expected dhcp or ADDRESS/PREFIX; using dhcp",
        ),
        (
            "ip=224.0.0.1/24",
            "command line: ip=224.0.0.1/24: expected dhcp or ADDRESS/PREFIX; using dhcp",
        ),
        (
            "gateway=10.0.2.2",
            "command line: gateway=10.0.2.2: needs ip=ADDRESS/PREFIX; ignored",
        ),
        (
            "port=0",
            "command line: port=0: expected a number from 1 to 65535; using 8006",
        ),
        (
            "port=+1",
            "command line: port=+1: expected a number from 1 to 65535; using 8006",
        ),
        (
            "mc=65",
            "command line: mc=65: expected a number from 1 to 64; using 1",
        ),
        (
            "loglevel=loud",
            "command line: loglevel=loud: expected error, warn, info, debug or trace; using info",
        ),
        (
            "panic=soon",
            "command line: panic=soon: expected halt, or seconds up to 86400; using 10",
        ),
        (
            "quiet",
            "command line: quiet: not of the form key=value; ignored",
        ),
        (
            "root=/dev/sda1",
            "command line: root=/dev/sda1: unknown key; ignored",
        ),
        (
            "hostkey=0123",
            "command line: hostkey: a secret does not belong here; ignored",
        ),
        (
            "guests=a,/etc",
            "command line: /etc: expected a guest's name (1 to 64 letters, digits and +-._, not digits alone, not Domain-0); ignored",
        ),
        (
            "mc=1\u{7f}\u{e9}",
            "command line: mc=1\\u{7f}\\u{e9}: expected a number from 1 to 64; using 1",
        ),
    ];
    for (option, expected) in cases {
        let conf = if option.starts_with("hostname") {
            ""
        } else {
            "hostname = closer"
        };
        let (config, complaints) = parse(option.as_bytes(), Some(&archive(conf)));
        assert_eq!(lines(&complaints), [expected], "{option}");
        let default = HostConfig {
            host_key: Some(HostKey(HOST)),
            administrators: vec![alice()],
            guests: config.guests.clone(),
            ..HostConfig::default()
        };
        assert_eq!(config, default, "{option}");
    }
}

#[test]
fn guests_keep_a_core_whatever_mc_says() {
    let conf = archive("hostname = a");
    let complaint = |vcpus, line: &str| {
        let (config, complaints) = parse_for(vcpus, line.as_bytes(), Some(&conf));
        (config.mc_cores, lines(&complaints))
    };
    assert_eq!(complaint(4, "mc=3"), (3, vec![]));
    assert_eq!(complaint(1, "mc=1"), (1, vec![]));
    for (vcpus, line, most) in [
        (4, "mc=4", "3 of 4"),
        (4, "mc=64", "3 of 4"),
        (1, "mc=2", "1 of 1"),
    ] {
        let line_wanted =
            format!("command line: {line}: at most {most}, so that guests have a core; using 1");
        assert_eq!(complaint(vcpus, line), (1, vec![line_wanted]), "{line}");
    }
}

/// What holds before the archive is read is what holds afterwards.
#[test]
fn early_options_are_those_of_the_parser() {
    for line in [
        "",
        "loglevel=debug panic=halt",
        "loglevel=off panic=86401",
        "loglevel=DEBUG panic=+5",
        "loglevel=loud panic=soon",
        "panic=1 panic=2 loglevel=warn loglevel=error",
        "selftest=panic panic=0",
    ] {
        let (config, _) = parse(line.as_bytes(), Some(&archive("")));
        let (level, action) = early(line.as_bytes());
        let default = HostConfig::default();
        assert_eq!(
            level.unwrap_or(default.log_level),
            config.log_level,
            "{line}"
        );
        assert_eq!(
            action.unwrap_or(default.panic_action),
            config.panic_action,
            "{line}"
        );
    }
    assert_eq!(early(b"loglevel=off panic=soon"), (None, None));
    assert_eq!(
        early(b"panic=1 panic=2").1,
        Some(PanicAction::Reboot { after_s: 2 })
    );
}

#[test]
fn a_missing_management_nic_is_one_line_that_says_what_to_do() {
    let address = |device| PciAddress {
        segment: 0,
        bus: 0,
        device,
        function: 0,
    };
    let line = |wanted: &str, found: &[nic::FoundState]| {
        let (config, complaints) = parse(wanted.as_bytes(), Some(&archive("hostname = a")));
        assert_eq!(complaints, []);
        let found = (6..).zip(found);
        let found = found.map(|(device, state)| nic::Found {
            address: address(device),
            state: *state,
        });
        let wanted = config.nic;
        nic::NoNic {
            wanted,
            found: found.collect(),
        }
        .to_string()
    };
    use nic::FoundState::{Broken, NotTried, Other};
    let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let cases: [(&str, &[nic::FoundState], &str); 6] = [
        (
            "",
            &[],
            "it has no NIC that Closer has a driver for; add one",
        ),
        (
            "nic=5",
            &[NotTried, NotTried],
            "nic=5 is not there; set nic= to one of: 0 (0000:00:06.0), 1 (0000:00:07.0)",
        ),
        (
            "nic=0000:00:08.0",
            &[NotTried],
            "nic=0000:00:08.0 is not there; set nic= to one of: 0 (0000:00:06.0)",
        ),
        (
            "nic=52:54:00:00:00:00",
            &[Other(mac)],
            "nic=52:54:00:00:00:00 is not there; set nic= to one of: 0 (0000:00:06.0, 52:54:00:12:34:56)",
        ),
        (
            "nic=0",
            &[Broken, NotTried],
            "nic=0 does not work; set nic= to another of: 0 (0000:00:06.0, does not work), 1 (0000:00:07.0)",
        ),
        (
            "nic=52:54:00:00:00:00",
            &[Broken, Other(mac)],
            "nic=52:54:00:00:00:00 is not there, or broken; there is: 0 (0000:00:06.0, does not work), 1 (0000:00:07.0, 52:54:00:12:34:56)",
        ),
    ];
    for (wanted, found, expected) in cases {
        let expected = format!("nobody could manage this host: {expected}");
        assert_eq!(line(wanted, found), expected, "{wanted}");
    }
}

#[test]
fn the_nic_is_chosen_by_number_or_place() {
    let at = |device| PciAddress {
        segment: 0,
        bus: 3,
        device,
        function: 0,
    };
    assert!(Nic::Index(1).may_be(1, at(0)) && !Nic::Index(1).may_be(0, at(1)));
    assert!(Nic::Pci(at(2)).may_be(7, at(2)) && !Nic::Pci(at(2)).may_be(2, at(3)));
    assert!(Nic::Mac([0; 6]).may_be(0, at(0)));
}

#[test]
fn no_guest_has_the_name_of_the_host() {
    assert!(!is_guest_name("Domain-0"));
    assert!(is_guest_name("Domain-01") && is_guest_name("domain-0"));
}

#[test]
fn a_bad_gateway_leaves_the_address() {
    let line = b"hostname=a ip=10.0.2.15/24 gateway=10.0.3.1 dns=no";
    let (config, complaints) = parse(line, Some(&archive("")));
    assert_eq!(
        lines(&complaints),
        [
            "command line: gateway=10.0.3.1: expected another host's address in the network of ip; using none",
            "command line: dns=no: expected an address; using none",
        ]
    );
    let Address::Static {
        gateway, prefix, ..
    } = config.address
    else {
        panic!("{config:?}");
    };
    assert_eq!((gateway, prefix), (None, 24));
}

#[test]
fn a_gateway_that_no_host_can_have_is_said() {
    for (gateway, good) in [
        ("10.0.2.0", false),
        ("10.0.2.1", true),
        ("10.0.2.254", true),
        ("10.0.2.255", false),
    ] {
        let line = format!("hostname=a ip=10.0.2.15/24 gateway={gateway}");
        let (config, complaints) = parse(line.as_bytes(), Some(&archive("")));
        let Address::Static { gateway: taken, .. } = config.address else {
            panic!("{config:?}");
        };
        assert_eq!(taken.is_some(), good, "{gateway}");
        let said = format!(
            "command line: gateway={gateway}: expected another host's address in the network of ip; using none"
        );
        let said = if good { vec![] } else { vec![said] };
        assert_eq!(lines(&complaints), said);
    }
    // Two hosts make a network without such addresses.
    let line = b"hostname=a ip=10.0.2.15/31 gateway=10.0.2.14";
    let (_, complaints) = parse(line, Some(&archive("")));
    assert_eq!(complaints, []);
}

/// smoltcp panics when it sends by a router of the first three kinds.
#[test]
fn a_router_that_no_host_can_be_is_known() {
    for [a, b, c, d] in [
        [0; 4],
        [255; 4],
        [224, 0, 0, 1],
        [127, 0, 0, 1],
        [240, 0, 0, 1],
    ] {
        assert!(!settings::is_host_address(&Ipv4Addr::new(a, b, c, d)));
    }
    assert!(settings::is_host_address(&Ipv4Addr::new(10, 0, 2, 2)));
}

#[test]
fn a_host_that_nobody_could_manage_halts() {
    let key = [b'7'; 64];
    let admin = format!("{} bob\n", "8".repeat(64));
    let good: &[(&str, &[u8])] = &[
        ("closer.conf", b"hostname=a"),
        ("host.key", &key),
        ("admins", admin.as_bytes()),
    ];
    assert_eq!(parse(b"", Some(&files(good))).1, []);

    type Case<'a> = (Option<Vec<u8>>, &'a [&'a str]);
    let cases: [Case<'_>; 9] = [
        (
            None,
            &["boot archive: Xen passed none (add the module to the boot entry); halting"],
        ),
        (
            Some(vec![]),
            &["boot archive: not a newc cpio: it ends early; halting"],
        ),
        (
            Some(vec![b'x'; 200]),
            &["boot archive: not a newc cpio: no magic number where a file starts; halting"],
        ),
        (
            Some(vec![0x1f, 0x8b, 8, 0]),
            &["boot archive: compressed with gzip, must be a plain cpio -H newc; halting"],
        ),
        (
            Some(files(&[good[0], good[2]])),
            &["host.key: missing; halting"],
        ),
        (
            Some(files(&[good[0], good[1]])),
            &["admins: missing; halting"],
        ),
        (
            Some(files(&[good[0], good[1], ("admins", b"# none\n")])),
            &["admins: nothing usable in it; halting"],
        ),
        (
            Some(files(&[good[0], good[2], ("host.key", b"abc")])),
            &["host.key: expected one key, 64 hex digits or base64; halting"],
        ),
        (
            Some(files(&[good[0], good[1], ("admins", b"abc bob\n")])),
            &[
                "admins:1: bob: expected KEY name, KEY 64 hex digits or base64; ignored",
                "admins: nothing usable in it; halting",
            ],
        ),
    ];
    for (bytes, expected) in cases {
        let (_, complaints) = parse(b"hostname=a", bytes.as_deref());
        assert_eq!(lines(&complaints), expected);
        assert!(complaints.iter().any(Diagnostic::is_fatal));
    }
}

#[test]
fn odd_files_are_named_and_the_rest_counts() {
    let key = [b'7'; 64];
    let admins = format!("{0} bob\n{0} bob2\n{1}\n", "8".repeat(64), "9".repeat(64));
    let bytes = files(&[
        (
            "./closer.conf",
            b"hostname = a\nhostname = b\nnonsense\nguests = x\n",
        ),
        ("/host.key", &key),
        ("admins", admins.as_bytes()),
        ("init", b"#!/bin/sh"),
        ("admins", b""),
        ("guests", b"\xff"),
    ]);
    let (config, complaints) = parse(b"", Some(&bytes));
    assert_eq!(
        lines(&complaints),
        [
            "boot archive: init: unknown file; ignored",
            "boot archive: admins: there twice; using the earlier one",
            "closer.conf:2: hostname=b: given twice; using the later one",
            "closer.conf:3: nonsense: not of the form key=value; ignored",
            "guests: not UTF-8 text; ignored",
            "closer.conf:4: guests=x: needs to stand in the file guests; ignored",
            "admins:2: bob2: repeated; ignored",
            "admins:3: expected a name of printable ASCII, at most 63 long, after the key; ignored",
        ]
    );
    assert_eq!(config.hostname, "b");
    assert_eq!(config.administrators.len(), 1);
}

#[test]
fn diagnostics_are_bounded_but_fatal_ones_always_there() {
    let conf = "x\n".repeat(1000);
    let bytes = files(&[("closer.conf", conf.as_bytes())]);
    let (_, complaints) = parse(b"", Some(&bytes));
    assert_eq!(complaints.len(), MAX_DIAGNOSTICS + 2);
    assert_eq!(complaints.iter().filter(|d| d.is_fatal()).count(), 2);
}

#[test]
fn archives_beyond_the_bounds_are_refused() {
    let mut bytes = Vec::new();
    for _ in 0..cpio::MAX_ENTRIES {
        cpio::push(&mut bytes, 1, "x", 0, b"");
    }
    cpio::finish(&mut bytes);
    assert_eq!(
        cpio::read(&bytes),
        Err(cpio::CpioError::TooMuch("64 files"))
    );
    let big = vec![b'0'; cpio::MAX_ARCHIVE + 1];
    assert_eq!(cpio::read(&big), Err(cpio::CpioError::TooMuch("1 MiB")));
}

#[test]
fn every_truncation_of_an_archive_halts() {
    let whole = archive("hostname = a");
    let end = whole
        .len()
        .min(whole.iter().rposition(|b| *b != 0).map_or(0, |i| i + 2));
    assert_eq!(parse(b"", Some(&whole[..end])).1, []);
    for cut in 0..end {
        let (_, complaints) = parse(b"", Some(&whole[..cut]));
        assert!(complaints.iter().any(Diagnostic::is_fatal), "cut at {cut}");
    }
}

#[test]
fn the_examples_are_good() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xen-config/host");
    let read = |name| std::fs::read(folder.join(name)).unwrap();
    let bytes = files(&[
        ("closer.conf", &read("closer.conf")),
        ("admins", &read("admins")),
        ("host.key", &[b'7'; 64]),
    ]);
    let (config, complaints) = parse(b"", Some(&bytes));
    assert_eq!(lines(&complaints), Vec::<String>::new());
    assert_eq!(config.administrators[0].name, "alice@example");
}

/// The real program reads what we write, and we read what it writes.
#[test]
fn cpio_the_program_agrees() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let run = |dir: &std::path::Path, args: &[&str], input: &[u8]| -> Option<Vec<u8>> {
        let mut child = match Command::new("cpio")
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => panic!("cpio: {error}"),
        };
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        Some(output.stdout)
    };
    let dir = tempfile::tempdir().unwrap();
    let whole = archive("hostname = a\n");
    let Some(_) = run(dir.path(), &["-i", "--no-absolute-filenames"], &whole) else {
        std::eprintln!("skipped: cpio is not installed");
        return;
    };
    assert_eq!(
        std::fs::read(dir.path().join("closer.conf")).unwrap(),
        b"hostname = a\n"
    );
    assert_eq!(
        std::fs::read(dir.path().join("guests")).unwrap(),
        b"web\ndb\n"
    );
    let names = b".\n./closer.conf\n./host.key\n./admins\n./guests\n";
    let theirs = run(dir.path(), &["-o", "-H", "newc"], names).unwrap();
    assert_eq!(parse(b"", Some(&theirs)), parse(b"", Some(&whole)));
    assert_eq!(parse(b"", Some(&theirs)).1, []);
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    fn config() -> impl Strategy<Value = HostConfig> {
        let nic = prop_oneof![
            (0u32..256).prop_map(Nic::Index),
            any::<[u8; 6]>().prop_map(|mut mac| {
                mac[0] &= !1;
                Nic::Mac(mac)
            }),
            (any::<u16>(), any::<u8>(), 0u8..32, 0u8..8).prop_map(
                |(segment, bus, device, function)| {
                    Nic::Pci(PciAddress {
                        segment,
                        bus,
                        device,
                        function,
                    })
                }
            ),
        ];
        let address = prop_oneof![
            Just(Address::Dhcp),
            (1u8..255, any::<bool>(), any::<bool>()).prop_map(|(last, gateway, dns)| {
                Address::Static {
                    address: Ipv4Addr::new(192, 168, 1, if last == 1 { 2 } else { last }),
                    prefix: 24,
                    gateway: gateway.then_some(Ipv4Addr::new(192, 168, 1, 1)),
                    dns: dns.then_some(Ipv4Addr::new(8, 8, 8, 8)),
                }
            }),
        ];
        let name = "[a-zA-Z0-9]([a-z0-9-]{0,20}[a-z0-9])?";
        let level = prop_oneof![
            Just(LogLevel::Error),
            Just(LogLevel::Warn),
            Just(LogLevel::Info),
            Just(LogLevel::Debug),
            Just(LogLevel::Trace)
        ];
        let panic = prop_oneof![
            Just(PanicAction::Halt),
            (0..=MAX_PANIC_REBOOT_S).prop_map(|after_s| PanicAction::Reboot { after_s })
        ];
        let key = any::<[u8; 32]>().prop_filter("zero is no key", |key| *key != [0; 32]);
        let admins = proptest::collection::btree_map(key.clone(), "[!-~&&[^#]]{1,63}", 1..8);
        let guests = proptest::collection::btree_set("[a-z][a-z0-9._+-]{0,20}", 0..8);
        (
            (name, nic, address, 1u16.., 1u32..=64),
            (level, panic, key, admins, guests),
        )
            .prop_map(
                |(
                    (hostname, nic, address, rpc_port, mc_cores),
                    (log_level, panic_action, key, admins, guests),
                )| {
                    HostConfig {
                        hostname,
                        nic,
                        address,
                        rpc_port,
                        mc_cores,
                        log_level,
                        panic_action,
                        host_key: Some(HostKey(key)),
                        administrators: admins
                            .into_iter()
                            .map(|(key, name)| Administrator {
                                name,
                                key: PublicKey(key),
                            })
                            .collect(),
                        guests: guests.into_iter().collect(),
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(config in config()) {
            let bytes = write(&ArchiveContents::from(&config));
            prop_assert_eq!(parse(b"", Some(&bytes)), (config, vec![]));
        }

        #[test]
        fn any_bytes_are_survived(line: Vec<u8>, bytes: Vec<u8>) {
            let (_, complaints) = parse(&line, Some(&bytes));
            prop_assert!(complaints.iter().any(Diagnostic::is_fatal));
        }

        #[test]
        fn any_text_in_the_files_is_survived(line: String, conf: String, admins: Vec<u8>, guests: String) {
            let bytes = files(&[
                ("closer.conf", conf.as_bytes()),
                ("admins", &admins),
                ("guests", guests.as_bytes()),
            ]);
            let (_, complaints) = parse(line.as_bytes(), Some(&bytes));
            for complaint in complaints {
                let line = complaint.to_string();
                prop_assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{}", line);
                prop_assert!(line.len() < 1200);
            }
        }

        #[test]
        fn any_change_of_a_byte_is_survived(at: proptest::sample::Index, value: u8) {
            let mut bytes = archive("hostname = a\nip = dhcp\n");
            let at = at.index(bytes.len());
            bytes[at] = value;
            let mut data = vec![0, 0];
            data.extend_from_slice(&bytes);
            crate::fuzz::parse(&data);
        }
    }
}
