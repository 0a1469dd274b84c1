//! What the server says in the log, when a guest would have it say more.
mod common;

use common::Bed;
use std::sync::atomic::{AtomicU32, Ordering};
use toolstack_xenstore::Quotas;
use xen_abi::DomId;

static LINES: AtomicU32 = AtomicU32::new(0);

/// Counts lines.
struct Counter;

impl log::Log for Counter {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {
        LINES.fetch_add(1, Ordering::Relaxed);
    }

    fn flush(&self) {}
}

/// The only test in this program: the log is everybody's.
#[test]
fn a_guest_whose_memory_goes_up_and_down_makes_few_lines() {
    log::set_logger(&Counter).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let mut bed = Bed::new();
    let guest = bed.guest(3);
    let quotas = Quotas {
        memory_soft: 8192,
        ..Quotas::GUEST
    };
    bed.server.set_quotas(DomId(3), Some(quotas));
    let value = "x".repeat(2000);
    for round in 0..500 {
        for node in 0..6 {
            bed.write(guest, 0, &format!("d/{node}"), &value).unwrap();
        }
        bed.read(guest, 0, "d/0").unwrap();
        if round == 0 {
            assert_eq!(LINES.load(Ordering::Relaxed), 1, "it is told at all");
        }
        bed.rm(guest, 0, "d").unwrap();
        bed.read(guest, 0, "d").unwrap_err();
        bed.wait(1000);
    }
    let lines = LINES.load(Ordering::Relaxed);
    assert!((2..20).contains(&lines), "{lines} lines");
}
