//! Done when 6: bad input is one clear line, a non-zero exit, and an unharmed host.

use super::{Test, passed};
use crate::debian::Suite;
use crate::images::Ramdisk;
use crate::lab::{BOOT_LIMIT, CLI_LIMIT, GuestSpec, Lab, TRANSFER_LIMIT};
use crate::process;
use crate::report::Outcome;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test {
        name: "config-keys",
        run: config_keys,
    },
    Test {
        name: "files",
        run: files,
    },
    Test {
        name: "more-than-there-is",
        run: too_much,
    },
    Test {
        name: "names-and-volumes",
        run: names,
    },
    Test {
        name: "unreachable-and-wrong-keys",
        run: connection,
    },
    Test {
        name: "cut-in-the-middle",
        run: cut,
    },
    Test {
        name: "garbage-on-the-port",
        run: garbage,
    },
];

/// Writes a variant of a good config file.
fn config(lab: &mut Lab, name: &str, change: &dyn Fn(String) -> String) -> Result<String> {
    let text = GuestSpec::new(name).config(lab.setup)?;
    let file = lab.dir.join(format!("{name}.cfg"));
    fs::write(&file, change(text)).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file.to_string_lossy().into_owned())
}

/// Replaces the line of a key.
fn with(text: &str, key: &str, value: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some((found, _)) if found == key => format!("{key} = {value}"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// No guest came of it, and a good one still starts.
fn unharmed(lab: &mut Lab) -> Result<()> {
    let guests = lab.guests()?;
    ensure!(guests.is_empty(), "left behind: {guests:?}");
    lab.boot(&GuestSpec::new("good"))?;
    lab.closer(&["destroy", "good"])?;
    Ok(())
}

fn config_keys(lab: &mut Lab) -> Result<Outcome> {
    let file = config(lab, "unknown", &|text| format!("{text}no_such_key = 1\n"))?;
    let line = fs::read_to_string(&file)?.lines().count().to_string();
    lab.refused(&["create", "--strict", &file], "no_such_key")?;
    let done = lab.try_closer(&["create", &file], CLI_LIMIT)?;
    ensure!(
        done.code == 0,
        "an unknown key is more than a warning: {}",
        done.err
    );
    for word in ["no_such_key", "unknown.cfg", line.as_str()] {
        ensure!(
            done.err.contains(word),
            "the warning does not name {word}: {}",
            done.err
        );
    }
    lab.closer(&["destroy", "unknown"])?;
    let broken: [(&str, &dyn Fn(String) -> String); 7] = [
        ("memory", &|text| with(&text, "memory", "\"much\"")),
        ("vcpus", &|text| with(&text, "vcpus", "0")),
        ("type", &|text| with(&text, "type", "\"hvm\"")),
        ("name", &|text| with(&text, "name", "\"no spaces/here\"")),
        ("disk", &|text| format!("{text}disk = [ \"nonsense\" ]\n")),
        ("vif", &|text| format!("{text}vif = [ \"mac=gg:00\" ]\n")),
        ("broken.cfg", &|text| format!("{text}memory = = 3\n")),
    ];
    for (word, change) in broken {
        let file = config(lab, "broken", change)?;
        lab.refused(&["create", &file], word)
            .with_context(|| format!("broken {word}"))?;
    }
    unharmed(lab)?;
    passed()
}

fn files(lab: &mut Lab) -> Result<Outcome> {
    let kernel = lab.setup.linux(Suite::Trixie)?.vmlinuz;
    let ramdisk = lab.setup.ramdisk(Ramdisk::Small)?;
    let vmlinuz = fs::read(&kernel).context("cannot read the kernel")?;
    let truncated = lab.dir.join("truncated");
    fs::write(
        &truncated,
        vmlinuz.get(..vmlinuz.len() / 2).unwrap_or_default(),
    )?;
    let text = lab.dir.join("text");
    fs::write(&text, "this is not a kernel\n".repeat(1000))?;
    let empty = lab.dir.join("empty");
    fs::write(&empty, "")?;
    lab.refused(&["create", "/no/such/file.cfg"], "/no/such/file.cfg")?;
    let quoted = |path: &Path| format!("\"{}\"", path.display());
    let missing = PathBuf::from("/no/such/kernel");
    for (key, file, word) in [
        ("kernel", &missing, "/no/such/kernel"),
        ("kernel", &ramdisk, "kernel"),
        ("kernel", &text, "kernel"),
        ("kernel", &empty, "kernel"),
        ("kernel", &truncated, "truncated"),
        ("ramdisk", &missing, "/no/such/kernel"),
    ] {
        let value = quoted(file);
        let file = config(lab, "bad", &|text| with(&text, key, &value))?;
        lab.refused(&["create", &file], word)
            .with_context(|| format!("{key} = {value}"))?;
    }
    unharmed(lab)?;
    passed()
}

fn too_much(lab: &mut Lab) -> Result<Outcome> {
    let before = lab.free_memory()?;
    for (key, value, word) in [("memory", "100000", "memory"), ("vcpus", "500", "vcpu")] {
        let file = config(lab, "big", &|text| with(&text, key, value))?;
        lab.refused(&["create", &file], word)?;
    }
    let after = lab.free_memory()?;
    ensure!(
        before.abs_diff(after) < 1 << 20,
        "{before} bytes were free, now {after}"
    );
    unharmed(lab)?;
    passed()
}

fn names(lab: &mut Lab) -> Result<Outcome> {
    for verb in [
        "destroy", "shutdown", "reboot", "pause", "unpause", "console",
    ] {
        lab.refused(&[verb, "nobody"], "nobody")
            .with_context(|| verb.to_owned())?;
    }
    lab.volume("v", "8M")?;
    lab.refused(&["volume", "create", "v", "8M"], "v")?;
    lab.refused(&["volume", "remove", "nothing"], "nothing")?;
    lab.refused(&["volume", "create", "huge", "1000T"], "huge")?;
    let mut guest = lab.boot(&GuestSpec::new("user").disk("v"))?;
    lab.refused(&["volume", "remove", "v"], "user")?;
    let again = config(lab, "user", &|text| text)?;
    lab.refused(&["create", &again], "user")?;
    let other = config(lab, "other", &|text| {
        format!("{text}disk = [ \"vdev=xvda, access=rw, target=v\" ]\n")
    })?;
    lab.refused(&["create", &other], "v")?;
    let missing = config(lab, "other", &|text| {
        format!("{text}disk = [ \"vdev=xvda, access=rw, target=w\" ]\n")
    })?;
    lab.refused(&["create", &missing], "w")?;
    ensure!(guest.ok("echo alive")? == "alive", "the guest was harmed");
    lab.closer(&["destroy", "user"])?;
    unharmed(lab)?;
    passed()
}

/// Runs the CLI with another connection file; it must fail in one line with `word`.
fn refused_with(lab: &mut Lab, host_file: &str, word: &str) -> Result<()> {
    let file = lab.dir.join("other.toml");
    fs::write(&file, host_file)?;
    let program = lab.setup.paths().cli();
    let done = process::capture(
        Command::new(program)
            .arg("--host-file")
            .arg(&file)
            .arg("list"),
        CLI_LIMIT,
    )?;
    ensure!(done.code != 0, "it went through: {}", done.out);
    ensure!(
        done.err.trim().lines().count() == 1,
        "not one line: {:?}",
        done.err
    );
    let said = done.err.to_lowercase();
    ensure!(said.contains(word), "it says {said:?}, without {word:?}");
    Ok(())
}

fn connection(lab: &mut Lab) -> Result<Outcome> {
    let host_file = lab.bed()?.files.host_file();
    let good = fs::read_to_string(host_file).context("no connection file")?;
    let address = good
        .split('"')
        .nth(1)
        .context("the connection file has no address")?
        .to_owned();
    let port = crate::bed::free_port()?;
    refused_with(
        lab,
        &good.replace(&address, &format!("127.0.0.1:{port}")),
        "refused",
    )?;
    // Another host's key, and then an administrator whom the host does not know.
    let paths = lab.setup.paths().clone();
    let strangers = lab.dir.join("strangers");
    fs::create_dir_all(&strangers)?;
    let stranger = crate::keys::pair(&paths, &strangers, "stranger")?;
    let dir = lab.bed()?.files.dir.clone();
    let host = crate::keys::pair(&paths, &dir, "host")?;
    let admin = crate::keys::pair(&paths, &dir, "admin")?;
    refused_with(lab, &good.replace(&host.public, &stranger.public), "key")?;
    let theirs = stranger.private.to_string_lossy().into_owned();
    refused_with(
        lab,
        &good.replace(&*admin.private.to_string_lossy(), &theirs),
        "key",
    )?;
    // Somebody who speaks another protocol.
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        if let Ok((mut stream, _)) = listener.accept() {
            let said = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let ended = stream.shutdown(Shutdown::Both);
            drop((said, ended));
        }
    });
    refused_with(
        lab,
        &good.replace(&address, &format!("127.0.0.1:{port}")),
        "protocol",
    )?;
    unharmed(lab)?;
    passed()
}

