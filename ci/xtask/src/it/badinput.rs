//! Done when 6: bad input is one clear line, a non-zero exit, and an unharmed host.

use super::{Test, passed};
use crate::debian::Suite;
use crate::images::Ramdisk;
use crate::lab::{BOOT_LIMIT, CLI_LIMIT, GuestSpec, Lab, TRANSFER_LIMIT};
use crate::process::{self, POLL};
use crate::proxy::Proxy;
use crate::qemu::HOST_ADDRESS;
use crate::report::Outcome;
use anyhow::{Context, Result, anyhow, ensure};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
        name: "address-of-another-guest",
        run: address_taken,
    },
    Test {
        name: "unreachable-and-wrong-keys",
        run: connection,
    },
    Test {
        name: "other-protocol-versions",
        run: versions,
    },
    Test {
        name: "cut-in-the-middle",
        run: cut,
    },
    Test {
        name: "garbage-on-the-port",
        run: garbage,
    },
    Test {
        name: "recorded-handshakes",
        run: replays,
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
    lab.refused(&["create", "--strict", &file], "unknown key no_such_key")?;
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
        ("memory: 'much' is not a number", &|text| {
            with(&text, "memory", "\"much\"")
        }),
        ("vcpus: 0 is not 1 to", &|text| with(&text, "vcpus", "0")),
        ("HVM guests need a device model", &|text| {
            with(&text, "type", "\"hvm\"")
        }),
        ("bad name \"no spaces/here\"", &|text| {
            with(&text, "name", "\"no spaces/here\"")
        }),
        ("the disk on volume nonsense has no vdev", &|text| {
            format!("{text}disk = [ \"nonsense\" ]\n")
        }),
        ("vif: mac 'gg:00' is not of the form", &|text| {
            format!("{text}vif = [ \"mac=gg:00\" ]\n")
        }),
        ("found '='", &|text| format!("{text}memory = = 3\n")),
    ];
    for (word, change) in broken {
        let file = config(lab, "broken", change)?;
        lab.refused(&["create", &file], word)?;
        // And where.
        lab.refused(&["create", &file], "broken.cfg:")?;
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
    lab.refused(
        &["create", "/no/such/file.cfg"],
        "/no/such/file.cfg: no such file",
    )?;
    let quoted = |path: &Path| format!("\"{}\"", path.display());
    let missing = PathBuf::from("/no/such/file");
    for (key, file, word) in [
        ("kernel", &missing, "kernel /no/such/file: no such file"),
        ("kernel", &ramdisk, "ramdisk.gz: not a kernel (neither"),
        ("kernel", &text, "text: not a kernel (neither a bzImage"),
        ("kernel", &empty, "empty: not a kernel (neither a bzImage"),
        ("kernel", &truncated, "truncated: truncated kernel"),
        ("ramdisk", &missing, "ramdisk /no/such/file: no such file"),
        ("ramdisk", &empty, "empty: the file is empty"),
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
    for (key, value, word) in [
        ("memory", "100000", "not enough memory"),
        ("vcpus", "500", "not enough CPUs: 500 vCPUs asked for"),
    ] {
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
        lab.refused(&[verb, "nobody"], "no such guest: nobody")
            .with_context(|| verb.to_owned())?;
    }
    lab.volume("v", "8M")?;
    let exists = "a volume named v exists already";
    lab.refused(&["volume", "create", "v", "8M"], exists)?;
    let missing = "no such volume: nothing";
    lab.refused(&["volume", "remove", "nothing"], missing)?;
    let no_space = "no space for volumes";
    lab.refused(&["volume", "create", "huge", "1000T"], no_space)?;
    let mut guest = lab.boot(&GuestSpec::new("user").disk("v"))?;
    let in_use = "volume v is in use by guest user";
    lab.refused(&["volume", "remove", "v"], in_use)?;
    let again = config(lab, "user", &|text| text)?;
    let exists = "a guest named user exists already";
    lab.refused(&["create", &again], exists)?;
    let other = config(lab, "other", &|text| {
        format!("{text}disk = [ \"vdev=xvda, access=rw, target=v\" ]\n")
    })?;
    lab.refused(&["create", &other], in_use)?;
    let missing = config(lab, "other", &|text| {
        format!("{text}disk = [ \"vdev=xvda, access=rw, target=w\" ]\n")
    })?;
    lab.refused(&["create", &missing], "no such volume: w")?;
    ensure!(guest.ok("echo alive")? == "alive", "the guest was harmed");
    lab.closer(&["destroy", "user"])?;
    unharmed(lab)?;
    passed()
}

/// What was taken for a guest that cannot be is given back.
fn address_taken(lab: &mut Lab) -> Result<Outcome> {
    let mac = "00:16:3e:12:34:56";
    let vif = format!("vif = [ \"mac={mac}\" ]");
    lab.volume("d", "8M")?;
    // The test ramdisk has its interface up before its shell.
    let mut guest = lab.boot(&GuestSpec::new("first").net("10.0.2.30").line(&vif))?;
    let second = lab.write_config(&GuestSpec::new("second").disk("d").line(&vif))?;
    let in_use = format!("guest first has mac {mac} already");
    lab.refused(&["create", &second.to_string_lossy()], &in_use)?;
    lab.closer(&["volume", "remove", "d"])?;
    let guests = lab.guests()?;
    ensure!(guests == ["first"], "there are {guests:?}");
    guest.ok("ping -c 1 -W 10 10.0.2.2")?;
    lab.closer(&["destroy", "first"])?;
    unharmed(lab)?;
    passed()
}

/// The bed's connection file as text, and the address in it.
fn host_file(lab: &mut Lab) -> Result<(String, String)> {
    let text = fs::read_to_string(lab.bed()?.files.host_file()).context("no connection file")?;
    let address = text.split('"').nth(1);
    let address = address.context("the connection file has no address")?;
    Ok((text.clone(), address.to_owned()))
}

/// The bed's connection file with another port.
pub fn host_file_at(lab: &mut Lab, port: u16) -> Result<PathBuf> {
    let (text, address) = host_file(lab)?;
    write_host_file(lab, &text.replace(&address, &format!("127.0.0.1:{port}")))
}

fn write_host_file(lab: &Lab, text: &str) -> Result<PathBuf> {
    let file = lab.dir.join("other.toml");
    fs::write(&file, text).context("cannot write a connection file")?;
    Ok(file)
}

/// Answers one client's hello with `answer` and nothing more; gives its port.
fn answer_hello(answer: Vec<u8>) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut [0; HELLO_LEN])?;
        stream.write_all(&answer)?;
        stream.shutdown(Shutdown::Write)?;
        // Closed with something unread, the connection would be reset, and the answer with it.
        stream.read_to_end(&mut Vec::new())?;
        Ok(())
    });
    Ok(port)
}

