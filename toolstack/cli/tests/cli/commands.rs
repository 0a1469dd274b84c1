//! What the program does when all goes well.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Bed, Ran, eventually};
use serde_json::json;
use toolstack_domain::config::DomainState;

#[test]
fn a_guest_is_created_listed_and_destroyed() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"])
        .says("created web, domid 1\n");
    {
        let state = bed.host.state();
        assert!(state.images.values().any(|i| *i == [0x5a; 200_000]));
        let guest = &state.guests["web"].config;
        assert_eq!((guest.memory_mib, guest.vcpus), (128, 1));
        assert_eq!(guest.ramdisk.unwrap().len, 200_000);
        assert_eq!(guest.kernel.entry, 0x10_0000);
        let segment = &guest.kernel.segments[0];
        let from = usize::try_from(segment.offset).unwrap();
        let image = &state.images[&guest.kernel.image];
        assert_eq!(image[from..from + 4096], [0x90; 4096]);
    }
    bed.run(&["list"]).says(
        "Name  ID  Mem  VCPUs  State   Time(s)  Node\n\
         web    1  128      1  -b----      1.2  0\n",
    );
    let list = bed.run(&["list", "--json"]).json();
    let fields = [
        "name", "domid", "state", "mem_mb", "vcpus", "cpus", "node", "cpu_s", "served_s",
    ];
    let first: Vec<_> = fields.iter().map(|f| list[0][f].clone()).collect();
    let expected = [
        json!("web"),
        json!(1),
        json!("blocked"),
        json!(128),
        json!(1),
        json!([1]),
        json!(0),
        json!(1.234),
        json!(0.098),
    ];
    assert_eq!(first, expected);
    assert_eq!(list.as_array().unwrap().len(), 1);
    bed.run(&["domid", "web"]).says("1\n");
    bed.run(&["domname", "1"]).says("web\n");
    bed.run(&["destroy", "web"]).says("");
    assert_eq!(bed.run(&["list", "--json"]).json(), json!([]));
}

#[test]
fn images_are_sent_once() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    assert_eq!(bed.host.state().uploads, 2);
    bed.run(&["create", "web.cfg", "name=\"web2\"", "-q"])
        .says("");
    assert_eq!(bed.host.state().uploads, 2);
}

#[test]
fn a_paused_guest_is_started_by_unpause() {
    let bed = Bed::new().with_guest_files();
    let created = bed.run(&["create", "-p", "web.cfg", "--json"]).json();
    assert_eq!(created["domid"], 1);
    assert_eq!(bed.host.state().guests["web"].state, DomainState::Paused);
    bed.run(&["unpause", "web"]).says("");
    assert_eq!(bed.host.state().guests["web"].state, DomainState::Running);
    bed.run(&["pause", "1"]).says("");
    assert_eq!(bed.host.state().guests["web"].state, DomainState::Paused);
    bed.run(&["rename", "web", "shop"]).says("");
    bed.run(&["domid", "shop"]).says("1\n");
}

#[test]
fn a_guest_that_is_being_built_is_listed_and_named_as_such() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    bed.run(&["create", "web.cfg", "name=\"b\""]);
    bed.host.state().guests.get_mut("web").unwrap().state = DomainState::Building;
    let head = "Name  ID  Mem  VCPUs  State   Time(s)  Node\n";
    let web = "web    -    0      0  ------      0.0  0\n";
    bed.run(&["list", "web"]).says(&format!("{head}{web}"));
    bed.run(&["list"]).says(&format!(
        "{head}b      2  128      1  -b----      1.2  0\n{web}"
    ));
    let list = bed.run(&["list", "--json", "web"]).json();
    assert_eq!(list[0]["domid"], json!(null));
    assert_eq!(list[0]["state"], "building");
    for verb in ["domid", "shutdown", "reboot", "pause", "unpause"] {
        bed.run(&[verb, "web"]).fails(&format!(
            "{verb} web: guest web is being built or forgotten"
        ));
    }
    // The domid that it had is nobody's.
    bed.run(&["domname", "1"])
        .fails("domname 1: no such guest: domid 1");
    bed.run(&["uptime", "web"])
        .says("Name  ID  Uptime\nweb    -  0:00:00\n");
    bed.run(&["shutdown", "-a", "-w"])
        .fails("shutdown web: guest web is being built or forgotten");
    assert!(!bed.host.state().guests.contains_key("b"));
}

