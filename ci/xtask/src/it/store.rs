//! xenstore as a guest sees it, with Debian's own utilities.

use super::{Test, passed};
use crate::lab::{GuestSpec, Lab};
use crate::report::Outcome;
use anyhow::{Result, ensure};

pub const TESTS: &[Test] = &[
    Test {
        name: "utilities-work-in-a-guest",
        run: utilities,
    },
    Test {
        name: "a-guest-is-kept-in-its-place",
        run: permissions,
    },
];

fn utilities(lab: &mut Lab) -> Result<Outcome> {
    let mut guest = lab.boot(&GuestSpec::new("a").with_tools().net("10.0.2.30"))?;
    let domid = lab.domid("a")?;
    let own = guest.ok("xenstore-read domid")?;
    ensure!(
        own == domid.to_string(),
        "xenstore says domid {own}, list says {domid}"
    );
    let name = guest.ok("xenstore-read name")?;
    ensure!(name == "a", "xenstore says the name is {name}");
    guest.ok("xenstore-write data/key value")?;
    let back = guest.ok("xenstore-read data/key")?;
    ensure!(back == "value", "read {back}");
    let tree = guest.ok("xenstore-ls -f device")?;
    ensure!(
        tree.contains("device/vif/0/state = \"4\""),
        "the vif is not connected: {tree}"
    );
    guest.ok("xenstore-rm data/key")?;
    ensure!(
        guest.run("xenstore-exists data/key")?.status != 0,
        "a removed node is there"
    );
    let watched = guest.ok("(sleep 1; xenstore-write data/w 1) & xenstore-watch -n 2 data/w")?;
    ensure!(watched.lines().count() == 2, "the watch gave {watched:?}");
    // One transaction each; the second has more names than a guest's node may hold.
    let write = |many: u32| {
        format!(
            "i=0; while [ $i -lt {many} ]; do echo data/long-name-of-a-child-$i; echo x; \
             i=$((i+1)); done | xargs xenstore-write"
        )
    };
    guest.ok(&write(60))?;
    ensure!(
        guest.run(&write(400))?.status != 0,
        "a guest's node holds more than its quota"
    );
    let count = guest.ok("xenstore-list data | grep -c long-name")?;
    ensure!(count == "60", "the list has {count} of 60 children");
    passed()
}

fn permissions(lab: &mut Lab) -> Result<Outcome> {
    let mut guest = lab.boot(&GuestSpec::new("a").with_tools())?;
    let domid = lab.domid("a")?;
    for path in [
        "/tool",
        "/local/domain/0/name",
        "/vm",
        "/local/domain/0/backend",
    ] {
        let answer = guest.run(&format!("xenstore-write {path} x"))?;
        ensure!(answer.status != 0, "a guest may write {path}");
    }
    let answer = guest.run(&format!("xenstore-write /local/domain/{domid}/name other"))?;
    ensure!(answer.status != 0, "a guest may rename itself");
    ensure!(
        lab.listed("a")?.is_some(),
        "the guest is listed under another name"
    );
    passed()
}