fn connection(lab: &mut Lab) -> Result<Outcome> {
    let list = ["list"];
    let (good, _) = host_file(lab)?;
    let file = host_file_at(lab, crate::bed::free_port()?)?;
    lab.refused_with(&file, &list, "host unreachable: connection refused")?;
    // Another host's key, and then an administrator whom the host does not know.
    let paths = lab.setup.paths().clone();
    let strangers = lab.dir.join("strangers");
    fs::create_dir_all(&strangers)?;
    let stranger = crate::keys::pair(&paths, &strangers, "stranger")?;
    let dir = lab.bed()?.files.dir.clone();
    let host = crate::keys::pair(&paths, &dir, "host")?;
    let admin = crate::keys::pair(&paths, &dir, "admin")?;
    let file = write_host_file(lab, &good.replace(&host.public, &stranger.public))?;
    lab.refused_with(&file, &list, "wrong host key")?;
    let theirs = stranger.private.to_string_lossy().into_owned();
    let changed = good.replace(&*admin.private.to_string_lossy(), &theirs);
    let file = write_host_file(lab, &changed)?;
    lab.refused_with(&file, &list, "host does not know this key")?;
    // Somebody who speaks another protocol.
    let port = answer_hello(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())?;
    let file = host_file_at(lab, port)?;
    lab.refused_with(&file, &list, "does not speak Closer's protocol")?;
    unharmed(lab)?;
    passed()
}

