//! What a guest can make the backend write into the log.

mod guest;

use guest::{Bed, Options, request};
use std::sync::{Arc, Mutex};
use xen_abi::GrantRef;
use xen_abi::io::blkif::{OP_READ, OP_WRITE};

struct Lines(Mutex<Vec<String>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }
    fn flush(&self) {}
}

static LINES: Lines = Lines(Mutex::new(Vec::new()));

/// One test only: the log is the program's.
#[test]
fn however_often_a_guest_connects_its_device_writes_few_lines() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let options = || Options {
        start: 0,
        ..Options::default()
    };
    let told = Arc::default();
    for _ in 0..20 {
        let mut bed = Bed::new(Options {
            told: Arc::clone(&told),
            ..options()
        });
        // Bad grants, bad requests, and a broken ring.
        for n in 0..5 {
            bed.push(request(OP_READ, n, &[(GrantRef(0xffff), 0, 7)]));
            bed.push(request(OP_WRITE, u64::MAX, &[]));
        }
        bed.settle();
        bed.front.forge_req_prod(4000);
        xen_ring::peer::Events::notify(&bed.port);
        bed.drain();
        assert!(bed.task.take().is_some());
        // A ring that is broken from the start.
        let mut bed = Bed::new(Options {
            told: Arc::clone(&told),
            ..options()
        });
        bed.front.forge_req_prod(4000);
        bed.drain();
        assert!(bed.task.take().is_some());
    }
    let lines = LINES.0.lock().unwrap().clone();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    // Another device is heard.
    let mut bed = Bed::new(options());
    bed.push(request(OP_WRITE, 0, &[]));
    bed.settle();
    assert_eq!(LINES.0.lock().unwrap().len(), 5);
    bed.finish();
}
