//! Done when 3, the network half: TCP both ways with checksums compared.

use super::{Test, forwarding, passed};
use crate::lab::{Guest, GuestSpec, Lab};
use crate::qemu::{BedOptions, HOST_ADDRESS, PVM_ADDRESS};
use crate::report::Outcome;
use crate::web;
use anyhow::{Context, Result, anyhow, ensure};
use std::io;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

pub const TESTS: &[Test] = &[
    Test {
        name: "from-outside-to-guest",
        run: outside_in,
    },
    Test {
        name: "from-guest-to-outside",
        run: guest_out,
    },
    Test {
        name: "guest-to-guest-all-sizes",
        run: guest_to_guest,
    },
    Test {
        name: "one-byte-messages",
        run: one_byte,
    },
];

const FIRST: &str = "10.0.2.30";
const SECOND: &str = "10.0.2.31";
const BULK_LIMIT: Duration = Duration::from_secs(180);

/// The ordinary bed, with port 80 of the first guest reachable from this machine.
pub fn options() -> Result<BedOptions> {
    forwarding(FIRST, 80)
}

fn first(lab: &mut Lab) -> Result<Guest> {
    lab.boot(&GuestSpec::new("first").memory(256).net(FIRST))
}

/// A file served by the guest arrives whole; it leaves the guest in segments longer than the
/// wire takes (GSO).
fn outside_in(lab: &mut Lab) -> Result<Outcome> {
    let mut guest = first(lab)?;
    let sum = guest.ok("mkdir /tmp/w; head -c 3000000 /dev/urandom > /tmp/w/f; httpd -p 80 -h /tmp/w; sha256sum < /tmp/w/f")?;
    let port = lab
        .options
        .forward
        .first()
        .context("the bed forwards no port")?
        .host_port;
    let before = moved(&mut guest, "tx")?;
    let body = web::get(port, "/f", BULK_LIMIT)?;
    ensure!(body.len() == 3_000_000, "{} bytes arrived", body.len());
    are_long(before, moved(&mut guest, "tx")?, "sent")?;
    let ours = web::sha256(&body, &lab.dir)?;
    ensure!(
        sum.starts_with(&ours),
        "the checksum is {ours} here and {sum} there"
    );
    passed()
}

/// Packets up to the MTU are answered from outside, and a file served there arrives whole.
/// The host does not answer: its management address is not for guests.
fn guest_out(lab: &mut Lab) -> Result<Outcome> {
    let mut guest = first(lab)?;
    for size in [0, 1, 56, 1471, 1472] {
        guest
            .ok(&format!("ping -c 2 -W 10 -s {size} {HOST_ADDRESS}"))
            .with_context(|| format!("{size} bytes"))?;
    }
    guest.ok(&format!("! ping -c 1 -W 2 {PVM_ADDRESS}"))?;
    let body: Vec<u8> = (0_u32..750_000)
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let ours = web::sha256(&body, &lab.dir)?;
    let server = web::Server::start(body)?;
    let sum = guest.ok_within(
        &format!(
            "wget -q -O - http://{HOST_ADDRESS}:{}/ | sha256sum",
            server.port()
        ),
        BULK_LIMIT,
    )?;
    ensure!(
        sum.starts_with(&ours),
        "the checksum is {ours} here and {sum} there"
    );
    passed()
}

/// Packets below, at and above the MTU; a stream in each direction, in segments longer than
/// the MTU (GSO), and its checksum.
fn guest_to_guest(lab: &mut Lab) -> Result<Outcome> {
    let spec = |name: &str, address| GuestSpec::new(name).with_tools().memory(256).net(address);
    let mut one = lab.boot(&spec("first", FIRST))?;
    let mut two = lab.boot(&spec("second", SECOND).pv())?;
    for size in [0, 1, 56, 1471, 1472, 1473, 4000, 20000] {
        one.ok(&format!("ping -c 2 -W 10 -s {size} {SECOND}"))
            .with_context(|| format!("{size} bytes"))?;
    }
    send_and_compare(&mut one, &mut two, SECOND)?;
    send_and_compare(&mut two, &mut one, FIRST)?;
    two.ok("iperf3 -s -D -1")?;
    two.ok(&listening(5201))?;
    let text = one.ok_within(&format!("iperf3 -c {SECOND} -t 4 -f m"), BULK_LIMIT)?;
    let line = text
        .lines()
        .find(|line| line.contains("receiver"))
        .context("iperf3 has no result")?;
    let rate = line
        .split_whitespace()
        .rev()
        .nth(2)
        .unwrap_or("?")
        .to_owned();
    Ok(Outcome::Passed(format!("{rate} Mbit/s guest to guest")))
}

