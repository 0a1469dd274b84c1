//! Done when 3, the disk half: what was synced is there after destroy and host restart.

use super::{Test, passed};
use crate::lab::{GuestSpec, Lab, TRANSFER_LIMIT};
use crate::report::Outcome;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::process::Command;
use std::time::Duration;

pub const TESTS: &[Test] = &[
    Test {
        name: "patterns-survive-destroy-and-host-restart",
        run: patterns,
    },
    Test {
        name: "import-and-export-agree",
        run: import_export,
    },
    Test {
        name: "volumes-are-kept-apart",
        run: apart,
    },
];

const FIO_LIMIT: Duration = Duration::from_secs(240);

/// fio's job: blocks of several sizes, so that one to many segments go over; each block
/// carries a checksum and its own offset.
fn fio(verify_only: bool) -> String {
    let mode = if verify_only {
        "--verify_only=1"
    } else {
        "--end_fsync=1 --do_verify=1"
    };
    format!(
        "fio --name=p --filename=/dev/xvda --rw=randwrite --size=24m --bsrange=4k-128k \
         --direct=1 --ioengine=libaio --iodepth=16 --randseed=11 --verify=crc32c \
         --verify_fatal=1 {mode} --group_reporting --output=/tmp/fio.txt || \
         {{ cat /tmp/fio.txt; false; }}"
    )
}

fn patterns(lab: &mut Lab) -> Result<Outcome> {
    lab.volume("data", "32M")?;
    let spec = GuestSpec::new("writer").with_fio().vcpus(2).disk("data");
    let mut guest = lab.boot(&spec)?;
    guest.ok_within(&fio(false), FIO_LIMIT)?;
    let sum = guest.ok_within("sync; sha256sum < /dev/xvda", FIO_LIMIT)?;
    lab.closer(&["destroy", "writer"])?;
    // QEMU's end would not lose what was not flushed, so that what the host counted for the
    // device has to show that the guest's fsync came through.
    let serial = lab.bed()?.serial();
    let mut lines = serial.lines().rev();
    let counts = lines.find(|line| line.contains("/xvda: reads "));
    let counts = counts.context("the host did not count requests")?;
    ensure!(!counts.contains(" flushes 0,"), "no flush came: {counts}");
    let mut guest = lab.boot(&spec)?;
    guest
        .ok_within(&fio(true), FIO_LIMIT)
        .context("after destroy and create")?;
    drop(guest);
    lab.stop()?;
    // Another type of guest reads the same disk after the host's restart.
    let mut guest = lab.boot(&spec.pv())?;
    let again = guest.ok_within("sha256sum < /dev/xvda", FIO_LIMIT)?;
    ensure!(again == sum, "after the host's restart the disk differs");
    guest
        .ok_within(&fio(true), FIO_LIMIT)
        .context("after the host's restart")?;
    passed()
}

fn import_export(lab: &mut Lab) -> Result<Outcome> {
    // Not a multiple of any block size but the sector, zeros in the middle.
    let mut bytes: Vec<u8> = (0_u32..3_000_000 / 4)
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    bytes.resize(5_000_192, 0);
    bytes.extend((0_u32..50_000).flat_map(u32::to_le_bytes));
    let source = lab.dir.join("import.bin");
    let target = lab.dir.join("export.bin");
    fs::write(&source, &bytes).context("cannot write the file to import")?;
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    lab.closer_within(&["volume", "import", "v", &text(&source)], TRANSFER_LIMIT)?;
    let mut guest = lab.boot(&GuestSpec::new("a").disk("v"))?;
    let length = bytes.len();
    let sum = guest.ok(&format!("head -c {length} /dev/xvda | sha256sum"))?;
    let expected = crate::process::output(Command::new("sha256sum").arg(&source))?;
    ensure!(
        sum.split(' ').next() == expected.split(' ').next(),
        "the guest reads something else"
    );
    lab.closer(&["destroy", "a"])?;
    lab.closer_within(&["volume", "export", "v", &text(&target)], TRANSFER_LIMIT)?;
    let back = fs::read(&target).context("cannot read what was exported")?;
    ensure!(
        back.get(..length) == Some(bytes.as_slice()),
        "the export differs"
    );
    ensure!(
        back.iter().skip(length).all(|byte| *byte == 0),
        "the export's end is not zeros"
    );
    // What is beyond a file that overwrites stays, in the sector where it ends, too.
    let begin = vec![b'x'; 1000];
    fs::write(&source, &begin).context("cannot write the file to import")?;
    let over = ["volume", "import", "--overwrite", "v", &text(&source)];
    lab.closer_within(&over, TRANSFER_LIMIT)?;
    fs::remove_file(&target).context("cannot clean up")?;
    lab.closer_within(&["volume", "export", "v", &text(&target)], TRANSFER_LIMIT)?;
    let back = fs::read(&target).context("cannot read what was exported")?;
    ensure!(
        back.get(..1000) == Some(begin.as_slice()) && back.get(1000..length) == bytes.get(1000..),
        "what is beyond the file that overwrites differs"
    );
    fs::remove_file(&source)
        .and_then(|()| fs::remove_file(&target))
        .context("cannot clean up")?;
    passed()
}

/// One guest's writes, to the last sector, change nobody else's volume.
fn apart(lab: &mut Lab) -> Result<Outcome> {
    for name in ["left", "middle", "right"] {
        lab.volume(name, "8M")?;
    }
    let spec = GuestSpec::new("a")
        .disk("left")
        .disk("middle")
        .disk("right");
    let mut guest = lab.boot(&spec)?;
    guest.ok("tr '\\0' Z < /dev/zero | dd of=/dev/xvdb bs=64k iflag=fullblock; sync; echo 3 > /proc/sys/vm/drop_caches")?;
    for disk in ["xvda", "xvdc"] {
        let others = guest.ok(&format!("tr -d '\\0' < /dev/{disk} | wc -c"))?;
        ensure!(others == "0", "{others} bytes of {disk} were written");
    }
    let zs = guest.ok("tr -dc Z < /dev/xvdb | wc -c; blockdev --getsize64 /dev/xvdb")?;
    let mut numbers = zs.lines();
    ensure!(
        numbers.next() == numbers.next(),
        "the written volume reads back as {zs:?}"
    );
    passed()
}