// By hand, as toolstack/rpc/src/hello.rs describes it: what is tested is the wire.
const MAGIC: &[u8] = b"CLOSERPC";
/// Of the client's hello.
const HELLO_LEN: usize = 12;
/// Of the host's.
const ANSWER_LEN: usize = 16;
/// Of the Noise messages behind the hellos, each with its length.
const FIRST_LEN: usize = 2 + 96;
const SECOND_LEN: usize = 2 + 49;

/// The magic and then `words`.
fn hello(words: &[u16]) -> Vec<u8> {
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    MAGIC.iter().copied().chain(words).collect()
}

/// Says hello to the host: its answer after the magic, as lowest and highest version
/// spoken, chosen version, reserved. If it chose none it must close the connection.
fn say_hello(port: u16, lowest: u16, highest: u16) -> Result<[u16; 4]> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("the port is closed")?;
    stream.set_read_timeout(Some(CLI_LIMIT))?;
    stream.write_all(&hello(&[lowest, highest]))?;
    let mut answer = [0; ANSWER_LEN];
    stream.read_exact(&mut answer).context("no answer")?;
    let rest = answer.strip_prefix(MAGIC);
    let rest = rest.with_context(|| format!("the answer is {answer:02x?}"))?;
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(rest.chunks_exact(2)) {
        *word = u16::from_le_bytes(bytes.try_into()?);
    }
    if words[2] == 0 {
        let end = stream.read(&mut [0; 16]);
        let closed = match &end {
            Ok(count) => *count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        };
        ensure!(closed, "after its refusal the host goes on: {end:?}");
    }
    Ok(words)
}

fn versions(lab: &mut Lab) -> Result<Outcome> {
    let port = lab.bed()?.rpc_port;
    // Who speaks all versions learns which the host does.
    let [lowest, highest, chosen, reserved] = say_hello(port, 0, u16::MAX)?;
    ensure!(
        0 < lowest && lowest <= highest && chosen == highest && reserved == 0,
        "versions {lowest} to {highest}, chosen {chosen}, reserved {reserved}"
    );
    // Newer, older, and a range that holds nothing.
    for (from, to) in [
        (highest + 1, u16::MAX),
        (0, lowest - 1),
        (highest + 1, lowest - 1),
    ] {
        let answer = say_hello(port, from, to).with_context(|| format!("{from} to {to}"))?;
        ensure!(
            answer == [lowest, highest, 0, 0],
            "a client of {from} to {to} is answered {answer:?}"
        );
    }
    // The other way round: a host that refuses ours, and one that chooses another.
    let (low, high) = (highest + 6, highest + 8);
    // The CLI is of the host's build.
    let ours = if lowest == highest {
        format!("{highest}")
    } else {
        format!("{lowest} to {highest}")
    };
    for answer in [[low, high, 0, 0], [low, high, high, 0]] {
        let file = host_file_at(lab, answer_hello(hello(&answer))?)?;
        let word = format!("this side speaks {ours}, the other {low} to {high}");
        lab.refused_with(&file, &["list"], &word)?;
    }
    unharmed(lab)?;
    passed()
}

/// Runs a command through a connection that ends once `limit` bytes went to the host; it
/// must fail in one line with `word`.
fn cut_after(lab: &mut Lab, limit: u64, args: &[&str], word: &str) -> Result<()> {
    let proxy = Proxy::start(lab.bed()?.rpc_port, limit)?;
    let file = host_file_at(lab, proxy.port)?;
    let refused = lab.refused_with(&file, args, word);
    let passed = proxy.passed()?;
    refused.with_context(|| format!("cut after {passed} of {limit} bytes"))?;
    ensure!(
        passed == limit,
        "it ended after {passed} bytes, before the cut"
    );
    Ok(())
}

/// The connection ends in the middle of an import and of a create.
fn cut(lab: &mut Lab) -> Result<Outcome> {
    cut_import(lab)?;
    cut_overwrite(lab)?;
    // In the handshake, which is begun again; then nobody is there.
    let file = cut_config(lab)?;
    cut_after(lab, 50, &["create", &file], "host unreachable")?;
    // In the upload: of the kernel, if the host has it not, and of the ramdisk.
    cut_create(lab, 100_000).context("cut at the beginning")?;
    was_cut(lab, "upload of an image:")?;
    let ramdisk = fs::metadata(lab.dir.join(RAMDISK))?.len();
    let whole = cut_create(lab, ramdisk / 3 * 2).context("cut in the ramdisk")?;
    // After the last byte: the host knows what to do, and cannot say what came of it.
    let file = cut_config(lab)?;
    cut_after(lab, whole, &["create", &file], " lost: ")?;
    whole_or_nothing(lab, &file)?;
    unharmed(lab)?;
    passed()
}

