//! What the program says to programs: JSON, whatever happens.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::common::{Bed, Ran};

impl Ran {
    /// It failed with this code and exactly this object; gives standard output.
    #[track_caller]
    fn fails_in_json(&self, error: &str, exit: i32) -> &str {
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        let said: Value = serde_json::from_str(&self.stderr).unwrap();
        assert_eq!(said, json!({"error": error, "exit": exit}));
        assert_eq!(self.code, Some(exit));
        &self.stdout
    }
}

#[test]
fn what_is_done_is_said() {
    let bed = Bed::new().with_guest_files();
    bed.write("a.img", &[1; 5000]);
    bed.run(&["create", "web.cfg"]);
    let address = bed.host.address.to_string();
    for (arguments, said) in [
        (
            &["pause", "web"][..],
            json!([{"done": "pause", "guest": "web"}]),
        ),
        (
            &["unpause", "1"],
            json!([{"done": "unpause", "guest": "1"}]),
        ),
        (
            &["rename", "web", "shop"],
            json!({"done": "rename", "guest": "web", "name": "shop"}),
        ),
        (
            &["reboot", "-w", "1"],
            json!([{"done": "reboot", "guest": "1"}]),
        ),
        (
            &["shutdown", "--all"],
            json!([{"done": "shutdown", "guest": "shop"}]),
        ),
        (&["shutdown", "--all"], json!([])),
        (
            &["volume", "create", "v", "4K"],
            json!({"done": "volume create", "volume": "v", "size_bytes": 4096}),
        ),
        (
            &["volume", "export", "v", "out.img"],
            json!({
                "done": "volume export",
                "volume": "v",
                "size_bytes": 4096,
                "file": "out.img",
            }),
        ),
        (
            &["volume", "remove", "v"],
            json!([{"done": "volume remove", "volume": "v"}]),
        ),
        (
            &["host", "reboot"],
            json!({"done": "host reboot", "host": address}),
        ),
        (
            &["host", "poweroff", "--force"],
            json!({"done": "host poweroff", "host": address}),
        ),
    ] {
        assert_eq!(
            bed.run(&[arguments, &["--json"]].concat()).json(),
            said,
            "{arguments:?}"
        );
    }
}

#[test]
fn imports_say_what_is_beyond_the_file() {
    let bed = Bed::new();
    bed.write("a.img", &[1; 5000]);
    let import = |arguments: &[&str]| {
        let import = ["--json", "volume", "import", "v", "a.img"];
        bed.run(&[&import, arguments].concat()).json()
    };
    let grown = json!({
        "done": "volume import",
        "volume": "v",
        "size_bytes": 8192,
        "file_bytes": 5000,
        "zeroed_bytes": 3192,
    });
    assert_eq!(import(&["--size", "8K"]), grown);
    // The rest of an old volume stays as it is.
    let overwritten = json!({
        "done": "volume import",
        "volume": "v",
        "size_bytes": 8192,
        "file_bytes": 5000,
    });
    assert_eq!(import(&["--overwrite"]), overwritten);
    bed.run(&["volume", "remove", "v"]);
    let as_it_is = json!({
        "done": "volume import",
        "volume": "v",
        "size_bytes": 5000,
        "file_bytes": 5000,
        "zeroed_bytes": 0,
    });
    assert_eq!(import(&[]), as_it_is);
}

#[test]
fn answers_are_documents() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    for arguments in [
        &["list"][..],
        &["domid", "web"],
        &["domname", "1"],
        &["uptime"],
        &["info"],
        &["dmesg"],
        &["dmesg", "--xen"],
        &["console", "--log", "web"],
        &["volume", "list"],
        &["xenstore-ls", "/local"],
        &["create", "--dry-run", "web.cfg"],
        &["create", "web.cfg", "name=\"b\""],
        &["create", "--quiet", "web.cfg", "name=\"c\""],
        &["keygen", "k"],
        &["pubkey", "k"],
        &["version"],
    ] {
        let said = bed.run(&[arguments, &["--json"]].concat()).json();
        assert_ne!(said, Value::Null, "{arguments:?}");
    }
    let fish = bed.run(&["completions", "fish", "--json"]).json();
    assert_eq!(fish["shell"], "fish");
    assert_eq!(fish["script"], bed.run(&["completions", "fish"]).stdout);
}

#[test]
fn what_streams_is_left_alone() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    bed.run_with(&["console", "web", "--json"], b"halt")
        .says("Hello from web\r\nhalt");
    bed.host
        .state()
        .volumes
        .insert("v".into(), b"volume".to_vec());
    bed.run(&["volume", "export", "v", "-", "--json"])
        .says("volume");
    // Its failures are not.
    let ran = bed.run(&["console", "nobody", "--json"]);
    let stdout = ran.fails_in_json("console nobody: no such guest: nobody", 1);
    assert_eq!(stdout, "");
}

