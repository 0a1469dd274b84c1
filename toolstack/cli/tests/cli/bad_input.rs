//! What the program says when something is wrong: one line, exit code 1, nothing half made.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;

use crate::common::{Bed, eventually, kernel};
use toolstack_rpc::PrivateKey;
use toolstack_rpc::hello::Versions;
use toolstack_rpc::tcp::SystemEntropy;

#[test]
fn no_such_guest() {
    let bed = Bed::new();
    for verb in [
        "destroy", "pause", "unpause", "shutdown", "reboot", "console", "list", "domid", "uptime",
    ] {
        bed.run(&[verb, "nobody"])
            .fails(&format!("{verb} nobody: no such guest: nobody"));
    }
    bed.run(&["domname", "77"])
        .fails("domname 77: no such guest: domid 77");
    bed.run(&["console", "--log", "nobody"])
        .fails("console nobody: no such guest: nobody");
}

#[test]
fn one_guest_of_several_that_is_not_there_stops_nothing() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    let ran = bed.run(&["destroy", "a", "web", "b"]);
    assert_eq!(
        ran.stderr,
        "closer: destroy a: no such guest: a\ncloser: destroy b: no such guest: b\n"
    );
    assert_eq!(ran.code, Some(1));
    assert!(bed.host.state().guests.is_empty());
}

#[test]
fn one_of_several_that_is_not_there_keeps_no_other_from_shutting_down() {
    for verb in ["shutdown", "reboot"] {
        let bed = Bed::new().with_guest_files();
        bed.run(&["create", "web.cfg"]);
        let ran = bed.run(&[verb, "-w", "a", "web"]);
        assert_eq!(ran.stderr, format!("closer: {verb} a: no such guest: a\n"));
        assert_eq!((ran.code, &*ran.stdout), (Some(1), ""));
        bed.run(&["domname", "1"])
            .fails("domname 1: no such guest: domid 1");
    }
}

#[test]
fn guests_that_do_not_shut_down_in_time_are_named_each() {
    let bed = Bed::new().with_guest_files();
    for name in ["a", "b", "c"] {
        bed.run(&["create", "web.cfg", &format!("name=\"{name}\"")]);
    }
    {
        // The host looks for these under their own names when they shut down.
        let guests = &mut bed.host.state().guests;
        for (key, name) in [("stubborn", "a"), ("obstinate", "c")] {
            let guest = guests.remove(name).unwrap();
            guests.insert(key.into(), guest);
        }
    }
    // One that is not there does not keep it from waiting for the others.
    let shutdown = ["shutdown", "-w", "--timeout", "1"];
    let ran = bed.run(&[&shutdown[..], &["nobody", "a", "b", "c"]].concat());
    assert_eq!(
        ran.stderr,
        "closer: shutdown nobody: no such guest: nobody\n\
         closer: shutdown a: still running after 1 s\n\
         closer: shutdown c: still running after 1 s\n"
    );
    assert_eq!((ran.code, &*ran.stdout), (Some(1), ""));
}

#[test]
fn one_volume_of_several_that_is_not_there_stops_nothing() {
    let bed = Bed::new();
    bed.run(&["volume", "create", "v", "4K"]);
    bed.run(&["volume", "remove", "u", "v"])
        .fails("volume remove u: no such volume: u");
    assert!(bed.host.state().volumes.is_empty());
}

#[test]
fn definitions_that_are_wrong() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "no.cfg"])
        .fails("no.cfg: No such file or directory");
    let create = |arguments: &[&str]| bed.run(&[&["create", "web.cfg"], arguments].concat());
    create(&["kernel=\"nothing\""]).fails("kernel nothing: No such file or directory");
    create(&["kernel=\"web.cfg\""])
        .fails("kernel web.cfg: not a kernel (neither a bzImage nor an ELF file)");
    create(&["ramdisk=\"nothing\""]).fails("ramdisk nothing: No such file or directory");
    create(&["type=\"pv\""]).fails(
        "kernel vmlinux: cannot boot with type = \"pv\": its notes name no PV entry (ENTRY)",
    );
    bed.write("short", &kernel()[..3000]);
    let ran = create(&["kernel=\"short\""]);
    assert!(
        ran.stderr
            .starts_with("closer: kernel short: truncated kernel: "),
        "{ran:?}"
    );
    assert_eq!(ran.code, Some(1));
    let ran = create(&["memory=lots"]);
    assert_eq!(
        (ran.code, ran.stderr.lines().count()),
        (Some(1), 1),
        "{ran:?}"
    );
    assert!(bed.host.state().guests.is_empty());
    assert_eq!(bed.host.state().uploads, 0);
}