fn cut_import(lab: &mut Lab) -> Result<()> {
    let file = lab.dir.join("large.bin");
    let bytes: Vec<u8> = (0_u32..12_000_000 / 4)
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(&file, bytes)?;
    let file = file.to_string_lossy().into_owned();
    let import = ["volume", "import", "half", &file];
    let before = lab.json(&["volume", "list"])?;
    cut_after(lab, 4_000_000, &import, " lost: ")?;
    // The host sees the end in its own time.
    let deadline = Instant::now() + CLI_LIMIT;
    loop {
        let after = lab.json(&["volume", "list"])?;
        if before == after {
            break;
        }
        ensure!(Instant::now() < deadline, "a cut import left {after}");
        thread::sleep(Duration::from_millis(300));
    }
    was_cut(lab, "volume import half:")?;
    lab.closer_within(&import, TRANSFER_LIMIT)?;
    lab.closer(&["volume", "remove", "half"])?;
    Ok(())
}

/// The host's log says who was cut off, and in what.
fn was_cut(lab: &mut Lab, what: &str) -> Result<()> {
    // As the bed's one administrator is called.
    let words = format!("rpc: {HOST_ADDRESS}: bed: {what} ");
    let deadline = Instant::now() + CLI_LIMIT;
    loop {
        let log = lab.closer(&["dmesg"])?;
        if log.contains(&words) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no line with {words:?}: {log}");
        thread::sleep(POLL);
    }
}

/// A volume that is half overwritten is no guest's, over a restart of the host too; it can
/// be overwritten again, or removed.
fn cut_overwrite(lab: &mut Lab) -> Result<()> {
    let file = lab.dir.join("large.bin");
    let file = file.to_string_lossy().into_owned();
    let over = ["volume", "import", "--overwrite", "half", &file];
    lab.volume("half", "12M")?;
    cut_after(lab, 3_000_000, &over, " lost: ")?;
    wait_for_mark(lab)?;
    let create = config(lab, "on-half", &|text| {
        text + "disk = [ \"vdev=xvda, access=rw, target=half\" ]\n"
    })?;
    let why = "half is in use by an import that was cut off; import it again with --overwrite, \
               or remove it";
    lab.refused(&["create", &create], why)?;
    lab.stop()?;
    lab.refused(&["create", &create], why)?;
    lab.closer_within(&over, TRANSFER_LIMIT)?;
    lab.closer(&["create", &create])?;
    lab.closer(&["destroy", "on-half"])?;
    cut_after(lab, 3_000_000, &over, " lost: ")?;
    wait_for_mark(lab)?;
    lab.closer(&["volume", "remove", "half"])?;
    Ok(())
}