/// Kills the CLI in the middle of an import and of a create.
fn cut(lab: &mut Lab) -> Result<Outcome> {
    let file = lab.dir.join("large.bin");
    let bytes: Vec<u8> = (0_u32..40_000_000 / 4)
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(&file, bytes)?;
    let file = file.to_string_lossy().into_owned();
    let config = config(lab, "cut", &|text| text)?;
    let before = lab.json(&["volume", "list"])?;
    for (args, after_ms) in [
        (vec!["volume", "import", "half", &file], 700),
        (vec!["create", &config], 100),
        (vec!["create", &config], 600),
        (vec!["create", &config], 1500),
    ] {
        let mut command = lab.bed()?.cli();
        command
            .args(&args)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start closer")?;
        thread::sleep(Duration::from_millis(after_ms));
        child.kill().context("cannot cut the connection")?;
        child.wait().context("the cut closer is left behind")?;
        if args.first() == Some(&"create") {
            whole_or_nothing(lab, &config)
                .with_context(|| format!("create, cut after {after_ms} ms"))?;
        }
    }
    let deadline = Instant::now() + CLI_LIMIT;
    loop {
        let after = lab.json(&["volume", "list"])?;
        if before == after {
            break;
        }
        ensure!(Instant::now() < deadline, "a cut import left {after}");
        thread::sleep(Duration::from_millis(300));
    }
    unharmed(lab)?;
    passed()
}