#[test]
fn an_unknown_key_is_a_warning_or_an_error() {
    let bed = Bed::new().with_guest_files();
    let text = fs::read_to_string(bed.path("web.cfg")).unwrap() + "colour = \"blue\"\n";
    bed.write("odd.cfg", text.as_bytes());
    let strict = bed.run(&["create", "--strict", "odd.cfg"]);
    assert_eq!(strict.code, Some(1));
    assert!(strict.stderr.starts_with("closer: odd.cfg:6"), "{strict:?}");
    assert!(strict.stderr.contains("colour"), "{strict:?}");
    assert!(bed.host.state().guests.is_empty());
    let ran = bed.run(&["create", "odd.cfg"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.stderr
            .starts_with("closer: warning: odd.cfg:6: colour: "),
        "{ran:?}"
    );
    assert_eq!(ran.stdout, "created web, domid 1\n");
    // It may be the very key that is missing.
    bed.write("typo.cfg", b"name = 'x'\nkernel = 'vmlinuz'\nmemry = 64\n");
    let ran = bed.run(&["create", "typo.cfg"]);
    assert_eq!(
        (ran.code, &*ran.stderr),
        (
            Some(1),
            "closer: warning: typo.cfg:3: memry: unknown key (is memory meant?); ignored\n\
             closer: typo.cfg: memory is not set (in MiB)\n"
        )
    );
}

#[test]
fn more_than_the_host_has() {
    let bed = Bed::new().with_guest_files();
    let create = |setting: &str| bed.run(&["create", "web.cfg", setting]);
    create("memory=3000").fails(
        "create web: not enough memory: 3000 MiB asked for, free for guests: 1024 MiB on node 0, 1024 MiB on node 1",
    );
    create("vcpus=5")
        .fails("create web: not enough CPUs: 5 vCPUs asked for, the host has 4 for guests");
    create("cpus=\"9\"")
        .fails("create web: guests have no CPU 9: it is not there or the host's own; 4 are theirs");
    create("disk=[\"none,raw,xvda,w\"]").fails("create web: no such volume: none");
    bed.run(&["volume", "create", "big", "1T"]).fails(
        "volume create big: no space for volumes: 1099511627776 bytes asked for, largest free run 67108864",
    );
    assert!(bed.host.state().guests.is_empty());
}

#[test]
fn what_is_taken_already() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["volume", "create", "root", "1M"]);
    let disk = "disk=[\"root,raw,xvda,w\"]";
    bed.run(&["create", "web.cfg", disk]);
    bed.run(&["create", "web.cfg"])
        .fails("create web: a guest named web exists already");
    bed.run(&["create", "web.cfg", "name=\"b\"", disk])
        .fails("create b: volume root is in use by web");
    bed.run(&["volume", "remove", "root"])
        .fails("volume remove root: volume root is in use by web");
    bed.run(&["volume", "create", "root", "1M"])
        .fails("volume create root: a volume named root exists already");
    bed.write("a.img", &[1; 100]);
    bed.run(&["volume", "import", "root", "a.img"])
        .fails("volume import root: a volume named root exists already");
    bed.run(&["volume", "import", "--overwrite", "root", "a.img"])
        .fails("volume import root: volume root is in use by web");
    bed.run(&["unpause", "web"])
        .fails("unpause web: guest web is blocked");
}

#[test]
fn files_that_are_no_images() {
    let bed = Bed::new();
    let import = |file: &str| bed.run(&["volume", "import", "v", file]);
    import("none").fails("volume import v: none: No such file or directory");
    import("-").fails("volume import v: -: standard input has no length: a file is needed");
    import(".").fails("volume import v: .: is a directory");
    bed.write("empty", b"");
    import("empty").fails("volume import v: empty: the file is empty, or has no length");
    bed.write("a.qcow2", b"QFI\xfb\0\0\0\x03");
    import("a.qcow2").fails(
        "volume import v: a.qcow2: a qcow2 image; a raw one is needed (qemu-img convert -O raw)",
    );
    bed.write("raw", &[1; 5000]);
    bed.run(&["volume", "import", "a/b", "raw"])
        .fails("volume import a/b: bad name \"a/b\": letters, digits and +-._ only");
    let ran = bed.run(&["volume", "import", "v", "raw", "--size", "4K"]);
    assert_eq!(ran.code, Some(2));
    assert_eq!(
        ran.stderr,
        "closer: volume import v: --size is 4096 bytes, less than the 5000 of raw\n"
    );
    assert!(bed.host.state().volumes.is_empty());
    bed.run(&["volume", "export", "v", "out"])
        .fails("volume export v: no such volume: v");
    assert!(!bed.path("out").exists() && !bed.path("out.part").exists());
    bed.run(&["volume", "export", "v", "raw"])
        .fails("volume export v: raw: exists already (--force replaces it)");
}