#[test]
fn a_dry_run_creates_nothing_and_needs_no_host() {
    let bed = Bed::new().with_guest_files();
    bed.write("host.toml", b"");
    let what = bed.run(&["create", "-n", "web.cfg", "--json"]).json();
    assert_eq!(what["memory_mb"], 128);
    assert_eq!(what["type"], "pvh");
    assert!(bed.host.state().guests.is_empty());
}

#[test]
fn shutdown_waits_until_the_guest_is_gone() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    bed.run(&["create", "web.cfg", "name=\"b\""]);
    bed.run(&["reboot", "-w", "web"]).says("");
    bed.run(&["domid", "web"]).says("3\n");
    bed.run(&["shutdown", "-a", "-w"]).says("");
    assert!(bed.host.state().guests.is_empty());
}

#[test]
fn volumes_go_there_and_back() {
    let bed = Bed::new();
    // Holes at the beginning, in the middle and at the end.
    let mut image = vec![0; 3_000_000];
    image[100_000..600_000].fill(0xa5);
    image[2_000_001] = 1;
    bed.write("root.img", &image);
    let imported = bed.run(&["volume", "import", "root", "root.img", "--size", "4M"]);
    assert_eq!((imported.code, &*imported.stdout), (Some(0), ""));
    assert_eq!(
        imported.stderr,
        "closer: volume import root: root.img has 3000000 bytes of the 4194304, the rest is zeros\n"
    );
    bed.run(&["volume", "create", "swap", "1m"]).says("");
    bed.run(&["volume", "list"]).says(
        "Name   Size  Used by\n\
         root  4 MiB\n\
         swap  1 MiB\n",
    );
    assert_eq!(
        bed.run(&["volume", "list", "--json"]).json()[0],
        json!({"name": "root", "size_bytes": 4 << 20, "used_by": []})
    );
    image.resize(4 << 20, 0);
    bed.run(&["volume", "export", "root", "back.img"]).says("");
    assert!(fs::read(bed.path("back.img")).unwrap() == image);
    assert!(!bed.path("back.img.part").exists());
    // What a killed export leaves.
    bed.write("again.img.part", b"half");
    bed.run(&["volume", "export", "root", "again.img"]).fails(
        "volume export root: again.img.part: is there already: another export runs, \
         or one was killed (--force replaces it)",
    );
    bed.run(&["volume", "export", "--force", "root", "again.img"])
        .says("");
    assert!(fs::read(bed.path("again.img")).unwrap() == image);
    assert!(!bed.path("again.img.part").exists());
    let stdout = bed.command(&["volume", "export", "root", "-"]).output();
    assert!(stdout.unwrap().stdout == image);

    bed.write("new.img", &[7; 5000]);
    bed.run(&["volume", "import", "--overwrite", "root", "new.img"])
        .says("");
    assert!(bed.host.state().volumes["root"][..5000] == [7; 5000]);
    bed.run(&["volume", "remove", "root", "swap"]).says("");
    assert!(bed.host.state().volumes.is_empty());
}

#[test]
fn a_console_in_pipes_goes_both_ways() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    // The guest ends at "halt"; before that it says what it hears.
    bed.run_with(&["console", "web"], b"uname -a\nhalt\n")
        .says("Hello from web\r\nuname -a\nhalt\n");
    bed.run(&["console", "--log", "web"])
        .says("Hello from web\r\nuname -a\nhalt\n");
    bed.run_with(&["console", "--no-replay", "web"], b"halt")
        .says("halt");
}

#[test]
fn the_end_of_input_does_not_end_a_console_but_its_time_does() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    let start = Instant::now();
    bed.run(&["console", "--for", "1", "web"])
        .says("Hello from web\r\n");
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_console_ends_quietly_when_nobody_reads_it() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    let mut child = bed
        .command(&["console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
}

/// The program on a terminal of its own.
struct Terminal {
    master: fs::File,
    slave: fs::File,
    before: rustix::termios::Termios,
}

impl Terminal {
    fn new() -> Terminal {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(
            name,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        let before = rustix::termios::tcgetattr(&slave).unwrap();
        Terminal {
            master: master.into(),
            slave: slave.into(),
            before,
        }
    }

    fn is_raw(&self) -> bool {
        let now = rustix::termios::tcgetattr(&self.slave).unwrap();
        !now.local_modes
            .contains(rustix::termios::LocalModes::ICANON)
    }

    fn is_as_before(&self) -> bool {
        let now = rustix::termios::tcgetattr(&self.slave).unwrap();
        (now.local_modes, now.input_modes, now.output_modes)
            == (
                self.before.local_modes,
                self.before.input_modes,
                self.before.output_modes,
            )
    }

    fn start(&self, bed: &Bed, arguments: &[&str]) -> std::process::Child {
        let child = bed
            .command(&[&["console", "web"], arguments].concat())
            .stdin(self.slave.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("the terminal is raw", || self.is_raw());
        child
    }
}

#[test]
fn the_escape_key_leaves_a_console_and_the_terminal_is_as_before() {
    use std::io::Write as _;
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    let mut terminal = Terminal::new();
    let child = terminal.start(&bed, &[]);
    // ^C belongs to the guest, what follows ^] to nobody.
    terminal.master.write_all(b"a\x03b\x1dc").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.starts_with("closer: console web: ^] leaves\n"));
    assert!(terminal.is_as_before());
    eventually("the guest has heard it", || {
        bed.host.state().guests["web"].console == b"Hello from web\r\na\x03b"
    });
}

#[test]
fn a_console_on_a_terminal_gives_programs_no_advice() {
    use std::io::Write as _;
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    let mut terminal = Terminal::new();
    let child = terminal.start(&bed, &["--json"]);
    terminal.master.write_all(b"\x1d").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""));
    assert!(terminal.is_as_before());
}

