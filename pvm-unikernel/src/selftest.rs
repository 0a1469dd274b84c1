//! `selftest` on the command line: the kernel proves on the real Xen what host tests
//! cannot. Prints `closer: selftest ok`, or what failed.
//!
//! `selftest=panic`, `selftest=fault` and `selftest=overflow` show what each of these ends in.
#![allow(unsafe_code, reason = "makes faults, and a domain to map")]

mod domain;
mod memory;
mod tasks;

use crate::boot::{self, BootInfo};
use crate::log::announce;
use core::fmt;

/// A failed expectation: what, and the two sides or the error as text.
#[derive(Debug)]
pub struct Failure(alloc::string::String);

impl<E: core::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(alloc::format!("{error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Fails with a text unless `holds`.
fn expect(holds: bool, what: fmt::Arguments<'_>) -> Result<(), Failure> {
    if holds {
        Ok(())
    } else {
        Err(Failure(alloc::format!("{what}")))
    }
}

type Outcome = Result<(), Failure>;

/// Runs what the command line asks for.
pub async fn run(boot: &BootInfo) {
    match boot::option(&boot.command_line, "selftest") {
        Some("panic") => panic!("asked for by selftest=panic"),
        Some("fault") => fault(),
        Some("overflow") => {
            announce(format_args!("{}", overflow(1)));
        }
        _ if boot::flag(&boot.command_line, "selftest") => all(boot).await,
        _ => {}
    }
}

async fn all(boot: &BootInfo) {
    let mut failed = 0;
    let mut report = |name: &str, outcome: Outcome| match outcome {
        Ok(()) => announce(format_args!("selftest {name}: ok")),
        Err(failure) => {
            failed += 1;
            announce(format_args!("selftest {name}: FAILED: {failure}"));
        }
    };
    report("protection", memory::protection());
    report("pinning", tasks::pinning());
    report("ping-pong", tasks::ping_pong().await);
    report("channel", tasks::channel_stress().await);
    report("cancel", tasks::cancel().await);
    report("accounts", tasks::accounts().await);
    report("sleep", tasks::sleep_accuracy().await);
    report("ports", tasks::ports().await);
    report("frames", memory::frames());
    report("heap", memory::heap());
    report("grow", memory::grow_and_give_back());
    report("nodes", memory::node_ranges());
    if boot.is_dom0 {
        report("foreign", domain::foreign_map().await);
    }
    memory::say_nodes();
    report("idle", tasks::idle_cost().await);
    if failed == 0 {
        announce(format_args!("selftest ok"));
    } else {
        announce(format_args!("selftest FAILED: {failed}"));
    }
}

/// Reads address 0, where nothing is mapped.
#[inline(never)]
fn fault() {
    let nothing = core::ptr::without_provenance::<u64>(core::hint::black_box(8));
    // SAFETY: it is not: this is the test that a stray read ends in a readable panic.
    let value = unsafe { nothing.read_volatile() };
    announce(format_args!("address 8 reads as {value}"));
}

/// Runs into the guard page.
#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let page = core::hint::black_box([depth; 512]);
    if depth == u64::MAX {
        return page[7];
    }
    overflow(depth + 1) + page[3]
}