#[test]
fn usage_errors_end_with_2() {
    let bed = Bed::new();
    for arguments in [
        &["frobnicate"][..],
        &["destroy"],
        &["create"],
        &["shutdown"],
        &["shutdown", "-a", "web"],
        &["volume", "create", "v", "12X"],
        &["domname", "web"],
        &[],
    ] {
        let ran = bed.run(arguments);
        assert_eq!(
            (ran.code, &*ran.stdout),
            (Some(2), ""),
            "{arguments:?}: {ran:?}"
        );
        assert!(!ran.stderr.is_empty());
    }
}

#[test]
fn host_files_that_are_wrong() {
    let bed = Bed::new();
    let key = bed.host.key;
    let with = |text: &str| {
        bed.write("host.toml", text.as_bytes());
        bed.run(&["list"])
    };
    with("").fails("host.toml:1: missing field `address`");
    with("address = \"h\"\nhost_key = 5\nidentity = \"x\"")
        .fails("host.toml:2: invalid type: integer `5`, expected a string");
    let ran = with("address = \"h\"\nport = 5\n");
    assert!(
        ran.stderr
            .starts_with("closer: host.toml:2: unknown field `port`"),
        "{ran:?}"
    );
    with("address = \"h\"\nhost_key = \"abc\"\nidentity = \"admin.key\"")
        .fails("host.toml: host_key: a key has 64 hexadecimal digits or 44 of base64, not 3");
    with(&format!(
        "address = \"h\"\nhost_key = \"{key}\"\nidentity = \"none\""
    ))
    .fails("host.toml: identity none: No such file or directory");
    with(&format!(
        "address = \"h\"\nhost_key = \"{key}\"\nidentity = \"host.toml\""
    ))
    .fails_after_warning(
        "host.toml: identity host.toml: a key has 64 hexadecimal digits or 44 of base64, not",
    );
    with(&format!(
        "address = \" \"\nhost_key = \"{key}\"\nidentity = \"admin.key\""
    ))
    .fails("host.toml: address: is empty");
    fs::remove_file(bed.path("host.toml")).unwrap();
    bed.run(&["list"])
        .fails("host.toml: no such host file (give --host-file FILE, or set CLOSER_HOST_FILE)");
}

trait Warned {
    fn fails_after_warning(&self, line: &str);
}

impl Warned for crate::common::Ran {
    #[track_caller]
    fn fails_after_warning(&self, line: &str) {
        assert_eq!(self.code, Some(1));
        let last = self.stderr.lines().last().unwrap();
        assert!(last.starts_with(&format!("closer: {line}")), "{self:?}");
    }
}