#[test]
fn a_failure_is_one_object() {
    let bed = Bed::new();
    bed.write("raw", &[1; 5000]);
    for (arguments, error, exit) in [
        (
            &["domid", "nobody"][..],
            "domid nobody: no such guest: nobody",
            1,
        ),
        (
            &["rename", "a\n", "b"],
            "rename a\u{fffd}: no such guest: a\u{fffd}",
            1,
        ),
        (
            &["create", "no.cfg"],
            "no.cfg: No such file or directory",
            1,
        ),
        (
            &["volume", "import", "v", "raw", "--size", "4K"],
            "volume import v: --size is 4096 bytes, less than the 5000 of raw",
            2,
        ),
        // Found before anything is known but that somebody wants JSON.
        (&["frobnicate"], "unrecognized subcommand 'frobnicate'", 2),
        (
            &["destroy"],
            "the following required arguments were not provided: <GUEST>...",
            2,
        ),
        (
            &["volume", "create", "v", "12X"],
            "invalid value '12X' for '<SIZE>': not a size: digits, then nothing, K, M, G or T",
            2,
        ),
        (&[], "no command given; see closer help", 2),
        (&["volume"], "no command given; see closer help", 2),
    ] {
        let ran = bed.run(&[&["--json"], arguments].concat());
        assert_eq!(ran.fails_in_json(error, exit), "", "{arguments:?}");
    }
    fs::remove_file(bed.path("host.toml")).unwrap();
    let ran = bed.run(&["destroy", "web", "--json"]);
    let error = "host.toml: no such host file (give --host-file FILE, or set CLOSER_HOST_FILE)";
    assert_eq!(ran.fails_in_json(error, 1), "");
}

#[test]
fn usage_is_explained_to_people_only_and_help_to_all() {
    let bed = Bed::new();
    // After "--" it is the name of a guest.
    let ran = bed.run(&["domid", "--", "--json", "more"]);
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr.starts_with("error: unexpected argument"),
        "{ran:?}"
    );
    let help = bed.run(&["--json", "--help"]);
    assert_eq!((help.code, &*help.stderr), (Some(0), ""));
    assert!(help.stdout.contains("\nWith --json:\n"), "{help:?}");
}

#[test]
fn part_of_a_success_is_told_apart() {
    let bed = Bed::new().with_guest_files();
    bed.run(&["create", "web.cfg"]);
    let both = "destroy a: no such guest: a; destroy b: no such guest: b";
    let ran = bed.run(&["destroy", "a", "web", "b", "--json"]);
    let said: Value = serde_json::from_str(ran.fails_in_json(both, 1)).unwrap();
    assert_eq!(
        said,
        json!([
            {"guest": "a", "error": "destroy a: no such guest: a"},
            {"guest": "web", "done": "destroy"},
            {"guest": "b", "error": "destroy b: no such guest: b"},
        ])
    );
    assert!(bed.host.state().guests.is_empty());

    bed.run(&["create", "web.cfg"]);
    let ran = bed.run(&["shutdown", "-w", "web", "a", "--json"]);
    let said: Value =
        serde_json::from_str(ran.fails_in_json("shutdown a: no such guest: a", 1)).unwrap();
    assert_eq!(
        said,
        json!([
            {"guest": "web", "done": "shutdown"},
            {"guest": "a", "error": "shutdown a: no such guest: a"},
        ])
    );
    assert!(bed.host.state().guests.is_empty());

    bed.run(&["volume", "create", "v", "4K"]);
    let ran = bed.run(&["volume", "remove", "u", "v", "--json"]);
    let said: Value =
        serde_json::from_str(ran.fails_in_json("volume remove u: no such volume: u", 1)).unwrap();
    assert_eq!(
        said,
        json!([
            {"volume": "u", "error": "volume remove u: no such volume: u"},
            {"volume": "v", "done": "volume remove"},
        ])
    );
    assert!(bed.host.state().volumes.is_empty());
}

#[test]
fn a_warning_is_an_object_of_its_own() {
    let bed = Bed::new().with_guest_files();
    let warns = |arguments: &[&str], warning: &str| {
        let ran = bed.run(&[arguments, &["--json"]].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let said: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(said, json!({"warning": warning}));
        serde_json::from_str::<Value>(&ran.stdout).unwrap();
    };
    let readable = "admin.key: others can read this private key";
    fs::set_permissions(bed.path("admin.key"), fs::Permissions::from_mode(0o644)).unwrap();
    warns(&["list"], readable);
    warns(&["pubkey", "admin.key"], readable);
    let dry_run = ["create", "--dry-run", "web.cfg", "colour=\"blue\""];
    let ran = bed.run(&[&dry_run[..], &["--json"]].concat());
    let said: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert!(
        said["warning"].as_str().unwrap().contains("colour"),
        "{ran:?}"
    );

    // A line each: the failure is the last.
    let ran = bed.run(&["domid", "nobody", "--json"]);
    let lines: Vec<Value> = ran
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            json!({"warning": readable}),
            json!({"error": "domid nobody: no such guest: nobody", "exit": 1}),
        ]
    );
}
