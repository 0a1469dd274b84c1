//! Xen's own test and tools, as Debian ships them, against the server on a Unix socket.
//!
//! `cargo xtask test --only test-xenstore` runs these, with `CLOSER_XEN_ROOT` naming a
//! folder with the unpacked packages `xen-utils-4.20`, `xenstore-utils` and all the
//! libraries they need.
#[allow(dead_code, reason = "its main is for the shell")]
#[path = "../examples/xenstored-host.rs"]
mod host;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use xen_abi::DomId;

/// Longer than the longest program here runs, by far.
const DEADLINE_S: &str = "120";

struct Xen {
    root: PathBuf,
    socket: PathBuf,
}

impl Xen {
    /// A server for one test, acting for `domid`.
    fn serve(name: &str, domid: u16) -> Self {
        let root = std::env::var_os("CLOSER_XEN_ROOT");
        let root = root
            .expect("CLOSER_XEN_ROOT names the unpacked packages")
            .into();
        let socket = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.socket"));
        if socket.exists() {
            std::fs::remove_file(&socket).unwrap();
        }
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || host::serve(&listener, DomId(domid)));
        Self { root, socket }
    }

    fn command(&self, program: &str) -> Command {
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let loader = libraries.join("ld-linux-x86-64.so.2");
        let mut command = Command::new("timeout");
        command.arg(DEADLINE_S);
        command.arg(loader).arg("--library-path").arg(&libraries);
        command.arg(self.root.join(program));
        command.env("XENSTORED_PATH", &self.socket);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program).args(arguments).output().unwrap()
    }

    /// Runs one that must succeed; what it printed.
    fn ok(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {output:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn tool(&self, verb: &str, arguments: &[&str]) -> String {
        self.ok(&format!("usr/bin/xenstore-{verb}"), arguments)
    }
}

const TEST: &str = "usr/lib/xen-4.20/bin/test-xenstore";
const CONTROL: &str = "usr/lib/xen-4.20/bin/xenstore-control";

#[test]
#[ignore = "needs Debian's packages: CLOSER_XEN_ROOT"]
fn test_xenstore_passes() {
    let xen = Xen::serve("test-xenstore", 0);
    let once = xen.ok(TEST, &[]);
    let listed = xen.ok(TEST, &["-l"]);
    assert_eq!(once.lines().count(), listed.lines().count(), "{once}");
    assert!(!once.contains("failed"), "{once}");
    xen.ok(TEST, &["-i", "300"]);
    xen.ok(TEST, &["-r", "3"]);
    assert_eq!(
        xen.tool("ls", &[]).lines().count(),
        5,
        "the test cleaned up"
    );
}

#[test]
#[ignore = "needs Debian's packages: CLOSER_XEN_ROOT"]
fn several_test_xenstores_at_once_pass() {
    let xen = Xen::serve("parallel", 0);
    let runs: Vec<_> = (0..4)
        .map(|_| xen.command(TEST).args(["-r", "3"]).spawn().unwrap())
        .collect();
    for mut run in runs {
        assert!(run.wait().unwrap().success());
    }
    assert_eq!(xen.ok(CONTROL, &["check"]).trim(), "OK");
}

#[test]
#[ignore = "needs Debian's packages: CLOSER_XEN_ROOT"]
fn the_utilities_work() {
    let xen = Xen::serve("utilities", 0);
    xen.tool("write", &["/a/b", "hello", "/a/c", "x y"]);
    assert_eq!(xen.tool("read", &["/a/b"]), "hello\n");
    assert_eq!(xen.tool("list", &["/a"]), "b\nc\n");
    xen.tool("chmod", &["/a/b", "n5", "r6", "b7"]);
    let tree = xen.tool("ls", &["-fp", "/a"]);
    assert!(tree.contains("/a/b = \"hello\"   (n5,r6,b7)"), "{tree}");
    let (socket, root) = (xen.socket.clone(), xen.root.clone());
    let watcher = std::thread::spawn(move || {
        let xen = Xen { root, socket };
        xen.tool("watch", &["-n", "3", "/a"])
    });
    // The watcher is registered when the server counts its watch.
    let registered = || xen.ok(CONTROL, &["memreport"]).contains("watches 1");
    while !registered() {
        std::thread::sleep(Duration::from_millis(20));
    }
    xen.tool("write", &["/a/d", "1"]);
    xen.tool("rm", &["/a/b"]);
    assert_eq!(watcher.join().unwrap(), "/a\n/a/d\n/a/b\n");
    assert!(
        !xen.run("usr/bin/xenstore-exists", &["/a/b"])
            .status
            .success()
    );
    assert_eq!(xen.ok(CONTROL, &["check"]).trim(), "OK");
    assert!(
        xen.ok(CONTROL, &["quota"])
            .contains("watches          :      128")
    );
}

#[test]
#[ignore = "needs Debian's packages: CLOSER_XEN_ROOT"]
fn a_guests_utilities_meet_its_limits() {
    let xen = Xen::serve("guest", 9);
    let refused = xen.run("usr/bin/xenstore-write", &["/tool/x", "1"]);
    assert!(!refused.status.success());
    let refused = xen.run("usr/bin/xenstore-ls", &["/"]);
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(words.contains("Permission denied"), "{words}");
}