/// The host sees the end of a connection in its own time.
fn wait_for_mark(lab: &mut Lab) -> Result<()> {
    let deadline = Instant::now() + CLI_LIMIT;
    while !lab
        .closer(&["volume", "list"])?
        .contains("an import that was cut off")
    {
        ensure!(Instant::now() < deadline, "a cut import left no mark");
        thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

/// Cuts a create, which leaves nothing; the same then works. Gives how many bytes it sends.
fn cut_create(lab: &mut Lab, limit: u64) -> Result<u64> {
    let file = cut_config(lab)?;
    let create = ["create", &file];
    cut_after(lab, limit, &create, " lost: ")?;
    let guests = lab.guests()?;
    ensure!(guests.is_empty(), "left behind: {guests:?}");
    let proxy = Proxy::start(lab.bed()?.rpc_port, u64::MAX)?;
    let host_file = host_file_at(lab, proxy.port)?;
    let mut command = lab.bed()?.cli_with(&host_file);
    let done = process::capture(command.args(create), TRANSFER_LIMIT)?;
    let whole = proxy.passed()?;
    ensure!(done.code == 0, "uncut it fails too: {}", done.err);
    let mut guest = lab.attach("cut")?;
    guest.console.wait_for_shell(BOOT_LIMIT)?;
    let mark = fs::read_to_string(lab.dir.join(MARK).join(MARK))?;
    ensure!(
        guest.ok(&format!("cat /{MARK}"))? == mark,
        "it has another ramdisk"
    );
    lab.closer(&["destroy", "cut"])?;
    Ok(whole)
}

/// The file in which such a ramdisk differs from all others.
const MARK: &str = "mark";

/// That ramdisk, in the folder of the test.
const RAMDISK: &str = "mark.gz";

/// The configuration of the guest `cut`, with a ramdisk that no host has yet. All of them
/// are of one length.
fn cut_config(lab: &mut Lab) -> Result<String> {
    let mut ramdisk = fs::read(lab.setup.ramdisk(Ramdisk::Small)?).context("no ramdisk")?;
    // Linux takes an archive behind another, at a multiple of 4 bytes, with zeros between.
    ramdisk.resize(ramdisk.len().next_multiple_of(4), 0);
    let folder = lab.dir.join(MARK);
    fs::create_dir_all(&folder)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    fs::write(folder.join(MARK), format!("{now:020}"))?;
    let archive = lab.dir.join("mark.cpio");
    process::run(
        Command::new("sh")
            .args(["-c", &format!("echo {MARK} | cpio -o -H newc --quiet")])
            .current_dir(&folder)
            .stdout(File::create(&archive)?),
    )?;
    ramdisk.extend(fs::read(&archive)?);
    let file = lab.dir.join(RAMDISK);
    fs::write(&file, ramdisk)?;
    let value = format!("\"{}\"", file.display());
    config(lab, "cut", &|text| with(&text, "ramdisk", &value))
}

/// The host does the whole of what it had been told when the connection ended, or nothing:
/// either there is room for the guest, or it is there and runs.
fn whole_or_nothing(lab: &mut Lab, config: &str) -> Result<()> {
    let again = lab.try_closer(&["create", config], TRANSFER_LIMIT)?;
    ensure!(
        again.code == 0 || again.err.contains("a guest named cut exists already"),
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

/// Passes one connection on to `port`: where it listens, and what its client sends.
fn record(port: u16) -> Result<(u16, JoinHandle<io::Result<Vec<u8>>>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let own_port = listener.local_addr()?.port();
    let thread = thread::spawn(move || {
        let (mut client, _) = listener.accept()?;
        let mut host = TcpStream::connect(("127.0.0.1", port))?;
        let (mut from, mut to) = (host.try_clone()?, client.try_clone()?);
        let back = thread::spawn(move || io::copy(&mut from, &mut to));
        let mut sent = Vec::new();
        let mut part = [0; 4096];
        loop {
            let count = client.read(&mut part)?;
            if count == 0 {
                break;
            }
            sent.extend_from_slice(&part[..count]);
            host.write_all(&part[..count])?;
        }
        // Its client has left: how the other direction ends is of no interest.
        drop((host.shutdown(Shutdown::Both), back.join()));
        Ok(sent)
    });
    Ok((own_port, thread))
}

/// Who plays an administrator's handshake again is a stranger, and keeps nobody out.
fn replays(lab: &mut Lab) -> Result<Outcome> {
    let port = lab.bed()?.rpc_port;
    let (recorder, recording) = record(port)?;
    let file = host_file_at(lab, recorder)?;
    let mut command = lab.bed()?.cli_with(&file);
    let done = process::capture(command.arg("list"), CLI_LIMIT)?;
    ensure!(
        done.code == 0,
        "through the recorder it fails: {}",
        done.err
    );
    let sent = recording.join();
    let sent = sent.map_err(|_| anyhow!("the recorder panicked"))??;
    let handshake = sent.get(..HELLO_LEN + FIRST_LEN);
    let handshake = handshake.context("the client sent less than a handshake")?;
    // More than there are clients at once.
    let mut players = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).context("the port is closed")?;
        stream.set_read_timeout(Some(CLI_LIMIT))?;
        stream.write_all(handshake)?;
        let mut answer = [0; ANSWER_LEN + SECOND_LEN];
        stream
            .read_exact(&mut answer)
            .context("a recorded handshake is not answered")?;
        players.push(stream);
    }
    lab.closer(&["list"])?;
    drop(players);
    unharmed(lab)?;
    passed()
}