/// Bytes and packets that a guest's interface has sent (`tx`) or received (`rx`).
fn moved(guest: &mut Guest, way: &str) -> Result<(u64, u64)> {
    let folder = "/sys/class/net/eth0/statistics";
    let text = guest.ok(&format!("cat {folder}/{way}_bytes {folder}/{way}_packets"))?;
    let mut numbers = text.split_whitespace().map(str::parse);
    let mut number = || Ok::<u64, anyhow::Error>(numbers.next().context("no number")??);
    Ok((number()?, number()?))
}

/// A whole frame of the wire, with its Ethernet header.
const FRAME: u64 = 1514;

/// Those since `before` are longer on average than the wire takes, so there are some that
/// nobody has cut.
fn are_long(before: (u64, u64), after: (u64, u64), what: &str) -> Result<()> {
    let (bytes, packets) = (after.0 - before.0, after.1 - before.1);
    ensure!(
        bytes > FRAME * packets,
        "{bytes} bytes were {what} in {packets} packets"
    );
    Ok(())
}

/// A command that ends once somebody listens on a port.
fn listening(port: u16) -> String {
    format!("until netstat -ltn | grep -q ':{port} '; do sleep 0.1; done")
}

/// A stream larger than any buffer on its way, compared by checksum.
fn send_and_compare(from: &mut Guest, to: &mut Guest, address: &str) -> Result<()> {
    // busybox's listener ends with its own input: that is held open.
    to.ok("rm -f /tmp/in; (sleep 600 | nc -l -p 5000 > /tmp/in) >/dev/null 2>&1 &")?;
    to.ok(&listening(5000))?;
    let sent = from.ok("head -c 8000000 /dev/urandom > /tmp/out; sha256sum < /tmp/out")?;
    let before = (moved(from, "tx")?, moved(to, "rx")?);
    from.ok_within(&format!("nc {address} 5000 < /tmp/out"), BULK_LIMIT)?;
    let got = to.ok_within(
        "while pidof nc >/dev/null; do sleep 0.2; done; sha256sum < /tmp/in",
        BULK_LIMIT,
    )?;
    ensure!(sent == got, "sent {sent}, arrived {got}");
    are_long(before.0, moved(from, "tx")?, "sent")?;
    are_long(before.1, moved(to, "rx")?, "received")?;
    Ok(())
}

/// A message of one byte at a time, each answered before the next: nothing waits for more.
fn one_byte(lab: &mut Lab) -> Result<Outcome> {
    let mut one = first(lab)?;
    let mut two = lab.boot(&GuestSpec::new("second").net(SECOND))?;
    two.ok("mkfifo /tmp/p; (nc -l -p 5001 < /tmp/p | cat > /tmp/p) >/dev/null 2>&1 &")?;
    two.ok(&listening(5001))?;
    send_bytes(&mut one, SECOND, 5001)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free TCP port")?;
    let port = listener.local_addr()?.port();
    let echo = thread::spawn(move || -> io::Result<u64> {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        io::copy(&mut &stream, &mut &stream)
    });
    send_bytes(&mut two, HOST_ADDRESS, port)?;
    let count = echo.join().map_err(|_| anyhow!("the echo panicked"))??;
    ensure!(count == 100, "{count} of 100 messages arrived outside");
    passed()
}

/// A hundred bytes to who sends them back.
fn send_bytes(from: &mut Guest, address: &str, port: u16) -> Result<()> {
    let script = format!(
        "mkfifo /tmp/up /tmp/down; nc {address} {port} < /tmp/up > /tmp/down & \
         exec 3>/tmp/up 4</tmp/down; i=0; while [ $i -lt 100 ]; do printf x >&3; \
         [ \"$(dd bs=1 count=1 <&4 2>/dev/null)\" = x ] || exit 1; i=$((i+1)); done; echo $i; \
         exec 3>&- 4<&-"
    );
    let count = from.ok_within(&script, BULK_LIMIT)?;
    ensure!(
        count == "100",
        "{count} of 100 messages were echoed by {address}"
    );
    Ok(())
}