#[test]
fn a_private_key_that_others_can_read_is_warned_about() {
    use std::os::unix::fs::PermissionsExt as _;
    let bed = Bed::new();
    fs::set_permissions(bed.path("admin.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let ran = bed.run(&["list"]);
    assert_eq!(ran.code, Some(0));
    assert_eq!(
        ran.stderr,
        "closer: warning: admin.key: others can read this private key\n"
    );
}

#[test]
fn a_host_that_cannot_be_reached() {
    let bed = Bed::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    bed.write_host_file(address, &bed.host.key);
    bed.run(&["list"])
        .fails(&format!("{address}: host unreachable: Connection refused"));
}

#[test]
fn a_host_that_takes_the_connection_and_closes_it() {
    let bed = Bed::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    bed.write_host_file(listener.local_addr().unwrap(), &bed.host.key);
    thread::spawn(move || listener.incoming().for_each(drop));
    let ran = bed.run(&["list"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains(": host does not answer: "), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1);
}

#[test]
fn a_host_that_takes_the_connection_and_is_silent() {
    let bed = Bed::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    bed.write_host_file(address, &bed.host.key);
    bed.run(&["list"])
        .fails(&format!("{address}: host does not answer: timed out"));
}

#[test]
fn wrong_keys_and_versions() {
    let bed = Bed::new();
    let address = bed.host.address;
    let other = PrivateKey::generate(&mut SystemEntropy).unwrap();
    bed.write_host_file(address, &other.public());
    bed.run(&["list"]).fails(&format!(
        "{address}: wrong host key: it has not the one that host.toml says"
    ));

    let stranger = Bed::new();
    stranger.write_host_file(address, &bed.host.key);
    stranger.run(&["list"]).fails(&format!(
        "{address}: host does not know this key: {} (identity admin.key)",
        stranger.key
    ));

    let newer = Bed::speaking(Versions {
        lowest: 7,
        highest: 8,
    });
    newer.run(&["list"]).fails(&format!(
        "{}: protocol version: this side speaks 2, the other 7 to 8",
        newer.host.address
    ));

    bed.write_host_file(address, &bed.host.key);
    bed.host.state().busy = true;
    bed.run(&["list"]).fails(&format!(
        "{address}: the host is busy: it serves 12 clients, and none is idle"
    ));
    bed.host.state().busy = false;
    // Too many handshakes at once: one that is reset is begun again, not for ever.
    bed.host.state().resets = 5;
    bed.run(&["list"])
        .says("Name  ID  Mem  VCPUs  State  Time(s)  Node\n");
    bed.host.state().resets = 6;
    bed.run(&["list"]).fails(&format!(
        "{address}: host does not answer: Connection reset by peer"
    ));
    bed.run(&["list"])
        .says("Name  ID  Mem  VCPUs  State  Time(s)  Node\n");
}

#[test]
fn an_import_cut_in_the_middle_leaves_nothing() {
    let bed = Bed::new();
    bed.write("a.img", &[3; 4 << 20]);
    for limit in [400, 20_000, 1_000_000, 4_000_000] {
        bed.cut_after(limit, usize::MAX);
        let ran = bed.run(&["volume", "import", "a", "a.img"]);
        assert_eq!((ran.code, &*ran.stdout), (Some(1), ""), "{ran:?}");
        assert!(
            ran.stderr
                .starts_with("closer: volume import a: connection to 127.0.0.1:"),
            "{ran:?}"
        );
        assert!(ran.stderr.contains(" lost: "), "{ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        eventually("the volume is gone", || bed.host.state().volumes.is_empty());
    }
    bed.write_host_file(bed.host.address, &bed.host.key);
    bed.run(&["volume", "import", "a", "a.img"]).says("");
}

#[test]
fn a_killed_import_leaves_nothing() {
    let bed = Bed::new();
    // 60 MB of data, which takes its time.
    let block: Vec<u8> = (0..=255).collect();
    bed.write("a.img", &block.repeat(60 * 4096));
    let mut child = bed
        .command(&["volume", "import", "a", "a.img"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it has begun", || {
        bed.host.state().volumes.contains_key("a")
    });
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(!child.wait().unwrap().success());
    eventually("the volume is gone", || bed.host.state().volumes.is_empty());
}

#[test]
fn a_create_cut_in_the_middle_leaves_nothing() {
    let bed = Bed::new().with_guest_files();
    for limit in [300, 1000, 5_000, 100_000] {
        bed.cut_after(limit, usize::MAX);
        let ran = bed.run(&["create", "web.cfg"]);
        assert_eq!((ran.code, &*ran.stdout), (Some(1), ""), "{ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        assert!(ran.stderr.contains(" lost: "), "{ran:?}");
        assert!(bed.host.state().guests.is_empty());
    }
    bed.write_host_file(bed.host.address, &bed.host.key);
    bed.run(&["create", "web.cfg"])
        .says("created web, domid 1\n");
}

#[test]
fn an_export_cut_in_the_middle_leaves_no_file() {
    let bed = Bed::new();
    bed.host
        .state()
        .volumes
        .insert("a".into(), vec![9; 4 << 20]);
    bed.cut_after(usize::MAX, 1_000_000);
    let ran = bed.run(&["volume", "export", "a", "out"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains("volume export a: connection to "),
        "{ran:?}"
    );
    assert!(!bed.path("out").exists() && !bed.path("out.part").exists());
}

#[test]
fn a_disk_that_fails_during_an_import_is_named() {
    let bed = Bed::new();
    bed.write("a.img", &[3; 4 << 20]);
    bed.host.state().fail_import_at = Some(1 << 20);
    bed.run(&["volume", "import", "a", "a.img"])
        .fails("volume import a: disk failed: write: NVMe status 0x280");
    eventually("the volume is gone", || bed.host.state().volumes.is_empty());
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let bed = Bed::new();
    let mut child = bed
        .command(&["list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(&*output.stderr, b"");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_a_host_says_cannot_drive_the_terminal() {
    let bed = Bed::new();
    let ran = bed.run(&["destroy", "a\u{1b}[2J\nb"]);
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.stderr.lines().count(), 1);
    assert!(!ran.stderr.contains('\u{1b}'));
}

#[test]
fn two_guests_of_a_host_do_not_get_one_mac() {
    let bed = Bed::new().with_guest_files();
    let vif = "vif=['mac=00:16:3e:00:00:01', 'mac=00:16:3e:00:00:02']";
    bed.run(&["create", "-q", "web.cfg", vif]).says("");
    let vif = "vif=['mac=00:16:3e:00:00:03', 'mac=00:16:3e:00:00:02']";
    bed.run(&["create", "-q", "web.cfg", "name=\"b\"", vif])
        .fails("create b: vif: guest web has mac 00:16:3e:00:00:02 already");
    bed.run(&["destroy", "web"]).says("");
    bed.run(&["create", "-q", "web.cfg", "name=\"b\"", vif])
        .says("");
}