#[test]
fn a_signal_leaves_the_terminal_as_before() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    let terminal = Terminal::new();
    let mut child = terminal.start(&bed, &[]);
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(terminal.is_as_before());
}

#[test]
fn a_long_transfer_shows_on_a_terminal_how_far_it_is() {
    use std::io::Read as _;
    let bed = Bed::new();
    bed.write("root.img", &[0xa5; 2 << 20]);
    let Terminal {
        mut master, slave, ..
    } = Terminal::new();
    rustix::termios::tcsetwinsize(
        &slave,
        rustix::termios::Winsize {
            ws_row: 24,
            ws_col: 120,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
    .unwrap();
    let mut child = bed
        .command(&["volume", "import", "root", "root.img"])
        .env("TERM", "xterm")
        .stderr(slave)
        .spawn()
        .unwrap();
    let mut shown = Vec::new();
    // It ends with an error, once the program has.
    master.read_to_end(&mut shown).unwrap_err();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("volume import root"), "{shown:?}");
    // Of nothing, it would say `0 B`.
    assert!(shown.contains(" KiB/2.00 MiB"), "{shown:?}");
}

#[test]
fn the_host_describes_itself() {
    let bed = Bed::new();
    let info = bed.run(&["info", "--json"]).json();
    assert_eq!(info["xen_version"], "4.20.0");
    assert_eq!(info["nodes"][1]["cpus"], json!([2, 3]));
    assert_eq!(info["closer_memory"]["used_bytes"], 12 << 20);
    assert_eq!(
        info["closer_cpu"]["vcpu_ns"],
        json!([1_500_000_000, 2000, 0, 0])
    );
    let text = bed.run(&["info"]).stdout;
    assert!(text.contains("\nuptime           1:02:03\n"), "{text}");
    assert!(text.contains("\ncloser's cpu s   1.500 0.000 0.000 0.000\n"));
    assert!(text.contains("\nnode 1           cpus 2-3, 1 GiB free of 1 GiB, Closer uses 6 MiB\n"));
    bed.run(&["dmesg"]).says("closer: ready\n");
    bed.run(&["dmesg", "--xen"]).says("(XEN) ready\n");
    bed.run(&["host", "reboot", "--force"]).says("");
    bed.run(&["xenstore-ls", "/local"])
        .says("/local/domain = \"\"\n");
}

#[test]
fn keys_are_made_for_their_owner_alone() {
    let bed = Bed::new();
    let public = bed.run(&["keygen", "k"]).stdout;
    let mode = |name: &str| fs::metadata(bed.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("k"), 0o600);
    assert_eq!(fs::read_to_string(bed.path("k.pub")).unwrap(), public);
    bed.run(&["pubkey", "k"]).says(&public);
    bed.run(&["keygen", "k"])
        .fails("k: exists already (--force replaces it)");
    let other = bed.run(&["keygen", "--force", "k"]).stdout;
    assert_ne!(other, public);
    assert_eq!(mode("k"), 0o600);
    // Half a pair is not left.
    bed.write("half.pub", b"");
    bed.run(&["keygen", "half"])
        .fails("half.pub: exists already (--force replaces it)");
    assert!(!bed.path("half").exists());
}

#[test]
fn completions_name_the_commands() {
    let bed = Bed::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = bed.run(&["completions", shell]);
        assert_eq!(ran.code, Some(0));
        assert!(ran.stdout.contains("xenstore-ls"), "{shell}");
    }
}
