//! The kernel's event ports on a fake Xen, which gives a closed port's number away at once.
#[allow(dead_code, reason = "the kernel uses all of it")]
#[path = "../../../pvm-unikernel/src/event.rs"]
mod event;

mod arch {
    pub struct SpinLock<T>(std::sync::Mutex<T>);

    impl<T> SpinLock<T> {
        pub const fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> std::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }

    pub mod cpu {
        pub fn id() -> usize {
            0
        }
    }

    pub mod shared_info {
        use xen_abi::EvtchnPort;

        pub const PORTS: usize = 4096;

        /// Port 7 has an event.
        pub fn take_events(mut each: impl FnMut(EvtchnPort)) {
            each(EvtchnPort(7));
        }

        pub fn mask(_: EvtchnPort) {}
    }

    pub mod hypercall {
        #[derive(Debug)]
        pub struct Errno;

        impl std::fmt::Display for Errno {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("errno")
            }
        }

        /// Every port is number 7.
        pub mod event {
            use super::Errno;
            use std::cell::RefCell;
            use xen_abi::{DomId, EvtchnPort};

            type Hook = Box<dyn FnOnce()>;
            thread_local! {
                /// What another vCPU does as soon as a port is closed.
                pub static CLOSED: RefCell<Option<Hook>> = const { RefCell::new(None) };
            }

            pub fn close(_: EvtchnPort) -> Result<(), Errno> {
                if let Some(hook) = CLOSED.take() {
                    hook();
                }
                Ok(())
            }
            pub fn bind_ipi(_: u32) -> Result<EvtchnPort, Errno> {
                Ok(EvtchnPort(7))
            }
            pub fn bind_vcpu(_: EvtchnPort, _: u32) -> Result<(), Errno> {
                Ok(())
            }
            pub fn unmask(_: EvtchnPort) -> Result<(), Errno> {
                Ok(())
            }
            pub fn send(_: EvtchnPort) -> Result<(), Errno> {
                Ok(())
            }
            pub fn alloc_unbound(_: DomId, _: DomId) -> Result<EvtchnPort, Errno> {
                Err(Errno)
            }
            pub fn bind_interdomain(_: DomId, _: EvtchnPort) -> Result<EvtchnPort, Errno> {
                Err(Errno)
            }
            pub fn bind_virq(_: u32, _: u32) -> Result<EvtchnPort, Errno> {
                Err(Errno)
            }
            pub fn bind_pirq(_: u32) -> Result<EvtchnPort, Errno> {
                Err(Errno)
            }
        }
    }
}

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};

#[derive(Default)]
struct Task(AtomicU32);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_task_that_waits_for_a_reused_port_is_woken() {
    let first = event::Port::bind_ipi(hal::VcpuId(0)).unwrap();
    let old = Arc::new(Task::default());
    let waker = Waker::from(old.clone());
    assert_eq!(
        first.poll_event(&mut Context::from_waker(&waker)),
        Poll::Pending
    );
    let task = Arc::new(Task::default());
    let second = Rc::new(RefCell::new(None));
    let (waker, place) = (Waker::from(task.clone()), second.clone());
    arch::hypercall::event::CLOSED.set(Some(Box::new(move || {
        let port = event::Port::bind_ipi(hal::VcpuId(1)).unwrap();
        assert_eq!(
            port.poll_event(&mut Context::from_waker(&waker)),
            Poll::Pending
        );
        *place.borrow_mut() = Some(port);
    })));
    drop(first);
    assert!(second.borrow().is_some());
    event::dispatch();
    assert_eq!(task.0.load(Ordering::SeqCst), 1, "woken");
    assert_eq!(old.0.load(Ordering::SeqCst), 0);
}