/// The host does the whole of what it had been told when the connection ended, or nothing:
/// either there is room for the guest, or it is there and runs.
fn whole_or_nothing(lab: &mut Lab, config: &str) -> Result<()> {
    let again = lab.try_closer(&["create", config], TRANSFER_LIMIT)?;
    ensure!(
        again.code == 0 || again.err.contains("exists"),
        "neither made nor there: {}",
        again.err
    );
    let deadline = Instant::now() + CLI_LIMIT;
    while lab.listed("cut")?.is_none() {
        ensure!(Instant::now() < deadline, "it exists, and is not listed");
        thread::sleep(Duration::from_millis(300));
    }
    lab.attach("cut")?.console.wait_for_shell(BOOT_LIMIT)?;
    lab.closer(&["destroy", "cut"])?;
    Ok(())
}

/// Bytes that are no handshake end their own connection only.
fn garbage(lab: &mut Lab) -> Result<Outcome> {
    let port = lab.bed()?.rpc_port;
    for seed in 0..20_u8 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).context("the port is closed")?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        let noise: Vec<u8> = (0..2000_u16)
            .map(|index| index.to_le_bytes()[0].wrapping_mul(seed))
            .collect();
        // It may be closed before all is sent; that is as good.
        let sent = stream.write_all(&noise);
        let read = stream.read(&mut [0; 16]);
        drop((sent, read));
    }
    // Connections that say nothing do not keep others out.
    let silent: Vec<TcpStream> = (0..20)
        .filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok())
        .collect();
    lab.closer(&["list"])?;
    drop(silent);
    unharmed(lab)?;
    passed()
}
