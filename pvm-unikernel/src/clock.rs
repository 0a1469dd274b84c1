//! The clock that drivers and backends are given.

use core::cell::RefCell;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::time::{self, Sleep};

/// The running vCPU's clock, with one alarm.
#[derive(Debug, Default)]
pub struct VcpuTimer {
    alarm: RefCell<Option<(u64, Sleep)>>,
}

impl hal::Timer for VcpuTimer {
    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn poll_deadline(&self, at_ns: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut alarm = self.alarm.borrow_mut();
        if alarm.as_ref().is_none_or(|(at, _)| *at != at_ns) {
            *alarm = Some((at_ns, time::sleep_until(at_ns)));
        }
        let (_, sleep) = alarm.as_mut().expect("set above");
        let ready = Pin::new(sleep).poll(cx);
        if ready.is_ready() {
            *alarm = None;
        }
        ready
    }
}
